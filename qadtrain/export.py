"""``export``: a run's detector as one ONNX file or one torch.export file, checked against the network.

The graph takes what image libraries give: uint8 RGB pictures, (N, S, S, 3). The normalisation is inside, so that it
cannot be forgotten or done twice, and the type excludes pictures in 0..1. The resize is outside and recorded: it
depends on the size of the crop, and runtimes differ in it.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qadprep.errors import UserError
from qadtrain.augment import MEAN_STD
from qadtrain.checkpoint import read_run_json, write_atomically
from qadtrain.config import Config
from qadtrain.evaluate import CHECKPOINTS, load_run
from qadtrain.export_check import reference_samples
from qadtrain.export_facts import (
    EXAMPLE_NAME,
    EXPORTERS,
    FACTS_NAME,
    INPUT,
    ONNX_NAME,
    OUTPUTS,
    TORCH_NAME,
    crop_facts_of,
    network_facts,
    origin_facts,
)
from qadtrain.export_files import BATCH_AXIS, Written, first_line, write_onnx, write_torch
from qadtrain.safe_files import pending, remove, sha256_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMATS = {"onnx": ONNX_NAME, "torch": TORCH_NAME}
OPSET, OPSETS = 18, (18, 23)
_EXAMPLE_BATCH = 2  # 0 and 1 would be built into the graph


class Scorer(nn.Module):
    """The exported graph.

    Args:
        model: a detector in evaluation mode.
        normalization: a key of :data:`qadtrain.augment.MEAN_STD`.
    """

    def __init__(self, model: nn.Module, normalization: str) -> None:
        super().__init__()
        self.model = model
        for name, values in zip(("mean", "std"), MEAN_STD[normalization], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, S, S, 3) RGB -> logits float32 (N, 2), and the fake probability, float32 (N,)."""
        pixels = images.permute(0, 3, 1, 2).float()
        logits = self.model((pixels / 255 - self.mean) / self.std).logits.float()
        return logits, logits.softmax(dim=1)[:, 1]


def export_run(
    run_dir: Path,
    out_dir: Path,
    *,
    formats: Sequence[str] = ("onnx",),
    checkpoint: str = "best",
    opset: int | None = None,
) -> dict[str, Any]:
    """Write ``model.onnx`` and ``example.py``, or ``model.pt2``, and ``export.json`` about them.

    A file is kept only when its scores are those of the network (:func:`qadtrain.export_check.check_runner`). Files of
    these names from an earlier export are replaced.

    Args:
        run_dir: folder written by :func:`qadtrain.fit.fit`.
        out_dir: made where it does not exist.
        formats: of ``onnx`` and ``torch``.
        checkpoint: ``best`` or ``last``.
        opset: version of ONNX's operators, 18 to 23; default 18.

    Returns:
        The contents of export.json. ``files``: name -> format, bytes, sha256, check. ``failed``: format -> the reason,
        where one of several could not be made.

    Raises:
        UserError: a missing package of the extra ``export``, an unknown format, opset or checkpoint, not a run, or a
            network of which no format could be made, or a file as ``out_dir``.
    """
    _check_request(formats, checkpoint, opset)
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"--out {out_dir}: got a file, expected a folder")
    config, model, note = load_run(run_dir, checkpoint)
    facts = network_facts(config) | {
        "input": {"name": INPUT, "dtype": "uint8", "shape": [BATCH_AXIS, *[config.data.image_size_px] * 2, 3]},
        "outputs": {
            OUTPUTS[0]: {"dtype": "float32", "shape": [BATCH_AXIS, 2]},
            OUTPUTS[1]: {"dtype": "float32", "shape": [BATCH_AXIS]},
        },
        "inside_the_graph": ["normalisation", "softmax"],
        "crop": crop_facts_of(read_run_json(run_dir)),
        "run": origin_facts(run_dir, config, checkpoint, note),
    }
    samples = reference_samples(model, config)
    out_dir.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[ExportedProgram, Path], Written]] = {
        "onnx": lambda program, path: write_onnx(program, path, facts, opset or OPSET, samples),
        "torch": lambda program, path: write_torch(program, path, facts, samples),
    }
    files: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with _quiet():
        program = _trace(model, config)
        for name in dict.fromkeys(formats):
            path = out_dir / FORMATS[name]
            try:
                written = makers[name](program, pending(path))
            except BaseException as error:
                remove([pending(path)])
                if not isinstance(error, UserError):
                    raise
                failed[name] = str(error)
                continue
            files[path.name] = {"format": name} | written.facts | {"check": written.check.as_json()}
    if not files:
        raise UserError(f"{config.model.name} was not exported: {'; '.join(f'{k}: {v}' for k, v in failed.items())}")
    remove([out_dir / FACTS_NAME])  # it vouches for the files, which are about to change
    for path in (out_dir / name for name in FORMATS.values()):
        if path.name in files:
            pending(path).replace(path)
            files[path.name] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        else:
            remove([path])
    if ONNX_NAME in files:
        template = resources.files("qadtrain").joinpath("templates", "onnx_example.py")
        write_atomically(out_dir / EXAMPLE_NAME, template.read_bytes())
    else:
        remove([out_dir / EXAMPLE_NAME])
    contents = {"format_version": 1} | facts | {"files": files, "failed": failed}
    write_atomically(out_dir / FACTS_NAME, (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())
    return contents


def export_lines(contents: dict[str, Any], out_dir: Path) -> list[str]:
    """What to print about an export: a line a file with its check, then what failed."""
    lines = []
    for name, file in contents["files"].items():
        check, opset = file["check"], f", opset {file['opset']}" if "opset" in file else ""
        lines.append(
            f"{Path(out_dir) / name}: {file['bytes'] / 1e6:.1f} MB{opset}; differs from the network by at most "
            f"{check['logits']:.1e} (logits) and {check['probability']:.1e} (probability) on {check['pictures']} made "
            f"pictures, allowed {check['tolerance']:.0e}"
        )
    return lines + [f"{name}: not made: {reason}" for name, reason in contents["failed"].items()]


def _check_request(formats: Sequence[str], checkpoint: str, opset: int | None) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"--format: got {', '.join(unknown) or 'none'}, expected {' or '.join(FORMATS)}")
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise UserError(f"--opset: got {opset}, expected {OPSETS[0]} to {OPSETS[1]}")
    if opset is not None and "onnx" not in formats:
        raise UserError(f"--opset: got {opset} without the format onnx, expected both")
    if "onnx" in formats and (missing := [name for name in EXPORTERS if find_spec(name) is None]):
        raise UserError(f"export to ONNX needs {', '.join(missing)}: pip install 'qadprep[export]'")


def _trace(model: nn.Module, config: Config) -> "ExportedProgram":
    """The network as a graph with a free batch size, without the paths of this machine's source files."""
    side = config.data.image_size_px
    example = torch.zeros(_EXAMPLE_BATCH, side, side, 3, dtype=torch.uint8)
    try:
        program = torch.export.export(
            Scorer(model, config.data.normalization).eval(),
            (example,),
            dynamic_shapes=({0: torch.export.Dim(BATCH_AXIS, min=1)},),
        )
    except Exception as error:
        raise UserError(f"model {config.model.name} cannot be exported: torch.export: {first_line(error)}") from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of matters between them and torch, which no user can mend."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
