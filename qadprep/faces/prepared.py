"""What a detector is given to look at: a frame at a bounded size. Made in the worker, without torch.

It is apart from the detectors because with a detector process (`qadprep.faces.service`) the worker shrinks its
frames itself: that spreads the work and sends a tenth of the bytes.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, eq=False)
class Prepared:
    """One frame for a detector.

    size_wh: width and height of the frame as given, px. small_rgb: uint8 (height, width, 3) RGB, what the networks
    look at; without an area where the frame was too thin to be shrunk. full_rgb: the frame as given, where the
    detector takes its last look from it; None where it is not needed or `small_rgb` is the frame itself.
    """

    size_wh: tuple[int, int]
    small_rgb: np.ndarray
    full_rgb: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The pictures that are there, `small_rgb` first."""
        return (self.small_rgb,) if self.full_rgb is None else (self.small_rgb, self.full_rgb)


@dataclass(frozen=True)
class Shrink:
    """How a detector wants its frames.

    long_side_px: longer side of `small_rgb`. enlarge: also smaller frames are brought to it (bilinear, both ways);
    otherwise larger ones are shrunk by area mean, to at least one pixel, and smaller ones stay. keep_full: hand on
    the full frame too, where it was shrunk.
    """

    long_side_px: int
    enlarge: bool = False
    keep_full: bool = False

    def __call__(self, frame_rgb: np.ndarray) -> Prepared:
        """Prepare one frame, uint8 (height, width, 3) RGB; the frame is not copied where it is only handed on."""
        height, width = frame_rgb.shape[:2]
        scale = self.long_side_px / max(height, width)
        # Halves are rounded to even, as albumentations does for RetinaFace.
        small_wh = (round(width * scale), round(height * scale))
        if self.enlarge:
            if min(small_wh) < 1:
                return Prepared((width, height), frame_rgb[:0])
            small = frame_rgb if small_wh == (width, height) else cv2.resize(frame_rgb, small_wh)
            full = frame_rgb if self.keep_full and scale < 1 else None
            return Prepared((width, height), np.ascontiguousarray(small), full)
        if scale >= 1:
            return Prepared((width, height), np.ascontiguousarray(frame_rgb))
        small_wh = (max(1, small_wh[0]), max(1, small_wh[1]))
        small = cv2.resize(frame_rgb, small_wh, interpolation=cv2.INTER_AREA)
        return Prepared((width, height), small, frame_rgb if self.keep_full else None)
