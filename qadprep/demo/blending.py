"""The image operations behind the stand-ins: regions from five landmarks, warping, low resolution, colour, blending."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def _points(text: str) -> np.ndarray:
    return np.array([[float(number) for number in pair.split(",")] for pair in text.split()])


# A frontal face as MTCNN's five points see it; unit = distance of the eyes, origin between them, y down.
_TEMPLATE = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, 0.56), (-0.43, 0.90), (0.43, 0.90)])
# Outlines on the template: the face from above the brows to the chin, its part below the eyes, the mouth.
_FACE = _points(
    "-0.8,-0.3 -0.45,-0.42 0,-0.44 0.45,-0.42 0.8,-0.3 0.86,0.15 0.8,0.62 0.66,1.05 "
    "0.42,1.38 0,1.52 -0.42,1.38 -0.66,1.05 -0.8,0.62 -0.86,0.15"
)
_LOWER_FACE = _points(
    "-0.74,0.34 -0.38,0.32 0,0.3 0.38,0.32 0.74,0.34 0.76,0.66 0.64,1.05 "
    "0.42,1.38 0,1.5 -0.42,1.38 -0.64,1.05 -0.76,0.66"
)
_MOUTH = _points("-0.6,0.88 -0.42,0.7 0,0.66 0.42,0.7 0.6,0.88 0.46,1.14 0,1.26 -0.46,1.14")


@dataclass(frozen=True)
class Region:
    """A part of a frame and how much of it is replaced.

    Attributes:
        x0, y0: top left corner of the part in the frame, px.
        opacity: float32 (h, w) in 0..1; exactly 0 where the frame must stay as it is.
    """

    x0: int
    y0: int
    opacity: np.ndarray

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the part, for indexing a frame."""
        h, w = self.opacity.shape
        return slice(self.y0, self.y0 + h), slice(self.x0, self.x0 + w)


def face_region(landmarks_xy: np.ndarray, shape: Sequence[int], *, feather: float, lower_half: bool = False) -> Region:
    """The face (or its part below the eyes) of a frame of `shape`; `feather` is the rim's width in eye distances."""
    return _region(_LOWER_FACE if lower_half else _FACE, landmarks_xy, shape, feather)


def mouth_region(landmarks_xy: np.ndarray, shape: Sequence[int], *, feather: float) -> Region:
    """The mouth and a little skin around it; see `face_region`."""
    return _region(_MOUTH, landmarks_xy, shape, feather)


