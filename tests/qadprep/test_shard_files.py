"""Remote shard sets: the cache of whole shards, range requests, and what can go wrong on the way."""

import errno
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.s3 import BUCKET, s3_server
from helpers.sets import made_shards

from qadprep import cache as caches
from qadprep.errors import RunEnded, UserError
from qadprep.shard_files import ShardFiles
from qadprep.shardset import ShardError, ShardSet, pixel_hash
from qadprep.store import open_folder


@pytest.fixture(scope="module")
def small_shards(made_faces_master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made set in 15 shards of at most 4 tuples."""
    return made_shards(tmp_path_factory.mktemp("small") / "set", made_faces_master, tuples_per_shard=4)


@pytest.fixture
def memory_set(small_shards: Path) -> Iterator[str]:
    """The same in fsspec's store in this process's memory."""
    url = "memory://bucket/set"
    folder = open_folder(url)
    for file in small_shards.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    yield url
    folder.fs.rm(folder.path, recursive=True)


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture(scope="module")
def s3_set(server: dict[str, str], small_shards: Path) -> str:
    url = f"s3://{BUCKET}/faces/set"
    folder = open_folder(url)
    for file in small_shards.iterdir():
        if not file.name.startswith("."):
            folder.fs.put_file(str(file), (folder / file.name).path)
    return url


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def hashes(shards: ShardSet, order: list[int] | range | None = None) -> dict[str, list[str]]:
    positions = range(len(shards)) if order is None else order
    items = [shards[position] for position in positions]
    return {item.key: [pixel_hash(image) for image in item.images.values()] for item in items}


def cached(cache: Path) -> set[str]:
    return {file.name for file in cache.iterdir() if file.suffix == ".tar"}


@pytest.mark.parametrize("store", ["memory_set", "s3_set"])
def test_a_remote_set_is_the_same_set(store: str, small_shards: Path, cache: Path,
                                      request: pytest.FixtureRequest) -> None:  # fmt: skip
    url = request.getfixturevalue(store)
    local = ShardSet(small_shards)
    remote = ShardSet(url, cache_dir=cache, check=True)
    assert remote.fingerprint == local.fingerprint and remote.table.equals(local.table)
    assert not cached(cache)  # shards are fetched when they are needed
    remote[0]
    assert cached(cache) == {f"{remote.shards[0]['sha256']}.tar"}
    order = random.Random(0).sample(range(60), 60)
    assert hashes(remote, order) == hashes(local)
    for entry in local.shards:
        assert (cache / f"{entry['sha256']}.tar").read_bytes() == (small_shards / entry["url"]).read_bytes()
    assert remote.where(5) == f"{url}/{remote.shards[1]['url']}: {remote[5].key} at byte {remote.table['offset'][5]}"
    assert remote.by_key(local[40].key).key == local[40].key


@pytest.mark.parametrize("store", ["memory_set", "s3_set"])
def test_without_a_cache_a_tuple_is_one_request(store: str, small_shards: Path, cache: Path,
                                                request: pytest.FixtureRequest, monkeypatch) -> None:  # fmt: skip
    url = request.getfixturevalue(store)
    remote = ShardSet(url, "train", cache_dir=cache, cache_bytes=0)
    real, asked = remote.path.fs.cat_file, []

    def counted(path: str, start: int, end: int) -> bytes:
        asked.append((path.rsplit("/", 1)[1], start, end))
        return real(path, start=start, end=end)

    monkeypatch.setattr(remote.path.fs, "cat_file", counted)
    remote[7]
    row = remote.table.slice(7, 1).to_pylist()[0]
    assert asked == [(remote.shards[1]["url"], row["offset"], row["offset"] + row["length"])]
    assert hashes(remote) == hashes(ShardSet(small_shards, "train"))
    assert not cache.exists()


def test_a_changed_shard_is_refused(memory_set: str, cache: Path) -> None:
    remote = ShardSet(memory_set, cache_dir=cache)
    place = open_folder(memory_set) / remote.shards[2]["url"]
    data = bytearray(place.read_bytes())
    data[700] ^= 1
    place.write_bytes(bytes(data))
    name = remote.shards[2]["url"]
    with pytest.raises(ShardError, match=rf"{name}: sha256 is \w{{12}}…, shards\.json says"):
        remote[8]
    assert not cached(cache) and not [file for file in cache.iterdir() if file.name.endswith(".tmp")]
    assert remote[0].key  # the others can be read
    place.fs.rm(place.path)
    with pytest.raises(ShardError, match=rf"{name}: not there; the shard set is incomplete"):
        remote[8]
    with pytest.raises(ShardError, match=rf"{name}: not there; the shard set is incomplete"):
        ShardSet(memory_set, cache_dir=cache, cache_bytes=0)[8]


def test_a_set_written_anew_in_place_is_not_mixed_with_the_one_that_was_opened(
    small_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(small_shards, folder)
    with ShardSet(folder) as shards:
        before = pixel_hash(shards[0].images["raw"])
        index = folder / "shards.json"
        new = folder / "new.json"
        new.write_bytes(index.read_bytes())
        new.replace(index)
        assert pixel_hash(shards[0].images["raw"]) == before  # its file is open
        shards.close()
        with pytest.raises(ShardError, match=r"set: was written anew since it was opened; open it again"):
            shards[0]
        index.unlink()
        with pytest.raises(ShardError, match=r"was written anew"):
            shards[0]
    shutil.copy(small_shards / "shards.json", index)
    with ShardSet(folder) as shards:
        assert pixel_hash(shards[0].images["raw"]) == before


def test_a_file_in_the_cache_that_is_cut_short_is_fetched_again(memory_set: str, small_shards: Path,
                                                               cache: Path) -> None:  # fmt: skip
    remote = ShardSet(memory_set, cache_dir=cache)
    hashes(remote)
    for file in cache.glob("*.tar"):
        file.write_bytes(file.read_bytes()[:2000])
    assert hashes(ShardSet(memory_set, cache_dir=cache)) == hashes(ShardSet(small_shards))


def test_a_store_that_fails_is_asked_again(memory_set: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("qadprep.shard_files.time.sleep", waits.append)
    remote = ShardSet(memory_set, cache_dir=cache)
    ranged = ShardSet(memory_set, cache_dir=cache, cache_bytes=0)
    store, faults = remote.path.fs, 2

    def failing(name: str) -> None:
        real = getattr(store, name)

        def ask(*arguments: object, **more: object) -> object:
            nonlocal faults
            faults -= 1
            if faults >= 0:
                raise ConnectionError("reset by peer")
            return real(*arguments, **more)

        monkeypatch.setattr(store, name, ask)

    failing("open")
    failing("cat_file")
    assert remote[0].key and waits == [0.5, 2.0]
    faults = 2
    assert ranged[0].key == remote[0].key
    faults = 100
    for shards in (remote, ranged):
        with pytest.raises(ShardError, match=r"\.tar: cannot be read \(ConnectionError: reset by peer\): see to"):
            shards[59]


def test_a_full_disk_ends_the_run_and_leaves_nothing(memory_set: str, cache: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    remote = ShardSet(memory_set, cache_dir=cache)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qadprep.ustar.os.fsync", full)
    with pytest.raises(RunEnded, match=r"cache: No space left on device while a shard was fetched: choose another"):
        remote[0]
    monkeypatch.undo()
    assert not cached(cache) and not list(cache.glob(".*.tmp")) and remote[0].key


def test_a_cache_that_cannot_be_made(memory_set: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"file/cache: cannot hold shards .*; choose another cache_dir, or cache_bytes=0"
    ):
        ShardSet(memory_set, cache_dir=tmp_path / "file" / "cache")


def test_the_cache_keeps_its_bound(memory_set: str, small_shards: Path, cache: Path) -> None:
    sizes = [file.stat().st_size for file in small_shards.glob("*.tar")]
    bound = 3 * max(sizes) + 1
    expected = hashes(ShardSet(small_shards))
    remote = ShardSet(memory_set, cache_dir=cache, cache_bytes=bound)
    order = random.Random(3)
    for _ in range(80):
        position = order.randrange(60)
        item = remote[position]
        assert [pixel_hash(image) for image in item.images.values()] == expected[item.key]
        files = list(cache.glob("*.tar"))
        assert files and sum(file.stat().st_size for file in files) <= bound
        # Deleted files take room as long as they are open.
        assert 0 < remote._files.open_handles <= len(files)

    tight = ShardSet(memory_set, cache_dir=cache, cache_bytes=1)  # less than a shard: the newest alone stays
    assert hashes(tight) == expected and len(cached(cache)) == 1


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    for number, name in enumerate(("a.tar", "b.tar", "c.tar", "d.txt", ".e.tar")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (number, number))
    assert caches.trim(tmp_path, (".tar",), 300) == 0
    caches.mark_used(tmp_path / "a.tar")
    assert caches.trim(tmp_path, (".tar",), 250) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [".e.tar", "a.tar", "c.tar", "d.txt"]
    assert caches.trim(tmp_path, (".tar",), 0, keep=tmp_path / "c.tar") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [".e.tar", "c.tar", "d.txt"]


def test_a_file_deleted_before_it_was_opened_is_fetched_again(memory_set: str, cache: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    remote = ShardSet(memory_set, cache_dir=cache)
    real, deleted = ShardFiles._fetched, []

    def fetched(self: ShardFiles, shard: int, folder: Path) -> Path:
        file = real(self, shard, folder)
        if len(deleted) < times:
            deleted.append(file)
            file.unlink()
        return file

    monkeypatch.setattr(ShardFiles, "_fetched", fetched)
    times = 2
    assert remote[0].key and len(deleted) == 2
    times = 5
    with pytest.raises(ShardError, match="deleted again and again; give the cache more room"):
        remote[59]


def test_threads_fetch_a_shard_once(memory_set: str, small_shards: Path, cache: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    expected = hashes(ShardSet(small_shards))
    real, fetched = ShardFiles._fetch, []

    def logged(self: ShardFiles, shard: int, file: Path) -> None:
        fetched.append(shard)
        real(self, shard, file)

    monkeypatch.setattr(ShardFiles, "_fetch", logged)
    remote = ShardSet(memory_set, cache_dir=cache)

    def read(seed: int) -> bool:
        return hashes(remote, random.Random(seed).sample(range(60), 60)) == expected

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))
    assert sorted(fetched) == list(range(15))


def _read_logged(url: str, cache: Path, log: Path, seed: int) -> dict[str, list[str]]:
    real = ShardFiles._fetch

    def logged(self: ShardFiles, shard: int, file: Path) -> None:
        with log.open("a") as lines:
            lines.write(f"{shard}\n")
        real(self, shard, file)

    ShardFiles._fetch = logged
    return hashes(ShardSet(url, cache_dir=cache), random.Random(seed).sample(range(60), 60))


def test_processes_fetch_a_shard_once(s3_set: str, small_shards: Path, cache: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [pool.apply_async(_read_logged, (s3_set, cache, tmp_path / "log", seed)) for seed in range(2)]
        found = [job.get(120) for job in jobs]
    assert found[0] == found[1] == hashes(ShardSet(small_shards))
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(15))
    assert len(cached(cache)) == 15


def _read_all(shards: ShardSet) -> dict[str, list[str]]:
    return hashes(shards)


@pytest.mark.parametrize(("method", "cache_bytes"), [("fork", 0), ("fork", 10**9), ("spawn", 10**9)])
def test_other_processes_read_a_store(
    s3_set: str, small_shards: Path, cache: Path, method: str, cache_bytes: int
) -> None:
    remote = ShardSet(s3_set, "val", cache_dir=cache, cache_bytes=cache_bytes)
    expected = hashes(ShardSet(small_shards, "val"))
    assert hashes(remote) == expected  # a connection is open here when the child begins
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(_read_all, (remote,)).get(60) == expected


def test_no_set_at_a_url(s3_set: str, cache: Path) -> None:
    with pytest.raises(UserError, match=rf"s3://{BUCKET}/nothing: no shards\.json there"):
        ShardSet(f"s3://{BUCKET}/nothing", cache_dir=cache)
    with pytest.raises(UserError, match=r"shards\.json"):
        ShardSet("s3://no-such-bucket/set", cache_dir=cache)
