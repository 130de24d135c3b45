"""Score a detector on a split: each quality x method, frame level and video level."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.checkpoint import CONFIG_NAME, checkpoint_path, load_weights, read_run_json, write_atomically
from qadtrain.config import Config
from qadtrain.config_io import load_config, read_toml
from qadtrain.data import make_loader, open_split, to_network_input, whole_batches
from qadtrain.device import autocast_to, choose_device
from qadtrain.metrics import METRICS, Scores, average, binary_scores
from qadtrain.models import build_model

ORIGINAL, AVERAGE, POOLED = "original", "average", "all"
LEVELS = ("frame", "video")
SHORT = {"accuracy": "ACC", "auc": "AUC", "eer": "EER"}


@dataclass(frozen=True)
class Report:
    """Scores by level, quality and method, with the averages; ``cells[level][quality][method]``."""

    qualities: tuple[str, ...]
    methods: tuple[str, ...]
    cells: dict[str, dict[str, dict[str, Scores]]]

    def pooled(self, level: str, quality: str) -> Scores:
        """Scores of every sample of a quality together."""
        return self.cells[level][quality][POOLED]

    def as_json(self) -> dict[str, Any]:
        return {
            level: {q: {m: s.as_json() for m, s in row.items()} for q, row in rows.items()}
            for level, rows in self.cells.items()
        }


def load_run(run_dir: Path, checkpoint: str) -> tuple[Config, nn.Module, dict[str, str]]:
    """Configuration and model of a run folder, with the weights of ``best`` or ``last`` and their note."""
    read_run_json(run_dir)
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
) -> np.ndarray:
    """Logits of every tuple at every quality, without augmentation, in index order.

    Returns:
        float64 (tuples, qualities, 2); [..., 1] is the fake class.
    """
    was_training = model.training
    model.eval()
    size = batch_tuples or config.data.batch_tuples
    requests = [[(0, i) for i in range(first, min(first + size, len(shards)))] for first in range(0, len(shards), size)]
    loader = make_loader(shards, requests, seed=0, flip_probability=0.0, num_workers=num_workers, device=device)
    logits = np.empty((len(shards), len(shards.qualities), 2))
    for batch in whole_batches(loader):
        images = to_network_input(
            batch.images,
            None,
            size_px=config.data.image_size_px or shards.size_px,
            normalization=config.data.normalization,
            device=device,
            channels_last=config.model.channels_last,
        )
        with autocast_to(config.train.precision, device):
            output = model(images).logits
        logits[batch.indices.numpy()] = output.double().cpu().view(len(batch.indices), -1, 2).numpy()
    model.train(was_training)
    return logits


def fake_probability(logits: np.ndarray) -> np.ndarray:
    """float64 (..., 2) -> (...): softmax probability of the fake class.

    In float64: in float32 every confident score becomes exactly 1, and the ties blur AUC and EER.
    """
    return torch.sigmoid(torch.from_numpy(logits[..., 1] - logits[..., 0])).numpy()


def summarise(prob_fake: np.ndarray, index: pa.Table, qualities: tuple[str, ...]) -> Report:
    """Metrics per level, quality and method.

    Each manipulation is scored against the originals of its own dataset in the same split; ``all`` pools every
    sample of a quality; ``average`` is the plain mean over the methods (in a row) and over the qualities (of a
    column). Video level takes the mean probability over the frames of a video, or of one face where a video has
    several with labels of their own.

    Args:
        prob_fake: float (tuples, qualities), rows in index order.
        index: columns label, dataset, method, video and face.
        qualities: names of the columns of ``prob_fake``.
    """
    labels = index["label"].to_numpy().astype(np.int64)
    dataset, method, video = (
        np.asarray(index[name].to_pylist(), dtype=object) for name in ("dataset", "method", "video")
    )
    face = [str(number) for number in index["face"].to_pylist()]
    columns = method_columns(dataset, method)
    _, first, group = np.unique(
        np.array(["\0".join(parts) for parts in zip(dataset, method, video, face, strict=True)]),
        return_index=True,
        return_inverse=True,
    )
    frames_per_video = np.bincount(group)
    cells: dict[str, dict[str, dict[str, Scores]]] = {level: {} for level in LEVELS}
    for number, quality in enumerate(qualities):
        frame_prob = prob_fake[:, number]
        video_prob = np.bincount(group, weights=frame_prob) / frames_per_video
        cells["frame"][quality] = _row(frame_prob, labels, dataset, method, columns)
        cells["video"][quality] = _row(video_prob, labels[first], dataset[first], method[first], columns)
    for level in LEVELS:
        names = [*columns, POOLED, AVERAGE]
        cells[level][AVERAGE] = {name: average([cells[level][q][name] for q in qualities]) for name in names}
    return Report(tuple(qualities), tuple(columns), cells)


def method_columns(dataset: np.ndarray, method: np.ndarray) -> dict[str, tuple[str, str]]:
    """Column name -> (dataset, method) of each manipulation; names carry the dataset when there are several."""
    several = len(set(dataset)) > 1
    pairs = sorted({(d, m) for d, m in zip(dataset, method, strict=True) if m != ORIGINAL})
    return {f"{d}/{m}" if several else m: (d, m) for d, m in pairs}


def _row(
    prob: np.ndarray, labels: np.ndarray, dataset: np.ndarray, method: np.ndarray, columns: dict[str, tuple[str, str]]
) -> dict[str, Scores]:
    row = {}
    for name, (its_dataset, its_method) in columns.items():
        chosen = (dataset == its_dataset) & ((method == its_method) | (labels == 0))
        row[name] = binary_scores(prob[chosen], labels[chosen])
    return {**row, POOLED: binary_scores(prob, labels), AVERAGE: average(list(row.values()))}


def write_scores(path: Path, logits: np.ndarray, index: pa.Table, qualities: tuple[str, ...]) -> None:
    """``scores.parquet``: a row for each tuple and quality, in index order, with its logits and probability."""
    tuples = len(index)
    wanted = ("key", "dataset", "method", "video", "group", "frame", "face", "label", "split")
    rows = pa.array(np.repeat(np.arange(tuples), len(qualities)))
    table = index.select([name for name in wanted if name in index.column_names]).take(rows)
    flat = logits.reshape(-1, 2)
    table = table.append_column("quality", pa.array(list(qualities) * tuples, pa.string()))
    table = table.append_column("logit_real", pa.array(flat[:, 0], pa.float64()))
    table = table.append_column("logit_fake", pa.array(flat[:, 1], pa.float64()))
    table = table.append_column("prob_fake", pa.array(fake_probability(flat), pa.float64()))
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def evaluate(
    run_dir: Path,
    shards_path: Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    out_dir: Path | None = None,
    device: str = "auto",
    num_workers: int = -1,
    batch_tuples: int | None = None,
) -> tuple[Report, dict[str, Any], Path]:
    """Score a run on a split and write ``scores.parquet`` and ``report.json``.

    Args:
        run_dir: folder written by :func:`qadtrain.trainer.fit`.
        shards_path: any shard set, also another one than was trained on; crops are resized to the network.
        split: its split to score.
        checkpoint: ``best`` or ``last``.
        out_dir: where to write; default ``RUN/eval/<shard set>-<split>``.
        batch_tuples: tuples per forward pass; default that of training.

    Returns:
        The report, the contents of report.json, and the folder.

    Raises:
        UserError: not a run, no such checkpoint, no such split, or a damaged tuple.
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    config, model, note = load_run(run_dir, checkpoint)
    where = choose_device(device)
    with open_split(shards_path, split) as shards:
        model = model.to(where)
        logits = score_split(model, shards, config, where, num_workers=num_workers, batch_tuples=batch_tuples)
        report = summarise(fake_probability(logits), shards.table, shards.qualities)
        out_dir = out_dir or Path(run_dir) / "eval" / f"{Path(shards_path).resolve().name}-{split}"
        out_dir.mkdir(parents=True, exist_ok=True)
        write_scores(out_dir / "scores.parquet", logits, shards.table, shards.qualities)
        trained_on = read_run_json(run_dir)["shards"]
        contents = {
            "split": split,
            "checkpoint": {"name": checkpoint, **note},
            "shards": {
                "fingerprint": shards.fingerprint,
                "same_as_trained": shards.fingerprint == trained_on["fingerprint"],
            },
            "tuples": len(shards),
            "qualities": list(report.qualities),
            "methods": list(report.methods),
            "metrics": report.as_json(),
        }
    write_atomically(out_dir / "report.json", (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())
    return report, contents, out_dir


def report_tables(report: Report) -> Iterator[Table]:
    """Rich tables, frame level then video level; a row for each quality and metric, figures in percent."""
    names = (*report.methods, AVERAGE, POOLED)
    for level in LEVELS:
        table = Table(title=f"{level} level, percent", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("quality")
        table.add_column("")
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
        for quality in (*report.qualities, AVERAGE):
            row = report.cells[level][quality]
            for metric in METRICS:
                figures = (_percent(getattr(row[name], metric)) for name in names)
                last = metric == METRICS[-1]
                table.add_row(quality if metric == METRICS[0] else "", SHORT[metric], *figures, end_section=last)
        reasons = {score.reason for q in report.qualities for score in report.cells[level][q].values() if score.reason}
        table.caption = "; ".join(sorted(reasons)) or None
        yield table


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.2f}"
