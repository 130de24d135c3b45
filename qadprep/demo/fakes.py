"""One image-operation recipe per FF++ method: stand-ins with the seams, blur and colour shifts real forgeries have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qadprep.demo import METHODS, RESOLUTION_SHARE
from qadprep.demo.blending import (
    Region,
    blend,
    bottleneck,
    carry_over,
    face_region,
    match_colours,
    mouth_region,
)


@dataclass(frozen=True)
class Clip:
    """Frames of one original: RGB uint8 (n, height, width, 3), and five landmarks a frame, float32 (n, 5, 2) in px."""

    frames_rgb: np.ndarray
    landmarks_xy: np.ndarray

    def __post_init__(self) -> None:
        if len(self.frames_rgb) != len(self.landmarks_xy) or len(self.frames_rgb) == 0:
            raise ValueError(f"{len(self.frames_rgb)} frames but {len(self.landmarks_xy)} sets of landmarks")

    def __len__(self) -> int:
        return len(self.frames_rgb)


@dataclass(frozen=True)
class Scene:
    """What a recipe sees: a frame of the target with its landmarks, one of the source, and the fake's constants."""

    target_rgb: np.ndarray
    target_xy: np.ndarray
    source_rgb: np.ndarray
    source_xy: np.ndarray
    expression_xy: np.ndarray
    """The target's landmarks with the mouth moved as the source moves it, float32 (5, 2)."""
    constants: np.ndarray
    """Six numbers in -1..1, fixed for the whole fake."""


def fake_length(method: str, target_frames: int, source_frames: int) -> int:
    """How many frames FF++'s fake has, for a target and a source of these lengths (measured on release files)."""
    if method in ("FaceSwap", "NeuralTextures"):
        return min(target_frames, source_frames)
    if method == "Face2Face":
        return source_frames
    if method in ("Deepfakes", "FaceShifter"):
        return target_frames
    raise ValueError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")


def target_index(index: int, target_frames: int) -> int:
    """Frame of the target that frame `index` of a fake shows: the same one; past the end the target plays backwards.

    FF++'s Face2Face does the latter (j = 2N - 3 - i); for fakes not longer than the target it never happens.
    Past the first frame again (a source over twice as long) it turns round once more.
    """
    if index < target_frames:
        return index
    if target_frames < 3:
        return 0
    backwards = 2 * target_frames - 3 - index
    return backwards if backwards >= 0 else target_index(-backwards, target_frames)


def source_index(index: int, source_frames: int) -> int:
    """Frame of the source that gives frame `index` of a fake its face: to and fro when the fake is longer."""
    if source_frames == 1:
        return 0
    place = index % (2 * source_frames - 2)
    return place if place < source_frames else 2 * source_frames - 2 - place


