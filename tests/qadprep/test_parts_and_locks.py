import errno
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import quick
from helpers.packs import pack_hashes
from hypothesis import given
from hypothesis import strategies as st

from qadprep import lease, locks, worker
from qadprep.config import ShardConfig
from qadprep.errors import RunEnded, UserError
from qadprep.locks import alone, one_at_a_time, reader, sole_user
from qadprep.parts import Part, finished_parts, missing_parts, not_at_its_end
from qadprep.shard import shard
from qadprep.store import open_folder, read_json, write_json
from qadprep.summary import REPORT_NAME

TIMES = {"seconds", "stage_seconds", "speed", "workers"}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return quick.make_dataset(tmp_path / "data", 7)


@pytest.fixture
def in_process(one_process: None) -> None:
    """Groups are done in the test's own process."""


@given(st.integers(1, 40), st.integers(0, 60))
def test_parts_share_everything_once_and_evenly(count: int, items: int) -> None:
    shares = [Part(number, count).take(range(items)) for number in range(1, count + 1)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/4", "", "1.0/4"])
def test_a_wrong_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--part: got .* expected i/n with i from 1 to n"):
        Part.parse(text)


def test_names_of_a_part() -> None:
    part = Part.parse("2/4")
    assert (str(part), part.report_name, part.lock_name) == ("2/4", "summary-part-2-of-4.json", ".lock-part-2-of-4")


@pytest.mark.usefixtures("in_process")
def test_parts_give_what_one_run_gives(dataset: Path, tmp_path: Path) -> None:
    quick.extract(dataset, tmp_path / "whole")
    said: list[str] = []
    for number in (3, 1, 2):
        assert not (tmp_path / "parts" / REPORT_NAME).exists()
        part = quick.extract(dataset, tmp_path / "parts", part=Part(number, 3), say=said.append)
        assert len(part.results) == (3 if number == 1 else 2)
    assert pack_hashes(tmp_path / "parts") == pack_hashes(tmp_path / "whole")
    whole, parts = (json.loads((tmp_path / name / REPORT_NAME).read_text()) for name in ("whole", "parts"))
    assert {k: v for k, v in whole.items() if k not in TIMES} == {k: v for k, v in parts.items() if k not in TIMES}
    assert parts["stage_seconds"]["write"] == whole["stage_seconds"]["write"] == 3.5
    assert "part 3/3 is done; part 1/3, 2/3 still to come" in said
    assert said[-1].startswith("all 3 parts are done")
    assert shard(tmp_path / "parts", tmp_path / "s1", ShardConfig()).tuples == {"none": 21}
    shard(tmp_path / "whole", tmp_path / "s2", ShardConfig())
    assert {f.name: f.read_bytes() for f in (tmp_path / "s1").iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "s2").iterdir()
    }


