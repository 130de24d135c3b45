"""Score a detector on a split: each quality x method, frame level and video level."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from qadprep.errors import UserError
from qadprep.progress import progress_bar
from qadprep.shardset import ShardSet
from qadtrain.checkpoint import CONFIG_NAME, checkpoint_path, load_weights, read_run_json
from qadtrain.config import Config
from qadtrain.config_io import load_config, read_toml
from qadtrain.data import TupleBatch, collate, make_loader, open_split
from qadtrain.device import choose_device, device_name, precision_name
from qadtrain.distributed import Ranks
from qadtrain.forward import batch_logits
from qadtrain.guard import together
from qadtrain.metrics import SHORT
from qadtrain.model_folder import is_model_folder, load_model_folder
from qadtrain.models import build_model
from qadtrain.safe_files import sha256_of, write_atomically
from qadtrain.score_files import SCORES_NAME, fake_margin, fake_probability, write_scores
from qadtrain.summary import (
    AVERAGE,
    LEVELS,
    ORIGINAL,
    POOLED,
    PROBABILITY,
    Report,
    check_aggregate,
    check_draws,
    summarise,
)
from qadtrain.tables import report_csv, report_latex, report_tables
from qadtrain.workers import WorkerBatches

__all__ = [
    "AVERAGE", "LEVELS", "ORIGINAL", "POOLED", "REPORT_NAME", "SHORT", "Report", "evaluate",
    "evaluation_lines", "fake_margin", "fake_probability", "load_run", "report_tables", "score_split", "summarise",
    "write_scores",
]  # fmt: skip

REPORT_NAME = "report.json"
CHECKPOINTS = ("best", "last")
_MOST_NAMED = 20


def load_run(run_dir: Path, checkpoint: str) -> tuple[Config, nn.Module, dict[str, str]]:
    """Configuration and model of a run folder, with the weights of ``best`` or ``last`` and their note.

    A folder of `qadtrain push` does as well; the one checkpoint in it is ``best``.
    """
    read_run_json(run_dir)
    if is_model_folder(run_dir):
        if checkpoint != "best":
            raise UserError(f"--checkpoint: got {checkpoint}, expected best: {run_dir} holds one checkpoint")
        return load_model_folder(run_dir)
    config = load_config(base=read_toml(Path(run_dir) / CONFIG_NAME))
    model, _ = build_model(config.model, load_weights=False)
    note = load_weights(checkpoint_path(run_dir, checkpoint), model)
    return config, model.eval(), note


@torch.inference_mode()
def score_split(
    model: nn.Module,
    shards: ShardSet,
    config: Config,
    device: torch.device,
    *,
    num_workers: int,
    batch_tuples: int | None = None,
    ranks: Ranks | None = None,
    skip_bad: int = 0,
    damaged: dict[int, str] | None = None,
    title: str = "",
) -> np.ndarray:
    """Logits of every tuple at every quality, without augmentation, in index order.

    Args:
        batch_tuples: tuples per forward pass; default the share of a process in a step of training.
        ranks: several processes share the passes and give one another what they found.
        skip_bad: damaged tuples that are left out; each process holds its own against it.
        damaged: takes row of the index -> message of each of them, those of all processes.
        title: of a progress bar; empty = none.

    Returns:
        float64 (tuples, qualities, 2); [..., 1] is the fake class. NaN for the tuples that were left out.

    Raises:
        UserError: more damaged tuples than ``skip_bad``, or a loader process that died.
    """
    ranks = ranks or Ranks()
    was_training = model.training
    model.eval()
    size = batch_tuples or max(1, config.data.batch_tuples // ranks.world)
    starts = range(ranks.rank * size, len(shards), ranks.world * size)
    requests = [[(0, i) for i in range(first, min(first + size, len(shards)))] for first in starts]
    loader = make_loader(shards, requests, seed=0, flip_probability=0.0, num_workers=num_workers, device=device)
    logits = np.full((len(shards), len(shards.qualities), 2), np.nan)
    own: list[np.ndarray] = []
    bad: dict[int, str] = {}
    bar = progress_bar(title, sum(map(len, requests)), "tuples") if title else nullcontext(lambda *_: None)

    def score_own() -> None:
        for request, batch in zip(requests, _readable(loader, requests, skip_bad, bad), strict=True):
            if len(batch.indices):
                own.append(batch.indices.numpy())
                logits[own[-1]] = batch_logits(model, batch.images, config, shards.size_px, device)
            advance(len(request), f"{len(bad)} left out" if bad else "")

    with bar as advance:
        together(ranks, score_own)
    model.train(was_training)
    if ranks.world > 1:
        rows = np.concatenate([np.empty(0, np.int64), *own])
        for their_rows, theirs, their_bad in ranks.gather_objects((rows, logits[rows], bad)):
            logits[their_rows] = theirs
            bad |= their_bad
    if damaged is not None:
        damaged |= bad
    return logits


def _readable(
    loader: DataLoader, requests: Sequence[Sequence[tuple[int, int]]], skip_bad: int, bad: dict[int, str]
) -> Iterator[TupleBatch]:
    """The loader's batches without their damaged tuples, which go to ``bad``; a batch of none of others is empty."""
    batches = WorkerBatches(loader)
    try:
        for request, batch in zip(requests, batches, strict=True):
            if batch.damage:
                if not skip_bad:
                    raise UserError(batch.damage)
                # The batch came without its pictures: read the sound ones again, here.
                items = {index: loader.dataset[epoch, index] for epoch, index in request}
                bad |= {index: item for index, item in items.items() if isinstance(item, str)}
                if len(bad) > skip_bad:
                    raise UserError(
                        f"--skip-bad: got {len(bad)} damaged tuples, expected at most {skip_bad}: {batch.damage}"
                    )
                batch = collate([item for item in items.values() if not isinstance(item, str)])
            yield batch
    finally:
        batches.close()


