"""From a face to a square crop: one affine map, applied once, with antialiasing.

Affines are float64 (2, 3), map source pixel to crop pixel, and count integer coordinates at pixel *centres*,
as `cv2.warpAffine` does (the top-left pixel's centre is (0, 0)). Faces are in pixel-edge coordinates (see
`qadprep.faces.base`); the half pixel between the two is accounted for here and nowhere else.

A crop that reaches over the border of the frame is never moved or shrunk: the face stays where it was put,
and what was not filmed is black (0, 0, 0) in every quality alike. `corners_of_crop` tells how far it reaches.
"""

from math import ceil
from typing import Literal

import cv2
import numpy as np

from qadprep.faces.base import Face

# The five reference points of ArcFace's 112 x 112 crop (Deng et al., 2019, arXiv:1801.07698), px counted at
# pixel centres: image-left eye, image-right eye, nose tip, image-left mouth corner, image-right mouth corner.
_ARCFACE_112_XY = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# The square of a detector's box in that crop, pixel-edge coordinates: the rounded median of 137 MTCNN boxes
# over 26 videos (quartiles: centre x 53..58, y 62..65, longer side 104..109). It makes `margin` mean the same
# for both alignments: the crop's side over the face's.
_FACE_CENTRE_XY = np.array([56.0, 63.5])
_FACE_SIDE = 106.0
# Shrinking more than this many times falls back to coarser sampling, so that memory stays bounded.
_SUPERSAMPLING_MOST = 16


def affine_from_face(
    face: Face, *, align: Literal["similarity", "box"], margin: float = 1.3, size_px: int = 128
) -> np.ndarray:
    """The affine that cuts `face` into a square crop; float64 (2, 3), source px -> crop px, pixel centres.

    align="similarity": rotates, scales and shifts the five landmarks onto ArcFace's reference points (least
    squares), with the template's face square (centre and side of a typical detector box) scaled so that the
    crop is `margin` times as wide and sits on the same centre. Two crops of a person show the eyes at the
    same place.

    align="box": the square of `margin` times the longer side of the box around the box's centre, not rotated,
    as FaceForensics++ cuts faces (margin 1.3), except that the square is never clipped to the frame.

    Raises ValueError for a margin or size that is not positive, an unknown `align`, or landmarks that all lie
    on one point.
    """
    if not margin > 0 or not np.isfinite(margin) or size_px < 1:
        raise ValueError(f"expected margin > 0 and size_px >= 1, got margin {margin} and size_px {size_px}")
    if align == "similarity":
        crop_scale = size_px / (margin * _FACE_SIDE)
        template = (_ARCFACE_112_XY + 0.5 - _FACE_CENTRE_XY) * crop_scale + size_px / 2
        affine = similarity_from_points(face.landmarks_xy, template)
    elif align == "box":
        left, top, right, bottom = face.box_xyxy.astype(np.float64)
        scale = size_px / (margin * max(right - left, bottom - top))
        shift_x = size_px / 2 - scale * (left + right) / 2
        shift_y = size_px / 2 - scale * (top + bottom) / 2
        affine = np.array([[scale, 0.0, shift_x], [0.0, scale, shift_y]])
    else:
        raise ValueError(f"expected align 'similarity' or 'box', got {align!r}")
    # Pixel edges to pixel centres: add half a pixel before the map and take it off after it.
    affine[:, 2] += affine[:, :2] @ [0.5, 0.5] - 0.5
    return affine


def similarity_from_points(source_xy: np.ndarray, target_xy: np.ndarray) -> np.ndarray:
    """Least-squares rotation, uniform scale and shift (no mirroring) of source onto target points.

    Both (n, 2), n >= 2; computed in float64. In the plane, the solution of Umeyama (1991, PAMI 13(4)) is one
    complex regression: with x + iy about the means, the factor is sum(conj(source) target) / sum(|source|^2).

    Returns float64 (2, 3). Raises ValueError for wrong shapes or coinciding source points.
    """
    source = np.asarray(source_xy, dtype=np.float64)
    target = np.asarray(target_xy, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(f"expected two arrays (n, 2) with n >= 2, got {source.shape} and {target.shape}")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    x, y = (source - source_mean).T
    u, v = (target - target_mean).T
    spread = (x * x + y * y).sum()
    if not spread > 0:
        raise ValueError(f"no similarity: all {len(source)} source points lie at {source[0].tolist()}")
    cos, sin = (x * u + y * v).sum() / spread, (x * v - y * u).sum() / spread
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def warp_face(frame_rgb: np.ndarray, affine_2x3: np.ndarray, size_px: int) -> np.ndarray:
    """Cut the crop out of the frame: uint8 (size_px, size_px, 3) RGB.

    frame_rgb: uint8 (height, width, 3) RGB. affine_2x3: as `affine_from_face` gives it; must be invertible.
    Bilinear sampling. Where the map shrinks, k x k samples are taken per crop pixel, k = ceil(1 / scale) (at
    most 16), and their mean is the pixel, so that no source pixel is skipped and nothing aliases: shrinking
    by a whole number is the exact area mean. At scale 1 and whole-pixel shifts the pixels come through
    unchanged. Outside the frame is black. The same call gives the same bytes. Raises ValueError for wrong
    input.
    """
    if frame_rgb.dtype != np.uint8 or frame_rgb.ndim != 3 or frame_rgb.shape[2] != 3 or frame_rgb.size == 0:
        raise ValueError(f"expected a uint8 frame (height, width, 3), got {frame_rgb.dtype} {frame_rgb.shape}")
    affine = _checked(affine_2x3)
    if size_px < 1:
        raise ValueError(f"expected size_px >= 1, got {size_px}")
    # The smaller singular value is the strongest shrinking in any direction. The rounding keeps 1/2 at k = 2.
    least_scale = np.linalg.svd(affine[:, :2], compute_uv=False)[-1]
    samples = min(_SUPERSAMPLING_MOST, max(1, ceil(round(1 / least_scale, 9))))
    fine = affine * samples
    fine[:, 2] += (samples - 1) / 2  # the centre of a crop pixel is the middle of its k samples
    sampled = cv2.warpAffine(
        frame_rgb,
        _inverse(fine),
        (size_px * samples, size_px * samples),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0),
    )
    if samples == 1:
        return sampled
    return cv2.resize(sampled, (size_px, size_px), interpolation=cv2.INTER_AREA)


def corners_of_crop(affine_2x3: np.ndarray, size_px: int) -> np.ndarray:
    """Where the crop's outer corners lie in the source frame: float64 (4, 2), px, pixel-edge coordinates.

    Order: top left, top right, bottom right, bottom left of the crop. The crop reaches over the border where
    x is below 0 or above the frame's width, y below 0 or above its height.
    """
    back = _inverse(_checked(affine_2x3))
    crop = np.array([[0, 0], [size_px, 0], [size_px, size_px], [0, size_px]]) - 0.5
    return crop @ back[:, :2].T + back[:, 2] + 0.5


def _checked(affine_2x3: np.ndarray) -> np.ndarray:
    """A float64 copy of a finite, invertible (2, 3) affine; ValueError for anything else."""
    affine = np.array(affine_2x3, dtype=np.float64)
    if affine.shape != (2, 3) or not np.isfinite(affine).all():
        raise ValueError(f"expected a finite affine of shape (2, 3), got {affine.tolist()}")
    if not abs(np.linalg.det(affine[:, :2])) > 0:
        raise ValueError(f"expected an invertible affine, got {affine.tolist()}")
    return affine


def _inverse(affine: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])
