"""The device, the precision and the seeds of a run."""

import os
import random
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from qadprep.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` = CUDA when there is one, else the CPU; any other name as torch knows it.

    Raises:
        UserError: a device this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device: got {name!r}, expected auto, cpu or an available GPU ({reason})") from None
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run under bf16 autocast: on request, or by ``auto`` on CUDA that has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def autocast_to(precision: str, device: torch.device) -> AbstractContextManager:
    """bf16 autocast or nothing. The weights stay fp32: bf16 ones could not hold AWP's small steps."""
    if uses_bf16(precision, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; with ``deterministic`` also forbid kernels that add in any order."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("highest")  # HSIC's backward pass runs outside its own guard
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call itself imports for seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
