"""What became of a group: made when it is extracted, and again from its pack when it was finished earlier."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from qadprep.catalog.base import ORIGINAL
from qadprep.pack import FileRecord, Row

VERDICTS = ("reference", "proved", "static", "shifted", "refused")
MASK = "mask"
_REASON = re.compile(r"[a-z][a-z0-9_]*")
_COLUMNS = ("method", "name", "split", "status", "geometry", "unaltered", "frame")


class RowFacts(NamedTuple):
    """What the summary needs of one attempted tuple.

    Attributes:
        status: `ok`, or the named reason why there is no tuple.
        geometry: as in `Row`; empty when there is none.
        unaltered: whether the crop of a manipulated clip is that of its original; None where it was not looked at.
        frame: frame number in the video.
    """

    method: str
    name: str
    split: str
    status: str
    geometry: str = ""
    unaltered: bool | None = None
    frame: int = -1


def facts_of(table: pa.Table) -> list[RowFacts]:
    """The facts of a pack's table; columns that an older pack lacks get their defaults."""
    there = [name for name in _COLUMNS if name in table.column_names]
    columns = zip(*(table[name].to_pylist() for name in there), strict=True)
    return [RowFacts(**dict(zip(there, values, strict=True))) for values in columns]


def facts_of_rows(rows: Iterable[Row]) -> list[RowFacts]:
    """The facts of rows that are about to be written."""
    return [
        RowFacts(
            row.method, row.name, row.split, row.status, row.geometry, row.unaltered, row.frame
        )
        for row in rows
    ]  # fmt: skip


@dataclass
class SyncTally:
    """Outcomes of the sync tests of the files of one method and quality.

    Attributes:
        verdicts: verdict -> number of files.
        offsets: offset in frames -> number of files shifted in time by it.
        relations: spatial relation -> number of files whose picture lies elsewhere in the reference's.
        margin: the smallest margin among the files that passed by it (`proved`, `shifted`), and `margin_of`, the file;
            None when there is no such file.
        residual: the largest mean |difference| of a file that was not refused, grey levels, and `residual_of`.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    offsets: Counter[int] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    margin: float | None = None
    margin_of: str = ""
    residual: float | None = None
    residual_of: str = ""

    def add(self, shown: str, sync: dict[str, Any]) -> None:
        """Count a file's evidence, `Sync.as_dict()`; older ones lack the keys of the spatial test."""
        verdict = sync["verdict"]
        self.verdicts[verdict] += 1
        if verdict == "shifted" and sync.get("offset_frames"):
            self.offsets[sync["offset_frames"]] += 1
        if verdict in ("proved", "static", "shifted") and moved(sync):
            self.relations[sync["relation"]] += 1
        if verdict in ("proved", "shifted"):
            self._margin(sync.get("margin"), shown)
        if verdict in ("proved", "static", "shifted"):
            self._residual(sync.get("residual"), shown)

    def merge(self, other: "SyncTally") -> None:
        """Add the outcomes of another group."""
        self.verdicts += other.verdicts
        self.offsets += other.offsets
        self.relations += other.relations
        self._margin(other.margin, other.margin_of)
        self._residual(other.residual, other.residual_of)

    def _margin(self, value: float | None, shown: str) -> None:
        if value is not None and (self.margin is None or value < self.margin):
            self.margin, self.margin_of = value, shown

    def _residual(self, value: float | None, shown: str) -> None:
        if value is not None and (self.residual is None or value > self.residual):
            self.residual, self.residual_of = value, shown


@dataclass
class GroupResult:
    """What became of a group; small enough to be sent between processes.

    Attributes:
        tuples: complete tuples written.
        attempted: attempted tuples, counted by themselves.
        statuses: status -> number of attempted tuples.
        classes: (method, split) -> status -> number of attempted tuples.
        files: (method, quality) -> (files asked for, files that could be used); masks under the quality `mask`.
        failures: (file or clip, status, message) of everything that could not be used.
        notes: (clip, remark) of what was used with a restriction.
        sync: verdict -> number of files.
        tallies: (method, quality) -> the outcomes of its files.
        moved: evidence of every file that is shifted, placed elsewhere or refused, with its path and the reason.
        unaltered: method -> tuples and attempted ones flagged as equal to their original.
        detections_saved: as the function of this name counts them from the rows.
        counts: numbers kept in the pack, such as `detected_frames`, `decoded_frames`, and `detections_saved`, which
            goes before the one from the rows.
        seconds: stage -> wall-clock seconds; empty for a group finished in an earlier run.
        peak_rss_mib: most memory its worker had held by the end of the group, MiB; 0 when unknown.
    """

    group: str
    tuples: int = 0
    attempted: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    classes: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    files: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    sync: dict[str, int] = field(default_factory=dict)
    tallies: dict[tuple[str, str], SyncTally] = field(default_factory=dict)
    moved: list[dict[str, Any]] = field(default_factory=list)
    unaltered: dict[str, int] = field(default_factory=dict)
    detections_saved: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    pack_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mib: float = 0.0
    skipped: bool = False


