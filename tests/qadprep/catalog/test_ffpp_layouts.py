from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog.base import find_dataset, read_dataset
from qadprep.catalog.ffpp import METHODS, expected_frames, length_remark, target_frame
from qadprep.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def paths(root: Path) -> dict[str, dict[str, str]]:
    return {clip.id.removeprefix("ffpp/"): clip.paths for clip in read_dataset("ffpp", root).clips}


@pytest.mark.parametrize(
    "name",
    [
        "original_sequences/youtube/c23/videos/000.mp4",
        "original_sequences/youtube/c23/000.mp4",
        "original_sequences/c23/videos/000.mp4",
        "original_sequences/c23/000.mp4",
        "Original_Sequences/YouTube/C23/Videos/000.MP4",
        "original/c23/000.mp4",
    ],
)
def test_originals_in_a_quality_folder(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "manipulated_sequences/Face2Face/c40/000_003.mp4")
    assert paths(tmp_path) == {
        "original/000": {"c23": name},
        "Face2Face/000_003": {"c40": "manipulated_sequences/Face2Face/c40/000_003.mp4"},
    }
    assert read_dataset("ffpp", tmp_path).ignored == []


@pytest.mark.parametrize("original", ["original", "Original", "original_sequences", "youtube", "original/videos"])
@pytest.mark.parametrize(
    ("outer", "quality"),
    [("FaceForensics++_C23", "c23"), ("ff-c40", "c40"), ("FF++_raw", "raw"), ("ff_c0", "raw"), ("c23", "c23")],
)
def test_copies_named_by_their_quality(tmp_path: Path, original: str, outer: str, quality: str) -> None:
    names = [f"{original}/000.mp4", "Deepfakes/000_003.mp4", "faceshifter/003_000.mp4"]
    touch(tmp_path / "data" / outer, *names)
    (tmp_path / "data" / outer / "csv").mkdir()
    assert paths(tmp_path / "data" / outer) == {
        "original/000": {quality: names[0]},
        "Deepfakes/000_003": {quality: names[1]},
        "FaceShifter/003_000": {quality: names[2]},
    }
    assert paths(tmp_path / "data") == {
        "original/000": {quality: f"{outer}/{names[0]}"},
        "Deepfakes/000_003": {quality: f"{outer}/{names[1]}"},
        "FaceShifter/003_000": {quality: f"{outer}/{names[2]}"},
    }


def test_several_copies_of_one_root_are_more_qualities(tmp_path: Path) -> None:
    touch(tmp_path, "ff_c23/original/000.mp4", "ff_c40/original/000.mp4", "more-c40/original/000.mp4")
    assert paths(tmp_path) == {"original/000": {"c23": "ff_c23/original/000.mp4", "c40": "ff_c40/original/000.mp4"}}
    assert read_dataset("ffpp", tmp_path).ignored == [
        ("more-c40/original/000.mp4", "c40 is already there as ff_c40/original/000.mp4")
    ]


def test_a_linked_copy_is_named_by_the_link_or_by_its_aim(tmp_path: Path) -> None:
    touch(tmp_path / "ff_c40", "original/000.mp4")
    (tmp_path / "mine").symlink_to(tmp_path / "ff_c40")
    (tmp_path / "mine_c23").symlink_to(tmp_path / "ff_c40")
    assert paths(tmp_path / "mine") == {"original/000": {"c40": "original/000.mp4"}}
    assert paths(tmp_path / "mine_c23") == {"original/000": {"c23": "original/000.mp4"}}


def test_a_copy_whose_quality_cannot_be_told(tmp_path: Path) -> None:
    root = tmp_path / "abc23"
    touch(root, "original/000.mp4", "Deepfakes/000_003.mp4", "Deepfakes/003_000.mp4")
    with pytest.raises(UserError, match=r"rename the folder abc23 so that it ends in its quality, such as _c23"):
        read_dataset("ffpp", root)
    touch(root, "original_sequences/youtube/c40/videos/003.mp4")
    catalog = read_dataset("ffpp", root)
    assert [clip.id for clip in catalog.clips] == ["ffpp/original/003"]
    assert catalog.ignored == [
        ("original", "nothing names the quality of 1 videos directly in this folder"),
        ("Deepfakes", "nothing names the quality of 2 videos directly in this folder"),
    ]


def test_the_official_place_comes_before_a_copy(tmp_path: Path) -> None:
    root = tmp_path / "both_c23"
    official = "original_sequences/youtube/c23/videos/000.mp4"
    touch(root, official, "original_sequences/youtube/c23/000.mp4", "original/000.mp4", "original/003.mp4")
    assert paths(root) == {"original/000": {"c23": official}, "original/003": {"c23": "original/003.mp4"}}
    assert read_dataset("ffpp", root).ignored == [
        ("original_sequences/youtube/c23/000.mp4", f"c23 is already there as {official}"),
        ("original/000.mp4", f"c23 is already there as {official}"),
    ]


def test_masks_belong_to_every_quality(tmp_path: Path) -> None:
    below = "manipulated_sequences/NeuralTextures"
    touch(tmp_path, *(f"{below}/{q}/videos/000_003.mp4" for q in ("c0", "c23")), f"{below}/masks/000_003.mp4")
    [clip] = read_dataset("ffpp", tmp_path).clips
    assert set(clip.paths) == {"raw", "c23"} and clip.mask == f"{below}/masks/000_003.mp4"


