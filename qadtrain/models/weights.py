"""Pretrained weights from a file: safetensors or a PyTorch file, never unpickled freely."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qadprep.errors import UserError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "_orig_mod.", "backbone.")
SHOWN_KEYS = 4


@dataclass(frozen=True)
class LoadReport:
    """Where a model's first weights came from."""

    origin: str
    sha256: str = ""
    loaded: int = 0  # tensors
    head_skipped: bool = False  # the file's classifier has other classes

    def __str__(self) -> str:
        if not self.sha256:
            return self.origin
        head = "; its classifier was left out (other classes)" if self.head_skipped else ""
        return f"{self.origin}: {self.loaded} tensors (sha256 {self.sha256[:12]}){head}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from ``.safetensors`` or any ``torch.save`` file of tensors.

    Raises:
        UserError: missing, damaged, or holding more than tensors (which would need unpickling).
    """
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"--weights {path}: not readable as plain tensors ({type(error).__name__}); expected a .safetensors "
            "file or a state_dict saved by torch.save"
        ) from error
    while isinstance(state, dict) and (inner := next((k for k in _WRAPPERS if isinstance(state.get(k), dict)), None)):
        state = state[inner]
    if not isinstance(state, dict) or not any(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"--weights {path}: got no tensors by name, expected a state_dict")
    return {_bare(str(name)): value for name, value in state.items() if torch.is_tensor(value)}


def load_pretrained_file(model: nn.Module, file: str | Path) -> LoadReport:
    """Load a file into ``model.backbone``; only the classifier may differ in shape or be missing.

    Raises:
        UserError: naming how many tensors are missing, foreign or of another shape, with the first of each.
    """
    path = Path(file)
    state = read_state_dict(path)
    backbone = model.backbone
    own = backbone.state_dict()
    head = {id(parameter) for parameter in model.head.parameters()}
    head_names = {name for name, parameter in backbone.named_parameters() if id(parameter) in head}
    head_skipped = any(name not in state or state[name].shape != own[name].shape for name in head_names)
    if head_skipped:
        state = {name: value for name, value in state.items() if name not in head_names}
    missing = [n for n in own if n not in state and n not in head_names and not n.endswith("num_batches_tracked")]
    foreign = [n for n in state if n not in own]
    misshapen = [
        f"{n} {tuple(v.shape)} for {tuple(own[n].shape)}"
        for n, v in state.items()
        if n in own and v.shape != own[n].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN_KEYS])}{', ...' if len(names) > SHOWN_KEYS else ''})"
        for names, what in ((missing, "missing"), (foreign, "not in the model"), (misshapen, "of another shape"))
        if names
    ]
    if problems:
        raise UserError(
            f"--weights {path}: does not fit the model: of its {len(own)} tensors " + "; ".join(problems)
            if missing or misshapen
            else f"--weights {path}: holds tensors of another model: " + "; ".join(problems)
        )
    backbone.load_state_dict(state, strict=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoadReport(str(path), digest, len(state), head_skipped)


def _bare(name: str) -> str:
    shortened = True
    while shortened:
        shortened = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, shortened = name[len(prefix) :], True
    return name
