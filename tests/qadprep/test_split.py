"""split: parts of a set as sets of their own, whose tuples keep every byte."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.rewritten import Made, fails, members, rewrite
from helpers.sets import made_packs, made_shards
from helpers.written import digests

from qadprep.shardset import ShardSet
from qadprep.split_set import _folds, split
from qadprep.verify import verify


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("method", ["Deepfakes", "FaceSwap", "original"]),
        ("label", ["fake", "real"]),
        ("split", ["test", "train", "val"]),
        ("unaltered", ["false", "true"]),
        ("source", ["900", "none"]),
    ],
)
def test_a_set_for_each_value(column: str, names: list[str], made_shards_master: Path, tmp_path: Path) -> None:
    result = split(made_shards_master, tmp_path / "out", by=column, tuples_per_shard=11)
    assert [made["name"] for made in result["sets"]] == names and result["tuples"] == 60
    words = {"fake": 1, "real": 0, "true": True, "false": False, "none": ""}
    whole = members(made_shards_master)
    found: dict = {}
    for name in names:
        folder = tmp_path / "out" / name
        part = members(folder)
        with ShardSet(folder) as shards:
            assert set(shards.table[column].to_pylist()) == {words.get(name, name)}
            assert all(entry["nsamples"] <= 11 for entry in shards.shards)
        assert list(part) == [key for key in whole if key in part]  # in the order of the source
        assert part == {key: whole[key] for key in part}
        assert verify(folder, workers=1).faults == []
        assert not found.keys() & part.keys()
        found |= part
    assert found == whole


def test_a_condition(made_shards_master: Path, tmp_path: Path) -> None:
    condition = "method = 'Deepfakes' AND NOT unaltered AND face_px >= 90 AND \"group\" <> '100'"
    result = split(made_shards_master, tmp_path / "out", where=condition)
    with ShardSet(made_shards_master) as shards:
        wanted = [
            row["key"]
            for row in shards.table.to_pylist()
            if row["method"] == "Deepfakes" and row["frame"] in (10, 20) and row["group"] != "100"
        ]
    assert list(members(tmp_path / "out")) == wanted and len(wanted) == 8
    assert result["sets"][0]["tuples"] == {"train": 6, "test": 2}
    assert ShardSet(tmp_path / "out").info["config"]["where"] == condition
    assert verify(tmp_path / "out", workers=1).faults == []


@pytest.mark.parametrize(
    "condition",
    [
        "methods = 'Deepfakes'",
        "label = 1; DROP TABLE tuples",
        "label = 1 UNION SELECT 1",
        "key IN (SELECT content FROM read_text('/etc/passwd'))",
        "label = 'one'",
        "random() < 0.5",
        "",
        "label = 7",
    ],
)
def test_what_is_no_condition_is_said_in_one_line(condition: str, made_shards_master: Path, tmp_path: Path) -> None:
    fails("^--where ", lambda: split(made_shards_master, tmp_path / "out", where=condition))
    assert not (tmp_path / "out").exists()


def test_folds_keep_recordings_together(tmp_path: Path) -> None:
    groups = {f"{number:03d}": "train" if number < 9 else "test" for number in range(13)}
    faces = made_packs(
        tmp_path / "faces", groups, methods=("original", "Deepfakes"), frames=2, qualities=("raw",), size_px=16
    )
    source = made_shards(tmp_path / "shards", faces)
    split(source, tmp_path / "folds", folds=4)
    owner: dict[str, int] = {}
    counts = []
    found: dict = {}
    for fold in range(4):
        folder = tmp_path / "folds" / f"fold-{fold}"
        with ShardSet(folder) as shards:
            pairs = set(zip(shards.table["group"].to_pylist(), shards.table["split"].to_pylist(), strict=True))
        assert all(owner.setdefault(group, fold) == fold for group, _ in pairs)
        counts.append((sum(s == "train" for _, s in pairs), sum(s == "test" for _, s in pairs)))
        found |= members(folder)
    assert found == members(source) and set(owner) == set(groups)
    assert sorted(train for train, _ in counts) == [2, 2, 2, 3] and [test for _, test in counts] == [1] * 4
    table = ShardSet(source).table
    first, again, other = (list(_folds(table, 4, seed)) for seed in (0, 0, 1))
    assert [part.positions.tolist() for part in first] == [part.positions.tolist() for part in again]
    assert [part.positions.tolist() for part in first] != [part.positions.tolist() for part in other]
    fails("has 13 recordings", lambda: split(source, tmp_path / "x", folds=14))
    fails("got 1; expected 2", lambda: split(source, tmp_path / "x", folds=1))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six recordings in one split, original and fake: 12 of 24 tuples of each; two have no face, left out as well."""
    folder = tmp_path_factory.mktemp("small")
    groups = {f"{number:03d}": "train" for number in range(6)}
    faces = made_packs(
        folder / "faces", groups, methods=("original", "Deepfakes"), frames=2, qualities=("raw",), size_px=16
    )
    return made_shards(folder / "shards", faces)


