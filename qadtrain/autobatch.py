"""``--batch auto``: the largest batch that leaves a tenth of the memory free, found with the real step."""

import gc
import resource
import threading
from collections.abc import Callable
from math import ceil, lcm
from types import TracebackType

import torch
from rich.console import Console
from torch import Tensor

from qadprep.errors import UserError
from qadprep.machine import available_bytes
from qadprep.shardset import ShardSet
from qadtrain.build import make_loss, make_model
from qadtrain.config import Config
from qadtrain.device import resident_bytes
from qadtrain.distributed import Ranks
from qadtrain.ema import WeightAverage
from qadtrain.guard import FiniteGuard
from qadtrain.hsic import MIN_TUPLES
from qadtrain.optim import make_optimizer
from qadtrain.sampling import sampled_rows
from qadtrain.step import TrainStep

USED_SHARE = 0.9
MULTIPLE = 4
# A larger batch makes a step on the CPU no faster per tuple, only longer; and HSIC needs no more.
MOST_TUPLES_ON_CPU = 64
# The search on a GPU ends when the next size would differ by less than this part.
RESOLUTION = 1 / 16
_MOST_TRIAL_STEPS = 1000


def choose_batch(config: Config, shards: ShardSet, ranks: Ranks, device: torch.device, console: Console) -> int:
    """Tuples per step over all processes, a multiple of 4 and of the processes times their parts.

    Each process tries its own share on its own device with forward, backward and AWP; the smallest answer counts. On a
    GPU sizes grow until memory runs out; on the CPU two small ones are measured and the rest is extrapolated, up to
    :data:`MOST_TUPLES_ON_CPU`. ``hsic.scope = "gathered"`` and the processes' own communication are not measured; the
    free tenth is for them.

    Raises:
        UserError: the split is smaller than the smallest batch, or not even that fits.
    """
    shares, per_request = ranks.world * config.optim.accumulate_steps, 2 if config.data.self_blended else 1
    unit = lcm(MULTIPLE, shares * max(1, config.hsic.group_tuples), shares * per_request)
    smallest = unit * ceil(shares * MIN_TUPLES / unit) if config.hsic.alpha > 0 else unit
    rows, _ = sampled_rows(shards, config.data)
    there = per_request * (rows if isinstance(rows, int) else len(rows))
    most = there // unit * unit
    if most < smallest:
        raise UserError(
            f"data.batch_tuples: an automatic batch needs at least {smallest} tuples in the train split, got "
            f"{there}; give the batch as a number"
        )
    trial = Trial(config, shards, device, ranks.world)
    try:
        if device.type == "cuda":
            found = largest_that_fits(trial.fits_gpu, smallest, most, unit)
        else:
            found = trial.predicted(smallest, min(most, max(smallest, MOST_TUPLES_ON_CPU // unit * unit)), unit)
    finally:
        trial.close()
    found = min(ranks.gather_objects(found))
    if not found:
        raise UserError(
            f"data.batch_tuples: not even {smallest} tuples fit the memory of {device.type}; use a smaller "
            "data.image_size_px or model, or more optim.accumulate_steps"
        )
    console.print(f"batch: {found} tuples a step (automatic)", markup=False, highlight=False, soft_wrap=True)
    return found


def largest_that_fits(fits: Callable[[int], bool], smallest: int, most: int, unit: int) -> int:
    """The largest multiple of ``unit`` found to fit, 0 when ``smallest`` does not: doubling, then halving the gap."""
    good, size = 0, smallest
    while size <= most and fits(size):
        good, size = size, size * 2
    if not good:
        return 0
    bad = min(size, most + unit)
    while bad - good > max(unit, good * RESOLUTION):
        middle = (good + bad) // 2 // unit * unit
        if middle <= good:
            break
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


class Trial:
    """A network and optimiser like the run's, to take steps on made-up pictures of any number."""

    def __init__(self, config: Config, shards: ShardSet, device: torch.device, world: int) -> None:
        self.device, self.world, self.qualities = device, world, len(shards.qualities)
        self.config = config.model_copy(
            # Uncompiled steps need no less memory, and no compilation for each size.
            update={"train": config.train.model_copy(update={"compile": False, "skip_nonfinite": 0})}
        )
        self.before = resident_bytes()
        self.model, _ = make_model(self.config, device, Ranks(), load_weights=False)
        optimizer, schedule = make_optimizer(self.model, config.optim, _MOST_TRIAL_STEPS)
        average = WeightAverage(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        self.step = TrainStep(
            self.model,
            make_loss(self.config, shards, device, Ranks()),
            optimizer,
            schedule,
            self.config,
            qualities=self.qualities,
            device=device,
            ranks=Ranks(),
            guard=_AnyLoss(Ranks(), device, UserError),
            average=average,
        )
        self.step.start_phase(head_only=False)

    def run(self, batch_tuples: int) -> None:
        """Two steps on this process's share of a batch; the second one has the optimiser's memory from the start."""
        share, side = batch_tuples // self.world, self.config.data.image_size_px
        images = torch.randn(share * self.qualities, 3, side, side, device=self.device)
        if self.config.model.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        following = images.clone()  # the loader prepares the next batch meanwhile
        labels = torch.arange(share, device=self.device) % 2
        for number in (1, 2):
            self.step(images, labels, step=number, use_hsic=True, use_awp=self.config.awp.gamma > 0, measure=True)
        del following

    def fits_gpu(self, batch_tuples: int) -> bool:
        """Whether the steps leave a tenth of the GPU free."""
        self._free()
        torch.cuda.reset_peak_memory_stats(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        try:
            self.run(batch_tuples)
            torch.cuda.synchronize(self.device)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            self.step.optimizer.zero_grad(set_to_none=True)
        return others + torch.cuda.max_memory_reserved(self.device) <= USED_SHARE * total

    def predicted(self, smallest: int, most: int, unit: int) -> int:
        """On the CPU: two sizes measured, a line through them, and the largest size below it; 0 when none is."""
        free = available_bytes()
        if free is None or most <= smallest:
            return smallest
        peaks = []
        for size in (smallest, 2 * smallest):
            with PeakMemory() as peak:
                self.run(size)
            peaks.append(peak.bytes - self.before)
        return largest_on_line(smallest, peaks, USED_SHARE * free / self.world, most, unit)

    def close(self) -> None:
        """Give the memory back."""
        del self.step, self.model
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def largest_on_line(smallest: int, peaks: list[int], budget: float, most: int, unit: int) -> int:
    """Largest multiple of ``unit`` up to ``most`` whose memory stays within ``budget`` bytes, 0 when none does.

    Args:
        peaks: bytes needed at ``smallest`` and at twice that; a line through them, never flatter than through the
            origin and the second, tells the rest.
    """
    first, second = peaks
    slope = max((second - first) / smallest, second / (2 * smallest), 1.0)
    largest = 2 * smallest + (budget - second) / slope
    return max(0, min(most, int(largest // unit * unit))) if largest >= smallest else 0


class PeakMemory:
    """Most memory this process holds in RAM inside the context.

    It is looked at every millisecond; and where the process grows past all it has held before, the system has the mark.
    """

    def __enter__(self) -> "PeakMemory":
        self.bytes, self._done, self._mark = resident_bytes(), threading.Event(), _high_water_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if (mark := _high_water_bytes()) > self._mark:
            self.bytes = max(self.bytes, mark)

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, resident_bytes())


def _high_water_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _AnyLoss(FiniteGuard):
    """What the loss of made-up pictures is does not matter."""

    def add(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Nothing to note."""
