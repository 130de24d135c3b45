"""Label the faces of a manipulated clip by its mask video: which of them lie under the mask, and what can go wrong."""

from qadprep.catalog.base import Clip
from qadprep.faces.mask_labels import FaceLabels, covered_share, marked, vote
from qadprep.geometry import Geometry, Spot
from qadprep.group_files import GroupFile
from qadprep.timing import StageTimer
from qadprep.video.probe import VideoInfo


def label_faces(clip: Clip, mask: GroupFile, info: VideoInfo, geometry: Geometry, timer: StageTimer) -> FaceLabels:
    """Vote over the faces of one clip.

    Args:
        mask: the opened mask video; what is wrong with it is noted in its record.
        info: probe of the clip itself; the mask must have the same picture size.
        geometry: where its faces are; faces of status `ok` take part.

    Returns:
        Labels by face number. A spot that the mask says nothing about has a status: `mask_missing`,
        `mask_unreadable`, `mask_size`, `mask_short` (it ends before), `mask_damaged` (cannot be decoded there),
        `mask_empty` (it marks nothing in any of the frames, although the clip is manipulated).
    """
    spots = [spot for spot, status in geometry.status.items() if status == "ok"]
    record = mask.record
    if mask.info and (mask.info.width, mask.info.height) != (info.width, info.height):
        sizes = f"{mask.info.width}x{mask.info.height}, the clip {info.width}x{info.height}"
        mask.refuse("mask_size", f"{record.path}: picture is {sizes}; nothing says how the two lie over each other")
    if record.status != "ok":
        return FaceLabels(status=dict.fromkeys(spots, record.status))
    status: dict[Spot, str] = {spot: "mask_short" for spot in spots if spot[0] >= mask.info.frames}
    frames = sorted({spot[0] for spot in spots if spot not in status})
    covered: dict[Spot, float] = {}
    if status:
        mask.refuse(
            "mask_short",
            f"{record.path}: has {mask.info.frames} frames, frame {max(status)[0]} of {clip.id} is behind its end",
        )
    marks_anything = False
    if frames:
        faces_at: dict[int, list[Spot]] = {}
        for spot in spots:
            faces_at.setdefault(spot[0], []).append(spot)
        with mask.source.reader(frames) as reader:
            for frame in timer.each("mask", reader):
                marks_anything |= bool(marked(frame.rgb).any())
                for spot in faces_at[frame.index]:
                    covered[spot] = covered_share(frame.rgb, geometry.faces[spot].box_xyxy)
        if reader.missing:
            status |= {spot: "mask_damaged" for frame in reader.missing for spot in faces_at[frame]}
            mask.refuse(
                "mask_damaged", f"{record.path}: frames from {reader.missing[0]} on are damaged ({reader.error})"
            )
    if covered and not marks_anything:
        mask.refuse("mask_empty", f"{record.path}: marks nothing in the {len(frames)} frames of {clip.id}")
        return FaceLabels(status=dict.fromkeys(covered, "mask_empty") | status)
    labels = vote(covered)
    labels.status |= status
    return labels
