"""How many frames the files of a group have in common."""

from collections.abc import Callable

from qadprep.catalog.base import Clip, Group
from qadprep.config import ExtractConfig
from qadprep.group_facts import length_remark
from qadprep.group_files import MASK, GroupFiles


def common_length(
    group: Group,
    files: GroupFiles,
    config: ExtractConfig,
    reference_quality: str | None,
    note: Callable[[Clip, str], None],
) -> int:
    """Frames that every usable file has; 0 when there is none. Refuses clips too short to be sampled.

    A manipulation may rightly be shorter than its target (FaceSwap and NeuralTextures end with the shorter of
    the two videos), so the group shrinks with it, but not below what the run wants from each clip. The same holds
    for a mask that says which faces are fake.

    Args:
        reference_quality: the original's best usable quality, None when there is none.
        note: takes remarks on clips.
    """
    original = group.original
    complete = [clip for clip in group.clips if files.complete(clip)]
    lengths = {clip.id: files.length(clip) for clip in complete}
    reference = files[original.id, reference_quality].info.frames if original and reference_quality else 0
    floor = min(config.frames, reference or max(lengths.values(), default=0))
    for clip in complete:
        have = lengths[clip.id]
        if have < floor:
            for quality in config.qualities:
                record = files[clip.id, quality].record
                if record.frames < floor:
                    files[clip.id, quality].refuse(
                        "too_short",
                        f"{record.shown}: has {record.frames} frames, {floor} are to be sampled from each clip",
                    )
            del lengths[clip.id]
            continue
        if reference and have < reference:
            note(clip, f"shorter than its original: {have} of {reference} frames; the group is sampled inside {have}")
        if reference and clip is not original and (remark := length_remark(clip, have, reference)):
            note(clip, remark)
        mask = files.files.get((clip.id, MASK)) if clip.faces == "all" else None
        if mask and mask.info and floor <= mask.info.frames < have:
            lengths[clip.id] = mask.info.frames
            note(clip, f"its mask has {mask.info.frames} of {have} frames; the group is sampled inside them")
    return min([*lengths.values(), *([reference] if reference else [])], default=0)
