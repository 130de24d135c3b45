"""The device, the precision and the seeds of a run."""

import os
import random
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

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


def resolved_precision(precision: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``: ``auto`` is bf16 on a GPU that has it and fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast_to(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast to bf16 or fp16, or fp32 throughout. The weights stay fp32: halves could not hold AWP's small steps.

    cuDNN would round fp32 convolutions to TF32 unless it is told not to; here they keep all of their bits. That holds
    inside the context alone: a backward pass outside of it needs :func:`seed_everything`.
    """
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolved_precision(precision, device))
    if kind is not None:
        return torch.autocast(device.type, dtype=kind)
    return _no_tf32() if device.type == "cuda" else nullcontext()


@contextmanager
def _no_tf32() -> Iterator[None]:
    # The older of torch's two switches, as for matrix products (gram.py): the two kinds must not be mixed.
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def precision_name(precision: str, device: torch.device) -> str:
    """For people: ``fp32``, ``bf16 autocast`` or ``fp16 autocast``."""
    name = resolved_precision(precision, device)
    return name if name == "fp32" else f"{name} autocast"


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_gb(device: torch.device) -> float:
    """Most memory allocated on a GPU since the last call, or what this process holds in RAM now; in 10^9 bytes."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most / 1e9
    return resident_bytes() / 1e9


def resident_bytes() -> int:
    """Bytes that this process holds in RAM; where the system does not say, the most it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step: dropout and stochastic depth then depend on nothing before it.

    A resumed run so draws what a straight one draws, at any step, without saving the generators. Each process draws
    masks of its own.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> 1))


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; with ``deterministic`` also forbid kernels that add in any order.

    What is computed in fp32 keeps all of its bits from here on: TF32 is off for matrix products and convolutions. Under
    autocast both run in halves, so this costs fp32 training alone.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("highest")  # HSIC's backward pass runs outside its own guard
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call itself imports for seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = False  # its default is True
    torch.backends.cudnn.benchmark = not deterministic
