import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import trees
from helpers.footage import one_face

from qadprep.errors import UserError
from qadprep.plan import Plan, packs_bytes, plan
from qadprep.plan_text import size_text, time_text
from qadprep.protocols import Protocol, load_protocol

FRAMES = 4


def small(dataset: str, methods: tuple[str, ...], **values: object) -> Protocol:
    return Protocol(
        name="small", title="Small", dataset=dataset, methods=methods, frames=FRAMES, size_px=64,
        **({"videos_per_class": {"train": 2, "test": 2}} | values),
    )  # fmt: skip


def text_of(result: Plan) -> str:
    json.dumps(result.as_dict())  # everything in it is plain
    return "\n".join(result.lines())


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_arithmetic_of_one_manipulation() -> None:
    result = plan(load_protocol("qad-ffpp-FaceSwap"))
    train, val, test = result.as_dict()["splits"]
    assert (train["tuples"], train["images"], train["printed"], train["difference"]) == (92_160, 276_480, 276_480, 0)
    assert (val["images"], val["difference"]) == (53_760, 0)
    assert (test["images"], test["printed"], test["difference"]) == (53_760, 53_750, 10)
    assert result.root is None and train["reachable"] is None and result.trial is None
    text = text_of(result)
    assert (
        "train: 720 videos x 64 frames x 2 classes = 92,160 tuples, x 3 qualities = 276,480 images; "
        "printed 276,480 (agrees)"
    ) in text
    assert "printed 53,750 (difference +10)" in text and "misprint" in text


def test_the_other_reading_of_the_printed_number() -> None:
    text = text_of(plan(load_protocol("qad-ffpp-all")))
    assert "829,440 images; printed 276,480 (difference +552,960)" in text
    assert "720 x 64 x 6 classes" in text


def test_celebdf_against_its_official_test_list() -> None:
    result = plan(load_protocol("qad-celebdf"))
    assert [split.images for split in result.splits] == [360_000, 49_200, 49_200]
    # (178 + 340) videos x 100 frames x 3 qualities
    note = next(note for note in result.notes if note.startswith("test: "))
    assert "178 original + 340 CelebDF videos, 155,400 images" in note and "+106,200" in note


def test_ffiw_says_what_it_counts() -> None:
    notes = plan(load_protocol("qad-ffiw")).notes
    assert any("one face a video, the largest" in note for note in notes)
    assert any("FFIW10K-v1-release-test" in note for note in notes)
    assert sum("the dataset's own split has" in note for note in notes) == 3


def test_the_disk_forecast() -> None:
    protocol = small("ffpp", ("FaceSwap",), qualities=("raw", "c40"))
    pixels = 64 * 64
    assert packs_bytes(protocol, 10) == round(10 * (pixels * (1.55 + 1.44) + 2 * 768))
    assert packs_bytes(small("ffpp", ("FaceSwap",), qualities=("zoom",)), 1) == round(pixels * 1.55 + 768)
    result = plan(load_protocol("qad-ffpp-FaceSwap"))
    assert result.bytes == packs_bytes(result.protocol, 92_160 + 2 * 17_920)
    assert 8e9 < result.bytes < 10e9


def test_a_split_without_a_number() -> None:
    result = plan(small("ffpp", ("FaceSwap",)))
    assert result.bytes is None and result.splits[1].tuples is None and result.as_dict()["splits"][1]["images"] is None
    text = text_of(result)
    assert "val: every video, 4 frames of each" in text and "disk:" not in text


def test_what_is_on_disk(tmp_path: Path) -> None:
    youtube, swaps = "original_sequences/youtube", "manipulated_sequences/FaceSwap"
    touch(
        tmp_path,
        *(f"{youtube}/{q}/videos/{name}.mp4" for q in ("raw", "c23") for name in ("071", "054", "087", "953", "720")),
        f"{swaps}/raw/videos/071_054.mp4",
        f"{swaps}/raw/videos/953_974.mp4",
        f"{swaps}/raw/videos/974_953.mp4",
    )
    protocol = small("ffpp", ("FaceSwap",), printed={"train": 48, "test": 12})
    result = plan(protocol, tmp_path, measure_groups=0)
    assert {(c.method, c.split): (c.there, c.wanted, c.taken, c.tuples) for c in result.classes} == {
        ("original", "train"): (3, 2, 2, 8),
        ("FaceSwap", "train"): (1, 2, 1, 4),
        ("original", "val"): (1, None, 1, 4),
        ("original", "test"): (1, 2, 1, 4),
        ("FaceSwap", "test"): (2, 2, 2, 8),
    }
    assert [result.reachable(split) for split in ("train", "val", "test")] == [36, 12, 36]
    assert result.lacking == {"c23": 3, "c40": 7}
    assert result.bytes == packs_bytes(protocol, 28) and result.trial is None
    taken = {c.id for c in _selected(protocol, tmp_path)}
    alone = {"ffpp/FaceSwap/974_953"} | ({"ffpp/FaceSwap/071_054"} if "ffpp/original/071" not in taken else set())
    assert result.without_original == len(alone)
    text = text_of(result)
    assert "train FaceSwap: 1 video, 2 wanted, 1 too few; at most 4 tuples" in text
    assert "train: at most 36 images, 12 fewer than the printed 48" in text
    assert "test: at most" not in text  # more than is printed
    assert "- 3 of 7 videos are not on disk at c23: `qadprep compress` or `extract --make-qualities` makes it" in text
    assert "- no video is on disk at c40: `qadprep compress`" in text
    assert "taken without their original" in text and "for what is on disk" in text


