"""Whether a frame of a manipulated clip shows the original unchanged: manipulations fail on single frames, in silence.

The rule. Two crops of one place are compared, the manipulated clip's and the original's at the same best quality. Per
pixel, the difference is the largest of its three channels; pixels black in both were not filmed and do not count.

- Lossless (raw): equal within rounding. The mean over the face is at most 0.5 grey levels and the 99.9th percentile at
  most 2.
- Lossy (c23): coding alone differs where neighbouring frames do, so the outside of the face says how much. The
  difference is averaged over patches of 1/16 of the crop's side, with its sign: coding noise cancels out, alterations
  do not. The face's largest patch is at most 1.5 times the outside's largest plus 0.75, and the face's mean at most
  twice the outside's plus 0.6. The outside itself differs by no more than coding can: 5 in the mean, 10 in a patch.
- A mask with no pixel above 127 in the crop says so too.

In doubt a frame counts as altered: it keeps the label of its clip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

import cv2
import numpy as np

from qadprep.faces.mask_labels import marked

_MEAN_MOST, _PEAK_MOST = 0.5, 2.0
# Measured on 12 real clips, each and its altered copy encoded at crf 23 (yuv444p and yuv420p, from frames or from a
# decoded c23), five frames in the middle left as they were. Called unaltered: 99 % or more of copies without a change
# and 69 to 99 % of the five; 0 of 120 with a face swapped, or blended in at 0.2, or a mouth moved by 5 or 15 % of its
# width; 2.5 % with a mouth tinted by 8 grey levels, 7.5 % with one slightly blurred, 21 % with a face blended in at
# 0.05. Lossless, every one of these alterations is told.
_PATCH_TIMES, _PATCH_SLACK = 1.5, 0.75
_MEAN_TIMES, _MEAN_SLACK = 2.0, 0.6
# What coding alone can do; where the outside differs more, it was altered too and tells nothing.
_OUTSIDE_MEAN_MOST, _OUTSIDE_PATCH_MOST = 5.0, 10.0
_PATCHES_A_SIDE = 16
# In half crop sides from the middle: a circle within the face's box at a margin of 1.3 (the box ends at 0.77), and
# what lies beyond the circle that touches the crop's sides, where no face reaches.
_FACE_RADIUS, _OUTSIDE_RADIUS = 0.72, 1.0
_PIXELS_LEAST = 16


@dataclass(frozen=True)
class Alteration:
    """Differences between two crops, grey levels; nan where nothing was filmed there.

    Attributes:
        mean: mean |difference| over the face.
        peak: its 99.9th percentile over the face.
        patch: the largest |mean signed difference| of a patch of the face.
        outside_mean, outside_patch: the same outside of the face, in the crop's corners.
    """

    mean: float
    peak: float
    patch: float
    outside_mean: float
    outside_patch: float


def alteration(fake_crop_rgb: np.ndarray, original_crop_rgb: np.ndarray) -> Alteration:
    """Compare the crops of two files at one place and instant.

    Both uint8 (size_px, size_px, 3) RGB, cut with the same affine at a margin of about 1.3. Raises ValueError for other
    shapes.
    """
    for crop in (fake_crop_rgb, original_crop_rgb):
        if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or crop.shape[0] != crop.shape[1]:
            raise ValueError(f"expected a uint8 crop (size_px, size_px, 3), got {crop.dtype} {crop.shape}")
    if fake_crop_rgb.shape != original_crop_rgb.shape:
        raise ValueError(f"expected two crops of one size, got {fake_crop_rgb.shape} and {original_crop_rgb.shape}")
    size = len(fake_crop_rgb)
    filmed = ((fake_crop_rgb > 0) | (original_crop_rgb > 0)).any(axis=2).astype(np.uint8)
    # Interpolation darkens the rim beside what was not filmed, there alterations would be damped; it is left out.
    filmed = cv2.erode(filmed, np.ones((3, 3), np.uint8), borderValue=1) > 0
    signed = fake_crop_rgb.astype(np.float32) - original_crop_rgb
    difference = np.abs(signed).max(axis=2)
    side = max(1, size // _PATCHES_A_SIDE)
    signed[~filmed] = 0
    patches = np.abs(cv2.blur(signed, (side, side), borderType=cv2.BORDER_REFLECT_101)).max(axis=2)
    at = (np.arange(size) + 0.5) / size * 2 - 1
    radius = np.hypot(at[:, None], at[None, :])
    face, outside = filmed & (radius < _FACE_RADIUS), filmed & (radius > _OUTSIDE_RADIUS)
    return Alteration(
        mean=_or_nan(np.mean, difference[face]),
        peak=_or_nan(lambda values: np.percentile(values, 99.9), difference[face]),
        patch=_or_nan(np.max, patches[face]),
        outside_mean=_or_nan(np.mean, difference[outside]),
        outside_patch=_or_nan(np.max, patches[outside]),
    )


def is_unaltered(found: Alteration, *, lossless: bool) -> bool:
    """The rule above. False where the face was not filmed; where nothing outside was, lossy is judged as lossless.

    lossless: whether both files hold their frames exactly (`raw`).
    """
    if found.mean <= _MEAN_MOST and found.peak <= _PEAK_MOST:
        return True
    if lossless:
        return False
    # Comparisons with nan are False.
    return bool(
        found.outside_mean <= _OUTSIDE_MEAN_MOST
        and found.outside_patch <= _OUTSIDE_PATCH_MOST
        and found.patch <= _PATCH_TIMES * found.outside_patch + _PATCH_SLACK
        and found.mean <= _MEAN_TIMES * found.outside_mean + _MEAN_SLACK
    )


def mask_is_empty(mask_crop_rgb: np.ndarray) -> bool:
    """Whether a mask, cut as the crop was (uint8, (size_px, size_px, 3)), marks no pixel of it (none above 127)."""
    return not marked(mask_crop_rgb).any()


def _or_nan(reduce: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    return float(reduce(values)) if values.size >= _PIXELS_LEAST else nan
