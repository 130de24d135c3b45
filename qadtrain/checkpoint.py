"""Checkpoints that are either whole or not there, and the files of a run folder.

    RUN/config.toml  run.json  metrics.jsonl  tensorboard/
    RUN/checkpoints/step-00000120.safetensors  step-00000120.state.pt  best.safetensors

A checkpoint is a pair. Both files are written and synced under temporary names; the rename of the state is the
moment from which the new pair counts. Should the process die before the weights have their name too,
:func:`load_last` gives it to them. Older pairs are deleted after that. The state holds the SHA-256 of its weights: what
does not belong together, or is damaged, is seen, and the newest whole pair is taken.

``last`` is the newest whole pair. Weights are safetensors; optimiser, schedule, moving average, gradient scaler
and position are a ``torch.save`` file of plain values, loaded with ``weights_only=True``. Folders of
earlier versions have one pair, ``last.safetensors`` and ``last.state.pt``; it is still read.
"""

import hashlib
import io
import json
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from qadprep.errors import UserError
from qadtrain.config_io import load_config, read_toml
from qadtrain.facts import config_hash
from qadtrain.safe_files import explained, pending, remove, sha256_of, sync_folder, write_atomically, write_synced
from qadtrain.weights_file import on_host, saved_step, weights_bytes

__all__ = [
    "CONFIG_NAME",
    "PUSHED_NAME",
    "RUN_NAME",
    "Pair",
    "checkpoint_path",
    "has_checkpoints",
    "load_last",
    "load_weights",
    "pairs",
    "read_run_json",
    "save_best",
    "save_last",
    "write_atomically",
    "write_run_json",
]

CONFIG_NAME, RUN_NAME = "config.toml", "run.json"
PUSHED_NAME = "model.safetensors"  # the one weights file of a folder of `qadtrain push`
STATE_VERSION = 2  # 1: one pair named `last`, without the hash of the weights
_WEIGHTS, _STATE = ".safetensors", ".state.pt"
_PLAIN = (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype)


@dataclass(frozen=True)
class Pair:
    """The two files of a checkpoint. ``step`` is -1 for the pair ``last`` of earlier versions."""

    step: int
    weights: Path
    state: Path


class _Damaged(UserError):
    """This pair cannot be used; an older one may."""


def pairs(run_dir: Path) -> list[Pair]:
    """Checkpoints of a run, newest first. The state is there; nothing else is checked."""
    folder = _folder(run_dir)
    names = (re.fullmatch(r"step-(\d+)\.state\.pt", path.name) for path in folder.glob(f"*{_STATE}"))
    found = sorted((_pair(folder, int(name[1])) for name in names if name), key=lambda pair: -pair.step)
    old = Pair(-1, folder / f"last{_WEIGHTS}", folder / f"last{_STATE}")
    return [*found, old] if old.state.is_file() else found


def checkpoint_path(run_dir: Path, which: str) -> Path:
    """Weights file of ``best`` or ``last``, or of a folder of `qadtrain push` as ``best``.

    Without a checkpoint, a path at which there is no file.
    """
    pushed = Path(run_dir) / PUSHED_NAME
    if which == "best" and pushed.is_file() and not _folder(run_dir).exists():
        return pushed
    if which == "last":
        for pair in pairs(run_dir):
            if pair.weights.is_file():
                return pair.weights
    return _folder(run_dir) / f"{which}{_WEIGHTS}"


def has_checkpoints(run_dir: Path) -> bool:
    """Whether there is something to resume from; leftovers of a run killed before its first save are not."""
    return bool(pairs(run_dir))


def save_best(run_dir: Path, model: nn.Module | Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write ``best.safetensors`` with a note (epoch, step, metric) in its header.

    Args:
        model: the bare network, or a state dictionary such as that of the moving average.

    Raises:
        UserError: the disk is full; the best one before stands.
    """
    path = _folder(run_dir) / f"best{_WEIGHTS}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, weights_bytes(model, note))


def save_last(
    run_dir: Path,
    model: nn.Module | Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 1,
    ema: nn.Module | Mapping[str, Tensor] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write the pair a run resumes from, then delete the older ones but the ``keep`` newest.

    Args:
        model: the bare network, without a wrapper that changes the names of its parameters.
        state: tensors, numbers, strings, lists, tuples and dictionaries only; must hold ``global_step``.
        keep: pairs in the folder afterwards, at most.
        ema: moving average of the weights; ``state["ema"]`` after loading.
        note: more for the header of the weights, beside ``global_step``, the position's ``epoch`` and ``best_score``,
            and ``config``, the hash of the folder's config.toml (:func:`qadtrain.facts.config_hash`).

    Raises:
        UserError: the disk is full; the checkpoint before stands.
        TypeError: the state holds what ``weights_only=True`` would refuse.
    """
    step, folder = int(state["global_step"]), _folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"version": STATE_VERSION, **state}
    if ema is not None:
        contents["ema"] = on_host(ema)
    _check_plain(contents, "state")
    weights_data = weights_bytes(model, {"global_step": step, **_position_note(run_dir, state), **(note or {})})
    contents["weights_sha256"] = hashlib.sha256(weights_data).hexdigest()
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    before = pairs(run_dir)
    pair = _pair(folder, step)
    new_weights, new_state = pending(pair.weights), pending(pair.state)
    counts = False
    try:
        write_synced(new_weights, weights_data)
        write_synced(new_state, buffer.getbuffer())
        counts = True
        new_state.replace(pair.state)
    except BaseException as error:
        if not counts or new_state.exists():  # else an interrupt came after the rename: the weights are needed
            remove([new_weights, new_state])
        kept = f"the checkpoint {before[0].weights.stem}" if before else ""
        raise explained(error, pair.weights, len(weights_data) + buffer.tell(), kept) from error
    # Each rename is on the disk before the next one: in any other order a power cut could part an overwritten pair.
    sync_folder(folder)
    new_weights.replace(pair.weights)
    sync_folder(folder)
    _delete_old(folder, step, keep)


