"""From uint8 tuples to the network's input: flip, resize, augmentation and normalisation.

Augmentation is drawn on the CPU for each tuple and applied on the device to the pictures of a batch at once.

All numbers of a tuple come from one generator seeded by (seed, epoch, index), always in the same places, so that they
depend neither on workers, ranks and batches nor on which of the augmentations are on. All qualities of a tuple get the
same draw, unless ``augment.per_quality``.

The order is fixed: JPEG (in the loader, on the uint8 crop), flip, resize, colour, blur, erase, normalise. The pixels of
the steps on the device are float32 in 0..255 and are not rounded.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qadtrain.config import AugmentConfig
from qadtrain.sampling import AUGMENT

MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
# Where each uniform number of a draw lies. The order is part of the method: a seed means the same pictures.
_FIELDS = ("erase", "area", "aspect", "top", "left", "noise", "blur", "sigma", "colour", "brightness", "contrast",
           "saturation", "jpeg", "jpeg_quality")  # fmt: skip
FIELD = {name: place for place, name in enumerate(_FIELDS)}
# Random erasing (Zhong et al. 2020, arXiv 1708.04896): share of the picture's area, and height over width.
ERASE_AREA, ERASE_ASPECT = (0.02, 0.2), (0.3, 1 / 0.3)
_LUMA = (0.299, 0.587, 0.114)  # BT.601
_MASK32 = 0xFFFFFFFF


def is_on(config: AugmentConfig) -> bool:
    """Whether any augmentation beside the flip has a probability above 0."""
    return bool(
        config.erase_probability or config.blur_probability or config.colour_probability or config.jpeg_probability
    )


def draw(config: AugmentConfig, seed: int, key: tuple[int, ...], qualities: int) -> np.ndarray | None:
    """The random numbers of one tuple.

    Args:
        seed: of the run.
        key: (epoch, index), or (epoch, index, repeat).
        qualities: M.

    Returns:
        float64 (V, 14) in 0..1, fields as in :data:`FIELD`; V = M with ``per_quality``, else 1. None when nothing
        is on.
    """
    if not is_on(config):
        return None
    views = qualities if config.per_quality else 1
    return np.random.default_rng([seed, AUGMENT, *key]).random((views, len(_FIELDS)))


def jpeg_round_trip(images: np.ndarray, draws: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Encode the drawn pictures as JPEG (libjpeg, 4:2:0) and decode them again.

    Args:
        images: uint8 (M, H, W, 3) RGB.
        draws: float64 (1 or M, 14) of :func:`draw`.

    Returns:
        uint8 (M, H, W, 3); ``images`` itself when none was drawn.
    """
    each = np.broadcast_to(draws, (len(images), draws.shape[1]))
    chosen = each[:, FIELD["jpeg"]] < config.jpeg_probability
    if not chosen.any():
        return images
    low, high = config.jpeg_quality
    result = images.copy()
    for number in np.flatnonzero(chosen):
        quality = low + math.floor(each[number, FIELD["jpeg_quality"]] * (high - low + 1))
        _, data = cv2.imencode(".jpg", images[number][:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        result[number] = cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]
    return result


def to_network_input(
    images: Tensor,
    flips: Tensor | None,
    *,
    size_px: int,
    normalization: str,
    device: torch.device,
    channels_last: bool = False,
    draws: Tensor | None = None,
    augment_config: AugmentConfig | None = None,
) -> Tensor:
    """Move, flip, resize, augment and normalise on the device.

    Args:
        images: uint8 (B, M, H, W, 3) RGB.
        flips: bool (B,); None = no flip.
        size_px: side of the result; bilinear, antialiased when shrinking.
        normalization: a key of :data:`MEAN_STD`.
        draws, augment_config: of ``augment.py``; None = no augmentation.

    Returns:
        float32 (B * M, 3, size_px, size_px), tuple by tuple, normalised.
    """
    batch = images.to(device, non_blocking=True)
    pixels = batch.flatten(0, 1).permute(0, 3, 1, 2).float()
    if flips is not None:
        mirror = flips.to(device, non_blocking=True).repeat_interleave(images.shape[1])
        pixels = torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)
    if pixels.shape[-2:] != (size_px, size_px):
        pixels = functional.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True)
    if draws is not None and augment_config is not None:
        pixels = augment(pixels, draws, augment_config)
    mean, std = _mean_std(normalization, device)
    pixels = (pixels / 255 - mean) / std
    return pixels.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@lru_cache
def _mean_std(normalization: str, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in MEAN_STD[normalization])
    return mean, std


