"""Whether the files were really made at the quality that their folders say: x264 writes its CRF into the stream."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from qadprep.catalog.base import Catalog, datasets
from qadprep.catalog.pictures import is_pictures
from qadprep.machine import available_cores
from qadprep.progress import progress_bar
from qadprep.video.encode import crf_of
from qadprep.video.probe import ProbeError, read_crf

# Files whose results are waited for together; a bound on memory.
_FILES_AT_ONCE = 1000


@dataclass
class QualityReport:
    """What the streams say.

    Attributes:
        agree: files whose CRF is the one their quality promises.
        unknown: files that promise nothing or do not tell: no x264 header, pictures, `raw` as released.
        mismatched: (path, quality, CRF found), in order of the clips.
        unreadable: (path, reason).
    """

    agree: int = 0
    unknown: int = 0
    mismatched: list[tuple[str, str, float]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "agree": self.agree,
            "unknown": self.unknown,
            "mismatched": [{"path": p, "quality": q, "found_crf": crf} for p, q, crf in self.mismatched],
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.unreadable],
        }


def expected_crf(quality: str, raw_is_lossless: bool) -> float | None:
    """The CRF that a quality promises: 23.0 for `c23`, 0.0 for a lossless `raw`; None when it promises none."""
    if quality == "raw":
        return 0.0 if raw_is_lossless else None
    crf = crf_of(quality)
    return None if crf is None else float(crf)


def check_quality(catalog: Catalog, workers: int = 0) -> QualityReport:
    """Read the first packet of every video of a catalog and compare its CRF with its quality.

    Args:
        workers: threads; 0 takes one per core.
    """
    entry = datasets().get(catalog.dataset)
    lossless = entry is not None and entry.raw_is_lossless
    report = QualityReport()
    files = [(path, quality) for clip in catalog.clips for quality, path in clip.paths.items()]
    videos = [(path, quality) for path, quality in files if not is_pictures(path)]
    report.unknown = len(files) - len(videos)

    def look(path: str) -> float | ProbeError | None:
        try:
            return read_crf(catalog.root / path)
        except ProbeError as error:
            return error

    with (
        progress_bar("check quality", len(videos), "files") as advance,
        ThreadPoolExecutor(workers or available_cores()) as pool,
    ):
        for part in _parts(videos):
            for (path, quality), found in zip(part, pool.map(look, (path for path, _ in part)), strict=True):
                wanted = expected_crf(quality, lossless)
                if isinstance(found, ProbeError):
                    report.unreadable.append((path, str(found).replace(str(catalog.root / path), path)))
                elif found is None or wanted is None:
                    report.unknown += 1
                elif found == wanted:
                    report.agree += 1
                else:
                    report.mismatched.append((path, quality, found))
                advance(1, "")
    return report


def _parts(files: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(files), _FILES_AT_ONCE):
        yield files[start : start + _FILES_AT_ONCE]
