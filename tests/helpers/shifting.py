"""Clips that were shifted, cropped or cut short on purpose, encoded as datasets are, and read back as luminance."""

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from qadprep.video.encode import compress, write_raw

FRAMES, WIDTH, HEIGHT = 96, 240, 136
CRFS = (0, 23, 40)


def talking_head(portrait: np.ndarray, frames: int = FRAMES) -> np.ndarray:
    """uint8 (frames, 136, 240, 3) RGB: a still, textured background and a real face that moves irregularly over it."""
    rng = np.random.default_rng(5)
    noise = rng.integers(30, 220, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    background = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    steps = cv2.GaussianBlur(rng.normal(0, 4.0, (frames, 2)).cumsum(axis=0), (1, 9), 0)
    path = 26 * np.tanh((steps - steps.mean(axis=0)) / 30)
    head = cv2.resize(portrait[60:260, 130:330], (72, 72), interpolation=cv2.INTER_AREA)
    clip = np.repeat(background[None], frames, axis=0)
    for frame, (x, y) in zip(clip, path, strict=True):
        affine = np.array([[1, 0, WIDTH / 2 - 36 + x], [0, 1, HEIGHT / 2 - 36 + y]])
        cv2.warpAffine(head, affine, (WIDTH, HEIGHT), dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
    return clip


def write_and_read(clip: np.ndarray, folder: Path) -> dict[int, np.ndarray]:
    """CRF -> luminance uint8 (frames, height, width) of the clip, written as FF++'s raw, c23 and c40."""
    write_raw(clip, folder / "0.mp4", 25)
    for crf in CRFS[1:]:
        compress(folder / "0.mp4", folder / f"{crf}.mp4", crf)
    return {crf: luma_of(folder / f"{crf}.mp4") for crf in CRFS}


def luma_of(path: Path, *, most: int | None = None, longest: int | None = None) -> np.ndarray:
    """uint8 (frames, height, width): full-range luminance, straight from PyAV."""
    import av

    pictures = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == most:
                break
            scale = min(1.0, (longest or 1 << 20) / max(frame.width, frame.height))
            size = {"width": round(frame.width * scale / 2) * 2, "height": round(frame.height * scale / 2) * 2}
            pictures.append(frame.reformat(format="gray", **size).to_ndarray())
    return np.stack(pictures)


def thumbs(luma: np.ndarray) -> dict[int, np.ndarray]:
    """Frame -> uint8 (90, 160)."""
    return {i: cv2.resize(picture, (160, 90), interpolation=cv2.INTER_AREA) for i, picture in enumerate(luma)}


def pick(table: Mapping[int, np.ndarray], frames: list[int], source: Callable[[int], int]) -> dict[int, np.ndarray]:
    """The thumbnails of a file in whose frame i the reader finds what was made as frame source(i)."""
    return {i: table[source(i)] for i in frames if source(i) in table}


def moved(picture: np.ndarray, left: int, top: int) -> np.ndarray:
    """A picture of the same size that lies at (left, top) in the given one; what is beyond is filled from the edge."""
    affine = np.array([[1.0, 0, -left], [0, 1.0, -top]])
    size = picture.shape[1], picture.shape[0]
    return cv2.warpAffine(picture, affine, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
