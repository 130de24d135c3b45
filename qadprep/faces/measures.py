"""What a face is worth for training: its size, sharpness, pose, and how much of its crop was filmed.

Pose is that of the face as the crop shows it, against the line from the camera to the face, so that it does not depend
on where in the picture the face is or how the picture was cropped. Angles in degrees:

- yaw: above 0 where the face is turned to the image's right (the nose tip lies right of the middle between the eyes);
- pitch: above 0 where the face looks up; 0 is the pose of ArcFace's reference points;
- roll: above 0 where the head is tilted clockwise as seen in the image (the image-right eye is the lower one).

The three are the head's rotation about its own axes in the order roll, yaw, pitch: tilting the picture changes roll
only.
"""

from dataclasses import dataclass
from math import asin, atan2, degrees, hypot, nan

import cv2
import numpy as np

from qadprep.faces.alignment import corners_of_crop
from qadprep.faces.base import Face

# The mean face in mm: x to the image's right, y down, z away from the camera, the nose tip at 0. Order as in `Face`.
# x and y are ArcFace's reference points (made symmetrical) with the eyes 63 mm apart, the adult mean; the depths are
# round figures of adult heads: pupils 34 mm and mouth corners 28 mm behind the tip of the nose.
MEAN_FACE_MM = np.array(
    [
        [-31.5, -36.0, 34.0],
        [31.5, -36.0, 34.0],
        [0.0, 0.0, 0.0],
        [-26.0, 36.7, 28.0],
        [26.0, 36.7, 28.0],
    ]
)
# Unknown cameras: one that stands ten face sides away (about 1.8 m), looking at the face. Only the strength of the
# perspective depends on it: between 5 and 40 sides, yaw and pitch of a turned face change by some 3 degrees.
FOCAL_SIDES = 10.0
# Points nearer to one line than this (ratio of their spreads along and across it) have no pose, nor do points that no
# pose of the mean face explains (root mean square of what is left, as a share of their spread).
_THINNEST = 0.08
_RESIDUAL_MOST = 0.3
# Sharpness is measured at this crop size, so that crops of all sizes compare.
SHARPNESS_SIZE_PX = 128


@dataclass(frozen=True)
class Measures:
    """Figures of one face in one frame.

    Attributes:
        side_px: side of the square with the area of the detector's box, in the source frame.
        sharpness: variance of the Laplacian over the face, see `sharpness_of`: 20 to 1700 over real clips; a face
            below 50 is soft or was enlarged.
        yaw_deg, pitch_deg, roll_deg: pose (see the module); nan where the landmarks give none.
        inside_share: share 0..1 of the crop's area that lies inside the frame.
    """

    side_px: float
    sharpness: float
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    inside_share: float


def measure(face: Face, crop_rgb: np.ndarray, affine_2x3: np.ndarray, frame_wh: tuple[int, int]) -> Measures:
    """Measure a face and its crop.

    face: as detected, in source px. crop_rgb: uint8 (size_px, size_px, 3) RGB, cut with `affine_2x3` (source px -> crop
    px, pixel centres) from a frame of `frame_wh` (width, height) px. Raises ValueError for other shapes.
    """
    if crop_rgb.dtype != np.uint8 or crop_rgb.ndim != 3 or crop_rgb.shape[2] != 3 or crop_rgb.size == 0:
        raise ValueError(f"expected a uint8 crop (size_px, size_px, 3), got {crop_rgb.dtype} {crop_rgb.shape}")
    if crop_rgb.shape[0] != crop_rgb.shape[1]:
        raise ValueError(f"expected a square crop, got {crop_rgb.shape}")
    size_px = crop_rgb.shape[0]
    yaw, pitch, roll = pose_of(face.landmarks_xy, face.side_px)
    return Measures(
        side_px=face.side_px,
        sharpness=sharpness_of(crop_rgb, _face_part(face, affine_2x3, frame_wh, size_px)),
        yaw_deg=yaw,
        pitch_deg=pitch,
        roll_deg=roll,
        inside_share=inside_share(affine_2x3, size_px, frame_wh),
    )


def inside_share(affine_2x3: np.ndarray, size_px: int, frame_wh: tuple[int, int]) -> float:
    """Share 0..1 of the crop's area that lies inside the frame; the rest of the crop is black."""
    corners = corners_of_crop(affine_2x3, size_px)
    polygon = corners
    # cv2.intersectConvexConvex answers 0 where a corner lies on the other's edge, so each border cuts by itself.
    for axis, sign, limit in ((0, 1, 0), (0, -1, -frame_wh[0]), (1, 1, 0), (1, -1, -frame_wh[1])):
        polygon = _beyond(polygon, sign * polygon[:, axis] - limit)
    return float(np.clip(_area(polygon) / _area(corners), 0.0, 1.0))


