"""One group of clips -> one face pack: probe, sample, detect once, cut every clip and every quality, prove, write."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qadprep.catalog.base import Clip, Group, datasets
from qadprep.config import ExtractConfig
from qadprep.face_labels import label_faces
from qadprep.faces.base import Detector
from qadprep.geometry import MAX_EVERY_FACE, Cut, Geometry, Spot, cut, find_geometry, given_geometry
from qadprep.group_files import MASK, GroupFile, GroupFiles
from qadprep.pack import Row, write_pack
from qadprep.results import GroupResult, summarise
from qadprep.sampling import sample_indices
from qadprep.timing import StageTimer
from qadprep.video.probe import VideoInfo
from qadprep.video.sync import REFERENCE, Sync, trusted


class _Extraction:
    """The state of one group's extraction; `run` reads top to bottom."""

    def __init__(
        self,
        group: Group,
        files: GroupFiles,
        config: ExtractConfig,
        detector: Detector,
        timer: StageTimer,
        threads: int,
    ) -> None:
        self.group, self.files, self.config, self.detector = group, files, config, detector
        self.timer, self.threads = timer, threads
        self.rows: list[Row] = []
        self.notes: list[tuple[str, str]] = []
        self.length = 0

    def run(self) -> None:
        original = self.group.original
        reference_quality = self.files.best_quality(original) if original else None
        length = self.length = self._common_length(original, reference_quality)
        # Settled before anything is decoded: damage inside a file costs the frames behind it, not the whole clip.
        usable = {clip.id for clip in self.group.clips if self.files.complete(clip)}
        if length == 0:
            for clip in self.group.clips:
                self._reject(clip, ())
            return
        chosen, spares = sample_indices(
            length, self.config.frames, self.config.seed, f"{self.group.dataset}/{self.group.name}"
        )
        reference: Geometry | None = None
        if original and reference_quality:
            reference = self._find(original, reference_quality, chosen, spares)
        for clip in self.group.clips:
            if clip.id not in usable:
                self._reject(clip, reference.frames if reference else chosen)
            elif clip is original:
                self._cut_own(clip, reference_quality, reference)
            elif not (reference and reference.affines and self._cut_as_reference(clip, reference_quality, reference)):
                best = self.config.qualities[0]
                self._cut_own(clip, best, self._find(clip, best, chosen, spares))

    def _common_length(self, original: Clip | None, reference_quality: str | None) -> int:
        """Frames that every usable file has; 0 when there is none. Refuses clips too short to be sampled.

        A manipulation may rightly be shorter than its target (FaceSwap and NeuralTextures end with the shorter of
        the two videos), so the group shrinks with it, but not below what the run wants from each clip. The same holds
        for a mask.
        """
        complete = [clip for clip in self.group.clips if self.files.complete(clip)]
        lengths = {clip.id: self.files.length(clip) for clip in complete}
        reference = self.files[original.id, reference_quality].info.frames if original and reference_quality else 0
        floor = min(self.config.frames, reference or max(lengths.values(), default=0))
        for clip in complete:
            have = lengths[clip.id]
            if have < floor:
                for quality in self.config.qualities:
                    record = self.files[clip.id, quality].record
                    if record.frames < floor:
                        self.files[clip.id, quality].refuse(
                            "too_short",
                            f"{record.shown}: has {record.frames} frames, {floor} are to be sampled from each clip",
                        )
                del lengths[clip.id]
                continue
            if reference and have < reference:
                self._note(
                    clip, f"shorter than its original: {have} of {reference} frames; the group is sampled inside {have}"
                )
            if reference and clip is not original and (remark := length_remark(clip, have, reference)):
                self._note(clip, remark)
            mask = self.files.files.get((clip.id, MASK))
            if mask and mask.info and floor <= mask.info.frames < have:
                lengths[clip.id] = mask.info.frames
                self._note(clip, f"its mask has {mask.info.frames} of {have} frames; the group is sampled inside them")
        return min([*lengths.values(), *([reference] if reference else [])], default=0)

    def _note(self, clip: Clip, remark: str) -> None:
        self.notes.append((clip.id, remark))

    # Cutting

    def _find(self, clip: Clip, quality: str, chosen: list[int], spares: list[int]) -> Geometry:
        file = self.files[clip.id, quality]
        if file.source.pictures and not self.config.realign:
            geometry = given_geometry(file.source, chosen, spares, self.config, self.timer)
        else:
            geometry = find_geometry(
                file.source,
                chosen,
                spares,
                self.config,
                self.detector,
                self.timer,
                self.threads,
                every_face=clip.faces == "all",
            )
        file.record.sync = REFERENCE.as_dict()
        self._note_damage(file, geometry.error, geometry.status)
        if geometry.crowded:
            self._note(clip, f"{geometry.crowded} frames have over {MAX_EVERY_FACE} faces: the smallest are left out")
        return geometry

    def _cut_file(
        self, clip: Clip, quality: str, geometry: Geometry, thumbnails: dict[int, np.ndarray], *, best: bool = False
    ) -> Cut:
        file = self.files[clip.id, quality]
        result = cut(
            file.source,
            geometry.affines,
            thumbnails,
            self.config,
            self.timer,
            self.threads,
            all_thumbnails=best,
        )
        file.record.sync = result.sync.as_dict()
        self._note_damage(
            file, result.error, {spot: "decode_error" for spot in geometry.affines if spot not in result.crops}
        )
        return result

    def _cut_as_reference(self, clip: Clip, reference_quality: str, reference: Geometry) -> bool:
        """Cut a manipulated clip with the original's geometry; False when the timing or size forbids it."""
        best = self.config.qualities[0]
        original = self.files[self.group.original.id, reference_quality].info
        own = self.files[clip.id, best].info
        if (own.width, own.height) != (original.width, original.height):
            self._note(
                clip,
                f"picture is {own.width}x{own.height}, the original {original.width}x{original.height}: "
                "cut with its own geometry",
            )
            return False
        result = self._cut_file(clip, best, reference, reference.thumbnails, best=True)
        if result.error and result.sync.instants == 0:
            # Nothing could be decoded, so nothing is known about its timing: the rows say decode_error.
            self._add_rows(clip, reference, {best: result.crops}, "reference")
            return True
        if not trusted(result.sync, same_size=True, same_count=own.frames == original.frames):
            self._note(clip, f"{_explain(result.sync)} to the original: cut with its own geometry")
            return False
        crops = {best: result.crops} | self._cut_others(clip, best, reference, result.thumbnails)
        self._add_rows(clip, reference, crops, "reference")
        return True

    def _cut_own(self, clip: Clip, quality: str, geometry: Geometry) -> None:
        """Cut a clip with the geometry found on one of its own qualities."""
        crops = {quality: geometry.crops}
        if geometry.affines:
            crops |= self._cut_others(clip, quality, geometry, geometry.thumbnails)
        if geometry.affines and not geometry.faces:
            kind = "given"
        else:
            # The group's reference is the original: for it, own and reference geometry are the same.
            kind = "reference" if clip is self.group.original else "own"
        self._add_rows(clip, geometry, crops, kind)

    def _cut_others(
        self, clip: Clip, best: str, geometry: Geometry, thumbnails: dict[int, np.ndarray]
    ) -> dict[str, dict[Spot, np.ndarray]]:
        """Crops of a clip's other qualities, each tested against the clip's own best one: the same pictures and the
        same number of them, whatever a manipulation changed against the original."""
        own = self.files[clip.id, best].info
        crops = {}
        for quality in self.config.qualities:
            if quality == best:
                continue
            file = self.files[clip.id, quality]
            same_size = (file.info.width, file.info.height) == (own.width, own.height)
            result = self._cut_file(clip, quality, geometry, thumbnails)
            agrees = trusted(result.sync, same_size=same_size, same_count=file.info.frames == own.frames)
            if not agrees and not (result.error and result.sync.instants == 0):
                self._refuse(file, result.sync, same_size)
            crops[quality] = result.crops
        return crops

    def _refuse(self, file: GroupFile, sync: Sync, same_size: bool) -> None:
        cause = _explain(sync) if same_size else f"picture is {file.info.width}x{file.info.height}"
        file.refuse(
            "sync_refused", f"{file.record.shown}: does not show the same frames as the clip's best quality ({cause})"
        )

    def _note_damage(self, file: GroupFile, error: str | None, status: dict[Spot, str]) -> None:
        lost = sorted(frame for (frame, _), word in status.items() if word == "decode_error")
        if lost:
            cause = error or "the stream ends early"
            first = file.source.number(lost[0])
            if file.source.pictures:
                which = f"{len(set(lost))} pictures, number {first} the first,"
            else:
                which = f"frames from {first} on"
            file.refuse("decode_error", f"{file.record.shown}: {which} could not be decoded ({cause})")

    # Rows

    def _row(self, clip: Clip, spot: Spot, status: str, geometry: Geometry | None = None, kind: str = "") -> Row:
        source = self.files[clip.id, self.config.qualities[0]].source
        row = Row(
            clip.dataset, clip.group, clip.method, clip.name, clip.label, clip.split, clip.target, clip.source,
            frame=source.number(spot[0]) if source else spot[0], face=spot[1], status=status,
        )  # fmt: skip
        if geometry and spot in geometry.affines:
            row.geometry = kind
            row.affine = [float(value) for value in geometry.affines[spot].reshape(-1)]
        if geometry and spot in geometry.faces:
            face = geometry.faces[spot]
            row.detector, row.score = self.detector.name, float(face.score)
            row.box_xyxy = [float(value) for value in face.box_xyxy]
            row.landmarks_xy = [float(value) for value in face.landmarks_xy.reshape(-1)]
        return row

    def _reject(self, clip: Clip, attempted: Iterable[int]) -> None:
        """Rows of a clip that cannot give tuples: every frame tried in its group, with the file's reason."""
        statuses = [self.files[clip.id, quality].record.status for quality in self.config.qualities]
        reason = next(status for status in statuses if status != "ok")
        self.rows += [self._row(clip, (frame, 0), reason) for frame in (list(attempted) or [-1])]

    def _add_rows(self, clip: Clip, geometry: Geometry, crops: dict[str, dict[Spot, np.ndarray]], kind: str) -> None:
        refused = next(
            (
                record.status
                for quality in self.config.qualities
                if (record := self.files[clip.id, quality].record).status == "sync_refused"
            ),
            None,
        )
        labels = None
        if clip.faces == "all" and clip.label == 1:
            labels = label_faces(clip, self.files[clip.id, MASK], self._best_info(clip), geometry, self.timer)
        made: Counter[int] = Counter()
        for spot, status in geometry.status.items():
            if status == "ok":
                have = {q: crops[q][spot] for q in self.config.qualities if spot in crops.get(q, {})}
                status = refused or ("ok" if len(have) == len(self.config.qualities) else "decode_error")
                if status == "ok" and labels:
                    status = labels.status.get(spot, "ok")
                made[spot[1]] += status == "ok"
            row = self._row(clip, spot, status, geometry, kind)
            if labels:
                row.label, row.mask_share = labels.label.get(spot[1]), labels.covered.get(spot)
            if status == "ok":
                row.crops = have
            self.rows.append(row)
        wanted, most = min(self.config.frames, self.length), max(made.values(), default=0)
        if 0 < most < wanted:
            self._note(clip, f"{most} of {wanted} tuples: no more frames with the followed face")
        if labels and labels.label and 1 not in labels.label.values():
            self._note(clip, "no face of this manipulated clip lies under its mask")

    def _best_info(self, clip: Clip) -> VideoInfo:
        return self.files[clip.id, self.config.qualities[0]].info


