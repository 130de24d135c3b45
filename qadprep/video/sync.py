"""Does frame i of one file show the same instant as frame i of another? A temporal shift test on thumbnails."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

MAX_OFFSET_FRAMES = 3
INSTANTS = 9
# Measured on talking heads, lossless against CRF 40: a true pair scores 0.2 to 1.0 where the picture moves, a still
# one below 0.02 with the winner decided by a hair.
MIN_MARGIN = 0.05
# A shift is believed at this margin, or at the smaller one where most instants agree: in a nearly still scene CRF 40
# keeps showing parts of earlier frames, which looks like a lag of two or three frames at half of the instants.
CLEAR_MARGIN, MIN_AGREEING = 0.1, 2 / 3
# Mean |difference| (grey levels) to the nearest other frame below which a scene cannot tell offsets apart.
MIN_MOTION = 0.1
# Two different scenes differ by 30 to 60 grey levels; CRF 40 or a swapped face by 1 to 6.
MAX_RESIDUAL = 16.0

Verdict = Literal["reference", "proved", "static", "shifted", "refused"]


@dataclass(frozen=True)
class Sync:
    """Evidence that a file shows the reference's instants.

    Attributes:
        verdict: `proved` (offset 0 wins clearly), `static` (too little motion to tell), `shifted` (another offset
            wins clearly), `refused` (other content or too few instants), `reference` (the file itself).
        offset_frames: k for which frame i of the file matches frame i + k of the reference best.
        margin: (cost of the runner-up - cost of the winner) / motion of the reference; about 1 for an exact copy.
        residual: mean |difference| of luminance at the winner, grey levels 0..255.
        instants: how many frames were compared.
        agreeing: at how many of them the winner wins alone.
    """

    verdict: Verdict
    offset_frames: int
    margin: float
    residual: float
    instants: int
    agreeing: int

    def as_dict(self) -> dict[str, object]:
        """Plain values for the pack's table."""
        return asdict(self)


REFERENCE = Sync("reference", 0, 1.0, 0.0, 0, 0)


def temporal_shift(reference: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]) -> Sync:
    """Find the offset at which a file agrees best with the reference.

    Args:
        reference: frame index -> luminance thumbnail, uint8 (h, w), for (nearly) every frame.
        other: frame index -> thumbnail of the same size, for the sampled frames.

    The reference's own motion picks the instants: at each candidate i its distance to the nearest frame among
    i-3..i+3 says how well offsets can be told apart there. Costs are summed over the best instants, since single
    frames are often undecided at CRF 40. An exactly repeated reference frame is no evidence, so candidates whose
    neighbour is identical come last by construction.
    """
    offsets = [k for k in range(-MAX_OFFSET_FRAMES, MAX_OFFSET_FRAMES + 1) if k != 0]
    candidates = [i for i in sorted(other) if i in reference and all(i + k in reference for k in offsets)]
    if not candidates:
        # A clip of a few frames has no neighbourhood to test; contents can still be compared.
        shared = [i for i in other if i in reference]
        if not shared:
            return Sync("refused", 0, 0.0, 255.0, 0, 0)
        residual = float(np.mean([_distance(other[i], reference[i]) for i in shared]))
        return Sync("static" if residual <= MAX_RESIDUAL else "refused", 0, 0.0, residual, len(shared), 0)
    motion = {i: min(_distance(reference[i], reference[i + k]) for k in offsets) for i in candidates}
    chosen = sorted(sorted(candidates, key=lambda i: (-motion[i], i))[:INSTANTS])
    every = sorted([*offsets, 0], key=abs)  # on an exact tie the smaller shift wins
    costs = np.array([[_distance(other[i], reference[i + k]) for k in every] for i in chosen])
    total = costs.mean(axis=0)
    winner = int(np.argmin(total))
    runner_up = float(np.min(np.delete(total, winner)))
    residual = float(total[winner])
    # What a perfect copy would score against the nearest other frame.
    scale = float(np.mean([motion[i] for i in chosen]))
    margin = (runner_up - residual) / max(scale, 1e-6)
    agreeing = int(np.sum(np.argmin(costs, axis=1) == winner))
    if residual > MAX_RESIDUAL:
        verdict: Verdict = "refused"
    elif scale < MIN_MOTION or margin < MIN_MARGIN:
        verdict = "static"
    elif every[winner] == 0:
        verdict = "proved"
    else:
        clear = margin >= CLEAR_MARGIN or agreeing >= MIN_AGREEING * len(chosen)
        verdict = "shifted" if clear else "static"
    return Sync(verdict, every[winner], round(margin, 4), round(residual, 4), len(chosen), agreeing)


def trusted(sync: Sync, *, same_size: bool, same_count: bool) -> bool:
    """Whether another file's geometry may be used on this one.

    A static scene is believed only when picture size and frame count agree as well.
    """
    if not same_size:
        return False
    return sync.verdict in ("reference", "proved") or (sync.verdict == "static" and same_count)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.abs(a.astype(np.int16) - b.astype(np.int16))))
