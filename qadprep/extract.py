"""One group of clips -> one face pack: probe, sample, detect once, cut every clip and every quality, prove, write."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qadprep.catalog.base import Clip, Group
from qadprep.config import ExtractConfig
from qadprep.faces.base import Detector
from qadprep.geometry import Cut, Geometry, cut, find_geometry
from qadprep.pack import FileRecord, Row, write_pack
from qadprep.results import GroupResult, summarise
from qadprep.sampling import sample_indices
from qadprep.timing import StageTimer
from qadprep.video.probe import ProbeError, VideoInfo, probe
from qadprep.video.sync import REFERENCE, Sync, trusted


@dataclass
class _File:
    path: Path
    record: FileRecord
    info: VideoInfo | None = None


class _Extraction:
    """The state of one group's extraction; `run` reads top to bottom."""

    def __init__(
        self,
        group: Group,
        root: Path,
        config: ExtractConfig,
        detector: Detector,
        timer: StageTimer,
        threads: int,
    ) -> None:
        self.group, self.root, self.config, self.detector = group, root, config, detector
        self.timer, self.threads = timer, threads
        self.rows: list[Row] = []
        self.notes: list[tuple[str, str]] = []
        self.files: dict[tuple[str, str], _File] = {}
        self.length = 0

    def run(self) -> None:
        with self.timer.stage("probe"):
            for clip in self.group.clips:
                for quality in self.config.qualities:
                    self.files[clip.id, quality] = self._probe(clip, quality)
        original = self.group.original
        reference_quality = self._best_quality(original) if original else None
        length = self.length = self._common_length(original, reference_quality)
        # Settled before anything is decoded: damage inside a file costs the frames behind it, not the whole clip.
        usable = {clip.id for clip in self.group.clips if self._complete(clip)}
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
                self._reject(clip, reference.status if reference else chosen)
            elif clip is original:
                self._cut_own(clip, reference_quality, reference)
            elif not (reference and reference.faces and self._cut_as_reference(clip, reference_quality, reference)):
                best = self.config.qualities[0]
                self._cut_own(clip, best, self._find(clip, best, chosen, spares))

    # Files

    def _probe(self, clip: Clip, quality: str) -> _File:
        relative = clip.paths.get(quality)
        record = FileRecord(clip=clip.name, method=clip.method, quality=quality, path=relative or "")
        if relative is None:
            record.status, record.message = "missing_quality", f"no {quality} file on disk for {clip.id}"
            return _File(Path(), record)
        path = self.root / relative
        record.bytes = path.stat().st_size if path.is_file() else -1
        try:
            info = probe(path)
        except ProbeError as error:
            record.status, record.message = error.reason, str(error).replace(str(path), relative)
            return _File(path, record)
        record.width, record.height, record.frames = info.width, info.height, info.frames
        record.fps, record.pix_fmt, record.crf = str(info.fps), info.pix_fmt, info.crf
        return _File(path, record, info)

    def _best_quality(self, clip: Clip) -> str | None:
        return next((q for q in self.config.qualities if self.files[clip.id, q].info), None)

    def _complete(self, clip: Clip) -> bool:
        return all(self.files[clip.id, q].record.status == "ok" for q in self.config.qualities)

    def _length(self, clip: Clip) -> int:
        return min(self.files[clip.id, q].info.frames for q in self.config.qualities)

    def _common_length(self, original: Clip | None, reference_quality: str | None) -> int:
        """Frames that every usable file has; 0 when there is none. Refuses clips too short to be sampled.

        A manipulation may rightly be shorter than its target (FaceSwap and NeuralTextures end with the shorter of
        the two videos), so the group shrinks with it, but not below what the run wants from each clip.
        """
        complete = [clip for clip in self.group.clips if self._complete(clip)]
        lengths = {clip.id: self._length(clip) for clip in complete}
        reference = self.files[original.id, reference_quality].info.frames if original and reference_quality else 0
        floor = min(self.config.frames, reference or max(lengths.values(), default=0))
        for clip in complete:
            have = lengths[clip.id]
            if have < floor:
                for quality in self.config.qualities:
                    record = self.files[clip.id, quality].record
                    if record.frames >= floor:
                        continue
                    record.status = "too_short"
                    record.message = (
                        f"{record.path}: has {record.frames} frames, {floor} are to be sampled from each clip"
                    )
                del lengths[clip.id]
            elif reference and have < reference:
                self.notes.append(
                    (
                        clip.id,
                        f"shorter than its original: {have} of {reference} frames; the group is sampled inside {have}",
                    )
                )
        return min([*lengths.values(), *([reference] if reference else [])], default=0)

    # Cutting

    def _find(self, clip: Clip, quality: str, chosen: list[int], spares: list[int]) -> Geometry:
        file = self.files[clip.id, quality]
        geometry = find_geometry(
            file.path, file.info, chosen, spares, self.config, self.detector, self.timer, self.threads
        )
        file.record.sync = REFERENCE.as_dict()
        self._note_damage(file, geometry.error, geometry.status)
        return geometry

    def _cut_file(
        self, clip: Clip, quality: str, geometry: Geometry, thumbnails: dict[int, np.ndarray], *, best: bool = False
    ) -> Cut:
        file = self.files[clip.id, quality]
        result = cut(
            file.path,
            file.info,
            geometry.affines,
            thumbnails,
            self.config,
            self.timer,
            self.threads,
            all_thumbnails=best,
        )
        file.record.sync = result.sync.as_dict()
        self._note_damage(file, result.error, {f: "decode_error" for f in geometry.faces if f not in result.crops})
        return result

    def _cut_as_reference(self, clip: Clip, reference_quality: str, reference: Geometry) -> bool:
        """Cut a manipulated clip with the original's geometry; False when the timing or size forbids it."""
        best = self.config.qualities[0]
        original = self.files[self.group.original.id, reference_quality].info
        own = self.files[clip.id, best].info
        if (own.width, own.height) != (original.width, original.height):
            self.notes.append(
                (
                    clip.id,
                    f"picture is {own.width}x{own.height}, the original {original.width}x{original.height}: "
                    "cut with its own geometry",
                )
            )
            return False
        result = self._cut_file(clip, best, reference, reference.thumbnails, best=True)
        if result.error and result.sync.instants == 0:
            # Nothing could be decoded, so nothing is known about its timing: the rows say decode_error.
            self._add_rows(clip, reference, {best: result.crops}, "reference")
            return True
        if not trusted(result.sync, same_size=True, same_count=own.frames == original.frames):
            self.notes.append((clip.id, f"{_explain(result.sync)} to the original: cut with its own geometry"))
            return False
        crops = {best: result.crops} | self._cut_others(clip, best, reference, result.thumbnails)
        self._add_rows(clip, reference, crops, "reference")
        return True

    def _cut_own(self, clip: Clip, quality: str, geometry: Geometry) -> None:
        """Cut a clip with the geometry found on one of its own qualities."""
        crops = {quality: geometry.crops}
        if geometry.faces:
            crops |= self._cut_others(clip, quality, geometry, geometry.thumbnails)
        # The group's reference is the original: for it, own and reference geometry are the same.
        self._add_rows(clip, geometry, crops, "reference" if clip is self.group.original else "own")

    def _cut_others(
        self, clip: Clip, best: str, geometry: Geometry, thumbnails: dict[int, np.ndarray]
    ) -> dict[str, dict[int, np.ndarray]]:
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

    def _refuse(self, file: _File, sync: Sync, same_size: bool) -> None:
        file.record.status = "sync_refused"
        cause = _explain(sync) if same_size else f"picture is {file.info.width}x{file.info.height}"
        file.record.message = f"{file.record.path}: does not show the same frames as the clip's best quality ({cause})"

    def _note_damage(self, file: _File, error: str | None, status: dict[int, str]) -> None:
        lost = sorted(frame for frame, word in status.items() if word == "decode_error")
        if lost:
            cause = error or "the stream ends early"
            file.record.status = "decode_error"
            file.record.message = f"{file.record.path}: frames from {lost[0]} on could not be decoded ({cause})"

    # Rows

    def _row(self, clip: Clip, frame: int, status: str, geometry: Geometry | None = None, kind: str = "") -> Row:
        row = Row(
            clip.dataset, clip.group, clip.method, clip.name, clip.label, clip.split, clip.target, clip.source,
            frame=frame, face=0, status=status,
        )  # fmt: skip
        if geometry and frame in geometry.faces:
            face = geometry.faces[frame]
            row.geometry, row.detector, row.score = kind, self.detector.name, float(face.score)
            row.box_xyxy = [float(value) for value in face.box_xyxy]
            row.landmarks_xy = [float(value) for value in face.landmarks_xy.reshape(-1)]
            row.affine = [float(value) for value in geometry.affines[frame].reshape(-1)]
        return row

    def _reject(self, clip: Clip, attempted: Iterable[int]) -> None:
        """Rows of a clip that cannot give tuples: every frame tried in its group, with the file's reason."""
        statuses = [self.files[clip.id, quality].record.status for quality in self.config.qualities]
        reason = next(status for status in statuses if status != "ok")
        self.rows += [self._row(clip, frame, reason) for frame in (list(attempted) or [-1])]

    def _add_rows(self, clip: Clip, geometry: Geometry, crops: dict[str, dict], kind: str) -> None:
        refused = next(
            (
                record.status
                for quality in self.config.qualities
                if (record := self.files[clip.id, quality].record).status == "sync_refused"
            ),
            None,
        )
        made = 0
        for frame, status in geometry.status.items():
            if status == "ok":
                have = {q: crops[q][frame] for q in self.config.qualities if frame in crops.get(q, {})}
                status = refused or ("ok" if len(have) == len(self.config.qualities) else "decode_error")
                made += status == "ok"
            row = self._row(clip, frame, status, geometry, kind)
            if status == "ok":
                row.crops = have
            self.rows.append(row)
        wanted = min(self.config.frames, self.length)
        if 0 < made < wanted:
            self.notes.append((clip.id, f"{made} of {wanted} tuples: no more frames with the followed face"))


def _explain(sync: Sync) -> str:
    if sync.verdict == "shifted":
        return f"shifted by {sync.offset_frames:+d} frames"
    if sync.verdict == "static":
        return "too little motion to prove the timing, and the frame counts differ"
    return f"other content, mean difference {sync.residual:.0f} grey levels"


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
    work = _Extraction(group, root, config, detector, timer, threads)
    work.run()
    records = [file.record for file in work.files.values()]
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
    return [[c.method, c.name, c.label, c.split, c.target, c.source] for c in group.clips]