def load_last(run_dir: Path, model: nn.Module, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Load the weights of the newest whole pair into ``model`` and return the state saved with them.

    Args:
        say: takes a line when a damaged pair is passed over; by default it goes to stderr.

    Raises:
        UserError: no checkpoint, no whole one, or one of another format version or another model.
    """
    faults: list[str] = []
    for pair in pairs(run_dir):
        try:
            state = _open(pair)
        except _Damaged as fault:
            faults.append(str(fault))
            continue
        load_weights(pair.weights, model)
        if faults:
            line = f"{faults[0]}; going on from the checkpoint of step {state['global_step']} instead"
            (say or (lambda text: print(text, file=sys.stderr)))(line)
        return state
    if faults:
        raise UserError(f"{faults[0]}; start a new run")
    raise UserError(f"{run_dir}: no checkpoint to resume from; start without --resume")


def load_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Load a weights file of a run, exactly; returns the note in its header.

    Raises:
        UserError: missing, damaged, or of another model.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; `qadtrain fit` writes it at the end of the first epoch")
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            note = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged weights file ({error})") from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: weights of another model than config.toml describes ({first})") from error
    return note


def write_run_json(run_dir: Path, facts: Mapping[str, Any]) -> None:
    write_atomically(Path(run_dir) / RUN_NAME, (json.dumps(facts, indent=2) + "\n").encode())


def read_run_json(run_dir: Path) -> dict[str, Any]:
    """Facts saved when the run began (qualities, shard fingerprint, versions). Raises UserError if absent."""
    path = Path(run_dir) / RUN_NAME
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise UserError(f"{path}: not a run folder of `qadtrain fit` ({reason})") from None


def _folder(run_dir: Path) -> Path:
    return Path(run_dir) / "checkpoints"


def _pair(folder: Path, step: int) -> Pair:
    return Pair(step, folder / f"step-{step:08d}{_WEIGHTS}", folder / f"step-{step:08d}{_STATE}")


def _open(pair: Pair) -> dict[str, Any]:
    """The state of a pair whose weights are whole and belong to it."""
    try:
        with zipfile.ZipFile(pair.state) as file:
            damaged = file.testzip()  # torch.load does not compare the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        state = torch.load(pair.state, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _Damaged(f"{pair.state}: damaged checkpoint state ({type(error).__name__})") from error
    version = state.get("version")
    if version not in (1, STATE_VERSION):
        raise UserError(f"{pair.state}: format {version}, expected {STATE_VERSION}; start a new run")
    mark = saved_step if version == 1 else sha256_of
    expected = int(state["global_step"]) if version == 1 else state["weights_sha256"]
    if mark(pair.weights) == expected:
        return state
    if mark(pending(pair.weights)) == expected:  # the process died between the two renames
        pending(pair.weights).replace(pair.weights)
        sync_folder(pair.weights.parent)
        return state
    if version == 1:
        got = saved_step(pair.weights)
        raise _Damaged(f"{pair.weights}: got weights of step {got}, expected {expected}")
    raise _Damaged(f"{pair.weights}: {'damaged weights' if pair.weights.is_file() else 'weights are missing'}")


def _delete_old(folder: Path, step: int, keep: int) -> None:
    """Keep ``step`` and the newest before it. What is after it was passed over as damaged when the run resumed."""
    found = pairs(folder.parent)
    kept = [pair for pair in found if pair.step <= step][: max(1, keep)]
    names = {path.name for pair in kept for path in (pair.weights, pair.state)}
    # A state before its weights: half a deletion leaves weights alone, which are no checkpoint.
    remove(pair.state for pair in found if pair not in kept)
    files = [*folder.glob("step-*"), *folder.glob("last.*")]
    remove(file for file in files if file.name not in names)


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    else:
        raise TypeError(f"{where}: {type(value).__name__} cannot be in a checkpoint, which holds plain values only")


def _position_note(run_dir: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    position = state.get("position", {})
    note = {name: position[name] for name in ("epoch", "best_score") if position.get(name) is not None}
    file = Path(run_dir) / CONFIG_NAME
    if file.is_file():
        note["config"] = config_hash(load_config(base=read_toml(file)))
    return note
