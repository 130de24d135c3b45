"""The rows of one clip: every attempted spot with its status, where it lies in each file, and what was measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qadprep.catalog.base import Clip
from qadprep.cutting import Cut
from qadprep.faces.mask_labels import FaceLabels
from qadprep.faces.measures import Measures, measure
from qadprep.geometry import Geometry
from qadprep.pack import Row
from qadprep.video.source import Source
from qadprep.witness import Spot


@dataclass
class ClipCuts:
    """Everything that was found out about one clip.

    Attributes:
        kind: `reference`, `own` or `given`, see `Row.geometry`.
        files: quality -> its cut; the best quality first.
        refused: status of a file that could not be used, for every row; None when all could.
        labels: of the faces, where a mask tells them.
        alterations: spot -> mean |difference| to the original.
        unaltered: spot -> whether the frame shows the original unchanged.
    """

    kind: str
    geometry: Geometry
    files: dict[str, Cut]
    refused: str | None = None
    labels: FaceLabels | None = None
    alterations: dict[Spot, float] = field(default_factory=dict)
    unaltered: dict[Spot, bool] = field(default_factory=dict)

    @property
    def best(self) -> Cut:
        """The cut of the best quality."""
        return next(iter(self.files.values()))

    def ready(self, spot: Spot) -> bool:
        """Whether every quality has its crop."""
        return all(spot in cut.crops for cut in self.files.values())


def clip_rows(
    clip: Clip, cuts: ClipCuts, detector_name: str, sources: Mapping[str, Source | None], *, drop_unaltered: bool
) -> list[Row]:
    """One row for every attempted spot of a clip.

    Args:
        sources: quality -> the clip's file, the best first; pictures number their frames themselves.
        drop_unaltered: whether an unaltered frame is left out as `unaltered`.
    """
    rows = []
    best_source = next(iter(sources.values()))
    for spot, status in cuts.geometry.status.items():
        if status == "ok":
            status = _status(cuts, spot, drop_unaltered)
        row = empty_row(clip, spot, status, best_source)
        if spot in cuts.geometry.affines:
            _place(row, cuts, spot, detector_name, sources)
        row.scene = cuts.geometry.scenes.get(spot[0])
        _measure(row, cuts, spot)
        if cuts.labels:
            row.label, row.mask_share = cuts.labels.label.get(spot[1]), cuts.labels.covered.get(spot)
        row.alteration, row.unaltered = cuts.alterations.get(spot), cuts.unaltered.get(spot)
        if status == "ok":
            row.crops = {quality: cut.crops[spot] for quality, cut in cuts.files.items()}
        rows.append(row)
    return rows


def empty_row(clip: Clip, spot: Spot, status: str, source: Source | None) -> Row:
    """A row that says no more than what was attempted and what became of it."""
    return Row(
        clip.dataset, clip.group, clip.method, clip.name, clip.label, clip.split, clip.target, clip.source,
        frame=source.number(spot[0]) if source else spot[0], face=spot[1], status=status,
    )  # fmt: skip


def rejected_rows(clip: Clip, attempted: Iterable[int], reason: str, source: Source | None) -> list[Row]:
    """Rows of a clip that cannot give tuples: every frame tried in its group."""
    return [empty_row(clip, (frame, 0), reason, source) for frame in (list(attempted) or [-1])]


def _status(cuts: ClipCuts, spot: Spot, drop_unaltered: bool) -> str:
    if cuts.refused:
        return cuts.refused
    if any(spot in cut.beyond for cut in cuts.files.values()):
        return "beyond_end"
    if not cuts.ready(spot):
        return "decode_error"
    if cuts.labels and (status := cuts.labels.status.get(spot)):
        return status
    return "unaltered" if drop_unaltered and cuts.unaltered.get(spot) else "ok"


def _place(row: Row, cuts: ClipCuts, spot: Spot, detector_name: str, sources: Mapping[str, Source | None]) -> None:
    """Where the spot lies in every file: in most of them at the same frame and by the same affine."""
    row.geometry = cuts.kind
    best = cuts.best.aims.get(spot)
    row.affine = _flat(best[1] if best else cuts.geometry.affines[spot])
    for quality, cut in cuts.files.items():
        if spot not in cut.aims:
            continue
        position, affine = cut.aims[spot]
        source = sources[quality]
        number = source.number(position) if source else position
        if number != row.frame:
            row.frames[quality] = number
        if _flat(affine) != row.affine:
            row.affines[quality] = _flat(affine)
    if spot in cuts.geometry.faces:
        face = cuts.geometry.faces[spot]
        row.detector, row.score = detector_name, float(face.score)
        row.box_xyxy = [float(value) for value in face.box_xyxy]
        row.landmarks_xy = _flat(face.landmarks_xy)


def _measure(row: Row, cuts: ClipCuts, spot: Spot) -> None:
    measures: Measures | None = cuts.geometry.measures.get(spot)
    crop = cuts.best.crops.get(spot)
    if crop is not None and spot in cuts.geometry.faces:
        info = cuts.geometry.witness.info
        # The face's size and pose are the reference's; how sharp this clip is, only its own crop tells.
        measures = measure(cuts.geometry.faces[spot], crop, cuts.geometry.affines[spot], (info.width, info.height))
    if measures:
        row.face_px, row.sharpness, row.inside_share = measures.side_px, measures.sharpness, measures.inside_share
        row.yaw_deg, row.pitch_deg, row.roll_deg = measures.yaw_deg, measures.pitch_deg, measures.roll_deg


def _flat(values: np.ndarray) -> list[float]:
    return [float(value) for value in values.reshape(-1)]


def located_boxes(cuts: ClipCuts, spots: Iterable[Spot]) -> Mapping[Spot, tuple[int, np.ndarray]]:
    """spot -> (frame number in the clip's best file, face box in its px), for what lies inside the file."""
    place = cuts.best.sync.place
    origin, scale = np.array([place.left_px, place.top_px] * 2), np.array([place.scale_x, place.scale_y] * 2)
    return {
        spot: (cuts.best.aims[spot][0], (cuts.geometry.faces[spot].box_xyxy - origin) / scale)
        for spot in spots
        if spot in cuts.best.aims and spot in cuts.geometry.faces
    }