def summarise(
    group: str,
    rows: Sequence[RowFacts],
    files: Sequence[FileRecord],
    notes: Iterable[Sequence[str]],
) -> GroupResult:
    """The result of a group from what its pack stores, for groups of this run and of earlier ones alike.

    Args:
        rows: every attempted tuple (`facts_of`, `facts_of_rows`).
    """
    result = GroupResult(group, attempted=len(rows), notes=[(clip, remark) for clip, remark in notes])
    for row in rows:
        # What has no named reason is not counted here, and `ExtractSummary.check` misses it.
        if _REASON.fullmatch(row.status or ""):
            result.statuses[row.status] = result.statuses.get(row.status, 0) + 1
            per_class = result.classes.setdefault((row.method, row.split), {})
            per_class[row.status] = per_class.get(row.status, 0) + 1
        if row.unaltered:
            result.unaltered[row.method] = result.unaltered.get(row.method, 0) + 1
    result.tuples = result.statuses.get("ok", 0)
    for record in files:
        _add_file(result, record)
    result.failures += _without_tuple(rows, {(record.method, record.clip) for record in files if record.status != "ok"})
    result.detections_saved = detections_saved(rows, files)
    return result


def detections_saved(rows: Sequence[RowFacts], files: Sequence[FileRecord]) -> int:
    """Frames of files that were cut with faces found on another file, of this clip or of the group's original.

    Each of them is a detection that detecting in every file would have taken.
    """
    qualities: dict[tuple[str, str], int] = Counter((f.method, f.clip) for f in files if f.quality != MASK)
    frames: dict[tuple[str, str, str], set[int]] = {}
    for row in rows:
        if row.geometry in ("reference", "own"):
            frames.setdefault((row.method, row.name, row.geometry), set()).add(row.frame)
    saved = 0
    for (method, name, geometry), seen in frames.items():
        found_here = geometry == "own" or method == ORIGINAL
        saved += len(seen) * max(0, qualities[method, name] - found_here)
    return saved


def moved(sync: dict[str, Any]) -> bool:
    """Whether the evidence says that the file's picture lies elsewhere in the reference's, or at another size."""
    return sync.get("relation", "equal") not in ("equal", "unknown", "", None)


def _add_file(result: GroupResult, record: FileRecord) -> None:
    key = record.method, record.quality
    asked, usable = result.files.get(key, (0, 0))
    result.files[key] = asked + 1, usable + (record.status == "ok")
    if record.status != "ok":
        result.failures.append((record.path or f"{record.method}/{record.clip}", record.status, record.message))
    if not record.sync:
        return
    verdict = record.sync["verdict"]
    result.sync[verdict] = result.sync.get(verdict, 0) + 1
    result.tallies.setdefault(key, SyncTally()).add(record.shown, record.sync)
    if verdict in ("shifted", "refused") or moved(record.sync):
        why = {"reason": record.sync.get("detail") or record.message}
        result.moved.append({"file": record.shown, "method": record.method, "quality": record.quality}
                            | record.sync | why)  # fmt: skip


def _without_tuple(rows: Sequence[RowFacts], blamed: set[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Clips that gave no tuple though all their files could be used, with the most frequent reason."""
    by_clip: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        by_clip.setdefault((row.method, row.name), Counter())[row.status] += 1
    found = []
    for clip, statuses in by_clip.items():
        if not statuses["ok"] and clip not in blamed:
            status = statuses.most_common(1)[0][0]
            count = sum(statuses.values())
            found.append(("/".join(clip), status, f"no tuple from {count} attempted frames ({status})"))
    return found
