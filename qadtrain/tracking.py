"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard and, if asked for, Weights & Biases."""

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from qadprep.errors import UserError
from qadtrain.config import Config
from qadtrain.facts import config_hash
from qadtrain.safe_files import explained

if TYPE_CHECKING:
    from torch import Tensor

METRICS_NAME = "metrics.jsonl"
EVENT = "event"


class Tracker:
    """Writes one record to every sink. A context manager; nothing is lost when the body raises.

    Each record says the training time so far, ``seconds``, over all attempts. A resume and the end write an event
    of their own: ``resume``, then ``end`` with ``state`` finished, stopped or failed.

    Args:
        run_dir: folder of metrics.jsonl, tensorboard/ and wandb/.
        console: human output, on stderr.
        global_step: where the run (re)starts: later records of an earlier attempt are dropped.
        wandb: off, offline (files alone, for `wandb sync`) or online.
        config: shown by Weights & Biases.
        enabled: False on every process but the main one: nothing is written.

    Raises:
        UserError: Weights & Biases is asked for and not installed, or not logged in.
    """

    def __init__(
        self,
        run_dir: Path,
        console: Console,
        global_step: int = 0,
        *,
        wandb: str = "off",
        config: Config | None = None,
        enabled: bool = True,
    ) -> None:
        self.console, self._enabled, self._reason = console, enabled, ""
        self._epoch, self._step, self._wandb = 0, global_step, None
        if not enabled:
            return
        check_wandb(wandb)
        from torch.utils.tensorboard import SummaryWriter

        path = Path(run_dir) / METRICS_NAME
        last = drop_records_after(path, global_step)
        self._epoch = int(last.get("epoch", 0))
        self._started = time.perf_counter() - float(last.get("seconds", 0.0))
        if wandb != "off":
            self._wandb = _open_wandb(Path(run_dir), wandb, config)
        self._file = path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=global_step + 1)
        if last:
            self.event("resume", self._epoch, global_step)

    def record(self, kind: str, epoch: int, global_step: int, values: Mapping[str, Any]) -> None:
        """One line ``{"kind", "epoch", "global_step", "seconds", ...values}``; numbers also go to the other sinks.

        They are named kind/name there. What is not finite is ``null`` in the line, as JSON has no other word for it.

        Raises:
            UserError: the disk is full.
        """
        if not self._enabled:
            return
        self._epoch, self._step = epoch, global_step
        finite = {name: None if _not_finite(value) else value for name, value in values.items()}
        line = {"kind": kind, "epoch": epoch, "global_step": global_step, "seconds": self._seconds(), **finite}
        text = json.dumps(line, allow_nan=False) + "\n"
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise explained(error, Path(self._file.name), len(text)) from error
        numbers = {f"{kind}/{name}": value for name, value in finite.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step)
        if self._wandb is not None and numbers:
            self._wandb.log({"global_step": global_step, "epoch": epoch, **numbers})

    def event(self, name: str, epoch: int, global_step: int, **values: Any) -> None:
        """A record of kind ``event``: something that happened, such as a skipped step."""
        self.record(EVENT, epoch, global_step, {"event": name, **values})

    def stopping(self, reason: str) -> None:
        """The run ends before its time, because of a signal or a budget; called before the body is left."""
        self._reason = reason

    def say(self, text: str) -> None:
        """A line for the reader."""
        if self._enabled:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._enabled:
            return
        state, reason = "stopped" if self._reason else "finished", self._reason
        if error is not None:
            state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            self.event("end", self._epoch, self._step, state=state, reason=reason)
            os.fsync(self._file.fileno())
        except (OSError, UserError):
            if error is None:  # on a full disk the error that ends the run says so already
                raise
        finally:
            with suppress(OSError):  # the same line again, of which that was said
                self._file.close()
            self._writer.close()
            if self._wandb is not None:
                self._wandb.finish(exit_code=int(state == "failed"))

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._started, 3)


class Stopwatch:
    """Seconds between two readings, without what was paused."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._since, self._paused_s = clock, clock(), 0.0

    def lap(self) -> float:
        """Seconds since the last call."""
        now = self._clock()
        seconds = max(now - self._since - self._paused_s, 1e-9)
        self._since, self._paused_s = now, 0.0
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is not counted, such as a validation."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - started


class Meter:
    """Means of the values of several steps. Tensors stay on the device until :meth:`take`: no step waits for it."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}
        self._steps, self._waited_s, self._total_s = 0, 0.0, 0.0

    def add(self, values: Mapping[str, "Tensor | float"], waited_s: float, total_s: float = 0.0) -> None:
        """One step: its values, the seconds it waited for data and the seconds it took in all."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
        self._steps += 1
        self._waited_s += waited_s
        self._total_s += total_s

    def take(self, tuples_per_step: int, seconds: float | None = None) -> dict[str, float]:
        """Means since the last call, with ``tuples_per_s`` and ``data_wait`` (part of the time, 0..1).

        On a GPU a step returns before it is done, so the time of the whole interval must be measured after the device
        was waited for, and given as ``seconds``; None = the sum of the steps' own.

        A value that is not finite comes out as a missing one: JSON has none, and the trainer stops on it anyway.
        """
        means = {name: sum(map(float, values)) / len(values) for name, values in self._values.items()}
        means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        total_s = self._total_s if seconds is None else seconds
        means["tuples_per_s"] = self._steps * tuples_per_step / total_s
        means["data_wait"] = min(1.0, self._waited_s / total_s)
        self._clear()
        return means


def drop_records_after(path: Path, global_step: int) -> dict[str, Any]:
    """Remove the lines of metrics.jsonl past a step, and half-written ones; returns the last one kept, or ``{}``."""
    kept, last = [], {}
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            if record["global_step"] > global_step:
                continue
        except (ValueError, TypeError, KeyError):
            continue
        kept.append(line + "\n")
        last = record
    if path.exists():
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
    return last


def check_wandb(mode: str) -> None:
    """Raise UserError where Weights & Biases is asked for and not installed."""
    if mode != "off" and find_spec("wandb") is None:
        raise UserError(
            f"train.wandb: got {mode}, but the package wandb is not installed; pip install 'qadprep[wandb]', "
            "or use --set train.wandb=off"
        )


def _open_wandb(run_dir: Path, mode: str, config: Config | None) -> Any:
    """A run of Weights & Biases that goes on when the run folder does, and tells nothing of the machine."""
    import wandb

    place = run_dir / "wandb" / "id.txt"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(secrets.token_hex(4), "utf-8")
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        host="-",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    try:
        run = wandb.init(
            project="qadtrain",
            dir=str(run_dir),
            id=place.read_text("utf-8"),
            name=run_dir.resolve().name,
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=None if config is None else config.flat() | {"config_hash": config_hash(config)},
            settings=settings,
        )
    except wandb.Error as error:
        text = " ".join(str(error).split())
        raise UserError(f"train.wandb: got {mode}, but Weights & Biases does not start: {text}") from error
    run.define_metric("*", step_metric="global_step")
    return run


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
