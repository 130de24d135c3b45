"""MTCNN's arithmetic on boxes, as facenet-pytorch 2.5.3 does it; float32 on the CPU.

Boxes here are in the package's pixel counting: pixels count from 1 and the last one is included, so that the window
(x1, x2) is [x1 - 1, x2) in pixel-edge coordinates.
"""

import numpy as np
import torch
from torchvision.ops import nms

CELL_PX = 12  # PNet's window
_STRIDE_PX = 2


def scales_for(height: int, width: int, min_face_px: int, factor: float) -> list[float]:
    """The pyramid: from the scale at which the smallest face fills PNet's window, down to the picture's own size."""
    scale = CELL_PX / min_face_px
    shorter = min(height, width) * scale
    scales = []
    while shorter >= CELL_PX:
        scales.append(scale)
        scale *= factor
        shorter *= factor
    return scales


def proposals(face: torch.Tensor, offsets: torch.Tensor, scale: float, score_least: float) -> torch.Tensor:
    """Candidates of one layer of the pyramid after suppression: (n, 9), box, score, offsets.

    face: PNet's scores, (rows, columns); offsets: (4, rows, columns).
    """
    row, column = torch.nonzero(face >= score_least, as_tuple=True)
    cell = torch.stack([column, row], dim=1) * _STRIDE_PX
    start = torch.floor((cell + 1).float() / scale)
    end = torch.floor((cell + CELL_PX).float() / scale)
    boxes = torch.cat([start, end, face[row, column, None], offsets[:, row, column].T], dim=1)
    return boxes[nms(boxes[:, :4], boxes[:, 4], 0.5)]


def merged(layers: list[torch.Tensor]) -> torch.Tensor:
    """Candidates of all layers of one picture to square boxes, (n, 4)."""
    boxes = torch.cat([torch.zeros(0, 9), *layers])
    boxes = boxes[nms(boxes[:, :4], boxes[:, 4], 0.7)]
    size = boxes[:, 2:4] - boxes[:, :2]
    return squared(boxes[:, :4] + boxes[:, 5:] * size.repeat(1, 2))


def refined(boxes: torch.Tensor, offsets: torch.Tensor, scores: torch.Tensor, score_least: float) -> torch.Tensor:
    """After RNet: square boxes, (n, 4), of those it takes for faces."""
    keep = scores > score_least
    boxes, offsets, scores = boxes[keep], offsets[keep], scores[keep]
    keep = nms(boxes, scores, 0.7)
    return squared(moved(boxes[keep], offsets[keep]))


def finished(
    boxes: torch.Tensor, offsets: torch.Tensor, points: torch.Tensor, scores: torch.Tensor, score_least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """After ONet: float64 boxes (n, 4) and landmarks (n, 5, 2) in pixel-edge coordinates, scores (n,), best first."""
    keep = scores > score_least
    boxes, offsets, points, scores = boxes[keep], offsets[keep], points[keep], scores[keep]
    size = boxes[:, 2:] - boxes[:, :2] + 1
    # ONet gives five x and then five y, as shares of the window; the package already takes them from x1 - 1.
    points = points.reshape(-1, 2, 5).transpose(1, 2) * size[:, None] + boxes[:, None, :2] - 1
    boxes = moved(boxes, offsets)
    kept = suppressed_by_smaller(boxes.numpy(), scores.numpy(), 0.7)
    boxes, points, scores = (part.numpy()[kept].astype(np.float64) for part in (boxes, points, scores))
    boxes[:, :2] -= 1
    return boxes, points, scores


def enlarged(boxes: torch.Tensor, factor_xy: tuple[float, float]) -> torch.Tensor:
    """Boxes of a shrunk picture in the pixels of the full one."""
    first = torch.tensor([1.0, 1.0, 0.0, 0.0])
    return (boxes - first) * torch.tensor(factor_xy).float().repeat(2) + first


def clipped(boxes: torch.Tensor, size_wh: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The boxes that have a pixel inside the picture, and their clipped windows: int64 (n, 4), pixel edges."""
    width, height = size_wh
    left, top, right, bottom = boxes.trunc().long().unbind(1)
    windows = torch.stack(
        [left.clamp(min=1) - 1, top.clamp(min=1) - 1, right.clamp(max=width), bottom.clamp(max=height)], dim=1
    )
    inside = (windows[:, 2] > windows[:, 0]) & (windows[:, 3] > windows[:, 1])
    return boxes[inside], windows[inside]


def squared(boxes: torch.Tensor) -> torch.Tensor:
    """Squares of the longer side around the same centres."""
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    side = torch.maximum(width, height)
    left = boxes[:, 0] + width * 0.5 - side * 0.5
    top = boxes[:, 1] + height * 0.5 - side * 0.5
    return torch.stack([left, top, left + side, top + side], dim=1)


def moved(boxes: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Boxes with the network's offsets (shares of width and height) added."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    return boxes + offsets * size.repeat(1, 2)


def suppressed_by_smaller(boxes_xyxy: np.ndarray, scores: np.ndarray, most: float) -> list[int]:
    """Suppression by intersection over the smaller area; indices of the boxes kept, best score first.

    Unlike IoU it also drops a box that lies inside another one: one face found twice at two sizes.
    """
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1).prod(axis=1)
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        start = np.maximum(boxes_xyxy[best, :2], boxes_xyxy[waiting, :2])
        end = np.minimum(boxes_xyxy[best, 2:], boxes_xyxy[waiting, 2:])
        both = np.clip(end - start + 1, 0, None).prod(axis=1)
        waiting = waiting[both / np.minimum(areas[best], areas[waiting]) <= most]
    return kept
