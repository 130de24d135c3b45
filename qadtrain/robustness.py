"""How detectors bear corruptions they were not trained on: AUC and accuracy by corruption and severity.

As Fig. 6 of the QAD supplementary. docs/robustness.md tells what is applied, at which resolution, and what differs from
DeeperForensics-1.0.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from qadprep.errors import UserError
from qadprep.progress import progress_bar
from qadtrain.checkpoint import CONFIG_NAME, checkpoint_path, read_run_json
from qadtrain.config import Config
from qadtrain.config_io import load_config, read_toml
from qadtrain.corruption_codecs import require_encoder
from qadtrain.corruptions import BLOCK_RULES, FIGURE_6, SEVERITIES, chosen_corruptions
from qadtrain.data import open_split
from qadtrain.device import choose_device
from qadtrain.evaluate import load_run
from qadtrain.forward import batch_logits
from qadtrain.robustness_cells import METHOD, Cell, RunFacts
from qadtrain.robustness_pictures import CLEAN, PLACES, CorruptedTuples, View, all_damaged, chosen_rows, load, shown
from qadtrain.robustness_report import RobustnessReport, robustness_tables, rows_of, write_report
from qadtrain.safe_files import sha256_of

__all__ = ["RobustnessReport", "evaluate_robustness", "robustness_tables"]

# Tuples in a pass of a run whose configuration leaves their number open.
BATCH_TUPLES = 64


def evaluate_robustness(
    runs: Sequence[Path],
    shards_path: Path,
    *,
    out_dir: Path,
    split: str = "test",
    corruptions: Sequence[str] = FIGURE_6,
    severities: Sequence[int] = SEVERITIES,
    qualities: Sequence[str] | None = None,
    at: str = "crop",
    blocks: str = "scaled",
    checkpoint: str = "best",
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    num_workers: int = -1,
    batch_tuples: int | None = None,
) -> RobustnessReport:
    """Score runs on corrupted tuples; write ``robustness.csv``, ``.json``, ``.png`` and ``.svg`` to ``out_dir``.

    The logits of each finished (run, corruption, severity) are kept in ``out_dir/cells`` and taken over by a later call
    when weights, tuples and settings are the same.

    Args:
        runs: folders of :func:`qadtrain.trainer.fit`; each is fed as its own configuration says.
        shards_path: any shard set.
        split: its split to score.
        corruptions: names, codes, ``figure6`` or ``all``; see ``corruptions.CORRUPTIONS``.
        severities: some of 1..5. The clean pictures are always scored.
        qualities: some of the shard set's; None = all.
        at: resolution at which pictures are corrupted: ``crop`` (their own), ``input`` (each network's), ``256`` px.
        blocks: ``original`` (none below 256 px) or ``scaled``.
        checkpoint: ``best`` or ``last``.
        limit: tuples to score, evenly over the videos; None = all.
        seed: of noise and places of blocks.
        batch_tuples: tuples per forward pass; default that of training.

    Raises:
        UserError: not a run, one named twice, an unknown name, no such split or quality, or no tuple that can be read.
    """
    names = chosen_corruptions(corruptions)
    levels = _checked_severities(severities)
    _one_of("--at", at, PLACES)
    _one_of("--blocks", blocks, BLOCK_RULES)
    _one_of("--checkpoint", checkpoint, ("best", "last"))
    if "video" in names:
        require_encoder()
    opened = _open_runs(runs, checkpoint)
    where = choose_device(device)
    out_dir = Path(out_dir)
    views = [(CLEAN, 0), *((name, severity) for name in names for severity in levels)]
    with open_split(shards_path, split, tuple(qualities or ())) as shards:
        rows = chosen_rows(shards.table, limit)
        settings = {
            "shards": shards.fingerprint,
            "split": split,
            "qualities": list(shards.qualities),
            "tuples": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() if len(rows) < len(shards) else "all",
            "at": at,
            "blocks": blocks,
            "seed": seed,
        }
        jobs, sides = [], {}
        for run in opened:
            side = {"crop": 0, "256": 256, "input": run.config.data.image_size_px or shards.size_px}[at]
            sides[run.name] = side or shards.size_px
            jobs += [(run, View(*view, side, blocks, seed)) for view in views]
        (out_dir / "cells").mkdir(parents=True, exist_ok=True)
        cells = {(run.name, view): Cell(out_dir, run, view, settings, where) for run, view in jobs}
        found = {key: cell.read(len(rows), len(shards.qualities)) for key, cell in cells.items()}
        # A tuple that was damaged may have been repaired since.
        found = {key: kept if kept and all_damaged(shards, kept[1]) else None for key, kept in found.items()}
        missing = [job for job in jobs if found[job[0].name, job[1]] is None]
        damaged: dict[int, str] = {}
        with progress_bar("robustness", max(1, len(missing) * len(rows)), "tuples") as advance:
            for run in opened:
                own = [view for its_run, view in missing if its_run is run]
                model = _model(run, checkpoint).to(where) if own else None
                for view in own:
                    dataset = CorruptedTuples(shards, rows, shards.qualities, view)
                    logits, broken = _scores(
                        model,
                        dataset,
                        run.config,
                        where,
                        batch_tuples=batch_tuples or run.config.data.batch_tuples or BATCH_TUPLES,
                        num_workers=num_workers,
                        advance=lambda count, r=run, v=view: advance(count, f"{r.name} {v.corruption} {v.severity}"),
                    )
                    found[run.name, view] = logits[rows], broken
                    cells[run.name, view].write(logits[rows], broken)
        for _, broken in found.values():
            damaged |= broken
        whole = np.array([row not in damaged for row in rows.tolist()])
        if not whole.any():
            raise UserError(f"{shards_path}: none of {len(rows)} tuples can be read: {next(iter(damaged.values()))}")
        index = shards.table.take(pa.array(rows[whole]))
        table = [
            line
            for run, view in jobs
            for line in rows_of(run.name, view, found[run.name, view][0][whole], index, shards.qualities)
        ]
        keys = shards.table["key"]
        report = RobustnessReport(
            runs=tuple(run.name for run in opened),
            corruptions=names,
            severities=levels,
            qualities=tuple(shards.qualities),
            rows=tuple(table),
            tuples=int(whole.sum()),
            damaged=tuple((keys[row].as_py(), damaged[row]) for row in sorted(damaged)),
            reused=len(jobs) - len(missing),
            scored=len(missing),
            settings=settings
            | {"checkpoint": checkpoint, "weights": {run.name: run.weights_sha256 for run in opened}, "method": METHOD}
            | {"side_px": sides},
            folder=out_dir,
        )
    return write_report(report)


@torch.inference_mode()
def _scores(
    model: nn.Module,
    dataset: CorruptedTuples,
    config: Config,
    device: torch.device,
    *,
    batch_tuples: int,
    num_workers: int,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, dict[int, str]]:
    """Logits float64 (tuples of the split, M, 2), NaN where none was scored; and row -> message of damaged tuples."""
    shards = dataset.shards
    logits = np.full((len(shards), len(dataset.qualities), 2), np.nan)
    damaged: dict[int, str] = {}
    keys = shards.table["key"]
    for rows, images, broken in load(dataset, batch_tuples=batch_tuples, num_workers=num_workers, device=device):
        damaged.update(broken)
        if len(rows):
            pictures = shown(images, [keys[row].as_py() for row in rows.tolist()], dataset.view, device)
            logits[rows] = batch_logits(model, pictures, config, shards.size_px, device)
        advance(len(rows) + sum(row in dataset.chosen for row, _ in broken))
    return logits, damaged


def _model(run: RunFacts, checkpoint: str) -> nn.Module:
    """The weights that the cells are named after; another process may be training the run."""
    model = load_run(run.folder, checkpoint)[1]
    if sha256_of(checkpoint_path(run.folder, checkpoint)) != run.weights_sha256:
        raise UserError(f"{run.folder}: its checkpoint {checkpoint} was replaced meanwhile; give the command again")
    return model


def _open_runs(folders: Sequence[Path], checkpoint: str) -> list[RunFacts]:
    """Everything that is wrong with a run is said before the first one is scored."""
    if not folders:
        raise UserError("RUN: got none, expected at least one run folder of `qadtrain fit`")
    places = [Path(folder).resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise UserError(f"RUN: got {', '.join(map(str, folders))}, expected each run once")
    short = [place.name for place in places]
    runs = []
    for folder, place in zip(folders, places, strict=True):
        read_run_json(folder)
        config = load_config(base=read_toml(Path(folder) / CONFIG_NAME))
        load_run(Path(folder), checkpoint)  # weights that do not fit are found now
        mark = sha256_of(checkpoint_path(folder, checkpoint))
        name = place.name if short.count(place.name) == 1 else str(folder)
        runs.append(RunFacts(name, Path(folder), config, mark or ""))
    return runs


def _checked_severities(severities: Sequence[int]) -> tuple[int, ...]:
    if not severities or not set(severities) <= set(SEVERITIES):
        raise UserError(f"--severities: got {list(severities)}, expected some of 1 to 5")
    return tuple(sorted(set(severities)))


def _one_of(option: str, got: str, expected: Sequence[str]) -> None:
    if got not in expected:
        raise UserError(f"{option}: got {got!r}, expected {', '.join(expected[:-1])} or {expected[-1]}")
