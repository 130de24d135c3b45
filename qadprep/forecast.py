"""`qadprep extract --dry-run`: what is on disk, and what an extraction of it would give and take."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qadprep.catalog.base import Clip, group_clips
from qadprep.catalog.manifest import quality_rank
from qadprep.config import ExtractConfig
from qadprep.engines import worker_bytes
from qadprep.errors import UserError
from qadprep.group_files import size_of
from qadprep.machine import fit_workers
from qadprep.parts import Part
from qadprep.plan_trial import Trial, measure
from qadprep.protocols import Protocol


@dataclass(frozen=True)
class ClassOnDisk:
    """Clips of one (method, split), and the files they have per quality."""

    method: str
    split: str
    clips: int
    files: dict[str, int]


@dataclass(frozen=True)
class Forecast:
    """What an extraction would find, and what follows from a measured sample of its groups.

    Attributes:
        root: folder that the clips' paths are relative to.
        classes: what is on disk.
        groups, clips, videos: to be worked on; videos are the files of the run's qualities.
        video_bytes: their size on disk.
        frames: tuples wanted per clip.
        workers: processes the time is forecast for.
        trial: the sample; None when it was not asked for or came to nothing, `remark` says why.
    """

    root: Path
    classes: list[ClassOnDisk]
    qualities: tuple[str, ...]
    groups: int
    clips: int
    videos: int
    video_bytes: int
    frames: int
    workers: int
    trial: Trial | None = None
    remark: str = ""
    lacking: dict[str, int] = field(default_factory=dict)

    @property
    def tuples_at_one_face(self) -> int:
        """Tuples when every clip gives all it is asked for, at one face a frame."""
        return self.clips * self.frames

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`): `forecast` is None without a sample."""
        trial = self.trial
        return {
            "root": str(self.root),
            "classes": [asdict(entry) for entry in self.classes],
            "qualities": list(self.qualities),
            "groups": self.groups,
            "clips": self.clips,
            "videos": self.videos,
            "video_bytes": self.video_bytes,
            "lacking": self.lacking,
            "tuples_at_one_face": self.tuples_at_one_face,
            "workers": self.workers,
            "sample": asdict(trial) if trial else None,
            "remark": self.remark,
            "forecast": {
                "tuples": trial.total_tuples,
                "crops": trial.total_tuples * len(trial.qualities),
                "decoded_frames": trial.total_decoded_frames or None,
                "pack_gigabytes": round(trial.total_bytes / 1e9, 3),
                "hours": round(trial.total_seconds / 3600, 4),
                "least_hours": round(trial.least_seconds / 3600, 4),
                "most_hours": round(trial.most_seconds / 3600, 4),
            }
            if trial
            else None,
        }


def forecast(
    root: Path,
    config: ExtractConfig,
    *,
    count: int = 2,
    detector: str = "auto",
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = 0,
    manifest: Path | None = None,
    protocol: Protocol | None = None,
    drop_leaks: bool = False,
    part: Part | None = None,
    say: Callable[[str], None] | None = None,
) -> Forecast:
    """Look at a dataset and extract a sample of its groups into a temporary folder; nothing else is written.

    Args:
        count: groups of the sample; 0 measures none.
        part: forecast only this share of the groups.
        Others as for `extract`; the sample runs on this machine, whatever the engine of the run will be.

    Raises:
        UserError: as from `extract`.
    """
    from qadprep.extract_dataset import check_qualities, find_clips

    root, clips = find_clips(root, config, manifest, protocol, drop_leaks, say or (lambda text: None))
    if not clips:
        raise UserError(f"{root}: no clip of dataset {config.dataset!r} there")
    check_qualities(clips, config, root)
    if part:
        clips = [clip for group in part.take(group_clips(clips)) for clip in group.clips]
        if not clips:
            raise UserError(f"--part {part}: no group is left for it")
    groups = len(group_clips(clips))
    workers = fit_workers(groups, workers, worker_bytes(config))
    trial, remark = None, "no sample was asked for (--measure 0)"
    if count:
        trial, remark = measure(
            clips, root, config, count, workers, detector=detector, weights=weights, device=device, precision=precision
        )
    paths = {clip.paths[quality] for clip in clips for quality in config.qualities if quality in clip.paths}
    # Several clips may lie in one tar.
    places = {path.split("::")[0] for path in paths}
    return Forecast(
        root=root,
        classes=_classes(clips),
        qualities=config.qualities,
        groups=groups,
        clips=len(clips),
        videos=len(paths),
        video_bytes=sum(max(0, size_of(root, place)) for place in places),
        frames=config.frames,
        workers=workers,
        trial=trial,
        remark=remark,
        lacking={q: n for q in config.qualities if (n := sum(q not in clip.paths for clip in clips))},
    )


def _classes(clips: list[Clip]) -> list[ClassOnDisk]:
    counts = Counter((clip.method, clip.split) for clip in clips)
    qualities = sorted({quality for clip in clips for quality in clip.paths}, key=quality_rank)
    return [
        ClassOnDisk(
            method,
            split,
            number,
            {q: sum(q in c.paths for c in clips if (c.method, c.split) == (method, split)) for q in qualities},
        )
        for (method, split), number in counts.items()
    ]
