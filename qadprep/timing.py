"""Where the time went: seconds per stage, and the most memory a process has held."""

import contextlib
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

STAGES = ("probe", "decode", "convert", "detect", "sync", "mask", "warp", "encode", "write")
"""Stages of an extraction, in the order in which they are shown; what lies between them is `others`."""
OTHERS = "others"


class StageTimer:
    """Adds up wall-clock seconds per stage name in `seconds`.

    A stage inside another one is counted once, for the inner one. Threads that share a timer add to the same seconds,
    each with its own nesting.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()
        self._lock = threading.Lock()
        self._inner = threading.local()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with`."""
        start = time.perf_counter()
        outer = getattr(self._inner, "seconds", 0.0)
        self._inner.seconds = 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inner.seconds
            self._inner.seconds = outer + elapsed

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Time only the waiting for the next item, not what the caller does with it."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def with_others(self) -> dict[str, float]:
        """The seconds per stage, and under `others` what has passed outside all of them since the timer was made."""
        passed = time.perf_counter() - self._start - sum(self.seconds.values())
        return self.seconds | {OTHERS: self.seconds.get(OTHERS, 0.0) + max(0.0, passed)}


def peak_rss_mib() -> float:
    """Most memory (resident set) that this process has held so far, MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10  # bytes there, KiB on Linux
