"""ShardSet on a set made of known pictures, whole and damaged, in threads and in other processes."""

import json
import multiprocessing
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.sets import GROUPS, METHODS, QUALITIES, made_packs, made_shards, picture
from helpers.shard_damage import change_index, change_info, change_tar, flipped, refresh, rows_of

from qadprep.codecs import pixel_hash
from qadprep.errors import UserError
from qadprep.shardset import ShardError, ShardSet, Tuple

PER_GROUP, FRAMES, SIZE_PX = 12, 4, 24


def true_pictures() -> dict[str, dict[str, np.ndarray]]:
    """Key -> quality -> the picture that `made_packs` put there, made again."""
    found = {}
    for number, group in enumerate(sorted(GROUPS)):
        for place, method in enumerate(METHODS):
            name = group if method == "original" else f"{group}_{900 + number}"
            for turn in range(FRAMES):
                seed = 1000 * number + 100 * place + turn
                key = f"ffpp/{method}/{name}/{10 * turn:06d}_0"
                found[key] = {quality: picture(seed, SIZE_PX, worse) for worse, quality in enumerate(QUALITIES)}
    return found


def is_true(item: Tuple, truth: dict[str, dict[str, np.ndarray]]) -> bool:
    return all(np.array_equal(item.images[quality], truth[item.key][quality]) for quality in QUALITIES)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def small_shards(made_faces_master: Path, tmp_path: Path) -> Path:
    """The same set in 15 shards of at most 4 tuples."""
    return made_shards(tmp_path / "small", made_faces_master, tuples_per_shard=4)


@pytest.mark.parametrize("codec", ["png", "webp", "raw"])
def test_every_tuple_holds_its_pictures_and_facts(codec: str, made_faces_master: Path, tmp_path: Path) -> None:
    truth = true_pictures()
    with ShardSet(made_shards(tmp_path / "set", made_faces_master, codec=codec), check=True) as shards:
        assert (shards.codec, shards.qualities, shards.size_px) == (codec, QUALITIES, SIZE_PX)
        assert shards.splits == {"train": 36, "val": 12, "test": 12} and len(shards) == 60
        seen = set()
        for item in shards:
            assert tuple(item.images) == QUALITIES and is_true(item, truth)
            assert all(i.shape == (SIZE_PX, SIZE_PX, 3) and i.dtype == np.uint8 for i in item.images.values())
            assert item.key == f"{item.dataset}/{item.method}/{item.video}/{item.frame:06d}_{item.face}"
            assert item.label == (item.method != "original") and item.split == GROUPS[item.video[:3]]
            seen.add(item.key)
        assert seen == set(truth)


def test_positions_and_slices(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master, "train")
    keys = shards.table["key"].to_pylist()
    assert len(shards) == len(keys) == 36
    assert [item.key for item in shards] == keys
    assert shards[-1].key == shards[35].key == shards[np.int64(35)].key == keys[35]
    for cut in (slice(2, 5), slice(None, None, -7), slice(30, 99), slice(5, 5), slice(-3, None)):
        assert [item.key for item in shards[cut]] == keys[cut]
    for wrong in (36, -37):
        with pytest.raises(IndexError, match=rf"tuple {wrong} of 36"):
            shards[wrong]
        with pytest.raises(IndexError):
            shards.where(wrong)
    with pytest.raises(TypeError):
        shards[1.5]
    assert [shards.shard_number(i) for i in (0, 15, 16, 35, -1)] == [0, 0, 1, 2, 2]


def test_by_key(made_shards_master: Path) -> None:
    whole, train = ShardSet(made_shards_master), ShardSet(made_shards_master, "train")
    for position, key in enumerate(whole.table["key"].to_pylist()):
        assert whole.position_of(key) == position and key in whole
        assert (key in train) == (GROUPS[key.split("/")[2][:3]] == "train")
    key = train.table["key"][20].as_py()
    assert train.by_key(key).key == key and pixel_hash(train.by_key(key).images["c40"]) == pixel_hash(
        train[20].images["c40"]
    )
    other = whole.table["key"][59].as_py()
    with pytest.raises(KeyError, match=rf"no tuple '{other}' in .*, split train"):
        train.by_key(other)
    for strange in ("", "ffpp", "ffpp/original/000/000000_1", "\udcff", "x" * 5000):
        assert strange not in whole
    assert 5 not in whole


