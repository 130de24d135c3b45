"""Run folders as a list, and two or more of them side by side; everything is read from their files."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadtrain.checkpoint import CONFIG_NAME, RUN_NAME, read_run_json
from qadtrain.config import Config
from qadtrain.config_io import load_config, preset_names, read_toml
from qadtrain.tracking import EVENT, METRICS_NAME

RUNNING, FINISHED, STOPPED, FAILED, BROKEN = "running", "finished", "stopped", "failed", "broken"
CHECKS = ("epoch", "validation")  # kinds of records that hold scores of the validation split
_QUIET_S = 300.0  # a run that wrote nothing for so long is dead, unless its steps are known to be slower
_SLOWER = 5.0
_MOST_DEPTH = 3


@dataclass(frozen=True)
class Records:
    """The lines of one metrics.jsonl; a half-written or foreign line is left out and counted."""

    lines: tuple[Mapping[str, Any], ...]
    unreadable: int = 0

    @classmethod
    def read(cls, path: Path) -> "Records":
        """Records of a file; none where there is no file. Raises UserError where it cannot be read."""
        lines, unreadable = [], 0
        try:
            text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        for line in text.splitlines():
            try:
                record = json.loads(line)
                place = {name: int(record[name]) for name in ("epoch", "global_step")}
                lines.append({**record, "kind": str(record["kind"]), **place})
            except (ValueError, TypeError, KeyError, OverflowError):
                unreadable += 1
        return cls(tuple(lines), unreadable)

    def of(self, *kinds: str) -> list[Mapping[str, Any]]:
        """Records of some kinds, in their order."""
        return [record for record in self.lines if record["kind"] in kinds]

    def curve(self, name: str, *kinds: str) -> tuple[list[int], list[float]]:
        """Steps and values of a quantity, where it is a number."""
        found = [(r["global_step"], r[name]) for r in self.of(*kinds) if is_number(r.get(name))]
        return [step for step, _ in found], [float(value) for _, value in found]

    def names(self, *kinds: str) -> list[str]:
        """Names of the quantities, in the order in which they appear."""
        records = self.of(*kinds)
        found = dict.fromkeys(name for record in records for name, value in record.items() if is_number(value))
        return [name for name in found if name not in ("epoch", "global_step", "seconds")]


@dataclass(frozen=True)
class RunInfo:
    """One run folder, judged from its files.

    Attributes:
        path, name: of the folder.
        state: running, finished, stopped, failed, or broken where config.toml or run.json cannot be read.
        fault: why it failed or is broken; also what a killed run looks like.
        model, preset: the preset whose values the configuration has; empty for none.
        fingerprint: of the shard set.
        epochs, epochs_total, steps: done, asked for, optimiser steps done.
        best_by, best, best_epoch: value of ``train.best_metric`` at the best checkpoint, and its epoch from 0.
        last_auc, best_auc: quality -> AUC (0..1) of the last validation and of the best one.
        seconds: of training, over all attempts.
        age_s: since the last record.
        tuples_per_s: mean over the log lines.
    """

    path: Path
    name: str
    state: str
    fault: str = ""
    model: str = ""
    preset: str = ""
    fingerprint: str = ""
    epochs: int = 0
    epochs_total: int = 0
    steps: int = 0
    best_by: str = ""
    best: float | None = None
    best_epoch: int | None = None
    last_auc: dict[str, float] = field(default_factory=dict)
    best_auc: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    age_s: float | None = None
    tuples_per_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    @cached_property
    def config(self) -> Config:
        """Raises UserError for a broken folder."""
        return load_config(base=read_toml(self.path / CONFIG_NAME))

    @cached_property
    def records(self) -> Records:
        return Records.read(self.path / METRICS_NAME)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json."""
        return read_run_json(self.path)


def list_runs(folders: Sequence[Path]) -> list[RunInfo]:
    """Runs in and below some folders, the one that wrote last first; a folder with damaged files is listed as broken.

    Raises:
        UserError: a folder is missing or holds no run.
    """
    found: dict[Path, RunInfo] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected a run folder, or one with run folders in it")
        paths = _runs_below(folder, _MOST_DEPTH)
        if not paths:
            raise UserError(f"{folder}: no run folder in it; `qadtrain fit SHARDS --out RUN` makes one")
        for path in paths:
            found.setdefault(path.resolve(), read_run(path))
    return sorted(found.values(), key=lambda run: (run.age_s is None, run.age_s or 0.0, run.name))


