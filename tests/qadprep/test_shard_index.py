"""The index in memory and in a mapped file: the same answers, whatever happened to the file."""

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.sets import made_shards
from helpers.shard_damage import change_info, rows_of

from qadprep.errors import UserError
from qadprep.shard_format import index_schema
from qadprep.shardset import ShardSet, pixel_hash


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of over 10 tuples count as large."""
    monkeypatch.setattr("qadprep.shardset.IN_MEMORY_TUPLES", 10)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def facts_of(shards: ShardSet) -> list[tuple]:
    return [
        (item.key, item.label, item.method, item.video, item.frame, item.face, item.split,
         *(pixel_hash(image) for image in item.images.values()))
        for item in shards
    ]  # fmt: skip


def files(cache: Path, suffix: str) -> list[Path]:
    return sorted(file for file in cache.iterdir() if file.suffix == suffix)


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_a_mapped_index_says_the_same(made_set: Path, cache: Path, mapped: None, split: str | None,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("qadprep.shardset.IN_MEMORY_TUPLES", 1000)
    plain = ShardSet(made_set, split, cache_dir=cache)
    expected, keys = facts_of(plain), plain.table["key"].to_pylist()
    assert plain._index.in_memory and not cache.exists()
    monkeypatch.setattr("qadprep.shardset.IN_MEMORY_TUPLES", 10)
    first = ShardSet(made_set, split, cache_dir=cache)
    assert not first._index.in_memory and len(files(cache, ".index")) == 1
    for file in made_set.glob("*.parquet"):  # from here on the file has to do
        file.unlink()
    second = ShardSet(made_set, split, cache_dir=cache)
    for shards in (first, second):
        assert facts_of(shards) == expected and shards.table.equals(plain.table)
        assert shards.to_arrow().equals(plain.to_arrow())
        assert [shards.position_of(key) for key in keys] == list(range(len(keys)))
        assert "ffpp/original/000/000001_0" not in shards
    assert len(files(cache, ".keys")) == 1
    copy = pickle.loads(pickle.dumps(second))
    assert facts_of(copy) == expected and len(pickle.dumps(second)) < len(pickle.dumps(plain))


def test_splits_share_the_file_and_not_the_keys(made_set: Path, cache: Path, mapped: None) -> None:
    sets = [ShardSet(made_set, split, cache_dir=cache) for split in (None, "train", "val")]
    key = sets[2].table["key"][0].as_py()
    assert [key in shards for shards in sets] == [True, False, True]
    assert len(files(cache, ".index")) == 1 and len(files(cache, ".keys")) == 3


def test_a_set_written_anew_gets_a_file_of_its_own(made_set: Path, made_faces_master: Path, cache: Path, mapped: None,
                                                   tmp_path: Path) -> None:  # fmt: skip
    before = ShardSet(made_set, cache_dir=cache).table["key"].to_pylist()
    other = made_shards(tmp_path / "other", made_faces_master, seed=7)
    for file in other.iterdir():
        (made_set / file.name).write_bytes(file.read_bytes())
    after = ShardSet(made_set, cache_dir=cache).table["key"].to_pylist()
    assert after == ShardSet(other).table["key"].to_pylist() and sorted(after) == sorted(before) and after != before
    assert len(files(cache, ".index")) == 2


def test_damage_anywhere_in_the_file_is_noticed(made_set: Path, cache: Path, mapped: None) -> None:
    shards = ShardSet(made_set, cache_dir=cache)
    expected, table, keys = facts_of(shards), shards.table.combine_chunks(), shards.table["key"].to_pylist()
    assert shards.position_of(keys[7]) == 7
    (index,) = files(cache, ".index")
    (kept,) = files(cache, ".keys")
    whole = {index: index.read_bytes(), kept: kept.read_bytes()}
    order = random.Random(0)
    damages = [lambda data: b"", lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: data + b"x",
               lambda data: b"x" * len(data)]  # fmt: skip
    for damage in damages:
        for file, data in whole.items():
            file.unlink(missing_ok=True)  # an open mapping keeps the old file
            file.write_bytes(damage(data))
        again = ShardSet(made_set, cache_dir=cache)
        assert facts_of(again) == expected and [again.position_of(key) for key in keys] == list(range(60))
        assert {file: file.read_bytes() for file in whole} == whole  # made anew
    for _ in range(25):
        for file, data in whole.items():
            changed = bytearray(data)
            changed[order.randrange(len(data))] ^= 1 << order.randrange(8)
            file.unlink(missing_ok=True)
            file.write_bytes(changed)
        again = ShardSet(made_set, cache_dir=cache)
        assert again.table.combine_chunks().equals(table)
        position = order.randrange(60)
        assert again.position_of(keys[position]) == position and again[position].key == keys[position]


def test_a_file_deleted_behind_a_sent_set(made_set: Path, cache: Path, mapped: None) -> None:
    shards = ShardSet(made_set, cache_dir=cache)
    sent = pickle.dumps(shards)
    files(cache, ".index")[0].unlink()
    assert facts_of(pickle.loads(sent)) == facts_of(shards)
    assert len(files(cache, ".index")) == 1


def test_where_nothing_can_be_kept_memory_has_to_do(made_set: Path, tmp_path: Path, mapped: None,
                                                    capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    shards = ShardSet(made_set, cache_dir=tmp_path / "file" / "cache")
    assert len(facts_of(shards)) == 60 and shards._index.in_memory
    words = capsys.readouterr().err
    assert words.count("\n") == 1 and "cannot hold the index of a large set" in words and "file/cache" in words


def test_the_default_folder(made_set: Path, tmp_path: Path, mapped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert len(ShardSet(made_set)) == 60
    assert len(files(tmp_path / "xdg" / "qadprep" / "index", ".index")) == 1


def test_sets_without_hashes_of_their_indexes_stay_in_memory(made_set: Path, cache: Path, mapped: None) -> None:
    change_info(made_set, lambda info: info["shardlist"][0].pop("index_sha256"))
    assert ShardSet(made_set, cache_dir=cache)._index.in_memory and not cache.exists()


def test_the_least_used_files_make_room(made_faces_master: Path, cache: Path, mapped: None, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    sets = [made_shards(tmp_path / f"set{seed}", made_faces_master, seed=seed) for seed in range(3)]
    ShardSet(sets[0], cache_dir=cache)
    (one,) = files(cache, ".index")
    monkeypatch.setattr("qadprep.mapped_index.CACHE_BYTES", int(2.5 * one.stat().st_size))
    ShardSet(sets[1], cache_dir=cache)
    (other,) = set(files(cache, ".index")) - {one}
    for second, file in enumerate((one, other)):  # clocks of file systems are coarse
        os.utime(file, (second, second))
    ShardSet(sets[0], cache_dir=cache)  # used again: the other one is the older now
    ShardSet(sets[2], cache_dir=cache)
    assert len(files(cache, ".index")) == 2 and one.exists() and not other.exists()


def _open_late(folder: Path, cache: Path, log: Path) -> list[str]:
    import qadprep.shardset
    from qadprep import mapped_index

    qadprep.shardset.IN_MEMORY_TUPLES = 10
    convert = mapped_index._convert

    def logged(*arguments: object) -> None:
        with log.open("a") as file:
            file.write("made\n")
        convert(*arguments)

    mapped_index._convert = logged
    return [item.key for item in ShardSet(folder, cache_dir=cache)]


def test_processes_that_want_it_at_once_make_it_once(made_shards_master: Path, cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [pool.apply_async(_open_late, (made_shards_master, cache, log)) for _ in range(2)]
        keys = [job.get(60) for job in jobs]
    assert keys[0] == keys[1] == ShardSet(made_shards_master).table["key"].to_pylist()
    assert log.read_text() == "made\n" and len(files(cache, ".index")) == 1
    assert not list(cache.glob(".*.tmp"))


@pytest.mark.parametrize("large", [False, True])
def test_keys_with_the_same_hash(made_set: Path, cache: Path, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qadprep.shardset.IN_MEMORY_TUPLES", 10 if large else 1000)
    monkeypatch.setattr("qadprep.shard_index.hash_of", lambda key: len(key) % 2 << 63)
    shards = ShardSet(made_set, cache_dir=cache)
    keys = shards.table["key"].to_pylist()
    assert [shards.position_of(key) for key in keys] == list(range(60))
    assert "ffpp/original/000/000001_0" not in shards


def test_a_key_that_is_there_twice_is_found_at_its_first_place(made_set: Path) -> None:
    for name in ("parquet", "tar"):
        (made_set / f"train-000001.{name}").write_bytes((made_set / f"train-000000.{name}").read_bytes())

    def change(info: dict) -> None:
        second = info["shardlist"][1]
        for name in ("sha256", "index_sha256", "filesize", "md5sum"):
            second[name] = info["shardlist"][0][name]

    change_info(made_set, change)
    row = rows_of(made_set)[11]
    assert ShardSet(made_set).position_of(row["key"]) == 11


def made_index_only(folder: Path, tuples: int, per_shard: int = 1000) -> Path:
    """A set's shards.json and indexes with so many rows; there are no tars."""
    import hashlib

    folder.mkdir(parents=True)
    qualities = ("raw", "c23", "c40")
    schema = index_schema(qualities)
    shardlist, hexes = [], np.array([hashlib.sha256(bytes([n])).hexdigest() for n in range(250)])
    for number in range(tuples // per_shard):
        place = np.arange(per_shard, dtype=np.int64)
        columns: dict[str, object] = {
            "key": [f"ffpp/Deepfakes/{number:06d}_{row % 40:03d}/{row // 40:06d}_0" for row in range(per_shard)],
            "sha256": hexes[(place * 7 + number) % 250],
            "offset": place * 74_752, "length": place * 0 + 74_752, "frame": place // 40, "face": place * 0,
            "label": place * 0 + 1,
        }  # fmt: skip
        for name in ("video", "split", "dataset", "method", "group", "target", "source", "geometry"):
            columns[name] = ["train" if name == "split" else "ffpp"] * per_shard
        for turn, quality in enumerate(qualities):
            columns |= {
                f"{quality}_offset": place * 74_752 + 512 + turn * 24_576,
                f"{quality}_size": place * 0 + 24_000,
            }
            columns[f"{quality}_pixels_sha256"] = hexes[(place + turn) % 250]
        arrays = [
            pa.array(columns[field.name], type=field.type) if field.name in columns else pa.nulls(per_shard, field.type)
            for field in schema
        ]
        file = folder / f"train-{number:06d}.parquet"
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd")
        shardlist.append(
            {"url": f"train-{number:06d}.tar", "index": file.name, "split": "train", "nsamples": per_shard,
             "sha256": hashlib.sha256(file.name.encode()).hexdigest(),
             "index_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        )  # fmt: skip
    info = {"format_version": "1.2", "qualities": qualities, "codec": "png", "size_px": 128, "shardlist": shardlist}
    (folder / "shards.json").write_text(json.dumps(info))
    return folder


MEASURE = """
import json, sys
from qadprep.shardset import ShardSet

def kib(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

small = ShardSet(sys.argv[3], cache_dir=sys.argv[2])  # first, so that libraries are loaded
assert small.where(0) and small.position_of(small[5].key) == 5
before, before_peak = kib("RssAnon"), kib("VmHWM")
shards = ShardSet(sys.argv[1], cache_dir=sys.argv[2])
count = len(shards)
opened, peak = kib("RssAnon") - before, kib("VmHWM") - before_peak
for position in range(0, count, 997):
    shards.where(position)
read = kib("RssAnon") - before
key = shards._index.rows(count // 1000 - 1).key[17].decode()
assert shards.position_of(key) == count - 1000 + 17
print(json.dumps({"opened": opened, "peak": peak, "read": read, "found": kib("RssAnon") - before}))
"""


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("label", 100, "label '100'"), ("split", "x/../../y", "split 'x/../../y'"), ("key", "a/../b", "key 'a/../b'")],
)
def test_cells_that_cannot_be_right_are_refused(made_set: Path, column: str, value: object, said: str) -> None:
    """Also where the index has the hash that `shards.json` says."""
    info = json.loads((made_set / "shards.json").read_text())
    entry = info["shardlist"][0]
    rows = pq.read_table(made_set / entry["index"])
    cells = rows[column].to_pylist()
    cells[3] = value
    place = rows.schema.get_field_index(column)
    rows = rows.set_column(place, column, pa.array(cells, rows.schema.field(column).type))
    pq.write_table(rows, made_set / entry["index"])
    entry["index_sha256"] = hashlib.sha256((made_set / entry["index"]).read_bytes()).hexdigest()
    (made_set / "shards.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=f"{entry['index']}: {said} cannot be right"):
        ShardSet(made_set)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tuples(made_shards_master: Path, cache: Path, tmp_path: Path) -> None:
    grown = {}
    for tuples in (100_000, 1_000_000):
        folder = made_index_only(tmp_path / str(tuples), tuples)
        for _ in range(2):  # the first process converts the indexes
            words = [sys.executable, "-c", MEASURE, str(folder), str(cache), str(made_shards_master)]
            run = subprocess.run(words, capture_output=True, text=True, check=True)
            grown[tuples] = json.loads(run.stdout)
    # KiB. A table of a million rows in memory would be some 400,000, a dictionary of their keys some 150,000; what
    # grows here are the views of each shard that was read from.
    small, large = grown[100_000], grown[1_000_000]
    assert large["opened"] < 8_000 and large["peak"] < 8_000, grown
    assert large["read"] - small["read"] < 40_000 and large["found"] - large["read"] < 4_000, grown
