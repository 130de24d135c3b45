"""Which faces of a manipulated video are fake: a vote of its mask video over each face's track."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Users of FFIW-10K threshold its lossy masks at 10, 50 or 127; between black and white the middle errs least.
MASK_THRESHOLD = 127
# A swapped face fills most of its box, a neighbour's mask touches a corner at most.
MIN_COVERED = 0.2
# A track is fake or real when so many of its frames say so; between lies the doubt band.
FAKE_VOTE, REAL_VOTE = 0.8, 0.2

Spot = tuple[int, int]


@dataclass
class FaceLabels:
    """What the masks say.

    Attributes:
        label: face -> 1 fake, 0 real, None in the doubt band.
        votes: face -> share of its frames in which the mask covers it.
        status: spot -> why it may not be used: `label_doubtful` (the track is in the doubt band), `mask_disagrees`
            (this frame against its track's vote).
        covered: spot -> share of the box that the mask covers.
    """

    label: dict[int, int | None] = field(default_factory=dict)
    votes: dict[int, float] = field(default_factory=dict)
    status: dict[Spot, str] = field(default_factory=dict)
    covered: dict[Spot, float] = field(default_factory=dict)


def covered_share(mask_rgb: np.ndarray, box_xyxy: np.ndarray) -> float:
    """Share 0..1 of a box that lies under the mask.

    Args:
        mask_rgb: uint8 (height, width, 3), bright where the picture was altered.
        box_xyxy: left, top, right, bottom, px (pixel-edge coordinates). What lies outside the picture does not
            count; a box wholly outside has share 0.
    """
    height, width = mask_rgb.shape[:2]
    left, top, right, bottom = (float(value) for value in box_xyxy)
    x0, x1 = round(max(0.0, left)), round(min(float(width), right))
    y0, y1 = round(max(0.0, top)), round(min(float(height), bottom))
    if x1 <= x0 or y1 <= y0:
        return 0.0
    return float(marked(mask_rgb[y0:y1, x0:x1]).mean())


def marked(mask_rgb: np.ndarray) -> np.ndarray:
    """Which pixels a mask marks: bool (height, width). By the brightest channel, since nothing says that it is grey."""
    return mask_rgb.max(axis=2) > MASK_THRESHOLD


def vote(covered: Mapping[Spot, float]) -> FaceLabels:
    """Label every face by the frames in which its share is known.

    Args:
        covered: (frame, face) -> share of the face's box under the mask.
    """
    result = FaceLabels(covered=dict(covered))
    for face in sorted({face for _, face in covered}):
        shares = {spot: share for spot, share in covered.items() if spot[1] == face}
        masked = {spot: share >= MIN_COVERED for spot, share in shares.items()}
        fake = result.votes[face] = sum(masked.values()) / len(masked)
        label = 1 if fake >= FAKE_VOTE else 0 if fake <= REAL_VOTE else None
        result.label[face] = label
        for spot, is_masked in masked.items():
            if label is None:
                result.status[spot] = "label_doubtful"
            elif is_masked != bool(label):
                result.status[spot] = "mask_disagrees"
    return result