def _region(outline: np.ndarray, landmarks_xy: np.ndarray, shape: Sequence[int], feather: float) -> Region:
    import cv2

    points = _onto(_TEMPLATE, landmarks_xy, outline)
    rim_px = max(1.0, feather * float(np.linalg.norm(landmarks_xy[1] - landmarks_xy[0])))
    low = np.floor(points.min(axis=0) - 2).astype(int).clip(0)
    high = np.minimum(np.ceil(points.max(axis=0) + 3).astype(int), (shape[1], shape[0]))
    if (high - low < 2).any():
        # The face lies outside the frame: nothing to replace.
        return Region(0, 0, np.zeros((2, 2), np.float32))
    filled = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    fixed = np.rint((points - low) * 16).astype(np.int32)
    cv2.fillPoly(filled, [fixed], 1, shift=4)
    # Distance to the outline gives a rim that is exactly 0 outside; a frame's edge is no outline.
    distance = cv2.distanceTransform(filled, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(distance / rim_px, 0, 1)
    return Region(int(low[0]), int(low[1]), (ramp * ramp * (3 - 2 * ramp)).astype(np.float32))


def _onto(points: np.ndarray, targets: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Carry `query` (n, 2) by the smooth map that takes `points` (5, 2) to `targets` (5, 2).

    A least-squares similarity, plus Gaussian bumps that take up what it leaves at the five points.
    """
    points, targets = points.astype(np.float64), targets.astype(np.float64)
    # Similarity as two unknown pairs: x' = a x - b y + tx, y' = b x + a y + ty.
    x, y = points.T
    one, nil = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.column_stack([x, -y, one, nil]), np.column_stack([y, x, nil, one])])
    a, b, tx, ty = np.linalg.lstsq(rows, targets.T.reshape(-1), rcond=None)[0]
    turn, move = np.array([[a, b], [-b, a]]), np.array([tx, ty])
    left = targets - (points @ turn + move)
    sigma = 0.8 * np.linalg.norm(points[1] - points[0])

    def weights(places: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((places[:, None] - points) ** 2).sum(-1) / sigma**2)

    # A little ridge: landmarks of real clips jitter, and an exact fit would fold the skin between close points.
    strength = np.linalg.solve(weights(points) + 0.05 * np.eye(len(points)), left)
    return query @ turn + move + weights(query) @ strength


def carry_over(image_rgb: np.ndarray, from_xy: np.ndarray, to_xy: np.ndarray, region: Region) -> np.ndarray:
    """Warp `image_rgb` so that its landmarks `from_xy` come to lie at `to_xy`; only inside the region.

    Returns:
        float32 (h, w, 3), RGB 0..255, of the region's size.
    """
    import cv2

    h, w = region.opacity.shape
    # The map is smooth: worked out on a grid of every fourth pixel, then interpolated.
    gx, gy = np.arange(0, w + 4, 4) + region.x0, np.arange(0, h + 4, 4) + region.y0
    grid = np.stack(np.meshgrid(gx, gy), axis=-1).reshape(-1, 2).astype(np.float64)
    found = _onto(to_xy, from_xy, grid).reshape(len(gy), len(gx), 2).astype(np.float32)
    fine_x, fine_y = np.meshgrid(np.arange(w, dtype=np.float32) / 4, np.arange(h, dtype=np.float32) / 4)
    places = cv2.remap(found, fine_x, fine_y, cv2.INTER_LINEAR)
    return cv2.remap(
        image_rgb.astype(np.float32),
        places[..., 0],
        places[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def bottleneck(patch: np.ndarray, share: float) -> np.ndarray:
    """Send a patch (h, w, 3) through a lower resolution, both sides times `share` (0..1), and back; 0..255."""
    import cv2

    h, w = patch.shape[:2]
    small_size = max(2, round(w * share)), max(2, round(h * share))
    small = cv2.resize(patch, small_size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def match_colours(
    patch: np.ndarray,
    frame_rgb: np.ndarray,
    region: Region,
    *,
    spread: bool,
    contrast: float = 1.0,
    tint_lab: Sequence[float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Give a patch the mean (and with `spread` the standard deviation) in Lab of the frame under the region.

    `contrast` then stretches around the mean and `tint_lab` moves it: 1 and 0 mean no more than the match.
    Reinhard et al. 2001, "Color Transfer between Images", with CIE Lab for their l-alpha-beta.
    """
    import cv2

    inside = region.opacity > 0.5
    if not inside.any():
        return patch
    lab = cv2.cvtColor(patch.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    under = cv2.cvtColor(frame_rgb[region.slices].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    mean, goal = lab[inside].mean(axis=0), under[inside].mean(axis=0)
    factor = np.full(3, contrast)
    if spread:
        factor = factor * np.clip(under[inside].std(axis=0) / (lab[inside].std(axis=0) + 1e-3), 0.6, 1.6)
    matched = (lab - mean) * factor.astype(np.float32) + goal + np.float32(tint_lab)
    matched[..., 0] = np.clip(matched[..., 0], 0, 100)
    return np.clip(cv2.cvtColor(matched.astype(np.float32), cv2.COLOR_Lab2RGB), 0, 1) * 255


def blend(frame_rgb: np.ndarray, patch: np.ndarray, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Lay a patch over a frame.

    Returns:
        RGB uint8 of the frame's shape; and a mask bool (height, width), true where the opacity is above 0. Where the
        mask is false the pixels are copied, not computed.
    """
    out, mask = frame_rgb.copy(), np.zeros(frame_rgb.shape[:2], bool)
    under = frame_rgb[region.slices].astype(np.float32)
    opacity = region.opacity[..., None]
    mixed = np.rint(under * (1 - opacity) + patch * opacity).clip(0, 255).astype(np.uint8)
    touched = region.opacity > 0
    out[region.slices][touched] = mixed[touched]
    mask[region.slices] = touched
    return out, mask
