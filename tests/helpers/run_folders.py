"""Run folders as `qadtrain fit` leaves them, without any training."""

import contextlib
import io
import json
from pathlib import Path

from rich.console import Console

from qadtrain.checkpoint import write_run_json
from qadtrain.config_io import load_config, to_toml
from qadtrain.tracking import Tracker

QUALITIES = ("raw", "c23")
FACTS = {
    "shards": {"fingerprint": "ab12" * 16, "qualities": list(QUALITIES), "size_px": 32, "splits": {"train": 96}},
    "model": {"name": "tiny", "parameters": 12345, "origin": "random start"},
    "device": "cpu",
    "precision": "fp32",
    "git": "0123456789ab",
    "command": "qadtrain fit shards",
    "versions": {"torch": "2.0"},
}


def write_run(
    folder: Path,
    overrides: tuple[str, ...] = (),
    *,
    epochs: int = 2,
    of_epochs: int = 4,
    log_every: int = 5,
    level: float = 1.0,
    stopping: str = "",
    error: Exception | None = None,
) -> Path:
    """A run of 20 steps an epoch; the loss is ``level`` at step 0 and falls by 0.01 a step.

    The AUC of epoch e (from 0) is 0.8 + 0.05 e on raw and 0.1 less on c23; each is the best so far.
    """
    folder.mkdir(parents=True)
    config = load_config("tiny", None, [f"optim.epochs={of_epochs}", *overrides])
    (folder / "config.toml").write_text(to_toml(config))
    write_run_json(folder, FACTS)
    with (
        contextlib.suppress(*([type(error)] if error else [])),
        Tracker(folder, Console(file=io.StringIO())) as tracker,
    ):
        for epoch in range(epochs):
            for step in range(20 * epoch + log_every, 20 * epoch + 21, log_every):
                tracker.record("train", epoch, step, _train_values(step, level))
            auc = {quality: 0.8 + 0.05 * epoch - 0.1 * n for n, quality in enumerate(QUALITIES)}
            values = {f"auc/{quality}": value for quality, value in auc.items()}
            values |= {"auc/average": sum(auc.values()) / 2, "train_ce": level, "best": True}
            tracker.record("epoch", epoch, 20 * (epoch + 1), values)
        if stopping:
            tracker.stopping(stopping)
        if error:
            raise error
    return folder


def without_end(folder: Path) -> Path:
    """The same run, killed before it could write its end."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "end"
    path.write_text("".join(lines[:-1]))
    return folder


def _train_values(step: int, level: float) -> dict[str, float]:
    return {
        "loss": level - 0.01 * step,
        "ce": level,
        "hsic": 0.5,
        "hsic/stage1": 0.25,
        "cka/stage1": 0.01 * step,
        "awp_ce_rise": 0.125,
        "lr": 1e-3,
        "grad_norm": 2.0 + step,
        "tuples_per_s": 100.0 + step % 2,
        "data_wait": 0.25,
        "memory_gb": 1.5,
        "skipped_tuples": 3,
    }
