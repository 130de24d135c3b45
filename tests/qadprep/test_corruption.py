"""What damage to a shard does: stock webdataset (mostly nothing that is said), ShardSet, and verify.

One tuple of 16 is hit. Each case is read three ways: what stock webdataset yields or raises is measured, so that the
docs' claim stays true; ShardSet may give true tuples only; verify must name shard, key and byte.
"""

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from helpers.sets import QUALITIES, made_shards
from helpers.shard_damage import change_tar, flipped, member, rows_of

from qadprep.shardset import ShardError, ShardSet, pixel_hash
from qadprep.verify import verify

HIT = 8
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A kind of damage.

    Attributes:
        change: (bytes of the tar, rows of its index) -> damaged bytes.
        stock: samples that stock webdataset yields without an error, and how many members the samples have that are not
            whole; or the exception it raises.
        lost: tuples that ShardSet refuses; None: from the hit one on.
        place: byte that verify must name with the hit key.
        quick: whether `verify --quick` finds it.
    """

    name: str
    change: Callable[[bytes, Rows], bytes]
    stock: tuple[int, list[int]] | type[Exception]
    lost: list[int] | None
    place: Callable[[Rows], int]
    quick: bool = True


def without(data: bytes, rows: Rows) -> bytes:
    first, after = member(rows[HIT], "c23")
    return padded(data[:first] + data[after : end_of(rows)])


def end_of(rows: Rows) -> int:
    return rows[-1]["offset"] + rows[-1]["length"]


def padded(members: bytes) -> bytes:
    """With the end of archive that tar writes."""
    return members + bytes(1024 + -(len(members) + 1024) % tarfile.RECORDSIZE)


def reordered(data: bytes, rows: Rows) -> bytes:
    (a, b), (_, c) = member(rows[HIT], "c23"), member(rows[HIT], "c40")
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def interleaved(data: bytes, rows: Rows) -> bytes:
    """The hit tuple's json comes after the next tuple's first picture."""
    (a, b), (_, c) = member(rows[HIT], "json"), member(rows[HIT + 1], "raw")
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def twice(data: bytes, rows: Rows) -> bytes:
    """The hit tuple once more, behind the last one."""
    row = rows[HIT]
    return padded(data[: end_of(rows)] + data[row["offset"] : row["offset"] + row["length"]])


CASES = [
    Case(
        "cut exactly at a tuple's header",
        lambda data, rows: data[: rows[HIT]["offset"]],
        (8, []), None, lambda rows: rows[HIT]["offset"],
    ),
    Case(
        "cut exactly at a member's header",
        lambda data, rows: data[: member(rows[HIT], "c40")[0]],
        (9, [2]), None, lambda rows: rows[HIT]["offset"],
    ),
    Case(
        "cut inside a header",
        lambda data, rows: data[: member(rows[HIT], "c40")[0] + 200],
        (9, [2]), None, lambda rows: rows[HIT]["offset"],
    ),
    Case(
        "cut in data",
        lambda data, rows: data[: rows[HIT]["c40_offset"] + 100],
        tarfile.ReadError, None, lambda rows: rows[HIT]["offset"],
    ),
    Case(
        "header byte flipped",
        lambda data, rows: flipped(data, member(rows[HIT], "c40")[0] + 5),
        (9, [2]), [HIT], lambda rows: member(rows[HIT], "c40")[0],
    ),
    Case(
        "payload byte flipped",
        lambda data, rows: flipped(data, rows[HIT]["c40_offset"] + rows[HIT]["c40_size"] // 2),
        (16, []), [HIT], lambda rows: rows[HIT]["c40_offset"], quick=False,
    ),
    Case("one member missing", without, (16, [3]), None, lambda rows: member(rows[HIT], "c23")[0]),
    Case("members reordered", reordered, (16, []), [HIT], lambda rows: member(rows[HIT], "c23")[0]),
    Case(
        "members of two tuples interleaved",
        interleaved,
        (18, [1, 1, 3, 3]), [HIT, HIT + 1], lambda rows: member(rows[HIT], "json")[0],
    ),
    Case("a key twice", twice, (17, []), [], end_of),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def damaged(case: Case, made_set: Path) -> tuple[Path, Rows]:
    """The set with the damage in its first shard, and that shard's index."""
    rows = rows_of(made_set)
    change_tar(made_set, lambda data: case.change(data, rows))
    return made_set, rows


