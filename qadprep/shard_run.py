"""What all ways of writing shards share: the task, its worker processes, and the summary of what came out."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qadprep
from qadprep.config import ExtractConfig, ShardConfig
from qadprep.engine import run_ending, run_tasks
from qadprep.locks import Held
from qadprep.machine import fit_workers
from qadprep.progress import progress_bar
from qadprep.shard_format import FORMAT_MAJOR, FORMAT_MINOR
from qadprep.shard_packs import PackSource
from qadprep.shard_plan import PlannedShard
from qadprep.shard_writer import CropFault, ShardJob, ShardResult, write_shard

if TYPE_CHECKING:
    from qadprep.store import Folder

FORMAT = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
# Seconds that a crop of 128 x 128 px takes in one process, by codec; only to choose a number of workers.
_CROP_SECONDS = {"png": 0.0002, "webp": 0.02, "raw": 0.001}
_ALONE_SECONDS = 4.0


@dataclass
class ShardSummary:
    """What `shard` wrote, or would write.

    Attributes:
        tuples: per split.
        bytes: of the tars.
        left_out: attempted tuples that are not in the set, by reason.
        kept: shards that were finished already.
        faults: damaged crops; their shards, and with them `shards.json`, are not there.
        further_faults: faults that are not listed.
        crashed: (shard, message) of shards that could not be written for another reason.
    """

    tuples: dict[str, int]
    shards: int
    bytes: int
    left_out: dict[str, int]
    kept: int = 0
    dry_run: bool = False
    faults: list[CropFault] = field(default_factory=list)
    further_faults: int = 0
    crashed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a shard could not be written."""
        return bool(self.faults or self.crashed)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "ok": not self.failed,
            "dry_run": self.dry_run,
            "tuples": self.tuples,
            "shards": self.shards,
            "shards_kept": self.kept,
            "bytes": self.bytes,
            "left_out": self.left_out,
            "faults": [asdict(fault) for fault in self.faults],
            "further_faults": self.further_faults,
            "crashed": [{"shard": shard, "message": message} for shard, message in self.crashed],
        }


@dataclass(frozen=True)
class ShardTask:
    """A shard set to be written, or to be mended.

    Attributes:
        source: the packs; read to its end when the plan is made.
        workers: processes; 0 fits them to the work and the machine.
        say: takes remarks for the user.
    """

    source: PackSource
    out: "Folder"
    config: ShardConfig
    workers: int
    say: Callable[[str], None]

    @property
    def extract(self) -> ExtractConfig:
        return self.source.config

    @property
    def qualities(self) -> tuple[str, ...]:
        return self.config.qualities or self.extract.qualities

    def described(self) -> dict[str, Any]:
        """What decides the bytes of the set; known when the packs have been read."""
        packs_hash = self.source.packs_hash
        return {
            **self.config.model_dump(mode="json"),
            "config_hash": self.config.hash(packs_hash),
            "packs_hash": packs_hash,
            "extract": self.extract.model_dump(mode="json"),
        }

    def job(self, shard: PlannedShard, work: Path, *, entry: bool = True) -> ShardJob:
        facts = [shard.digest, self.config.codec, *self.qualities, self.extract.size_px, FORMAT, qadprep.__version__]
        digest = hashlib.sha256("/".join(map(str, facts)).encode()).hexdigest()
        return ShardJob(shard.name, shard.split, shard.tuples, shard.file, digest, self.source.faces, work, self.out,
                        self.config.codec, self.qualities, self.extract.size_px, entry)  # fmt: skip


def run_jobs(
    task: ShardTask, jobs: list[ShardJob], entries: dict[str, dict[str, Any]], summary: ShardSummary, held: Held
) -> None:
    """Write shards.

    Args:
        entries: gets the entry in `shards.json` of each shard that is finished, by its name.
        summary: gets the faults.
        held: says that the output folder is still this run's own.
    """
    if not jobs:
        return
    with progress_bar("shard", sum(job.tuples for job in jobs), "tuples") as advance:

        def on_result(job: ShardJob, result: ShardResult) -> None:
            held()
            if result.entry:
                entries[job.name] = result.entry
            summary.faults += result.faults
            summary.further_faults += result.further_faults
            advance(job.tuples, job.name)

        def on_crash(job: ShardJob, message: str) -> None:
            held()
            summary.crashed.append((job.name, message))
            advance(job.tuples, f"{job.name}: {message}")

        workers = _workers(task, jobs)
        if workers > 1:
            set_up = None if task.config.codec == "png" else _set_up
            run_tasks(jobs, write_shard, on_result, on_crash, workers=workers, initializer=set_up)
        else:
            for job in jobs:
                try:
                    result = write_shard(job)
                except Exception as error:
                    if run_ending(error):
                        raise
                    on_crash(job, f"{type(error).__name__}: {error}")
                else:
                    on_result(job, result)
    summary.faults.sort(key=lambda fault: (fault.pack, fault.byte))
    summary.crashed.sort()


def _workers(task: ShardTask, jobs: list[ShardJob]) -> int:
    """How many processes; for little work none beside this one, as each takes a second to start."""
    if task.workers:
        return min(task.workers, len(jobs))
    crops = sum(job.tuples for job in jobs) * len(task.qualities)
    seconds = crops * _CROP_SECONDS[task.config.codec] * (task.extract.size_px / 128) ** 2
    return 1 if seconds < _ALONE_SECONDS else fit_workers(len(jobs))


def _set_up() -> None:
    """In each worker process: there is one for each core already."""
    import cv2

    cv2.setNumThreads(1)
