"""Optimiser and learning-rate schedule."""

import math

import torch
from torch.optim.lr_scheduler import OneCycleLR

from qadtrain.config import OptimConfig


def make_optimizer(
    model: torch.nn.Module, config: OptimConfig, total_steps: int
) -> tuple[torch.optim.Adam, OneCycleLR]:
    """Adam over all parameters (frozen ones have no gradient and stay) and one cycle stepped per iteration."""
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    pct_start = config.pct_start
    if math.isclose(pct_start * total_steps, 1.0):
        pct_start *= 1.001  # OneCycleLR divides by (pct_start * total_steps - 1)
    schedule = OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=total_steps,
        pct_start=pct_start,
        cycle_momentum=config.cycle_momentum,
    )
    return optimizer, schedule
