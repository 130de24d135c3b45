"""Seconds and memory of processes, for the benchmarks."""

import resource
import threading
import time
from pathlib import Path


class Watch(threading.Thread):
    """Reads the memory of all processes below one, ten times a second, while the body of a `with` runs.

    Attributes:
        peaks: process -> its largest resident size so far, MiB, as the system keeps it.
        series: (finished packs in a folder, largest of the processes' peaks), one entry a reading.
    """

    def __init__(self, parent: int, packs: Path | None) -> None:
        super().__init__(daemon=True)
        self.parent, self.packs = parent, packs
        self.peaks: dict[int, float] = {}
        self.series: list[tuple[int, float]] = []
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.1):
            below = [pid for child in children_of(self.parent) for pid in [child, *children_of(child)]]
            for pid in below:
                self.peaks[pid] = max(self.peaks.get(pid, 0.0), peak_of(pid))
            if self.packs and below:
                done = len(list(self.packs.glob("*/[!.]*.parquet")))
                self.series.append((done, max(self.peaks[pid] for pid in below)))


def children_of(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []


def peak_of(pid: int) -> float:
    """Largest resident size of a process so far, MiB; counted anew from the moment it loaded its program."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


def cpu_seconds(*who: int) -> float:
    """User and system seconds of this process or of its ended children."""
    usage = [resource.getrusage(each) for each in who]
    return sum(each.ru_utime + each.ru_stime for each in usage)


class Timed:
    """Wall-clock and CPU seconds of the body of a `with`, of this process and of those that it started and ended."""

    def __enter__(self) -> "Timed":
        self._cpu = cpu_seconds(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = {
            "wall_s": time.perf_counter() - self._start,
            "cpu_s": cpu_seconds(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) - self._cpu,
        }