def augment(pixels: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Colour, blur and erase the drawn pictures, in place.

    Args:
        pixels: float32 (B * M, 3, H, W) in 0..255, RGB, tuple by tuple, on any device.
        draws: float64 (B, 1 or M, 14) on the CPU: which pictures are touched is known without asking the device.

    Returns:
        ``pixels``, in 0..255.
    """
    tuples, views, fields = draws.shape
    each = draws.expand(tuples, len(pixels) // tuples if views == 1 else views, fields).reshape(-1, fields)
    for name, probability, change in (
        ("colour", config.colour_probability, _colour),
        ("blur", config.blur_probability, _blur),
        ("erase", config.erase_probability, _erase),
    ):
        rows = torch.nonzero(each[:, FIELD[name]] < probability).flatten()
        if len(rows):
            there = _sent(rows, pixels.device)
            pixels[there] = change(pixels[there], each[rows], config)
    return pixels


def _colour(pixels: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Brightness, contrast about the picture's mean luma, saturation, in this order; clipped after each."""
    strength = config.colour_strength
    for name in ("brightness", "contrast", "saturation"):
        factor = _column(1 - strength + 2 * strength * draws[:, FIELD[name]], pixels)
        if name == "brightness":
            pixels = pixels * factor
        else:
            grey = _luma(pixels)
            base = grey.mean((2, 3), keepdim=True) if name == "contrast" else grey
            pixels = base + (pixels - base) * factor
        pixels = pixels.clamp(0, 255)
    return pixels


def _blur(pixels: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Gaussian blur, a sigma for each picture, mirrored at the border without the border pixel.

    The kernel reaches 3 of the largest sigma of the *configuration* to each side, not of the batch: a picture's result
    must not depend on its neighbours. Weighted shifts instead of a convolution: those would run in TF32 on a GPU, with
    errors of a tenth of a grey level.
    """
    low, high = config.blur_sigma_px
    sigma = low + (high - low) * draws[:, FIELD["sigma"]]
    radius = min(math.ceil(3 * high), min(pixels.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    weights = _sent((kernel / kernel.sum(1, keepdim=True)).to(pixels.dtype), pixels.device)
    for dim, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = functional.pad(pixels, padding, mode="reflect") if radius else pixels
        size = pixels.shape[dim]
        pixels = torch.zeros_like(pixels)
        for place in range(2 * radius + 1):
            pixels.addcmul_(padded.narrow(dim, place, size), weights[:, place, None, None, None])
    return pixels


def _erase(pixels: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Set a rectangle of uniform area and log-uniform aspect to uniform noise, a value for each pixel and channel."""
    height, width = pixels.shape[2:]
    area = ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * draws[:, FIELD["area"]]
    low, high = (math.log(value) for value in ERASE_ASPECT)
    aspect = torch.exp(low + (high - low) * draws[:, FIELD["aspect"]])
    rows = (area * height * width * aspect).sqrt().round().clamp(1, height)
    columns = (area * height * width / aspect).sqrt().round().clamp(1, width)
    top = (draws[:, FIELD["top"]] * (height - rows + 1)).floor()
    left = (draws[:, FIELD["left"]] * (width - columns + 1)).floor()
    y = torch.arange(height, device=pixels.device)[None, None, :, None]
    x = torch.arange(width, device=pixels.device)[None, None, None, :]
    top, bottom, left, right = (_column(edge, pixels) for edge in (top, top + rows, left, left + columns))
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    seeds = _sent((draws[:, FIELD["noise"]] * 2**32).long(), pixels.device)[:, None, None, None]
    return torch.where(inside, _noise(seeds, y, x, width), pixels)


def _noise(seeds: Tensor, y: Tensor, x: Tensor, width: int) -> Tensor:
    """float32 (n, 3, H, W), whole numbers uniform in 0..255: an integer hash of seed and place.

    A hash gives the same noise on every device and in every batch, which a device's generator does not. It is the
    finaliser "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018), in the low 32 bits of int64.
    """
    value = _hashed(_hashed(y * width + x) ^ seeds)
    return torch.cat([(value >> shift) & 255 for shift in (0, 8, 16)], dim=1).float()


def _hashed(value: Tensor) -> Tensor:
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK32
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK32
    return value ^ (value >> 16)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """float64 (n,) on the CPU -> float32 (n, 1, 1, 1) on the device of ``like``."""
    return _sent(values.to(like.dtype), like.device)[:, None, None, None]


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device.

    From pinned memory: a copy from pageable memory makes the host wait for all that the stream has still to do, and so
    would hold up the next step.
    """
    if device.type == "cpu":
        return values
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
