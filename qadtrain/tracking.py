"""What a run says while it goes: metrics.jsonl, TensorBoard, and a progress bar or plain lines on stderr."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from torch import Tensor

METRICS_NAME = "metrics.jsonl"
PLAIN_LINE_EVERY_S = 5.0


class Tracker:
    """Writes one record to every sink. A context manager; nothing is lost when the body raises.

    Args:
        run_dir: folder of metrics.jsonl and tensorboard/.
        console: human output, on stderr.
        global_step: where the run (re)starts: later records of an earlier attempt are dropped.
    """

    def __init__(self, run_dir: Path, console: Console, global_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.console = console
        path = Path(run_dir) / METRICS_NAME
        drop_records_after(path, global_step)
        self._file = path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=global_step + 1)

    def record(self, kind: str, epoch: int, global_step: int, values: Mapping[str, Any]) -> None:
        """One line ``{"kind", "epoch", "global_step", ...values}``; numbers also go to TensorBoard as kind/name."""
        line = {"kind": kind, "epoch": epoch, "global_step": global_step, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, global_step)

    def say(self, text: str) -> None:
        """A line for the reader."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._writer.close()


class Meter:
    """Means of the values of several steps. Tensors stay on the device until :meth:`take`: no step waits for it."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}
        self._steps, self._waited_s, self._total_s = 0, 0.0, 0.0

    def add(self, values: Mapping[str, "Tensor | float"], waited_s: float, total_s: float) -> None:
        """One step: its values, the seconds it waited for data and the seconds it took in all."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
        self._steps += 1
        self._waited_s += waited_s
        self._total_s += total_s

    def take(self, tuples_per_step: int) -> dict[str, float]:
        """Means since the last call, with ``tuples_per_s`` and ``data_wait`` (part of the time, 0..1).

        A value that is not finite comes out as a missing one: JSON has none, and the trainer stops on it anyway.
        """
        means = {name: sum(map(float, values)) / len(values) for name, values in self._values.items()}
        means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        means["tuples_per_s"] = self._steps * tuples_per_step / self._total_s
        means["data_wait"] = self._waited_s / self._total_s
        self._clear()
        return means


class StepProgress:
    """Steps done, rate and time left: a live bar on a terminal, a plain line at a time elsewhere."""

    def __init__(self, console: Console, total_steps: int, done_steps: int, tuples_per_step: int) -> None:
        self.total, self.done, self.tuples_per_step = total_steps, done_steps, tuples_per_step
        self._first, self._started = done_steps, time.perf_counter()
        self._last_line = self._started
        self._console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("training", total=total_steps, completed=done_steps, rate="")

    def __enter__(self) -> "StepProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def tuples_per_s(self) -> float:
        elapsed = time.perf_counter() - self._started
        return (self.done - self._first) * self.tuples_per_step / elapsed if elapsed else 0.0

    def advance(self, description: str) -> None:
        """One step is done."""
        self.done += 1
        if self._bar:
            self._bar.update(
                self._task, completed=self.done, description=description, rate=f"{self.tuples_per_s:.0f} tuples/s"
            )

    def line(self, text: str) -> None:
        """A plain progress line, one in :data:`PLAIN_LINE_EVERY_S` at most; a terminal shows the bar instead."""
        now = time.perf_counter()
        if not self._bar and now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            rate = self.tuples_per_s
            left_s = (self.total - self.done) * self.tuples_per_step / rate if rate else 0.0
            self._console.print(
                f"{text}  step {self.done}/{self.total}  {rate:.0f} tuples/s  {left_s:.0f} s left",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def drop_records_after(path: Path, global_step: int) -> None:
    """Remove the lines of metrics.jsonl past a step, and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["global_step"] <= global_step:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
