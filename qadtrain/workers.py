"""Loader processes that die: one line instead of a traceback, whichever way it shows.

A worker that is killed (mostly for want of memory) shows in one of three ways: torch's handler of SIGCHLD raises a
RuntimeError wherever the main process happens to be, also in the middle of a step; the loader misses the worker; or the
connection over which its tensors come breaks with an OSError or EOFError.
"""

import multiprocessing
import re
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from qadprep.errors import UserError

# A broken connection is seen before the end of the process that held it.
_WAIT_S = 2.0


def dead_worker(error: BaseException | None) -> UserError | None:
    """One line for torch's report that a loader process has died; None for any other error."""
    if not isinstance(error, RuntimeError) or not re.match(r"DataLoader worker \(pid", str(error)):
        return None
    return _advice(str(error).splitlines()[0].strip().partition(". ")[0].rstrip("."))


class WorkerBatches:
    """The batches of a loader, once; an iterator that ends its workers on :meth:`close`.

    Raises:
        UserError: from ``next``, when a worker has died.
    """

    def __init__(self, loader: DataLoader) -> None:
        before = multiprocessing.active_children()
        self._batches: Iterator[Any] | None = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in before]

    def __iter__(self) -> "WorkerBatches":
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            raise StopIteration
        try:
            return next(self._batches)
        except (RuntimeError, OSError, EOFError) as error:
            found = dead_worker(error) or ended(self._workers)
            if found is None:
                raise
            # Its frames hold the loader's iterator, and this the workers, until the traceback is forgotten.
            error.__traceback__ = None
        self.close()
        raise found

    def close(self) -> None:
        """End the workers. A death that is only reported meanwhile is of no interest any more."""
        batches, self._batches = self._batches, None
        if batches is None:
            return
        loader = weakref.ref(batches)
        try:
            del batches
        except RuntimeError as error:
            if dead_worker(error) is None:
                raise
        if loader() is None:
            # Torch has asked them to end, waited, and sent SIGTERM, which they ignore (data.py): whoever is left is
            # stuck in a read, and Python would wait for it at the end of the program.
            for worker in self._workers:
                if worker.is_alive():
                    worker.kill()
                    worker.join(_WAIT_S)


def ended(workers: Sequence[BaseProcess]) -> UserError | None:
    """One line for a worker that has died, or dies within two seconds; None when all go on."""
    try:
        # Torch's handler may run in any of these calls.
        for sentinel in connection.wait([worker.sentinel for worker in workers], timeout=_WAIT_S):
            worker = next(worker for worker in workers if worker.sentinel == sentinel)
            worker.join(_WAIT_S)
            if worker.exitcode:
                return _advice(f"DataLoader worker (pid {worker.pid}) ended with exit code {worker.exitcode}")
    except RuntimeError as error:
        if (known := dead_worker(error)) is None:
            raise
        return known
    return None


def _advice(reason: str) -> UserError:
    if "Bus error" in reason:
        advice = "shared memory is too small: give /dev/shm more (docker: --shm-size), or lower data.num_workers"
    else:
        advice = "most often memory ran out: lower data.num_workers (0 = no processes) or data.batch_tuples"
    return UserError(f"data.num_workers: {reason}; {advice}, and resume the run")
