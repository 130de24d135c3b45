"""Pretrained weights from a file: safetensors or a PyTorch file, never unpickled freely."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qadprep.errors import UserError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "params")
# Left by DataParallel, torch.compile and the modules that published detectors keep their network in.
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.", "net.", "network.")
# Names of a last layer in published checkpoints; "last_linear.1" is the layer after a dropout.
_HEAD = re.compile(r"^(?:last_linear|fc|_fc|classifier|head|head\.fc|logits)(?:\.1)?\.(weight|bias)$")
SHOWN_KEYS = 4


@dataclass(frozen=True)
class LoadReport:
    """Where a model's first weights came from, and which of its tensors they filled."""

    origin: str
    sha256: str = ""
    loaded: int = 0  # tensors
    head_skipped: bool = False  # the file's classifier is absent or has other classes
    fresh: tuple[str, ...] = ()  # tensors that start at random, because only the trunk was given

    def __str__(self) -> str:
        if not self.loaded:
            return self.origin
        digest = f" (sha256 {self.sha256[:12]})" if self.sha256 else ""
        head = "; its classifier was left out (other classes)" if self.head_skipped else ""
        fresh = f"; trunk only, {_listed(self.fresh, 'start at random')}" if self.fresh else ""
        return f"{self.origin}: {self.loaded} tensors{digest}{head}{fresh}"


@dataclass(frozen=True)
class KeyMatch:
    """How the tensors of a file meet those of a model."""

    fitting: dict[str, Tensor]  # the model's name -> tensor of the right shape
    missing: list[str]  # of the model, not in the file; the classifier and the norms' counters apart
    foreign: list[str]  # of the file, not in the model
    misshapen: list[str]  # "name (2, 3) for (4, 3)": the file's shape for the model's
    ambiguous: list[str]  # of the model, given more than once by the file
    head_skipped: bool

    def __bool__(self) -> bool:
        """Whether everything but the classifier fits."""
        return not (self.missing or self.foreign or self.misshapen or self.ambiguous)

    def __str__(self) -> str:
        kinds = (
            (self.missing, "missing"),
            (self.foreign, "not in the model"),
            (self.misshapen, "of another shape"),
            (self.ambiguous, "given twice"),
        )
        return "; ".join([f"{len(self.fitting)} fit", *(_listed(names, what) for names, what in kinds if names)])


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from ``.safetensors`` or any ``torch.save`` file of tensors, with the names of the file.

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
    return {str(name): value for name, value in state.items() if torch.is_tensor(value)}


def match_keys(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head_names: Iterable[str] = ()) -> KeyMatch:
    """Meet a file's names and a model's.

    A name is taken as it is where the model has it; else its known prefixes fall one by one until the model has it.
    Tensors of a last layer under a usual name are the classifier's, left out when their shape differs. Weights of 1x1
    convolutions that were saved without their two last dimensions get them back.
    """
    head_of = {name.rsplit(".", 1)[-1]: name for name in head_names}
    named: dict[str, Tensor] = {}
    ambiguous = []
    for raw, value in state.items():
        name = _own_name(raw, own)
        if name not in own and (found := _HEAD.match(name)) and found[1] in head_of:
            name = head_of[found[1]]
        if name in named:
            ambiguous.append(name)
        wanted = own.get(name)
        if wanted is not None and value.ndim == 2 and wanted.shape == (*value.shape, 1, 1):
            value = value[:, :, None, None]
        named[name] = value
    head = set(head_of.values())
    head_skipped = any(name not in named or named[name].shape != own[name].shape for name in head)
    if head_skipped:
        named = {name: value for name, value in named.items() if name not in head}
    return KeyMatch(
        fitting={n: v for n, v in named.items() if n in own and v.shape == own[n].shape},
        missing=[n for n in own if n not in named and n not in head and not n.endswith("num_batches_tracked")],
        foreign=[n for n in named if n not in own],
        misshapen=[
            f"{n} {tuple(v.shape)} for {tuple(own[n].shape)}"
            for n, v in named.items()
            if n in own and v.shape != own[n].shape
        ],
        ambiguous=ambiguous,
        head_skipped=head_skipped,
    )


def load_pretrained_file(model: nn.Module, file: str | Path, trunk: nn.Module | None = None) -> LoadReport:
    """Load a file into ``model.backbone``; only the classifier may differ in shape or be missing.

    Args:
        model: a ``TappedModel``.
        file: weights of this model, or of ``trunk``.
        trunk: the ImageNet network the model is built on, when it has ``trunk_state``; may be on the meta device.

    Raises:
        UserError: naming how many tensors fit, are missing, foreign or of another shape, with the first of each.
            Nothing is loaded then.
    """
    path = Path(file)
    state = read_state_dict(path)
    backbone = model.backbone
    own = backbone.state_dict()
    head = {id(parameter) for parameter in model.head.parameters()}
    match = match_keys(state, own, [name for name, p in backbone.named_parameters() if id(p) in head])
    if match:
        backbone.load_state_dict(match.fitting, strict=False)
        return LoadReport(str(path), _sha256(path), len(match.fitting), match.head_skipped)
    if trunk is not None:
        classifier = trunk.get_classifier()
        names = [name for name, module in trunk.named_modules() if module is classifier]
        inner = match_keys(
            state, trunk.state_dict(), [f"{name}.{part}" for name in names for part in ("weight", "bias")]
        )
        if inner:
            return load_trunk(model, inner.fitting, str(path), _sha256(path), names)
    whole = "does not fit the model" if match.missing or match.misshapen else "holds tensors of another model"
    raise UserError(f"--weights {path}: {whole}: of its {len(own)} tensors {match}")


def load_trunk(
    model: nn.Module, state: Mapping[str, Tensor], origin: str, sha256: str = "", classifier: Iterable[str] = ()
) -> LoadReport:
    """Fill the parts of ``model.backbone`` that come from its ImageNet network; the report names what stays random.

    Args:
        model: a ``TappedModel`` whose backbone has ``trunk_state``.
        state: the weights of that network, by its own names.
        origin, sha256: for the report.
        classifier: names of that network's last layer, which is not used.
    """
    given = {n: v for n, v in state.items() if n.rsplit(".", 1)[0] not in set(classifier)}
    filled = model.backbone.trunk_state(given)
    own = model.backbone.state_dict()
    if wrong := [n for n, v in filled.items() if n not in own or own[n].shape != v.shape]:
        raise UserError(f"{origin}: does not fit the trunk of the model: {_listed(wrong, 'of another shape or name')}")
    model.backbone.load_state_dict(filled, strict=False)
    fresh = tuple(n for n in own if n not in filled and not n.endswith("num_batches_tracked"))
    return LoadReport(origin, sha256, len(filled), fresh=fresh)


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    while name not in own and (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)):
        name = name[len(prefix) :]
    return name


def _listed(names: Iterable[str], what: str) -> str:
    names = list(names)
    return f"{len(names)} {what} ({', '.join(names[:SHOWN_KEYS])}{', ...' if len(names) > SHOWN_KEYS else ''})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
