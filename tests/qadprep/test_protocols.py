import dataclasses
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qadprep.catalog.base import Clip, sort_clips
from qadprep.config import ExtractConfig
from qadprep.errors import UserError
from qadprep.protocols import Protocol, load_protocol, protocol_names, select
from qadprep.sampling import draw

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
SMALL = Protocol(
    name="small", title="Small", dataset="d", methods=("A", "B"), frames=5, videos_per_class={"train": 3, "test": 2}
)


def clip(method: str, name: str, split: str, dataset: str = "d") -> Clip:
    return Clip(dataset, method, name, int(method != "original"), split, name, name, "", {"raw": f"{name}.mp4"})


def many(number: int, split: str, methods: tuple[str, ...] = ("original", "A", "B")) -> list[Clip]:
    return [clip(method, f"{split}{i}", split) for method in methods for i in range(number)]


def test_the_shipped_protocols() -> None:
    assert set(protocol_names()) == {
        *(f"qad-ffpp-{method}" for method in METHODS), "qad-ffpp-all", "qad-celebdf", "qad-ffiw"
    }  # fmt: skip
    for name in protocol_names():
        protocol = load_protocol(name)
        assert protocol.name == name and protocol.title
        assert protocol.qualities == ("raw", "c23", "c40")
        assert (protocol.size_px, protocol.align, protocol.margin) == (128, "box", 1.3)


@pytest.mark.parametrize("method", METHODS)
def test_one_manipulation_gives_the_printed_numbers(method: str) -> None:
    protocol = load_protocol(f"qad-ffpp-{method}")
    assert protocol.dataset == "ffpp" and protocol.classes == ("original", method) and protocol.frames == 64
    assert protocol.videos_per_class == {"train": 720, "val": 140, "test": 140}
    assert [protocol.tuples(split) for split in ("train", "val", "test")] == [92_160, 17_920, 17_920]
    assert [protocol.images(split) for split in ("train", "val", "test")] == [276_480, 53_760, 53_760]
    assert protocol.printed == {"train": 276_480, "val": 53_760, "test": 53_750}  # the test figure as printed


def test_five_manipulations_share_the_originals() -> None:
    protocol = load_protocol("qad-ffpp-all")
    assert protocol.classes == ("original", *METHODS)
    assert [protocol.tuples(split) for split in ("train", "val", "test")] == [276_480, 53_760, 53_760]
    assert protocol.images("train") == 829_440
    assert protocol.printed == load_protocol("qad-ffpp-FaceSwap").printed
    assert any("720 x 64 x 6" in note for note in protocol.notes)


@pytest.mark.parametrize(("name", "fake"), [("qad-celebdf", "CelebDF"), ("qad-ffiw", "FFIW")])
def test_a_hundred_frames_give_the_printed_numbers(name: str, fake: str) -> None:
    protocol = load_protocol(name)
    assert protocol.classes == ("original", fake) and protocol.frames == 100
    assert protocol.videos_per_class == {"train": 600, "val": 82, "test": 82}
    for split, images in {"train": 360_000, "val": 49_200, "test": 49_200}.items():
        assert protocol.images(split) == protocol.printed[split] == images


def test_a_split_that_is_not_limited_has_no_number() -> None:
    assert SMALL.tuples("train") == 45 and SMALL.images("test") == 90
    assert SMALL.tuples("val") is None and SMALL.images("val") is None
    official = {("original", "val"): 7, ("C", "val"): 7, ("A", "train"): 99}
    assert SMALL.wanted(official) == {
        **{(method, "train"): 3 for method in ("original", "A", "B")},
        **{(method, "test"): 2 for method in ("original", "A", "B")},
        ("original", "val"): 7,
    }


def test_the_settings_of_extract() -> None:
    config = ExtractConfig(**load_protocol("qad-celebdf").extract_settings(), seed=7)
    assert (config.dataset, config.frames, config.size_px, config.margin, config.align) == (
        "celebdf", 100, 128, 1.3, "box"
    )  # fmt: skip
    assert config.seed == 7 and config.qualities == ("raw", "c23", "c40")


