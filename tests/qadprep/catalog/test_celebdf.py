import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog import celebdf
from qadprep.catalog.base import find_dataset, read_dataset
from qadprep.catalog.celebdf import LIST_NAME, carve_validation, parse_test_list
from qadprep.catalog.splits import load_celebdf_test_list, manifests_folder
from qadprep.errors import UserError

TEST_REAL = "Celeb-real/id1_0007.mp4"
TEST_FAKE = "Celeb-synthesis/id37_id3_0004.mp4"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def by_name(root: Path) -> dict:
    return {clip.name: clip for clip in read_dataset("celebdf", root).clips}


def test_the_shipped_list_is_the_official_one_turned_round() -> None:
    data = (manifests_folder() / "celebdf_v2" / LIST_NAME).read_bytes()
    assert data.startswith(b"1 YouTube-real/00170.mp4\n") and data.endswith(b"0 Celeb-synthesis/id17_id2_0003.mp4")
    labels = parse_test_list(load_celebdf_test_list())
    assert len(labels) == len(load_celebdf_test_list().splitlines()) == 518
    counts = Counter((folder, label) for (folder, _), label in labels.items())
    assert counts == {("Celeb-real", 0): 108, ("YouTube-real", 0): 70, ("Celeb-synthesis", 1): 340}
    assert labels["YouTube-real", "00170"] == 0 and labels["Celeb-synthesis", "id17_id2_0003"] == 1


def test_how_far_the_official_list_reaches_into_the_rest() -> None:
    """The figures of docs/datasets/celebdf.md."""
    listed = labels()
    real = {stem for (kind, stem), _ in listed.items() if kind == "Celeb-real"}
    fakes = [stem.split("_") for (kind, stem), _ in listed.items() if kind == "Celeb-synthesis"]
    targets = {f"{target}_{recording}" for target, _, recording in fakes}
    shown = {stem.split("_")[0] for stem in real}
    named = shown | {name for target, donor, _ in fakes for name in (target, donor)}
    assert (len(real), len(targets), len(targets & real), len(targets - real)) == (108, 213, 49, 164)
    assert (len(targets | real), len(shown), len(named)) == (272, 51, 56)


def test_the_test_list_of_other_spellings() -> None:
    text = "1 Youtube-REAL/00170.mp4\r\n0 Celeb-synthesis/videos/id1_id2_0003.mp4\n2 Celeb-real/id1_0000.mp4\n\nno\n"
    assert parse_test_list(text) == {("YouTube-real", "00170"): 0, ("Celeb-synthesis", "id1_id2_0003"): 1}


def test_clips_of_the_release(tmp_path: Path) -> None:
    touch(tmp_path, "Celeb-real/id1_0000.mp4", TEST_REAL, "YouTube-real/00170.mp4", "YouTube-real/00001.mp4")
    touch(tmp_path, TEST_FAKE, "Celeb-synthesis/id1_id2_0000.mp4")
    clips = by_name(tmp_path)
    fields = {n: (c.method, c.label, c.group, c.target, c.source, c.split == "test") for n, c in clips.items()}
    assert fields == {
        "id1_0000": ("original", 0, "id1_0000", "id1", "", False),
        "id1_0007": ("original", 0, "id1_0007", "id1", "", True),
        "00170": ("original", 0, "00170", "00170", "", True),
        "00001": ("original", 0, "00001", "00001", "", False),
        "id37_id3_0004": ("CelebDF", 1, "id37_0004", "id37", "id3", True),
        "id1_id2_0000": ("CelebDF", 1, "id1_0000", "id1", "id2", False),
    }
    assert clips["id37_id3_0004"].paths == {"raw": TEST_FAKE}
    assert all(clip.faces == "largest" and clip.mask is None for clip in clips.values())
    catalog = read_dataset("celebdf", tmp_path)
    assert catalog.expected == {("original", "test"): 178, ("CelebDF", "test"): 340}
    assert catalog.ignored == []
    assert len(catalog.gaps) == 518 - sum(clip.split == "test" for clip in catalog.clips)
    assert ("Celeb-synthesis/id17_id2_0003.mp4", "in the official test list, not on disk") in catalog.gaps
    remarks = dict(catalog.remarks)
    assert remarks["validation split"].startswith("1 fakes show a validation recording with a training face")
    remark = remarks["videos"]
    assert "2 of 590 Celeb-real, 2 of 300 YouTube-real, 2 of 5639 Celeb-synthesis" in remark
    assert "of 712 real and 1 of 5299 fake" in remark


