"""MTCNN (Zhang et al., 2016, arXiv:1604.02878) with the networks and weights of facenet-pytorch 2.5.3.

The three networks are the package's; the cascade around them is ours, because the package's own stops with an
error when a frame is smaller than the smallest face or a proposal lies outside the frame, and because its
last suppression over a batch adds an offset per frame to float32 boxes (which costs them up to 1/256 px of
precision at 64 frames of 640 px), so that a frame's faces can depend on its neighbours. Here every frame runs
alone through the same operations: the result is the package's for that frame, bit for bit the same whatever
else is in the call.
"""

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import cv2
import facenet_pytorch
import numpy as np
import torch
from torch.nn import functional
from torchvision.ops import nms

from qadprep.faces.base import Face, check_frames

_CELL_PX = 12  # PNet's window
_STRIDE_PX = 2
_CROPS_AT_ONCE = 512
_WEIGHT_FILES = ("pnet.pt", "rnet.pt", "onet.pt")


class MtcnnDetector:
    """MTCNN on the CPU or a CUDA device; needs no download.

    long_side_px: a frame with a longer side is first shrunk to it (area mean); faces are returned in
        coordinates of the frame as given. min_face_px: the smallest face looked for, in the shrunk frame.
    thresholds: least scores of the three stages. factor: ratio between neighbouring scales of the pyramid.
    """

    name = "mtcnn"

    def __init__(
        self,
        device: str = "cpu",
        *,
        long_side_px: int = 640,
        min_face_px: int = 32,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        factor: float = 0.709,
    ) -> None:
        if long_side_px < _CELL_PX or min_face_px < _CELL_PX or not 0 < factor < 1:
            raise ValueError(
                f"expected long_side_px and min_face_px of at least {_CELL_PX} and a factor between 0 and 1, "
                f"got {long_side_px}, {min_face_px} and {factor}"
            )
        self._device = torch.device(device)
        self._long_side_px = long_side_px
        self._min_face_px = min_face_px
        self._thresholds = thresholds
        self._factor = factor
        self._pnet = _ready(facenet_pytorch.PNet(), self._device)
        self._rnet = _ready(facenet_pytorch.RNet(), self._device)
        self._onet = _ready(facenet_pytorch.ONet(), self._device)

    def identity(self) -> dict[str, str | float | int]:
        """See `Detector.identity`."""
        digest = hashlib.sha256()
        for name in _WEIGHT_FILES:
            digest.update((Path(facenet_pytorch.__file__).parent / "data" / name).read_bytes())
        return {
            "name": self.name,
            "package": f"facenet-pytorch {metadata.version('facenet-pytorch')}",
            "weights_sha256": digest.hexdigest(),
            "long_side_px": self._long_side_px,
            "min_face_px": self._min_face_px,
            "thresholds": " ".join(str(value) for value in self._thresholds),
            "factor": self._factor,
        }

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect`. A frame smaller than the smallest face gives an empty list."""
        check_frames(frames_rgb)
        # On CUDA: full float32 and repeatable kernels, as on the CPU. Without effect there.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return [self._detect(frame) for frame in frames_rgb]

    @torch.inference_mode()
    def _detect(self, frame_rgb: np.ndarray) -> list[Face]:
        height, width = frame_rgb.shape[:2]
        small = _bounded(frame_rgb, self._long_side_px)
        image = torch.from_numpy(small).to(self._device).permute(2, 0, 1)[None].float().contiguous()
        boxes = self._propose(image)
        boxes = self._refine(image, boxes)
        boxes, points, scores = self._finish(image, boxes)

        # The package counts pixels from 1 and includes the last one: its window (x1, x2) is [x1 - 1, x2) in
        # pixel-edge coordinates. Its landmarks already are relative to x1 - 1.
        boxes[:, :2] -= 1
        to_frame = np.array([width / small.shape[1], height / small.shape[0]])
        boxes *= np.tile(to_frame, 2)
        points *= to_frame
        return [
            Face(box, landmarks, score)
            for box, landmarks, score in zip(boxes, points, scores, strict=True)
            if box[2] > box[0] and box[3] > box[1]
        ]

    def _propose(self, image: torch.Tensor) -> torch.Tensor:
        """Stage 1: PNet over the pyramid. Square boxes, float32 (n, 4), in the package's pixel counting."""
        height, width = image.shape[2:]
        found = [torch.zeros(0, 9, device=image.device)]
        scale = _CELL_PX / self._min_face_px
        shorter = min(height, width) * scale
        while shorter >= _CELL_PX:
            layer = _normalised(_area_resized(image, int(height * scale + 1), int(width * scale + 1)))
            offsets, probabilities = self._pnet(layer)
            face = probabilities[0, 1]
            row, column = torch.nonzero(face >= self._thresholds[0], as_tuple=True)
            cell = torch.stack([column, row], dim=1) * _STRIDE_PX
            start = torch.floor((cell + 1).float() / scale)
            end = torch.floor((cell + _CELL_PX).float() / scale)
            boxes = torch.cat([start, end, face[row, column, None], offsets[0, :, row, column].T], dim=1)
            found.append(boxes[nms(boxes[:, :4], boxes[:, 4], 0.5)])
            scale *= self._factor
            shorter *= self._factor
        boxes = torch.cat(found)
        boxes = boxes[nms(boxes[:, :4], boxes[:, 4], 0.7)]
        size = boxes[:, 2:4] - boxes[:, :2]
        return _squared(boxes[:, :4] + boxes[:, 5:] * size.repeat(1, 2))

    def _refine(self, image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Stage 2: RNet on the proposals. Square boxes, float32 (n, 4)."""
        boxes, crops = _cropped(image, boxes, 24)
        if len(boxes) == 0:
            return boxes
        offsets, probabilities = _in_parts(self._rnet, crops)
        score = probabilities[:, 1]
        keep = score > self._thresholds[1]
        boxes, offsets, score = boxes[keep], offsets[keep], score[keep]
        keep = nms(boxes, score, 0.7)
        return _squared(_moved(boxes[keep], offsets[keep]))

    def _finish(self, image: torch.Tensor, boxes: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stage 3: ONet. float64 boxes (n, 4), landmarks (n, 5, 2), scores (n,), best score first."""
        boxes, crops = _cropped(image, boxes, 48)
        if len(boxes) == 0:
            return np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0)
        offsets, points, probabilities = _in_parts(self._onet, crops)
        score = probabilities[:, 1]
        keep = score > self._thresholds[2]
        boxes, offsets, points, score = boxes[keep], offsets[keep], points[keep], score[keep]
        size = boxes[:, 2:] - boxes[:, :2] + 1
        # ONet gives five x and then five y, as shares of the window.
        points = points.reshape(-1, 2, 5).transpose(1, 2) * size[:, None] + boxes[:, None, :2] - 1
        boxes = _moved(boxes, offsets)
        keep = _suppressed_by_smaller(boxes.cpu().numpy(), score.cpu().numpy(), 0.7)
        return tuple(part.cpu().numpy()[keep].astype(np.float64) for part in (boxes, points, score))


def _ready(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    # Channels last takes a quarter off the time per frame on the CPU; faces move by less than 1e-4 px.
    return network.eval().to(device, memory_format=torch.channels_last)


def _bounded(frame_rgb: np.ndarray, long_side_px: int) -> np.ndarray:
    """The frame with its longer side shrunk to `long_side_px` by area mean, or itself where it is not
    longer."""
    height, width = frame_rgb.shape[:2]
    scale = long_side_px / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(frame_rgb)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(frame_rgb, size, interpolation=cv2.INTER_AREA)


def _area_resized(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return functional.interpolate(image, size=(height, width), mode="area")


def _normalised(image: torch.Tensor) -> torch.Tensor:
    """0..255 to about -1..1."""
    return (image - 127.5) * 0.0078125


def _squared(boxes: torch.Tensor) -> torch.Tensor:
    """Squares of the longer side around the same centres."""
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    side = torch.maximum(width, height)
    left = boxes[:, 0] + width * 0.5 - side * 0.5
    top = boxes[:, 1] + height * 0.5 - side * 0.5
    return torch.stack([left, top, left + side, top + side], dim=1)


def _moved(boxes: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Boxes with the network's offsets (shares of width and height) added."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    return boxes + offsets * size.repeat(1, 2)


def _cropped(image: torch.Tensor, boxes: torch.Tensor, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The boxes that have a pixel inside the frame, and their clipped contents, (n, 3, size_px, size_px)."""
    height, width = image.shape[2:]
    whole = boxes.trunc().int().cpu().numpy()
    left, top = np.maximum(whole[:, 0], 1) - 1, np.maximum(whole[:, 1], 1) - 1
    right, bottom = np.minimum(whole[:, 2], width), np.minimum(whole[:, 3], height)
    inside = (right > left) & (bottom > top)
    crops = [
        _area_resized(image[:, :, top[i] : bottom[i], left[i] : right[i]], size_px, size_px)
        for i in np.flatnonzero(inside)
    ]
    kept = boxes[torch.from_numpy(inside).to(boxes.device)]
    return kept, _normalised(torch.cat(crops)) if crops else image.new_zeros(0, 3, size_px, size_px)


def _in_parts(network: torch.nn.Module, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The network's outputs for all crops, a bounded number at a time."""
    parts = [network(part) for part in crops.split(_CROPS_AT_ONCE)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _suppressed_by_smaller(boxes_xyxy: np.ndarray, scores: np.ndarray, most: float) -> list[int]:
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