def _selected(protocol: Protocol, root: Path) -> list:
    from qadprep.catalog.base import read_dataset
    from qadprep.protocols import select

    return select(read_dataset(protocol.dataset, root).clips, protocol).clips


def test_roots_without_anything_of_the_protocol(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not there"):
        plan(small("ffpp", ("FaceSwap",)), tmp_path / "none")
    touch(tmp_path, "manipulated_sequences/Deepfakes/c23/videos/071_054.mp4")
    with pytest.raises(UserError, match="no video that protocol 'small' wants"):
        plan(small("ffpp", ("FaceSwap",)), tmp_path)


def test_a_trial_is_scaled_to_the_whole(ffpp_tree_master: Path) -> None:
    # Four groups of one original and two manipulations each.
    result = plan(small("ffpp", ("Deepfakes", "FaceSwap")), ffpp_tree_master, 1, workers=2, detector="mtcnn")
    trial = result.trial
    assert (trial.groups, trial.clips, trial.tuples, trial.workers) == (1, 3, 3 * FRAMES, 2)
    assert (trial.qualities, trial.made, trial.failures) == (("raw", "c23", "c40"), (), [])
    assert (trial.total_tuples, trial.total_bytes) == (4 * trial.tuples, 4 * trial.bytes)
    assert trial.total_seconds == pytest.approx(4 * trial.seconds / 2) and trial.seconds > 0
    # Twelve crops a quality, at 64 px: PNGs of real sizes, and the tar around them.
    assert 3 * 3 * FRAMES * 1000 < trial.bytes < 3 * 3 * FRAMES * (64 * 64 * 3 + 2000)
    assert [result.reachable(split) for split in ("train", "test")] == [2 * FRAMES * 3 * 3] * 2
    text = text_of(result)
    assert "trial: 1 group with 3 videos at raw, c23, c40 gave 12 tuples" in text
    assert "scaled to all videos: about 48 tuples" in text and "with 2 workers" in text
    again = plan(result.protocol, ffpp_tree_master, 1, workers=1, detector="mtcnn").trial
    assert (again.bytes, again.tuples) == (trial.bytes, trial.tuples)


@pytest.mark.usefixtures("one_process")
def test_a_trial_makes_what_is_missing(portrait: np.ndarray, tmp_path: Path) -> None:
    trees.celebdf(tmp_path / "celebdf", lambda number: one_face("made", portrait, number))
    before = sorted((tmp_path / "celebdf").rglob("*"))
    protocol = small("celebdf", ("CelebDF",), qualities=("raw", "c40"), videos_per_class={})
    result = plan(protocol, tmp_path / "celebdf", 100, detector="mtcnn")
    trial = result.trial
    # All groups are measured: nothing is left to scale.
    assert (trial.made, trial.clips, trial.tuples) == (("c40",), 6, 6 * FRAMES) and trial.total_bytes == trial.bytes
    assert result.lacking == {"c40": 6} and "(c40 encoded on the way)" in text_of(result)
    assert sorted((tmp_path / "celebdf").rglob("*")) == before


@pytest.mark.usefixtures("one_process")
def test_a_trial_without_the_lossless_quality(ffpp_tree: Path) -> None:
    for folder in (*ffpp_tree.glob("*/*/raw"),):
        shutil.rmtree(folder)
    result = plan(small("ffpp", ("FaceSwap",)), ffpp_tree, 1, detector="mtcnn")
    assert result.trial.qualities == ("c23", "c40") and result.trial.tuples == 2 * FRAMES
    assert "- no video is on disk at raw: it must be fetched" in text_of(result)
    only_raw = small("ffpp", ("FaceSwap",), qualities=("raw",))
    result = plan(only_raw, ffpp_tree, 1, detector="mtcnn")
    assert result.trial is None
    assert "- nothing measured: the protocol's qualities are not on disk, it has c23, c40" in text_of(result)


@pytest.mark.usefixtures("one_process")
def test_a_trial_that_comes_to_nothing(tmp_path: Path) -> None:
    for quality in ("raw", "c23", "c40"):
        touch(tmp_path, f"original_sequences/youtube/{quality}/videos/071.mp4")
    result = plan(small("ffpp", ("FaceSwap",)), tmp_path, 3, detector="mtcnn")
    assert result.trial is None
    note = next(note for note in result.notes if note.startswith("nothing measured"))
    assert "no tuple from 1 group(s)" in note and "0 bytes" in note


@pytest.mark.usefixtures("one_process")
def test_files_that_the_trial_could_not_use_are_named(ffpp_tree: Path) -> None:
    for group in ("071_054", "054_071", "953_974", "974_953"):
        (ffpp_tree / f"manipulated_sequences/FaceSwap/c40/videos/{group}.mp4").write_bytes(b"x")
    result = plan(small("ffpp", ("FaceSwap",)), ffpp_tree, 1, detector="mtcnn")
    assert result.trial.tuples == FRAMES and result.trial.total_tuples == 4 * FRAMES
    assert len(result.trial.failures) == 1 and "not used in the trial: manipulated_sequences" in text_of(result)
    many = dataclasses.replace(result, trial=dataclasses.replace(result.trial, failures=[("a", "b")] * 7))
    assert "... and 2 more" in text_of(many)


def test_numbers_as_text() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 99_900, 2_500_000, 123e9, 4.26e12)] == [
        "0 bytes", "999 bytes", "1.0 kB", "100 kB", "2.5 MB", "123 GB", "4.3 TB"
    ]  # fmt: skip
    assert [time_text(s) for s in (0.4, 89, 90, 5399, 5400, 172_000, 200_000)] == [
        "0 s", "89 s", "2 min", "90 min", "1.5 h", "47.8 h", "2.3 days"
    ]  # fmt: skip