def labels() -> dict[tuple[str, str], int]:
    return parse_test_list(load_celebdf_test_list())


@pytest.mark.parametrize("outer", ["", "Celeb-DF-v2/", "celeb-df-V2/", "Celeb-DF/"])
@pytest.mark.parametrize("inner", ["", "videos/"])
def test_the_layouts_of_copies(tmp_path: Path, outer: str, inner: str) -> None:
    touch(tmp_path, f"{outer}celeb-REAL/{inner}id1_0000.mp4", f"{outer}Youtube-real/{inner}00001.mp4")
    touch(tmp_path, f"{outer}Celeb-synthesis/{inner}id1_id2_0000.mp4")
    clips = by_name(tmp_path)
    assert set(clips) == {"id1_0000", "00001", "id1_id2_0000"}
    assert clips["00001"].paths == {"raw": f"{outer}Youtube-real/{inner}00001.mp4"}


def test_made_qualities_are_read_from_where_they_are_written(tmp_path: Path) -> None:
    place = find_dataset("celebdf").compressed_path
    for name in ("Celeb-DF-v2/Celeb-real/id1_0000.mp4", "Celeb-DF-v2/Celeb-synthesis/videos/id1_id2_0000.mp4"):
        touch(tmp_path, name, place(name, "c23"), place(name, "c40"))
    for clip in by_name(tmp_path).values():
        assert clip.paths == {"raw": (raw := clip.paths["raw"]), "c23": f"c23/{raw}", "c40": f"c40/{raw}"}


def test_strange_files_are_named(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Celeb-real/id1_0000.mp4",
        "Celeb-real/videos/id1_0000.mp4",
        "Celeb-real/id1_id2_0000.mp4",
        "Celeb-real/.id1_0001.mp4",
        "Celeb-real/notes.txt",
        "YouTube-real/0001.mp4",
        "YouTube-real/\u0661\u0662\u0663\u0664\u0665.mp4",
        "Celeb-synthesis/id1_0000.mp4",
    )
    (tmp_path / "Celeb-real" / "id2_0000.mp4").symlink_to(tmp_path / "gone.mp4")
    catalog = read_dataset("celebdf", tmp_path)
    assert [clip.name for clip in catalog.clips] == ["id1_0000"]
    assert dict(catalog.ignored) == {
        "Celeb-real/videos/id1_0000.mp4": "raw is already there as Celeb-real/id1_0000.mp4",
        "Celeb-real/id1_id2_0000.mp4": "name does not match id<N>_<recording>.mp4",
        "Celeb-real/notes.txt": "not an mp4 file",
        "Celeb-real/id2_0000.mp4": "a link to a file that is not there",
        "YouTube-real/0001.mp4": "name does not match five digits.mp4",
        "YouTube-real/\u0661\u0662\u0663\u0664\u0665.mp4": "name does not match five digits.mp4",
        "Celeb-synthesis/id1_0000.mp4": "name does not match id<target>_id<source>_<recording>.mp4",
    }


