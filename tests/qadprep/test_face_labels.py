"""Masks that cannot be used: every case ends with its reason, and the real clip beside it is extracted."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.footage import FRAMES, mask_video, release, swapped, two_faces

from qadprep.catalog.base import Group, read_dataset
from qadprep.config import ExtractConfig
from qadprep.extract import extract_group
from qadprep.faces import Detector, make_detector
from qadprep.pack import read_pack
from qadprep.results import GroupResult

N = 8
CONFIG = ExtractConfig(dataset="ffiw", frames=N, size_px=32, qualities=("raw",), detector={"name": "mtcnn"})
STEM = "train_00000000"
Region = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector("mtcnn")


@pytest.fixture(scope="module")
def clip(portrait: np.ndarray) -> np.ndarray:
    return two_faces("made", portrait, 0)


@pytest.fixture
def tree(clip: np.ndarray, tmp_path: Path) -> Path:
    """One recording with two people; the right one is masked."""
    folder = tmp_path / "data"
    height, width = clip.shape[1:3]
    right = (width // 2, 0, width, height)
    release(clip, folder / "source" / "train" / f"{STEM}.mp4")
    release(swapped(clip, right), folder / "target" / "train" / f"{STEM}.mp4")
    mask_video(clip, right, mask_of(folder))
    return folder


def mask_of(root: Path) -> Path:
    return root / "target_mask" / "train" / f"{STEM}_mask.mp4"


def run(root: Path, out: Path, detector: Detector) -> tuple[GroupResult, list[dict]]:
    [group] = read_dataset("ffiw", root).groups()
    assert isinstance(group, Group)
    result = extract_group(group, root, out, CONFIG, detector)
    rows = read_pack(out / "ffiw" / f"{STEM}.parquet").table.to_pylist()
    assert sum(row["status"] == "ok" for row in rows if row["method"] == "original") == 2 * N
    assert all(row["label"] == 0 for row in rows if row["method"] == "original")
    return result, [row for row in rows if row["method"] == "FFIW"]


def test_two_faces_two_labels(tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    result, rows = run(tree, tmp_path, detector)
    assert result.statuses == {"ok": 4 * N} and not result.failures and not result.notes
    middle = clip.shape[2] / 2
    for row in rows:
        assert row["label"] == (row["box_xyxy"][0] > middle) and (row["mask_share"] > 0.9) == bool(row["label"])
    assert Counter(row["face"] for row in rows) == {0: N, 1: N}


def refused(result: GroupResult, rows: list[dict], status: str) -> str:
    """Every face of the fake clip has this status and no label; returns the message of the one failure."""
    assert {(row["status"], row["label"]) for row in rows} == {(status, None)} and len(rows) == 2 * N
    [(what, reason, message)] = result.failures
    assert (reason == status and "_mask.mp4" in what + message) or "no mask" in message
    return message


def test_a_missing_mask(tree: Path, tmp_path: Path, detector: Detector) -> None:
    mask_of(tree).unlink()
    assert "nothing says which of its faces are fake" in refused(*run(tree, tmp_path, detector), "mask_missing")


def test_a_mask_that_is_no_video(tree: Path, tmp_path: Path, detector: Detector) -> None:
    mask_of(tree).write_text("a web page: 404")
    assert "not a readable video" in refused(*run(tree, tmp_path, detector), "mask_unreadable")


def test_a_mask_of_another_size(tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    small = np.stack([cv2.resize(frame, (240, 90)) for frame in clip])
    mask_video(small, (0, 0, 100, 90), mask_of(tree))
    assert "240x90, the clip 480x180" in refused(*run(tree, tmp_path, detector), "mask_size")


def masked_right(clip: np.ndarray) -> Region:
    return clip.shape[2] // 2, 0, clip.shape[2], clip.shape[1]


def test_a_shorter_mask_shortens_the_group(tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    mask_video(clip, masked_right(clip), mask_of(tree), frames=FRAMES - 6)
    result, rows = run(tree, tmp_path, detector)
    assert result.statuses == {"ok": 4 * N} and not result.failures
    assert [note for _, note in result.notes] == ["its mask has 18 of 24 frames; the group is sampled inside them"]
    assert max(row["frame"] for row in rows) < FRAMES - 6


def test_a_mask_too_short_for_the_wanted_frames(
    tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector
) -> None:
    mask_video(clip, masked_right(clip), mask_of(tree), frames=5)
    result, rows = run(tree, tmp_path, detector)
    for row in rows:
        assert (row["status"] == "mask_short") == (row["frame"] >= 5) and row["status"] in ("ok", "mask_short")
    [(_, status, message)] = result.failures
    assert status == "mask_short" and "has 5 frames" in message
    assert {row["label"] for row in rows if row["status"] == "ok"} == {0, 1}


def test_a_mask_that_marks_nothing(tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    """Not a word that its faces are real: somebody altered something in this clip."""
    mask_video(clip, (0, 0, 0, 0), mask_of(tree))
    assert "marks nothing in the 8 frames" in refused(*run(tree, tmp_path, detector), "mask_empty")


def test_a_damaged_mask(tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    noise = np.random.default_rng(0).integers(0, 255, clip.shape, np.uint8)
    release(noise, mask_of(tree))
    data = bytearray(mask_of(tree).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    mask_of(tree).write_bytes(data)
    result, rows = run(tree, tmp_path, detector)
    [(_, status, message)] = result.failures
    assert status == "mask_damaged" and "are damaged" in message
    lost = [row["frame"] for row in rows if row["status"] == "mask_damaged"]
    assert lost and all(row["frame"] < min(lost) for row in rows if row["status"] != "mask_damaged")


def test_a_face_masked_half_of_the_time_is_doubtful(
    tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector
) -> None:
    from qadprep.video.encode import write_compressed

    mask = np.zeros_like(clip)
    mask[: FRAMES // 2, :, clip.shape[2] // 2 :] = 255
    write_compressed(mask, mask_of(tree), 25, 30, "yuv420p")
    result, rows = run(tree, tmp_path, detector)
    assert Counter((row["status"], row["label"]) for row in rows) == {("ok", 0): N, ("label_doubtful", None): N}
    assert result.statuses["label_doubtful"] == N


def test_a_fake_without_any_masked_face_is_noted(
    tree: Path, clip: np.ndarray, tmp_path: Path, detector: Detector
) -> None:
    mask_video(clip, (0, 0, 4, 4), mask_of(tree))
    result, rows = run(tree, tmp_path, detector)
    assert {(row["status"], row["label"]) for row in rows} == {("ok", 0)}
    assert [note for _, note in result.notes] == ["no face of this manipulated clip lies under its mask"]


def test_a_rare_face_is_no_face_of_its_own(
    clip: np.ndarray, portrait: np.ndarray, tmp_path: Path, detector: Detector
) -> None:
    """Somebody who is there in one sampled frame only: named, not used."""
    from qadprep.sampling import sample_indices

    shown: Callable[[int], bool] = set(sample_indices(FRAMES, N, 0, f"ffiw/{STEM}")[0][3:4]).__contains__
    lonely = clip.copy()
    half = clip.shape[2] // 2
    for index, frame in enumerate(lonely):
        if not shown(index):
            frame[:, half:] = 90
    release(lonely, tmp_path / "source" / "train" / f"{STEM}.mp4")
    [group] = read_dataset("ffiw", tmp_path).groups()
    result = extract_group(group, tmp_path, tmp_path, CONFIG, detector)
    assert result.statuses == {"ok": N, "short_track": 1}