def test_index_as_arrow(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master)
    table = shards.to_arrow()
    assert table.select(shards.table.column_names).equals(shards.table)
    names = [shards.shards[shards.shard_number(i)]["url"] for i in range(60)]
    assert table["shard"].to_pylist() == names and set(names) == {entry["url"] for entry in shards.shards}
    for number, entry in enumerate(shards.shards):  # a chunk is a shard
        keys = pq.read_table(made_shards_master / entry["index"])["key"].to_pylist()
        assert shards.table["key"].chunk(number).to_pylist() == keys
    assert shards.table["label"].to_numpy().sum() == 40


def test_encoded_files_are_the_tars_bytes(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master, "val")
    data = (made_shards_master / "val-000000.tar").read_bytes()
    for position, row in enumerate(rows_of(made_shards_master, "val-000000")):
        expected = {q: data[row[f"{q}_offset"] : row[f"{q}_offset"] + row[f"{q}_size"]] for q in QUALITIES}
        assert shards.encoded(position) == expected
        views = shards.views(position)
        assert {quality: bytes(view) for quality, view in views.items()} == expected
        assert all(view.readonly for view in views.values())


def test_keys_too_long_for_one_field_of_a_header(tmp_path: Path) -> None:
    group = "g" * 120
    faces = made_packs(tmp_path / "faces", {group: "train"}, frames=2, size_px=16)
    shards = ShardSet(made_shards(tmp_path / "set", faces))
    assert len(shards) == 6 and all(len(item.key) > 130 and item.video.startswith(group) for item in shards)
    keys = shards.table["key"].to_pylist()
    assert [shards.position_of(key) for key in keys] == list(range(6))


def test_pickled_and_closed(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master, "test")
    first = shards[3].key
    copy = pickle.loads(pickle.dumps(shards))  # as a loader sends it to spawned workers
    assert copy[3].key == first and copy.fingerprint == shards.fingerprint and copy.table.equals(shards.table)
    assert copy.position_of(first) == 3
    shards.close()
    assert shards._files.open_handles == 0 and shards[3].key == first and shards._files.open_handles == 1


def _pixels(shards: ShardSet, position: int) -> tuple[str, str, int]:
    item = shards[position]
    return item.key, pixel_hash(item.images["c23"]), os.getpid()


def test_forked_and_spawned_readers_agree(small_shards: Path) -> None:
    shards = ShardSet(small_shards)
    positions = random.Random(0).sample(range(60), 40)
    expected = [_pixels(shards, position)[:2] for position in positions]
    for method, processes in (("fork", 2), ("spawn", 1)):
        with multiprocessing.get_context(method).Pool(processes) as pool:
            found = pool.starmap(_pixels, [(shards, position) for position in positions], chunksize=5)
        assert [result[:2] for result in found] == expected
        assert os.getpid() not in {result[2] for result in found}


def _in_child(shards: ShardSet, positions: list[int], pipe: Connection) -> None:
    pipe.send([_pixels(shards, position)[:2] for position in positions])


def test_a_fork_while_threads_read(small_shards: Path) -> None:
    """Locks and handles of the parent's threads must not stop or mislead a child."""
    shards = ShardSet(small_shards)
    shards._files._most_handles, shards._files._many = 2, True  # so that the lock is taken all the time
    expected = [_pixels(shards, position)[:2] for position in range(60)]
    busy = True

    def read_on(seed: int) -> int:
        order = random.Random(seed)
        wrong = 0
        while busy:
            position = order.randrange(60)
            wrong += _pixels(shards, position)[:2] != expected[position]
        return wrong

    context = multiprocessing.get_context("fork")
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_on, seed) for seed in range(4)]
        try:
            for _ in range(5):
                here, there = context.Pipe(duplex=False)
                child = context.Process(target=_in_child, args=(shards, list(range(60)), there))
                child.start()
                assert here.poll(60) and here.recv() == expected
                child.join(60)
                assert child.exitcode == 0
        finally:
            busy = False
        assert [reader.result() for reader in readers] == [0] * 4


