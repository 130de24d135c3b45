"""Groups whose fakes were shifted, cropped, resized or cut about on purpose: the proof finds exactly what was done."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.clips import moving_face, write_qualities

from qadprep.catalog.base import Group, read_dataset
from qadprep.config import ExtractConfig
from qadprep.extract import extract_group
from qadprep.faces import Detector, make_detector
from qadprep.pack import read_pack
from qadprep.results import GroupResult
from qadprep.shardset import decode_image
from qadprep.video.encode import write_raw

LENGTH, SIZE = 40, 64
CONFIG = ExtractConfig(dataset="ffpp", frames=12, size_px=SIZE, detector={"name": "mtcnn"})
RAW_ONLY = CONFIG.model_copy(update={"qualities": ("raw",)})
METHODS = "manipulated_sequences"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector("mtcnn")


@pytest.fixture(scope="module")
def clip(portrait: np.ndarray) -> np.ndarray:
    return moving_face(portrait, LENGTH, 0)


def altered(frames: np.ndarray) -> np.ndarray:
    """The middle tinted, as a stand-in for a manipulation; the border of every crop stays as it is."""
    result = frames.copy()
    height, width = frames.shape[1:3]
    part = result[:, 2 * height // 5 : 3 * height // 5, 2 * width // 5 : 3 * width // 5]
    part[:] = np.clip(part * np.array([1.15, 0.9, 0.85]), 0, 255)
    return result


def raw_tree(root: Path, original: np.ndarray, fake: np.ndarray) -> Path:
    write_raw(original, root / "original_sequences" / "youtube" / "raw" / "videos" / "071.mp4", 25)
    write_raw(fake, root / METHODS / "Deepfakes" / "raw" / "videos" / "071_054.mp4", 25)
    return root


def group_of(root: Path) -> Group:
    [group] = read_dataset("ffpp", root).groups()
    return group


def run(root: Path, detector: Detector, config: ExtractConfig = RAW_ONLY) -> tuple[GroupResult, list[dict], bytes]:
    result = extract_group(group_of(root), root, root / "out", config, detector)
    pack = read_pack(root / "out" / "ffpp" / "071.parquet")
    return result, pack.table.to_pylist(), pack.tar.read_bytes()


def crops(rows: list[dict], data: bytes, method: str, quality: str = "raw") -> dict[int, np.ndarray]:
    return {
        row["frame"]: decode_image(data[(at := row[f"{quality}_offset"]) : at + row[f"{quality}_size"]], SIZE)
        for row in rows
        if row["method"] == method and row["status"] == "ok"
    }


def border(crop: np.ndarray) -> np.ndarray:
    """The rim of a crop, which no manipulation here reaches."""
    return np.concatenate([crop[:6].reshape(-1, 3), crop[-6:].reshape(-1, 3)])


@pytest.mark.parametrize("k", [-3, -1, 2])
def test_a_constant_shift_in_time_is_applied(clip: np.ndarray, tmp_path: Path, detector: Detector, k: int) -> None:
    fake = altered(clip)
    # Frame i of the file shows frame i + k of the original.
    shifted = fake[np.clip(np.arange(LENGTH) + k, 0, LENGTH - 1)]
    result, rows, data = run(raw_tree(tmp_path, clip, shifted), detector)
    notes = [note for name, note in result.notes if "Deepfakes" in name]
    assert notes[0] == f"shifted by {k:+d} frames against the original: the shift is applied"
    real, fakes = crops(rows, data, "original"), crops(rows, data, "Deepfakes")
    assert len(real) == 12 and len(fakes) >= 10 and fakes.keys() <= real.keys()
    for frame, crop in fakes.items():
        np.testing.assert_array_equal(border(crop), border(real[frame]))
    for row in rows:
        if row["method"] == "Deepfakes":
            assert row["geometry"] == "reference" and row["raw_sync"] == "shifted"
            assert row["raw_sync_offset_frames"] == k
            if row["status"] == "ok":
                assert row["raw_frame"] == row["frame"] - k
            else:
                assert row["status"] == "beyond_end" and not 0 <= row["frame"] - k < LENGTH


@pytest.mark.parametrize(
    ("left", "top", "width", "height", "relation"),
    [(8, 0, 224, 180, "centre_crop"), (0, 0, 230, 180, "left_aligned"), (5, 3, 226, 170, "crop")],
)
def test_a_cropped_fake_is_cut_at_the_same_place(
    clip: np.ndarray,
    tmp_path: Path,
    detector: Detector,
    left: int,
    top: int,
    width: int,
    height: int,
    relation: str,
) -> None:
    fake = altered(clip)[:, top : top + height, left : left + width]
    result, rows, data = run(raw_tree(tmp_path, clip, fake), detector)
    assert not result.failures and result.statuses == {"ok": 24}
    real, fakes = crops(rows, data, "original"), crops(rows, data, "Deepfakes")
    for frame, crop in fakes.items():
        # One grey level: the warp's own rounding depends on where in the picture it works.
        inner = np.abs(crop.astype(int) - real[frame])[24:40, :8]
        assert inner.max() <= 1
    [row, *_] = [row for row in rows if row["method"] == "Deepfakes"]
    assert (row["raw_sync"], row["raw_sync_relation"]) == ("shifted", relation)
    assert (row["raw_sync_left_px"], row["raw_sync_top_px"], row["raw_sync_offset_frames"]) == (left, top, 0)
    assert row["geometry"] == "reference" and row["raw_frame"] == row["frame"]


def test_a_wider_fake_whose_content_begins_at_the_left(clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    fake = np.pad(altered(clip), ((0, 0), (0, 0), (0, 4), (0, 0)), mode="edge")
    result, rows, _ = run(raw_tree(tmp_path, clip, fake), detector)
    assert not result.failures and result.statuses == {"ok": 24}
    [row, *_] = [row for row in rows if row["method"] == "Deepfakes"]
    assert (row["raw_sync"], row["raw_sync_relation"], row["raw_sync_left_px"]) == ("shifted", "left_aligned", 0)


def test_a_resized_fake(clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    fake = np.stack([cv2.resize(frame, (320, 240), interpolation=cv2.INTER_CUBIC) for frame in altered(clip)])
    result, rows, data = run(raw_tree(tmp_path, clip, fake), detector)
    assert not result.failures and result.statuses == {"ok": 24}
    [row, *_] = [row for row in rows if row["method"] == "Deepfakes"]
    assert (row["raw_sync"], row["raw_sync_relation"]) == ("shifted", "resized")
    real, fakes = crops(rows, data, "original"), crops(rows, data, "Deepfakes")
    assert np.mean([np.abs(border(fakes[f]).astype(int) - border(real[f])).mean() for f in fakes]) < 3


def dropped(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames[:20], frames[21:], frames[-1:]])


def doubled(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames[:20], frames[19:-1]])


@pytest.mark.parametrize("change", [dropped, doubled, lambda frames: frames[::-1]])
def test_what_is_no_constant_shift_gets_its_own_detection(
    clip: np.ndarray, tmp_path: Path, detector: Detector, change: object
) -> None:
    result, rows, _ = run(raw_tree(tmp_path, clip, change(altered(clip))), detector)
    assert {row["geometry"] for row in rows if row["method"] == "Deepfakes" and row["status"] == "ok"} == {"own"}
    notes = [note for name, note in result.notes if "Deepfakes" in name]
    assert "not proved against the original, cut with its own geometry" in notes[0]
    assert result.counts["detected_frames"] >= 24 and result.statuses["ok"] == 24


def test_a_quality_out_of_step_with_its_clip(clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    """A constant shift of one quality is applied like that of a clip; a dropped frame makes it useless."""
    for name, frames in (("late", clip[[0, *range(LENGTH - 1)]]), ("gap", dropped(clip))):
        root = tmp_path / name
        write_qualities(clip, root / "original_sequences" / "youtube", "071")
        write_qualities(frames, tmp_path / f"{name}-made", "071")
        made = tmp_path / f"{name}-made" / "c40" / "videos" / "071.mp4"
        made.replace(root / "original_sequences" / "youtube" / "c40" / "videos" / "071.mp4")
    result, rows, _ = run(tmp_path / "late", detector, CONFIG)
    assert not result.failures and result.notes == [
        ("ffpp/original/071", "c40 is shifted by -1 frames against raw: the shift is applied")
    ]
    assert all(row["c40_frame"] == row["frame"] + 1 for row in rows if row["status"] == "ok")
    assert all(row["c40_psnr_db"] > 20 for row in rows if row["status"] == "ok")
    result, rows, _ = run(tmp_path / "gap", detector, CONFIG)
    [(path, status, message)] = result.failures
    assert path.endswith("c40/videos/071.mp4") and status == "sync_refused" and "offset changes" in message
    assert {row["status"] for row in rows} == {"sync_refused"}


def test_unaltered_frames_are_flagged_and_left_out_on_request(
    clip: np.ndarray, tmp_path: Path, detector: Detector
) -> None:
    fake = altered(clip)
    fake[10:25] = clip[10:25]  # as faceswap leaves frames in which it finds no face
    root = raw_tree(tmp_path, clip, fake)
    result, rows, _ = run(root, detector)
    flags = {row["frame"]: row["unaltered"] for row in rows if row["method"] == "Deepfakes"}
    assert flags == {frame: 10 <= frame < 25 for frame in flags} and len(set(flags.values())) == 2
    assert {row["unaltered"] for row in rows if row["method"] == "original"} == {None}
    assert all((row["alteration"] < 0.01) == row["unaltered"] for row in rows if row["method"] == "Deepfakes")
    assert result.statuses == {"ok": 24}
    dropped_too = RAW_ONLY.model_copy(update={"drop_unaltered": True})
    result, rows, _ = run(root, detector, dropped_too)
    assert result.statuses == {"ok": 24 - sum(flags.values()), "unaltered": sum(flags.values())}
    assert all(row["unaltered"] for row in rows if row["status"] == "unaltered")


def test_an_empty_mask_means_unaltered(clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    root = raw_tree(tmp_path, clip, altered(clip))
    mask = np.zeros_like(clip)
    mask[:20, 40:140, 60:180] = 255
    write_raw(mask, root / METHODS / "Deepfakes" / "masks" / "videos" / "071_054.mp4", 25)
    result, rows, _ = run(root, detector)
    flags = {row["frame"]: row["unaltered"] for row in rows if row["method"] == "Deepfakes"}
    assert flags == {frame: frame >= 20 for frame in flags} and not result.failures


def test_a_broken_mask_costs_no_tuple(clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    root = raw_tree(tmp_path, clip, altered(clip))
    path = root / METHODS / "Deepfakes" / "masks" / "videos" / "071_054.mp4"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no video")
    result, _, _ = run(root, detector)
    assert result.statuses == {"ok": 24} and not result.failures
    assert any("masks/videos/071_054.mp4" in note for _, note in result.notes)


def test_filters_by_size_and_pose_and_measures(clip: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    root = raw_tree(tmp_path, clip, altered(clip))
    _, rows, _ = run(root, detector)
    for row in rows:
        assert 40 < row["face_px"] < 140 and abs(row["yaw_deg"]) < 60 and 0.5 < row["inside_share"] <= 1
        assert row["sharpness"] > 1 and row["scene"] == 0
    sides = sorted(row["face_px"] for row in rows if row["method"] == "original")
    limit = float(np.median(sides))
    result, rows, _ = run(root, detector, RAW_ONLY.model_copy(update={"min_face_px": limit}))
    assert result.statuses["small_face"] >= 2
    assert all((row["face_px"] >= limit) == (row["status"] in ("ok", "surplus")) for row in rows)
    with pytest.raises(ValueError, match="max_yaw_deg"):
        ExtractConfig(dataset="ffpp", max_yaw_deg=120)
    turned = RAW_ONLY.model_copy(update={"max_yaw_deg": 0.0})
    result, rows, _ = run(root, detector, turned)
    assert result.tuples == 0 and {row["status"] for row in rows} == {"turned_face"}


def test_all_faces_of_a_recording_with_two_people(portrait: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    left, right = moving_face(portrait, LENGTH, 0), moving_face(portrait, LENGTH, 3)[:, :, ::-1]
    both = np.concatenate([left, right], axis=2)
    root = raw_tree(tmp_path, both, both)
    result, rows, _ = run(root, detector)
    assert {row["face"] for row in rows} == {0}
    result, rows, _ = run(root, detector, RAW_ONLY.model_copy(update={"faces": "all"}))
    ok = {(row["method"], row["face"]) for row in rows if row["status"] == "ok"}
    assert ok == {("original", 0), ("original", 1)}
    # Of the manipulated clip nothing says which face is fake.
    assert result.statuses == {"ok": 24, "mask_missing": 24}
    assert any("nothing says which of its faces are fake" in message for _, _, message in result.failures)
