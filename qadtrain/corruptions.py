"""Corruptions that no detector was trained on, at five severities: parameters of DeeperForensics-1.0.

Those of this module work on uint8 pictures of a batch, on their device, and give uint8 like the original, which
truncates. JPEG and video compression are in ``corruption_codecs.py``, on the CPU.

All that is random is a function of a picture's seed and of the place in the picture: it depends neither on the batch
nor on the loader's workers. All severities of a picture share it: the noise of a higher severity is that of a lower one
times a factor, and the blocks of a lower severity are among those of a higher one.

Source: Jiang et al., "DeeperForensics-1.0", CVPR 2020; parameters and formulas of its code (``perturbation/``, MIT).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qadprep.errors import UserError
from qadtrain.corruption_filters import blur, pixelation

SEVERITIES = (1, 2, 3, 4, 5)
BLOCK_RULES = ("original", "scaled")
BLOCK_PX, BLOCK_GREY = 8, 128
# The original draws its blocks per so many px of the shorter side, rounded down: none below.
BLOCK_SIDE_PX = 256
_MASK32 = 0xFFFFFFFF
_NOISY_AT_ONCE = 32  # pictures: the hash takes 24 bytes a pixel, several times
# BT.601 as OpenCV has it for float pictures: to YCrCb and back (B of Cb, G of Cb and Cr, R of Cr).
_LUMA = (0.299, 0.587, 0.114)
_CR, _CB = 0.713, 0.564
_R_CR, _G_CR, _G_CB, _B_CB = 1.403, -0.714, -0.344, 1.773


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        name: word in options and files.
        code: short name of DeeperForensics-1.0, except PX and JPEG: what it calls JPEG is our PX.
        parameter: what the levels are.
        levels: one value for each of the severities 1..5.
        on_device: done by :func:`corrupt`; else by ``corruption_codecs.py``.
        random: needs seeds.
    """

    name: str
    code: str
    parameter: str
    levels: tuple[float, ...]
    on_device: bool = True
    random: bool = False


_ALL = (
    Corruption("saturation", "CS", "factor of the colour", (0.4, 0.3, 0.2, 0.1, 0.0)),
    Corruption("contrast", "CC", "factor of all channels", (0.85, 0.725, 0.6, 0.475, 0.35)),
    Corruption("blocks", "BW", "blocks per 256 px", (16, 32, 48, 64, 80), random=True),
    Corruption("noise", "GNC", "variance", (0.001, 0.002, 0.005, 0.01, 0.05), random=True),
    Corruption("blur", "GB", "kernel px", (7, 9, 13, 17, 21)),
    Corruption("pixelation", "PX", "times smaller", (2, 3, 4, 5, 6)),
    Corruption("jpeg", "JPEG", "quality", (90, 70, 50, 30, 10), on_device=False),
    Corruption("video", "VC", "x264 CRF", (30, 32, 35, 38, 40), on_device=False),
)
CORRUPTIONS = {corruption.name: corruption for corruption in _ALL}
# Those of Fig. 6 of the QAD supplementary.
FIGURE_6 = ("saturation", "contrast", "blocks", "noise", "blur")


def chosen_corruptions(names: Sequence[str]) -> tuple[str, ...]:
    """Names out of :data:`CORRUPTIONS`, in the order of that table; codes, ``all`` and ``figure6`` are understood.

    Raises:
        UserError: an unknown name, or none.
    """
    codes = {corruption.code.lower(): corruption.name for corruption in _ALL}
    wanted: set[str] = set()
    for name in names:
        word = name.strip().lower()
        if word in ("all", "figure6"):
            wanted |= set(CORRUPTIONS if word == "all" else FIGURE_6)
        elif word in CORRUPTIONS or word in codes:
            wanted.add(codes.get(word, word))
        else:
            raise UserError(f"--corruptions: got {name!r}, expected all, figure6 or some of {', '.join(CORRUPTIONS)}")
    if not wanted:
        raise UserError(f"--corruptions: got none, expected all, figure6 or some of {', '.join(CORRUPTIONS)}")
    return tuple(name for name in CORRUPTIONS if name in wanted)


