"""shard, ShardSet and verify on a real shard set, whole and damaged."""

import hashlib
import itertools
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qadprep.config import ShardConfig
from qadprep.errors import UserError
from qadprep.locks import reader, sole_user
from qadprep.pack import read_pack
from qadprep.shard import shard
from qadprep.shardset import ShardError, ShardSet, decode_image, pixel_hash
from qadprep.verify import verify

QUALITIES = ("raw", "c23", "c40")


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_what_was_written(shards_master: Path) -> None:
    info = json.loads((shards_master / "shards.json").read_text())
    assert (info["__kind__"], info["wids_version"]) == ("wids-shard-index-v1", 1)
    assert [(s["url"], s["nsamples"], s["split"]) for s in info["shardlist"]] == [
        ("train-000000.tar", 40, "train"),
        ("train-000001.tar", 8, "train"),
        ("test-000000.tar", 40, "test"),
        ("test-000001.tar", 8, "test"),
    ]
    for entry in info["shardlist"]:
        data = (shards_master / entry["url"]).read_bytes()
        assert len(data) == entry["filesize"]
        assert hashlib.md5(data).hexdigest() == entry["md5sum"]
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert "| train | original | 0 (real) | 16 |" in (shards_master / "README.md").read_text()


def test_two_runs_give_the_same_bytes(faces_master: Path, shards_master: Path, tmp_path: Path) -> None:
    shard(faces_master, tmp_path / "again", ShardConfig(tuples_per_shard=40))
    assert digest(tmp_path / "again") == digest(shards_master)
    # From a copy of the packs as well: nothing depends on times or folder order.
    shutil.copytree(faces_master, tmp_path / "copy")
    shard(tmp_path / "copy", tmp_path / "third", ShardConfig(tuples_per_shard=40))
    assert digest(tmp_path / "third") == digest(shards_master)


def test_order_is_a_shuffle_by_tuple(faces_master: Path, shards_master: Path, tmp_path: Path) -> None:
    shard(faces_master, tmp_path / "seed1", ShardConfig(tuples_per_shard=1000, seed=1))
    zero, one = ShardSet(shards_master, "train"), ShardSet(tmp_path / "seed1", "train")
    a, b = zero.table["key"].to_pylist(), one.table["key"].to_pylist()
    assert sorted(a) == sorted(b) and a != b and a != sorted(a)
    videos = [key.rsplit("/", 1)[0] for key in a]
    assert sum(x == y for x, y in itertools.pairwise(videos)) < 20  # sorted by clip it would be 42
    assert len(one.shards) == 1


def test_stock_webdataset_reads_them(shards_master: Path) -> None:
    import webdataset as wds

    for entry in ShardSet(shards_master).shards:
        indexed = ShardSet(shards_master, entry["split"])
        expected = {item.key: item for item in indexed}
        samples = list(wds.WebDataset(str(shards_master / entry["url"]), shardshuffle=False))
        assert len(samples) == entry["nsamples"]
        for sample in samples:
            item = expected[sample["__key__"]]
            facts = json.loads(sample["json"])
            assert {name for name in sample if not name.startswith("__")} == {f"{q}.png" for q in QUALITIES} | {"json"}
            assert (facts["label"], facts["method"], facts["video"]) == (item.label, item.method, item.video)
            for quality in QUALITIES:
                np.testing.assert_array_equal(decode_image(sample[f"{quality}.png"], 64), item.images[quality])
            assert np.array(facts["affine"]).shape == (6,)
        decoded = next(iter(wds.WebDataset(str(shards_master / entry["url"]), shardshuffle=False).decode("rgb8")))
        np.testing.assert_array_equal(decoded["raw.png"], expected[decoded["__key__"]].images["raw"])


def test_tuples_are_the_packs_pixels(faces_master: Path, shards_master: Path) -> None:
    hashes = {}
    for path in sorted(faces_master.glob("*/*.parquet")):
        for row in read_pack(path).table.to_pylist():
            key = f"ffpp/{row['method']}/{row['name']}/{row['frame']:06d}_{row['face']}"
            hashes[key] = [row[f"{quality}_pixels_sha256"] for quality in QUALITIES]
    shards = ShardSet(shards_master)
    assert len(shards) == len(hashes) == 96 and shards.splits == {"train": 48, "test": 48}
    for item in shards:
        assert [pixel_hash(image) for image in item.images.values()] == hashes[item.key]
        assert tuple(item.images) == QUALITIES == shards.qualities
        assert item.label == (item.method != "original")


