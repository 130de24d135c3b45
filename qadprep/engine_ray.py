"""The Ray engine: groups as tasks, detectors on GPUs as actors; the same work and the same bytes as the local engine.

Ray tries a task again when its worker or its node dies; one that fails even so is tried once more with nothing beside
it, and then reported.
"""

import contextlib
import itertools
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qadprep.engine import run_ending
from qadprep.errors import UserError
from qadprep.machine import WORKER_BYTES
from qadprep.ray_detectors import RayDetector, start_detectors
from qadprep.ray_package import ray

OBJECT_STORE_BYTES = 256 * 2**20
"""Of a cluster that this engine starts itself: only groups, results and frames for detectors pass through it."""
MAX_SETUP_FAULTS = 3
CONNECT_WITHIN_S = 10

Task, Result = TypeVar("Task"), TypeVar("Result")


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator["Cluster"]:
    """Join a running Ray cluster, or start one on this machine for as long as the context lives.

    Args:
        address: as of `ray.init`: `auto`, `host:port` or `ray://host:port`; None starts a cluster.

    Raises:
        UserError: there is no cluster at that address.
    """
    if ray.is_initialized():
        yield Cluster()
        return
    _check_address(address)
    options: dict[str, Any] = {"address": address}
    if address is None:
        # "local": or a cluster that RAY_ADDRESS names would be joined.
        options = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--address {address}: no Ray cluster to join there ({line})") from error
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Ray itself would try for minutes where nothing answers."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or "")
    if match:
        try:
            socket.create_connection((match[1], int(match[2])), CONNECT_WITHIN_S).close()
        except OSError as error:
            raise UserError(f"--address {address}: no Ray cluster to join there ({error})") from error


class Cluster:
    """A joined Ray cluster as an engine.

    Attributes:
        worker_bytes: memory that Ray sets apart for each task.
    """

    worker_bytes: int = WORKER_BYTES

    def fit_workers(self, tasks: int, wanted: int = 0) -> int:
        """Tasks to run at once: `wanted`, or for 0 one per core of the cluster; never more than tasks."""
        return max(1, min(wanted or self._cores(), tasks))

    def threads(self, workers: int) -> int:
        """Decoder threads, and cores that Ray sets apart, for each of so many tasks; no more than a node has."""
        least = min((int(node.get("CPU", 1)) for node in _nodes()), default=1)
        return max(1, min(self._cores() // workers, least))

    def gpus(self) -> int:
        """GPUs of the cluster, taken or free."""
        return int(ray.cluster_resources().get("GPU", 0))

    def start_detectors(self, name: str, weights: Path | None, precision: str) -> "RayDetector":
        """One detector per GPU of the cluster, each in its own process.

        Raises:
            UserError: no node has a GPU.
        """
        count = self.gpus()
        if count < 1:
            raise UserError("--device cuda: no node of the Ray cluster has a GPU; use --device cpu")
        return start_detectors(count, 1, name, weights, "cuda", precision)

    def run_tasks(
        self,
        tasks: Sequence[Task],
        function: Callable[[Task], Result],
        on_result: Callable[[Task, Result], None],
        on_crash: Callable[[Task, str], None],
        *,
        workers: int,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        """As `engine.run_tasks`, on the cluster.

        Raises:
            UserError: workers could not be set up (a path that a node does not see, no weights there).
            RunEnded: a task found the disk full, or lost its store.
        """
        run = _Run(function, initializer, initargs, self.threads(workers), self.worker_bytes)
        crashed = run.all(tasks, workers, on_result, on_crash, retries=1)
        for task in crashed:
            for _ in run.all([task], 1, on_result, on_crash, retries=0):
                on_crash(task, "its worker process or node died (out of memory, or a crash in a native library)")

    def _cores(self) -> int:
        return max(1, int(ray.cluster_resources().get("CPU", 1)))


class _Run:
    def __init__(
        self,
        function: Callable[[Any], Any],
        initializer: Callable[..., None] | None,
        initargs: tuple[Any, ...],
        threads: int,
        worker_bytes: int,
    ) -> None:
        # Stored once in the cluster, not sent with each task.
        self._setup = ray.put((initializer, initargs))
        self._function, self._token = function, secrets.token_hex(8)
        room = min((node.get("memory", worker_bytes) for node in _nodes()), default=worker_bytes)
        self._needs = {"num_cpus": threads, "memory": int(min(worker_bytes, room))}
        self._setup_faults = 0

    def all(
        self,
        tasks: Sequence[Any],
        workers: int,
        on_result: Callable[[Any, Any], None],
        on_crash: Callable[[Any, str], None],
        retries: int,
    ) -> list[Any]:
        """Run tasks, a bounded number at a time; returns those whose workers died."""
        remote = ray.remote(max_retries=retries, **self._needs)(_work)
        waiting = iter(tasks)
        flying: dict[ray.ObjectRef, Any] = {}
        dead: list[Any] = []
        try:
            while True:
                for task in itertools.islice(waiting, workers - len(flying)):
                    flying[remote.remote(self._setup, self._token, self._function, task)] = task
                if not flying:
                    return dead
                [ready], _ = ray.wait(list(flying), num_returns=1)
                task = flying.pop(ready)
                try:
                    kind, value = ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    self._failed(task, error.cause if error.cause is not None else error, on_crash)
                except ray.exceptions.RayError:
                    dead.append(task)
                else:
                    if kind == "setup":
                        self._setup_fault(value)
                        on_crash(task, value)
                    else:
                        on_result(task, value)
        except BaseException:
            for ref in flying:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=True)
            raise

    def _failed(self, task: Any, error: BaseException, on_crash: Callable[[Any, str], None]) -> None:
        if fault := run_ending(error):
            raise fault from error
        on_crash(task, f"{type(error).__name__}: {error}")

    def _setup_fault(self, message: str) -> None:
        self._setup_faults += 1
        if self._setup_faults >= MAX_SETUP_FAULTS:
            raise UserError(f"workers of the Ray cluster cannot start: {message}")


_ready_for: list[Any] = []


def _work(setup: tuple[Callable[..., None] | None, tuple[Any, ...]], run: str, function: Callable, task: Any) -> Any:
    """In a worker of the cluster, which may serve several runs: set up once, then work."""
    initializer, initargs = setup
    if _ready_for != [run] and initializer:
        try:
            initializer(*initargs)
        except Exception as error:
            return "setup", f"{type(error).__name__}: {error} (on {os.uname().nodename})"
        _ready_for[:] = [run]
    return "result", function(task)


def _nodes() -> list[dict[str, float]]:
    """Resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
