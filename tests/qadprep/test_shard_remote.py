"""Shard sets behind URLs: in moto's S3 server, and in fsspec's memory file system."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.s3 import BUCKET, s3_server
from helpers.written import digests, pack_rows

from qadprep import shard_run
from qadprep.config import ShardConfig
from qadprep.errors import RunEnded, UserError
from qadprep.shard import rewrite_shards, shard
from qadprep.shardset import ShardSet
from qadprep.store import open_folder

CONFIG = ShardConfig(tuples_per_shard=8)


@pytest.fixture(scope="module")
def whole(made_faces_master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s"
    shard(made_faces_master, out, CONFIG)
    return out


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


def fetched(url: str, folder: Path) -> dict[str, str]:
    """Digests of all that lies behind a URL, after a copy into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    place = open_folder(url)
    for path in place.fs.find(place.path):
        target = folder / path.removeprefix(place.fs._strip_protocol(place.path)).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(place.fs.cat_file(path))
    return digests(folder)


def test_s3_holds_what_a_local_run_writes(
    server: dict[str, str], made_faces_master: Path, whole: Path, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/sets/made"
    summary = shard(made_faces_master, url, CONFIG, workers=2)
    assert fetched(url, tmp_path / "copy") == digests(whole)
    local = ShardSet(tmp_path / "copy")
    assert len(local) == 60 and local[7].images["c40"].shape == (24, 24, 3)
    said: list[str] = []
    again = shard(made_faces_master, url, CONFIG, say=said.append)
    assert "nothing to do" in said[0] and (again.kept, again.bytes) == (9, summary.bytes)
    place = open_folder(url)
    (place / "val-000000.tar").unlink()
    assert shard(made_faces_master, url, CONFIG).kept == 8
    assert fetched(url, tmp_path / "copy") == digests(whole)
    assert rewrite_shards(made_faces_master, url, ["val-000001", "val-000000.tar"]) == ["val-000001", "val-000000.tar"]
    with pytest.raises(UserError, match="was written with seed = 0, now 1"):
        shard(made_faces_master, url, CONFIG.model_copy(update={"seed": 1}))
    shard(made_faces_master, url, ShardConfig(tuples_per_shard=30), overwrite=True)
    assert sum(name.endswith(".tar") for name in fetched(url, tmp_path / "copy")) == 4


@pytest.mark.slow
def test_s3_killed_in_the_middle(server: dict[str, str], made_faces_master: Path, whole: Path, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/sets/killed"
    words = [sys.executable, "-m", "qadprep", "shard", str(made_faces_master), "--out", url]
    words += ["--tuples-per-shard", "8", "--workers", "1"]
    expected, place = digests(whole), open_folder(url)
    kills = 0
    for wait_for in (1, 4, 7):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((place / ".entries").glob("*.json"))) >= wait_for:
                break
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = fetched(url, tmp_path / "copy")
        assert all(expected[name] == digest for name, digest in found.items() if not name.startswith("."))
    assert kills >= 2
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "shards are finished already" in done.stderr
    assert fetched(url, tmp_path / "copy") == expected


def test_a_stopped_upload_goes_on(
    made_faces_master: Path, whole: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = shard_run.write_shard, []

    def write(job: Any) -> Any:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(job.name)
        return real(job)

    with monkeypatch.context() as stopped:
        stopped.setattr(shard_run, "write_shard", write)
        with pytest.raises(KeyboardInterrupt):
            shard(made_faces_master, url, CONFIG)
    found = fetched(url, tmp_path / "copy")
    assert sum(name.startswith(".entries/") for name in found) == 5 and "shards.json" not in found
    assert ".lock" not in found
    assert shard(made_faces_master, url, CONFIG).kept == 5
    assert fetched(url, tmp_path / "copy") == digests(whole)


def test_a_store_that_is_lost_ends_the_run(
    made_faces_master: Path, whole: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_system = type(open_folder(url).fs)
    put, sent = file_system.put_file, []

    def flaky(self: Any, local: str, target: str, *arguments: Any, **options: Any) -> None:
        sent.append(target)
        if len(sent) > 8:
            raise ConnectionError("reset")
        put(self, local, target, *arguments, **options)

    with monkeypatch.context() as lost:
        lost.setattr(file_system, "put_file", flaky)
        lost.setattr("qadprep.store.time.sleep", lambda seconds: None)
        with pytest.raises(RunEnded, match=r"cannot be written \(ConnectionError: reset\).*run the same command again"):
            shard(made_faces_master, url, CONFIG)
    assert shard(made_faces_master, url, CONFIG).kept >= 1
    assert fetched(url, tmp_path / "copy") == digests(whole)


def test_other_peoples_objects_are_left_alone(made_faces_master: Path, url: str) -> None:
    (open_folder(url) / "notes.txt").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds other files \(notes\.txt"):
        shard(made_faces_master, url, CONFIG, overwrite=True)
    assert [file.name for file in open_folder(url).iterdir()] == ["notes.txt"]


def test_remote_packs_that_are_damaged_are_named(
    made_faces_master: Path, url: str, whole: Path, tmp_path: Path
) -> None:
    place = open_folder(url)
    for file in made_faces_master.rglob("*"):
        if file.is_file():
            target = place / str(file.relative_to(made_faces_master))
            place.fs.makedirs(target.parent.path, exist_ok=True)
            target.write_bytes(file.read_bytes())
    shard(url, tmp_path / "s", CONFIG)
    assert digests(tmp_path / "s") == digests(whole)
    row = pack_rows(made_faces_master)[-1]
    tar = place / "ffpp" / "200.tar"
    tar.write_bytes(row["tar"].read_bytes()[: row["c23_offset"] + 5])
    summary = shard(url, tmp_path / "t", CONFIG)
    [fault] = summary.faults
    assert (fault.key, fault.pack, fault.byte) == (row["key"], "ffpp/200.tar", row["c23_offset"] + 5)
    assert fault.fault == "the tar is cut short"