def level(name: str, severity: int) -> float:
    """Parameter of a corruption at a severity 1..5.

    Raises:
        ValueError: another severity, or an unknown name.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"corruption and severity: got {name!r} and {severity!r}, expected a known one and 1 to 5")
    return CORRUPTIONS[name].levels[severity - 1]


def picture_seed(seed: int, name: str, key: str) -> int:
    """32-bit seed of a tuple's pictures, the same for all of its qualities and severities.

    Args:
        seed: of the evaluation.
        name: corruption.
        key: of the tuple in the shard set.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{key}".encode()).digest()[:4], "little")


def corrupt(images: Tensor, name: str, severity: int, seeds: Tensor | None = None, *, blocks: str = "scaled") -> Tensor:
    """Corrupt a batch of pictures on its device.

    Args:
        images: uint8 (N, 3, H, W), RGB; unchanged afterwards.
        name: a corruption with ``on_device``.
        severity: 1..5.
        seeds: int64 (N,) of :func:`picture_seed`, for ``blocks`` and ``noise``.
        blocks: ``original`` or ``scaled``, see :func:`block_rule`.

    Returns:
        uint8 (N, 3, H, W), RGB.

    Raises:
        ValueError: pictures of another type or shape, an unknown corruption or severity, or seeds that are missing.
    """
    value = level(name, severity)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures: got {images.dtype} {tuple(images.shape)}, expected torch.uint8 (N, 3, H, W)")
    if name not in _ON_DEVICE and name not in _SEEDED:
        raise ValueError(f"corruption: got {name!r}, expected one of {', '.join((*_ON_DEVICE, *_SEEDED))}")
    if name in _ON_DEVICE:
        return _ON_DEVICE[name](images, value)
    if seeds is None or seeds.shape != images.shape[:1]:
        raise ValueError(f"seeds: got {None if seeds is None else tuple(seeds.shape)}, expected ({len(images)},)")
    seeds = seeds.to(images.device)
    return _blocks(images, int(value), seeds, blocks) if name == "blocks" else _noise(images, value, seeds)


def block_rule(height: int, width: int, per_256: int, rule: str) -> tuple[int, int]:
    """How many blocks a picture gets, and their side in px.

    ``original``: floor(min(H, W) / 256) * p blocks of 8 px, so none at all where the shorter side is below 256 px.
    ``scaled``: the same from 256 px on; below, p blocks of round(8 * min(H, W) / 256) px, at least 1: the share of the
    picture that a 256 px one would lose.

    Raises:
        ValueError: another rule.
    """
    if rule not in BLOCK_RULES:
        raise ValueError(f"blocks: got {rule!r}, expected {' or '.join(BLOCK_RULES)}")
    side = min(height, width)
    if side >= BLOCK_SIDE_PX or rule == "original":
        return side // BLOCK_SIDE_PX * per_256, BLOCK_PX
    return per_256, max(1, round(BLOCK_PX * side / BLOCK_SIDE_PX))


def block_corners(seeds: Tensor, count: int, height: int, width: int, side: int) -> Tensor:
    """int64 (N, count, 2): top and left of each block, in 0..H-side-1 and 0..W-side-1 as the original draws them."""
    number = torch.arange(count, device=seeds.device)
    places = (2 * number[:, None] + torch.arange(2, device=seeds.device))[None]
    ranges = torch.tensor([max(1, height - side), max(1, width - side)], device=seeds.device)
    return hashed(hashed(places) ^ seeds[:, None, None]) % ranges


