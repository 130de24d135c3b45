"""The demonstration: every step of the chain on a small dataset made on the spot, and a page that shows it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qadprep.config import ExtractConfig, ShardConfig
from qadprep.demo import RECIPES, STAND_IN_NOTE
from qadprep.demo.dataset import DemoDataset, make_dataset
from qadprep.errors import UserError
from qadprep.extract_dataset import extract
from qadprep.machine import available_cores
from qadprep.progress import PLAIN_EVERY_S
from qadprep.report import Section, write_report
from qadprep.scan import scan
from qadprep.shard import shard
from qadprep.timing import StageTimer
from qadprep.verify import verify

FRAMES, SIZE_PX = 12, 128
METRICS = ("auc", "accuracy", "eer")
DISCLAIMER = STAND_IN_NOTE


def run_demo(
    out: Path, *, clips: Path | None = None, seed: int = 0, workers: int = 0, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Make the dataset, run scan, extract, shard, verify, fit and eval on it, and write report.html.

    A second run in the same folder goes on where the first one stopped.

    Args:
        out: folder for everything: `dataset/`, `manifest.parquet`, `faces/`, `shards/`, `run/`, report.html.
        clips: folder with face videos for the originals; None animates scikit-image's portrait.
        seed: of the dataset, the frames, the order and the training.
        workers: processes; 0 takes one per core.

    Returns:
        A summary; `ok` is False when something could not be used or verify found a fault.

    Raises:
        UserError: `qadtrain` failed (its own line is in the message), or a clips folder without a usable face.
    """
    timer = StageTimer()
    workers = workers or available_cores()
    root, faces, shards, run = out / "dataset", out / "faces", out / "shards", out / "run"
    with timer.stage("make dataset"):
        dataset = make_dataset(root, clips_dir=clips, seed=seed, workers=workers, progress=_Stages(say))
    say(
        f"dataset: {len(dataset.clips)} clips ({dataset.from_clips} originals from your videos), "
        f"{dataset.files_made} files made, {dataset.files_kept} kept. {DISCLAIMER}"
    )
    for skipped in dataset.skipped:
        say(f"not used: {skipped.path.name}: {skipped.reason}")
    with timer.stage("scan"):
        scanned = scan(root, "ffpp", out / "manifest.parquet")
    say(f"scan: {len(scanned.catalog.clips)} clips in {len(scanned.catalog.groups())} groups")
    with timer.stage("extract"):
        config = ExtractConfig(dataset="ffpp", frames=FRAMES, size_px=SIZE_PX, seed=seed)
        extracted = extract(root, faces, config, workers=workers, say=say)
    say(f"extract: {extracted.as_dict()['tuples']} tuples, shift tests {extracted.as_dict()['sync']}")
    with timer.stage("shard"):
        sharded = shard(faces, shards, ShardConfig(tuples_per_shard=200, seed=seed))
    with timer.stage("verify"):
        verified = verify(shards, workers=workers)
    say(f"shard: {sharded.tuples}; verify: {len(verified.faults)} faults in {verified.tuples} tuples")
    with timer.stage("fit"):
        fit = ["fit", str(shards), "--out", str(run), "--preset", "tiny", "--set", f"train.seed={seed}", "--json"]
        _qadtrain([*fit, *(["--resume"] if any((run / "checkpoints").glob("*.state.pt")) else [])])
    with timer.stage("eval"):
        scores = _qadtrain(["eval", str(run), str(shards), "--split", "test", "--json"])
    with timer.stage("report"):
        page = write_report(
            shards,
            out,
            faces=faces,
            title="qadprep demo",
            notice=DISCLAIMER,
            extra=[*_score_sections(scores), _recipe_section(), _cast_section(dataset)],
        )
    return {
        **page,
        "ok": not extracted.failed and not verified.faults,
        "clips_skipped": [{"clip": str(s.path), "reason": s.reason} for s in dataset.skipped],
        "extract": extracted.as_dict(),
        "shard": sharded.as_dict(),
        "verify": verified.as_dict(),
        "scores": scores["metrics"],
        "scores_text": _scores_text(scores),
        "seconds": {name: round(seconds, 1) for name, seconds in timer.seconds.items()},
        "disclaimer": DISCLAIMER,
    }


class _Stages:
    """Progress of the dataset's making, as lines: at a stage's end, and every ten seconds meanwhile."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        import time

        if done == total or time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._say(f"make dataset: {stage} {done}/{total}")


def _qadtrain(arguments: list[str]) -> dict[str, Any]:
    """Run a command of the trainer as a program of its own; what it says on stderr reaches the user as it comes."""
    command = [sys.executable, "-m", "qadtrain", *arguments]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise UserError(f"`qadtrain {arguments[0]}` ended with exit code {result.returncode}; its message stands above")
    return json.loads(result.stdout)


def _score_sections(scores: dict[str, Any]) -> list[Section]:
    methods = [*scores["methods"], "average"]
    return [
        Section(
            f"Scores on test, {level} level",
            "Each method against the originals: AUC / accuracy / EER. Trained for a minute on a handful of clips.",
            ("quality", *methods),
            [
                (quality, *(_figures(scores["metrics"][level][quality][method]) for method in methods))
                for quality in [*scores["qualities"], "average"]
            ],
        )
        for level in ("frame", "video")
    ]


def _figures(cell: dict[str, Any]) -> str:
    return " / ".join("-" if cell[name] is None else f"{cell[name]:.3f}" for name in METRICS)


def _scores_text(scores: dict[str, Any]) -> str:
    frame = scores["metrics"]["frame"]
    lines = [f"{quality}: AUC {frame[quality]['average']['auc']:.3f}" for quality in scores["qualities"]]
    return f"frame level on test, average over methods: {', '.join(lines)} (0.5 is chance)"


def _recipe_section() -> Section:
    return Section("What the stand-ins are", "", ("folder", "what was done"), list(RECIPES.items()))


def _cast_section(dataset: DemoDataset) -> Section:
    rows = [(clip.split, clip.name, clip.origin, clip.frames) for clip in dataset.clips if clip.method == "original"]
    return Section("Where the originals come from", "", ("split", "id", "origin", "frames"), rows)