def test_deepfakedetection_is_pointed_at(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "original_sequences/youtube/c23/videos/000.mp4",
        "original_sequences/actors/c23/videos/01__hugging.mp4",
        "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__hugging__ABCDEFGH.mp4",
    )
    catalog = read_dataset("ffpp", tmp_path)
    assert len(catalog.clips) == 1 and catalog.ignored == []
    assert catalog.remarks == [
        ("original_sequences/actors", "belongs to DeepFakeDetection: read it with --dataset dfd"),
        ("manipulated_sequences/DeepFakeDetection", "belongs to DeepFakeDetection: read it with --dataset dfd"),
    ]


@pytest.mark.parametrize("dataset", ["ffpp", "dfd"])
@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("original_sequences/youtube/raw/videos/000.mp4", "original_sequences/youtube/c23/videos/000.mp4"),
        ("original_sequences/c0/000.mp4", "original_sequences/c23/000.mp4"),
        ("manipulated_sequences/Deepfakes/c0/videos/0.mp4", "manipulated_sequences/Deepfakes/c23/videos/0.mp4"),
        ("raw/original/raw/000.mp4", "raw/original/c23/000.mp4"),
        ("FF_raw/original/000.mp4", "original_sequences/youtube/c23/videos/000.mp4"),
        ("youtube/videos/000.mp4", "original_sequences/youtube/c23/videos/000.mp4"),
        ("FaceSwap/000_003.mp4", "manipulated_sequences/FaceSwap/c23/videos/000_003.mp4"),
        ("actors/01__hugging.mp4", "original_sequences/actors/c23/videos/01__hugging.mp4"),
    ],
)
def test_the_place_of_a_made_quality(dataset: str, path: str, made: str) -> None:
    assert find_dataset(dataset).compressed_path(path, "c23") == made


@pytest.mark.parametrize("outer", ["official", "copy_raw"])
def test_made_qualities_are_read_from_where_they_are_written(tmp_path: Path, outer: str) -> None:
    quality = "raw/videos/" if outer == "official" else ""
    names = [
        f"original_sequences/youtube/{quality}000.mp4",
        *(f"manipulated_sequences/{method}/{quality}000_003.mp4" for method in METHODS),
    ]
    place = find_dataset("ffpp").compressed_path
    touch(tmp_path / outer, *names, *(place(name, q) for name in names for q in ("c23", "c40")))
    catalog = read_dataset("ffpp", tmp_path / outer)
    assert [set(clip.paths) for clip in catalog.clips] == [{"raw", "c23", "c40"}] * 6 and catalog.ignored == []


@pytest.mark.parametrize(
    ("method", "frames"),
    [
        ("original", (300, 300)),
        ("Deepfakes", (300, 300)),
        ("Face2Face", (200, 500)),
        ("FaceSwap", (200, 300)),
        ("NeuralTextures", (200, 300)),
        ("FaceShifter", (None, None)),
        ("DeepFakeDetection", (None, None)),
    ],
)
def test_frame_counts(method: str, frames: tuple[int | None, int | None]) -> None:
    assert (expected_frames(method, 300, 200), expected_frames(method, 300, 500)) == frames


def test_face2face_runs_backwards_past_its_targets_end() -> None:
    assert [target_frame("Face2Face", index, 5) for index in range(8)] == [0, 1, 2, 3, 4, 2, 1, 0]
    for method, index in (("Face2Face", 8), ("Face2Face", -1), ("FaceSwap", 5), ("Deepfakes", -1)):
        with pytest.raises(ValueError, match=f"{method}: frame {index} has no counterpart in a target of 5 frames"):
            target_frame(method, index, 5)


lengths = st.integers(1, 1000)


@given(st.sampled_from(METHODS), lengths, lengths)
def test_frame_rules_agree_with_each_other(method: str, target: int, source: int) -> None:
    own = expected_frames(method, target, source)
    if own is None:
        assert method == "FaceShifter" and length_remark(method, source, target) is None
        return
    assert length_remark(method, own, target) is None
    shown = [target_frame(method, index, target) for index in range(min(own, max(target, 2 * target - 2)))]
    assert shown[:target] == list(range(min(own, target)))
    assert all(0 <= frame < target for frame in shown)
    assert all(a - b == 1 for a, b in zip(shown[target:], shown[target + 1 :], strict=False))


@pytest.mark.parametrize(
    ("method", "own", "remark"),
    [
        ("Deepfakes", 299, "a Deepfakes clip has its target's length, 300 frames, but this one has 299"),
        ("Deepfakes", 301, "a Deepfakes clip has its target's length, 300 frames, but this one has 301"),
        ("FaceSwap", 301, "a FaceSwap clip is never longer than its target, 300 frames, but this one has 301"),
        ("NeuralTextures", 301, "a NeuralTextures clip is never longer than its target, 300 frames, but this one"),
        ("FaceSwap", 299, None),
        ("NeuralTextures", 300, None),
        ("Face2Face", 900, None),
        ("FaceShifter", 900, None),
        ("original", 300, None),
    ],
)
def test_lengths_that_cannot_be_right(method: str, own: int, remark: str | None) -> None:
    said = length_remark(method, own, 300)
    assert said is None if remark is None else said.startswith(remark)