def normals(seeds: Tensor, height: int, width: int) -> Tensor:
    """float32 (N, 3, H, W): standard normal numbers, a function of seed and place (Box-Muller).

    A hash gives the same numbers on every device and in every batch, which a device's generator does not.
    """
    places = torch.arange(3 * height * width, device=seeds.device).view(1, 3, height, width)
    first, second = (hashed(hashed(2 * places + half) ^ seeds[:, None, None, None]) for half in (0, 1))
    # In (0, 1]: 24 bits, so that float32 holds them.
    radius = torch.sqrt(-2 * torch.log(((first >> 8) + 1).float() / 2**24))
    return radius * torch.cos(2 * math.pi / 2**24 * (second >> 8).float())


def hashed(value: Tensor) -> Tensor:
    """int64 in 0..2^32-1, hashed: the finaliser "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018)."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK32
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK32
    return value ^ (value >> 16)


def _saturation(images: Tensor, factor: float) -> Tensor:
    """Pull the chroma to 0.5 of its scaled range, as the original does: grey loses up to 0.003 and is truncated."""
    luma, blue, red = _to_ycbcr(images)
    return _from_ycbcr(luma, *(0.5 + (chroma - 0.5) * factor for chroma in (blue, red)))


def _contrast(images: Tensor, factor: float) -> Tensor:
    """All channels times the factor, truncated. It darkens: the mean is not kept."""
    return (images.float() * factor).to(torch.uint8)


def _noise(images: Tensor, variance: float, seeds: Tensor) -> Tensor:
    """White Gaussian noise on Y, Cb and Cr, each scaled to about 0..1: std 297, 290 and 290 * sqrt(p) grey levels."""
    results = []
    for part, its_seeds in zip(images.split(_NOISY_AT_ONCE), seeds.split(_NOISY_AT_ONCE), strict=True):
        noise = math.sqrt(variance) * 255 * normals(its_seeds, *images.shape[2:])
        results.append(_from_ycbcr(*(plane + noise[:, n] for n, plane in enumerate(_to_ycbcr(part)))))
    return torch.cat(results) if results else images.clone()


def _to_ycbcr(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 (N, 3, H, W) RGB -> Y, Cb, Cr, float32 (N, H, W) each.

    The original means 16..235 and 16..240 of pictures in 0..1, but gives it 0..255: its values are 255 times larger
    beside the offsets. It does not matter on the way there and back.
    """
    red, green, blue = images.float().unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    chroma_blue, chroma_red = (blue - luma) * _CB + 0.5, (red - luma) * _CR + 0.5
    return (luma * 219 + 16) / 255, (chroma_blue * 224 + 16) / 255, (chroma_red * 224 + 16) / 255


def _from_ycbcr(luma: Tensor, chroma_blue: Tensor, chroma_red: Tensor) -> Tensor:
    """Back to uint8 (N, 3, H, W) RGB: clipped to 0..255, truncated."""
    luma = (luma * 255 - 16) / 219
    blue, red = ((chroma * 255 - 16) / 224 - 0.5 for chroma in (chroma_blue, chroma_red))
    channels = (luma + _R_CR * red, luma + _G_CR * red + _G_CB * blue, luma + _B_CB * blue)
    return torch.stack(channels, dim=1).clamp(0, 255).to(torch.uint8)


def _blocks(images: Tensor, per_256: int, seeds: Tensor, rule: str) -> Tensor:
    height, width = images.shape[2:]
    count, side = block_rule(height, width, per_256, rule)
    if not count:
        return images.clone()
    top, left = block_corners(seeds, count, height, width, side).unbind(2)
    y, x = (torch.arange(size, device=images.device) for size in (height, width))
    # A pixel is inside when some block holds both its row and its column: one product of 0/1 matrices a picture.
    in_row = (y >= top[..., None]) & (y < top[..., None] + side)
    in_column = (x >= left[..., None]) & (x < left[..., None] + side)
    inside = torch.bmm(in_row.transpose(1, 2).float(), in_column.float()) > 0.5
    return images.masked_fill(inside[:, None], BLOCK_GREY)


_ON_DEVICE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "saturation": _saturation, "contrast": _contrast, "blur": blur, "pixelation": pixelation,
}  # fmt: skip
_SEEDED = ("blocks", "noise")