def _explain(sync: Sync) -> str:
    if sync.verdict == "shifted":
        return f"shifted by {sync.offset_frames:+d} frames"
    if sync.verdict == "static":
        return "too little motion to prove the timing, and the frame counts differ"
    return f"other content, mean difference {sync.residual:.0f} grey levels"


def length_remark(clip: Clip, frames: int, original_frames: int) -> str | None:
    """What the dataset's own rules say of a manipulated clip's length, or None when it is as it should be."""
    entry = datasets().get(clip.dataset)
    return entry.length_remark(clip.method, frames, original_frames) if entry and entry.length_remark else None


def extract_group(
    group: Group,
    root: Path,
    out: Path,
    config: ExtractConfig,
    detector: Detector,
    meta: dict[str, Any] | None = None,
    threads: int = 1,
) -> GroupResult:
    """Extract one group and write its pack into `out`.

    Bad input ends as a named reason in the pack and in the result; nothing is raised for it.

    Args:
        meta: more to store in the pack beside the config and its hash, such as tool versions.
        threads: decoder threads of ffmpeg; does not change the output.
    """
    timer = StageTimer()
    with GroupFiles(group, root, config, timer, out / group.dataset) as files:
        work = _Extraction(group, files, config, detector, timer, threads)
        work.run()
    # What is remarkable about a file that was used all the same.
    work.notes += [(clip, f.record.message) for (clip, _), f in files.files.items() if f.record.status == "ok"
                   and f.record.message]  # fmt: skip
    records = files.records
    with timer.stage("write"):
        size = write_pack(
            out,
            group.dataset,
            group.name,
            work.rows,
            records,
            config.qualities,
            {
                **(meta or {}),
                "config_hash": config.hash(),
                "config": config.model_dump(mode="json"),
                "group": group.name,
                "notes": work.notes,
                "clips": describe(group),
            },
        )
    result = summarise(group.name, [(row.method, row.name, row.status) for row in work.rows], records, work.notes)
    result.pack_bytes, result.seconds = size, timer.seconds
    return result


def describe(group: Group) -> list[list[object]]:
    """What the manifest says of a group's clips; a pack made from other facts is not up to date."""
    return [[c.method, c.name, c.label, c.split, c.target, c.source, c.faces] for c in group.clips]
