"""Progress of long work: a rich bar with rate and ETA on a terminal, plain lines elsewhere. All on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

PLAIN_EVERY_S = 10.0


@contextlib.contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Yield `advance(count, remark)`.

    Args:
        title: what is going on, such as `extract`.
        total: number of units.
        unit: name of a unit, plural.
    """
    if sys.stderr.isatty():
        yield from _rich_bar(title, total, unit)
    else:
        yield from _plain_lines(title, total, unit)


def _rich_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, rate="", remark="")
        start, done = time.monotonic(), 0

        def advance(count: int = 1, remark: str = "") -> None:
            nonlocal done
            done += count
            rate = f"{done / max(time.monotonic() - start, 1e-6):.2f} {unit}/s"
            progress.update(task, advance=count, rate=rate, remark=remark)

        yield advance


def _plain_lines(title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    start = said = time.monotonic()
    done = 0

    def advance(count: int = 1, remark: str = "") -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= PLAIN_EVERY_S or done == total:
            said = now
            rate = done / max(now - start, 1e-6)
            eta = (total - done) / rate if rate else 0.0
            tail = f" {remark}" if remark else ""
            print(
                f"{title}: {done}/{total} {unit}, {rate:.2f}/s, ETA {eta:.0f} s{tail}",
                file=sys.stderr,
                flush=True,
            )

    yield advance
