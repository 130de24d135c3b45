"""What a manipulated clip's mask video says of its faces: which of them are fake, and where nothing was altered."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qadprep.catalog.base import Clip
from qadprep.faces.mask_labels import FaceLabels, covered_share, marked, vote
from qadprep.group_files import GroupFile
from qadprep.timing import StageTimer
from qadprep.video.probe import VideoInfo
from qadprep.witness import Spot

Located = Mapping[Spot, tuple[int, np.ndarray]]
"""spot -> (frame number in the clip, box left, top, right, bottom in its px)."""


@dataclass
class MaskReading:
    """What a mask video shows.

    Attributes:
        covered: spot -> share of the box under the mask.
        status: spot -> why nothing is known: the mask's own status, `mask_short` or `mask_damaged`.
        marks_anything: whether it marks a single pixel in any of the frames.
        problem: (status, message) of what is wrong with the mask, or None.
    """

    covered: dict[Spot, float] = field(default_factory=dict)
    status: dict[Spot, str] = field(default_factory=dict)
    marks_anything: bool = False
    problem: tuple[str, str] | None = None


def read_mask(clip: Clip, mask: GroupFile, info: VideoInfo, located: Located, timer: StageTimer) -> MaskReading:
    """Look at the boxes in the mask video, in one pass.

    Args:
        mask: the opened mask video.
        info: probe of the clip itself; the mask must have the same picture size.
    """
    record, result = mask.record, MaskReading()
    if record.status != "ok":
        result.problem = record.status, record.message
    elif (mask.info.width, mask.info.height) != (info.width, info.height):
        sizes = f"{mask.info.width}x{mask.info.height}, the clip {info.width}x{info.height}"
        result.problem = (
            "mask_size",
            f"{record.path}: picture is {sizes}; nothing says how the two lie over each other",
        )
    if result.problem:
        result.status = dict.fromkeys(located, result.problem[0])
        return result
    at: dict[int, list[Spot]] = {}
    for spot, (number, _) in located.items():
        if number < mask.info.frames:
            at.setdefault(number, []).append(spot)
        else:
            result.status[spot] = "mask_short"
    if result.status:
        furthest = max(located[spot][0] for spot in result.status)
        result.problem = (
            "mask_short",
            f"{record.path}: has {mask.info.frames} frames, frame {furthest} of {clip.id} is behind its end",
        )
    if not at:
        return result
    with mask.source.reader(sorted(at)) as reader:
        for frame in timer.each("mask", reader):
            result.marks_anything |= bool(marked(frame.rgb).any())
            for spot in at[frame.index]:
                result.covered[spot] = covered_share(frame.rgb, located[spot][1])
    if reader.missing:
        result.status |= {spot: "mask_damaged" for number in reader.missing for spot in at[number]}
        first = reader.missing[0]
        result.problem = "mask_damaged", f"{record.path}: frames from {first} on are damaged ({reader.error})"
    return result


def label_faces(clip: Clip, mask: GroupFile, info: VideoInfo, located: Located, timer: StageTimer) -> FaceLabels:
    """Vote over the faces of one clip.

    Args:
        mask: the opened mask video; what is wrong with it is noted in its record.
        info: probe of the clip itself; the mask must have the same picture size.
        located: where its faces are.

    Returns:
        Labels by face number. A spot that the mask says nothing about has a status: `mask_missing`,
        `mask_unreadable`, `mask_size`, `mask_short` (it ends before), `mask_damaged` (cannot be decoded there),
        `mask_empty` (it marks nothing in any of the frames, although the clip is manipulated).
    """
    reading = read_mask(clip, mask, info, located, timer)
    if reading.problem:
        mask.refuse(*reading.problem)
    if reading.covered and not reading.marks_anything:
        frames = {located[spot][0] for spot in reading.covered}
        mask.refuse("mask_empty", f"{mask.record.path}: marks nothing in the {len(frames)} frames of {clip.id}")
        return FaceLabels(status=dict.fromkeys(reading.covered, "mask_empty") | reading.status)
    labels = vote(reading.covered)
    labels.status |= reading.status
    return labels
