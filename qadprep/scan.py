"""`qadprep scan`: what a dataset on disk holds, per method, quality and split, and what is missing or wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, read_dataset
from qadprep.catalog.manifest import quality_rank, write_manifest

if TYPE_CHECKING:
    from qadprep.catalog.leaks import Leak
    from qadprep.protocols import Protocol
    from qadprep.quality import QualityReport


@dataclass(frozen=True)
class ScanReport:
    """A catalog in numbers.

    Attributes:
        catalog: the clips that were kept; with a protocol, `expected` is what it wants.
        counts: (method, split, quality) -> videos found.
        qualities: the qualities found anywhere, best first.
        incomplete: (clip id, qualities it lacks although other clips of the dataset have them).
        absent: (method, split) -> official clips that are not on disk at any quality; with a protocol, clips that it
            wants and does not get.
        no_original: clip ids of fakes whose target's original is not on disk at any quality.
        leaks: what ties clips of different splits together, among all clips on disk.
        dropped: ids of the training clips that were left out for it.
        quality: what the files' streams say of their quality; None when it was not asked for.
    """

    catalog: Catalog
    counts: dict[tuple[str, str, str], int]
    qualities: tuple[str, ...]
    incomplete: list[tuple[str, list[str]]]
    absent: dict[tuple[str, str], int]
    no_original: list[str]
    leaks: "list[Leak]" = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    quality: "QualityReport | None" = None

    @property
    def gaps(self) -> list[tuple[str, str]]:
        """Entries of the dataset's own lists that the disk lacks, and lists that are missing: (entry, reason)."""
        return self.catalog.gaps

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """What was taken but the user should know: (what, remark)."""
        return self.catalog.remarks

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len({(clip.dataset, clip.group) for clip in self.catalog.clips})

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "dataset": self.catalog.dataset,
            "clips": len(self.catalog.clips),
            "groups": self.groups,
            "qualities": list(self.qualities),
            "videos": [
                {
                    "method": m,
                    "split": s,
                    "quality": q,
                    "found": n,
                    "expected": self.catalog.expected.get((m, s)),
                }
                for (m, s, q), n in sorted(self.counts.items())
            ],
            "absent": [{"method": m, "split": s, "clips": n} for (m, s), n in sorted(self.absent.items())],
            "incomplete": [{"clip": clip, "missing": missing} for clip, missing in self.incomplete],
            "without_original": self.no_original,
            "ignored": [{"path": path, "reason": reason} for path, reason in self.catalog.ignored],
            "gaps": [{"entry": entry, "reason": reason} for entry, reason in self.gaps],
            "remarks": [{"what": what, "remark": remark} for what, remark in self.remarks],
            "leaks": [
                {
                    "kind": leak.kind,
                    "what": leak.what,
                    "splits": list(leak.splits),
                    "clips": list(leak.clips),
                    "droppable": leak.droppable,
                }
                for leak in self.leaks
            ],
            "dropped": self.dropped,
            "quality": self.quality.as_dict() if self.quality else None,
        }


def scan(
    root: Path,
    dataset: str,
    out: Path | None = None,
    *,
    drop_leaks: bool = False,
    check_quality: bool = False,
    protocol: "Protocol | None" = None,
    seed: int = 0,
    workers: int = 0,
) -> ScanReport:
    """Read a dataset's folders, write its manifest and count what is there.

    Args:
        root: the dataset's root folder.
        dataset: registry name, such as `ffpp`.
        out: parquet file to write, with the clips that are kept; None writes nothing.
        drop_leaks: leave out the training clips that share a recording with another split (see catalog/leaks.py).
        check_quality: open every video and compare its CRF with its quality.
        protocol: keep only the clips that it takes.
        seed: decides which clips a protocol takes.
        workers: threads of the quality check; 0 takes one per core.

    Raises:
        UserError: unknown dataset, a protocol of another dataset, or nothing of it below the root.
    """
    from qadprep.catalog.leaks import drop_leaks as drop
    from qadprep.catalog.leaks import find_leaks

    if protocol is not None:
        protocol.check_dataset(dataset)
    catalog = read_dataset(dataset, root)
    found = catalog.clips
    leaks = find_leaks(dataset, found)
    kept, dropped = drop(found, leaks) if drop_leaks else (found, [])
    expected = catalog.expected
    absent = _absent(found, expected)
    if protocol is not None:
        from qadprep.protocols import select

        kept = select(kept, protocol, seed).clips
        expected = protocol.wanted(expected)
        absent = _absent(kept, expected)
    catalog = replace(catalog, clips=kept, expected=expected)
    if out is not None:
        write_manifest(kept, out)
    report = replace(
        count(catalog),
        absent=absent,
        no_original=_without_original(kept, found),
        leaks=leaks,
        dropped=[clip.id for clip in dropped],
    )
    if check_quality:
        from qadprep.quality import check_quality as check

        report = replace(report, quality=check(catalog, workers))
    return report


def count(catalog: Catalog) -> ScanReport:
    """Count a catalog's videos and list its gaps."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for clip in catalog.clips:
        for quality in clip.paths:
            counts[clip.method, clip.split, quality] += 1
    qualities = tuple(sorted({q for clip in catalog.clips for q in clip.paths}, key=quality_rank))
    incomplete = [
        (clip.id, [q for q in qualities if q not in clip.paths])
        for clip in catalog.clips
        if len(clip.paths) < len(qualities)
    ]
    absent = _absent(catalog.clips, catalog.expected)
    return ScanReport(
        catalog, dict(counts), qualities, incomplete, absent, _without_original(catalog.clips, catalog.clips)
    )


def _absent(clips: Sequence[Clip], expected: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    present = Counter((clip.method, clip.split) for clip in clips)
    return {place: number - present[place] for place, number in expected.items() if number > present[place]}


def _without_original(clips: Sequence[Clip], on_disk: Sequence[Clip]) -> list[str]:
    groups = {(clip.dataset, clip.group) for clip in on_disk if clip.method == ORIGINAL}
    return [clip.id for clip in clips if clip.label == 1 and (clip.dataset, clip.group) not in groups]
