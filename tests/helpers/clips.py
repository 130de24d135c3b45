"""Short clips of a real face, and how they are written."""

from pathlib import Path

import cv2
import numpy as np

from qadprep.video.encode import compress, write_raw

WIDTH, HEIGHT, FRAMES = 240, 180, 26


def moving_face(portrait: np.ndarray, frames: int, seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A clip of the portrait under a moving camera: uint8 (frames, height, width, 3) RGB, every frame different."""
    rng = np.random.default_rng(seed)
    tint = rng.uniform(0.8, 1.2, 3)
    clip = []
    for index in range(frames):
        scale = 0.75 + 0.05 * np.sin(index / 5 + seed)
        dx, dy = 6 * np.sin(index / 3 + seed), 4 * np.cos(index / 4)
        affine = np.array([[scale, 0, -220 * scale + width / 2 + dx], [0, scale, -120 * scale + height / 2 + dy]])
        picture = cv2.warpAffine(
            portrait, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        clip.append(np.clip(picture * tint, 0, 255).astype(np.uint8))
    return np.stack(clip)


def fake_of(clip: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """The clip with its middle (the face) blurred and tinted."""
    result = clip.copy()
    height, width = clip.shape[1:3]
    ys, xs = slice(height // 3, 2 * height // 3), slice(width // 3, 2 * width // 3)
    for frame in result:
        patch = cv2.GaussianBlur(frame[ys, xs], (0, 0), 2)
        frame[ys, xs] = np.clip(patch * (1 - strength) + strength * (patch * [1.1, 0.95, 0.9]), 0, 255)
    return result


def write_qualities(clip: np.ndarray, folder: Path, name: str, fps: int = 25) -> None:
    """Write a clip as raw, c23 and c40 below `<folder>/<quality>/videos`."""
    raw = folder / "raw" / "videos" / f"{name}.mp4"
    write_raw(clip, raw, fps)
    for crf in (23, 40):
        compress(raw, folder / f"c{crf}" / "videos" / f"{name}.mp4", crf)