@pytest.mark.usefixtures("in_process")
def test_shard_names_the_parts_that_are_missing(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces"
    quick.extract(dataset, out, part=Part(2, 4))
    with pytest.raises(UserError, match=r"lacks part 1/4, 3/4, 4/4; run .* --part 1/4 first"):
        shard(out, tmp_path / "s", ShardConfig())
    for number in (1, 3, 4):
        quick.extract(dataset, out, part=Part(number, 4))
    assert shard(out, tmp_path / "s", ShardConfig()).tuples == {"none": 21}
    # A part that begins again takes the summary away until it has ended.
    (out / Part(3, 4).report_name).unlink()
    (out / REPORT_NAME).unlink()
    assert missing_parts(out) == [Part(3, 4)]
    with pytest.raises(UserError, match="lacks part 3/4"):
        shard(out, tmp_path / "s", ShardConfig())


@pytest.mark.usefixtures("in_process")
def test_parts_that_saw_other_groups_are_not_joined(dataset: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "faces", []
    quick.extract(dataset, out, part=Part(1, 2))
    (dataset.parent / "v99.mp4").write_bytes(b"late")
    dataset.write_text(dataset.read_text() + "v99.mp4,0\n")
    quick.extract(dataset, out, part=Part(2, 2), say=said.append)
    assert "part 1/2 saw other groups than part 2/2: files came or went; run without --part" in said
    with pytest.raises(UserError, match=r"the parts of its extraction are not joined; .* without --part"):
        shard(out, tmp_path / "s", ShardConfig())
    summary = quick.extract(dataset, out)
    assert len(summary.results) == 8 and (out / REPORT_NAME).exists() and finished_parts(out) == []


@pytest.mark.usefixtures("in_process")
def test_a_part_done_again_keeps_the_packs_and_other_counts_start_anew(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "faces"
    for number in (1, 2):
        quick.extract(dataset, out, part=Part(number, 2))
    again = quick.extract(dataset, out, part=Part(1, 2))
    assert all(result.skipped for result in again.results) and (out / REPORT_NAME).exists()
    first = quick.extract(dataset, out, part=Part(1, 3))
    assert all(result.skipped for result in first.results)
    assert finished_parts(out) == [Part(1, 3)] and not (out / REPORT_NAME).exists()


@pytest.mark.usefixtures("in_process")
def test_a_part_without_groups_is_no_fault(dataset: Path, tmp_path: Path) -> None:
    for number in range(1, 10):
        quick.extract(dataset, tmp_path / "faces", part=Part(number, 9))
    assert json.loads((tmp_path / "faces" / REPORT_NAME).read_text())["groups"] == 7


def test_options_that_do_not_go_together(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--overwrite with --part"):
        quick.extract(dataset, tmp_path / "faces", part=Part(1, 2), overwrite=True)
    with pytest.raises(UserError, match="--address auto is for --engine ray"):
        quick.extract(dataset, tmp_path / "faces", address="auto")
    with pytest.raises(UserError, match="--engine: got 'spark'; expected one of local, ray"):
        quick.extract(dataset, tmp_path / "faces", engine="spark")
    assert not (tmp_path / "faces").exists()


def started(words: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=quick.environment(**environment)
    )


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Path]:
    """A folder: groups say there that they have begun, and wait for a file `go` in it."""
    folder = tmp_path / "hold"
    folder.mkdir()
    yield folder
    (folder / "go").touch()


def test_parts_run_at_the_same_time_and_a_whole_run_waits_for_none(dataset: Path, tmp_path: Path, hold: Path) -> None:
    out = tmp_path / "faces"
    parts = [started(quick.command(dataset, out, part=f"{n}/2"), QUICK_HOLD=str(hold)) for n in (1, 2)]
    wait_for(lambda: len(list(hold.glob("begun-*"))) == 2)
    with pytest.raises(UserError, match="another run is writing there; wait for it, or choose another --out"):
        quick.extract(dataset, out)
    with pytest.raises(UserError, match="part 1/2 is running there already"):
        quick.extract(dataset, out, part=Part(1, 2))
    with pytest.raises(UserError, match=r"part 1/2 is running there; --part 1/3 would do its groups again"):
        quick.extract(dataset, out, part=Part(1, 3))
    with pytest.raises(UserError, match="another run is writing there"):
        shard(out, tmp_path / "s", ShardConfig())
    (hold / "go").touch()
    errors = [part.communicate(timeout=60)[1] for part in parts]
    assert [part.returncode for part in parts] == [0, 0], errors
    assert json.loads((out / REPORT_NAME).read_text())["groups"] == 7
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_parts_of_different_configs_that_start_together(dataset: Path, tmp_path: Path) -> None:
    """One settles the config, and every part of another config is refused."""
    out = tmp_path / "faces"
    sizes = [32, 48, 32, 48]
    parts = [started(quick.command(dataset, out, part=f"{n}/4", size_px=size)) for n, size in enumerate(sizes, 1)]
    errors = [part.communicate(timeout=120)[1] for part in parts]
    kept = json.loads((out / "extract.json").read_text())["size_px"]
    for part, size, message in zip(parts, sizes, errors, strict=True):
        assert part.returncode == (0 if size == kept else 2), message
        assert size == kept or "was written with size_px" in message
    assert len(finished_parts(out)) == 2


@pytest.mark.slow
def test_leftovers_of_a_killed_part_go_and_those_of_a_running_one_stay(
    dataset: Path, tmp_path: Path, hold: Path
) -> None:
    out = tmp_path / "faces"
    running = started(quick.command(dataset, out, part="1/2"), QUICK_HOLD=str(hold))
    wait_for(lambda: list(hold.glob("begun-*")))
    names = sorted(file.stem for file in dataset.parent.glob("v*.mp4"))
    theirs, mine = (out / "generic" / f".{name}.tar.77.tmp" for name in names[:2])
    theirs.parent.mkdir(exist_ok=True)
    theirs.touch()
    mine.touch()
    begun = started(quick.command(dataset, out, part="2/2"))
    assert begun.communicate(timeout=60)[1] is not None and begun.returncode == 0
    assert theirs.exists() and not mine.exists()
    (hold / "go").touch()
    running.communicate(timeout=60)
    quick.extract(dataset, out, part=Part(2, 2))
    assert not theirs.exists()


# The lock object of remote folders


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> Iterator:
    folder = open_folder(f"memory://locks/{request.node.name}")
    yield folder
    folder.fs.store.clear()
    folder.fs.pseudo_dirs[:] = [""]


def record(**changes: object) -> dict:
    mine = {"host": "elsewhere", "token": "t", "machine": "another", "pid": 7, "started": "1", "time": time.time()}
    return mine | changes


def test_a_remote_folder_has_one_user(remote) -> None:
    with sole_user(remote) as held:
        held()
        assert read_json(remote / ".lock")["pid"] == os.getpid()
        message = r"another run is writing there \(.*, process \d+, last sign of life \d s ago\); .* delete memory://"
        with pytest.raises(UserError, match=message) as caught, sole_user(remote):
            pass
        assert "\n" not in str(caught.value)
    assert not (remote / ".lock").exists()


def test_parts_of_a_remote_folder(remote) -> None:
    with sole_user(remote, Part(1, 2)):
        with sole_user(remote, Part(2, 2)):
            pass
        for other in (None, Part(1, 2), Part(1, 3)):
            with pytest.raises(UserError, match="another run is writing there"), sole_user(remote, other):
                pass
        # Refused ones leave no lock behind.
        assert [file.name for file in remote.iterdir()] == [".lock-part-1-of-2"]
    with sole_user(remote), pytest.raises(UserError, match="another run"), sole_user(remote, Part(1, 2)):
        pass
    assert not remote.is_dir()


def test_a_lock_of_another_machine_is_stale_after_two_minutes(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    write_json(remote / ".lock", record(time=time.time() - 100))
    with pytest.raises(UserError, match=r"elsewhere, process 7, last sign of life 10\d s ago"), sole_user(remote):
        pass
    write_json(remote / ".lock", record(time=time.time() - 121))
    with sole_user(remote):
        assert read_json(remote / ".lock")["pid"] == os.getpid()


def test_a_lock_of_a_dead_process_of_this_machine_is_free_at_once(remote) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_json(remote / ".lock", record(machine=lease._machine(), pid=dead.pid))
    with sole_user(remote):
        pass
    # The same number, but a process that started at another time.
    write_json(remote / ".lock", record(machine=lease._machine(), pid=os.getpid(), started="12"))
    with sole_user(remote):
        pass


def test_the_heart_beats_and_a_lost_lock_is_noticed(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with sole_user(remote) as held:
        first = read_json(remote / ".lock")["time"]
        wait_for(lambda: read_json(remote / ".lock")["time"] > first, 10)
        held()
        write_json(remote / ".lock", record())

        def lost() -> bool:
            try:
                held()
            except RunEnded as error:
                return "taken by another run" in str(error)
            return False

        wait_for(lost, 10)
    assert read_json(remote / ".lock")["host"] == "elsewhere"  # not this run's to delete


@pytest.mark.parametrize("skew_s", [-3600, 3600])
def test_a_live_lock_of_a_machine_with_a_wrong_clock_is_not_stale(
    remote, skew_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(remote / ".lock", record(time=time.time() + skew_s))
    waited = []

    def beat(seconds: float) -> None:
        waited.append(seconds)
        write_json(remote / ".lock", record(time=time.time() + skew_s))

    monkeypatch.setattr(lease.time, "sleep", beat)
    with pytest.raises(UserError, match="elsewhere, process 7"), sole_user(remote):
        pass
    assert waited == [2 * lease.BEAT_S]


def test_of_two_that_take_over_a_stale_lock_one_has_it(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(remote / ".lock", record(time=0))

    def sleep(seconds: float) -> None:
        # While this run waits whether its claim stands, another writes its own.
        if read_json(remote / ".lock")["host"] != "elsewhere":
            write_json(remote / ".lock", record())

    monkeypatch.setattr(lease.time, "sleep", sleep)
    with pytest.raises(UserError, match="elsewhere, process 7"), sole_user(remote):
        pass
    assert read_json(remote / ".lock")["host"] == "elsewhere"


def failing(monkeypatch: pytest.MonkeyPatch, times: int, error: Exception) -> list:
    """Reads of lock objects fail so many times; returns the failures to come."""
    left, read = [error] * times, lease._read_once

    def read_once(path):
        if left:
            raise left.pop()
        return read(path)

    monkeypatch.setattr(lease, "_read_once", read_once)
    return left


def test_a_lock_that_cannot_be_read_for_a_moment_is_not_free(remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "READ_AGAIN_AFTER_S", (0, 0))
    write_json(remote / ".lock", record())
    left = failing(monkeypatch, 2, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(UserError, match="elsewhere, process 7"), sole_user(remote):
        pass
    left += [OSError(errno.EIO, "Input/output error")] * 3
    with pytest.raises(UserError, match=r"\.lock: cannot be read \(OSError: .*; if there is none, delete it"):
        with sole_user(remote):
            pass
    assert left == [] and read_json(remote / ".lock")["host"] == "elsewhere"


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_lock_without_a_record_is_not_free(remote, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "READ_AGAIN_AFTER_S", (0, 0))
    (remote / ".lock").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"), sole_user(remote):
        pass
    with pytest.raises(UserError, match="cannot be read"), reader(remote):
        pass


def test_a_failed_read_does_not_end_a_healthy_run_and_a_deleted_lock_does(
    remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    with sole_user(remote) as held:
        left = failing(monkeypatch, 3, PermissionError("slow down"))
        wait_for(lambda: not left, 10)
        then = time.time()
        wait_for(lambda: read_json(remote / ".lock")["time"] > then, 10)
        held()
        thread = next(t for t in lease.threading.enumerate() if t.name == "qadprep-lock")
        (remote / ".lock").unlink()
        # A beat that was being written may bring it back once.
        wait_for(lambda: not thread.is_alive() or (remote / ".lock").unlink(missing_ok=True), 10)
        with pytest.raises(RunEnded, match="the lock was deleted or taken"):
            held()


def test_folders_without_file_locks_get_a_lock_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with sole_user(tmp_path):
        with pytest.raises(UserError, match="another run is writing there"), sole_user(tmp_path):
            pass
        assert read_json(tmp_path / ".lock")["pid"] == os.getpid()
        with pytest.raises(UserError, match="another run is writing there"), reader(tmp_path):
            pass
    with sole_user(tmp_path, Part(1, 2)), one_at_a_time(tmp_path):
        assert read_json(tmp_path / ".lock-part-1-of-2")["pid"] == os.getpid()
        assert not alone(tmp_path, Part(2, 2))
    (tmp_path / ".lock").touch()  # of a machine that has file locks there
    with reader(tmp_path):
        pass


def test_a_killed_run_frees_its_local_lock(dataset: Path, tmp_path: Path, hold: Path) -> None:
    process = started(quick.command(dataset, tmp_path / "faces"), QUICK_HOLD=str(hold))
    wait_for(lambda: list(hold.glob("begun-*")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (hold / "go").touch()
    assert len(quick.extract(dataset, tmp_path / "faces").results) == 7


def test_alone_asks_for_running_parts(tmp_path: Path) -> None:
    with sole_user(tmp_path, Part(1, 2)):
        assert alone(tmp_path, Part(1, 2)) and not alone(tmp_path, Part(2, 2))
    assert alone(tmp_path, Part(2, 2))
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all are free again


def test_readers_and_writers_of_a_local_folder(tmp_path: Path) -> None:
    with sole_user(tmp_path), one_at_a_time(tmp_path):
        pass
    with reader(tmp_path), reader(tmp_path):
        for part in (None, Part(1, 2)):
            with pytest.raises(UserError, match="another run is reading there; wait for it"), sole_user(tmp_path, part):
                pass
    for part in (None, Part(1, 2)):
        with sole_user(tmp_path, part), pytest.raises(UserError, match="another run is writing there"):
            with reader(tmp_path):
                pass
    with reader(tmp_path / "missing"):
        assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_reader_needs_no_permission(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole_user(tmp_path), one_at_a_time(tmp_path):
        pass

    def refused(path: Path, mode: str = "r") -> None:
        assert mode == "r"
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refused)
    with reader(tmp_path):
        pass


def test_a_remote_folder_is_read_while_nobody_writes(remote) -> None:
    with reader(remote), reader(remote):
        assert not (remote / ".lock").exists()
    with sole_user(remote, Part(1, 2)), pytest.raises(UserError, match="another run is writing"), reader(remote):
        pass


@pytest.mark.parametrize(
    ("place", "why"), [("file", "File exists"), ("file/below", "Not a directory"), ("locked", "Is a directory")]
)
def test_an_out_that_cannot_be_written(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{place}: cannot be written to \({why}\); choose another --out$") as caught:
        with sole_user(tmp_path / place):
            pass
    assert "\n" not in str(caught.value)


def test_an_out_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("mkdir", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refused)
            with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\); choose another --out$"):
                with sole_user(tmp_path / "out"):
                    pass


def test_scratch_folders_of_dead_workers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    own = lease.process_start(os.getpid())
    names = [f"{worker._scratch_prefix()}{start}-x" for start in (f"{os.getpid()}-{own}", f"{os.getpid()}-1")]
    names += [f"{worker._scratch_prefix()}{dead.pid}-{own}-x", "qadprep-scratch-1-2-3-other", "qadprep-other"]
    for name in names:
        (tmp_path / name / "generic").mkdir(parents=True)
    worker._remove_scratch_of_the_dead()
    assert {folder.name for folder in tmp_path.iterdir()} == {names[0], *names[3:]}


def test_words_about_an_extraction_that_has_no_summary(tmp_path: Path) -> None:
    assert "did not come to its end" in not_at_its_end(tmp_path)
    (tmp_path / ".lock-part-2-of-2").touch()
    assert "lacks part 1/2, 2/2" in not_at_its_end(tmp_path)
    (tmp_path / "summary-part-2-of-2.json").touch()
    assert "lacks part 1/2;" in not_at_its_end(tmp_path)
