"""shard, ShardSet and verify on a real shard set, whole and damaged."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from qadprep.config import ShardConfig
from qadprep.errors import UserError
from qadprep.locks import reader, sole_user
from qadprep.pack import read_pack
from qadprep.shard import shard
from qadprep.shardset import ShardSet, decode_image, pixel_hash
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
    assert "| train | ffpp | original | real | 2 | 16 | 16 | 16 | 16 |" in (shards_master / "README.md").read_text()


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


def test_refusals(shards: Path, faces_master: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was written with seed = 0, now 3"):
        shard(faces_master, shards, ShardConfig(tuples_per_shard=40, seed=3))
    shard(faces_master, shards, ShardConfig(tuples_per_shard=100, seed=3), overwrite=True)
    assert verify(shards).faults == [] and len(ShardSet(shards).shards) == 2
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


def test_a_killed_writer_leaves_no_shard_set(shards: Path, faces_master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qadprep.card.write_card", fail)
    with pytest.raises(KeyboardInterrupt):
        shard(faces_master, shards, ShardConfig(tuples_per_shard=40), overwrite=True)
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