def test_reading_by_position(shards_master: Path) -> None:
    shards = ShardSet(shards_master, "test")
    assert shards[-1].key == shards[47].key == shards.table["key"][47].as_py()
    for wrong in (48, -49):
        with pytest.raises(IndexError, match="of 48"):
            shards[wrong]
    copy = pickle.loads(pickle.dumps(shards))  # as a loader sends it to spawned workers
    assert copy[3].key == shards[3].key and copy.fingerprint == shards.fingerprint
    shards.close()
    assert shards[0].key == copy[0].key  # opens again


def _key_of(shards: ShardSet, index: int) -> str:
    return shards[index].key


def test_forked_and_spawned_readers_agree(shards_master: Path) -> None:
    shards = ShardSet(shards_master)
    shards[0]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            keys = pool.starmap(_key_of, [(shards, index) for index in range(0, 96, 7)])
        assert keys == [shards[index].key for index in range(0, 96, 7)]


def test_verify_of_a_whole_set(shards_master: Path) -> None:
    report = verify(shards_master)
    assert (report.shards, report.tuples, report.faults) == (4, 96, [])


Damage = Callable[[Path, dict], None]


def _flip(column: str, into: int) -> Damage:
    def damage(folder: Path, row: dict) -> None:
        data = bytearray((folder / "train-000000.tar").read_bytes())
        data[row[column] + into] ^= 0x20
        (folder / "train-000000.tar").write_bytes(data)

    return damage


def _flip_last(folder: Path, row: dict) -> None:
    _flip("offset", row["length"] - 1)(folder, row)


def _cut(column: str, into: int) -> Damage:
    def damage(folder: Path, row: dict) -> None:
        data = (folder / "train-000000.tar").read_bytes()
        (folder / "train-000000.tar").write_bytes(data[: row[column] + into])

    return damage


