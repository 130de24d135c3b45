from pathlib import Path

import pytest

from qadprep.catalog.base import read_dataset
from qadprep.errors import UserError

REAL = "original_sequences/actors"
FAKE = "manipulated_sequences/DeepFakeDetection"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_clips_of_the_official_folders(tmp_path: Path) -> None:
    fake = "01_02__walking_down_indoor_hall_disgust__YVGY8LOK"
    touch(
        tmp_path,
        *(f"{REAL}/{q}/videos/01__walking_down_indoor_hall_disgust.mp4" for q in ("c0", "c23", "c40")),
        *(f"{FAKE}/{q}/videos/{fake}.mp4" for q in ("raw", "c23")),
        f"{FAKE}/masks/videos/{fake}.mp4",
        "original_sequences/youtube/c23/videos/000.mp4",
    )
    catalog = read_dataset("dfd", tmp_path)
    real, altered = catalog.clips
    assert (real.method, real.name, real.label) == ("original", "01__walking_down_indoor_hall_disgust", 0)
    assert (altered.method, altered.name, altered.label) == ("DeepFakeDetection", fake, 1)
    assert real.group == altered.group == "01__walking_down_indoor_hall_disgust"
    assert (real.target, real.source, altered.target, altered.source) == ("01", "", "01", "02")
    assert real.split == altered.split == "none"
    assert set(real.paths) == {"raw", "c23", "c40"} and set(altered.paths) == {"raw", "c23"}
    assert real.paths["raw"] == f"{REAL}/c0/videos/{real.name}.mp4"
    assert (real.mask, altered.mask) == (None, f"{FAKE}/masks/videos/{fake}.mp4")
    assert catalog.ignored == [] and catalog.expected == {}


def test_a_copy_named_by_its_quality(tmp_path: Path) -> None:
    root = tmp_path / "FaceForensics++_C23"
    touch(root, "DeepFakeDetection/01_02__hugging__YVGY8LOK.mp4", "actors/01__hugging.mp4", "original/000.mp4")
    assert {clip.method: clip.paths for clip in read_dataset("dfd", root).clips} == {
        "original": {"c23": "actors/01__hugging.mp4"},
        "DeepFakeDetection": {"c23": "DeepFakeDetection/01_02__hugging__YVGY8LOK.mp4"},
    }


def test_strange_files_are_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        f"{REAL}/raw/videos/01__hugging.mp4",
        f"{REAL}/c0/videos/01__hugging.mp4",
        f"{REAL}/raw/videos/01_02__hugging__YVGY8LOK.mp4",
        f"{REAL}/raw/videos/01__h\u00fcgging.mp4",
        f"{FAKE}/raw/videos/01_02__hugging.mp4",
        f"{FAKE}/raw/videos/01_02__hugging__SHORT.mp4",
        f"{FAKE}/raw/videos/notes.txt",
    )
    catalog = read_dataset("dfd", tmp_path)
    assert [clip.id for clip in catalog.clips] == ["dfd/original/01__hugging"]
    assert dict(catalog.ignored) == {
        f"{REAL}/c0/videos/01__hugging.mp4": f"raw is already there as {REAL}/raw/videos/01__hugging.mp4",
        f"{REAL}/raw/videos/01_02__hugging__YVGY8LOK.mp4": "name does not match <actor>__<scene>.mp4",
        f"{REAL}/raw/videos/01__h\u00fcgging.mp4": "name does not match <actor>__<scene>.mp4",
        f"{FAKE}/raw/videos/01_02__hugging.mp4": "name does not match <target>_<source>__<scene>__<8 characters>.mp4",
        f"{FAKE}/raw/videos/01_02__hugging__SHORT.mp4": "name does not match "
        "<target>_<source>__<scene>__<8 characters>.mp4",
        f"{FAKE}/raw/videos/notes.txt": "not an mp4 file",
    }


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "original_sequences/youtube/c23/videos/000.mp4")
    with pytest.raises(UserError, match="no DeepFakeDetection video found; expected files such as"):
        read_dataset("dfd", tmp_path)
    touch(tmp_path / "mine", "DeepFakeDetection/01_02__hugging__YVGY8LOK.mp4")
    with pytest.raises(UserError, match=r"rename the folder mine so that it ends in its quality, such as _c23"):
        read_dataset("dfd", tmp_path / "mine")
