"""A second look at a face: its surroundings cut from the full frame, for a detector that works on shrunk frames."""

from dataclasses import dataclass

import cv2
import numpy as np

from qadprep.faces.base import Face

SIDE_PX = 256
# Side of the square that is looked at, over the longer side of the box: the network was trained on faces with
# surroundings, and the first box may be off by a tenth.
REACH = 2.0
# Smaller faces of a crowd keep the first look's box; bounds the time of a frame.
MOST_FACES = 8
# Less overlap with the first look's box, and it is another face.
_SAME_FACE_IOU = 0.5


@dataclass(frozen=True, eq=False)
class Closeup:
    """A square out of a full frame.

    Attributes:
        face: the first look's.
        rgb: uint8 (SIDE_PX, SIDE_PX, 3) RGB; black beyond the frame.
        origin_xy: px of the full frame, pixel edges.
        scale: closeup px per px of the full frame.
    """

    face: Face
    rgb: np.ndarray
    origin_xy: np.ndarray
    scale: float

    def refined(self, found: list[Face]) -> Face:
        """The first look's face with box and landmarks of the second, where that saw it too; the score stays.

        Args:
            found: faces in px of the closeup.
        """
        expected = (self.face.box_xyxy.reshape(2, 2) - self.origin_xy).reshape(4) * self.scale
        best = max(found, key=lambda face: _iou(face.box_xyxy, expected), default=None)
        if best is None or _iou(best.box_xyxy, expected) < _SAME_FACE_IOU:
            return self.face
        box = best.box_xyxy.reshape(2, 2) / self.scale + self.origin_xy
        return Face(box.reshape(4), best.landmarks_xy / self.scale + self.origin_xy, self.face.score)


def closeups(frame_rgb: np.ndarray, faces: list[Face], first_scale: float) -> dict[int, Closeup]:
    """Place in `faces` -> its closeup, of the largest faces of which a closeup shows more than the first look did.

    Args:
        frame_rgb: the full frame, uint8 (height, width, 3) RGB.
        first_scale: px that the first look saw per px of the full frame.
    """
    by_size = sorted(range(len(faces)), key=lambda place: (-_area(faces[place].box_xyxy), place))
    made = {place: _closeup(frame_rgb, faces[place]) for place in by_size[:MOST_FACES]}
    return {place: one for place, one in made.items() if one is not None and one.scale > first_scale}


def _closeup(frame_rgb: np.ndarray, face: Face) -> Closeup | None:
    x0, y0, x1, y1 = (float(value) for value in face.box_xyxy)
    side = max(1, round(REACH * max(x1 - x0, y1 - y0)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    height, width = frame_rgb.shape[:2]
    inner = frame_rgb[max(0, top) : max(0, min(height, top + side)), max(0, left) : max(0, min(width, left + side))]
    if not inner.size or side > 4 * max(height, width):
        return None
    above, before = max(0, -top), max(0, -left)
    below, behind = side - above - inner.shape[0], side - before - inner.shape[1]
    square = cv2.copyMakeBorder(inner, above, below, before, behind, cv2.BORDER_CONSTANT)
    method = cv2.INTER_AREA if side > SIDE_PX else cv2.INTER_LINEAR
    rgb = cv2.resize(square, (SIDE_PX, SIDE_PX), interpolation=method)
    return Closeup(face, rgb, np.array([left, top], np.float32), SIDE_PX / side)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(shared[0] * shared[1])
    return both / (_area(a) + _area(b) - both)
