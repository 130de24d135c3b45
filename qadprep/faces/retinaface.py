"""RetinaFace with a ResNet-50 (Deng et al., 2020, arXiv:1905.00641): the network of retinaface-pytorch 0.0.8.

Network, anchors' decoding, thresholds and scaling are the package's, and so are the boxes and landmarks that
come out; what is ours is that frames go through it in batches and that anchors are laid out once per frame
size. The package's own `predict_single` is not used: it needs albumentations, and takes one picture at a
time.

Unlike MTCNN it has no last stage that could look at the full frame: one pass gives everything. So the largest faces of
a shrunk frame are looked at a second time, each in a square cut from the full frame (`qadprep.faces.closeup`).
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from math import ceil
from pathlib import Path

import numpy as np
import torch
from retinaface.box_utils import decode, decode_landm
from retinaface.network import RetinaFace
from torchvision.ops import nms

from qadprep.errors import UserError
from qadprep.faces.base import Face, check_frames
from qadprep.faces.closeup import SIDE_PX, Closeup, closeups
from qadprep.faces.passes import Passes
from qadprep.faces.prepared import Prepared, Shrink
from qadprep.faces.weights import read_state_dict, sha256_of

_STEPS_PX = (8, 16, 32)
_ANCHORS_PX = ((16, 32), (64, 128), (256, 512))
_VARIANCES = (0.1, 0.2)
# ImageNet mean and standard deviation on the scale 0..255.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32) * 255
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32) * 255


class RetinaFaceDetector:
    """RetinaFace on the CPU or a CUDA device.

    weights: a .zip, .pth or .safetensors (see `qadprep.faces.weights.read_state_dict`).
    long_side_px: every frame is scaled (up or down, bilinear) until its longer side has this length.
    score_least, nms_iou: the package's defaults.
    batch: frames per pass of the network; every pass has as many, the last one is filled up. 1 on the CPU by default,
        where more is no faster; 8 on CUDA.
    refine: of a shrunk frame, boxes and landmarks of the largest faces come from a second look at the full frame; for
        each of them that costs a quarter of the first look.
    precision: see `qadprep.faces.passes`. Measured on random weights: fp16 moves what the network gives by 0.001 of
        its spread in the mean and by 0.02 at most, bf16 by 0.01 and 0.2; 0.1 is a hundredth of an anchor's side.
    """

    name = "retinaface"

    def __init__(
        self,
        weights: Path,
        device: str = "cpu",
        *,
        long_side_px: int = 640,
        score_least: float = 0.7,
        nms_iou: float = 0.4,
        batch: int | None = None,
        refine: bool = True,
        precision: str = "fp32",
    ) -> None:
        self._device = torch.device(device)
        self._passes = Passes(self._device, precision, padded=True)
        self._precision = precision
        self._score_least = score_least
        self._nms_iou = nms_iou
        self._batch = batch or (1 if self._device.type == "cpu" else 8)
        self._weights_sha256 = sha256_of(weights)
        network = build_network()
        load_weights(network, weights)
        self._network = self._passes.ready(network)
        self.shrink = Shrink(long_side_px, enlarge=True, keep_full=refine)

    def identity(self) -> dict[str, str | float | int]:
        """See `Detector.identity`."""
        identity = {
            "name": self.name,
            "package": f"retinaface-pytorch {metadata.version('retinaface-pytorch')}",
            "weights_sha256": self._weights_sha256,
            "long_side_px": self.shrink.long_side_px,
            "score_least": self._score_least,
            "nms_iou": self._nms_iou,
            "refine": int(self.shrink.keep_full),
        }
        return identity if self._precision == "fp32" else {**identity, "precision": self._precision}

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect`. Frames of one size share passes of the network.

        A frame so thin that its shorter side would vanish at `long_side_px` gives an empty list.
        """
        check_frames(frames_rgb)
        return self.detect_prepared([self.shrink(frame) for frame in frames_rgb])

    def detect_prepared(self, pictures: Sequence[Prepared]) -> list[list[Face]]:
        """The same for frames that `shrink` has prepared, here or in another process."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            if picture.small_rgb.size:
                by_size.setdefault(picture.small_rgb.shape, []).append(index)
        found: list[list[Face]] = [[] for _ in pictures]
        for indices in by_size.values():
            for start in range(0, len(indices), self._batch):
                part = indices[start : start + self._batch]
                for index, faces in zip(part, self._detect([pictures[i] for i in part]), strict=True):
                    found[index] = faces
        self._look_closer(pictures, found)
        return found

    def _look_closer(self, pictures: Sequence[Prepared], found: list[list[Face]]) -> None:
        """Put finer faces in the place of those found in shrunk frames."""
        close: list[tuple[list[Face], int, Closeup]] = []
        for picture, faces in zip(pictures, found, strict=True):
            if picture.full_rgb is not None:
                scale = picture.small_rgb.shape[0] / picture.size_wh[1]
                close += [(faces, place, one) for place, one in closeups(picture.full_rgb, faces, scale).items()]
        for start in range(0, len(close), self._batch):
            part = close[start : start + self._batch]
            seen = self._detect([Prepared((SIDE_PX, SIDE_PX), one.rgb) for _, _, one in part])
            for (faces, place, one), inside in zip(part, seen, strict=True):
                faces[place] = one.refined(inside)

    @torch.inference_mode()
    def _detect(self, pictures: list[Prepared]) -> list[list[Face]]:
        """Pictures of one size, as many as a pass takes or fewer."""
        scaled = pictures[0].small_rgb.shape[:2]
        images = torch.from_numpy(np.stack([picture.small_rgb for picture in pictures])).to(self._device).float()
        mean, scale = (torch.from_numpy(values).to(self._device) for values in (_MEAN, np.reciprocal(_STD)))
        inputs = ((images - mean) * scale).permute(0, 3, 1, 2)
        boxes, logits, landmarks = self._passes(self._network, inputs, self._batch)
        scores = torch.softmax(logits, dim=-1)[:, :, 1]
        anchors = anchors_for(*scaled)
        return [
            self._faces(boxes[i], scores[i], landmarks[i], anchors, scaled, picture.size_wh[::-1])
            for i, picture in enumerate(pictures)
        ]

    def _faces(
        self,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        landmarks: torch.Tensor,
        anchors: torch.Tensor,
        scaled: tuple[int, int],
        size: tuple[int, int],
    ) -> list[Face]:
        """One frame's raw outputs, (anchors, 4), (anchors,), (anchors, 10), to faces, best score first."""
        keep = scores > self._score_least
        boxes, scores, landmarks, anchors = boxes[keep], scores[keep], landmarks[keep], anchors[keep]
        to_px = torch.tensor([scaled[1], scaled[0]], device=boxes.device)
        boxes = decode(boxes, anchors, _VARIANCES) * to_px.repeat(2)
        landmarks = decode_landm(landmarks, anchors, _VARIANCES) * to_px.repeat(5)
        keep = nms(boxes, scores, self._nms_iou)
        height, width = size
        # The package scales x by the ratio of the heights too; where rounding makes the two ratios differ
        # (854x480 becomes 640x360), that is off by up to a pixel at the far right, and kept for the sake of
        # equal results.
        to_frame = height / scaled[0]
        boxes_xyxy = boxes[keep].cpu().numpy() * to_frame
        landmarks_xy = landmarks[keep].cpu().numpy().reshape(-1, 5, 2) * to_frame
        # Like the package: a box that begins in the last pixel or beyond it is no face; all others stay
        # unclipped.
        start = np.maximum(boxes_xyxy[:, :2], 0)
        inside = ((start < [width - 1, height - 1]) & (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2])).all(axis=1)
        return [
            Face(boxes_xyxy[i], landmarks_xy[i], float(score))
            for i, score in enumerate(scores[keep].cpu().numpy())
            if inside[i]
        ]


