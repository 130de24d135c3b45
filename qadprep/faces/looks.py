"""How a face looks, roughly: enough to say that a track changed its person, not to say who somebody is.

No network recognises faces here. A look is the light-normalised structure of the inner face (where it is bright and
dark against its surroundings, 16 x 16) and its colour (4 x 4). It changes with the pose and the expression, and knows
neither age nor name; two people of like complexion, hair and light may look the same to it. So it is used where a
position already says "same" (and many sightings on both sides must agree before it is overruled) or where nothing else
can be known (after a cut, where a wrong "other" only opens one more track).
"""

import cv2
import numpy as np

_GRID = 16
_COLOUR_GRID = 4
# The inner 60 % of the crop's side: eyes, nose and mouth at a margin of 1.3, without hair and background.
_TRIMMED = 0.2
# Landmarks jitter: the structures are compared at shifts of up to one cell (4 % of the crop) each way.
_SHIFT_CELLS = 1
# Mean distance of the colours (a and b of CIELAB) that counts as much as the whole range 0..1 of the correlation.
_COLOUR_SCALE = 10.0
# The logistic curve from a score to 0..1: even where one person's and two people's looks err alike (2.5 %).
_SCORE_EVEN, _SCORE_SCALE = 0.40, 0.08

# What `same_person` is worth, measured on 25 clips of 25 people (24 sightings each, over 3 to 30 s; 300 pairs):
#
# - SAME: pieces of track are put together. Of pairs of pieces of 3 sightings, 94 % of one clip's and 0.1 % of two
#   clips' reach it.
# - SAME_SCENE: the same within a scene, where two people under one light are the likelier mistake; 88 % and none.
# - AGREE: sightings in a row agree; 96 % and 0.4 %.
# - OTHER: two sightings contradict each other; 2 % of one clip's and 91 % of two clips' lie below.
#
# The people of two clips sit in two rooms, under two lights, and colour helps to tell them apart: two people of one
# room are harder (by structure alone, the area under the curve is 0.98 instead of 0.99).
SAME, SAME_SCENE, AGREE, OTHER = 0.87, 0.95, 0.78, 0.22

_CELLS = _GRID * _GRID
LOOK_SIZE = _CELLS + 2 * _COLOUR_GRID * _COLOUR_GRID


def look_of(crop_rgb: np.ndarray) -> np.ndarray:
    """The look of an aligned face: float32 (288,), for `same_person` only.

    crop_rgb: uint8 (size_px, size_px, 3) RGB, a crop of margin about 1.3 with the face in its middle; aligned by
        similarity or by box, but all that are compared in the same way. Raises ValueError for other shapes.
    """
    if crop_rgb.dtype != np.uint8 or crop_rgb.ndim != 3 or crop_rgb.shape[2] != 3 or min(crop_rgb.shape[:2]) < 8:
        raise ValueError(
            f"expected a uint8 crop (size_px, size_px, 3) of 8 px or more, got {crop_rgb.dtype} {crop_rgb.shape}"
        )
    height, width = crop_rgb.shape[:2]
    top, left = int(height * _TRIMMED), int(width * _TRIMMED)
    inner = np.ascontiguousarray(crop_rgb[top : height - top, left : width - left])
    small = cv2.resize(inner, (2 * _GRID, 2 * _GRID), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)  # float: L 0..100, a and b about -127..127
    light = cv2.GaussianBlur(lab[..., 0], (0, 0), 1.0)
    # Against its surroundings, by their contrast: a lamp from one side or a darker exposure leaves it as it is.
    local = light - cv2.GaussianBlur(light, (0, 0), _GRID / 2)
    contrast = np.sqrt(cv2.GaussianBlur(local * local, (0, 0), _GRID / 2)) + 1.6
    structure = cv2.resize(local / contrast, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    structure -= structure.mean()
    structure /= max(float(np.linalg.norm(structure)), 1e-6)
    colour = cv2.resize(lab[..., 1:], (_COLOUR_GRID, _COLOUR_GRID), interpolation=cv2.INTER_AREA)
    return np.concatenate([structure.ravel(), colour.ravel()]).astype(np.float32)


def same_person(a: np.ndarray, b: np.ndarray) -> float:
    """How likely two looks are one person's, 0..1; symmetrical. Raises ValueError for what is no look.

    See `SAME` and `OTHER` for what the figure is worth.
    """
    return float(same_persons(np.asarray(a)[None], np.asarray(b)[None])[0, 0])


def same_persons(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`same_person` of every look of `a` (n, 288) with every look of `b` (m, 288): float64 (n, m)."""
    return 1 / (1 + np.exp((_SCORE_EVEN - scores(a, b)) / _SCORE_SCALE))


def scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of the structures at the best small shift, less the colours' distance over 10: float64 (n, m)."""
    for looks in (a, b):
        if looks.ndim != 2 or looks.shape[1] != LOOK_SIZE:
            raise ValueError(f"expected looks (n, {LOOK_SIZE}), got {looks.shape}")
    if not (len(a) and len(b)):
        return np.zeros((len(a), len(b)))
    a, b = a.astype(np.float64), b.astype(np.float64)
    a_shifted, b_shifted = _shifted(a), _shifted(b)
    middle = a_shifted.shape[1] // 2
    one = np.einsum("nsc,mc->nsm", a_shifted, b_shifted[:, middle], optimize=True).max(axis=1)
    other = np.einsum("msc,nc->nsm", b_shifted, a_shifted[:, middle], optimize=True).max(axis=1)
    colour = np.abs(a[:, None, _CELLS:] - b[None, :, _CELLS:]).mean(axis=2)
    return (one + other) / 2 - colour / _COLOUR_SCALE


def _shifted(looks: np.ndarray) -> np.ndarray:
    """The structures' inner part at every small shift, each with mean 0 and norm 1: (n, shifts, cells)."""
    grid, side = looks[:, :_CELLS].reshape(-1, _GRID, _GRID), _GRID - 2 * _SHIFT_CELLS
    steps = range(2 * _SHIFT_CELLS + 1)
    parts = np.stack([grid[:, y : y + side, x : x + side] for y in steps for x in steps], axis=1)
    parts = parts.reshape(len(looks), -1, side * side)
    parts = parts - parts.mean(axis=2, keepdims=True)
    return parts / np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-6)
