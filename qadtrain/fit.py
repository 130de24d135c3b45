"""``fit``: check the request, prepare or reopen the run folder, train, and answer Ctrl-C and SIGTERM."""

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.checkpoint import (
    CONFIG_NAME,
    checkpoint_path,
    has_checkpoints,
    read_run_json,
    write_atomically,
    write_run_json,
)
from qadtrain.config import Config
from qadtrain.config_io import differences, load_config, read_toml, to_toml
from qadtrain.data import open_split
from qadtrain.device import uses_bf16
from qadtrain.trainer import BY_AUC, BY_LOSS, Trainer

PACKAGES = ("qadprep", "torch", "timm", "torchmetrics", "numpy")


@dataclass(frozen=True)
class FitSummary:
    """What a run came to."""

    run: str
    epochs: int  # finished
    steps: int
    seconds: float  # of this call
    best_epoch: int | None  # from 0
    best_by: str
    best_score: float | None
    stopped_by: str  # "", "SIGINT" or "SIGTERM"
    checkpoints: dict[str, str]


def fit(
    shards_path: Path,
    run_dir: Path,
    config: Config,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], str] | None = None,
) -> FitSummary:
    """Train a detector on a shard set.

    Args:
        shards_path: folder with ``shards.json``.
        run_dir: where config.toml, run.json, metrics.jsonl, tensorboard/ and checkpoints/ go.
        config: as from :func:`qadtrain.config_io.load_config`.
        resume: go on from the folder's last checkpoint; the configuration and the data must be the same.
        console: human output; default stderr.
        should_stop: asked at every step boundary; a non-empty answer saves and ends the run. Default: the name
            of a SIGINT or SIGTERM that came.

    Raises:
        UserError: a folder with checkpoints and no ``resume``, a resume with another configuration or other
            data, a split that is too small, weights that cannot be had, a loss that is not finite.
    """
    console = console or Console(stderr=True)
    run_dir = Path(run_dir)
    if has_checkpoints(run_dir) and not resume:
        raise UserError(f"{run_dir}: already has checkpoints; continue it with --resume, or choose another --out")
    if resume and not has_checkpoints(run_dir):
        raise UserError(f"{run_dir}: no checkpoint to resume from; start without --resume")
    started = time.perf_counter()
    with ExitStack() as stack:
        shards = stack.enter_context(open_split(shards_path, config.data.train_split))
        config = resolve(config, shards)
        if resume:
            check_same_run(run_dir, config, shards)
        val_shards, best_by_reason = open_validation(shards_path, config)
        if val_shards is not None:
            stack.enter_context(val_shards)
        trainer = Trainer(shards, val_shards, config, run_dir, console, load_weights=not resume)
        if resume:
            trainer.load()
        else:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_run_json(run_dir, run_facts(trainer, shards))
        # Also on resume: what may differ (workers, device, logging) is then what the folder says.
        write_atomically(run_dir / CONFIG_NAME, to_toml(config).encode())
        for line in _opening_lines(trainer, resume, best_by_reason):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if should_stop is None:
            should_stop = stack.enter_context(stop_signals(console))
        stopped_by = trainer.run(should_stop)
    position = trainer.position
    return FitSummary(
        run=str(run_dir),
        epochs=position.epoch,
        steps=position.global_step,
        seconds=round(time.perf_counter() - started, 2),
        best_epoch=position.best_epoch,
        best_by=trainer.best_by,
        best_score=None if position.best_score is None else abs(position.best_score),
        stopped_by=stopped_by,
        checkpoints={w: str(p) for w in ("best", "last") if (p := checkpoint_path(run_dir, w)).is_file()},
    )


def resolve(config: Config, shards: ShardSet) -> Config:
    """Fill in what depends on the data, and refuse what does not fit it.

    Raises:
        UserError: HSIC is on and the shard set has one quality, so there is nothing to compare.
    """
    if config.hsic.alpha > 0 and len(shards.qualities) < 2:
        raise UserError(
            f"hsic.alpha: got {config.hsic.alpha}, expected 0 for a shard set with the one quality "
            f"{shards.qualities[0]!r}; use --set hsic.alpha=0"
        )
    if config.data.image_size_px:
        return config
    data = config.data.model_copy(update={"image_size_px": shards.size_px})
    return config.model_copy(update={"data": data})


def open_validation(shards_path: Path, config: Config) -> tuple[ShardSet | None, str]:
    """The validation split if it can rank checkpoints; otherwise None and the reason."""
    name = config.data.val_split
    whole = ShardSet(shards_path)
    if not whole.splits.get(name):
        return None, f"no split {name!r} in the shard set"
    shards = ShardSet(shards_path, name)
    classes = set(shards.table["label"].to_pylist())
    if classes != {0, 1}:
        shards.close()
        return None, f"split {name!r} has only {'fake' if classes == {1} else 'real'} faces, which gives no AUC"
    return shards, ""


def check_same_run(run_dir: Path, config: Config, shards: ShardSet) -> None:
    """Refuse to resume with another configuration or other data.

    Raises:
        UserError: naming the fields (got versus expected), or the two fingerprints.
    """
    saved = load_config(base=read_toml(run_dir / CONFIG_NAME))
    if changed := differences(saved, config):
        raise UserError(f"{run_dir}: cannot resume with another configuration: {'; '.join(changed)}")
    expected = read_run_json(run_dir)["shards"]["fingerprint"]
    if shards.fingerprint != expected:
        raise UserError(
            f"{run_dir}: cannot resume on other data: got a shard set with fingerprint {shards.fingerprint[:12]}, "
            f"expected {expected[:12]} ({shards.path})"
        )


def run_facts(trainer: Trainer, shards: ShardSet) -> dict[str, Any]:
    """The contents of run.json: what config.toml does not say and a reader of the result needs."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "shards": {
            "fingerprint": shards.fingerprint,
            "qualities": list(shards.qualities),
            "size_px": shards.size_px,
            "splits": shards.splits,
        },
        "model": {"name": trainer.config.model.name, "parameters": parameters} | asdict(trainer.weights_report),
        "device": _device_name(trainer.device),
        "precision": "bf16 autocast" if uses_bf16(trainer.config.train.precision, trainer.device) else "fp32",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


@contextmanager
def stop_signals(console: Console) -> Iterator[Callable[[], str]]:
    """A question for the loop: which of SIGINT and SIGTERM has come ("" = none). A second Ctrl-C ends at once."""
    seen: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""  # Python lets only the main thread set handlers
        return

    def remember(number: int, _frame: FrameType | None) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number).name)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen[0] if seen else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _opening_lines(trainer: Trainer, resume: bool, best_by_reason: str) -> Iterator[str]:
    shards, config = trainer.shards, trainer.config
    precision = "bf16 autocast" if uses_bf16(config.train.precision, trainer.device) else "fp32"
    yield (
        f"{config.model.name} at {config.data.image_size_px} px on {_device_name(trainer.device)} ({precision}); "
        f"weights: {'checkpoint' if resume else trainer.weights_report}"
    )
    yield (
        f"{len(shards)} tuples x {'/'.join(shards.qualities)}, {trainer.steps_per_epoch} steps of "
        f"{config.data.batch_tuples} tuples an epoch, {config.optim.epochs} epochs"
    )
    if best_by_reason:
        yield f"best checkpoint by {BY_LOSS}: {best_by_reason}"
    else:
        yield f"best checkpoint by {BY_AUC}"
    if resume:
        yield f"resuming at epoch {trainer.position.epoch + 1}, step {trainer.position.step}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