OWN = """
name = "mine"
title = "Mine"
dataset = "ffpp"
methods = ["FaceSwap"]
qualities = ["c40", "raw"]
frames = 8
margin = 2
[videos_per_class]
train = 10
"""


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    protocol = load_protocol(file)
    assert protocol == load_protocol(str(file))
    assert protocol.qualities == ("raw", "c40") and protocol.images("train") == 10 * 8 * 2 * 2 and protocol.margin == 2
    with pytest.raises(ValidationError, match="frozen"):
        protocol.frames = 3
    protocol.check_dataset("ffpp")
    with pytest.raises(UserError, match="'mine' is of dataset ffpp, got --dataset dfdc"):
        protocol.check_dataset("dfdc")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frames = 8", "frames = 0", "frames = 0: Input should be greater than or equal to 1"),
        ("frames = 8", 'frames = "8"', "frames = '8': Input should be a valid integer"),
        ("frames = 8", "frames = true", "frames = True: Input should be a valid integer"),
        ("frames = 8", "", "key 'frames' is missing"),
        ("frames = 8", "frams = 8", "unknown key 'frams'; known: name, title, dataset"),
        ('["FaceSwap"]', "[]", "methods = []: Tuple should have at least 1 item"),
        ('["FaceSwap"]', '["FaceSwap", "FaceSwap"]', "expected different methods"),
        ('["FaceSwap"]', '["original"]', "without 'original', which always belongs"),
        ('["FaceSwap"]', '["../x"]', "methods.0 = '../x'"),
        ('["c40", "raw"]', '["raw", "raw"]', "expected different qualities"),
        ('["c40", "raw"]', '["raw/x"]', "qualities.0 = 'raw/x'"),
        ("margin = 2", 'align = "eyes"', "align = 'eyes': Input should be 'similarity' or 'box'"),
        ("margin = 2", "margin = nan", "margin = nan"),
        ("train = 10", "train = -1", "videos_per_class.train = -1"),
        ("train = 10", "trian = 10", "videos_per_class.trian = 'trian': Input should be 'train', 'val' or 'test'"),
        ("[videos_per_class]", "[videos_per_class", "not a TOML file"),
        ('"mine"', '"mi\nne"', "not a TOML file"),
    ],
)
def test_protocols_that_cannot_be(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    (tmp_path / "p.toml").write_text(OWN.replace(old, new))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_protocol(tmp_path / "p.toml")
    assert "p.toml: " in str(caught.value) and "\n" not in str(caught.value)


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("qad", "", "../faceforensics/train", "QAD-CELEBDF"):
        with pytest.raises(UserError, match=r"unknown protocol .*; known: qad-celebdf, qad-ffiw, qad-ffpp-Deepfakes"):
            load_protocol(name)
    with pytest.raises(UserError, match=r"none.toml: cannot be read \(No such file"):
        load_protocol(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(UserError, match=r"latin\.toml: not a TOML file"):
        load_protocol(tmp_path / "latin.toml")


def test_a_limited_class_is_drawn_by_the_seed() -> None:
    clips = many(10, "train") + many(4, "val") + many(2, "test")
    selection = select(clips, SMALL, seed=5)
    assert selection.short == {}
    assert Counter((c.method, c.split) for c in selection.clips) == {
        **{(method, "train"): 3 for method in SMALL.classes},
        **{(method, "val"): 4 for method in SMALL.classes},  # not limited
        **{(method, "test"): 2 for method in SMALL.classes},
    }
    expected = sorted((f"train{i}" for i in range(10)), key=lambda group: draw(5, "group", group))[:3]
    for method in SMALL.classes:  # every class takes the same recordings
        assert {c.name for c in selection.clips if (c.method, c.split) == (method, "train")} == set(expected)
    assert selection.clips == sort_clips(selection.clips)
    assert select(clips, SMALL, seed=6).clips != selection.clips


def test_fakes_of_few_recordings_are_drawn_in_rounds() -> None:
    fakes = [replace(clip("A", f"r{r}_{i}", "train"), group=f"r{r}") for r in range(5) for i in range(4)]
    lone = replace(clip("A", "r9_0", "train"), group="r9")
    for wanted in range(1, 22):
        limited = SMALL.model_copy(update={"methods": ("A",), "videos_per_class": {"train": wanted}})
        taken = Counter(c.group for c in select([*fakes, lone], limited).clips)
        assert taken.total() == wanted
        counts = [taken[f"r{r}"] for r in range(5)]
        assert max(counts) - min(counts) <= 1 and taken["r9"] <= 1 and (wanted < 6 or taken["r9"] == 1)
    shuffled = select([lone, *reversed(fakes)], limited).clips
    assert shuffled == select([*fakes, lone], limited).clips


def test_what_does_not_belong_and_what_is_short() -> None:
    clips = [
        *many(3, "train"),
        clip("C", "train0", "train"),
        clip("A", "x", "train", dataset="e"),
        clip("A", "y", "none"),
    ]
    clips += [clip("original", "test0", "test")]
    selection = select(clips, SMALL)
    assert {c.id for c in selection.clips} == {c.id for c in clips} - {"d/C/train0", "e/A/x", "d/A/y"}
    assert selection.short == {("original", "test"): (1, 2), ("A", "test"): (0, 2), ("B", "test"): (0, 2)}
    empty = select([], SMALL)
    assert empty.clips == [] and empty.short["original", "train"] == (0, 3) and len(empty.short) == 6


def test_without_any_number_everything_of_the_methods_is_taken() -> None:
    whole = SMALL.model_copy(update={"videos_per_class": {}})
    clips = [*many(4, "train"), clip("A", "y", "none")]
    assert select([*clips, clip("C", "x", "train")], whole).clips == sort_clips(clips)
    assert whole.wanted({("A", "none"): 3, ("C", "val"): 1}) == {("A", "none"): 3}
    assert ("A", "none") not in SMALL.wanted({("A", "none"): 3})


def test_a_class_that_has_just_enough_is_taken_whole() -> None:
    protocol = load_protocol("qad-ffpp-FaceSwap")
    clips = [dataclasses.replace(c, dataset="ffpp") for c in many(720, "train", ("original", "FaceSwap"))]
    assert select(clips, protocol).clips == sort_clips(clips)
    assert ("original", "train") not in select(clips, protocol).short


@settings(max_examples=50)
@given(st.integers(0, 12), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_the_order_of_the_clips_and_other_methods_change_nothing(number: int, seed: int, order: random.Random) -> None:
    clips = many(number, "train")
    others = many(number, "train", ("C",))
    shuffled = clips + others
    order.shuffle(shuffled)
    assert select(shuffled, SMALL, seed) == select(clips, SMALL, seed)
    assert len(select(clips, SMALL, seed).clips) == 3 * min(number, 3)
