"""Shard sets with random damage and with hostile values: one clear error or faults, never a wrong tuple.

Whatever the files hold, ShardSet and verify may raise UserError (ShardError is one) and nothing else; what ShardSet
gives out with `check=True` has the pixels that were written under that key.
"""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.sets import made_packs, made_shards
from helpers.shard_damage import change_info, refresh, rows_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadprep.verify import verify

QUICK, MANY = 20, 200
SHARD = "train-000000"
# Columns whose values are in the json members or in the tar headers too: verify notices when they change.
TOLD_TWICE = ("key", "label", "split", "dataset", "method", "video", "group", "target", "source", "frame", "face",
              "geometry", "offset", "length", "sha256", "raw_offset", "raw_size", "raw_pixels_sha256", "c40_offset",
              "c40_size", "c40_pixels_sha256", "json_offset", "json_size")  # fmt: skip

Truth = dict[str, dict[str, np.ndarray]]
pytestmark = pytest.mark.timeout(3600)
examples = pytest.mark.parametrize("examples", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])


class Victim:
    """A small shard set that is damaged and mended again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}
        with ShardSet(folder, check=True) as shards:
            self.truth: Truth = {item.key: dict(item.images) for item in shards}
            self.facts = {row["key"]: row for row in shards.table.to_pylist()}

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def mend(self) -> None:
        for name, data in self.files.items():
            self.write(name, data)

    def read(self, *, facts: bool) -> int:
        """Read every tuple; returns how many came back. All are true, with `facts` their columns as well."""
        try:
            # A set that claims to be large is converted into the cache.
            shards = ShardSet(self.folder, check=True, cache_dir=self.folder.parent / "cache")
        except UserError as error:
            assert "\n" not in str(error) and str(error)
            return 0
        count = 0
        with shards:
            assert len(shards) <= 1000
            for position in range(len(shards)):
                try:
                    item = shards[position]
                except UserError as error:
                    assert "\n" not in str(error) and str(self.folder) in str(error)
                    continue
                count += 1
                for quality, image in item.images.items():
                    assert np.array_equal(image, self.truth[item.key][quality]), (item.key, quality)
                if facts:
                    row = self.facts[item.key]
                    told = (item.label, item.method, item.dataset, item.video, item.frame, item.face, item.split)
                    assert told == tuple(
                        row[name] for name in ("label", "method", "dataset", "video", "frame", "face", "split")
                    )
        return count

    def verified(self, level: str = "full") -> int:
        """Number of faults; an error that says it in one line counts as one."""
        try:
            report = verify(self.folder, level=level, workers=1, progress=False)
        except UserError as error:
            assert "\n" not in str(error) and str(error)
            return 1
        assert report.fault_count >= len(report.faults) and len(report.faults) <= 100
        assert all("\n" not in fault.fault and fault.shard for fault in report.faults)
        json.dumps(report.as_dict())
        # A fault of the program itself would be reported as one of the shard.
        for kind in ("AttributeError", "NameError", "AssertionError", "UnboundLocalError", "TypeError", "IndexError"):
            assert not any(f"cannot be checked ({kind}" in fault.fault for fault in report.faults), report.faults
        return report.fault_count


# Of raw pixels no decoder notices anything: the harder one is always tried.
@pytest.fixture(scope="module", params=["raw", pytest.param("png", marks=pytest.mark.slow)])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    folder = tmp_path_factory.mktemp("fuzz")
    faces = made_packs(
        folder / "faces", {"000": "train"}, methods=("original", "Deepfakes"), frames=3, size_px=16,
        qualities=("raw", "c40"),
    )  # fmt: skip
    return Victim(made_shards(folder / "set", faces, tuples_per_shard=4, codec=request.param))


def run(check: Callable[..., None], count: int, *strategies: st.SearchStrategy) -> None:
    """Call `check` with so many examples, the same ones in every run."""
    wanted = settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    wanted(given(*strategies)(check))()


@st.composite
def damages(draw: st.DrawFn, size: int) -> Callable[[bytes], bytes]:
    """One to three changes of a file of some size: flips, cuts, insertions, losses, swaps, zeros."""
    place = st.one_of(
        st.integers(0, size - 1),
        st.builds(
            lambda block, into: min(size - 1, block * 512 + into), st.integers(0, size // 512), st.integers(0, 511)
        ),
    )
    kinds = st.sampled_from(["flip", "flip", "cut", "insert", "lose", "swap", "zero"])
    changes = draw(
        st.lists(
            st.tuples(kinds, place, place, st.integers(1, 255), st.binary(min_size=1, max_size=600)),
            min_size=1,
            max_size=3,
        )
    )

    def damage(data: bytes) -> bytes:
        for kind, a, b, mask, extra in changes:
            low, high = sorted((a, b))
            if kind == "flip" and a < len(data):
                data = data[:a] + bytes([data[a] ^ mask]) + data[a + 1 :]
            elif kind == "cut":
                data = data[:a]
            elif kind == "insert":
                data = data[:a] + extra + data[a:]
            elif kind == "lose":
                data = data[:low] + data[high:]
            elif kind == "swap":
                length = min(512, high - low, len(data) - high)
                if length > 0:
                    first, second = data[low : low + length], data[high : high + length]
                    data = data[:low] + second + data[low + length : high] + first + data[high + length :]
            elif kind == "zero":
                data = data[:a] + bytes(len(data[a : a + len(extra)])) + data[a + len(extra) :]
        return data

    return damage


@examples
@pytest.mark.parametrize("name", [f"{SHARD}.tar", f"{SHARD}.parquet", "shards.json", "shard.json"])
def test_damaged_bytes(victim: Victim, name: str, examples: int) -> None:
    original = victim.files[name]

    def check(damage: Callable[[bytes], bytes]) -> None:
        data = damage(original)
        victim.write(name, data)
        try:
            count = victim.read(facts=name != "shards.json")
            faults = victim.verified()
            if data == original:
                assert (count, faults) == (6, 0)
            elif not name.endswith(".json"):
                assert faults > 0
                assert victim.verified("hashes") > 0
            elif name == "shard.json":
                assert count == 6 and (faults > 0) == (_parsed(data) != _parsed(original))
        finally:
            victim.mend()

    run(check, examples, damages(len(original)))
    assert victim.read(facts=True) == 6 and victim.verified() == 0


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@examples
def test_a_damaged_tar_whose_hashes_were_made_right_again(victim: Victim, examples: int) -> None:
    """As one who wants to harm would do it: the hashes of the files agree, so the content has to be looked at."""
    name = f"{SHARD}.tar"
    original = victim.files[name]
    end = max(row["offset"] + row["length"] for row in rows_of(victim.folder))

    def check(damage: Callable[[bytes], bytes]) -> None:
        data = damage(original)
        victim.write(name, data)
        refresh(victim.folder)
        try:
            victim.read(facts=True)
            # How many zeros follow the end of the archive is nobody's concern.
            same = data[:end] == original[:end] and len(data) >= end + 1024 and not any(data[end:])
            assert (victim.verified() == 0) == same
        finally:
            victim.mend()

    run(check, examples, damages(len(original)))


ODD = st.sampled_from(
    [None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 1e308, math.inf, math.nan, 0.5, "", "x", "raw",
     "c40", "train", "test", "../x.tar", "/etc/passwd", "a/b", "..", ".", "a\0b", "\ud800", "x\ny", "x" * 5000,
     "0" * 64, "1.9", "2.0", "1.2.3", [], {}, [[]], [None], {"a": 1}, ["raw", "raw"], ["c40", "raw"], ["raw"], ["../x"],
     "DEEP"]
)  # fmt: skip


@st.composite
def odd_jsons(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON text in which one to three values are odd, missing or there twice."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        where, inside = None, value
        while isinstance(inside, dict | list) and len(inside) and (where is None or draw(st.integers(0, 3))):
            where = inside
            at = draw(st.sampled_from(sorted(inside)) if isinstance(inside, dict) else st.integers(0, len(inside) - 1))
            inside = inside[at]
        if where is None:
            break
        what = draw(st.sampled_from(["odd", "odd", "odd", "lose", "twice", "more"]))
        if what == "odd":
            where[at] = copy.deepcopy(draw(ODD))
        elif what == "lose":
            del where[at]
        elif isinstance(where, list):
            where.append(copy.deepcopy(inside if what == "twice" else draw(ODD)))
        else:
            where["unknown"] = copy.deepcopy(draw(ODD))
    return json.dumps(value).replace('"DEEP"', "[" * 100_000 + "]" * 100_000).encode()


@examples
@pytest.mark.parametrize("name", ["shards.json", "shard.json"])
def test_odd_values_in_json(victim: Victim, name: str, examples: int) -> None:
    def check(data: bytes) -> None:
        victim.write(name, data)
        try:
            victim.read(facts=True)
            victim.verified("quick")
            victim.verified()
        finally:
            victim.mend()

    run(check, examples, odd_jsons(json.loads(victim.files[name])))


NUMBERS = [-1, 0, 1, 3, 511, 512, 1000, 2**15, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63)]
TEXTS = [
    "",
    "..",
    "../x",
    "a.b",
    "/a",
    "a//b",
    "x" * 300,
    "x" * 5000,
    "é",
    "a\0b",
    "a\nb",
    "original",
    "test",
    "0" * 64,
]


@st.composite
def odd_tables(draw: st.DrawFn, table: pa.Table) -> tuple[pa.Table, str | None]:
    """(an index with one odd cell, column or order of rows, the column if one cell of it was changed)."""
    name = draw(st.sampled_from(table.column_names))
    number, row = table.column_names.index(name), draw(st.integers(0, len(table) - 1))
    what = draw(st.sampled_from(["cell"] * 6 + ["drop", "type", "twice", "rows", "nulls", "rename"]))
    column = table[name].to_pylist()
    if what == "cell":
        kind = table.schema.field(name).type
        odd = {pa.string(): TEXTS, pa.bool_(): [True, False], pa.float32(): [0.0, math.nan]}.get(kind, NUMBERS)
        value = draw(st.one_of(st.none(), st.sampled_from(odd), st.sampled_from(column)))
        if pa.types.is_integer(kind) and value is not None:
            most = 2 ** (kind.bit_width - 1)
            value = min(max(value, -most), most - 1)
        column[row] = value
        return table.set_column(number, table.schema.field(name), pa.array(column, kind)), name
    if what == "drop":
        return table.drop_columns([name]), None
    if what == "type":
        odd = draw(
            st.sampled_from([pa.array([[1]] * 4), pa.array([b"x"] * 4), pa.array([0.5] * 4), pa.array(["1"] * 4)])
        )
        return table.set_column(number, name, odd[: len(table)]), None
    if what == "twice":
        return table.append_column(name, table[draw(st.sampled_from(table.column_names))]), None
    if what == "nulls":
        return table.set_column(number, table.schema.field(name), pa.nulls(len(table), table[name].type)), None
    if what == "rename":
        return table.rename_columns([f"{n}x" if n == name else n for n in table.column_names]), None
    order = draw(st.lists(st.integers(0, len(table) - 1), max_size=8))
    return table.take(pa.array(order, pa.int64())), None


@examples
def test_odd_values_in_an_index(victim: Victim, examples: int) -> None:
    file = victim.folder / f"{SHARD}.parquet"
    original = pq.read_table(file)

    def check(made: tuple[pa.Table, str | None]) -> None:
        table, changed = made
        pq.write_table(table, file)
        refresh(victim.folder)
        if len(table) != len(original):
            change_info(victim.folder, lambda info: info["shardlist"][0].update(nsamples=len(table)))
        try:
            victim.read(facts=False)
            victim.verified("quick")
            faults = victim.verified()
            if changed in TOLD_TWICE and not table.equals(original):
                assert faults > 0, changed
        finally:
            victim.mend()

    run(check, examples, odd_tables(original))


def test_an_index_that_unpacks_to_gigabytes_is_refused(victim: Victim) -> None:
    """One text of 10 MB, named by every row in a few bytes."""
    file = victim.folder / f"{SHARD}.parquet"
    table = pq.read_table(file)
    many = pa.concat_tables([table] * 2000)
    number = many.column_names.index("video")
    names = pa.DictionaryArray.from_arrays(pa.array([0] * len(many), pa.int32()), pa.array(["x" * 10_000_000]))
    pq.write_table(many.set_column(number, "video", names), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 1_000_000
    refresh(victim.folder)
    change_info(victim.folder, lambda info: info["shardlist"][0].update(nsamples=len(many)))
    try:
        with pytest.raises(UserError, match=rf"{SHARD}\.parquet: its texts take 80\d+ bytes, over \d+ for 8000 tuples"):
            ShardSet(victim.folder)
        assert any(
            f"{SHARD}.parquet" in fault.fault and "over" in fault.fault for fault in verify(victim.folder).faults
        )
    finally:
        victim.mend()


def test_names_outside_of_the_folder_are_never_opened(victim: Victim, tmp_path: Path) -> None:
    outside = tmp_path / "outside.tar"
    shutil.copy(victim.folder / f"{SHARD}.tar", outside)
    sha256 = hashlib.sha256(outside.read_bytes()).hexdigest()
    for url in (f"../{outside.parent.name}/outside.tar", str(outside), f"file://{outside}", "..", "a/../b.tar", ""):
        for kind in ("url", "index"):
            change_info(victim.folder, lambda info: info["shardlist"][0].update({kind: url, "sha256": sha256}))
            try:
                for read in (ShardSet, verify):
                    with pytest.raises(UserError, match=rf"shardlist\.0\.{kind} is '"):
                        read(victim.folder)
            finally:
                victim.mend()
