"""A few groups of a protocol, really extracted: the forecast of `qadprep plan`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from qadprep.catalog.base import Clip, group_clips
from qadprep.catalog.manifest import quality_rank
from qadprep.config import ExtractConfig
from qadprep.engine import available_cores, run_tasks
from qadprep.protocols import Protocol
from qadprep.results import GroupResult
from qadprep.sampling import draw


@dataclass(frozen=True)
class Trial:
    """A few groups, really extracted, and what follows for all.

    Attributes:
        groups, clips, tuples, bytes: of the trial.
        seconds: of one worker.
        qualities: those of the trial.
        made: those of them that had to be encoded.
        failures: (what, reason) of what could not be used.
        total_tuples, total_bytes, total_seconds: scaled by the number of clips; seconds with `workers` processes.
    """

    groups: int
    clips: int
    tuples: int
    bytes: int
    seconds: float
    qualities: tuple[str, ...]
    made: tuple[str, ...]
    failures: list[tuple[str, str]]
    workers: int
    total_tuples: int
    total_bytes: int
    total_seconds: float


def run_trial(
    clips: list[Clip],
    root: Path,
    protocol: Protocol,
    count: int,
    seed: int,
    workers: int,
    detector: str,
    weights: Path | None,
    device: str,
) -> tuple[Trial | None, str]:
    """Extract a few groups into a temporary folder; (the trial, or None with the reason).

    The groups are drawn by the seed and the threads a worker has are those of the whole run.
    """
    from qadprep.extract_dataset import extract_one, set_up_worker
    from qadprep.faces import choose_detector
    from qadprep.video.encode import crf_of

    found = {quality for clip in clips for quality in clip.paths}
    qualities = tuple(q for q in protocol.qualities if q in found or crf_of(q))
    if not qualities:
        return None, f"nothing measured: the protocol's qualities are not on disk, it has {_words(found)}"
    made = tuple(q for q in qualities if crf_of(q) and any(q not in clip.paths for clip in clips))
    config = ExtractConfig.checked(
        **(protocol.extract_settings() | {"qualities": qualities}), seed=seed, make_qualities=bool(made)
    )
    name, _ = choose_detector(detector, weights)
    groups = group_clips(clips)
    chosen = sorted(groups, key=lambda group: draw(seed, "plan", group.dataset, group.name))[:count]
    workers = min(workers, len(groups))
    results: list[GroupResult] = []
    crashed: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="qadprep-plan-") as folder:
        run_tasks(
            chosen,
            extract_one,
            lambda group, result: results.append(result),
            lambda group, message: crashed.append((group.name, message)),
            workers=min(workers, len(chosen)),
            initializer=set_up_worker,
            initargs=(root, Path(folder), config, name, weights, device, {}, max(1, available_cores() // workers)),
        )
    tuples = sum(result.tuples for result in results)
    failures = [(what, message) for result in results for what, _, message in result.failures] + crashed
    if not tuples:
        return (
            None,
            f"nothing measured: no tuple from {len(chosen)} group(s) ({failures[0][1] if failures else 'no face'})",
        )
    measured = {result.group for result in results}
    tried = sum(len(group.clips) for group in chosen if group.name in measured)
    scale = len(clips) / tried
    size, seconds = sum(r.pack_bytes for r in results), sum(sum(r.seconds.values()) for r in results)
    return Trial(
        len(results), tried, tuples, size, seconds, qualities, made, failures, workers,
        round(tuples * scale), round(size * scale), seconds * scale / workers,
    ), ""  # fmt: skip


def _words(qualities: set[str]) -> str:
    return ", ".join(sorted(qualities, key=quality_rank)) or "none"
