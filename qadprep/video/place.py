"""How does another file's picture lie in the reference's? Found from the luminance of a few frames.

Manipulated videos can be a centre crop (FaceForensics++: 832 px of 854), wider by two columns that the reference lacks
(Celeb-DF: 944 for 942, content at the left), or resized. A box found on the reference then has to be moved, or it cuts
another place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from qadprep.video.offsets import APART_PX, MIN_DETAIL, Offset, Offsets, Pair, overlap

THUMB_WIDTH, THUMB_HEIGHT = 160, 90
# Measured on talking heads, CRF 40 against lossless and up to three frames apart; see `Place.margin`.
MIN_MARGIN = 0.05
# Same size, and the content moved: believed where this share of what the move would cost the reference is won (0.11 to
# 0.35 for one px at CRF 40, 0 for true pairs), doubted from the smaller share on.
MIN_GAIN, DOUBTFUL_GAIN = 0.1, 0.03
# The right place leaves 1 to 6 grey levels at CRF 40 or with a swapped face; other content more than the picture's own
# spread times 0.6, in a flat picture more than a few levels.
MAX_RESIDUAL_SHARE, MAX_RESIDUAL_FLAT = 0.6, 4.0
# Zoomed content fits in one spot only: the share of detailed tiles that would rather move.
MAX_OBJECTING = 0.5

# Between sizes further apart only a resize is considered, and of a picture with a side below this nothing.
MIN_SHARE, MIN_SIDE_PX = 0.5, 16

Relation = Literal["equal", "centre_crop", "left_aligned", "crop", "shifted", "padded", "resized", "unknown"]


@dataclass(frozen=True)
class Place:
    """How another file's picture lies in the reference's: x_ref = scale_x * x_other + left_px, pixel-edge coordinates.

    Attributes:
        relation: `equal`; `shifted` (same size, content moved); for other sizes `centre_crop`, `left_aligned` (content
            begins at the left and top edge, the picture is wider or narrower), `crop` (any other part of the
            reference), `padded` (a border around), `resized`; `unknown` where the pictures do not tell.
        left_px, top_px: where the other's left top corner lies in the reference, px of the reference.
        scale_x, scale_y: px of the reference per px of the other.
        residual: mean |difference| of luminance over the common part, grey levels 0..255, differences in mean
            brightness taken out.
        margin: (cost of the runner-up - cost of the winner) / what a perfect copy would pay at the runner-up; the
            runner-up lies 2 px or more away or has another scale. About 1 for an exact copy, 0 without detail.
    """

    relation: Relation
    left_px: float = 0.0
    top_px: float = 0.0
    scale_x: float = 1.0
    scale_y: float = 1.0
    residual: float = 0.0
    margin: float = 1.0

    @property
    def is_equal(self) -> bool:
        """Whether the reference's geometry holds as it is."""
        return self.relation == "equal"

    def affine_for_other(self, affine_2x3: np.ndarray) -> np.ndarray:
        """The affine that cuts from the other's picture what `affine_2x3` cuts from the reference.

        Both float64 (2, 3), px -> crop px, counted at pixel centres as in `faces.alignment`.
        Raises ValueError for a place that is unknown or an array of another shape.
        """
        if self.relation == "unknown":
            raise ValueError("the place is unknown: no affine can be moved there")
        affine = np.array(affine_2x3, dtype=np.float64)
        if affine.shape != (2, 3):
            raise ValueError(f"expected an affine of shape (2, 3), got {affine.shape}")
        scale = np.array([self.scale_x, self.scale_y])
        # A pixel's centre lies half a px from its edge, in either picture's own px.
        offset = np.array([self.left_px, self.top_px]) + (scale - 1) / 2
        affine[:, 2] += affine[:, :2] @ offset
        affine[:, :2] *= scale
        return affine


EQUAL = Place("equal", 0.0, 0.0, 1.0, 1.0, 0.0, 1.0)


def guess_place(reference_luma: np.ndarray, other_luma: np.ndarray, keep: np.ndarray | None = None) -> Place:
    """`find_place` from a single instant."""
    return find_place([(reference_luma, other_luma, keep)])


