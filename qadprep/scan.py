"""`qadprep scan`: what a dataset on disk holds, per method, quality and split, and what is missing."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qadprep.catalog.base import Catalog, read_dataset
from qadprep.catalog.manifest import quality_rank, write_manifest


@dataclass(frozen=True)
class ScanReport:
    """A catalog in numbers.

    Attributes:
        counts: (method, split, quality) -> videos found.
        qualities: the qualities found anywhere, best first.
        incomplete: (clip id, qualities it lacks although other clips of the dataset have them).
        absent: (method, split) -> official clips that are not on disk at any quality.
        no_original: clip ids of fakes whose target's original is not on disk at any quality.
    """

    catalog: Catalog
    counts: dict[tuple[str, str, str], int]
    qualities: tuple[str, ...]
    incomplete: list[tuple[str, list[str]]]
    absent: dict[tuple[str, str], int]
    no_original: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "dataset": self.catalog.dataset,
            "clips": len(self.catalog.clips),
            "groups": len(self.catalog.groups()),
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
        }


def scan(root: Path, dataset: str, out: Path | None = None) -> ScanReport:
    """Read a dataset's folders, write its manifest and count what is there.

    Args:
        root: the dataset's root folder.
        dataset: registry name, such as `ffpp`.
        out: parquet file to write; None writes nothing.

    Raises:
        UserError: unknown dataset, or nothing of it below the root.
    """
    catalog = read_dataset(dataset, root)
    if out is not None:
        write_manifest(catalog.clips, out)
    return count(catalog)


def count(catalog: Catalog) -> ScanReport:
    """Count a catalog's videos and list its gaps."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for clip in catalog.clips:
        for quality in clip.paths:
            counts[clip.method, clip.split, quality] += 1
    qualities = tuple(sorted({q for clip in catalog.clips for q in clip.paths}, key=quality_rank))
    incomplete = [
        (clip.id, lacking) for clip in catalog.clips if (lacking := [q for q in qualities if q not in clip.paths])
    ]
    present = Counter((clip.method, clip.split) for clip in catalog.clips)
    absent = {place: number - present[place] for place, number in catalog.expected.items() if number > present[place]}
    no_original = [
        clip.id for group in catalog.groups() if group.original is None for clip in group.clips if clip.label == 1
    ]
    return ScanReport(catalog, dict(counts), qualities, incomplete, absent, no_original)
