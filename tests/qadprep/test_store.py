import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import quick
from helpers.packs import pack_hashes
from helpers.s3 import BUCKET, s3_server

from qadprep import store
from qadprep.config import ShardConfig
from qadprep.errors import RunEnded, UserError
from qadprep.extract_dataset import load_config
from qadprep.pack import find_packs, read_pack
from qadprep.parts import Part
from qadprep.shard import shard
from qadprep.store import create, is_local, open_folder, parallel_reads, read_json, remove, upload, write_json
from qadprep.summary import REPORT_NAME


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture
def url(server: dict[str, str], request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick.make_dataset(tmp_path_factory.mktemp("made") / "data", 8)


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "faces"
    subprocess.run(quick.command(dataset, out), check=True, env=quick.environment(), capture_output=True)
    return out


def objects(url: str) -> dict[str, str]:
    """As `pack_hashes`, of a remote folder."""
    import hashlib

    folder = open_folder(url)
    found = sorted(folder.glob("*/*"))
    return {"/".join(file.parts[-2:]): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def run(words: list[str], **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(words, env=quick.environment(), capture_output=True, text=True, check=False, **options)


# Folders


def test_what_a_place_names(tmp_path: Path) -> None:
    assert open_folder("faces/a b") == Path("faces/a b") and open_folder(tmp_path) is tmp_path
    assert open_folder(f"file://{tmp_path}/faces") == tmp_path / "faces"
    assert is_local(open_folder(f"file://{tmp_path}")) and parallel_reads(tmp_path) == 1
    memory = open_folder("memory://a/b/")
    assert not is_local(memory) and str(memory) == "memory://a/b" and parallel_reads(memory) > 1
    with pytest.raises(UserError, match=r"nothing://a: not a folder or URL"):
        open_folder("nothing://a")


def test_packs_in_the_memory_of_one_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--out memory://faces: lies in the memory of one process"):
        quick.extract(tmp_path, "memory://faces")


@pytest.mark.parametrize(("url", "package"), [("s3://b", r"'qadprep\[s3\]'"), ("gs://b", r"'fsspec\[gs\]'")])
def test_a_missing_package_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(self: object) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr("upath.UPath.fs", property(not_there))
    with pytest.raises(UserError, match=f"{url}: Install it; pip install {package}"):
        open_folder(url)


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_small_files(kind: str, tmp_path: Path, server: dict[str, str]) -> None:
    folder = {"local": tmp_path, "memory": open_folder("memory://small"), "s3": open_folder(f"s3://{BUCKET}/small")}[
        kind
    ]
    assert read_json(folder / "a.json") is None
    assert create(folder / "a.json", b'{"x": 1}') and not create(folder / "a.json", b'{"x": 2}')
    assert read_json(folder / "a.json") == {"x": 1}
    write_json(folder / "a.json", {"b": 2, "a": 1})
    assert (folder / "a.json").read_bytes() == b'{\n  "a": 1,\n  "b": 2\n}\n'
    (folder / "a.json").write_bytes(b"[1]")
    assert read_json(folder / "a.json") is None
    remove(folder / "a.json")
    remove(folder / "a.json")
    assert not (folder / "a.json").exists()


def test_an_upload_is_tried_again_and_then_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"data")
    target = open_folder("memory://upload") / "a"
    waited: list[float] = []
    monkeypatch.setattr(store.time, "sleep", waited.append)
    failures = [ConnectionError("reset"), TimeoutError("late")]
    put = type(target.fs).put_file

    def flaky(self, *arguments: object, **options: object) -> None:
        if failures:
            raise failures.pop()
        put(self, *arguments, **options)

    monkeypatch.setattr(type(target.fs), "put_file", flaky)
    upload(tmp_path / "a", target)
    assert target.read_bytes() == b"data" and waited == [1.0, 4.0]
    failures += [ConnectionError("reset")] * 3
    with pytest.raises(RunEnded, match=r"upload/a: cannot be written \(ConnectionError: reset\): see to the store"):
        upload(tmp_path / "a", target)


# A whole extraction in S3


def test_s3_holds_what_a_local_run_writes(dataset: Path, undisturbed: Path, url: str, tmp_path: Path) -> None:
    first = run(quick.command(dataset, url, workers=2))
    assert first.returncode == 0, first.stderr
    assert objects(url) == pack_hashes(undisturbed) and len(objects(url)) == 16
    folder = open_folder(url)
    assert sorted(file.name for file in folder.iterdir()) == ["extract.json", "generic", "summary.json"]
    assert (folder / "extract.json").read_bytes() == (undisturbed / "extract.json").read_bytes()
    local = json.loads((undisturbed / REPORT_NAME).read_text())
    assert read_json(folder / REPORT_NAME)["tuples"] == local["tuples"] == 24
    assert "upload" in read_json(folder / REPORT_NAME)["stage_seconds"]
    assert load_config(folder) == load_config(undisturbed)
    tables = [read_pack(path).table for path in find_packs(folder)]
    assert tables == [read_pack(path).table for path in find_packs(undisturbed)]
    # The shards too.
    shard(url, tmp_path / "s1", ShardConfig(tuples_per_shard=5))
    shard(undisturbed, tmp_path / "s2", ShardConfig(tuples_per_shard=5))
    assert {f.name: f.read_bytes() for f in (tmp_path / "s1").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "s2").iterdir()
    }


@pytest.mark.usefixtures("one_process")
def test_a_second_run_skips_and_what_is_damaged_is_done_again(dataset: Path, undisturbed: Path, url: str) -> None:
    quick.extract(dataset, url)
    assert all(result.skipped for result in quick.extract(dataset, url).results)
    folder = open_folder(url)
    tables = find_packs(folder)
    tables[0].write_bytes(b"PAR1 torn")
    tables[1].with_suffix(".tar").unlink()
    tables[2].unlink()
    again = quick.extract(dataset, url)
    assert [result.skipped for result in again.results] == [False] * 3 + [True] * 5
    assert objects(url) == pack_hashes(undisturbed)


@pytest.mark.usefixtures("one_process")
def test_the_config_guard_and_overwrite(dataset: Path, undisturbed: Path, url: str) -> None:
    small = quick.CONFIG.model_copy(update={"size_px": 16})
    quick.extract(dataset, url, small)
    with pytest.raises(UserError, match=r"was written with size_px = 16, now 32; .* --overwrite"):
        quick.extract(dataset, url)
    with pytest.raises(UserError, match="was written with size_px = 16"):
        quick.extract(dataset, url, part=Part(1, 2))
    quick.extract(dataset, url, overwrite=True)
    assert objects(url) == pack_hashes(undisturbed)
    assert not (open_folder(url) / ".lock").exists()


@pytest.mark.usefixtures("one_process")
def test_parts_in_s3(dataset: Path, undisturbed: Path, url: str, tmp_path: Path) -> None:
    quick.extract(dataset, url, part=Part(2, 2))
    with pytest.raises(UserError, match="lacks part 1/2"):
        shard(url, tmp_path / "s", ShardConfig())
    quick.extract(dataset, url, part=Part(1, 2))
    assert objects(url) == pack_hashes(undisturbed)
    assert read_json(open_folder(url) / REPORT_NAME)["groups"] == 8
    assert shard(url, tmp_path / "s", ShardConfig()).tuples == {"none": 24}


@pytest.mark.slow
def test_two_runs_at_once_and_a_killed_one(dataset: Path, undisturbed: Path, url: str, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.mkdir()
    process = subprocess.Popen(
        quick.command(dataset, url, workers=1),
        env=quick.environment(QUICK_HOLD=str(hold)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(hold.glob("begun-*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = run(quick.command(dataset, url))
        assert second.returncode == 2
        [line] = second.stderr.strip().splitlines()[-1:]
        assert f"another run is writing there ({_host()}, process {process.pid}, last sign of life" in line
        assert f"delete {url}/.lock" in line
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (hold / "go").touch()
    assert (open_folder(url) / ".lock").exists()
    resumed = run(quick.command(dataset, url))  # the owner of the lock is dead, on this machine
    assert resumed.returncode == 0, resumed.stderr
    assert objects(url) == pack_hashes(undisturbed)


@pytest.mark.slow
def test_killed_again_and_again_in_mid_run(dataset: Path, undisturbed: Path, url: str) -> None:
    kills = 0
    for wait_for in (1, 3, 5, 7):
        process = subprocess.Popen(
            quick.command(dataset, url, workers=1),
            env=quick.environment(QUICK_SECONDS="0.1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        folder = open_folder(url)
        while len(find_packs(folder)) < wait_for and process.poll() is None:
            assert time.monotonic() < deadline
        kills += process.poll() is None
        process.kill()
        process.wait()
        done = objects(url)
        whole = pack_hashes(undisturbed)
        assert all(whole[name] == digest for name, digest in done.items())  # nothing torn at any moment
    assert kills >= 3
    last = run(quick.command(dataset, url))
    assert last.returncode == 0, last.stderr
    assert objects(url) == pack_hashes(undisturbed)


def test_a_bucket_that_is_not_there(dataset: Path, server: dict[str, str]) -> None:
    failed = run(quick.command(dataset, "s3://no-such-bucket/faces"))
    assert failed.returncode == 2
    assert "qadprep: s3://no-such-bucket/faces: cannot be written (" in failed.stderr


def _host() -> str:
    import socket

    return socket.gethostname()