def test_many_threads_and_few_handles(small_shards: Path) -> None:
    truth = true_pictures()
    shards = ShardSet(small_shards)
    shards._files._most_handles, shards._files._many = 3, True
    most: list[int] = []

    def read(seed: int) -> int:
        order = random.Random(seed).sample(range(60), 60)
        wrong = 0
        for position in order:
            wrong += not is_true(shards[position], truth)
            most.append(shards._files.open_handles)
        return wrong

    before = open_files()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(16))) == [0] * 16
    assert max(most) <= 3
    assert open_files() <= before + 3  # evicted ones are closed, not only forgotten
    shards.close()
    assert open_files() == before


def test_handles_are_shared_out_by_last_use(small_shards: Path) -> None:
    shards = ShardSet(small_shards, "train")
    shards._files._most_handles, shards._files._many = 3, True
    firsts = [position for position in range(36) if position == 0 or shards.shard_number(position - 1) !=
              shards.shard_number(position)]  # fmt: skip
    for shard in (0, 1, 2, 0, 3):
        shards.encoded(firsts[shard])
    assert list(shards._files._open) == [2, 0, 3]


def test_no_handles_left_in_the_process(made_shards_master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files: the set's own are closed, and the read goes on."""
    shards = ShardSet(made_shards_master)
    shards[0]
    real, refused = os.open, []

    def scarce(path: object, flags: int) -> int:
        if shards._files.open_handles and str(path).endswith(".tar"):
            refused.append(path)
            raise OSError(24, "Too many open files")
        return real(path, flags)

    monkeypatch.setattr("qadprep.shard_files.os.open", scarce)
    assert shards[59].key == shards.table["key"][59].as_py()
    assert len(refused) == 1 and shards._files.open_handles == 1


def _cut_in_a_header(row: dict) -> Callable[[bytes], bytes]:
    return lambda data: data[: row["offset"] + 200]


def _other_name(row: dict) -> Callable[[bytes], bytes]:
    return lambda data: flipped(data, row["offset"] + 5)


def _other_picture(row: dict) -> Callable[[bytes], bytes]:
    return lambda data: flipped(data, row["c23_offset"] + 60)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_other_name, "the bytes there are not .*raw.png; tar and index disagree"),
        (_cut_in_a_header, "got 200 of .* bytes; the shard is cut short"),
        (_other_picture, "c23: damaged PNG file"),
    ],
)
def test_a_damaged_tuple_is_named(made_set: Path, damage: Callable, words: str) -> None:
    row = rows_of(made_set)[9]
    change_tar(made_set, damage(row))
    with ShardSet(made_set, "train") as shards:
        assert shards[8].key and shards[20].key
        with pytest.raises(ShardError, match=rf"train-000000\.tar: {row['key']} at byte {row['offset']}: {words}"):
            shards[9]


def test_a_missing_shard_is_named(made_set: Path) -> None:
    (made_set / "train-000001.tar").unlink()
    shards = ShardSet(made_set, "train")
    assert shards[0].key
    with pytest.raises(ShardError, match=r"train-000001\.tar: No such file .*; the shard set is incomplete"):
        shards[16]


def test_check_sees_what_no_decoder_does(made_set: Path) -> None:
    row = rows_of(made_set)[3]
    change_tar(made_set, lambda data: flipped(data, row["json_offset"] + 1))
    assert ShardSet(made_set, "train")[3].key == row["key"]
    checked = ShardSet(made_set, "train", check=True)
    assert checked[2].key and checked[4].key
    for read in (checked.encoded, checked.views, checked.__getitem__):
        with pytest.raises(ShardError, match=rf"{row['key']} at byte {row['offset']}: its bytes are not those written"):
            read(3)


