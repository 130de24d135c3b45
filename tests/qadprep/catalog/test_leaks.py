import itertools
import json
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog.base import Clip
from qadprep.catalog.celebdf import carve_validation
from qadprep.catalog.ffpp import METHODS
from qadprep.catalog.leaks import Leak, drop_leaks, find_leaks
from qadprep.catalog.splits import load_ffpp_splits, load_ffpp_youtube_ids, manifests_folder


def clip(dataset: str, name: str, split: str, group: str, target: str = "", source: str = "", label: int = 1) -> Clip:
    return Clip(dataset, "M" if label else "original", name, label, split, group, target or group, source)


def ffpp() -> list[Clip]:
    clips = []
    for split, pairs in load_ffpp_splits().items():
        for a, b in itertools.chain(pairs, ((b, a) for a, b in pairs)):
            clips.append(Clip("ffpp", "original", a, 0, split, a, a, ""))
            clips += [Clip("ffpp", method, f"{a}_{b}", 1, split, a, a, b) for method in METHODS]
    return clips


def celebdf(*names: str, test: set[str]) -> list[Clip]:
    originals = [name for name in names if name.count("_") < 2]
    fakes = [name for name in names if name.count("_") == 2]
    splits = carve_validation(set(originals) - test, set(fakes) - test, share=0.25)
    clips = []
    for name in names:
        target, *source, recording = name.split("_")
        group = f"{target}_{recording}"
        source = source[0] if source else ""
        clips.append(clip("celebdf", name, splits.get(name, "test"), group, target, source, int(bool(source))))
    return clips


def test_the_youtube_ids_are_those_of_the_official_table() -> None:
    ids = load_ffpp_youtube_ids()
    assert sorted(ids) == [f"{i:03d}" for i in range(1000)] and len(set(ids.values())) == 977
    assert ids["000"] == "--b1Ua-kWJE" and ids["755"] == ids["756"] == "tR7z_H1qPMc"


def test_the_official_ffpp_split_leaks_seven_videos() -> None:
    clips = ffpp()
    leaks = find_leaks("ffpp", clips)
    published = json.loads((manifests_folder() / "faceforensics" / "derived_same_youtube_video.json").read_text())
    straddling = {
        what: tuple(split for split in ("train", "val", "test") if split in by_id.values())
        for what, by_id in published["cross_split"].items()
    }
    assert len(straddling) == 7
    for kind in ("recording", "donor"):
        assert {leak.what: leak.splits for leak in leaks if leak.kind == kind} == straddling
    assert len(leaks) == 14 and all(leak.droppable for leak in leaks)
    recording = {leak.what: leak for leak in leaks if leak.kind == "recording"}
    assert Counter(leak.splits for leak in recording.values()) == {("train", "val"): 5, ("train", "test"): 2}
    assert recording["tR7z_H1qPMc"].clips == tuple(sorted(c.id for c in clips if c.target in ("755", "756")))
    kept, dropped = drop_leaks(clips, leaks)
    # Seven ids of train: their originals, and their fakes in both orders.
    assert Counter(c.method for c in dropped) == {"original": 7, **dict.fromkeys(METHODS, 14)}
    assert {c.split for c in dropped} == {"train"} and len(kept) + len(dropped) == 6000
    assert find_leaks("ffpp", kept) == []


def test_a_donors_video_in_another_split() -> None:
    """755 (test) and 756 (train) are one YouTube video; here 756 only gives its face."""
    test = clip("ffpp", "755", "test", "755", label=0)
    fake = clip("ffpp", "001_756", "train", "001", source="756")
    other = clip("ffpp", "002_003", "train", "002", source="003")
    [leak] = find_leaks("ffpp", [other, fake, test])
    assert leak == Leak("donor", "tR7z_H1qPMc", ("train", "test"), ("ffpp/M/001_756", "ffpp/original/755"), True)
    assert drop_leaks([other, fake, test], [leak]) == ([other, test], [fake])


def test_a_test_fakes_donor_that_is_shown_in_train() -> None:
    shown = clip("ffpp", "756", "train", "756", label=0)
    fake = clip("ffpp", "001_755", "test", "001", source="755")
    [leak] = find_leaks("ffpp", [shown, fake])
    assert leak == Leak("donor", "tR7z_H1qPMc", ("train", "test"), ("ffpp/M/001_755", "ffpp/original/756"), True)
    assert drop_leaks([shown, fake], [leak]) == ([fake], [shown])


