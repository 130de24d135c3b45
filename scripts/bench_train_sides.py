"""The sides that bench_train.py compares: timm's loop, and qadtrain's step with this or that switched on."""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from qadprep.shardset import ShardSet
from qadtrain.config import Config
from qadtrain.device import autocast_to
from qadtrain.prefetch import DeviceBatch, TrainBatches
from qadtrain.trainer import Trainer

MANY_EPOCHS = 100_000  # the shards must not end before the benchmark does


@dataclass
class Side:
    """One way to train; ``run`` takes so many steps."""

    name: str
    run: Callable[[int], None]
    seconds: list[float] = field(default_factory=list)  # a step, one value a round


def settings(model: str, taps: list[str], precision: str, workers: int, size_px: int, tuples: int) -> dict[str, Any]:
    """Cross-entropy alone; optimiser and rate are those of timm's benchmark."""
    weights = [1 / len(taps)] * len(taps)
    return {
        "data": {"image_size_px": size_px, "batch_tuples": tuples, "num_workers": workers},
        "model": {"name": model, "pretrained": False, "taps": taps},
        "hsic": {"alpha": 0.0, "weights": weights}, "awp": {"gamma": 0.0, "start_epoch": 0},
        "optim": {"epochs": MANY_EPOCHS, "head_only_epochs": 0, "optimizer": "sgd", "learning_rate": 1e-4,
                  "schedule": "constant"},
        "train": {"precision": precision},
    }  # fmt: skip


def changed(base: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {name: fields | sections.get(name, {}) for name, fields in base.items()}


def whole_method(base: dict[str, Any]) -> dict[str, Any]:
    return changed(base, hsic={"alpha": 0.01}, awp={"gamma": 0.002})


def make_sides(
    stack: ExitStack, shards: ShardSet, base: dict[str, Any], fixed: DeviceBatch, device: torch.device
) -> list[Side]:
    def qad(fields: dict[str, Any]) -> Callable[[int], None]:
        trainer = made_trainer(shards, fields, device)
        return lambda steps: take_steps(trainer, (fixed for _ in range(steps)))

    awp = {"gamma": 0.002}
    return [
        Side("timm", timm_loop(base, fixed, device)),
        Side("memory", qad(base)),
        Feed(stack, shards, base, device),
        Side("hsic", qad(changed(base, hsic={"alpha": 0.01}))),
        Side("awp", qad(changed(base, awp=awp))),
        Side("half", qad(changed(base, awp=awp | {"batch_fraction": 0.5}))),
    ]


class Feed(Side):
    """The side that reads shards. What its workers had ready when its turn came is used up before the clock starts."""

    def __init__(self, stack: ExitStack, shards: ShardSet, fields: dict[str, Any], device: torch.device) -> None:
        super().__init__("shards", self._run)
        self.trainer = made_trainer(shards, fields, device)
        batches = stack.enter_context(TrainBatches(shards, self.trainer.config, device=device))
        self.batches = iter(batches)
        self.ready = 2 + batches.loader.num_workers * (batches.loader.prefetch_factor or 0)
        self.waited_s = self.total_s = 0.0

    @property
    def wait(self) -> float:
        """Share of the time in which the host waited for data."""
        return self.waited_s / self.total_s

    def refill(self) -> None:
        self._take(self.ready)

    def forget(self) -> None:
        self.waited_s = self.total_s = 0.0

    def _run(self, steps: int) -> None:
        started = time.perf_counter()
        self.waited_s += self._take(steps)
        synchronise(self.trainer.device)
        self.total_s += time.perf_counter() - started

    def _take(self, steps: int) -> float:
        waited_s = 0.0
        for _ in range(steps):
            batch = next(self.batches)
            waited_s += batch.waited_s
            take_steps(self.trainer, [batch])
        return waited_s


def made_trainer(shards: ShardSet, fields: dict[str, Any], device: torch.device) -> Trainer:
    config = Config.model_validate(fields)
    # Nothing is written: steps alone are taken, and they write no files.
    trainer = Trainer(shards, None, config, Path("unused"), Console(quiet=True), device=device)
    trainer.step.start_phase(head_only=False)
    return trainer


def take_steps(trainer: Trainer, batches: Iterable[DeviceBatch]) -> None:
    """As the trainer's own loop does, with what it measures for the log at every n-th step."""
    for batch in batches:
        measure = (trainer.position.global_step + 1) % trainer.config.train.log_every_steps == 0
        trainer.train_step(batch, measure=measure)


def timm_loop(fields: dict[str, Any], fixed: DeviceBatch, device: torch.device) -> Callable[[int], None]:
    import timm

    config = Config.model_validate(fields)
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    model: nn.Module = timm.create_model(config.model.name, num_classes=2)
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.learning_rate, momentum=config.optim.momentum)
    images, labels = fixed.images, fixed.labels.repeat_interleave(len(fixed.images) // len(fixed.labels))

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            with autocast_to(config.train.precision, device):
                logits = model(images)
            functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    return run


def first_batch(shards: ShardSet, fields: dict[str, Any], device: torch.device) -> DeviceBatch:
    with TrainBatches(shards, Config.model_validate(fields), device=device) as batches:
        return next(iter(batches))


def timed(side: Side, steps: int, device: torch.device) -> float:
    """Seconds a step."""
    if isinstance(side, Feed):
        side.refill()
    synchronise(device)
    started = time.perf_counter()
    side.run(steps)
    synchronise(device)
    return (time.perf_counter() - started) / steps


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