def test_check_needs_the_hashes(made_set: Path) -> None:
    for entry in json.loads((made_set / "shards.json").read_text())["shardlist"]:
        change_index(made_set, lambda table: table.drop_columns(["sha256"]), entry["url"].removesuffix(".tar"))
    assert len(ShardSet(made_set)) == 60
    with pytest.raises(UserError, match="no sha256 of the tuples"):
        ShardSet(made_set, check=True)


def test_an_index_of_another_run_is_refused(made_set: Path) -> None:
    first, second = made_set / "train-000000.parquet", made_set / "train-000001.parquet"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"train-000000\.parquet: sha256 is \w{12}…, shards\.json says"):
        ShardSet(made_set)
    assert len(ShardSet(made_set, "test")) == 12  # the other splits can be read
    refresh(made_set)  # as if the tar had been exchanged: the names in it do not agree
    with pytest.raises(ShardError, match="tar and index disagree"):
        ShardSet(made_set, "train")[0]
    first.write_bytes(kept[:-100])
    refresh(made_set)
    with pytest.raises(UserError, match=r"train-000000\.parquet: unreadable shard index"):
        ShardSet(made_set)


def _as_version_1_0(folder: Path) -> None:
    """What the first release wrote: few columns, and no hash but the tar's."""
    few = ["key", "label", "dataset", "method", "video", "group", "frame", "face", "split", "offset", "length"]
    few += [f"{quality}_{part}" for quality in QUALITIES for part in ("offset", "size")]
    for file in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(file, columns=few), file)

    def change(info: dict) -> None:
        info["format_version"] = "1.0"
        for entry in info["shardlist"]:
            for name in ("md5sum", "filesize", "index_sha256"):
                del entry[name]
        for name in ("config", "config_hash", "tuples", "left_out", "name", "tool"):
            info.pop(name, None)

    change_info(folder, change)


def test_sets_of_the_first_version(made_set: Path) -> None:
    _as_version_1_0(made_set)
    truth = true_pictures()
    shards = ShardSet(made_set)
    assert len(shards) == 60 and all(is_true(item, truth) for item in shards)
    assert "sha256" not in shards.table.column_names and shards.position_of(shards[59].key) == 59


def test_shards_with_other_columns_than_their_neighbours(made_set: Path) -> None:
    change_index(made_set, lambda table: table.drop_columns(["sharpness", "unaltered"]), "train-000001")
    shards = ShardSet(made_set, "train")
    sharpness = shards.table["sharpness"]
    assert sharpness.null_count == 16 and sharpness.chunk(1).null_count == 16
    assert (
        shards.table["unaltered"].type == pa.bool_()
        and [item.key for item in shards] == shards.table["key"].to_pylist()
    )


def test_refusals(made_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards\.json there"):
        ShardSet(tmp_path)
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        ShardSet(made_set, "dev")
    info = json.loads((made_set / "shards.json").read_text())
    (made_set / "shards.json").write_text(json.dumps(info | {"format_version": "2.0"}))
    with pytest.raises(UserError, match=r"format 2\.0 is newer than 1\.\d+; upgrade qadprep"):
        ShardSet(made_set)
    outside = [entry | {"url": f"../../{entry['url']}"} for entry in info["shardlist"]]
    (made_set / "shards.json").write_text(json.dumps(info | {"shardlist": outside}))
    with pytest.raises(UserError, match=r"shardlist\.0\.url is '\.\./\.\./train-000000\.tar'"):
        ShardSet(made_set)
    (made_set / "shards.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        ShardSet(made_set)
    (made_set / "shards.json").write_text(json.dumps(info | {"shardlist": []}))
    empty = ShardSet(made_set)
    assert len(empty) == 0 and list(empty) == [] and empty.splits == {} and "x" not in empty
    assert len(empty.to_arrow()) == 0