def test_stock_webdataset_says_nothing(case: Case, damaged: tuple[Path, Rows]) -> None:
    stock = wds.WebDataset(str(damaged[0] / "train-000000.tar"), shardshuffle=False)
    if isinstance(case.stock, type):
        with pytest.raises(case.stock):
            list(stock)
        return
    members = [sum(not name.startswith("__") for name in sample) for sample in stock]
    assert (len(members), sorted(count for count in members if count != 4)) == case.stock


def test_shardset_gives_true_tuples_or_an_error(case: Case, damaged: tuple[Path, Rows]) -> None:
    folder, rows = damaged
    lost = []
    with ShardSet(folder, "train", check=True) as shards:
        for position, row in enumerate(rows):
            try:
                item = shards[position]
            except ShardError as error:
                assert "train-000000.tar" in str(error) and row["key"] in str(error)
                assert f"at byte {row['offset']}" in str(error) and "\n" not in str(error)
                lost.append(position)
                continue
            assert item.key == row["key"]
            assert [pixel_hash(item.images[q]) for q in QUALITIES] == [row[f"{q}_pixels_sha256"] for q in QUALITIES]
    assert lost == (list(range(HIT, 16)) if case.lost is None else case.lost)


@pytest.mark.parametrize("level", ["full", "hashes", "quick"])
def test_verify_names_shard_key_and_byte(case: Case, damaged: tuple[Path, Rows], level: str) -> None:
    folder, rows = damaged
    report = verify(folder, level=level)
    if level == "quick" and not case.quick:
        assert report.fault_count == 0
        return
    assert report.damaged == ["train-000000.tar"]
    assert {fault.shard for fault in report.faults} == {"train-000000.tar"}
    # Without decoding only the tuple is known of a byte that is wrong inside a picture.
    place = case.place(rows) if case.quick or level == "full" else rows[HIT]["offset"]
    first = next(fault for fault in report.faults if fault.key)
    assert (first.key, first.offset_bytes) == (rows[HIT]["key"], place), report.faults
    said = [fault.fault for fault in report.faults]
    assert any("sha256 is" in fault for fault in said) == (level != "quick")
    assert report.tuples == 60 and report.fault_count >= len(said)


def test_tar_and_index_of_different_runs(made_set: Path, made_faces_master: Path, tmp_path: Path) -> None:
    made_shards(tmp_path / "other", made_faces_master, seed=5)
    shutil.copy(tmp_path / "other" / "train-000000.tar", made_set / "train-000000.tar")
    rows = rows_of(made_set)
    assert len(list(wds.WebDataset(str(made_set / "train-000000.tar"), shardshuffle=False))) == 16
    other = {row["key"] for row in rows_of(tmp_path / "other")} - {row["key"] for row in rows}
    assert other  # other tuples than the set's first shard has: webdataset took them for it
    with ShardSet(made_set, "train") as shards, pytest.raises(ShardError, match="tar and index disagree"):
        shards[0]
    report = verify(made_set, level="quick")
    assert report.damaged == ["train-000000.tar"]
    first = next(fault for fault in report.faults if fault.key)
    assert (first.shard, first.key, first.offset_bytes) == ("train-000000.tar", rows[0]["key"], 0)
    assert "expected" in first.fault


def test_raw_pixels_that_no_decoder_checks(made_faces_master: Path, tmp_path: Path) -> None:
    """A flipped pixel of the codec `raw` is a pixel like any other: only hashes tell."""
    folder = made_shards(tmp_path / "set", made_faces_master, codec="raw")
    row = rows_of(folder)[HIT]
    change_tar(folder, lambda data: flipped(data, row["c23_offset"] + 600))
    with ShardSet(folder, "train") as shards:
        assert pixel_hash(shards[HIT].images["c23"]) != row["c23_pixels_sha256"]
    with ShardSet(folder, "train", check=True) as shards, pytest.raises(ShardError, match="not those written"):
        shards[HIT]
    faults = [fault for fault in verify(folder).faults if fault.key]
    assert [(f.shard, f.key, f.offset_bytes) for f in faults] == [("train-000000.tar", row["key"], row["c23_offset"])]
    assert faults[0].fault.endswith("pixels are not those written")
