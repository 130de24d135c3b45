"""``fit``: check the request, prepare or reopen the run folder, train, and answer Ctrl-C and SIGTERM."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.autobatch import choose_batch
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
from qadtrain.device import device_name, precision_name
from qadtrain.distributed import Ranks, open_ranks
from qadtrain.facts import code_facts, config_hash, data_facts
from qadtrain.guard import on_main
from qadtrain.hsic import MIN_TUPLES
from qadtrain.signals import stop_signals
from qadtrain.step import direction_tuples
from qadtrain.tracking import check_wandb
from qadtrain.trainer import Trainer
from qadtrain.validation import NEEDS_BOTH_CLASSES, best_by


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
    stopped_early: bool  # by optim.early_stop_checks
    batch_tuples: int
    skipped_steps: int
    skipped_tuples: int
    skipped_val_tuples: int
    checkpoints: dict[str, str]


def fit(
    shards_path: Path,
    run_dir: Path,
    config: Config,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], str] | None = None,
) -> FitSummary:
    """Train a detector on a shard set. Under ``torchrun`` every process calls it, and one of them writes and prints.

    Args:
        shards_path: folder with ``shards.json``.
        run_dir: where config.toml, run.json, metrics.jsonl, tensorboard/ and checkpoints/ go.
        config: as from :func:`qadtrain.config_io.load_config`.
        resume: go on from the folder's last checkpoint; the configuration and the data must be the same. The number
            of processes may differ. A run that ended before its first checkpoint begins anew.
        allow_changes: with ``resume``, go on with another configuration or other data, and record it.
        console: human output; default stderr.
        should_stop: asked at every step boundary; a non-empty answer saves and ends the run. Default: the name
            of a SIGINT or SIGTERM that came.

    Raises:
        UserError: a folder with checkpoints and no ``resume``, a resume with another configuration or other
            data, a split that is too small, weights that cannot be had, a loss that is not finite, a full disk.
    """
    console, run_dir = console or Console(stderr=True), Path(run_dir)
    if has_checkpoints(run_dir) and not resume:
        raise UserError(f"{run_dir}: already has checkpoints; continue it with --resume, or choose another --out")
    anew = resume and not has_checkpoints(run_dir)
    if anew and not (run_dir / CONFIG_NAME).is_file():
        raise UserError(f"{run_dir}: no checkpoint to resume from; start without --resume")
    check_wandb(config.train.wandb)  # in every process: in the main one alone it would leave the others waiting
    started = time.perf_counter()
    with ExitStack() as stack:
        ranks, device = stack.enter_context(open_ranks(config.train.device))
        if not ranks.is_main:
            console = Console(quiet=True)
        shards = stack.enter_context(open_split(shards_path, config.data.train_split, config.data.qualities))
        saved = load_config(base=read_toml(run_dir / CONFIG_NAME)) if resume else None
        config = resolve(config, shards, ranks, saved)
        changes = check_same_run(run_dir, saved, config, shards, allow_changes, device) if saved else []
        val_shards, best_by_reason = open_validation(shards_path, config)
        if val_shards is not None:
            stack.enter_context(val_shards)
        if should_stop is None:
            should_stop = stack.enter_context(stop_signals())
        if config.data.batch_tuples == 0:
            config = with_batch(config, choose_batch(config, shards, ranks, device, console))
        goes_on = resume and not anew
        trainer = Trainer(
            shards, val_shards, config, run_dir, console, device=device, ranks=ranks, load_weights=not goes_on
        )
        if goes_on:
            trainer.load(changed=bool(changes))
        on_main(ranks, lambda: _write_folder(trainer, resume, changes))
        if anew:
            trainer.say(f"{run_dir}: no checkpoint yet, the run begins anew")
        for line in _opening_lines(trainer, goes_on, changes, best_by_reason):
            trainer.say(line)
        stopped_by = trainer.run(should_stop)
        if trainer.stopped_early:
            trainer.say(f"ended early: {config.optim.early_stop_checks} validations without a better one")
    position = trainer.position
    return FitSummary(
        run=str(run_dir),
        epochs=position.epoch,
        steps=position.global_step,
        seconds=round(time.perf_counter() - started, 2),
        best_epoch=position.best_epoch,
        best_by=trainer.best_by.text,
        best_score=position.best_score,
        stopped_by=stopped_by,
        stopped_early=trainer.stopped_early,
        batch_tuples=config.data.batch_tuples,
        skipped_steps=position.skipped_steps,
        skipped_tuples=len(trainer.batches.skipped),
        skipped_val_tuples=len(trainer.val_skipped),
        checkpoints={w: str(p) for w in ("best", "last") if (p := checkpoint_path(run_dir, w)).is_file()},
    )


def resolve(config: Config, shards: ShardSet, ranks: Ranks | None = None, saved: Config | None = None) -> Config:
    """Fill in what depends on the data, and refuse what does not fit it or the number of processes.

    Args:
        saved: configuration of the run that is resumed; its batch stands for an automatic one.

    Raises:
        UserError: HSIC with one quality or with too few tuples to compare, in the loss or in AWP's direction, a
            batch that the processes and their parts cannot share, an unknown ``train.best_metric``.
    """
    world, data = (ranks or Ranks()).world, config.data
    qualities = shards.qualities
    if config.hsic.alpha > 0 and len(qualities) < 2:
        raise UserError(
            f"hsic.alpha: got {config.hsic.alpha}, expected 0 for the one quality {qualities[0]!r}; "
            "use --set hsic.alpha=0"
        )
    best_by(config.train.best_metric, qualities)
    update: dict[str, Any] = {}
    if not data.image_size_px:
        update["image_size_px"] = shards.size_px
    if not data.batch_tuples and saved is not None:
        update["batch_tuples"] = saved.data.batch_tuples
    batch = update.get("batch_tuples", data.batch_tuples)
    pair = 2 if data.self_blended else 1  # a real tuple and its fake stay in one part
    shares = world * config.optim.accumulate_steps * pair
    if batch % shares:
        raise UserError(
            f"data.batch_tuples: got {batch}, expected a multiple of {shares} = {world} processes x "
            f"optim.accumulate_steps = {config.optim.accumulate_steps}"
            f"{' x 2 tuples of each request of data.self_blended' if pair > 1 else ''}"
        )
    together = batch // config.optim.accumulate_steps // (1 if config.hsic.scope == "gathered" else world)
    if config.hsic.alpha > 0 and batch and together < MIN_TUPLES:
        raise UserError(
            f"data.batch_tuples: got {batch}, expected at least {MIN_TUPLES * batch // together}: HSIC is estimated "
            f"over {together} tuples at a time and needs {MIN_TUPLES} (or turn it off with hsic.alpha=0)"
        )
    if config.hsic.group_tuples and together % config.hsic.group_tuples:
        raise UserError(
            f"hsic.group_tuples: got {config.hsic.group_tuples}, expected a divisor of {together}, the tuples that HSIC"
            f" sees at a time (data.batch_tuples = {batch}, {world} processes, {config.optim.accumulate_steps} parts)"
        )
    part, seen = batch // (world * config.optim.accumulate_steps), 0
    if batch and config.hsic.alpha > 0 and config.awp.gamma > 0 and config.awp.loss == "ce+hsic":
        chosen = direction_tuples(config, part)
        seen = chosen * together // part
        if seen < MIN_TUPLES:
            raise UserError(
                f"awp.batch_fraction: got {config.awp.batch_fraction}, which leaves {seen} tuples for the direction, "
                f"expected at least {MIN_TUPLES} for HSIC; raise it or data.batch_tuples, or use awp.loss=ce"
            )
    return config.model_copy(update={"data": data.model_copy(update=update)})


def with_batch(config: Config, batch_tuples: int) -> Config:
    """The configuration with another batch, all checks made anew."""
    values = config.model_dump()
    values["data"]["batch_tuples"] = batch_tuples
    return Config.model_validate(values)


def open_validation(shards_path: Path, config: Config) -> tuple[ShardSet | None, str]:
    """The validation split if it can rank checkpoints; otherwise None and the reason."""
    name, metric = config.data.val_split, config.train.best_metric.partition("/")[0]
    if not ShardSet(shards_path).splits.get(name):
        return None, f"no split {name!r} in the shard set"
    shards = open_split(shards_path, name, config.data.qualities)
    classes = set(shards.table["label"].to_numpy().tolist())
    if classes != {0, 1} and metric in NEEDS_BOTH_CLASSES:
        shards.close()
        return None, f"split {name!r} has only {'fake' if classes == {1} else 'real'} faces, which gives no {metric}"
    return shards, ""


def check_same_run(
    run_dir: Path, saved: Config, config: Config, shards: ShardSet, allow_changes: bool, device: torch.device
) -> list[str]:
    """What differs from the run that is resumed, as far as it changes the weights.

    Raises:
        UserError: something does and ``allow_changes`` is off, naming the fields (got versus expected), or the two
            fingerprints.
    """
    changed, facts = differences(saved, config), read_run_json(run_dir)
    now = precision_name(config.train.precision, device)
    before = facts.get("precision", now)
    if now != before and config.train.precision == saved.train.precision:
        changed.append(f"train.precision: got {config.train.precision} = {now} on {device.type}, expected {before}")
    hint = "; go on all the same with --allow-changes"
    if changed and not allow_changes:
        raise UserError(f"{run_dir}: cannot resume with another configuration: {'; '.join(changed)}{hint}")
    expected = facts["shards"]["fingerprint"]
    if shards.fingerprint != expected:
        other = f"got a shard set with fingerprint {shards.fingerprint[:12]}, expected {expected[:12]}"
        if not allow_changes:
            raise UserError(f"{run_dir}: cannot resume on other data: {other} ({shards.path}){hint}")
        changed.append(f"data: {other}")
    return changed


def _write_folder(trainer: Trainer, resume: bool, changes: list[str]) -> None:
    """config.toml and run.json; on resume too, for what may differ is then what the folder says."""
    run_dir, position = trainer.run_dir, trainer.position
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = run_facts(trainer)
    if resume:
        before = read_run_json(run_dir)
        event = {"event": "resumed", "step": position.global_step, "processes": trainer.ranks.world}
        event |= {"changes": changes} if changes else {}
        if changes:
            trainer.events.append(("changed", {"changes": changes}))
        # The weights came from where the first start says; code and data are those of the newest one.
        facts = before | facts | {"model": before.get("model", facts["model"])}
        facts["events"] = [*before.get("events", []), event]
    write_run_json(run_dir, facts)
    write_atomically(run_dir / CONFIG_NAME, to_toml(trainer.config).encode())


def run_facts(trainer: Trainer) -> dict[str, Any]:
    """The contents of run.json: what config.toml does not say and a reader of the result needs."""
    config = trainer.config
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "shards": data_facts(trainer.shards),
        "model": {"name": config.model.name, "parameters": parameters} | asdict(trainer.weights_report),
        "device": device_name(trainer.device),
        "processes": trainer.ranks.world,
        "precision": precision_name(config.train.precision, trainer.device),
        "config_hash": config_hash(config),
        "best_by": trainer.best_by.name,
    } | code_facts()


def _opening_lines(trainer: Trainer, resume: bool, changes: list[str], best_by_reason: str) -> Iterator[str]:
    shards, config, ranks = trainer.shards, trainer.config, trainer.ranks
    several = f"{ranks.world} x " if ranks.world > 1 else ""
    yield (
        f"{config.model.name} at {config.data.image_size_px} px on {several}{device_name(trainer.device)} "
        f"({precision_name(config.train.precision, trainer.device)}); "
        f"weights: {'checkpoint' if resume else trainer.weights_report}"
    )
    yield (
        f"{len(shards)} tuples x {'/'.join(shards.qualities)}, {trainer.steps_per_epoch} steps of "
        f"{config.data.batch_tuples} tuples an epoch, {config.optim.epochs} epochs"
    )
    yield f"best checkpoint by {trainer.best_by.text}{f': {best_by_reason}' if best_by_reason else ''}"
    if resume:
        yield f"resuming at epoch {trainer.position.epoch + 1}, step {trainer.position.step}"
    if changes:
        yield f"changed since the start: {'; '.join(changes)}"
