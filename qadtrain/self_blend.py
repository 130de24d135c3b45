"""Self-blended images: a fake made of one real face (Shiohara and Yamasaki, CVPR 2022, section 3).

A picture is doubled into a source and a target, one of the two gets other colours and another sharpness, the source
is moved a little, and its face is blended back with a soft mask. What is left to find is what a face swap leaves: the
seam, and two halves of a picture whose colours, sharpness and places disagree.

The order and the kinds of the steps are the paper's, as are the blend ratios. The paper gives no figures for the
colours, the sharpness and the deformation of the mask: those are ours. Ours too is the face's outline. The paper takes
the convex hull of dlib's landmarks, while a tuple has five points: a model face of 48 points, with its forehead and
chin, is laid over them by the affine map that fits the five best, so that it narrows and tilts with them.

Every random number is drawn once for a tuple and used for each of its qualities, so that in the fake, too, the
compression alone tells the qualities apart.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# The model face in eye distances, x to the right and y down from the middle between the eyes. Its points: eyes, nose
# and mouth corners in the proportions of the 112 px template that most face recognisers are aligned to.
MODEL_POINTS = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, 0.57), (-0.41, 1.155), (0.41, 1.155)])
# Its outline: two half ellipses. A face is about 2.1 eye distances wide at the eyes and 1.7 at the mouth; the hairline
# lies 0.9 above the eyes, the chin 0.75 below the mouth.
OUTLINE_POINTS = 48
_CENTRE_Y, _HALF_WIDTH, _UP, _DOWN = 0.1, 1.05, 1.0, 1.8
# The shortest half axis of a usable face, as a share of the picture's side: below it the points lie on a line.
MIN_FACE_SHARE = 0.02

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # the paper's
SCALE = (0.95, 1 / 0.95)  # the paper's: of height and of width, one draw each
SHIFT_SHARE = (0.03, 0.015)  # most translation, as a share of the width and of the height
RGB_SHIFT = 12.0  # grey levels, one draw for each channel
HUE_DEG, SATURATION, VALUE = 8.0, 0.25, 0.1  # added; the others are factors around 1: black and grey stay so
BRIGHTNESS, CONTRAST = 0.1, 0.1  # added, as a share of 255; a factor around mid-grey
DOWNSCALE = (1.5, 3.0)  # the picture is made smaller by this and brought back
SHARPEN = (0.2, 0.6)  # weight of what an unsharp mask of 1 px adds
# Relative to the side of the square of the outline's area:
ELASTIC_SHARE = 0.06  # most displacement of the mask's edge
KERNEL_SHARE = (0.04, 0.25)  # sides of the two Gaussian kernels
_ELASTIC_GRID = 8
_WHOLE = 1 - 1e-4  # sums of Gaussian weights are 1 but for rounding


@dataclass(frozen=True)
class Draw:
    """All that is random about one fake."""

    change_source: bool  # which of the two gets the colours and the sharpness; False = the target
    rgb_shift: np.ndarray  # float64 (3,), grey levels
    hsv_shift: np.ndarray  # float64 (3,): degrees, and two factors less 1
    brightness: float
    contrast: float
    sharpen: bool  # False = down and up again
    sharpen_weight: float
    downscale: float
    scale_xy: np.ndarray  # float64 (2,)
    shift_xy: np.ndarray  # float64 (2,), shares of the side
    elastic: np.ndarray  # float32 (8, 8, 2) in -1..1, x and y
    kernel_shares: np.ndarray  # float64 (2,)
    ratio: float


def draw(rng: np.random.Generator) -> Draw:
    """The random numbers of one fake, always as many and in the same order."""

    def within(*limits: float) -> np.ndarray:
        ends = np.array(limits)
        return rng.uniform(-ends, ends)

    return Draw(
        change_source=bool(rng.random() < 0.5),
        rgb_shift=within(RGB_SHIFT, RGB_SHIFT, RGB_SHIFT),
        hsv_shift=within(HUE_DEG, SATURATION, VALUE),
        brightness=float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)),
        contrast=float(rng.uniform(-CONTRAST, CONTRAST)),
        sharpen=bool(rng.random() < 0.5),
        sharpen_weight=float(rng.uniform(*SHARPEN)),
        downscale=float(rng.uniform(*DOWNSCALE)),
        scale_xy=rng.uniform(*SCALE, size=2),
        shift_xy=within(*SHIFT_SHARE),
        elastic=rng.uniform(-1, 1, (_ELASTIC_GRID, _ELASTIC_GRID, 2)).astype(np.float32),
        kernel_shares=rng.uniform(*KERNEL_SHARE, size=2),
        ratio=float(rng.choice(RATIOS)),
    )


class SelfBlend:
    """Makes self-blended fakes of real tuples.

    Args:
        size_px: side of the square crops.
    """

    def __init__(self, size_px: int) -> None:
        if size_px < 16:
            raise ValueError(f"size_px: got {size_px}, expected at least 16")
        self.size_px = size_px

    def fake(self, images: np.ndarray, landmarks_xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A fake of one real tuple: one set of draws and one mask for all of its qualities.

        Args:
            images: uint8 (M, size_px, size_px, 3) RGB.
            landmarks_xy: float (5, 2), px of the crop counted at pixel centres: image-left eye, image-right eye, nose,
                image-left and image-right mouth corner.
            rng: the same state gives the same bytes.

        Returns:
            uint8 (M, size_px, size_px, 3) RGB.

        Raises:
            ValueError: pictures of another shape or type; points that are not finite, lie on a line or in the wrong
                order, or whose face lies outside the picture. There is no other mask to fall back on: the caller
                counts the tuple as damaged.
        """
        expected = (self.size_px, self.size_px, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images: got {images.dtype} {images.shape}, expected uint8 (M, {self.size_px}, "
                             f"{self.size_px}, 3)")  # fmt: skip
        drawn = draw(rng)
        mask = blend_mask(face_outline(landmarks_xy, self.size_px), drawn, self.size_px)
        weight = (mask * np.float32(drawn.ratio))[:, :, None]
        result = np.empty_like(images)
        for place, image in enumerate(images):
            source, target = source_and_target(image, drawn)
            result[place] = _to_uint8(source * weight + target * (1 - weight))
        return result


def face_outline(landmarks_xy: np.ndarray, size_px: int) -> np.ndarray:
    """The face around five points: the model's outline under the affine map that fits its points best.

    Args:
        landmarks_xy: float (5, 2), as in :meth:`SelfBlend.fake`.
        size_px: side of the picture.

    Returns:
        float64 (48, 2), a convex polygon in px; parts of it may lie outside the picture.

    Raises:
        ValueError: as in :meth:`SelfBlend.fake`.
    """
    points = np.asarray(landmarks_xy, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise ValueError(f"landmarks: got {points.tolist()}, expected five finite points")
    model = np.column_stack([MODEL_POINTS, np.ones(5)])
    fit, *_ = np.linalg.lstsq(model, points, rcond=None)  # (3, 2): x, y and 1 to px
    axes = np.linalg.svd(fit[:2], compute_uv=False)
    if axes[1] < MIN_FACE_SHARE * size_px or np.linalg.det(fit[:2]) < 0:
        raise ValueError(
            f"landmarks: got {np.round(points, 1).tolist()}, expected eyes, nose and mouth corners of an upright "
            "face, not mirrored and not on a line"
        )
    centre = points.mean(axis=0)
    if (centre < 0).any() or (centre > size_px - 1).any():
        raise ValueError(f"landmarks: got a face around {np.round(centre, 1).tolist()}, expected 0 to {size_px - 1}")
    angle = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    up_or_down = np.where(np.sin(angle) < 0, _UP, _DOWN)
    x, y = _HALF_WIDTH * np.cos(angle), _CENTRE_Y + up_or_down * np.sin(angle)
    return np.column_stack([x, y, np.ones_like(x)]) @ fit


def blend_mask(outline_xy: np.ndarray, drawn: Draw, size_px: int) -> np.ndarray:
    """The soft mask: the outline, moved as the source is, deformed, then blurred twice.

    After the first blur only what is still 1 is kept, which takes half of the first kernel off the edge; the second
    blur adds half of the second kernel. The mask is eroded where the first is the larger, and else dilated (paper).

    Args:
        outline_xy: float (K, 2), convex, px.

    Returns:
        float32 (size_px, size_px) in 0..1, before the blend ratio.
    """
    moved = outline_xy @ (matrix := source_matrix(drawn, size_px))[:, :2].T + matrix[:, 2]
    mask = np.zeros((size_px, size_px), dtype=np.float32)
    cv2.fillConvexPoly(mask, np.rint(moved).astype(np.int32), 1.0, lineType=cv2.LINE_8)
    face_side = float(np.sqrt(cv2.contourArea(outline_xy.astype(np.float32))))
    mask = _deformed(mask, drawn.elastic, ELASTIC_SHARE * face_side)
    first, second = (2 * int(share * face_side / 2) + 1 for share in drawn.kernel_shares)
    mask = np.where(_blurred(mask, first) >= _WHOLE, np.float32(1), np.float32(0))
    return np.clip(_blurred(mask, second), 0, 1)


def source_and_target(image_rgb: np.ndarray, drawn: Draw) -> tuple[np.ndarray, np.ndarray]:
    """One picture doubled: one of the two with other colours and sharpness, the source moved.

    Args:
        image_rgb: uint8 (S, S, 3) RGB.

    Returns:
        Source and target, float32 (S, S, 3) with whole values in 0..255. The target is the picture itself where the
        source is changed.
    """
    image = image_rgb.astype(np.float32)
    changed = _to_uint8(change_frequency(change_colours(image, drawn), drawn)).astype(np.float32)
    source, target = (changed, image) if drawn.change_source else (image, changed)
    size = len(image)
    # Mirrored at the border where the paper pads with zeros: a mask that reaches it would blend in a black bar.
    moved = cv2.warpAffine(
        source, source_matrix(drawn, size), (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.rint(moved), target


def source_matrix(drawn: Draw, size_px: int) -> np.ndarray:
    """float64 (2, 3): px of the picture to px of the source; resized around the middle, then moved."""
    middle = (size_px - 1) / 2
    offset = middle * (1 - drawn.scale_xy) + drawn.shift_xy * size_px
    return np.column_stack([np.diag(drawn.scale_xy), offset])


def change_colours(image: np.ndarray, drawn: Draw) -> np.ndarray:
    """R, G and B, then hue, saturation and value, then brightness and contrast.

    Args:
        image: float32 (S, S, 3) RGB in 0..255.

    Returns:
        float32 (S, S, 3) RGB in 0..255, not rounded.
    """
    shifted = np.clip(image + drawn.rgb_shift.astype(np.float32), 0, 255)
    hsv = cv2.cvtColor(shifted / 255, cv2.COLOR_RGB2HSV)  # of float32: hue in 0..360, the others in 0..1
    hue, *factors = drawn.hsv_shift.astype(np.float32)
    hsv[:, :, 0] = (hsv[:, :, 0] + hue) % 360
    hsv[:, :, 1:] = np.clip(hsv[:, :, 1:] * (1 + np.array(factors)), 0, 1)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    return np.clip((rgb - 127.5) * (1 + drawn.contrast) + 127.5 + 255 * drawn.brightness, 0, 255).astype(np.float32)


def change_frequency(image: np.ndarray, drawn: Draw) -> np.ndarray:
    """Sharper by an unsharp mask, or softer by a smaller size and back. A picture of one colour stays as it is.

    Args:
        image: float32 (S, S, 3) RGB in 0..255.

    Returns:
        float32 (S, S, 3) RGB in 0..255, not rounded.
    """
    if drawn.sharpen:
        soft = cv2.GaussianBlur(image, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT_101)
        return np.clip(image + drawn.sharpen_weight * (image - soft), 0, 255).astype(np.float32)
    size = len(image)
    small = max(1, round(size / drawn.downscale))
    reduced = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    return np.clip(cv2.resize(reduced, (size, size), interpolation=cv2.INTER_LINEAR), 0, 255)


def _deformed(mask: np.ndarray, elastic: np.ndarray, most_px: float) -> np.ndarray:
    """Elastic deformation by a smooth field of displacements of at most ``most_px`` along each axis."""
    size = len(mask)
    smooth = cv2.resize(elastic, (size, size), interpolation=cv2.INTER_CUBIC)  # overshoots
    field = np.clip(smooth, -1, 1) * np.float32(most_px)
    across, down = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    return cv2.remap(
        mask, across + field[:, :, 0], down + field[:, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _blurred(mask: np.ndarray, kernel_px: int) -> np.ndarray:
    # Replicated, so that the picture's own edge takes nothing off a mask that reaches it.
    return cv2.GaussianBlur(mask, (kernel_px, kernel_px), 0, borderType=cv2.BORDER_REPLICATE)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
