"""Check many shards at once, by threads or by processes, and show how far it is."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qadprep.engine import run_tasks
from qadprep.machine import available_cores
from qadprep.progress import progress_bar
from qadprep.verify_faults import Faults
from qadprep.verify_shard import Level, ShardCheck, check_shard

if TYPE_CHECKING:
    from qadprep.store import Folder

# Hashing and decoding leave Python's lock to others for about four fifths of the time: this many threads fill it.
MAX_DECODING_THREADS = 4


@dataclass(frozen=True)
class _Job:
    """One shard, with no more of `shards.json` than its check needs."""

    number: int
    folder: "Folder"
    facts: dict[str, Any]
    entry: dict[str, Any]
    level: Level | None


def check_shards(
    folder: "Folder", info: dict[str, Any], levels: list[Level | None], workers: int, advance: Callable[[int], None]
) -> Iterator[ShardCheck]:
    """The checks of all shards in the order of `shards.json`.

    Args:
        levels: of each shard, as in `check_shard`.
        workers: 0 takes one per core. They are threads, but for decoding on more than four cores processes.
        advance: called with the bytes that were read since its last call, by any thread.
    """
    facts = {name: info[name] for name in ("qualities", "codec", "size_px")}
    jobs = [
        _Job(number, folder, facts, entry, level)
        for number, (entry, level) in enumerate(zip(info["shardlist"], levels, strict=True))
    ]
    workers = workers or available_cores()
    decoding = sum(level == "full" for level in levels)
    if min(workers, decoding) > MAX_DECODING_THREADS:
        return _by_processes(jobs, workers, advance)
    return _by_threads(jobs, workers, advance)


def _by_threads(jobs: list[_Job], workers: int, advance: Callable[[int], None]) -> Iterator[ShardCheck]:
    ended = threading.Event()

    def step(count: int) -> None:
        if ended.is_set():  # the run was interrupted: nobody waits for this shard any more
            raise InterruptedError
        advance(count)

    def check(job: _Job) -> ShardCheck:
        if ended.is_set():
            return ShardCheck(Faults(job.entry["url"]))
        return check_shard(job.folder, job.facts, job.entry, job.level, step)

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(check, jobs)
        finally:
            ended.set()


def _by_processes(jobs: list[_Job], workers: int, advance: Callable[[int], None]) -> Iterator[ShardCheck]:
    checks: dict[int, ShardCheck] = {}

    def done(job: _Job, check: ShardCheck) -> None:
        checks[job.number] = check
        advance(check.bytes)

    def crashed(job: _Job, message: str) -> None:
        checks[job.number] = ShardCheck(Faults(job.entry["url"]))
        checks[job.number].faults.add(f"cannot be checked ({message})")

    run_tasks(jobs, _check_job, done, crashed, workers=workers, initializer=_one_thread)
    for job in jobs:
        yield checks[job.number]


def _check_job(job: _Job) -> ShardCheck:
    return check_shard(job.folder, job.facts, job.entry, job.level, lambda count: None)


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


@contextmanager
def byte_progress(total_bytes: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield `advance(bytes)`, which threads may call."""
    if not shown or not total_bytes:
        yield lambda count: None
        return
    total = -(-total_bytes // 10**6)
    with progress_bar("verify", total, "MB") as bar:
        lock, read, told = threading.Lock(), 0, 0

        def advance(count: int) -> None:
            nonlocal read, told
            with lock:
                read += count
                now = min(total, -(-read // 10**6) if read >= total_bytes else read // 10**6)
                if now > told:
                    bar(now - told, "")
                    told = now

        yield advance