def test_a_label_that_contradicts_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "1 Celeb-synthesis/id1_id2_0000.mp4\n0 Celeb-real/id1_0000.mp4\n0 Celeb-synthesis/id3_id4_0000.mp4\n"
    monkeypatch.setattr(celebdf, "load_celebdf_test_list", lambda: text)
    touch(tmp_path, "Celeb-synthesis/id1_id2_0000.mp4", "Celeb-real/id1_0000.mp4", "Celeb-real/id1_0001.mp4")
    catalog = read_dataset("celebdf", tmp_path)
    assert [clip.name for clip in catalog.clips] == ["id1_0001"]
    assert catalog.ignored == [
        ("Celeb-real/id1_0000.mp4", "the official test list calls it fake"),
        ("Celeb-synthesis/id1_id2_0000.mp4", "the official test list calls it real"),
    ]
    assert [entry for entry, _ in catalog.gaps] == ["Celeb-synthesis/id3_id4_0000.mp4"]


def test_an_own_test_list_is_only_compared(tmp_path: Path) -> None:
    touch(tmp_path, TEST_FAKE)
    own = tmp_path / "list_of_testing_videos.txt"
    own.write_bytes(load_celebdf_test_list().replace("\n", "\r\n").encode() + b"\r\n")
    assert [what for what, _ in read_dataset("celebdf", tmp_path).remarks] == ["videos"]
    own.write_bytes(b"1 Celeb-synthesis/id37_id3_0004.mp4\n\xff")
    catalog = read_dataset("celebdf", tmp_path)
    assert catalog.clips[0].split == "test" and catalog.clips[0].label == 1
    assert "differs from the official test list" in dict(catalog.remarks)[own.name]


def test_a_complete_copy_lacks_nothing(tmp_path: Path) -> None:
    folders: dict[str, set[str]] = {name: set() for name in celebdf.FOLDERS}
    for folder, stem in labels():
        folders[folder].add(stem)
    fill = {
        "Celeb-real": (f"id{i}_{r:04d}" for i in range(59) for r in range(14)),
        "YouTube-real": (f"{i:05d}" for i in range(300)),
        "Celeb-synthesis": (f"id{a}_id{b}_{r:04d}" for a in range(59) for b in range(59) if a != b for r in range(4)),
    }
    for folder, stems in folders.items():
        for stem in fill[folder]:
            if len(stems) == celebdf.FOLDERS[folder][1]:
                break
            stems.add(stem)
        touch(tmp_path, *(f"{folder}/{stem}.mp4" for stem in stems))
    catalog = read_dataset("celebdf", tmp_path)
    assert catalog.gaps == [] and catalog.ignored == []
    counts = Counter((clip.method, clip.split) for clip in catalog.clips)
    [(what, remark)] = catalog.remarks
    assert what == "validation split" and remark.split()[0] == str(counts["CelebDF", "none"])
    assert counts["original", "test"] == 178 and counts["CelebDF", "test"] == 340
    assert counts["original", "train"] + counts["original", "val"] == 712
    assert counts["CelebDF", "train"] + counts["CelebDF", "val"] + counts["CelebDF", "none"] == 5299
    assert counts["original", "val"] >= 30 + 63


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "Celeb-real/other.mp4")
    with pytest.raises(UserError, match="expected the folders Celeb-real, YouTube-real and Celeb-synthesis"):
        read_dataset("celebdf", tmp_path)


def test_validation_takes_the_group_of_identities_that_is_closed() -> None:
    """Two people who are swapped only with each other, among eight who are all swapped with all."""
    originals = [f"id{i}_{r:04d}" for i in range(10) for r in range(3)]
    crowd = [f"id{a}_id{b}_0000" for a in range(8) for b in range(8) if a != b]
    closed = ["id8_id9_0000", "id9_id8_0000", "id9_id8_0001"]
    for seed in range(5):
        splits = carve_validation(originals, crowd + closed, seed, share=0.2)
        val = {name for name, split in splits.items() if split == "val"}
        assert val == {*closed, *(f"id{i}_{r:04d}" for i in (8, 9) for r in range(3))}


