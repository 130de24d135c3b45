import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog.base import Catalog
from qadprep.catalog.dfdcp import read_dfdcp
from qadprep.errors import UserError

REAL = "original_videos/1001/1001_A_001.mp4"
FAKE_A = "method_A/2002/2002_A/2002_1001_A_001.mp4"
FAKE_B = "method_B/3003/3003_B/3003_1001_A_001.mp4"
SPLITS = {REAL: ("real", "train"), FAKE_A: ("fake", "train"), FAKE_B: ("fake", "train")}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, entries: dict[str, tuple[str, str] | dict]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    rows = {
        path: entry if isinstance(entry, dict) else {"label": entry[0], "set": entry[1], "augmentations": []}
        for path, entry in entries.items()
    }
    (root / "dataset.json").write_text(json.dumps(rows))


def facts(catalog: Catalog) -> dict[str, tuple]:
    return {f"{c.method}/{c.name}": (c.label, c.split, c.group, c.target, c.source) for c in catalog.clips}


@pytest.mark.parametrize("top", ["", "dfdc_preview_set/"])
def test_originals_and_their_fakes(tmp_path: Path, top: str) -> None:
    more = {"original_videos/1001/1001_A_002.mp4": ("real", "test"), "method_A/9/9_A/9_7_A_003.mp4": ("fake", "test")}
    listed(tmp_path / top, SPLITS | more)
    touch(tmp_path / top, *SPLITS, *more, "original_videos/1001/notes.txt")
    touch(tmp_path, "readme.txt")
    catalog = read_dfdcp(tmp_path)
    assert facts(catalog) == {
        "original/1001_A_001": (0, "train", "1001_A_001", "1001", ""),
        "method_A/2002_1001_A_001": (1, "train", "1001_A_001", "1001", "2002"),
        "method_B/3003_1001_A_001": (1, "train", "1001_A_001", "1001", "3003"),
        "original/1001_A_002": (0, "test", "1001_A_002", "1001", ""),
        "method_A/9_7_A_003": (1, "test", "7_A_003", "7", "9"),
    }
    assert [len(group.clips) for group in catalog.groups()] == [3, 1, 1]
    assert catalog.clips[0].paths == {"raw": top + REAL}
    assert catalog.ignored == [(f"{top}original_videos/1001/notes.txt", "not an mp4 file")]
    assert catalog.gaps == catalog.remarks == []
    assert catalog.expected == {
        ("original", "train"): 855,
        ("original", "test"): 276,
        ("method_A", "test"): 474,
        ("method_B", "test"): 27,
    }


def test_the_lists_keys_in_other_spellings(tmp_path: Path) -> None:
    listed(
        tmp_path,
        {
            f"./dfdc_preview_set/{REAL}": ("Real", "Train"),
            FAKE_A.replace("method_A", "METHOD_A", 1).replace("/", "\\"): ("FAKE", "test"),
            "elsewhere/x.mp4": ("fake", "test"),
        },
    )
    touch(tmp_path, REAL.replace("original_videos", "Original_Videos"), FAKE_A)
    catalog = read_dfdcp(tmp_path)
    assert {name: split for name, (_, split, *_) in facts(catalog).items()} == {
        "original/1001_A_001": "train",
        "method_A/2002_1001_A_001": "test",
    }
    assert catalog.ignored == [
        ("dataset.json: elsewhere/x.mp4", "lies in none of the folders original_videos, method_a, method_b")
    ]


def test_a_copy_without_method_b_is_one_line(tmp_path: Path) -> None:
    many = {f"method_B/{i}/{i}_B/{i}_1001_A_001.mp4": ("fake", "train") for i in range(100, 300)}
    listed(tmp_path, SPLITS | many)
    touch(tmp_path, REAL)
    catalog = read_dfdcp(tmp_path)
    assert catalog.gaps == [
        ("method_A", f"1 of 1 listed videos are not there, such as {FAKE_A}"),
        ("method_B", "201 of 201 listed videos are not there, such as method_B/100/100_B/100_1001_A_001.mp4"),
    ]


def test_entries_that_cannot_be_right(tmp_path: Path) -> None:
    folder = "method_A/5/5_A"
    names = [f"{folder}/5_1_A_00{i}.mp4" for i in range(8)]
    entries: dict = {
        REAL: ("fake", "train"),
        names[0]: ("real", "train"),
        names[1]: ("faked", "train"),
        names[2]: ("fake", "validation"),
        names[3]: ("fake", "train"),
        names[4]: {},
        names[6]: ("fake", "train"),
        names[7]: ("fake", "train"),
    }
    listed(tmp_path, entries)
    text = (tmp_path / "dataset.json").read_text()[:-1]
    again = f'"{names[6]}": {{"label": "fake", "set": "train"}}, "{names[7]}": {{"label": "fake", "set": "test"}}'
    broken = f'"{folder}/5_1_A_008.mp4": "fake"'
    (tmp_path / "dataset.json").write_text(f"{text}, {again}, {broken}}}")
    touch(tmp_path, REAL, *names, f"{folder}/5_1_A_008.mp4", f"{folder}/5 1.mp4", f"{folder}/deeper/5_1_A_003.mp4")
    catalog = read_dfdcp(tmp_path)
    assert sorted(facts(catalog)) == ["method_A/5_1_A_003", "method_A/5_1_A_006"]
    assert dict(catalog.ignored) == {
        REAL: "dataset.json calls it fake, its folder says original",
        names[0]: "dataset.json calls it real, its folder says method_A",
        names[1]: "its label is 'faked'; expected real or fake",
        names[2]: "its set is 'validation'; expected train or test",
        names[4]: "its label is ''; expected real or fake",
        names[5]: "no entry in dataset.json",
        names[7]: "listed twice, with different labels or sets",
        f"{folder}/5_1_A_008.mp4": "its entry in dataset.json is broken",
        f"{folder}/5 1.mp4": "its name is not of letters, digits, _ and - only",
        f"{folder}/deeper/5_1_A_003.mp4": "no entry in dataset.json",
    }
    assert catalog.remarks == [(f"dataset.json: {names[6]}", "listed twice, with the same label")]