def make_fake(
    method: str, target: Clip, source: Clip, seed: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of the stand-in for `method`, with its masks.

    Args:
        method: one of `METHODS`.
        target: whose frames are altered; source: who gives the face or the expression.
        seed: decides the constants of this fake, nothing else; there is no noise.

    Yields:
        RGB uint8 (height, width, 3) and a mask bool (height, width), true where pixels may differ from the target's
        frame `target_index(i)`. Outside the mask the pixels are the target's, bit for bit.
    """
    recipe = _RECIPES[method]
    constants = np.random.default_rng(seed).uniform(-1, 1, 6)
    mean_mouth = _mouth_in_face(source.landmarks_xy).mean(axis=0)
    for index in range(fake_length(method, len(target), len(source))):
        t, s = target_index(index, len(target)), source_index(index, len(source))
        moved = _mouth_in_face(source.landmarks_xy[s : s + 1])[0] - mean_mouth
        scene = Scene(
            target.frames_rgb[t],
            target.landmarks_xy[t],
            source.frames_rgb[s],
            source.landmarks_xy[s],
            _with_mouth_moved(target.landmarks_xy[t], moved),
            constants,
        )
        region, patch = recipe(scene)
        yield blend(scene.target_rgb, patch, region)


def _mouth_in_face(landmarks_xy: np.ndarray) -> np.ndarray:
    """Mouth corners in the frame of the eyes: (n, 2 corners, 2), unit = distance of the eyes, x along them."""
    left, right = landmarks_xy[:, 0], landmarks_xy[:, 1]
    along = right - left
    unit = np.linalg.norm(along, axis=1, keepdims=True)
    x_axis = along / unit
    y_axis = np.stack([-x_axis[:, 1], x_axis[:, 0]], axis=1)
    corners = (landmarks_xy[:, 3:] - ((left + right) / 2)[:, None]) / unit[:, None]
    return np.stack([(corners * x_axis[:, None]).sum(-1), (corners * y_axis[:, None]).sum(-1)], axis=-1)


def _with_mouth_moved(landmarks_xy: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Landmarks (5, 2) with the mouth corners shifted by `moved` (2, 2) given in the frame of the eyes."""
    along = landmarks_xy[1] - landmarks_xy[0]
    turn = np.array([along, (-along[1], along[0])])
    shifted = landmarks_xy.copy()
    # Never more than an eighth of the eyes' distance: landmarks found by a detector can jump.
    shifted[3:] += np.clip(moved, -0.125, 0.125) @ turn
    return shifted.astype(np.float32)


def _deepfakes(scene: Scene) -> tuple[Region, np.ndarray]:
    region = face_region(scene.target_xy, scene.target_rgb.shape, feather=0.22)
    patch = carry_over(scene.source_rgb, scene.source_xy, scene.target_xy, region)
    return region, match_colours(
        bottleneck(patch, RESOLUTION_SHARE["Deepfakes"]), scene.target_rgb, region, spread=True
    )


def _face2face(scene: Scene) -> tuple[Region, np.ndarray]:
    region = face_region(scene.target_xy, scene.target_rgb.shape, feather=0.16, lower_half=True)
    patch = carry_over(scene.target_rgb, scene.target_xy, scene.expression_xy, region)
    return region, bottleneck(patch, RESOLUTION_SHARE["Face2Face"])


def _faceswap(scene: Scene) -> tuple[Region, np.ndarray]:
    region = face_region(scene.target_xy, scene.target_rgb.shape, feather=0.05)
    patch = carry_over(scene.source_rgb, scene.source_xy, scene.target_xy, region)
    return region, match_colours(
        bottleneck(patch, RESOLUTION_SHARE["FaceSwap"]), scene.target_rgb, region, spread=False
    )


def _neural_textures(scene: Scene) -> tuple[Region, np.ndarray]:
    region = mouth_region(scene.target_xy, scene.target_rgb.shape, feather=0.14)
    patch = carry_over(scene.source_rgb, scene.source_xy, scene.target_xy, region)
    return region, match_colours(
        bottleneck(patch, RESOLUTION_SHARE["NeuralTextures"]), scene.target_rgb, region, spread=True
    )


def _faceshifter(scene: Scene) -> tuple[Region, np.ndarray]:
    c = scene.constants
    eyes_px = float(np.linalg.norm(scene.target_xy[1] - scene.target_xy[0]))
    centre = scene.target_xy.mean(axis=0)
    drift = np.float32(c[:2]) * 0.03 * eyes_px
    shifted = (scene.target_xy - centre) * np.float32(1 + 0.03 * c[2]) + centre + drift
    region = face_region(scene.target_xy, scene.target_rgb.shape, feather=0.18)
    patch = carry_over(scene.target_rgb, scene.target_xy, shifted, region)
    # Always clearly away from 1 and 0, to one side or the other.
    contrast = 1 + np.copysign(0.10 + 0.08 * abs(c[3]), c[3])
    tint = np.copysign(3 + 2 * np.abs(c[3:]), c[3:]) * (1.6, 1.0, 1.0)
    return region, match_colours(
        bottleneck(patch, RESOLUTION_SHARE["FaceShifter"]),
        scene.target_rgb,
        region,
        spread=True,
        contrast=contrast,
        tint_lab=tint,
    )


_RECIPES: dict[str, Callable[[Scene], tuple[Region, np.ndarray]]] = {
    "Deepfakes": _deepfakes,
    "Face2Face": _face2face,
    "FaceSwap": _faceswap,
    "NeuralTextures": _neural_textures,
    "FaceShifter": _faceshifter,
}
