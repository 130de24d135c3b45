"""What a run shows while it goes: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_EVERY_S = 0.25
PLAIN_LINE_EVERY_S = 5.0
_LOSSES = {
    "loss": "loss",
    "ce": "cross-entropy",
    "hsic": "HSIC",
    "extra": "model's own loss",
    "awp_ce_rise": "AWP rise",
}
_OTHERS = {"lr": "learning rate", "grad_norm": "gradient norm", "tuples_per_s": "tuples/s"}
# Not shown in a plain line: at each log step they would make it longer than a screen is wide.
_PLAIN = ("loss", "ce", "hsic", "awp_ce_rise", "lr")


class LiveTable:
    """Steps done, time left and the values of the last log step. A context manager; only the main process shows it.

    Nothing here touches the device: values arrive as numbers, at log steps only, and the table is drawn by the caller
    itself, at most four times a second.

    Args:
        console: human output, on stderr.
        total_steps, done_steps: of the whole run.
        steps_per_epoch, epochs: of the run.
        tuples_per_step: over all processes.
        best: text about the best validation so far.
        enabled: False on every process but the main one: nothing is shown.
    """

    def __init__(
        self,
        console: Console,
        *,
        total_steps: int,
        done_steps: int,
        steps_per_epoch: int,
        epochs: int,
        tuples_per_step: int,
        best: str = "",
        enabled: bool = True,
    ) -> None:
        self.total, self.done = total_steps, done_steps
        self.steps_per_epoch, self.epochs, self.tuples_per_step = max(1, steps_per_epoch), epochs, tuples_per_step
        self._console, self._enabled = console, enabled
        self._first, self._started = done_steps, time.perf_counter()
        self._drawn = self._last_line = self._started
        self._values: dict[str, float] = {}
        self._best, self._status = best, ""
        self._live: Live | None = None
        if enabled and console.is_terminal:
            # Drawn when a step is done, not by a thread: it would take the interpreter from the step at any moment.
            self._live = Live(console=console, auto_refresh=False, get_renderable=self._render, redirect_stdout=False)

    def __enter__(self) -> "LiveTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()  # after a last refresh

    @property
    def tuples_per_s(self) -> float:
        """Since the start of this attempt, validations included."""
        elapsed = time.perf_counter() - self._started
        return (self.done - self._first) * self.tuples_per_step / elapsed if elapsed else 0.0

    @property
    def left_s(self) -> float:
        """Seconds to the end of the run at this rate; 0 before the first step."""
        rate = self.tuples_per_s
        return (self.total - self.done) * self.tuples_per_step / rate if rate else 0.0

    def advance(self) -> None:
        """One step is done."""
        self.done += 1
        self._draw()

    def show(self, values: Mapping[str, float]) -> None:
        """Means of a log step, as they go to metrics.jsonl (loss, ce, hsic/<tap>, cka/<tap>, lr, memory_gb, ...)."""
        self._values = dict(values)
        self._draw()
        now = time.perf_counter()
        if self._enabled and not self._live and now - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = now
            self._console.print(self._line(), markup=False, highlight=False, soft_wrap=True)

    def best(self, text: str) -> None:
        """A new best validation, such as ``auc/average 0.9123 (epoch 3)``."""
        self._best = text
        self._draw(now=True)

    def status(self, text: str) -> None:
        """What goes on besides steps, such as ``validating``; empty = training."""
        self._status = text
        self._draw(now=True)

    def _draw(self, *, now: bool = False) -> None:
        moment = time.perf_counter()
        if self._live and (now or moment - self._drawn >= REFRESH_EVERY_S):
            self._drawn = moment
            self._live.refresh()

    def _place(self) -> tuple[int, int]:
        """Epoch from 1 and step in it; after its last step an epoch is full, not the next one empty."""
        epoch = min(max(0, self.done - 1) // self.steps_per_epoch, self.epochs - 1)
        return epoch + 1, self.done - epoch * self.steps_per_epoch

    def _line(self) -> str:
        epoch, step = self._place()
        shown = [f"{name} {self._values[name]:.4g}" for name in _PLAIN if name in self._values]
        cka = _by_tap(self._values, "cka/")
        shown += ["cka " + "/".join(f"{value:.2f}" for value in cka.values())] if cka else []
        shown.append(f"{self.tuples_per_s:.0f} tuples/s")
        if "data_wait" in self._values:
            shown.append(f"data wait {100 * self._values['data_wait']:.0f} %")
        place = f"epoch {epoch}/{self.epochs}  step {step}/{self.steps_per_epoch}"
        return f"{place}  {'  '.join(shown)}  {_duration(self.left_s)} left"

    def _render(self) -> Group:
        epoch, step = self._place()
        bars = Table.grid(padding=(0, 2))
        left_in_epoch_s = self.left_s * (self.steps_per_epoch - step) / max(1, self.total - self.done)
        for name, done, total, left_s in (
            (f"epoch {epoch}/{self.epochs}", step, self.steps_per_epoch, left_in_epoch_s),
            ("run", self.done, self.total, self.left_s),
        ):
            bar = ProgressBar(total=max(1, total), completed=done, width=30)
            bars.add_row(name, bar, f"{done}/{total}", f"{_duration(left_s)} left", Text(self._status))
        parts = [bars, *self._tables()]
        if self._best:
            parts.append(Text(f"best: {self._best}"))
        return Group(*parts)

    def _tables(self) -> list[Table]:
        values = self._values
        if not values:
            return []
        cells = [(title, f"{values[name]:.4g}") for name, title in _LOSSES.items() if name in values]
        cells += [(title, f"{values[name]:.3g}") for name, title in _OTHERS.items() if name in values]
        if "data_wait" in values:
            cells.append(("data wait", f"{100 * values['data_wait']:.0f} %"))
        if "memory_gb" in values:
            cells.append(("memory", f"{values['memory_gb']:.1f} GB"))
        cells += [(name.replace("_", " "), f"{values[name]:g}") for name in values if _counts(name) and values[name]]
        grid = Table.grid(padding=(0, 2))
        for start in range(0, len(cells), 3):
            row = cells[start : start + 3]
            grid.add_row(*(text for title, value in row for text in (Text(title, style="dim"), Text(value))))
        hsic, cka = _by_tap(values, "hsic/"), _by_tap(values, "cka/")
        if not cka and not hsic:
            return [grid]
        taps = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("tap", "HSIC", "CKA (unbiased)"):
            taps.add_column(name, justify="left" if name == "tap" else "right")
        for tap in cka | hsic:
            taps.add_row(Text(tap), *(f"{found[tap]:.4g}" if tap in found else "-" for found in (hsic, cka)))
        return [grid, taps]


def _counts(name: str) -> bool:
    return "skipped" in name


def _by_tap(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
