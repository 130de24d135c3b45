"""Weights as safetensors: the same weights and note give the same bytes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

_LENGTH_BYTES = 8


def weights_bytes(weights: nn.Module | Mapping[str, Tensor], note: Mapping[str, Any]) -> bytes:
    """A safetensors file.

    Args:
        weights: a network or its state dictionary, on any device.
        note: strings for the header; other values become theirs.
    """
    return _ordered(save(on_host(weights), metadata={key: str(value) for key, value in note.items()}))


def saved_step(path: Path) -> int | None:
    """``global_step`` of the note, -1 where it has none; None for a file that cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {}).get("global_step", -1))
    except (SafetensorError, OSError):
        return None


def on_host(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the host, one piece of memory each, as safetensors wants them."""
    tensors, seen = {}, set()
    for name, tensor in (weights.state_dict() if isinstance(weights, nn.Module) else weights).items():
        host = tensor.detach().cpu().contiguous()
        memory = host.untyped_storage().data_ptr()
        tensors[name] = host.clone() if memory in seen else host
        seen.add(memory)
    return tensors


def _ordered(data: bytes) -> bytes:
    """The file with its note in the order of the names: safetensors writes it in another order each time."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the tensors begin at a multiple of it, as safetensors has them
    return b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, memoryview(data)[end:]))
