"""Gram matrices of features that are too large to be copied.

The first stage of ResNet-50 at 224 px gives 802,816 numbers an image: 308 MB for 64 tuples of three qualities in
bfloat16. Centring them in float32 with plain operations would keep several copies of twice that size until the
backward pass. Here the feature axis is walked in chunks, forward and backward. Only the features themselves are
kept, in their own dtype, and the network keeps those anyway.

With X of shape (m, d), H = I - 11'/m and G = H X X' H, a gradient S on G gives H (S + S') H X on X.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_NUMBERS = 16 << 20  # of a chunk over all images: 64 MiB in float32; about three such tensors live at a time
DOUBLE_DIMS = 4096  # up to here float64 costs nothing that matters, and a Gram of low rank keeps its zeros


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast and TF32 off: a bf16 kernel at a wide bandwidth has five distinct values."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_rows(features: Tensor) -> Tensor:
    """(n, ...) -> (n, d), without a copy where the memory of each row is dense.

    The order of the d numbers follows the memory: (N, C, H, W) in ``channels_last`` comes as (N, H * W * C). No
    kernel here depends on that order, as long as it is the same for all rows.
    """
    order = sorted(range(1, features.ndim), key=lambda axis: -features.stride(axis))
    return features.permute(0, *order).reshape(len(features), -1)


def quality_grams(features: Tensor, qualities: int = 1, group_tuples: int = 0) -> Tensor:
    """Gram matrices of centred features, one for each group of tuples and each quality.

    Args:
        features: float (n * qualities, ...), tuple by tuple: row b * qualities + q is quality q of tuple b.
        group_tuples: tuples in a group, which are centred together; a divisor of n. 0 = all of them.

    Returns:
        (n / group_tuples, qualities, group_tuples, group_tuples), symmetric. float64, whose entries are summed in
        float32 inside a chunk (float32 throughout on Apple's GPUs, which have no float64).
    """
    rows = as_rows(features)
    group = group_tuples or len(rows) // qualities
    if group == 0 or len(rows) % (group * qualities):
        raise ValueError(
            f"features: got {len(rows)} rows, expected a multiple of {max(group, 1)} tuples of {qualities} qualities"
        )
    return _QualityGrams.apply(rows, qualities, group)


class _QualityGrams(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, qualities: int, group: int) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = (len(rows) // (group * qualities), group, qualities)
        groups = ctx.shape[0]
        sums = torch.zeros(groups * qualities, group, group, dtype=_sum_dtype(rows), device=rows.device)
        with full_precision(rows.device):
            for columns in _chunks(rows):
                chunk = _centred_chunk(rows, columns, ctx.shape)
                sums += torch.bmm(chunk, chunk.mT)
        return ((sums + sums.mT) / 2).unflatten(0, (groups, qualities))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        groups, _, qualities = ctx.shape
        both = (gradient + gradient.mT).flatten(0, 1)
        both = both - both.mean(dim=1, keepdim=True)
        both = (both - both.mean(dim=2, keepdim=True)).to(_work_dtype(rows))
        result = torch.empty_like(rows)
        parts = result.unflatten(0, ctx.shape)
        with full_precision(rows.device):  # the guard around the forward pass has closed long ago
            for columns in _chunks(rows):
                chunk = torch.bmm(both, _centred_chunk(rows, columns, ctx.shape))
                parts[..., columns] = chunk.unflatten(0, (groups, qualities)).transpose(1, 2).to(rows.dtype)
        return result, None, None


def _chunks(rows: Tensor) -> Iterator[slice]:
    width = max(1, CHUNK_NUMBERS // max(1, len(rows)))
    for start in range(0, rows.shape[1], width):
        yield slice(start, start + width)


def _centred_chunk(rows: Tensor, columns: slice, shape: tuple[int, int, int]) -> Tensor:
    """(groups * qualities, group, c) in the working dtype, the mean over each group taken out.

    Centring changes no distance, and |x|^2 becomes small enough not to swamp them.
    """
    chunk = rows.unflatten(0, shape)[..., columns].transpose(1, 2)
    chunk = chunk.to(_work_dtype(rows), copy=True, memory_format=torch.contiguous_format).flatten(0, 1)
    return chunk.sub_(chunk.mean(dim=1, keepdim=True))


def _work_dtype(rows: Tensor) -> torch.dtype:
    small = rows.shape[1] <= DOUBLE_DIMS and rows.device.type != "mps"
    return torch.float64 if small or rows.dtype == torch.float64 else torch.float32


def _sum_dtype(rows: Tensor) -> torch.dtype:
    return torch.float32 if rows.device.type == "mps" else torch.float64