def _swap_members(folder: Path, row: dict) -> None:
    data = bytearray((folder / "train-000000.tar").read_bytes())
    a, b = row["offset"], row["c23_offset"] - 512
    c = row["c40_offset"] - 512
    data[a:c] = data[b:c] + data[a:b]
    (folder / "train-000000.tar").write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a byte in a picture", _flip("c40_offset", 300)),
        ("a byte in the json", _flip("json_offset", 10)),
        ("a byte in the padding after the json", _flip_last),
        ("a byte in a header", _flip("offset", 5)),
        ("a byte in a header's size", _flip("offset", 130)),
        ("cut at a header", _cut("offset", 0)),
        ("cut in a header", _cut("offset", 200)),
        ("cut in the data", _cut("raw_offset", 100)),
        ("members in another order", _swap_members),
    ],
)
def test_verify_names_shard_and_key_of_any_damage(shards: Path, name: str, damage: Damage) -> None:
    del name  # of the case, for the test's id
    row = pq.read_table(shards / "train-000000.parquet").to_pylist()[20]
    damage(shards, row)
    command = [sys.executable, "-m", "qadprep", "verify", str(shards), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    faults = json.loads(run.stdout)["faults"]
    assert all(fault["shard"] == "train-000000.tar" for fault in faults)
    assert "sha256" in faults[0]["fault"]
    assert any(fault["key"] == row["key"] for fault in faults), faults
    table = subprocess.run([*command[:-1]], capture_output=True, text=True, check=False)
    assert table.returncode == 1 and "train-000000.tar" in table.stdout


def test_reading_a_damaged_tuple_names_it(shards: Path) -> None:
    row = pq.read_table(shards / "train-000000.parquet").to_pylist()[20]
    _flip("offset", 5)(shards, row)
    with ShardSet(shards, "train") as reader:
        reader[19]
        with pytest.raises(ShardError, match=rf"train-000000\.tar: {row['key']} at byte {row['offset']}: .* disagree"):
            reader[20]
    (shards / "train-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000001\.tar: .* incomplete"):
        ShardSet(shards, "train")[47]


def test_verify_sees_missing_and_surplus_files(shards: Path) -> None:
    (shards / "test-000001.tar").unlink()
    (shards / "test-000007.tar").write_bytes(b"old")
    faults = {(shard, fault.split(":")[0]) for shard, _, fault in verify(shards).faults}
    assert ("test-000001.tar", "test-000001.tar") in faults
    assert ("test-000007.tar", "is not in shards.json") in faults


def test_verify_sees_an_index_of_another_run(shards: Path, faces_master: Path, tmp_path: Path) -> None:
    shard(faces_master, tmp_path / "other", ShardConfig(tuples_per_shard=40, seed=5))
    shutil.copy(tmp_path / "other" / "train-000000.parquet", shards / "train-000000.parquet")
    faults = verify(shards).faults
    assert any("train-000000.parquet: sha256" in fault for _, _, fault in faults)
    assert any(key and "expected" in fault for _, key, fault in faults)


def test_refusals(shards: Path, faces_master: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards\.json there"):
        ShardSet(tmp_path)
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        ShardSet(shards, "val")
    with pytest.raises(UserError, match="was written with seed = 0, now 3"):
        shard(faces_master, shards, ShardConfig(tuples_per_shard=40, seed=3))
    shard(faces_master, shards, ShardConfig(tuples_per_shard=100, seed=3), overwrite=True)
    assert verify(shards).faults == [] and len(ShardSet(shards).shards) == 2
    info = json.loads((shards / "shards.json").read_text())
    (shards / "shards.json").write_text(json.dumps(info | {"format_version": "2.0"}))
    with pytest.raises(UserError, match=r"format 2\.0 is newer than 1\.1; upgrade qadprep"):
        ShardSet(shards)
    outside = [dict(entry, url="../../etc/passwd") for entry in info["shardlist"]]
    (shards / "shards.json").write_text(json.dumps(info | {"shardlist": outside}))
    with pytest.raises(UserError, match="not a plain file name"):
        ShardSet(shards)
    (shards / "shards.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        ShardSet(shards)
    with pytest.raises(UserError, match="no face packs there"):
        shard(tmp_path, tmp_path / "out", ShardConfig())


def test_other_peoples_files_are_left_alone(faces_master: Path, tmp_path: Path) -> None:
    for name in ("README.md", "train-000000.tar", "backup-2024.tar"):
        (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            shard(faces_master, tmp_path, ShardConfig(), overwrite=overwrite)
    assert (tmp_path / "train-000000.tar").read_text() == (tmp_path / "README.md").read_text() == "mine"


def test_an_extraction_that_did_not_end_is_not_sharded(faces_master: Path, tmp_path: Path) -> None:
    shutil.copytree(faces_master, tmp_path / "faces")
    (tmp_path / "faces" / "summary.json").unlink()
    with pytest.raises(UserError, match="did not come to its end"):
        shard(tmp_path / "faces", tmp_path / "out", ShardConfig())


def test_packs_are_read_beside_other_readers_and_not_beside_a_writer(faces_master: Path, tmp_path: Path) -> None:
    shutil.copytree(faces_master, tmp_path / "faces")
    before = sorted((tmp_path / "faces").rglob("*"))
    with reader(tmp_path / "faces"):
        assert shard(tmp_path / "faces", tmp_path / "out", ShardConfig()).shards > 0
    assert sorted((tmp_path / "faces").rglob("*")) == before
    with sole_user(tmp_path / "faces"), pytest.raises(UserError, match="another run is writing there"):
        shard(tmp_path / "faces", tmp_path / "out", ShardConfig())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written to"):
        shard(tmp_path / "faces", tmp_path / "file", ShardConfig())


def test_an_index_that_is_nonsense_is_a_fault(shards: Path) -> None:
    table = pq.read_table(shards / "train-000000.parquet").drop_columns(["raw_offset"])
    pq.write_table(table, shards / "train-000000.parquet")
    assert any("train-000000" in shard for shard, _, _ in verify(shards).faults)


def test_a_killed_writer_leaves_no_shard_set(shards: Path, faces_master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qadprep.card.write_card", fail)
    with pytest.raises(KeyboardInterrupt):
        shard(faces_master, shards, ShardConfig(tuples_per_shard=40))
    with pytest.raises(UserError, match=r"no shards\.json there"):
        ShardSet(shards)


def test_crops_of_another_size_or_kind_are_refused() -> None:
    from qadprep.crops import encode_png

    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(encode_png(image), 32), image)
    with pytest.raises(ValueError, match="picture is 32x32, expected 64x64"):
        decode_image(encode_png(image), 64)
    with pytest.raises(ValueError, match="not a PNG"):
        decode_image(b"\xff\xd8 a jpeg", 32)
    with pytest.raises(ValueError, match="damaged"):
        decode_image(encode_png(image)[:60], 32)
