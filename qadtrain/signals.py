"""SIGINT and SIGTERM while training: the first one saves and ends the run, a second Ctrl-C ends it at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# torchrun passes a Ctrl-C on to processes that the terminal has already told.
SAME_PRESS_S = 1.0


@contextmanager
def stop_signals() -> Iterator[Callable[[], str]]:
    """A question for the loop: which of SIGINT and SIGTERM has come ("" = none).

    A second SIGINT raises KeyboardInterrupt. Under ``torchrun`` one within :data:`SAME_PRESS_S` of the first signal is
    taken for the same press.
    """
    seen: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""  # Python lets only the main thread set handlers
        return
    first_at = 0.0

    def remember(number: int, _frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if seen and number == signal.SIGINT and not ("WORLD_SIZE" in os.environ and now - first_at < SAME_PRESS_S):
            raise KeyboardInterrupt
        first_at = first_at if seen else now
        seen.append(signal.Signals(number).name)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