def build_network() -> torch.nn.Module:
    """The package's network as its `predict_single.Model` builds it, with random weights, in training
    mode."""
    with warnings.catch_warnings():
        # The package asks torchvision for an untrained ResNet-50 in the way of 2021.
        warnings.filterwarnings("ignore", message="The parameter 'pretrained' is deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message="Arguments other than a weight enum", category=UserWarning)
        return RetinaFace(
            name="Resnet50",
            pretrained=False,
            return_layers={"layer2": 1, "layer3": 2, "layer4": 3},
            in_channels=256,
            out_channels=256,
        )


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Load a weights file into the network; UserError, one line, where names or shapes do not fit exactly."""
    given, wanted = read_state_dict(path), network.state_dict()
    missing, unexpected = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or unexpected:
        raise UserError(
            f"{path} does not hold the weights of RetinaFace ResNet-50: {_listed(missing, 'missing')}, "
            f"{_listed(unexpected, 'unexpected')}"
        )
    misshapen = [name for name in sorted(wanted) if given[name].shape != wanted[name].shape]
    if misshapen:
        name = misshapen[0]
        raise UserError(
            f"{path} does not hold the weights of RetinaFace ResNet-50: {len(misshapen)} tensors of a wrong "
            f"shape, first {name}: expected {tuple(wanted[name].shape)}, got {tuple(given[name].shape)}"
        )
    network.load_state_dict(given)


@lru_cache(maxsize=8)
def anchors_for(height: int, width: int) -> torch.Tensor:
    """Anchors of a picture: float32 (n, 4), centre x, centre y, width, height as shares of the picture.

    Order: step 8, 16, 32; rows, columns, the two sizes. Bit-equal to the package's `priorbox`, and some 80
    times as fast. The tensor is shared: do not write to it.
    """
    layers = []
    for step, sizes in zip(_STEPS_PX, _ANCHORS_PX, strict=True):
        centre_y = (np.arange(ceil(height / step)) + 0.5) * step / height
        centre_x = (np.arange(ceil(width / step)) + 0.5) * step / width
        layer = np.empty((len(centre_y), len(centre_x), len(sizes), 4))
        layer[..., 0] = centre_x[None, :, None]
        layer[..., 1] = centre_y[:, None, None]
        layer[..., 2] = np.array(sizes) / width
        layer[..., 3] = np.array(sizes) / height
        layers.append(layer.reshape(-1, 4))
    return torch.from_numpy(np.concatenate(layers).astype(np.float32))


def _listed(names: list[str], what: str) -> str:
    shown = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)} {what}{shown}"
