from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog.base import find_dataset, read_dataset
from qadprep.catalog.ffiw import COUNTS, read_ffiw
from qadprep.errors import UserError

TRAIN, TEST = "FFIW10K-v1-release", "FFIW10K-v1-release-test"


def touch(root: Path, *names: str) -> None:
    for folder in {(root / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()


def pair(split: str, number: int, videos: str = "") -> tuple[str, str, str]:
    stem = f"{split}_{number:08d}"
    return (
        f"source/{split}/{videos}{stem}.mp4",
        f"target/{split}/{videos}{stem}.mp4",
        f"target_mask/{split}/{videos}{stem}_mask.mp4",
    )


def test_the_whole_official_tree(tmp_path: Path) -> None:
    for split, count in COUNTS.items():
        outer = TEST if split == "test" else TRAIN
        touch(tmp_path, *(f"{outer}/{name}" for number in range(count) for name in pair(split, number)))
    catalog = read_dataset("ffiw", tmp_path)
    counts = Counter((clip.method, clip.split) for clip in catalog.clips)
    assert counts == catalog.expected
    assert counts["original", "train"] == 8000 and counts["FFIW", "val"] == 250 and counts["FFIW", "test"] == 1738
    assert len(catalog.groups()) == 9988 and all(len(group.clips) == 2 for group in catalog.groups())
    assert catalog.ignored == [] and catalog.gaps == []
    [(what, remark)] = catalog.remarks
    assert what == "stems" and remark.startswith("1738 numbers occur in more than one split")
    fake = next(clip for clip in catalog.clips if clip.id == "ffiw/FFIW/test_00000007")
    assert (fake.label, fake.group, fake.target, fake.source, fake.faces) == (1, "test_00000007", fake.name, "", "all")
    assert fake.paths == {"raw": f"{TEST}/target/test/test_00000007.mp4"}
    assert fake.mask == f"{TEST}/target_mask/test/test_00000007_mask.mp4"
    real = next(clip for clip in catalog.clips if clip.id == "ffiw/original/test_00000007")
    assert (real.label, real.mask, real.faces) == (0, None, "all")
    assert real.paths == {"raw": f"{TEST}/source/test/test_00000007.mp4"}


@pytest.mark.parametrize("outer", ["", f"{TRAIN}/", f"{TEST}/", "ffiw10k-V1-Release/"])
@pytest.mark.parametrize("videos", ["", "videos/"])
def test_the_layouts_of_copies(tmp_path: Path, outer: str, videos: str) -> None:
    source, target, mask = (outer + name for name in pair("val", 3, videos))
    touch(tmp_path, source, target, mask)
    real, fake = read_dataset("ffiw", tmp_path).clips
    assert (real.method, real.paths, fake.method, fake.paths) == ("original", {"raw": source}, "FFIW", {"raw": target})
    assert fake.mask == mask and {real.split, fake.split} == {"val"}


def test_made_qualities_are_read_from_where_they_are_written(tmp_path: Path) -> None:
    place = find_dataset("ffiw").compressed_path
    source, target, mask = (f"{TRAIN}/{name}" for name in pair("train", 1))
    touch(tmp_path, source, target, mask, *(place(name, q) for name in (source, target) for q in ("c23", "c40")))
    real, fake = read_dataset("ffiw", tmp_path).clips
    assert real.paths == {"raw": source, "c23": f"c23/{source}", "c40": f"c40/{source}"}
    assert set(fake.paths) == {"raw", "c23", "c40"} and fake.mask == mask


def test_strange_files_are_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *pair("val", 1),
        *pair("val", 1, "videos/"),
        *(f"{TRAIN}/{name}" for name in pair("val", 1)),
        "source/val/train_00000002.mp4",
        "source/val/val_2.mp4",
        "source/val/val_\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.mp4",
        "target/val/val_00000001_mask.mp4",
        "target/val/list.csv",
        "target_mask/val/val_00000009_mask.mp4",
        "target_mask/val/val_00000001.mp4",
        "target_mask/val/test_00000001_mask.mp4",
    )
    catalog = read_dataset("ffiw", tmp_path)
    assert [clip.id for clip in catalog.clips] == ["ffiw/original/val_00000001", "ffiw/FFIW/val_00000001"]
    grammar = "name does not match val_<8 digits>"
    assert dict(catalog.ignored) == {
        "source/val/videos/val_00000001.mp4": "raw is already there as source/val/val_00000001.mp4",
        "target/val/videos/val_00000001.mp4": "raw is already there as target/val/val_00000001.mp4",
        "target_mask/val/videos/val_00000001_mask.mp4": "the mask is already there as "
        "target_mask/val/val_00000001_mask.mp4",
        f"{TRAIN}/source/val/val_00000001.mp4": "raw is already there as source/val/val_00000001.mp4",
        f"{TRAIN}/target/val/val_00000001.mp4": "raw is already there as target/val/val_00000001.mp4",
        f"{TRAIN}/target_mask/val/val_00000001_mask.mp4": "the mask is already there as "
        "target_mask/val/val_00000001_mask.mp4",
        "source/val/train_00000002.mp4": "named train, but it lies in val",
        "source/val/val_2.mp4": f"{grammar}.mp4",
        "source/val/val_\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.mp4": f"{grammar}.mp4",
        "target/val/val_00000001_mask.mp4": f"{grammar}.mp4",
        "target/val/list.csv": "not an mp4 file",
        "target_mask/val/val_00000009_mask.mp4": "a mask without its target video",
        "target_mask/val/val_00000001.mp4": f"{grammar}_mask.mp4",
        "target_mask/val/test_00000001_mask.mp4": "named test, but it lies in val",
    }


def test_a_fake_without_mask_or_source_is_taken_and_told(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/target/val/videos/val_00000004.mp4", *pair("train", 1)[:2])
    touch(tmp_path, *(f"target/train/train_{number:08d}.mp4" for number in range(2, 9)))
    catalog = read_dataset("ffiw", tmp_path)
    assert sum(clip.method == "FFIW" for clip in catalog.clips) == 9
    assert all(clip.mask is None for clip in catalog.clips)
    gaps = dict(catalog.gaps)
    assert len(gaps) == 9 and "target_mask/train/train_00000001_mask.mp4" in gaps
    assert gaps[f"{TRAIN}/target_mask/val/videos/val_00000004_mask.mp4"].startswith("a fake video without its mask")
    remarks = dict(catalog.remarks)
    assert remarks["target"].startswith("8 fake videos have no source video: train_00000002, ")
    assert remarks["target"].endswith(", ...")
    assert "separate archive (FFIW10K-v1-release-test)" in remarks["test"]


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "source/val/x.mp4")
    with pytest.raises(UserError, match=r"expected files such as source/val/val_00000000\.mp4"):
        read_dataset("ffiw", tmp_path)


@given(stem=st.from_regex(r"(train|val|test|dev)_[0-9]{7,9}", fullmatch=True), split=st.sampled_from(sorted(COUNTS)))
def test_only_stems_of_the_grammar_in_their_own_folder_are_clips(
    tmp_path_factory: pytest.TempPathFactory, stem: str, split: str
) -> None:
    root = tmp_path_factory.mktemp("ffiw")
    touch(root, f"source/{split}/{stem}.mp4", *pair("val", 99999999))
    catalog = read_ffiw(root)
    right = stem.startswith(f"{split}_") and len(stem.split("_")[1]) == 8
    names = {clip.name for clip in catalog.clips}
    assert (stem in names) == (right or stem == "val_99999999")
    assert len(catalog.ignored) == (0 if right else 1)
