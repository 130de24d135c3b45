"""A few groups, really extracted: the forecast of `qadprep plan` and of `qadprep extract --dry-run`."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qadprep.catalog.base import Clip, Group, group_clips
from qadprep.catalog.manifest import quality_rank, write_manifest
from qadprep.config import ExtractConfig
from qadprep.machine import available_cores
from qadprep.protocols import Protocol
from qadprep.sampling import draw
from qadprep.summary import ExtractSummary, stage_seconds


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
        attempted: tuples tried in the trial.
        decoded_frames: frames decoded in the trial; 0 when it was not counted. total_decoded_frames: scaled.
        stage_seconds: stage -> seconds of the trial.
        least_seconds, most_seconds: `total_seconds` if all groups were as quick or as slow as the extreme ones of the
            trial.
        peak_rss_mib: most memory of a worker, MiB.
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
    attempted: int = 0
    decoded_frames: int = 0
    total_decoded_frames: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    least_seconds: float = 0.0
    most_seconds: float = 0.0
    peak_rss_mib: float = 0.0


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
    """Extract a few groups of a protocol into a temporary folder; (the trial, or None with the reason).

    What the protocol asks for and the disk lacks is encoded on the way, as far as it can be.
    """
    from qadprep.video.encode import crf_of

    found = {quality for clip in clips for quality in clip.paths}
    qualities = tuple(q for q in protocol.qualities if q in found or crf_of(q))
    if not qualities:
        return None, f"nothing measured: the protocol's qualities are not on disk, it has {_words(found)}"
    made = any(crf_of(q) and any(q not in clip.paths for clip in clips) for q in qualities)
    config = ExtractConfig.checked(
        **(protocol.extract_settings() | {"qualities": qualities}), seed=seed, make_qualities=made
    )
    return measure(clips, root, config, count, workers, detector=detector, weights=weights, device=device)


def measure(
    clips: list[Clip],
    root: Path,
    config: ExtractConfig,
    count: int,
    workers: int,
    *,
    detector: str = "auto",
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> tuple[Trial | None, str]:
    """Extract a few groups with a config into a temporary folder; (the trial, or None with the reason).

    The groups are drawn by the config's seed.

    Args:
        clips: all clips of the run that is forecast.
        root: folder that their paths are relative to.
        count: groups to extract.
        workers: processes of the run that is forecast.

    Raises:
        UserError: as from `extract`.
    """
    from qadprep.extract_dataset import extract
    from qadprep.video.encode import crf_of

    groups = group_clips(clips)
    chosen = sorted(groups, key=lambda group: draw(config.seed, "plan", group.dataset, group.name))[:count]
    workers = min(workers, len(groups))
    at_once = min(workers, len(chosen))
    with tempfile.TemporaryDirectory(prefix="qadprep-trial-") as folder:
        manifest = Path(folder) / "trial.parquet"
        write_manifest([clip for group in chosen for clip in group.clips], manifest)
        with _share_of_cores(at_once, workers):
            summary = extract(
                root, Path(folder) / "faces", config, manifest=manifest, workers=at_once, detector=detector,
                weights=weights, device=device, precision=precision,
            )  # fmt: skip
    failures = [(what, message) for result in summary.results for what, _, message in result.failures]
    failures += summary.crashed
    if not any(result.tuples for result in summary.results):
        cause = failures[0][1] if failures else "no face"
        return None, f"nothing measured: no tuple from {len(chosen)} group(s) ({cause})"
    made = config.make_qualities
    qualities = tuple(q for q in config.qualities if crf_of(q) and any(q not in clip.paths for clip in clips))
    return _scaled(summary, chosen, len(clips), workers, config.qualities, qualities if made else (), failures), ""


def _scaled(
    summary: ExtractSummary,
    chosen: list[Group],
    clips: int,
    workers: int,
    qualities: tuple[str, ...],
    made: tuple[str, ...],
    failures: list[tuple[str, str]],
) -> Trial:
    results = summary.results
    sizes = {group.name: len(group.clips) for group in chosen}
    tried = sum(sizes[result.group] for result in results)
    scale = clips / tried
    tuples, size = sum(result.tuples for result in results), sum(result.pack_bytes for result in results)
    spent = {result.group: sum(result.seconds.values()) for result in results}
    seconds, per_clip = sum(spent.values()), [spent[name] / sizes[name] for name in spent]
    decoded = sum(result.counts.get("decoded_frames", 0) for result in results)
    return Trial(
        len(results), tried, tuples, size, seconds, qualities, made, failures, workers,
        round(tuples * scale), round(size * scale), seconds * scale / workers,
        attempted=sum(result.attempted for result in results),
        decoded_frames=decoded,
        total_decoded_frames=round(decoded * scale),
        stage_seconds=stage_seconds(results),
        least_seconds=min(per_clip) * clips / workers,
        most_seconds=max(per_clip) * clips / workers,
        peak_rss_mib=summary.peak_rss_mib,
    )  # fmt: skip


@contextlib.contextmanager
def _share_of_cores(at_once: int, workers: int) -> Iterator[None]:
    """Let the trial's workers have the cores that as many of the whole run's workers would have.

    Two groups on sixteen free cores would tell nothing of sixteen workers on them.
    """
    if not hasattr(os, "sched_setaffinity") or at_once >= workers:
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    share = at_once * max(1, available_cores() // workers)
    try:
        os.sched_setaffinity(0, cores[:share])
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _words(qualities: set[str]) -> str:
    return ", ".join(sorted(qualities, key=quality_rank)) or "none"