def find_place(pairs: Sequence[Pair]) -> Place:
    """Find how the other file's picture lies in the reference's, with the evidence of several instants added.

    Args:
        pairs: one to about five instants; within each list all pictures of a file have one size. Instants may be up to
            three frames apart between the two files where the camera stands still. In the reference's picture, `keep`
            leaves out what a manipulation changed (the faces, with a rim).

    Every whole-pixel offset is tried at scale 1, up to 16 px over either edge, on reduced pictures first; then the
    other's picture resized to the reference's. A moved picture of the same size is believed only where it fits much
    better than the unmoved one; without detail, pictures of one size are `equal` with margin 0, others `unknown`.

    Raises ValueError for no pairs, pictures that are not uint8 (h, w), or sizes that differ within a file.
    """
    if _far_apart(pairs):
        # Nothing but a resize is looked for: a part of a picture that small can be anywhere, and trying takes minutes.
        return _only_resized(pairs)
    plain = Offsets.of(pairs)
    reference_wh, other_wh = plain.reference_wh, plain.other_wh
    best = plain.best()
    doubtful = False
    if reference_wh == other_wh and best != (0, 0):
        gain = (plain.cost((0, 0)) - plain.cost(best)) / max(plain.own_cost(best), MIN_DETAIL)
        best = best if gain >= MIN_GAIN else (0, 0)
        doubtful = DOUBTFUL_GAIN <= gain < MIN_GAIN
    winner, scale = plain, (1.0, 1.0)
    margin = plain.margin(best)
    if reference_wh != other_wh:
        resized = _resized(pairs)
        # They lie apart by half the difference in size on the average, so that is what the reference would pay.
        apart = tuple(min(APART_PX, (abs(a - b) + 1) // 2) for a, b in zip(reference_wh, other_wh, strict=True))
        lead = (resized.cost((0, 0)) - plain.cost(best)) / max(plain.own_cost(apart), MIN_DETAIL)
        if lead < 0:
            winner, best, margin = resized, (0, 0), resized.margin((0, 0))
            scale = (reference_wh[0] / other_wh[0], reference_wh[1] / other_wh[1])
        margin = min(margin, abs(lead))
    relation = _relation(best, reference_wh, other_wh) if winner is plain else "resized"
    residual = winner.cost(best)
    if (
        doubtful
        or residual > max(MAX_RESIDUAL_FLAT, MAX_RESIDUAL_SHARE * plain.spread())
        or (relation != "equal" and margin < MIN_MARGIN)
        or winner.objecting(best) > MAX_OBJECTING
    ):
        relation = "unknown"
    return Place(relation, float(best[0]), float(best[1]), *scale, round(residual, 4), round(max(margin, 0.0), 4))


def _far_apart(pairs: Sequence[Pair]) -> bool:
    """Whether one picture is less than half as wide or high as the other."""
    if not pairs:
        return False
    (height, width), (h, w) = pairs[0][0].shape[:2], pairs[0][1].shape[:2]
    return min(width, w) < MIN_SHARE * max(width, w) or min(height, h) < MIN_SHARE * max(height, h)


def _only_resized(pairs: Sequence[Pair]) -> Place:
    resized = _resized(pairs)
    (height, width), (h, w) = pairs[0][0].shape[:2], pairs[0][1].shape[:2]
    residual, margin = resized.cost((0, 0)), resized.margin((0, 0))
    right = (
        min(w, h) >= MIN_SIDE_PX
        and residual <= max(MAX_RESIDUAL_FLAT, MAX_RESIDUAL_SHARE * resized.spread())
        and margin >= MIN_MARGIN
        and resized.objecting((0, 0)) <= MAX_OBJECTING
    )
    relation: Relation = "resized" if right else "unknown"
    return Place(relation, 0.0, 0.0, width / w, height / h, round(residual, 4), round(max(margin, 0.0), 4))


def place_thumbnail(
    luma: np.ndarray, place: Place, reference_wh: tuple[int, int], other_wh: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The other's picture as a thumbnail in the reference's coordinates.

    Args:
        luma: uint8 (h, w), the other's full picture, or any reduced version of it when `other_wh` is given.
        place: how it lies in the reference.
        reference_wh: width and height of the reference's picture.
        other_wh: width and height of the other's full picture; that of `luma` when not given.

    Returns:
        thumbnail uint8 (90, 160), comparable with the reference's, and bool (90, 160): where it shows the other's
        picture only. Elsewhere it is (partly) black.
    """
    if luma.dtype != np.uint8 or luma.ndim != 2:
        raise ValueError(f"expected luminance uint8 (h, w), got {luma.dtype} {luma.shape}")
    width, height = other_wh or (luma.shape[1], luma.shape[0])
    size = (THUMB_WIDTH, THUMB_HEIGHT)
    covers = (place.scale_x * width, place.scale_y * height) == tuple(map(float, reference_wh))
    if covers and place.left_px == place.top_px == 0:
        return cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.ones((THUMB_HEIGHT, THUMB_WIDTH), bool)
    scale = (place.scale_x * width / luma.shape[1], place.scale_y * height / luma.shape[0])
    if scale == (1, 1) and float(place.left_px).is_integer() and float(place.top_px).is_integer():
        canvas = np.zeros((reference_wh[1], reference_wh[0]), np.uint8)
        inside = np.zeros_like(canvas)
        offset = (int(place.left_px), int(place.top_px))
        target, source = overlap(offset, reference_wh, (width, height))
        canvas[target], inside[target] = luma[source], 255
        thumbnail, inside = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (canvas, inside))
        return thumbnail, inside == 255
    # First to about a thumbnail's resolution, so that nothing aliases, then moved by the rest.
    to_thumb = np.array([THUMB_WIDTH / reference_wh[0], THUMB_HEIGHT / reference_wh[1]])
    near = tuple(max(1, round(t * s * n)) for t, s, n in zip(to_thumb, scale, luma.shape[::-1], strict=True))
    small = cv2.resize(luma, near, interpolation=cv2.INTER_AREA)
    rest = to_thumb * scale * luma.shape[::-1] / near
    shift = to_thumb * [place.left_px, place.top_px] + (rest - 1) / 2
    affine = np.array([[rest[0], 0, shift[0]], [0, rest[1], shift[1]]])
    thumbnail = cv2.warpAffine(small, affine, size, flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.full_like(small, 255), affine, size, flags=cv2.INTER_LINEAR)
    return thumbnail, inside >= 254


def _resized(pairs: Sequence[Pair]) -> Offsets:
    """The pairs at one size, the smaller one of both files."""
    same = []
    for reference, other, keep in pairs:
        if other.size < reference.size:
            size = other.shape[::-1]
            reference = _resize(reference, size)
            if keep is not None:
                keep = _resize(np.where(keep, np.uint8(255), np.uint8(0)), size) == 255
        else:
            other = _resize(other, reference.shape[::-1])
        same.append((reference, other, keep))
    result = Offsets.of(same)
    result.even_brightness((0, 0))
    return result


def _resize(picture: np.ndarray, size_wh: Offset) -> np.ndarray:
    # The exact mean over areas is ten times slower, and needed only where linear samples would skip pixels.
    skips = picture.shape[1] > 2 * size_wh[0] or picture.shape[0] > 2 * size_wh[1]
    return cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA if skips else cv2.INTER_LINEAR)


def _relation(offset: Offset, reference_wh: Offset, other_wh: Offset) -> Relation:
    if reference_wh == other_wh:
        return "equal" if offset == (0, 0) else "shifted"
    free = [own - other for own, other in zip(reference_wh, other_wh, strict=True)]
    if all(0 <= at <= room and abs(2 * at - room) <= 1 for at, room in zip(offset, free, strict=True)) and offset != (
        0,
        0,
    ):
        return "centre_crop"
    if offset == (0, 0):
        return "left_aligned"
    return "padded" if all(room <= at <= 0 for at, room in zip(offset, free, strict=True)) else "crop"