def evaluate(
    run_dir: Path,
    shards_path: Path | str,
    *,
    split: str = "test",
    checkpoint: str = "best",
    out_dir: Path | None = None,
    device: str = "auto",
    num_workers: int = -1,
    batch_tuples: int | None = None,
    aggregate: str = PROBABILITY,
    bootstrap: int = 1000,
    seed: int = 0,
    skip_bad: int = 0,
    progress: bool = True,
) -> tuple[Report, dict[str, Any], Path]:
    """Score a run on a split and write ``scores.parquet``, ``report.json``, ``report.csv`` and ``report.tex``.

    Args:
        run_dir: folder written by :func:`qadtrain.fit.fit`.
        shards_path: any shard set, also another one than was trained on; crops are resized to the network.
        split: its split to score.
        checkpoint: ``best`` or ``last``.
        out_dir: where to write; default as :func:`eval_folder` names it.
        batch_tuples: tuples per forward pass; default that of training.
        aggregate: how a video's frames become one score: ``prob``, ``logit``, ``top5`` (:func:`check_aggregate`).
        bootstrap: draws of recordings for the 95 % intervals; 0 = none.
        seed: of the draws.
        skip_bad: damaged tuples that may be left out; they are counted and named, and have no score.
        progress: show it on stderr.

    Returns:
        The report, the contents of report.json, and the folder.

    Raises:
        UserError: not a run, no such checkpoint, no such split, an unknown ``aggregate``, or more damaged tuples than
            ``skip_bad``.
    """
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    if skip_bad < 0:
        raise UserError(f"--skip-bad: got {skip_bad}, expected 0 or more")
    check_aggregate(aggregate)
    check_draws(bootstrap)
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is known before the work, not after
    config, model, note = load_run(run_dir, checkpoint)
    where = choose_device(device)
    damaged: dict[int, str] = {}
    with open_split(shards_path, split) as shards:
        logits = score_split(
            model.to(where),
            shards,
            config,
            where,
            num_workers=num_workers,
            batch_tuples=batch_tuples,
            skip_bad=skip_bad,
            damaged=damaged,
            title="score" if progress else "",
        )
        index, qualities = shards.table, tuple(shards.qualities)
        fingerprint = shards.fingerprint
        names = {row: shards.where(row) for row in np.flatnonzero(~np.isfinite(logits).all(axis=(1, 2)))[:_MOST_NAMED]}
    out_dir = out_dir or eval_folder(run_dir, shards_path, split, checkpoint, fingerprint)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / REPORT_NAME).unlink(missing_ok=True)  # it vouches for the scores, which are about to change
    write_scores(out_dir / SCORES_NAME, logits, index, qualities, damaged)
    report = summarise(
        fake_probability(logits),
        index,
        qualities,
        margin=fake_margin(logits),
        aggregate=aggregate,
        full=True,
        bootstrap=bootstrap,
        seed=seed,
    )
    trained_on = read_run_json(run_dir)["shards"]
    contents = {
        "split": split,
        "checkpoint": {"name": checkpoint, **note, "weights_sha256": sha256_of(checkpoint_path(run_dir, checkpoint))},
        "shards": {"fingerprint": fingerprint, "same_as_trained": fingerprint == trained_on["fingerprint"]},
        "device": device_name(where),
        "precision": precision_name(config.train.precision, where),
        "tuples": len(index),
        "not_scored": _not_scored(logits, damaged, qualities, names),
        "qualities": list(report.qualities),
        "methods": list(report.methods),
        "aggregate": aggregate,
        "bootstrap": {"draws": bootstrap, "seed": seed, "drawn": "recordings: an original with its manipulations"},
        "metrics": report.as_json(),
    }
    write_atomically(out_dir / "report.csv", report_csv(report).encode())
    write_atomically(out_dir / "report.tex", "\n".join(report_latex(report, level) for level in LEVELS).encode())
    write_atomically(out_dir / REPORT_NAME, (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())
    return report, contents, out_dir


def eval_folder(run_dir: Path, shards_path: Path | str, split: str, checkpoint: str, fingerprint: str) -> Path:
    """``RUN/eval/<shard set>-<split>``, with ``-last`` for that checkpoint; where the name is taken by another shard
    set of the same name, with the first digits of the fingerprint."""
    text = str(shards_path)
    name = text.rstrip("/").rpartition("/")[2] if "://" in text else Path(shards_path).resolve().name
    folder = Path(run_dir) / "eval" / (f"{name}-{split}" + ("-last" if checkpoint == "last" else ""))
    try:
        taken = json.loads((folder / REPORT_NAME).read_text("utf-8"))["shards"]["fingerprint"] != fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        taken = False
    return folder.with_name(f"{folder.name}-{fingerprint[:8]}") if taken else folder


def evaluation_lines(contents: dict[str, Any]) -> list[str]:
    """What people must know beside the tables: tuples without a score, each of the first ones named."""
    lost = contents["not_scored"]
    lines = []
    if lost["damaged"]:
        lines.append(f"{lost['damaged']} of {contents['tuples']} tuples are damaged and have no score")
    if lost["not_finite"]:
        per_quality = ", ".join(f"{quality} {count}" for quality, count in lost["per_quality"].items() if count)
        lines.append(f"{lost['not_finite']} scores are inf or NaN and left out ({per_quality}): the network overflowed")
    return lines + [f"  {reason}" for reason in lost["named"]]


def _not_scored(
    logits: np.ndarray, damaged: dict[int, str], qualities: Sequence[str], names: dict[int, str]
) -> dict[str, Any]:
    lost = ~np.isfinite(logits).all(axis=2)
    lost[list(damaged)] = False
    named = dict(islice(sorted(damaged.items()), _MOST_NAMED))
    for row, place in names.items():
        if row not in damaged:
            values = (f"{qualities[q]} {logits[row, q].tolist()}" for q in np.flatnonzero(lost[row]))
            named[int(row)] = f"{place}: logits {', '.join(values)}"
    return {
        "damaged": len(damaged),
        "not_finite": int(lost.sum()),
        "per_quality": {quality: int(lost[:, q].sum()) for q, quality in enumerate(qualities)},
        "named": list(named.values()),
    }
