"""MTCNN (Zhang et al., 2016, arXiv:1604.02878) with the networks and weights of facenet-pytorch 2.5.3.

The three networks are the package's; the cascade around them is ours, because the package's own stops with an
error when a frame is smaller than the smallest face or a proposal lies outside the frame, and because its
last suppression over a batch adds an offset per frame to float32 boxes (which costs them up to 1/256 px of
precision at 64 frames of 640 px), so that a frame's faces can depend on its neighbours. Here the boxes of every
frame go their own way through the same operations; only the networks see several frames at once, and only where
that pays: on CUDA, in passes of a fixed size (see `qadprep.faces.passes`). The result is the package's for that
frame, bit for bit the same whatever else is in the call.
"""

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import facenet_pytorch
import numpy as np
import torch

from qadprep.faces import cascade
from qadprep.faces.area import resized, sums_of, windows
from qadprep.faces.base import Face, check_frames
from qadprep.faces.passes import Passes
from qadprep.faces.prepared import Prepared, Shrink

_WEIGHT_FILES = ("pnet.pt", "rnet.pt", "onet.pt")
_FRAMES_AT_ONCE = 8
_CROPS_AT_ONCE = 512
# Passes of a fixed size are filled up, so these are about what 8 frames with a face or two ask for.
_PADDED_CROPS_24, _PADDED_CROPS_48 = 256, 32


