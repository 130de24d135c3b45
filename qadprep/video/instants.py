"""Thumbnails of two files at the same and at neighbouring instants: what each offset costs, and where that changes."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

MAX_OFFSET_FRAMES = 3
MAX_INSTANTS = 64
# On an exact tie the smaller shift wins, so they are tried in this order.
OFFSETS = sorted(range(-MAX_OFFSET_FRAMES, MAX_OFFSET_FRAMES + 1), key=lambda k: (abs(k), k))
# Below this share of the picture, what is left outside the faces is no evidence.
MIN_KEPT = 0.1
# Grey levels squared: what a codec leaves in a thumbnail. Motion far below it is no evidence, unless the copy is good.
NOISE = 1.0
# A stretch votes for another offset only with what it gains beyond this share of its motion. True pairs at CRF 40
# (26 talking heads, both directions, 64 instants) leave at most 0.4 instants' worth, and below 0.12 in 23 of them; a
# frame dropped at four fifths leaves 0.9 or more, but for the two stillest clips.
MIN_GAIN = 0.1
# One thing that is in one file only, a caption or a face, must not outweigh the rest of the picture.
MOST_DIFFERENCE = 48.0
_FAR_INSTANTS, _FAR_WIDTH, _FAR_HEIGHT = 24, 80, 45


@dataclass(frozen=True)
class Stretch:
    """A run of instants that agrees better with another offset than with the winner of all.

    Attributes:
        begin, end: positions in the list of instants, end exclusive.
        offset_frames: the offset it prefers.
        worth: its gain in instants of average motion.
        voters: how many instants that gain comes from, those of little motion counted less.
    """

    begin: int
    end: int
    offset_frames: int
    worth: float
    voters: float


@dataclass(frozen=True)
class Instants:
    """Costs at n instants, in order of time. A cost is the mean squared difference of luminance, grey levels squared,
    with the difference in mean brightness taken out. Squares tell small motion from a codec's noise far better than
    absolute differences do.

    Attributes:
        frames: frame indices, rising.
        costs: float64 (n, 7), of the offsets in the order of OFFSETS.
        motion: float64 (n,): cost of the reference against the nearest of its own other frames within 3.
        weights: float64 (n,): the motion and, where the files differ, the codec's noise; still instants count little.
        residuals: float64 (n, 7): mean |difference|, brightness and all.
    """

    frames: list[int]
    costs: np.ndarray
    motion: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the instants by their weights."""
        return np.average(values, axis=0, weights=self.weights)

    def stretch(self, winner: int) -> Stretch | None:
        """The run of instants that argues most strongly for another offset than OFFSETS[winner]; None for none.

        For each offset the run of greatest total gain is found in one pass (dynamic programming: the best run that ends
        at an instant either continues the best one before it or begins anew).
        """
        # Each instant's gain counts by its weight, and is measured against its weight.
        weights = self.weights * self.weights
        unit = weights.mean()
        best = None
        for column, offset in enumerate(OFFSETS):
            if column == winner:
                continue
            gain = self.weights * (self.costs[:, winner] - self.costs[:, column]) - MIN_GAIN * weights
            total, begin, end = _greatest_run(gain)
            if total > 0 and (best is None or total / unit > best.worth):
                voters = weights[begin:end].sum() ** 2 / (weights[begin:end] ** 2).sum()
                best = Stretch(begin, end, offset, float(total / unit), float(voters))
        return best


def compare(
    reference: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray], masks: Mapping[int, np.ndarray] | None
) -> Instants | None:
    """Costs at up to 64 instants, evenly chosen from those whose whole neighbourhood the reference has; None for none.

    `masks`: frame -> bool, the thumbnail's pixels that count; instants without one, or with too little left, are not
    used. None: all pixels of all instants.
    """
    frames = [i for i in sorted(other) if all(i + k in reference for k in OFFSETS)]
    if masks is not None:
        frames = [i for i in frames if i in masks and masks[i].mean() >= MIN_KEPT]
    if not frames:
        return None
    if len(frames) > MAX_INSTANTS:
        frames = [frames[at] for at in np.linspace(0, len(frames) - 1, MAX_INSTANTS).round().astype(int)]
    costs, own, residuals = [], [], []
    for i in frames:
        mask = slice(None) if masks is None else masks[i].reshape(-1)
        around = np.stack([reference[i + k].reshape(-1)[mask] for k in OFFSETS]).astype(np.float32)
        difference = around - other[i].reshape(-1)[mask]
        residuals.append(np.abs(difference).mean(axis=1))
        costs.append(_squared(difference))
        own.append(_squared(around[1:] - around[0]))
    costs, motion = np.array(costs, float), np.array(own, float).min(axis=1)
    noise = min(NOISE, float(np.median(costs.min(axis=1))))
    return Instants(frames, costs, motion, motion + noise + 1e-6, np.array(residuals, float))


def anchored(
    reference: Mapping[int, np.ndarray],
    other: Mapping[int, np.ndarray],
    frames: list[int],
    offset: int,
    masks: Mapping[int, np.ndarray] | None,
) -> tuple[float, float]:
    """Whether each frame of `other` shows its own instant rather than any instant of the clip.

    Returns (share, motion): how much worse other instants of the reference fit than the own one, over how far they lie
    from it in the reference itself (about 1 for an exact copy, about 0 for a reversed or unrelated clip); and that
    distance, grey levels.
    """
    chosen = [frames[at] for at in np.unique(np.linspace(0, len(frames) - 1, _FAR_INSTANTS).round().astype(int))]
    if len(chosen) < 2:
        return 1.0, 0.0
    shown = np.stack([_small(other[i]) for i in chosen]).reshape(len(chosen), -1)
    truth = np.stack([_small(reference[i + offset]) for i in chosen]).reshape(len(chosen), -1)
    worse = apart = 0.0
    for row, i in enumerate(chosen):
        mask = slice(None) if masks is None else _small(masks[i].astype(np.uint8)).reshape(-1) > 0.99
        fits = _without_mean(truth[:, mask] - shown[row, mask])
        worse += float((fits - fits[row]).sum())
        apart += float(_without_mean(truth[:, mask] - truth[row, mask]).sum())
    return worse / max(apart, 1e-6), apart / (len(chosen) * (len(chosen) - 1))


def _greatest_run(gain: np.ndarray) -> tuple[float, int, int]:
    best, total, begin = (0.0, 0, 0), 0.0, 0
    for position, value in enumerate(gain):
        if total <= 0:
            total, begin = 0.0, position
        total += float(value)
        if total > best[0]:
            best = (total, begin, position + 1)
    return best


def _squared(difference: np.ndarray) -> np.ndarray:
    difference = difference - difference.mean(axis=1, keepdims=True)
    return np.square(np.clip(difference, -MOST_DIFFERENCE, MOST_DIFFERENCE)).mean(axis=1)


def _without_mean(difference: np.ndarray) -> np.ndarray:
    return np.abs(difference - difference.mean(axis=1, keepdims=True)).mean(axis=1)


def _small(thumbnail: np.ndarray) -> np.ndarray:
    size = (min(_FAR_WIDTH, thumbnail.shape[1]), min(_FAR_HEIGHT, thumbnail.shape[0]))
    return cv2.resize(thumbnail.astype(np.float32), size, interpolation=cv2.INTER_AREA)
