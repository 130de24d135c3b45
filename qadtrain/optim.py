"""Optimiser, learning-rate schedule, gradient norm."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from qadtrain.config import OptimConfig


def make_optimizer(
    model: nn.Module, config: OptimConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Optimiser over all parameters (frozen ones have no gradient and stay), and its schedule.

    Args:
        model: weights fp32, already on their device.
        config: the section ``[optim]``.
        total_steps: optimiser steps of the whole run; the schedule is stepped after each of them.

    Returns:
        The optimiser and a schedule whose first learning rate is already set.
    """
    parameters = list(model.parameters())
    rate, decay = config.learning_rate, config.weight_decay
    match config.optimizer:
        case "adam":
            optimizer = torch.optim.Adam(parameters, lr=rate, betas=config.betas, weight_decay=decay)
        case "adamw":
            optimizer = torch.optim.AdamW(parameters, lr=rate, betas=config.betas, weight_decay=decay)
        case "sgd":
            optimizer = torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    if config.schedule == "one_cycle":
        return optimizer, _one_cycle(optimizer, config, total_steps)
    return optimizer, LambdaLR(optimizer, relative_rate(config, total_steps))


def _one_cycle(optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> OneCycleLR:
    pct_start = config.pct_start
    if math.isclose(pct_start * total_steps, 1.0):
        pct_start *= 1.001  # OneCycleLR divides by (pct_start * total_steps - 1)
    return OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=total_steps,
        pct_start=pct_start,
        # Without momentum in the optimiser there is nothing to cycle, and torch refuses to.
        cycle_momentum=config.cycle_momentum and not (config.optimizer == "sgd" and config.momentum == 0),
    )


def advance(schedule: LRScheduler, *, stepped: bool) -> None:
    """Move the schedule on by one step, also past one that the optimiser did not take."""
    if stepped:
        schedule.step()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch misses the optimiser's step, if it was the first one
        schedule.step()


def continue_changed(
    optimizer: torch.optim.Optimizer, schedule: LRScheduler, saved: Mapping[str, Any], steps_done: int
) -> None:
    """Go on under another configuration: the moments of a checkpoint, the settings and schedule of the new one.

    Args:
        optimizer, schedule: new, as from :func:`make_optimizer`.
        saved: ``state_dict()`` of the optimiser of before; of another kind of optimiser nothing is taken over.
        steps_done: where in the new schedule the run is.
    """
    fresh = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    if optimizer.defaults.keys() <= saved["param_groups"][0].keys():
        optimizer.load_state_dict(dict(saved))
        for group, values in zip(optimizer.param_groups, fresh, strict=True):
            group.update(values)
    if steps_done:
        schedule.last_epoch = steps_done - 1
        advance(schedule, stepped=False)


def relative_rate(config: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Learning rate of ``cosine``, ``linear`` and ``constant`` at a step from 0, relative to the peak.

    It rises as (step + 1) / warm-up steps, reaches 1 at the last warm-up step, and from there falls to
    ``final_rate`` at the last step of the run (cosine: half a period; linear: a line; constant: not at all).
    """
    steps_per_epoch = total_steps / config.epochs
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    last = max(total_steps - 1, 1)
    top = max(warmup - 1, 0)  # the last warm-up step is the first at the peak

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        part = min((step - top) / (last - top), 1.0) if last > top else 1.0
        shape = (1 + math.cos(math.pi * part)) / 2 if config.schedule == "cosine" else 1 - part
        return config.final_rate + (1 - config.final_rate) * shape

    return rate


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """float32 (): Euclidean norm over the gradients of all parameters that have one; inf and NaN come through."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, most: float) -> None:
    """Scale the gradients in place so that their norm, ``norm`` now, is at most ``most``; smaller ones stay."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