def read_run(path: Path) -> RunInfo:
    """What the files of one run folder say. Damaged files make it ``broken``; nothing is raised for them."""
    name = Path(path).resolve().name
    try:
        return _read(Path(path), name)
    except UserError as fault:
        return RunInfo(Path(path), name, BROKEN, str(fault))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return RunInfo(Path(path), name, BROKEN, f"{path}: files of another program ({type(error).__name__}: {error})")


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, whole or not."""
    return any((folder / name).is_file() for name in (RUN_NAME, METRICS_NAME)) or (
        (folder / CONFIG_NAME).is_file() and (folder / "checkpoints").is_dir()
    )


def scores_of(record: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Quality -> value of one metric in a validation record, without the average."""
    prefix = f"{metric}/"
    found = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    return {name: float(value) for name, value in found.items() if name != "average" and is_number(value)}


def _runs_below(folder: Path, depth: int) -> list[Path]:
    try:
        if is_run(folder):
            return [folder]
        if not depth:
            return []
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError:
        return [folder]  # shown as broken, with the reason
    return [run for path in below for run in _runs_below(path, depth - 1)]


def _read(path: Path, name: str) -> RunInfo:
    facts, config = read_run_json(path), load_config(base=read_toml(path / CONFIG_NAME))
    records = Records.read(path / METRICS_NAME)
    checks = records.of(*CHECKS)
    best = next((record for record in reversed(checks) if record.get("best")), None)
    by = str(facts.get("best_by") or config.train.best_metric)
    if best is not None and not is_number(best.get(by)):
        # Without a validation split the training loss picks; runs of earlier versions wrote plain `auc`.
        by = "auc" if is_number(best.get("auc")) else "train_ce"
    epochs = 1 + max((int(record["epoch"]) for record in records.of("epoch")), default=-1)
    rates = records.curve("tuples_per_s", "train")[1]
    age_s = _age_s(path)
    state, fault = _state(records, config, epochs, age_s)
    last = records.lines[-1] if records.lines else {}
    return RunInfo(
        path=path,
        name=name,
        state=state,
        fault=fault,
        model=config.model.name,
        preset=str(facts.get("preset") or _preset(config)),
        fingerprint=str(facts["shards"]["fingerprint"]),
        epochs=epochs,
        epochs_total=config.optim.epochs,
        steps=max((record["global_step"] for record in records.lines), default=0),
        best_by=by,
        best=None if best is None or not is_number(best.get(by)) else float(best[by]),
        best_epoch=None if best is None else int(best["epoch"]),
        last_auc=scores_of(checks[-1], "auc") if checks else {},
        best_auc=scores_of(best, "auc") if best else {},
        seconds=float(last["seconds"]) if is_number(last.get("seconds")) else None,
        age_s=age_s,
        tuples_per_s=sum(rates) / len(rates) if rates else None,
    )


def _state(records: Records, config: Config, epochs: int, age_s: float | None) -> tuple[str, str]:
    """The state and, where it is not good, why."""
    last = records.lines[-1] if records.lines else {}
    ended = last.get("kind") == EVENT and last.get("event") == "end"
    reason = str(last.get("reason") or "")
    if ended and last.get("state") == FAILED:
        return FAILED, reason
    if epochs >= config.optim.epochs or _stopped_early(records, config):
        return FINISHED, ""
    if ended:  # on purpose, before the last epoch
        return STOPPED, reason
    moments = [record["seconds"] for record in records.lines if is_number(record.get("seconds"))]
    longest_s = max((after - before for before, after in pairwise(moments)), default=0.0)
    if age_s is not None and age_s <= max(_QUIET_S, _SLOWER * longest_s):
        return RUNNING, ""
    return FAILED, "it ended without a word, as by SIGKILL or a power cut"


def _stopped_early(records: Records, config: Config) -> bool:
    most, checks = config.optim.early_stop_checks, records.of(*CHECKS)
    return bool(most) and len(checks) > most and not any(record.get("best") for record in checks[-most:])


def _preset(config: Config) -> str:
    """Name of the preset with the very values of a configuration, or ``""``. What depends on the data may differ."""
    free = {"data.image_size_px", "data.batch_tuples", "data.num_workers", "train.device"}
    flat = {name: value for name, value in config.flat().items() if name not in free}
    for name in preset_names():
        preset = load_config(name).flat()
        if all(preset[key] == value for key, value in flat.items()):
            return name
    return ""


def _age_s(path: Path) -> float | None:
    """Seconds since something was written: records, or configuration where there are none yet."""
    for name in (METRICS_NAME, RUN_NAME):
        if (path / name).is_file():
            return max(0.0, time.time() - (path / name).stat().st_mtime)
    return None


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number; flags are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
