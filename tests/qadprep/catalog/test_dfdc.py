import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.catalog.base import Catalog
from qadprep.catalog.dfdc import read_dfdc
from qadprep.errors import UserError

Facts = dict[str, tuple[str, int, str, str, dict[str, str]]]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def part(folder: Path, entries: dict[str, str | None], *, files: bool = True) -> None:
    """A train part: fake -> its original, original -> None."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        f"{name}.mp4": {"label": "REAL", "split": "train"}
        if original is None
        else {"label": "FAKE", "split": "train", "original": f"{original}.mp4"}
        for name, original in entries.items()
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    if files:
        touch(folder, *metadata)


def facts(catalog: Catalog) -> Facts:
    found = {c.name: (c.method, c.label, c.split, c.group, c.paths) for c in catalog.clips}
    assert len(found) == len(catalog.clips)
    assert all(clip.target == clip.group and clip.source == "" for clip in catalog.clips)
    return found


def test_train_parts_in_the_shapes_they_unpack_to(tmp_path: Path) -> None:
    part(tmp_path / "dfdc_train_part_0", {"aa": None, "ab": "aa", "ac": "aa"})
    part(tmp_path / "dfdc_train_part_01" / "dfdc_train_part_1", {"ba": None, "bb": "ba"})
    part(tmp_path / "DFDC_train_part_45.zip" / "dfdc_train_part_45", {"ca": None, "cb": "ca"})
    part(tmp_path / "train" / "dfdc_train_part_44", {"da": None})
    part(tmp_path / "rest" / "dfdc_train_part_049" / "dfdc_train_part_49", {"ea": "gone"})
    touch(tmp_path, "readme.txt", "dfdc_train_part_0/strange.txt", "dfdc_train_part_0/.hidden")
    catalog = read_dfdc(tmp_path)
    one = "dfdc_train_part_01/dfdc_train_part_1"
    assert facts(catalog) == {
        "aa": ("original", 0, "train", "aa", {"raw": "dfdc_train_part_0/aa.mp4"}),
        "ab": ("DFDC", 1, "train", "aa", {"raw": "dfdc_train_part_0/ab.mp4"}),
        "ac": ("DFDC", 1, "train", "aa", {"raw": "dfdc_train_part_0/ac.mp4"}),
        "ba": ("original", 0, "train", "ba", {"raw": f"{one}/ba.mp4"}),
        "bb": ("DFDC", 1, "train", "ba", {"raw": f"{one}/bb.mp4"}),
        "ca": ("original", 0, "val", "ca", {"raw": "DFDC_train_part_45.zip/dfdc_train_part_45/ca.mp4"}),
        "cb": ("DFDC", 1, "val", "ca", {"raw": "DFDC_train_part_45.zip/dfdc_train_part_45/cb.mp4"}),
        "da": ("original", 0, "train", "da", {"raw": "train/dfdc_train_part_44/da.mp4"}),
        "ea": ("DFDC", 1, "val", "gone", {"raw": "rest/dfdc_train_part_049/dfdc_train_part_49/ea.mp4"}),
    }
    assert catalog.ignored == [("dfdc_train_part_0/strange.txt", "not an mp4 file")]
    ((entry, reason),) = catalog.gaps
    assert entry == "dfdc_train_part_*" and reason.startswith("45 of 50 parts are not there: 2, 3, 4, 5, ")
    assert "44" not in reason and "46, 47, 48" in reason
    assert catalog.expected == {
        ("original", "train"): 3,
        ("DFDC", "train"): 3,
        ("original", "val"): 1,
        ("DFDC", "val"): 2,
    }
    assert catalog.remarks == []


def test_all_fifty_parts_leave_no_gap(tmp_path: Path) -> None:
    for number in range(50):
        part(tmp_path / f"dfdc_train_part_{number}", {f"r{number}": None, f"f{number}": f"r{number}"})
    catalog = read_dfdc(tmp_path)
    assert catalog.gaps == [] and len(catalog.groups()) == 50
    assert catalog.expected == {
        ("original", "train"): 45,
        ("DFDC", "train"): 45,
        ("original", "val"): 5,
        ("DFDC", "val"): 5,
    }


@pytest.mark.parametrize(
    ("folder", "labels"),
    [
        ("test/", "test/labels.csv"),
        ("test/", "labels.csv"),
        ("videos/", "Labels.csv"),
        ("test/videos/", "test/labels.csv"),
        ("DFDC/test/", "DFDC/labels.csv"),
        ("DFDC/videos/", "DFDC/labels.csv"),
        ("", "labels.csv"),
    ],
)
def test_the_test_folder_with_its_labels(tmp_path: Path, folder: str, labels: str) -> None:
    touch(tmp_path, f"{folder}aa.mp4", f"{folder}bb.MP4")
    (tmp_path / labels).write_text("filename,label\naa.mp4,0\nbb.mp4,1\n")
    catalog = read_dfdc(tmp_path)
    assert facts(catalog) == {
        "aa": ("original", 0, "test", "aa", {"raw": f"{folder}aa.mp4"}),
        "bb": ("DFDC", 1, "test", "bb", {"raw": f"{folder}bb.MP4"}),
    }
    assert catalog.expected == {("original", "test"): 1, ("DFDC", "test"): 1}
    assert catalog.ignored == catalog.gaps == catalog.remarks == []


def test_the_test_folder_with_a_metadata_file(tmp_path: Path) -> None:
    touch(tmp_path, *(f"test/{name}.mp4" for name in ("aa", "bb", "cc", "dd", "ee")))
    entries = {
        "aa.mp4": {"is_fake": 0},
        "bb.mp4": {"is_fake": 1},
        "cc.mp4": {"label": "FAKE", "original": "aa.mp4"},
        "dd.mp4": {"is_fake": True},
        "ee.mp4": {"label": "REAL", "is_fake": 1},
    }
    (tmp_path / "test" / "metadata.json").write_text(json.dumps(entries))
    catalog = read_dfdc(tmp_path)
    assert {name: (label, group) for name, (_, label, _, group, _) in facts(catalog).items()} == {
        "aa": (0, "aa"),
        "bb": (1, "bb"),
        "cc": (1, "aa"),
        "dd": (1, "dd"),
    }
    assert catalog.ignored == [("test/ee.mp4", "its label and is_fake contradict each other")]


def test_a_part_given_as_the_root(tmp_path: Path) -> None:
    part(tmp_path / "dfdc_train_part_47", {"aa": None})
    assert facts(read_dfdc(tmp_path / "dfdc_train_part_47")) == {
        "aa": ("original", 0, "val", "aa", {"raw": "aa.mp4"}),
    }


def test_labels_that_cannot_be_right(tmp_path: Path) -> None:
    rows = ["aa,0", "bb,1", "bb,1", "cc,0", "cc,1", "dd,2", "ee,", "ff", "gone,1", "g h,0", "hh,REAL", "zz,9"]
    text = "filename,label\n" + "".join(f"{name}.mp4,{label}\n" for name, _, label in (r.partition(",") for r in rows))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "labels.csv").write_text(text.replace("ff.mp4,", "ff.mp4"))
    touch(tmp_path, *(f"test/{name}.mp4" for name in ("aa", "bb", "cc", "dd", "ee", "ff", "g h", "hh", "other")))
    catalog = read_dfdc(tmp_path)
    assert {name: label for name, (_, label, *_) in facts(catalog).items()} == {"aa": 0, "bb": 1, "hh": 0}
    assert dict(catalog.ignored) == {
        "test/cc.mp4": "listed twice, with different labels",
        "test/dd.mp4": "its label is '2'; expected REAL or FAKE, or 0 or 1",
        "test/ee.mp4": "its label is ''; expected REAL or FAKE, or 0 or 1",
        "test/ff.mp4": "its entry in the list is broken",
        "test/g h.mp4": "its name is not of letters, digits, _ and - only",
        "test/other.mp4": "no entry in test/labels.csv",
        "test/labels.csv: zz.mp4": "its label is '9'; expected REAL or FAKE, or 0 or 1",
    }
    assert catalog.gaps == [("test/labels.csv: gone.mp4", "no such file")]
    assert catalog.remarks == [("test/labels.csv: bb.mp4", "listed twice, with the same label")]


def test_metadata_that_cannot_be_right(tmp_path: Path) -> None:
    folder = tmp_path / "dfdc_train_part_3"
    touch(folder, *(f"{name}.mp4" for name in ("aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh", "ii")))
    fake = '{"label": "FAKE", "original": '
    (folder / "metadata.json").write_text(
        f'{{"aa.mp4": {{"label": "REAL", "original": null}}, "bb.mp4": {fake}"aa.mp4"}}, "cc.mp4": {fake}"bb.mp4"}},'
        f' "dd.mp4": {fake}"dd.mp4"}}, "ee.mp4": {fake}null}}, "ff.mp4": 7, "gg.mp4": {{}}, "bb.mp4": {fake}"ee.mp4"}},'
        f' "hh.mp4": {fake}"../aa.mp4"}}, "ii.mp4": {{"label": ["REAL"]}}}}'
    )
    catalog = read_dfdc(tmp_path)
    assert {name: (label, group) for name, (_, label, _, group, _) in facts(catalog).items()} == {
        "aa": (0, "aa"),
        "ee": (1, "ee"),
        "cc": (1, "bb"),
    }
    assert dict(catalog.ignored) == {
        "dfdc_train_part_3/bb.mp4": "listed twice, with different labels",
        "dfdc_train_part_3/dd.mp4": "its original is itself",
        "dfdc_train_part_3/ff.mp4": "its entry in the list is broken",
        "dfdc_train_part_3/gg.mp4": "its label is 'nothing'; expected REAL or FAKE, or 0 or 1",
        "dfdc_train_part_3/hh.mp4": "its original is '../aa'; expected a file's name",
        "dfdc_train_part_3/ii.mp4": "its label is \"['REAL']\"; expected REAL or FAKE, or 0 or 1",
    }


def test_a_fake_of_a_fake_is_not_taken(tmp_path: Path) -> None:
    part(tmp_path / "dfdc_train_part_3", {"aa": None, "bb": "aa", "cc": "bb"})
    catalog = read_dfdc(tmp_path)
    assert sorted(facts(catalog)) == ["aa", "bb"]
    assert catalog.ignored == [("dfdc_train_part_3/cc.mp4", "its original bb.mp4 is labelled FAKE")]


def test_a_missing_or_broken_list_costs_its_own_folder_only(tmp_path: Path) -> None:
    part(tmp_path / "dfdc_train_part_0", {"aa": None})
    touch(tmp_path, "dfdc_train_part_1/ba.mp4", "dfdc_train_part_2/ca.mp4", "dfdc_train_part_5/da.mp4", "test/ea.mp4")
    (tmp_path / "dfdc_train_part_1" / "metadata.json").write_text('{"ba.mp4": {"label": "RE')
    (tmp_path / "dfdc_train_part_5" / "metadata.json").write_text("[" * 100_000)
    # A part's labels are its own: the list of the root says nothing about it.
    (tmp_path / "metadata.json").write_text("[]")
    catalog = read_dfdc(tmp_path)
    assert list(facts(catalog)) == ["aa"]
    gaps = dict(catalog.gaps)
    assert gaps["dfdc_train_part_1/metadata.json"].startswith("not a readable JSON file (Unterminated string")
    assert gaps["dfdc_train_part_2/metadata.json"] == "not there; it labels the videos of this folder"
    assert gaps["dfdc_train_part_5/metadata.json"] == "not a readable JSON file (nested too deeply)"
    assert gaps["metadata.json"] == "holds no JSON object; expected one entry a video"
    assert [path for path, _ in catalog.ignored] == [
        "dfdc_train_part_1/ba.mp4",
        "dfdc_train_part_2/ca.mp4",
        "dfdc_train_part_5/da.mp4",
        "test/ea.mp4",
    ]
    assert all(reason.startswith("no label; ") for _, reason in catalog.ignored)
    (tmp_path / "metadata.json").unlink()
    assert dict(read_dfdc(tmp_path).gaps)["test/labels.csv"] == "not there; it labels the videos of this folder"


def test_a_stem_in_two_parts(tmp_path: Path) -> None:
    part(tmp_path / "dfdc_train_part_2", {"aa": None, "bb": "aa"})
    part(tmp_path / "dfdc_train_part_45", {"aa": None, "cc": "aa", "dd": None})
    part(tmp_path / "dfdc_train_part_46" / "dfdc_train_part_46", {"ee": "dd"})
    part(tmp_path / "dfdc_train_part_02", {"bb": "aa"})
    catalog = read_dfdc(tmp_path)
    assert {name: (split, group) for name, (_, _, split, group, _) in facts(catalog).items()} == {
        "aa": ("train", "aa"),
        "bb": ("train", "aa"),
        "cc": ("train", "aa"),  # a recording lies on one side only
        "dd": ("val", "dd"),
        "ee": ("val", "dd"),
    }
    assert dict(catalog.ignored) == {
        "dfdc_train_part_2/bb.mp4": "raw is already there as dfdc_train_part_02/bb.mp4",
        "dfdc_train_part_45/aa.mp4": "already there as dfdc_train_part_2/aa.mp4",
    }
    assert catalog.remarks == [("train parts", "1 fakes lie in another part than their original and are in its split")]
    assert catalog.expected == {
        ("original", "train"): 1,
        ("DFDC", "train"): 2,
        ("original", "val"): 1,
        ("DFDC", "val"): 1,
    }


def test_a_train_video_in_the_test_folder_keeps_each_on_its_side(tmp_path: Path) -> None:
    part(tmp_path / "dfdc_train_part_0", {"aa": None})
    touch(tmp_path, "test/aa.mp4", "test/bb.mp4")
    entries = {"aa.mp4": {"label": "REAL"}, "bb.mp4": {"label": "FAKE", "original": "aa.mp4"}}
    (tmp_path / "test" / "metadata.json").write_text(json.dumps(entries))
    catalog = read_dfdc(tmp_path)
    assert {name: (split, group) for name, (_, _, split, group, _) in facts(catalog).items()} == {
        "aa": ("train", "aa"),
        "bb": ("test", "aa"),
    }
    assert catalog.ignored == [("test/aa.mp4", "already there as dfdc_train_part_0/aa.mp4")]


def test_made_qualities_and_a_folder_that_compress_wrote(tmp_path: Path) -> None:
    root, made = tmp_path / "dfdc", tmp_path / "made"
    part(root / "dfdc_train_part_0", {"aa": None, "bb": "aa"})
    touch(root, "test/cc.mp4", "c23/dfdc_train_part_0/aa.mp4", "c23/test/cc.mp4", "c40/test/cc.mp4", "c40/test/dd.mp4")
    (root / "labels.csv").write_text("filename,label\ncc.mp4,1\n")
    catalog = read_dfdc(root)
    expected = {
        "aa": {"raw": "dfdc_train_part_0/aa.mp4", "c23": "c23/dfdc_train_part_0/aa.mp4"},
        "bb": {"raw": "dfdc_train_part_0/bb.mp4"},
        "cc": {"raw": "test/cc.mp4", "c23": "c23/test/cc.mp4", "c40": "c40/test/cc.mp4"},
    }
    assert {clip.name: clip.paths for clip in catalog.clips} == expected
    assert catalog.ignored == [("c40/test/dd.mp4", "no entry in labels.csv")]
    made.mkdir()
    (made / "raw").symlink_to(root)
    (root / "c23").rename(made / "c23")
    expected["cc"].pop("c40")
    assert {clip.name: clip.paths for clip in read_dfdc(made).clips} == {
        name: {q: path if q == "c23" else f"raw/{path}" for q, path in paths.items()}
        for name, paths in expected.items()
    }


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected folders such as dfdc_train_part_0 with metadata\.json in it, or test"
    ):
        read_dfdc(tmp_path)
    touch(tmp_path / "a", "test/aa.mp4")
    with pytest.raises(UserError, match=r"none that can be used; test/aa\.mp4: no label; test/labels\.csv: not there$"):
        read_dfdc(tmp_path / "a")
    touch(tmp_path / "preview", "method_A/1/1_B/1_2_B_001.mp4")
    with pytest.raises(UserError, match="this is the preview of DFDC: --dataset dfdcp"):
        read_dfdc(tmp_path / "preview")


STEMS = st.sampled_from(["a", "b", "c", "d"])
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["REAL", "FAKE", "fake", "?", None, 1, 0]),
        "is_fake": st.sampled_from([0, 1, True, 2, None]),
        "original": st.sampled_from(["a.mp4", "b.mp4", "d", "", None, 3, "x/../y.mp4"]),
    },
)


@settings(max_examples=100, deadline=None)
@given(
    parts=st.dictionaries(
        st.sampled_from(["dfdc_train_part_1", "dfdc_train_part_45", "dfdc_train_part_049", "test"]),
        st.tuples(st.dictionaries(STEMS, VALUES | st.none() | st.just([]), max_size=4), st.sets(STEMS, max_size=4)),
        max_size=4,
    )
)
def test_every_file_and_every_entry_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, parts: dict) -> None:
    root = tmp_path_factory.mktemp("dfdc")
    part(root / "dfdc_train_part_7", {"sure": None})
    files, entries = {"dfdc_train_part_7/sure.mp4"}, set()
    for name, (listed, there) in parts.items():
        (root / name).mkdir()
        (root / name / "metadata.json").write_text(json.dumps({f"{stem}.mp4": value for stem, value in listed.items()}))
        touch(root / name, *(f"{stem}.mp4" for stem in there))
        files |= {f"{name}/{stem}.mp4" for stem in there}
        if there or name != "test":
            entries |= {f"{name}/metadata.json: {stem}.mp4" for stem in set(listed) - there}
    catalog = read_dfdc(root)
    taken = [path for clip in catalog.clips for path in clip.paths.values()]
    told = [path for path, _ in catalog.ignored + catalog.gaps if path != "dfdc_train_part_*"]
    assert sorted(taken + told) == sorted(files | entries)
    groups: dict[str, set[str]] = {}
    for clip in catalog.clips:
        if clip.split != "test":
            groups.setdefault(clip.group, set()).add(clip.split)
    assert all(len(splits) == 1 for splits in groups.values())
    for group in catalog.groups():
        assert sum(clip.method == "original" for clip in group.clips) <= 1
