"""What a face is, and what a detector promises.

Coordinates everywhere in this package are continuous pixel-edge coordinates: pixel `i` covers the interval
`[i, i + 1)`, its centre lies at `i + 0.5`, and a box over a whole frame is `(0, 0, width, height)`. In this
convention resizing a picture only multiplies coordinates, with no half-pixel term.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one full-resolution frame.

    box_xyxy: float32 (4,), left, top, right, bottom in px (pixel-edge coordinates); may reach over the
        border.
    landmarks_xy: float32 (5, 2), px: image-left eye, image-right eye, nose tip, image-left mouth corner,
        image-right mouth corner.
    score: the detector's confidence, 0..1.

    Two faces are equal only when they are the same object. Raises ValueError for wrong shapes, for values
    that are not finite, and for a box without area.
    """

    box_xyxy: np.ndarray
    landmarks_xy: np.ndarray
    score: float

    def __post_init__(self) -> None:
        box = np.asarray(self.box_xyxy, dtype=np.float32)
        landmarks = np.asarray(self.landmarks_xy, dtype=np.float32)
        if box.shape != (4,) or landmarks.shape != (5, 2):
            raise ValueError(f"expected box (4,) and landmarks (5, 2), got {box.shape} and {landmarks.shape}")
        if not (np.isfinite(box).all() and np.isfinite(landmarks).all()):
            raise ValueError(f"box and landmarks must be finite, got {box.tolist()} and {landmarks.tolist()}")
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"expected a box (left, top, right, bottom) with an area, got {box.tolist()}")
        object.__setattr__(self, "box_xyxy", box)
        object.__setattr__(self, "landmarks_xy", landmarks)
        object.__setattr__(self, "score", float(self.score))

    @property
    def side_px(self) -> float:
        """Side of the square with the area of the box, px."""
        left, top, right, bottom = self.box_xyxy.astype(np.float64)
        return float(np.sqrt((right - left) * (bottom - top)))


class Detector(Protocol):
    """Finds faces. The answer for a frame does not depend on the other frames of the call."""

    name: str

    def identity(self) -> dict[str, str | float | int]:
        """Everything that decides the output (weights, thresholds, versions); the same dict, the same faces.

        The device is left out: it changes results by float rounding only.
        """
        ...

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        """One list of faces per frame, best score first; an empty list where there is none.

        frames_rgb: uint8 (height, width, 3) RGB; sizes may differ. Raises ValueError for anything else.
        """
        ...


def check_frames(frames_rgb: Sequence[np.ndarray]) -> None:
    """Raise ValueError (got versus expected) unless every frame is uint8 (height, width, 3) with an area."""
    for index, frame in enumerate(frames_rgb):
        if not isinstance(frame, np.ndarray):
            raise ValueError(f"frame {index}: expected uint8 (height, width, 3) RGB, got {type(frame).__name__}")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise ValueError(f"frame {index}: expected uint8 (height, width, 3) RGB, got {frame.dtype} {frame.shape}")
