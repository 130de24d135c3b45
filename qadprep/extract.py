"""One group of clips -> one face pack: probe, sample, detect once, cut every clip and every quality, prove, write."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any

from qadprep.catalog.base import Clip, Group
from qadprep.clip_rows import ClipCuts, clip_rows, located_boxes, rejected_rows
from qadprep.config import ExtractConfig
from qadprep.cutting import Cut, cut
from qadprep.face_labels import label_faces
from qadprep.faces.base import Detector
from qadprep.geometry import MAX_EVERY_FACE, Geometry, find_geometry
from qadprep.given import given_geometry
from qadprep.group_facts import accepted, describe, explain, nothing_known, with_faces
from qadprep.group_files import MASK, GroupFile, GroupFiles
from qadprep.group_length import common_length
from qadprep.pack import Row, write_pack
from qadprep.results import GroupResult, facts_of_rows, summarise
from qadprep.sampling import sample_indices
from qadprep.timing import StageTimer, peak_rss_mib
from qadprep.unaltered_frames import find_unaltered
from qadprep.video.sync import REFERENCE
from qadprep.witness import Aim, Spot, Witness


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
        self.best = config.qualities[0]
        self.rows: list[Row] = []
        self.notes: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.length = 0

    def run(self) -> None:
        original = self.group.original
        reference_quality = self.files.best_quality(original) if original else None
        length = self.length = common_length(self.group, self.files, self.config, reference_quality, self._note)
        # Settled before anything is decoded: damage inside a file costs the frames behind it, not the whole clip.
        usable = {clip.id for clip in self.group.clips if self.files.complete(clip)}
        if length == 0:
            for clip in self.group.clips:
                self._reject(clip, [])
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
                self._cut_own(clip, self.best, self._find(clip, self.best, chosen, spares))

    def _note(self, clip: Clip, remark: str) -> None:
        self.notes.append((clip.id, remark))

    # Cutting

    def _find(self, clip: Clip, quality: str, chosen: list[int], spares: list[int]) -> Geometry:
        file = self.files[clip.id, quality]
        for_others = len(self.config.qualities) * len(self.group.clips) > 1
        if file.source.pictures and not self.config.realign:
            geometry = given_geometry(file.source, chosen, spares, self.config, self.timer, for_others=for_others)
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
                for_others=for_others,
            )
        file.record.sync = REFERENCE.as_dict()
        self.counts["detected_frames"] += geometry.detected
        self.counts["decoded_frames"] += geometry.decoded
        self._note_damage(file, geometry.error, {s for s, word in geometry.status.items() if word == "decode_error"})
        if geometry.crowded:
            self._note(clip, f"{geometry.crowded} frames have over {MAX_EVERY_FACE} faces: the smallest are left out")
        if (cuts := len(set(geometry.scenes.values())) - 1) > 0:
            self._note(clip, f"cut {cuts} time{'s' * (cuts > 1)}: a face is followed over a cut only by its look")
        if geometry.switches:
            self._note(clip, f"another person took a followed face's place {geometry.switches} time(s)")
        return geometry

    def _cut_file(
        self, clip: Clip, quality: str, aims: dict[Spot, Aim], reference: Witness, *, best: bool = False
    ) -> Cut:
        file = self.files[clip.id, quality]
        result = cut(
            file.source,
            aims,
            reference,
            self.config,
            self.timer,
            self.threads,
            manipulated=best and clip.label == 1,
            for_others=best,
        )
        file.record.sync = result.sync.as_dict()
        self.counts["decoded_frames"] += result.decoded
        self._note_damage(file, result.error, aims.keys() - result.crops.keys() - result.beyond)
        return result

    def _cut_as_reference(self, clip: Clip, reference_quality: str, reference: Geometry) -> bool:
        """Cut a manipulated clip with the original's geometry; False when the proof forbids it."""
        original = self.files[self.group.original.id, reference_quality].info
        own = self.files[clip.id, self.best].info
        result = self._cut_file(clip, self.best, reference.aims, reference.witness, best=True)
        if nothing_known(result):
            # Nothing could be decoded, so nothing is known about its timing: the rows say decode_error.
            self._add_rows(clip, ClipCuts("reference", reference, {self.best: result}))
            return True
        if not accepted(result.sync, same_count=own.frames == original.frames):
            sizes = f"{own.width}x{own.height}, the original {original.width}x{original.height}"
            same_size = (own.width, own.height) == (original.width, original.height)
            cause = explain(result.sync) + ("" if same_size else f", picture is {sizes}")
            self._note(clip, f"{cause}: not proved against the original, cut with its own geometry")
            return False
        if result.sync.verdict == "shifted":
            self._note(clip, f"{explain(result.sync)} against the original: the shift is applied")
        cuts = ClipCuts("reference", reference, {self.best: result} | self._cut_others(clip, self.best, result))
        if clip.label == 1:
            find_unaltered(
                cuts,
                reference.crops if reference_quality == self.best else {},
                original,
                own,
                self.files.files.get((clip.id, MASK)) if clip.faces != "all" else None,
                self.timer,
                functools.partial(self._note, clip),
            )
        self._add_rows(clip, cuts)
        return True

    def _cut_own(self, clip: Clip, quality: str, geometry: Geometry) -> None:
        """Cut a clip with the geometry found on one of its own qualities."""
        found = Cut(REFERENCE, geometry.aims, geometry.crops, geometry.witness)
        files = {quality: found}
        if geometry.affines:
            files |= self._cut_others(clip, quality, found)
        if geometry.affines and not geometry.faces:
            kind = "given"
        else:
            # The group's reference is the original: for it, own and reference geometry are the same.
            kind = "reference" if clip is self.group.original else "own"
        self._add_rows(clip, ClipCuts(kind, geometry, files))

    def _cut_others(self, clip: Clip, best: str, found: Cut) -> dict[str, Cut]:
        """Cuts of a clip's other qualities, each proved against the clip's own best one: the same pictures and the
        same number of them, whatever a manipulation changed against the original."""
        own = self.files[clip.id, best].info
        files = {}
        for quality in self.config.qualities:
            if quality == best:
                continue
            file = self.files[clip.id, quality]
            result = files[quality] = self._cut_file(clip, quality, found.aims, found.witness)
            if nothing_known(result):
                continue
            if not accepted(result.sync, same_count=file.info.frames == own.frames):
                cause = explain(result.sync)
                if (file.info.width, file.info.height) != (own.width, own.height):
                    cause += f", picture is {file.info.width}x{file.info.height}"
                file.refuse(
                    "sync_refused",
                    f"{file.record.shown}: does not show the same frames as the clip's best quality ({cause})",
                )
            elif result.sync.verdict == "shifted":
                self._note(clip, f"{quality} is {explain(result.sync)} against {best}: the shift is applied")
        return files

    def _note_damage(self, file: GroupFile, error: str | None, lost: set[Spot]) -> None:
        if lost:
            cause = error or "the stream ends early"
            frames = sorted({frame for frame, _ in lost})
            first = file.source.number(frames[0])
            if file.source.pictures:
                which = f"{len(frames)} pictures, number {first} the first,"
            else:
                which = f"frames from {first} on"
            file.refuse("decode_error", f"{file.record.shown}: {which} could not be decoded ({cause})")

    # Rows

    def _reject(self, clip: Clip, attempted: list[int]) -> None:
        """Rows of a clip of which a file cannot be used."""
        files = [self.files[clip.id, quality] for quality in self.config.qualities]
        reason = next(file.record.status for file in files if file.record.status != "ok")
        self.rows += rejected_rows(clip, attempted, reason, files[0].source)

    def _add_rows(self, clip: Clip, cuts: ClipCuts) -> None:
        records = [self.files[clip.id, quality].record for quality in self.config.qualities]
        cuts.refused = next((record.status for record in records if record.status == "sync_refused"), None)
        sources = {quality: self.files[clip.id, quality].source for quality in self.config.qualities}
        source = sources[self.best]
        if clip.faces == "all" and clip.label == 1:
            found = [spot for spot, status in cuts.geometry.status.items() if status == "ok"]
            located = located_boxes(cuts, found)
            cuts.labels = label_faces(clip, self.files[clip.id, MASK], source.info, located, self.timer)
            # That a real person's face is that of the original is no news.
            fake = {face for face, label in cuts.labels.label.items() if label == 1}
            cuts.unaltered = {spot: flag for spot, flag in cuts.unaltered.items() if spot[1] in fake}
        rows = clip_rows(clip, cuts, self.detector.name, sources, drop_unaltered=self.config.drop_unaltered)
        self.rows += rows
        made = Counter(row.face for row in rows if row.status == "ok")
        wanted, most = min(self.config.frames, self.length), max(made.values(), default=0)
        if 0 < most < wanted:
            self._note(clip, f"{most} of {wanted} tuples: no more frames with the followed face")
        if equal := sum(cuts.unaltered.values()):
            kept = "left out" if self.config.drop_unaltered else "kept (--drop-unaltered leaves them out)"
            self._note(clip, f"{equal} frames show the original unaltered: {kept}")
        if cuts.labels and cuts.labels.label and 1 not in cuts.labels.label.values():
            self._note(clip, "no face of this manipulated clip lies under its mask")


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
        threads: threads of the decoder; does not change the output.
    """
    timer = StageTimer()
    described = describe(group)
    group = with_faces(group, config)
    with GroupFiles(group, root, config, timer, out / group.dataset) as files:
        work = _Extraction(group, files, config, detector, timer, threads)
        work.run()
    # What is remarkable about a file that was used all the same.
    used = [(clip, file.record) for (clip, _), file in files.files.items() if file.record.status == "ok"]
    work.notes += [(clip, record.message) for clip, record in used if record.message]
    records = files.records
    facts = facts_of_rows(work.rows)
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
                "clips": described,
                "counts": dict(work.counts),
            },
            timer,
        )
    result = summarise(group.name, facts, records, work.notes)
    result.counts |= dict(work.counts)
    result.pack_bytes, result.seconds, result.peak_rss_mib = size, timer.with_others(), peak_rss_mib()
    return result
