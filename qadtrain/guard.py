"""What the processes must agree on: whether loss and gradient are finite, whether to stop, what goes to the log."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from qadprep.errors import UserError
from qadtrain.distributed import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """One step's loss (mean over the processes) and gradient norm, on the host."""

    step: int
    loss: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)

    def fault(self) -> str:
        """What is wrong, in words."""
        if not math.isfinite(self.loss):
            return f"the loss of step {self.step} is {self.loss}"
        return f"the gradient of step {self.step} is not finite"


class FiniteGuard:
    """Stops a run on an inf or NaN, without holding up the device.

    A verdict is copied to the host behind the step's own work and read one step later on a GPU, when it has long
    arrived: a step with an inf may so have been taken when the run stops, but no checkpoint was written after it,
    for :meth:`settle` comes before every one. Where steps are to be left out instead (``train.skip_nonfinite``),
    the verdict is needed before the optimiser steps, and each step waits for it.

    Args:
        ranks: the processes that must come to the same verdict; their losses are added, so an inf of one reaches all.
        device: where losses are.
        explain: fault in words -> the error that ends the run.
    """

    def __init__(self, ranks: Ranks, device: torch.device, explain: Callable[[str], UserError]) -> None:
        self.ranks, self.device, self.explain = ranks, device, explain
        self._on_gpu = device.type == "cuda"
        self._open: deque[tuple[int, Tensor, Any]] = deque()

    def add(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note a step's loss () and gradient norm (); raises for a step before that was not finite."""
        pair = torch.stack([loss.detach().float(), gradient_norm.detach().float().to(loss.device)])
        pair = self.ranks.sum(pair)
        arrived = None
        if self._on_gpu:
            on_host = torch.empty(2, pin_memory=True)
            on_host.copy_(pair, non_blocking=True)
            pair, arrived = on_host, torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(self.device))
        self._open.append((step, pair, arrived))
        while len(self._open) > (1 if self._on_gpu else 0):
            self._raise_unless_finite(self._next())

    def judge(self, step: int, loss: Tensor, gradient_norm: Tensor) -> Verdict:
        """The verdict on this very step; waits for the device."""
        self.settle()
        pair = torch.stack([loss.detach().float(), gradient_norm.detach().float().to(loss.device)])
        return self._verdict(step, self.ranks.sum(pair))

    def settle(self) -> None:
        """Read all that is still open; raises for a step that was not finite."""
        while self._open:
            self._raise_unless_finite(self._next())

    def _next(self) -> Verdict:
        step, pair, arrived = self._open.popleft()
        if arrived is not None:
            arrived.synchronize()
        return self._verdict(step, pair)

    def _verdict(self, step: int, pair: Tensor) -> Verdict:
        loss, norm = pair.tolist()
        return Verdict(step, loss / self.ranks.world, norm / self.ranks.world)

    def _raise_unless_finite(self, verdict: Verdict) -> None:
        if not verdict.finite:
            self._open.clear()
            raise self.explain(verdict.fault())


class StopRequest:
    """A request to stop that one process may get alone: all end at the same step boundary.

    Alone, a process answers at once. Several ask each other at every 8th boundary, or more often where eight steps
    take longer than :data:`EVERY_SECONDS`, so that the question costs next to nothing and a slow run still answers in
    time; at the last step of an epoch, before its validation, and after that always.

    Args:
        should_stop: asked at step boundaries; the reason, or "".
        ranks: the processes.
        clock: seconds that only rise.
    """

    EVERY_STEPS = 8
    EVERY_SECONDS = 5.0

    def __init__(
        self, should_stop: Callable[[], str], ranks: Ranks, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._should_stop, self.ranks, self._clock = should_stop, ranks, clock
        self._reason, self._every = "", 1  # the first question says how long a step takes
        self._asked_at, self._boundaries = clock(), 0

    def agreed(self, global_step: int, *, now: bool = False) -> str:
        """The reason to stop at this boundary, the same on all processes, or ""."""
        self._reason = self._reason or self._should_stop()
        if self.ranks.world == 1:
            return self._reason
        self._boundaries += 1
        if not now and global_step % self._every:
            return ""
        seconds = (self._clock() - self._asked_at) / self._boundaries
        answers = self.ranks.gather_objects((self._reason, seconds))
        slowest = max(seconds for _, seconds in answers)
        steps = self.EVERY_STEPS if slowest <= 0 else int(min(self.EVERY_STEPS, self.EVERY_SECONDS / slowest))
        self._every = max(1, steps)
        self._asked_at, self._boundaries = self._clock(), 0
        return next((reason for reason, _ in answers if reason), "")


def together(ranks: Ranks, action: Callable[[], T]) -> T:
    """Let every process do what may go wrong in one alone; a UserError of one ends all with the same line.

    Without it the others would wait in their next exchange for the one that has left. ``action`` itself must not
    exchange anything.
    """
    if ranks.world == 1:
        return action()
    failure, result = "", None
    try:
        result = action()
    except UserError as error:
        failure = str(error)
    if ranks.any(bool(failure)):
        raise UserError(next(text for text in ranks.gather_objects(failure) if text))
    return result


def on_main(ranks: Ranks, action: Callable[[], None]) -> None:
    """Let the main process write; a UserError of it (a full disk) ends all processes with the same line."""
    failure = ""
    if ranks.is_main:
        try:
            action()
        except UserError as error:
            if ranks.world == 1:
                raise
            failure = str(error)
    failure = ranks.broadcast_object(failure)
    if failure:
        raise UserError(failure)


def mean_over(ranks: Ranks, value: float) -> float:
    """Mean of the processes' values, in every process."""
    return sum(ranks.gather_objects(value)) / ranks.world


def mean_values(ranks: Ranks, values: Mapping[str, float]) -> dict[str, float]:
    """Mean of each value over the processes that have it."""
    gathered = ranks.gather_objects(dict(values))
    names = dict.fromkeys(name for one in gathered for name in one)
    columns = {name: [one[name] for one in gathered if name in one] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}
