"""What a run of `extract` left: `summary.json`, `--json`, and what the tables and the report are made from."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qadprep.catalog.base import ORIGINAL
from qadprep.catalog.manifest import quality_rank
from qadprep.results import MASK, VERDICTS, GroupResult, SyncTally
from qadprep.timing import OTHERS, STAGES

if TYPE_CHECKING:
    from qadprep.faces.service_process import Statistics

REPORT_NAME = "summary.json"
_SPLITS = ("train", "val", "test")
# How a run went, not what it left.
_OF_THE_RUN = (
    "groups_skipped",
    "stage_seconds",
    "seconds",
    "speed",
    "detector_services",
    "peak_rss_mib",
    "workers",
    "engine",
    "detector",
)


@dataclass
class ExtractSummary:
    """What a run of `extract` left in the output folder, groups of earlier runs included.

    Attributes:
        results: one entry a group, sorted by group.
        crashed: (group, message) of groups that ended with an unexpected error or whose worker died; they have no
            pack.
        others: packs in the folder of groups that this run did not name (another manifest, videos taken away).
        detector: the sentence that says which detector ran and why.
        seconds: wall-clock seconds of this run.
        engine: `local` or `ray`.
        part: such as `2/5` when this run took a part of the groups, else empty.
        detectors: statistics of the detector processes; empty where each worker detects by itself.
    """

    results: list[GroupResult] = field(default_factory=list)
    crashed: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0
    detector: str = ""
    seconds: float = 0.0
    workers: int = 1
    engine: str = "local"
    part: str = ""
    detectors: "list[Statistics]" = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything could not be used."""
        return bool(self.crashed) or any(result.failures for result in self.results)

    @property
    def peak_rss_mib(self) -> float:
        """Most memory that a worker of this run has held, MiB; 0 when no group was done."""
        return max((result.peak_rss_mib for result in self.results), default=0.0)

    def check(self) -> None:
        """Every attempted tuple is either there or has a named reason: in each group, and per method and split.

        Raises:
            ValueError: the numbers of a group do not agree; the message names it.
        """
        for result in self.results:
            by_class = sum(sum(statuses.values()) for statuses in result.classes.values())
            by_status = sum(result.statuses.values())
            if not result.attempted == by_status == by_class:
                raise ValueError(
                    f"group {result.group}: {result.attempted} attempted tuples, but {by_status} are ok or have a "
                    f"named reason ({by_class} per method and split)"
                )

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`, summary.json); docs/format.md lists the keys.

        Raises:
            ValueError: the numbers of a group do not agree (see `check`).
        """
        self.check()
        statuses = add_up(result.statuses for result in self.results)
        files = _files(self.results)
        qualities = [name for name in files if name != MASK]
        classes = _classes(self.results)
        tallies = _tallies(self.results)
        return {
            "groups": len(self.results),
            "packs_of_other_groups": self.others,
            "groups_skipped": sum(result.skipped for result in self.results),
            "groups_crashed": len(self.crashed),
            "tuples": statuses.get("ok", 0),
            "attempted": sum(result.attempted for result in self.results),
            "statuses": statuses,
            "methods": _methods(classes),
            "classes": [
                {"method": method, "split": split, **_counted(counts), "crops": dict.fromkeys(qualities, counts["ok"])}
                for (method, split), counts in classes.items()
            ],
            "files": files,
            "sync": add_up(result.sync for result in self.results),
            "sync_files": [{"method": method, "quality": quality, **_verdicts(tally)}
                           for (method, quality), tally in tallies.items()],
            "moved": [{"group": result.group, **entry} for result in self.results for entry in result.moved],
            "unaltered": add_up(result.unaltered for result in self.results),
            "detections": self._detections(),
            "failures": [
                {"group": r.group, "what": what, "status": status, "message": message}
                for r in self.results
                for what, status, message in r.failures
            ]
            + [{"group": group, "what": group, "status": "error", "message": m} for group, m in self.crashed],
            "notes": [{"clip": clip, "note": note} for r in self.results for clip, note in r.notes],
            "pack_bytes": sum(result.pack_bytes for result in self.results),
            "stage_seconds": stage_seconds(self.results),
            "seconds": round(self.seconds, 3),
            "speed": self._speed(len(qualities)),
            "detector_services": [
                {
                    "device": entry.device,
                    "frames": entry.frames,
                    "batches": entry.batches,
                    "busy_seconds": round(entry.seconds_busy, 3),
                    "share": round(entry.use, 4),
                }
                for entry in self.detectors
            ],
            "peak_rss_mib": round(self.peak_rss_mib, 1),
            "workers": self.workers,
            "engine": self.engine,
            "part": self.part,
            "detector": self.detector,
        }  # fmt: skip

    def _detections(self) -> dict[str, Any]:
        """Frames detected, against what detecting in every file would have taken; None where a pack does not tell."""
        known = all("detected_frames" in result.counts for result in self.results)
        made = sum(result.counts.get("detected_frames", 0) for result in self.results) if known else None
        saved = sum(result.counts.get("detections_saved", result.detections_saved) for result in self.results)
        return {"made": made, "saved_by_reuse": saved, "in_every_file": None if made is None else made + saved}

    def _speed(self, qualities: int) -> dict[str, Any]:
        """Frames of this run's groups, and per second of its wall-clock time."""
        done = [result for result in self.results if not result.skipped]
        decoded = sum(result.counts.get("decoded_frames", 0) for result in done)
        crops = sum(result.tuples for result in done) * qualities
        rates = {"decoded_per_second": decoded, "crops_per_second": crops}
        return {"frames_decoded": decoded, "crops_written": crops} | {
            name: round(number / self.seconds, 2) if self.seconds else 0.0 for name, number in rates.items()
        }


def of_last_work(now: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """What to keep as summary.json: a run that found every group done does not replace the figures of the one that
    did the work.

    Args:
        now: summary of this run, as `ExtractSummary.as_dict` makes it.
        earlier: the summary.json that was there before it, if any.
    """
    idle = now["groups_skipped"] == now["groups"] and not now["groups_crashed"]
    # As they read after a trip through JSON.
    left = {name: value for name, value in json.loads(json.dumps(now)).items() if name not in _OF_THE_RUN}
    if earlier is None or not idle or any(earlier.get(name) != value for name, value in left.items()):
        return now
    return now | {name: earlier[name] for name in _OF_THE_RUN if name in earlier}


def add_up(parts: Any) -> dict[str, Any]:
    """Sum dictionaries of numbers key by key; keys sorted."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))


def stage_seconds(results: list[GroupResult]) -> dict[str, float]:
    """Seconds of all workers per stage, in the order of the work; `others` is what lay between the stages."""
    return in_order_of_work({name: round(value, 3) for name, value in add_up(r.seconds for r in results).items()})


def in_order_of_work(seconds: dict[str, float]) -> dict[str, float]:
    """Stages in the order of the work, `others` last; a JSON file has them by the alphabet."""
    order = [*STAGES, *(name for name in seconds if name not in (*STAGES, OTHERS)), OTHERS]
    return {name: seconds[name] for name in order if name in seconds}


def best_first(per_quality: dict[str, Any]) -> dict[str, Any]:
    """Qualities in their order, best first, masks last; a JSON file has them by the alphabet."""
    return dict(sorted(per_quality.items(), key=lambda item: (item[0] == MASK, quality_rank(item[0]))))


def _by_method(key: tuple[str, str]) -> tuple[bool, str]:
    return key[0] != ORIGINAL, key[0]


def _classes(results: list[GroupResult]) -> dict[tuple[str, str], Counter[str]]:
    """(method, split) -> status -> tuples, the original first and splits in their usual order."""
    total: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        for key, statuses in result.classes.items():
            total.setdefault(key, Counter()).update(statuses)
    rank = {split: number for number, split in enumerate(_SPLITS)}
    return dict(sorted(total.items(), key=lambda item: (*_by_method(item[0]), rank.get(item[0][1], 9), item[0][1])))


def _methods(classes: dict[tuple[str, str], Counter[str]]) -> dict[str, dict[str, Any]]:
    total: dict[str, Counter[str]] = {}
    for (method, _), statuses in classes.items():
        total.setdefault(method, Counter()).update(statuses)
    return {method: _counted(statuses) for method, statuses in total.items()}


def _counted(statuses: Counter[str]) -> dict[str, Any]:
    reasons = {name: count for name, count in sorted(statuses.items()) if name != "ok"}
    return {"attempted": statuses["ok"] + sum(reasons.values()), "ok": statuses["ok"], "reasons": reasons}


def _files(results: list[GroupResult]) -> dict[str, dict[str, int]]:
    """Quality, best first -> files asked for, and those that could be used; masks last."""
    total: dict[str, Counter[str]] = {}
    for result in results:
        for (_, quality), (asked, usable) in result.files.items():
            total.setdefault(quality, Counter()).update(files=asked, usable=usable)
    return {name: {"files": n["files"], "usable": n["usable"]} for name, n in best_first(total).items()}


def _tallies(results: list[GroupResult]) -> dict[tuple[str, str], SyncTally]:
    total: dict[tuple[str, str], SyncTally] = {}
    for result in results:
        for key, tally in result.tallies.items():
            total.setdefault(key, SyncTally()).merge(tally)
    return dict(sorted(total.items(), key=lambda item: (*_by_method(item[0]), quality_rank(item[0][1]))))


def _verdicts(tally: SyncTally) -> dict[str, Any]:
    return {
        **{verdict: tally.verdicts[verdict] for verdict in VERDICTS},
        "shifted_in_time": sum(tally.offsets.values()),
        "offsets_frames": {f"{offset:+d}": count for offset, count in sorted(tally.offsets.items())},
        "placed_elsewhere": sum(tally.relations.values()),
        "relations": dict(sorted(tally.relations.items())),
        "worst_margin": tally.margin,
        "worst_margin_file": tally.margin_of,
        "worst_residual": tally.residual,
        "worst_residual_file": tally.residual_of,
    }
