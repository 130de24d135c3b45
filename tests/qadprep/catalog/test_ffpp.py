import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from qadprep.catalog.base import Clip, read_dataset
from qadprep.catalog.ffpp import METHODS
from qadprep.catalog.manifest import quality_rank, read_manifest, write_manifest
from qadprep.catalog.splits import load_ffpp_splits
from qadprep.errors import UserError
from qadprep.scan import scan


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_shipped_splits_are_the_official_ones() -> None:
    splits = load_ffpp_splits()
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 360, "val": 70, "test": 70}
    ids = [i for pairs in splits.values() for pair in pairs for i in pair]
    assert sorted(ids) == [f"{i:03d}" for i in range(1000)]
    assert ("071", "054") in splits["train"] and ("720", "672") in splits["val"] and ("953", "974") in splits["test"]


def test_the_whole_official_tree(tmp_path: Path) -> None:
    for quality in ("raw", "c23", "c40"):
        for pairs in load_ffpp_splits().values():
            for a, b in pairs:
                videos = f"{quality}/videos"
                touch(tmp_path, *(f"original_sequences/youtube/{videos}/{i}.mp4" for i in (a, b)))
                names = (f"{a}_{b}", f"{b}_{a}")
                touch(tmp_path, *(f"manipulated_sequences/{m}/{videos}/{n}.mp4" for m in METHODS for n in names))
    report = scan(tmp_path, "ffpp")
    assert len(report.catalog.clips) == 6000 and len(report.catalog.groups()) == 1000
    assert not report.incomplete and not report.no_original and not report.catalog.ignored and not report.absent
    for method, (split, count), quality in itertools.product(
        ("original", *METHODS), {"train": 720, "val": 140, "test": 140}.items(), ("raw", "c23", "c40")
    ):
        assert report.counts[method, split, quality] == count == report.catalog.expected[method, split]
    for group in report.catalog.groups():
        assert len(group.clips) == 6 and group.original is not None and group.clips[0] is group.original
        assert {clip.target for clip in group.clips} == {group.name}
        assert len({clip.split for clip in group.clips}) == 1
    fake = next(clip for clip in report.catalog.clips if clip.id == "ffpp/FaceShifter/054_071")
    assert (fake.label, fake.split, fake.group, fake.target, fake.source) == (1, "train", "054", "054", "071")
    assert fake.paths["c40"] == "manipulated_sequences/FaceShifter/c40/videos/054_071.mp4"
    assert Counter(clip.label for clip in report.catalog.clips) == {0: 1000, 1: 5000}


def test_c0_is_raw_and_strange_files_are_named(tmp_path: Path) -> None:
    youtube = "original_sequences/youtube"
    touch(
        tmp_path,
        f"{youtube}/c0/videos/000.mp4",
        f"{youtube}/raw/videos/003.mp4",
        f"{youtube}/c0/videos/003.mp4",
        f"{youtube}/c23/videos/1000.mp4",
        f"{youtube}/c23/videos/readme.txt",
        f"{youtube}/c23/videos/.partial.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/000_001.mp4",
        "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4",
        "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
        "manipulated_sequences/Face2Face/c23/videos/003_000.mp4",
    )
    report = scan(tmp_path, "ffpp", tmp_path / "manifest.parquet")
    clips = {clip.id: clip for clip in report.catalog.clips}
    assert set(clips) == {"ffpp/original/000", "ffpp/original/003", "ffpp/Deepfakes/000_003", "ffpp/Face2Face/003_000"}
    assert clips["ffpp/original/000"].paths == {"raw": f"{youtube}/c0/videos/000.mp4"}
    assert clips["ffpp/original/003"].paths == {"raw": f"{youtube}/raw/videos/003.mp4"}
    assert clips["ffpp/Deepfakes/000_003"].mask == "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4"
    assert clips["ffpp/Face2Face/003_000"].mask is None
    reasons = {Path(path).name: reason for path, reason in report.catalog.ignored}
    assert reasons["readme.txt"] == "not an mp4 file"
    assert "does not match" in reasons["1000.mp4"]
    assert reasons["000_001.mp4"] == "not in the official split lists"
    assert "already there as" in reasons["003.mp4"]
    assert ".partial.mp4" not in reasons
    assert dict(report.incomplete)["ffpp/original/000"] == ["c23"]
    assert report.no_original == []
    assert report.absent["original", "test"] == 138 and report.absent["FaceSwap", "test"] == 140


def test_fakes_without_their_original_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "manipulated_sequences/FaceSwap/c40/videos/071_054.mp4")
    report = scan(tmp_path, "ffpp")
    assert report.no_original == ["ffpp/FaceSwap/071_054"]
    assert report.qualities == ("c40",)


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected files such as original_sequences/youtube"):
        read_dataset("ffpp", tmp_path)
    with pytest.raises(UserError, match="not there; expected the root of the ffpp dataset"):
        read_dataset("ffpp", tmp_path / "nope")
    with pytest.raises(UserError, match=r"unknown dataset 'other'; known: celebdf, dfd, .*, ffpp, generic"):
        read_dataset("other", tmp_path)


def test_manifest_round_trip(tmp_path: Path) -> None:
    clips = [
        Clip("ffpp", "original", "000", 0, "train", "000", "000", "", {"raw": "a/000.mp4", "c40": "b/000.mp4"}),
        Clip("ffpp", "Deepfakes", "000_003", 1, "train", "000", "000", "003", {"c40": "c.mp4"}, "mask.mp4"),
    ]
    write_manifest(clips, tmp_path / "deep" / "manifest.parquet")
    assert read_manifest(tmp_path / "deep" / "manifest.parquet") == clips
    (tmp_path / "no.parquet").write_text("text")
    with pytest.raises(UserError, match="not a readable manifest"):
        read_manifest(tmp_path / "no.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "/tmp/evil"}, "group '/tmp/evil'"),
        ({"name": "a.b"}, "name 'a.b'"),
        ({"paths": {"raw": "/etc/x.mp4"}}, "expected one below the dataset's root"),
        ({"paths": {"raw": "a/../../x.mp4"}}, "expected one below the dataset's root"),
        ({"label": 1}, "has label 1; expected 0 for original"),
        ({"label": 7, "method": "Deepfakes"}, "has label 7"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    clip = Clip("ffpp", "original", "000", 0, "train", "000", "000", "", {"raw": "a/000.mp4"})
    write_manifest([dataclasses.replace(clip, **change)], tmp_path / "m.parquet")
    with pytest.raises(UserError, match=re.escape(message)):
        read_manifest(tmp_path / "m.parquet")
    write_manifest([clip, clip], tmp_path / "m.parquet")
    with pytest.raises(UserError, match="is listed twice"):
        read_manifest(tmp_path / "m.parquet")


def test_qualities_are_ranked_best_first() -> None:
    assert sorted(["c40", "raw", "c23", "c0", "zoom"], key=quality_rank) == ["raw", "c0", "c23", "c40", "zoom"]
