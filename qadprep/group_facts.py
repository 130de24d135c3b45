"""What is said of a group and its files: for packs that go stale, and of the sync proof's verdicts."""

import dataclasses

from qadprep.catalog.base import Clip, Group, datasets
from qadprep.config import ExtractConfig
from qadprep.cutting import Cut
from qadprep.video.sync import Sync, trusted


def nothing_known(result: Cut) -> bool:
    """Whether not one frame could be decoded, so that the sync proof says nothing."""
    return bool(result.error) and result.sync.instants == 0


def accepted(sync: Sync, *, same_count: bool) -> bool:
    """Whether crops cut with the reference's geometry may be used: a shift has been applied by then."""
    return sync.verdict == "shifted" or trusted(sync, same_size=sync.place.is_equal, same_count=same_count)


def explain(sync: Sync) -> str:
    """What a sync proof found, in a few words."""
    if sync.verdict == "shifted":
        parts = [f"shifted by {sync.offset_frames:+d} frames"] if sync.offset_frames else []
        if not sync.place.is_equal:
            place = sync.place
            where = f"at {place.left_px:+g},{place.top_px:+g} px"
            scaled = f", scale {place.scale_x:.4g}x{place.scale_y:.4g}" if place.relation == "resized" else ""
            parts.append(f"placed {place.relation} {where}{scaled}")
        return " and ".join(parts)
    if sync.verdict == "static":
        return sync.detail or "too little motion to prove the timing, and the frame counts differ"
    return sync.detail or f"other content, mean difference {sync.residual:.0f} grey levels"


def length_remark(clip: Clip, frames: int, original_frames: int) -> str | None:
    """What the dataset's own rules say of a manipulated clip's length, or None when it is as it should be."""
    entry = datasets().get(clip.dataset)
    return entry.length_remark(clip.method, frames, original_frames) if entry and entry.length_remark else None


def with_faces(group: Group, config: ExtractConfig) -> Group:
    """The group with `--faces` in place of what its dataset's reader says."""
    if config.faces == "auto":
        return group
    return dataclasses.replace(
        group, clips=tuple(dataclasses.replace(clip, faces=config.faces) for clip in group.clips)
    )


def describe(group: Group) -> list[list[object]]:
    """What the manifest says of a group's clips; a pack made from other facts is not up to date."""
    return [[c.method, c.name, c.label, c.split, c.target, c.source, c.faces] for c in group.clips]