def test_names_and_ids_that_disagree(tmp_path: Path) -> None:
    good = {"label": "fake", "set": "test", "target_id": 1001, "swapped_id": "2002"}
    listed(
        tmp_path,
        {
            FAKE_A: good,
            FAKE_B: good,
            "method_A/2/odd.mp4": ("fake", "train"),
            "method_A/2/odd_one.mp4": ("fake", "train"),
        },
    )
    touch(tmp_path, FAKE_A, FAKE_B, "method_A/2/odd.mp4", "method_A/2/odd_one.mp4")
    catalog = read_dfdcp(tmp_path)
    assert facts(catalog) == {
        "method_A/2002_1001_A_001": (1, "test", "1001_A_001", "1001", "2002"),
        "method_B/3003_1001_A_001": (1, "test", "1001_A_001", "1001", "3003"),
        "method_A/odd": (1, "train", "method_A-odd", "", ""),
        "method_A/odd_one": (1, "train", "method_A-odd_one", "", ""),
    }
    assert catalog.remarks == [
        (
            "fakes",
            "2 have a name that tells no original and are groups of their own, such as method_A/2/odd.mp4",
        ),
        (
            "fakes",
            f"1 have other ids in dataset.json than in their name; the name is believed, such as {FAKE_B}",
        ),
    ]


@pytest.mark.parametrize("content", [None, "[1, 2]", '{"a": ', ""])
def test_without_a_list_the_folders_label(tmp_path: Path, content: str | None) -> None:
    touch(tmp_path, *SPLITS, "method_A/x/2002_1001_A_001.mp4")
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    catalog = read_dfdcp(tmp_path)
    assert {name: fact[:2] for name, fact in facts(catalog).items()} == {
        "original/1001_A_001": (0, "none"),
        "method_A/2002_1001_A_001": (1, "none"),
        "method_B/3003_1001_A_001": (1, "none"),
    }
    assert catalog.gaps[-1][0] == "dataset.json" and "every split is none" in catalog.gaps[-1][1]
    assert len(catalog.gaps) == 1 + (content is not None)
    assert catalog.ignored == [("method_A/x/2002_1001_A_001.mp4", f"already there as {FAKE_A}")]


def test_made_qualities(tmp_path: Path) -> None:
    listed(tmp_path, SPLITS)
    touch(tmp_path, *SPLITS, *(f"c23/{path}" for path in SPLITS), f"c40/{REAL}")
    catalog = read_dfdcp(tmp_path)
    assert {clip.method: clip.paths for clip in catalog.clips} == {
        "original": {"raw": REAL, "c23": f"c23/{REAL}", "c40": f"c40/{REAL}"},
        "method_A": {"raw": FAKE_A, "c23": f"c23/{FAKE_A}"},
        "method_B": {"raw": FAKE_B, "c23": f"c23/{FAKE_B}"},
    }
    assert catalog.gaps == catalog.ignored == []
    # As `compress` leaves its output folder: a link to the dataset, the made videos beside it.
    made = tmp_path.parent / "made"
    made.mkdir()
    (made / "raw").symlink_to(tmp_path)
    (tmp_path / "c23").rename(made / "c23")
    assert {clip.method: clip.paths for clip in read_dfdcp(made).clips} == {
        "original": {"raw": f"raw/{REAL}", "c23": f"c23/{REAL}"},
        "method_A": {"raw": f"raw/{FAKE_A}", "c23": f"c23/{FAKE_A}"},
        "method_B": {"raw": f"raw/{FAKE_B}", "c23": f"c23/{FAKE_B}"},
    }


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected dataset\.json and the folders original_videos, method_A and method_B"
    ):
        read_dfdcp(tmp_path)
    touch(tmp_path, "dfdc_train_part_00/x.mp4")
    with pytest.raises(UserError, match="this is the full DFDC: --dataset dfdc"):
        read_dfdcp(tmp_path)
    listed(tmp_path, {})
    touch(tmp_path, REAL)
    with pytest.raises(UserError, match=f"none that can be used; {REAL}: no entry in dataset.json"):
        read_dfdcp(tmp_path)


IDS = st.text("0123456789abc", min_size=1, max_size=5)


@given(swapped=IDS, target=IDS, suffix=IDS, counter=IDS)
def test_a_fakes_group_is_its_originals_name(
    tmp_path_factory: pytest.TempPathFactory, swapped: str, target: str, suffix: str, counter: str
) -> None:
    root = tmp_path_factory.mktemp("dfdcp")
    real = f"{target}_{suffix}_{counter}"
    touch(root, f"original_videos/{target}/{real}.mp4", f"method_B/{swapped}/{swapped}_X/{swapped}_{real}.mp4")
    (group,) = read_dfdcp(root).groups()
    assert (group.name, [clip.method for clip in group.clips]) == (real, ["original", "method_B"])