def sharpness_of(crop_rgb: np.ndarray, part: np.ndarray | None = None) -> float:
    """Variance of the Laplacian (3 x 3, four neighbours) of the grey crop, in squared grey levels.

    Measured at 128 px: crops of another size are resized first (area mean when shrinking, bilinear when enlarging), so
    a face gives much the same value (within 40 %) whatever size it was cut at, and detail finer than 1/128 of the
    crop's side does not count. A face that was enlarged to fill its crop comes out blurred, as it is.

    part: bool (size_px, size_px), the pixels that count (default: all); nan where fewer than 16 are left.
    """
    grey = cv2.cvtColor(crop_rgb, cv2.COLOR_RGB2GRAY)
    size = (SHARPNESS_SIZE_PX, SHARPNESS_SIZE_PX)
    counts = np.ones(size, bool)
    if part is not None:
        counts = cv2.resize(part.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if grey.shape != size:
        shrinks = grey.shape[0] > SHARPNESS_SIZE_PX
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    values = cv2.Laplacian(grey, cv2.CV_32F, ksize=1, borderType=cv2.BORDER_REFLECT_101)[counts]
    return float(values.astype(np.float64).var()) if values.size >= 16 else nan


def pose_of(landmarks_xy: np.ndarray, side_px: float) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees from the five landmarks, see the module for the signs; nan where there is none.

    landmarks_xy: (5, 2), px, in the order of `Face`. side_px: side of the face's box.

    Roll is the angle of the line between the eyes. Yaw and pitch are those of the mean face that projects onto the
    landmarks with the least squares of error (SQPnP, then Levenberg-Marquardt), seen by a camera that looks at the
    middle of the landmarks with a focal length of 10 face sides. Landmarks off by 2 % of the face give 2 to 3 degrees.
    Faces are not the mean face: a long nose or a raised brow reads as pitch, up to some 15 degrees.
    """
    points = np.asarray(landmarks_xy, dtype=np.float64)
    nothing = (nan, nan, nan)
    if points.shape != (5, 2) or not np.isfinite(points).all() or not 0 < side_px < np.inf:
        return nothing
    points = points - points.mean(axis=0)
    spreads = np.linalg.svd(points, compute_uv=False)
    if spreads[0] < 1e-3 * side_px or spreads[1] < _THINNEST * spreads[0]:
        return nothing
    eyes = points[1] - points[0]
    if not hypot(*eyes) > 0:
        return nothing
    roll = atan2(eyes[1], eyes[0])
    cos, sin = np.cos(roll), np.sin(roll)
    upright = points @ np.array([[cos, -sin], [sin, cos]])
    camera = np.diag([FOCAL_SIDES * side_px, FOCAL_SIDES * side_px, 1.0])
    try:
        found, turn, shift = cv2.solvePnP(MEAN_FACE_MM, upright, camera, None, flags=cv2.SOLVEPNP_SQPNP)
        if not found:
            return nothing
        turn, shift = cv2.solvePnPRefineLM(MEAN_FACE_MM, upright, camera, None, turn, shift)
        back, _ = cv2.projectPoints(MEAN_FACE_MM, turn, shift, camera, None)
    except cv2.error:
        return nothing
    off = float(np.sqrt(((back[:, 0] - upright) ** 2).sum()))
    if not (np.isfinite(turn).all() and off <= _RESIDUAL_MOST * float(np.hypot(*spreads)) and shift[2, 0] > 0):
        return nothing
    rotation, _ = cv2.Rodrigues(turn)
    yaw = degrees(asin(float(np.clip(rotation[2, 0], -1, 1))))
    pitch = degrees(-atan2(rotation[2, 1], rotation[2, 2]))
    return yaw, pitch, degrees(roll)


def _beyond(polygon_xy: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """The part of a convex polygon (n, 2) where the depth, given at its corners and linear between, is not below 0."""
    kept = []
    for here, there, a, b in zip(polygon_xy, np.roll(polygon_xy, -1, 0), depths, np.roll(depths, -1), strict=True):
        if a >= 0:
            kept.append(here)
        if (a >= 0) != (b >= 0):
            kept.append(here + (there - here) * (a / (a - b)))
    return np.array(kept).reshape(-1, 2)


def _area(polygon_xy: np.ndarray) -> float:
    """By the shoelace formula, about the first corner so that large coordinates cost no digits."""
    x, y = (polygon_xy - polygon_xy[:1]).T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def _face_part(face: Face, affine_2x3: np.ndarray, frame_wh: tuple[int, int], size_px: int) -> np.ndarray:
    """The crop's pixels in the face's box and well inside the frame: bool (size_px, size_px)."""
    affine = np.asarray(affine_2x3, dtype=np.float64)
    left, top, right, bottom = face.box_xyxy.astype(np.float64)
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) - 0.5
    part = np.zeros((size_px, size_px), np.uint8)
    cv2.fillConvexPoly(part, np.round(box @ affine[:, :2].T + affine[:, 2]).astype(np.int32), 1)
    return (part > 0) & filmed_part(affine, frame_wh, size_px)


def filmed_part(affine_2x3: np.ndarray, frame_wh: tuple[int, int], size_px: int) -> np.ndarray:
    """The crop's pixels inside the frame, without a rim of 2 px beside what is not: bool (size_px, size_px)."""
    ys, xs = np.mgrid[:size_px, :size_px]
    back = cv2.invertAffineTransform(np.asarray(affine_2x3, dtype=np.float64))
    x, y = np.tensordot(back[:, :2], np.stack([xs, ys]), axes=1) + back[:, 2, None, None]
    slack = 1e-6  # of rounding
    inside = (x >= -slack) & (x <= frame_wh[0] - 1 + slack) & (y >= -slack) & (y <= frame_wh[1] - 1 + slack)
    if inside.all():
        return inside
    return cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) > 0
