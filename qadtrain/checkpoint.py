"""Checkpoints that are either whole or not there, and the files of a run folder.

    RUN/config.toml  run.json  metrics.jsonl  tensorboard/
    RUN/checkpoints/last.safetensors  last.state.pt  best.safetensors

``last`` is a pair. Both files are written and synced under temporary names before the first of them is renamed,
so a crash between the two renames leaves everything needed to finish the second (:func:`load_last` does).
Weights are safetensors; optimiser, schedule, random state and position are a ``torch.save`` file of plain
values, loaded with ``weights_only=True``.
"""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qadprep.errors import UserError

CONFIG_NAME, RUN_NAME = "config.toml", "run.json"
STATE_VERSION = 1


def checkpoint_path(run_dir: Path, which: str) -> Path:
    """Weights file of ``best`` or ``last``."""
    return Path(run_dir) / "checkpoints" / f"{which}.safetensors"


def has_checkpoints(run_dir: Path) -> bool:
    """Whether there is something to resume from; leftovers of a run killed before its first save are not."""
    return _state_path(run_dir).is_file()


def write_atomically(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename: readers see the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _rename(temporary, path)


def save_best(run_dir: Path, model: nn.Module, note: Mapping[str, Any]) -> None:
    """Write ``best.safetensors`` with a note (epoch, step, metric) in its header."""
    path = checkpoint_path(run_dir, "best")
    path.parent.mkdir(parents=True, exist_ok=True)
    _rename(_write_weights(path, model, note), path)


def save_last(run_dir: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Write the pair a run resumes from.

    Args:
        state: tensors, numbers, strings, lists, tuples and dictionaries only; must hold ``global_step``.
    """
    weights = checkpoint_path(run_dir, "last")
    weights.parent.mkdir(parents=True, exist_ok=True)
    step = int(state["global_step"])
    new_weights = _write_weights(weights, model, {"global_step": step})
    state_file = _state_path(run_dir)
    new_state = state_file.with_name(state_file.name + ".tmp")
    with new_state.open("wb") as file:
        torch.save({"version": STATE_VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    _rename(new_state, state_file)
    _rename(new_weights, weights)


def load_last(run_dir: Path, model: nn.Module) -> dict[str, Any]:
    """Load the weights into ``model`` and return the state saved with them.

    Raises:
        UserError: no checkpoint, a damaged one, or one of another format version.
    """
    state_file, weights = _state_path(run_dir), checkpoint_path(run_dir, "last")
    if not state_file.is_file():
        raise UserError(f"{run_dir}: no checkpoint to resume from; start without --resume")
    try:
        state = torch.load(state_file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{state_file}: damaged checkpoint state ({type(error).__name__}); start a new run") from error
    if state.get("version") != STATE_VERSION:
        raise UserError(f"{state_file}: format {state.get('version')}, expected {STATE_VERSION}; start a new run")
    pending = weights.with_name(weights.name + ".tmp")
    step = int(state["global_step"])
    if _saved_step(weights) != step and _saved_step(pending) == step:
        _rename(pending, weights)  # the process died between the two renames
    if _saved_step(weights) != step:
        raise UserError(f"{weights}: got weights of step {_saved_step(weights)}, expected {step}; start a new run")
    load_weights(weights, model)
    return state


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


def random_state() -> dict[str, Any]:
    """State of every generator in the process, as plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back to a state of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


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


def _state_path(run_dir: Path) -> Path:
    return Path(run_dir) / "checkpoints" / "last.state.pt"


def _write_weights(path: Path, model: nn.Module, note: Mapping[str, Any]) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    tensors: dict[str, Tensor] = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, temporary, metadata={key: str(value) for key, value in note.items()})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    return temporary


def _saved_step(path: Path) -> int | None:
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {}).get("global_step", -1))
    except (SafetensorError, OSError):
        return None


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
