"""What a file remembers of its own pass, so that other files can be tested against it without reading it again."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qadprep.faces.base import Face
from qadprep.video.decode import THUMB_HEIGHT, THUMB_WIDTH
from qadprep.video.probe import VideoInfo
from qadprep.video.sync import MAX_OFFSET_FRAMES

# Instants at which the full picture is kept: enough that one bad frame does not decide where pictures lie over each
# other, and 10 MB at 1080p.
PLACE_INSTANTS = 5
# Frames that a proof in time looks at, at least, where the clip has them: with a handful of them a dropped frame is
# missed, and noise can look like a shift. Nearer to each other than the steps they repeat each other's errors: at CRF
# 40 what was not updated stays for some frames, and looks like a change of offset that several instants agree on.
EVIDENCE_FRAMES, EVIDENCE_STEP, LEAST_STEP = 32, 3, 2
# A manipulation's blending reaches over the detector's box.
_FACE_REACH = 1.3

Spot = tuple[int, int]
"""(frame, face): one face of a group at one instant. The frame counts on the group's reference; where only one face is
followed, its number is 0."""

Aim = tuple[int, np.ndarray]
"""Where a spot lies in one file: frame number in it, and the affine float64 (2, 3) from its px to crop px."""


@dataclass
class Witness:
    """One file's pictures as evidence.

    Attributes:
        info: its probe.
        thumbnails: frame -> luminance uint8 (90, 160): the cut frames and their neighbours up to 3 frames away.
        lumas: frame -> luminance uint8 (height, width) at a few of the cut frames.
        boxes_xyxy: frame -> face boxes in its px; where a manipulation may differ.
        evidence: the frames that others are compared at; their neighbours have thumbnails too.
    """

    info: VideoInfo
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    lumas: dict[int, np.ndarray] = field(default_factory=dict)
    boxes_xyxy: dict[int, list[np.ndarray]] = field(default_factory=dict)
    evidence: list[int] = field(default_factory=list)

    def keep_thumbnails(self) -> dict[int, np.ndarray]:
        """frame -> bool (90, 160), False over faces, by those of the nearest frame in which they are known."""
        scale = np.array([THUMB_WIDTH / self.info.width, THUMB_HEIGHT / self.info.height] * 2)
        known = {
            frame: _outside([box * scale for box in boxes], THUMB_WIDTH, THUMB_HEIGHT)
            for frame, boxes in self.boxes_xyxy.items()
        }
        if not known:
            return {}
        nearest = {at: min(known, key=lambda frame: (abs(frame - at), frame)) for at in self.evidence}
        return {at: known[frame] for at, frame in nearest.items()} | known

    def keep_luma(self, frame: int) -> np.ndarray | None:
        """Bool (height, width), False over faces; None where the frame has none."""
        boxes = self.boxes_xyxy.get(frame)
        return _outside(boxes, self.info.width, self.info.height) if boxes else None

    def remember_faces(self, faces: Mapping[Spot, Face]) -> None:
        """Take the boxes of the followed faces."""
        for (frame, _), face in faces.items():
            self.boxes_xyxy.setdefault(frame, []).append(face.box_xyxy.astype(np.float64))


def neighbourhood(frames: Iterable[int], length: int) -> set[int]:
    """The frames and their neighbours within the reach of the shift test, inside a file of `length` frames."""
    reach = range(-MAX_OFFSET_FRAMES, MAX_OFFSET_FRAMES + 1)
    return {frame + k for frame in frames for k in reach if 0 <= frame + k < length}


def evidence_frames(frames: Collection[int]) -> list[int]:
    """The frames, and where they are few others between them, spread evenly."""
    first, last = min(frames), max(frames)
    count = min(EVIDENCE_FRAMES, (last - first) // EVIDENCE_STEP + 1)
    more = range(count) if len(frames) < count else ()
    return sorted({*frames, *(first + part * (last - first) // (count - 1) for part in more)})


def thinned(frames: Iterable[int]) -> list[int]:
    """The frames without those that follow another one too closely to add evidence."""
    kept: list[int] = []
    for frame in sorted(frames):
        if not kept or frame - kept[-1] >= LEAST_STEP:
            kept.append(frame)
    return kept


def place_instants(frames: Collection[int]) -> list[int]:
    """A few of the frames, spread evenly, the first one among them."""
    ordered = sorted(frames)
    count = min(PLACE_INSTANTS, len(ordered))
    return [ordered[part * len(ordered) // count] for part in range(count)]


def _outside(boxes_xyxy: Iterable[np.ndarray], width: int, height: int) -> np.ndarray:
    keep = np.ones((height, width), bool)
    for left, top, right, bottom in boxes_xyxy:
        grow_x, grow_y = (right - left) * (_FACE_REACH - 1) / 2, (bottom - top) * (_FACE_REACH - 1) / 2
        x0, x1 = max(0, int(left - grow_x)), max(0, int(np.ceil(right + grow_x)))
        y0, y1 = max(0, int(top - grow_y)), max(0, int(np.ceil(bottom + grow_y)))
        keep[y0:y1, x0:x1] = False
    return keep