@pytest.mark.parametrize("dataset", ["dfdc", "ffiw", "dfdcp", "generic"])
def test_one_group_in_two_splits(dataset: str) -> None:
    a = clip(dataset, "a", "val", "g", label=0)
    b, c = clip(dataset, "b", "train", "g"), clip(dataset, "c", "test", "h")
    d = clip(dataset, "d", "test", "g")
    leaks = find_leaks(dataset, [b, d, c, a])
    ids = {name: f"{dataset}/{'original' if name == 'a' else 'M'}/{name}" for name in "abd"}
    assert leaks == [
        Leak("recording", "g", ("train", "val"), (ids["b"], ids["a"]), True),
        Leak("recording", "g", ("train", "test"), (ids["b"], ids["d"]), True),
        Leak("recording", "g", ("val", "test"), (ids["d"], ids["a"]), False),
    ]
    kept, dropped = drop_leaks([b, d, c, a], leaks)
    assert kept == [d, c, a] and dropped == [b]


def test_equal_numbers_of_ffiw_splits_are_different_videos() -> None:
    clips = [clip("ffiw", f"{s}_{i:08d}", s, f"{s}_{i:08d}") for s in ("train", "val", "test") for i in range(50)]
    assert find_leaks("ffiw", clips) == []


def test_clips_without_a_split_leak_nowhere() -> None:
    assert find_leaks("dfd", [clip("dfd", "a", "none", "g"), clip("dfd", "b", "train", "g")]) == []


def test_celebdf_originals_of_test_fakes_and_people() -> None:
    people = "abcdefgh"
    ids = {letter: f"id{number}" for number, letter in enumerate(people)}
    originals = [f"{name}_{recording:04d}" for name in ids.values() for recording in range(4)]
    fakes = [
        f"{s}_{t}_0000" for group in ("abcdef", "gh") for s, t in itertools.permutations([ids[x] for x in group], 2)
    ]
    bridge = f"{ids['a']}_{ids['g']}_0001"
    test = {f"{ids['a']}_{ids['b']}_0000"}
    clips = celebdf(*originals, *fakes, bridge, test=test)
    split = {c.name: c.split for c in clips}
    assert {name for name in originals if split[name] == "val"} == {
        f"{ids[x]}_{recording:04d}" for x in "gh" for recording in range(4)
    }
    assert split[bridge] == "train"
    leaks = find_leaks("celebdf", clips)
    by = {(leak.kind, leak.what, leak.splits): leak for leak in leaks}
    assert len(by) == len(leaks)
    recording = by["recording", "id0_0000", ("train", "test")]
    assert recording.droppable and "celebdf/original/id0_0000" in recording.clips
    # The validation split itself never shares a recording with train.
    assert not any(leak.splits == ("train", "val") for leak in leaks if leak.kind == "recording")
    person = by["identity", "id6", ("train", "val")]
    assert person.droppable and f"celebdf/M/{bridge}" in person.clips
    assert {leak.what for leak in leaks if leak.kind == "identity" and leak.splits == ("train", "test")} == {
        "id0",
        "id1",
    }
    assert not any(leak.droppable for leak in leaks if leak.kind == "identity" and "test" in leak.splits)
    kept, dropped = drop_leaks(clips, leaks)
    assert bridge in {c.name for c in dropped} and {c.split for c in dropped} == {"train"}
    assert "id0_0000" in {c.name for c in dropped} and "id0_0001" in {c.name for c in kept}
    assert {(leak.kind, leak.splits) for leak in find_leaks("celebdf", kept)} <= {("identity", ("train", "test"))}


any_clip = st.builds(
    clip,
    dataset=st.just("celebdf"),
    name=st.integers(0, 10**9).map(str),
    split=st.sampled_from(["train", "val", "test", "none"]),
    group=st.sampled_from("abcd"),
    target=st.sampled_from(["id1", "id2", "id3"]),
    source=st.sampled_from(["", "id1", "id4"]),
)


@given(st.lists(any_clip, max_size=25, unique_by=lambda c: c.name), st.randoms(use_true_random=False))
def test_dropping_leaves_no_droppable_leak(clips: list[Clip], order: random.Random) -> None:
    leaks = find_leaks("celebdf", clips)
    assert find_leaks("celebdf", order.sample(clips, len(clips))) == leaks
    kept, dropped = drop_leaks(clips, leaks)
    assert sorted(c.name for c in kept + dropped) == sorted(c.name for c in clips)
    assert not any(leak.droppable for leak in find_leaks("celebdf", kept))
    assert drop_leaks(clips, []) == (clips, [])


def test_a_hundred_thousand_clips_take_seconds() -> None:
    draw = random.Random(0)
    splits = [*["train"] * 8, "val", "test"]
    clips = [
        clip(
            "celebdf", f"n{i}", draw.choice(splits), f"g{i // 5}", f"id{draw.randrange(60)}", f"id{draw.randrange(60)}"
        )
        for i in range(100_000)
    ]
    start = time.process_time()
    leaks = find_leaks("celebdf", clips)
    kept, dropped = drop_leaks(clips, leaks)
    assert time.process_time() - start < 15
    assert len(kept) + len(dropped) == 100_000 and len(leaks) > 180