class MtcnnDetector:
    """MTCNN on the CPU or a CUDA device; needs no download.

    long_side_px: a frame with a longer side is first shrunk to it (area mean); faces are returned in
        coordinates of the frame as given. min_face_px: the smallest face looked for, in the shrunk frame.
    thresholds: least scores of the three stages. factor: ratio between neighbouring scales of the pyramid.
    refine: of a shrunk frame, the last stage (which gives box and landmarks) looks at the full frame. Against
        detection in the full frame that takes a third off the error of the landmarks, at no cost to speak of.
    precision: see `qadprep.faces.passes`. batched: several frames a pass; on CUDA by default. On the CPU it is no
        faster.
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
        refine: bool = True,
        precision: str = "fp32",
        batched: bool | None = None,
    ) -> None:
        if long_side_px < cascade.CELL_PX or min_face_px < cascade.CELL_PX or not 0 < factor < 1:
            raise ValueError(
                f"expected long_side_px and min_face_px of at least {cascade.CELL_PX} and a factor between 0 and 1, "
                f"got {long_side_px}, {min_face_px} and {factor}"
            )
        self._device = torch.device(device)
        self._passes = Passes(self._device, precision, self._device.type == "cuda" if batched is None else batched)
        self._min_face_px = min_face_px
        self._thresholds = thresholds
        self._factor = factor
        self._precision = precision
        self._pnet = self._passes.ready(facenet_pytorch.PNet())
        self._rnet = self._passes.ready(facenet_pytorch.RNet())
        self._onet = self._passes.ready(facenet_pytorch.ONet())
        self.shrink = Shrink(long_side_px, keep_full=refine)

    def identity(self) -> dict[str, str | float | int]:
        """See `Detector.identity`."""
        digest = hashlib.sha256()
        for name in _WEIGHT_FILES:
            digest.update((Path(facenet_pytorch.__file__).parent / "data" / name).read_bytes())
        identity = {
            "name": self.name,
            "package": f"facenet-pytorch {metadata.version('facenet-pytorch')}",
            "weights_sha256": digest.hexdigest(),
            "long_side_px": self.shrink.long_side_px,
            "min_face_px": self._min_face_px,
            "thresholds": " ".join(str(value) for value in self._thresholds),
            "factor": self._factor,
            "refine": int(self.shrink.keep_full),
        }
        return identity if self._precision == "fp32" else {**identity, "precision": self._precision}

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect`. A frame smaller than the smallest face gives an empty list."""
        check_frames(frames_rgb)
        return self.detect_prepared([self.shrink(frame) for frame in frames_rgb])

    def detect_prepared(self, pictures: Sequence[Prepared]) -> list[list[Face]]:
        """The same for frames that `shrink` has prepared, here or in another process."""
        most = _FRAMES_AT_ONCE if self._passes.padded else 1
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            by_size.setdefault(picture.small_rgb.shape, []).append(index)
        found: list[list[Face]] = [[] for _ in pictures]
        for indices in by_size.values():
            for start in range(0, len(indices), most):
                part = indices[start : start + most]
                for index, faces in zip(part, self._cascade([pictures[i] for i in part]), strict=True):
                    found[index] = faces
        return found

    @torch.inference_mode()
    def _cascade(self, pictures: list[Prepared]) -> list[list[Face]]:
        """All three stages, for pictures of one size."""
        sums = sums_of([picture.small_rgb for picture in pictures], self._device)
        boxes = self._propose(sums)
        boxes = self._refine(sums, boxes)
        return self._finish(pictures, sums, boxes)

    def _propose(self, sums: torch.Tensor) -> list[torch.Tensor]:
        """Stage 1: PNet over the pyramid. Square boxes, float32 (n, 4), for each picture."""
        height, width = sums.shape[1] - 1, sums.shape[2] - 1
        layers: list[list[torch.Tensor]] = [[] for _ in sums]
        for scale in cascade.scales_for(height, width, self._min_face_px, self._factor):
            layer = _normalised(resized(sums, int(height * scale + 1), int(width * scale + 1)))
            offsets, probabilities = self._passes(self._pnet, layer, _FRAMES_AT_ONCE)
            for i, candidates in enumerate(layers):
                candidates.append(cascade.proposals(probabilities[i, 1], offsets[i], scale, self._thresholds[0]))
        return [cascade.merged(candidates) for candidates in layers]

    def _refine(self, sums: torch.Tensor, boxes: list[torch.Tensor]) -> list[torch.Tensor]:
        """Stage 2: RNet on the proposals. Square boxes, float32 (n, 4), for each picture."""
        size_wh = (sums.shape[2] - 1, sums.shape[1] - 1)
        most = _PADDED_CROPS_24 if self._passes.padded else _CROPS_AT_ONCE
        clipped = [cascade.clipped(of_picture, size_wh) for of_picture in boxes]
        counts = [len(kept) for kept, _ in clipped]
        if not sum(counts):
            return [kept for kept, _ in clipped]
        picture = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(self._device)
        window = torch.cat([window for _, window in clipped]).to(self._device)
        parts = [
            self._passes(self._rnet, _normalised(windows(sums, picture[i : i + most], window[i : i + most], 24)), most)
            for i in range(0, len(window), most)
        ]
        offsets, probabilities = (torch.cat(output).split(counts) for output in zip(*parts, strict=True))
        return [
            cascade.refined(kept, offsets[i], probabilities[i][:, 1], self._thresholds[1])
            for i, (kept, _) in enumerate(clipped)
        ]

    def _finish(self, pictures: list[Prepared], sums: torch.Tensor, boxes: list[torch.Tensor]) -> list[list[Face]]:
        """Stage 3: ONet. The faces of each picture."""
        most = _PADDED_CROPS_48 if self._passes.padded else _CROPS_AT_ONCE
        looked_at = [self._last_look(*each) for each in zip(pictures, sums.split(1), boxes, strict=True)]
        counts = [len(kept) for kept, _ in looked_at]
        if not sum(counts):
            return [[] for _ in pictures]
        parts = [
            self._passes(self._onet, _normalised(part), most)
            for part in torch.cat([crops for _, crops in looked_at]).split(most)
        ]
        offsets, points, probabilities = (torch.cat(output).split(counts) for output in zip(*parts, strict=True))
        return [
            _faces(picture, *cascade.finished(kept, offsets[i], points[i], probabilities[i][:, 1], self._thresholds[2]))
            for i, (picture, (kept, _)) in enumerate(zip(pictures, looked_at, strict=True))
        ]

    def _last_look(
        self, picture: Prepared, sums: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes in the pixels of the picture that the last stage looks at, and crops, (n, 3, 48, 48), 0..255."""
        none = torch.zeros(len(boxes), dtype=torch.int64, device=self._device)
        if picture.full_rgb is None:
            kept, window = cascade.clipped(boxes, (sums.shape[2] - 1, sums.shape[1] - 1))
            return kept, windows(sums, none[: len(kept)], window.to(self._device), 48)
        kept, window = cascade.clipped(cascade.enlarged(boxes, _factor_xy(picture)), picture.size_wh)
        crops = [sums.new_zeros(0, 3, 48, 48, dtype=torch.float32)]
        for left, top, right, bottom in window.tolist():
            # Few windows of many pixels: a table for each costs less than one for the frame.
            part = sums_of([picture.full_rgb[top:bottom, left:right]], torch.device("cpu"))
            crops.append(resized(part, 48, 48).to(self._device))
        return kept, torch.cat(crops)


def _faces(picture: Prepared, boxes: np.ndarray, points: np.ndarray, scores: np.ndarray) -> list[Face]:
    to_frame = np.array(_factor_xy(picture) if picture.full_rgb is None else (1.0, 1.0))
    boxes *= np.tile(to_frame, 2)
    points *= to_frame
    return [
        Face(box, landmarks, score)
        for box, landmarks, score in zip(boxes, points, scores, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]


def _factor_xy(picture: Prepared) -> tuple[float, float]:
    """From the small picture to the frame."""
    height, width = picture.small_rgb.shape[:2]
    return picture.size_wh[0] / width, picture.size_wh[1] / height


def _normalised(image: torch.Tensor) -> torch.Tensor:
    """0..255 to about -1..1."""
    return (image - 127.5) * 0.0078125
