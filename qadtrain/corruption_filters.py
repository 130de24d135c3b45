"""Blur and resampling of uint8 pictures on the device, in whole numbers as OpenCV has them."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_KERNEL_ONE = 256  # OpenCV blurs uint8 with weights of 8 bits after the point,
_RESIZE_ONE = 2048  # and resizes it with 11


def resized(images: Tensor, size_px: int) -> Tensor:
    """uint8 (N, 3, H, W) to uint8 (N, 3, size_px, size_px): bilinear, antialiased when shrinking, rounded."""
    if images.shape[-2:] == (size_px, size_px):
        return images
    pixels = functional.interpolate(images.float(), (size_px, size_px), mode="bilinear", antialias=True)
    return (pixels + 0.5).clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, kernel_px: float) -> Tensor:
    """Gaussian blur with sigma = k / 6, equal to OpenCV's on uint8 to the bit: whole numbers, exact in float32.

    Weighted shifts instead of a convolution: on a GPU those would run in TF32.
    """
    weights = gaussian_weights(int(kernel_px))
    pixels = images.float()
    for dim in (3, 2):
        # As NumPy mirrors, also where the kernel is wider than the picture; the border pixel is not doubled.
        size, radius = pixels.shape[dim], len(weights) // 2
        places = torch.from_numpy(np.pad(np.arange(size), radius, mode="reflect")).to(pixels.device)
        padded = pixels.index_select(dim, places)
        pixels = torch.zeros_like(pixels)
        for place, weight in enumerate(weights):
            pixels.add_(padded.narrow(dim, place, size), alpha=weight)
    return ((pixels + _KERNEL_ONE**2 / 2) / _KERNEL_ONE**2).floor().to(torch.uint8)


@lru_cache
def gaussian_weights(size: int) -> tuple[int, ...]:
    """A Gaussian of ``size`` values and sigma = size / 6 in whole 256ths that add up to 1.

    Each value is rounded together with the error of the ones before, from the edge inwards; the middle takes the rest.
    OpenCV rounds its kernel for uint8 pictures so.
    """
    offsets = np.arange(size) - size // 2
    exact = np.exp(-(offsets**2) / (2 * (size / 6) ** 2))
    exact *= _KERNEL_ONE / exact.sum()
    half, error = [], 0.0
    for value in exact[: size // 2].tolist():
        half.append(round(value + error))
        error += value - half[-1]
    return (*half, _KERNEL_ONE - 2 * sum(half), *reversed(half))


def pixelation(images: Tensor, factor: float) -> Tensor:
    """Bilinear down to 1 / p of the size without antialiasing, and up again; uint8 in between."""
    height, width = images.shape[2:]
    small = _bilinear(images, max(1, int(height // factor)), max(1, int(width // factor)))
    return _bilinear(small, height, width)


def _bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Bilinear without antialiasing, equal to OpenCV's ``resize`` of uint8 to the bit: weights in whole 2048ths."""
    (left, right, weight), (top, bottom, fraction) = (
        (part.to(images.device) for part in _taps(images.shape[dim], size, clamped))
        for dim, size, clamped in ((3, width, True), (2, height, False))
    )
    pixels = images.int()
    rows = (pixels[..., left] * (_RESIZE_ONE - weight) + pixels[..., right] * weight) >> 4
    # OpenCV truncates each of the two products before it rounds their sum.
    upper = rows[:, :, top] * (_RESIZE_ONE - fraction)[:, None] >> 16
    lower = rows[:, :, bottom] * fraction[:, None] >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


@lru_cache
def _taps(source: int, target: int, clamped: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The two places in the source, int64 (target,) each, and the weight of the second in 2048ths, int32 (target,).

    Args:
        clamped: beyond the border the weight is 0, as OpenCV has it along rows; along columns it keeps the weight and
            takes the border twice, which truncates otherwise.
    """
    at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    weight = np.rint((at - first.astype(np.float32)) * np.float32(_RESIZE_ONE)).astype(np.int64)
    if clamped:
        weight[(first < 0) | (first >= source - 1)] = 0
    places = (np.clip(place, 0, source - 1) for place in (first, first + 1))
    return *(torch.from_numpy(place) for place in places), torch.from_numpy(weight.astype(np.int32))