def test_fewer_folds_leave_no_old_one(small: Path, tmp_path: Path) -> None:
    """A recording would be in a new fold and in an old one."""
    out = tmp_path / "cv"
    split(small, out, folds=4)
    (out / "fold-3" / "notes.txt").write_text("mine")
    Path(shutil.copytree(small, out / "whole"))
    before = digests(out)
    fails("fold-0: was written with .*--overwrite", lambda: split(small, out, folds=2))
    fails(
        r"fold-0: is a part of another split, and none of this one's; .* --overwrite to delete it",
        lambda: split(small, out, by="method"),
    )
    assert digests(out) == before
    split(small, out, folds=2, overwrite=True)
    assert sorted(file.name for file in out.iterdir()) == ["fold-0", "fold-1", "fold-3", "whole"]
    assert digests(out / "fold-3").keys() == {"notes.txt"} and digests(out / "whole") == digests(small)
    groups = [set(ShardSet(out / f"fold-{fold}").table["group"].to_pylist()) for fold in range(2)]
    assert groups[0] | groups[1] == {f"{number:03d}" for number in range(6)} and not groups[0] & groups[1]
    split(small, out, by="method", overwrite=True)
    assert sorted(file.name for file in out.iterdir()) == ["Deepfakes", "fold-3", "original", "whole"]
    # The source itself, and a source that is damaged, cost nothing.
    again = out / "Deepfakes"
    fails("is one of the sets that are read", lambda: split(again, out, folds=2, overwrite=True))
    broken = Path(shutil.copytree(small, tmp_path / "broken"))
    (broken / "train-000001.tar").unlink()
    before = digests(out)
    fails("train-000001.tar: not there", lambda: split(broken, out, folds=2, overwrite=True))
    assert digests(out) == before


def test_all_parts_are_looked_at_before_one_is_written(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "original").mkdir(parents=True)
    (tmp_path / "out" / "original" / "thesis.tex").write_text("x")
    fails("original: holds other files .thesis.tex", lambda: split(small, tmp_path / "out", by="method"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["original"]


def test_what_is_not_in_a_part_is_counted(small: Path, tmp_path: Path) -> None:
    faces = small.parent / "faces"
    one = made_shards(tmp_path / "one", faces, max_frames=1)
    split(one, tmp_path / "fakes", where="label = 1")
    split(tmp_path / "fakes", tmp_path / "cv", folds=2)
    info = ShardSet(tmp_path / "cv" / "fold-1").info
    assert info["left_out"] == {"filter_where": 6, "no_face": 6, "other_parts": 3, "over_max_frames": 12}
    assert info["extraction"] == {"attempted": 30, "ok": 24, "failures": 0}
    assert sum(info["left_out"].values()) + sum(info["tuples"].values()) == 30
    card = (tmp_path / "cv" / "fold-1" / "README.md").read_text()
    for line in (
        "- chosen tuples: folds `2`, fold `1`, fold_seed `0`, out of what was chosen in the source\n",
        "- attempted and left out: 6 filter_where, 6 no_face, 3 other_parts, 12 over_max_frames\n",
        ", chosen there: where `label = 1`\n  - made of ffpp-16px, ",
        ", chosen there: max_frames `1`\n",
    ):
        assert line in card, line
    assert "all complete ones" not in card


def test_split_says_what_is_wrong(made_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails("expected one of --by COLUMN", lambda: split(made_set, out))
    fails("expected one of --by COLUMN", lambda: split(made_set, out, by="method", folds=2))
    fails("no such column; it has key, video", lambda: split(made_set, out, by="methods"))
    fails("a measure has no values", lambda: split(made_set, out, by="face_px"))
    fails("--tuples-per-shard: got 0", lambda: split(made_set, out, by="method", tuples_per_shard=0))
    old = rewrite(made_set, tmp_path / "old", without=("group",))
    fails("does not tell which recording", lambda: split(old, out, folds=2))
    assert not out.exists()


@pytest.mark.parametrize("value", ["../../outside", "/tmp/outside", ".hidden", "a/b", "x" * 200, "a\nb"])
def test_a_value_is_no_way_out_of_the_folder(value: str, made_shards_master: Path, tmp_path: Path) -> None:
    def target(made: list[Made]) -> list[Made]:
        made[0].row["target"] = value
        return made

    evil = rewrite(made_shards_master, tmp_path / "evil", target)
    fails("cannot be a folder's name", lambda: split(evil, tmp_path / "a" / "b" / "out", by="target"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evil"]


def test_index_columns_are_the_formats(made_shards_master: Path, tmp_path: Path) -> None:
    """A rewritten index has the schema of a written one."""
    split(made_shards_master, tmp_path / "out", where="label = 1")
    written = pq.read_schema(made_shards_master / "train-000000.parquet")
    assert pq.read_schema(tmp_path / "out" / "train-000000.parquet").equals(written)
