"""Run many groups over worker processes: crashes of single workers, a full disk, Ctrl-C."""

import contextlib
import ctypes
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from qadprep.errors import RunEnded, UserError

MAX_CRASHES = 5
_NO_ROOM = {
    errno.ENOSPC: ("the disk is full", "free space"),
    errno.EDQUOT: ("the disk quota is used up", "free space"),
    errno.EFBIG: ("a file grew over the size that this process may write", "raise ulimit -f"),
}

Task, Result = TypeVar("Task"), TypeVar("Result")


def run_ending(error: BaseException) -> RunEnded | None:
    """The error as one that ends a run: no room on the disk, or a store that cannot be written; None for others."""
    if isinstance(error, RunEnded):
        return error
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        what, cure = _NO_ROOM[error.errno]
        return RunEnded(f"{what}{f' ({error.filename})' if error.filename else ''}: {cure}")
    return None


def run_tasks(
    tasks: Sequence[Task],
    function: Callable[[Task], Result],
    on_result: Callable[[Task, Result], None],
    on_crash: Callable[[Task, str], None],
    *,
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> None:
    """Call `function` on every task in worker processes; results arrive in the order they are done.

    A worker that dies (out of memory, a crash in a native library) takes the tasks in flight with it; those are tried
    again one by one, so that only the guilty one is reported to `on_crash`.

    Args:
        function: must be importable; it should return failures as values. An exception counts as a crash of its task.
        initializer: runs once in each worker.

    Raises:
        RunEnded: a task found the disk full, or lost its store; after the workers have been ended.
        KeyboardInterrupt: after the workers have been ended.
    """
    pending = list(tasks)
    suspects: list[Task] = []
    crashes, any_result = 0, False

    def count_result(task: Task, result: Result) -> None:
        nonlocal any_result
        any_result = True
        on_result(task, result)

    while pending or suspects:
        alone = bool(suspects)
        batch, pending = (suspects[:1], pending) if alone else (pending, [])
        if alone:
            suspects = suspects[1:]
        unfinished = _run_pool(batch, function, count_result, on_crash, 1 if alone else workers, initializer, initargs)
        crashes = crashes + 1 if alone and unfinished else 0
        if crashes >= MAX_CRASHES and not any_result:
            raise UserError(
                f"{crashes} worker processes died one after the other; is there memory for --workers {workers}? "
                "--debug shows what they wrote"
            )
        if alone and unfinished:
            on_crash(unfinished[0], "its worker process died (out of memory, or a crash in a native library)")
        elif unfinished:
            # Those that may have been in flight are suspects; the rest wait their turn.
            suspects, pending = unfinished[: 2 * workers + 1], unfinished[2 * workers + 1 :]


def _run_pool(
    tasks: Sequence[Task],
    function: Callable[[Task], Result],
    on_result: Callable[[Task, Result], None],
    on_crash: Callable[[Task, str], None],
    workers: int,
    initializer: Callable[..., None] | None,
    initargs: tuple[Any, ...],
) -> list[Task]:
    """Run tasks until done or until a worker dies; returns those without a result, in order."""
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), initializer, initargs),
    )
    waiting = iter(range(len(tasks)))
    futures: dict[Future, int] = {}
    done: set[int] = set()
    broken = False

    def submit() -> None:
        # A bounded number in flight: results stay small and a broken pool has few suspects.
        for number in waiting:
            futures[pool.submit(function, tasks[number])] = number
            if len(futures) >= 2 * workers:
                return

    try:
        submit()
        while futures and not broken:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                number = futures.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    broken = True
                    continue
                except Exception as error:
                    if fault := run_ending(error):
                        raise fault from error
                    on_crash(tasks[number], f"{type(error).__name__}: {error}")
                else:
                    on_result(tasks[number], result)
                done.add(number)
            if not broken:
                try:
                    submit()
                except BrokenProcessPool:
                    broken = True
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [task for number, task in enumerate(tasks) if number not in done]


def _start_worker(parent: int, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """In each worker: leave Ctrl-C to the parent, end when the parent is killed, then the caller's own set-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: Linux only
    if os.getppid() != parent:
        os._exit(1)  # the parent was gone before the line above took effect
    if initializer:
        initializer(*initargs)
