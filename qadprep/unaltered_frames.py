"""Frames of a manipulated clip that show the original unchanged: found by the crops, and by the clip's mask."""

from collections.abc import Callable, Mapping

import numpy as np

from qadprep.clip_rows import ClipCuts
from qadprep.faces.alignment import warp_face
from qadprep.group_files import GroupFile
from qadprep.timing import StageTimer
from qadprep.unaltered import alteration, is_unaltered, mask_is_empty
from qadprep.video.probe import VideoInfo
from qadprep.witness import Spot


def find_unaltered(
    cuts: ClipCuts,
    originals: Mapping[Spot, np.ndarray],
    original_info: VideoInfo,
    info: VideoInfo,
    mask: GroupFile | None,
    timer: StageTimer,
    note: Callable[[str], None],
) -> None:
    """Fill `alterations` and `unaltered` of a clip that was cut with the original's geometry.

    Args:
        originals: crops of the original at the same quality; empty where it has none.
        original_info, info: probes of the two best files.
        mask: the clip's mask video, where it has one; what it cannot tell, the crops tell.
        note: takes a remark about a mask that cannot be used.
    """
    lossless = original_info.crf == info.crf == 0.0
    size_px = 0
    with timer.stage("compare"):
        for spot, crop in cuts.best.crops.items():
            size_px = len(crop)
            if spot in originals:
                found = alteration(crop, originals[spot])
                cuts.alterations[spot] = found.mean
                cuts.unaltered[spot] = is_unaltered(found, lossless=lossless)
    if mask and cuts.best.crops:
        for spot, empty in _empty_masks(cuts, mask, info, size_px, timer, note).items():
            cuts.unaltered[spot] = cuts.unaltered.get(spot, False) or empty


def _empty_masks(
    cuts: ClipCuts, mask: GroupFile, info: VideoInfo, size_px: int, timer: StageTimer, note: Callable[[str], None]
) -> dict[Spot, bool]:
    """spot -> whether the mask marks nothing in its crop; without the spots that the mask says nothing about."""
    if mask.info is None:
        return {}  # its record's message is noted already
    if (mask.info.width, mask.info.height) != (info.width, info.height):
        note(f"mask is {mask.info.width}x{mask.info.height}, the clip {info.width}x{info.height}: not looked at")
        return {}
    at: dict[int, list[Spot]] = {}
    for spot in cuts.best.crops:
        number = cuts.best.aims[spot][0]
        if number < mask.info.frames:
            at.setdefault(number, []).append(spot)
    result: dict[Spot, bool] = {}
    if at:
        with mask.source.reader(sorted(at)) as reader:
            for frame in timer.each("mask", reader):
                for spot in at[frame.index]:
                    result[spot] = mask_is_empty(warp_face(frame.rgb, cuts.best.aims[spot][1], size_px))
    lost = len(cuts.best.crops) - len(result)
    if lost:
        note(f"its mask says nothing about {lost} of {len(cuts.best.crops)} frames (it is shorter, or damaged)")
    return result
