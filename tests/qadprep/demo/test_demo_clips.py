"""Originals from somebody's own videos: which are taken, which are not and why, and nobody twice."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from qadprep.demo.cast import Cast, cast_clips, make_slots
from qadprep.demo.clips import ClipRejected, assess, find_people, read_frames, smooth_landmarks
from qadprep.demo.dataset import make_dataset
from qadprep.demo.identities import make_identity
from qadprep.demo.portrait import Portrait
from qadprep.errors import UserError
from qadprep.video.encode import write_compressed
from qadprep.video.probe import probe

REAL_CLIPS = sorted(Path(os.environ.get("QAD_REAL_CLIPS", "/nowhere")).glob("liveportrait_d1*.mp4"))[:3]
SIZE_PX = (240, 184)


def write_person(path: Path, number: int, frames: int = 12, fps: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = Portrait(make_identity(number, 3), SIZE_PX).clip(frames)
    write_compressed([rgb for rgb, _ in clip], path, fps, 18, "yuv420p")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_person(folder / "anna.mp4", 0)
    write_person(folder / "bert" / "holiday.mp4", 1, fps=30)
    write_person(folder / "bert" / "kitchen.mp4", 1)
    shutil.copy(folder / "anna.mp4", folder / "copy_of_anna.mp4")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8)
    wall = np.random.default_rng(0).integers(90, 150, (12, 184, 240, 3), np.uint8)
    write_compressed(list(wall), folder / "faceless.mp4", 25, 30)
    write_person(folder / "short.mp4", 2, frames=4)
    write_person(folder / "zoe.mov", 3)
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


def cast(folder: Path, pairs: dict[str, int]) -> Cast:
    with ThreadPoolExecutor(1) as pool:
        return cast_clips(pool, folder, make_slots(pairs), 12, SIZE_PX, 0, "mtcnn", lambda *_: None)


def test_people_are_videos_and_subfolders(folder: Path) -> None:
    names = [[path.name for path in videos] for videos in find_people(folder)]
    assert names == [
        ["anna.mp4"],
        ["holiday.mp4", "kitchen.mp4"],
        ["broken.mp4"],
        ["copy_of_anna.mp4"],
        ["faceless.mp4"],
        ["short.mp4"],
        ["zoe.mov"],
    ]


def test_unusable_videos_are_named_with_their_reasons(folder: Path) -> None:
    found = cast(folder, {"train": 1, "test": 1})
    assert {item.path.name: item.reason.split(":")[0] for item in found.skipped} == {
        "broken.mp4": "cannot be read (unreadable)",
        "copy_of_anna.mp4": "the same file as anna.mp4",
        "faceless.mp4": "no face to follow",
        "short.mp4": "too short",
    }
    assert [person.origin for person in found.people] == ["anna.mp4", "holiday.mp4", "zoe.mov", "portrait 3"]
    assert [(person.id, person.split) for person in found.people] == [
        ("953", "test"),
        ("974", "test"),
        ("071", "train"),
        ("054", "train"),
    ]
    assert found.unused == ()
    assert [person.fps for person in found.people[:2]] == [24, 30]
    # Lengths 12, 9, 11 asked for; landmarks go with them, and lie where the warps put them.
    assert [person.frames for person in found.people[:3]] == [12, 9, 11]
    for person, number in zip(found.people[:3], (0, 1, 3), strict=True):
        truth = np.stack([points for _, points in Portrait(make_identity(number, 3), SIZE_PX).clip(person.frames)])
        assert person.landmarks_xy.shape == truth.shape
        truth = truth - np.array(person.window_xyxy[:2])
        eyes_px = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=1).mean()
        assert np.median(np.linalg.norm(person.landmarks_xy - truth, axis=2)) < 0.15 * eyes_px


def test_no_more_videos_are_taken_than_there_are_places(folder: Path) -> None:
    found = cast(folder, {"test": 1})
    assert [person.origin for person in found.people] == ["anna.mp4", "holiday.mp4"]
    assert [path.name for path in found.unused] == [
        "broken.mp4",
        "copy_of_anna.mp4",
        "faceless.mp4",
        "short.mp4",
        "zoe.mov",
    ]
    assert found.skipped == ()


def test_a_dataset_from_own_videos(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("broken.mp4", "zoe.mov"):
        shutil.copy(folder / name, mine)
    made = make_dataset(tmp_path / "out", clips_dir=mine, frames=12, size_px=(160, 128), pairs={"test": 1}, workers=1)
    assert made.from_clips == 1
    assert [(item.path.name, item.reason) for item in made.skipped] == [("broken.mp4", "cannot be read (unreadable)")]
    zoe, portrait = made.clips[:2]
    assert (zoe.origin, zoe.frames, zoe.fps) == ("zoe.mov", 12, Fraction(24))
    assert (portrait.origin, portrait.frames, portrait.fps) == ("portrait 1", 9, Fraction(30))
    raw = probe(made.root / "original_sequences/youtube/raw/videos/953.mp4")
    assert (raw.frames, raw.crf) == (12, 0.0)
    assert 100 < raw.height <= SIZE_PX[1] and 100 < raw.width <= SIZE_PX[0]
    assert raw.height % 2 == raw.width % 2 == 0
    swap = probe(made.root / "manipulated_sequences/Deepfakes/c40/videos/953_974.mp4")
    assert (swap.width, swap.height, swap.frames, swap.fps, swap.crf) == (raw.width, raw.height, 12, 30, 40.0)
    notice = (made.root / "STAND-INS.txt").read_text("utf-8")
    assert "953 (test): zoe.mov, 12 frames" in notice and str(mine) not in notice


def test_a_folder_without_a_usable_video_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "broken.mp4", tmp_path)
    with pytest.raises(UserError, match=r"none of the 1 videos .*broken.mp4: cannot be read"):
        cast(tmp_path, {"test": 1})
    with pytest.raises(UserError, match="is not a folder"):
        find_people(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video in"):
        find_people(tmp_path / "empty")


def test_small_pictures_and_small_faces_are_refused(tmp_path: Path) -> None:
    rgb, _ = Portrait(make_identity(0, 3), SIZE_PX).frame(0)
    write_compressed([rgb[:90]] * 8, tmp_path / "low.mp4", 25, 18)
    with pytest.raises(ClipRejected, match=r"too small: 240x90"):
        assess(tmp_path / "low.mp4", 12, "mtcnn")
    far = np.full((200, 320, 3), 128, np.uint8)
    far[40:95, 100:172] = cv2.resize(rgb, (72, 55), interpolation=cv2.INTER_AREA)
    write_compressed([far] * 8, tmp_path / "far.mp4", 25, 12)
    with pytest.raises(ClipRejected, match=r"face too small: eyes 1[0-5] px apart, 16 needed"):
        assess(tmp_path / "far.mp4", 12, "mtcnn")


def test_a_small_person_in_a_large_picture_is_cut_out(tmp_path: Path) -> None:
    person = Portrait(make_identity(0, 3), SIZE_PX)
    canvas, at = np.full((800, 1280, 3), 110, np.uint8), np.array([640, 300])
    pictures = []
    for rgb, _ in person.clip(10):
        canvas[300 : 300 + 368, 640 : 640 + 480] = cv2.resize(rgb, (480, 368), interpolation=cv2.INTER_LINEAR)
        pictures.append(canvas.copy())
    write_compressed(pictures, tmp_path / "far.mp4", 25, 18)
    clip = assess(tmp_path / "far.mp4", 10, "mtcnn")
    x0, y0, x1, y1 = clip.window_xyxy
    assert 500 < x0 < 760 and 100 < y0 < 380 and 1000 < x1 < 1260 and 500 < y1 <= 800
    frames = list(read_frames(tmp_path / "far.mp4", 10, clip.window_xyxy))
    height, width = frames[0].shape[:2]
    assert max(width, height) == 320
    truth = np.stack([person.landmarks(index) for index in range(10)])
    scale = np.array([width / (x1 - x0), height / (y1 - y0)])
    truth = ((truth + 0.5) * 2 + at - (x0, y0)) * scale - 0.5
    eyes_px = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=1).mean()
    assert eyes_px > 35
    assert np.median(np.linalg.norm(clip.landmarks_xy - truth, axis=2)) < 0.15 * eyes_px
    inside = cv2.resize(np.ascontiguousarray(pictures[4][y0:y1, x0:x1]), (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(frames[4].astype(int) - inside).mean() < 2.5


def test_long_sides_are_bounded_and_sides_even(tmp_path: Path) -> None:
    tall = np.random.default_rng(1).integers(0, 255, (601, 301, 3), np.uint8)[:600, :300]
    write_compressed([tall] * 3, tmp_path / "tall.mp4", 25, 30)
    frames = list(read_frames(tmp_path / "tall.mp4", 2, long_side_px=330))
    assert [frame.shape for frame in frames] == [(330, 164, 3)] * 2


def test_smoothing_keeps_a_steady_motion_and_fills_gaps() -> None:
    base = np.arange(10, dtype=np.float64).reshape(5, 2)
    found = {index: base + np.array([1.5, -0.5]) * index for index in (0, 2, 3, 6, 8)}
    smooth = smooth_landmarks(found, 9)
    expected = np.stack([base + np.array([1.5, -0.5]) * index for index in range(9)])
    assert smooth.dtype == np.float32
    assert np.abs(smooth - expected).max() < 1e-4
    jump = {index: base + np.array([4.0, 0.0]) * (index == 4) for index in range(9)}
    # The kernel is 1 4 6 4 1 over 16: a jump by 4 px in one frame shrinks to 1.5.
    assert np.allclose(smooth_landmarks(jump, 9)[2:7, 0, 0], [0.25, 1.0, 1.5, 1.0, 0.25])


@pytest.mark.parametrize("which", ["made here", *REAL_CLIPS], ids=str)
def test_landmarks_follow_a_face(folder: Path, which: str | Path) -> None:
    path = folder / "anna.mp4" if which == "made here" else which
    clip = assess(path, 12, "mtcnn")
    assert clip.landmarks_xy.shape == (12, 5, 2)
    frames = list(read_frames(path, 12))
    height, width = frames[0].shape[:2]
    assert (clip.landmarks_xy.min(axis=(0, 1)) > 0).all()
    assert (clip.landmarks_xy.max(axis=(0, 1)) < (width, height)).all()
    eyes, mouth = clip.landmarks_xy[:, :2].mean(axis=1), clip.landmarks_xy[:, 3:].mean(axis=1)
    assert (mouth[:, 1] > eyes[:, 1]).all()
    assert np.linalg.norm(np.diff(eyes, axis=0), axis=1).max() < 0.1 * width