def test_validation_is_close_to_the_best_of_all_choices() -> None:
    """Four of eight identities: against all 70 choices, in random graphs, the growth nearly always finds the best."""

    def leaked(people: set[str], fakes: list[str]) -> float:
        feet = Counter(len(set(fake.split("_")[:2]) & people) for fake in fakes)
        return feet[1] / feet[2] if feet[2] else float("inf")

    originals = [f"id{i}_0000" for i in range(8)]
    best = 0
    for graph in range(50):
        draw = random.Random(graph)
        pairs = [(a, b) for a in range(8) for b in range(8) if a != b]
        fakes = [f"id{a}_id{b}_{r:04d}" for a, b in pairs for r in range(draw.choice([0, 0, 1, 2]))]
        splits = carve_validation(originals, fakes, share=0.5)
        chosen = {name.split("_")[0] for name in originals if splits[name] == "val"}
        assert len(chosen) == 4
        choices = ({f"id{i}" for i in people} for people in itertools.combinations(range(8), 4))
        best += leaked(chosen, fakes) == min(leaked(people, fakes) for people in choices)
    assert best >= 45


def test_no_recording_of_validation_is_in_train() -> None:
    originals = ["id1_0000", "id2_0000", "id3_0000", "id4_0000"]
    fakes = ["id1_id2_0000", "id2_id1_0000", "id3_id4_0000", "id2_id3_0000", "id3_id2_0000"]
    splits = carve_validation(originals, fakes, share=0.5)
    validation = {name.split("_")[0] for name in originals if splits[name] == "val"}
    assert validation in ({"id1", "id2"}, {"id3", "id4"})
    # One of the two mixed fakes shows a validation recording, the other only a validation face.
    mixed = {"id2_id3_0000": "id2", "id3_id2_0000": "id3"}
    assert {splits[name]: target in validation for name, target in mixed.items()} == {"none": True, "train": False}
    assert Counter(splits[name] for name in originals) == {"train": 2, "val": 2}
    assert {splits["id1_id2_0000"], splits["id3_id4_0000"]} == {"train", "val"}


names = st.integers(0, 6).map(lambda i: f"id{i}")
recordings = st.integers(0, 3).map(lambda r: f"{r:04d}")
some_originals = st.sets(
    st.one_of(st.tuples(names, recordings).map("_".join), st.integers(0, 20).map(lambda i: f"{i:05d}")), max_size=40
)
some_fakes = st.sets(st.tuples(names, names, recordings).map("_".join), max_size=60)


@given(some_originals, some_fakes, st.integers(0, 3), st.integers(0, 100), st.randoms(use_true_random=False))
def test_every_validation_split_keeps_its_promises(
    originals: set[str], fakes: set[str], seed: int, percent: int, order: random.Random
) -> None:
    share = percent / 100
    splits = carve_validation(originals, fakes, seed, share)
    assert set(splits) == originals | fakes and set(splits.values()) <= {"train", "val", "none"}
    celebrities = [name for name in originals if "_" in name]
    youtube = originals - set(celebrities)
    people = {name.split("_")[0]: splits[name] for name in celebrities}
    assert all(splits[name] == people[name.split("_")[0]] for name in celebrities)
    for name in fakes:
        target, source, _ = name.split("_")
        aside = "val" if people.get(source) == "val" else "none"
        assert splits[name] == (aside if people.get(target) == "val" else "train")
    assert sum(splits[name] == "val" for name in celebrities) >= share * len(celebrities)
    drawn = sum(splits[name] == "val" for name in youtube)
    assert share * len(youtube) <= drawn < share * len(youtube) + 1
    shuffled = order.sample(sorted(originals), len(originals)), order.sample(sorted(fakes), len(fakes))
    assert carve_validation(*shuffled, seed, share) == splits


def test_the_share_is_checked() -> None:
    assert carve_validation([], []) == {}
    with pytest.raises(ValueError, match=r"within 0 and 1, got 1\.5"):
        carve_validation([], [], share=1.5)
