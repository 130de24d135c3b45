"""The two files of an export: each is written, loaded back and checked."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qadprep.errors import UserError
from qadtrain.export_check import Check, Runner, Sample, check_runner
from qadtrain.export_facts import INPUT, OUTPUTS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

BATCH_AXIS = "batch"
FACTS_MEMBER = "export.json"  # of a torch.export file
_MOST_BYTES = 2 * 10**9  # one protobuf file


@dataclass(frozen=True)
class Written:
    """A file under its temporary name."""

    check: Check
    facts: dict[str, Any]


def write_onnx(
    program: "ExportedProgram", path: Path, facts: dict[str, Any], opset: int, samples: Sequence[Sample]
) -> Written:
    """ONNX with the facts in its ``metadata_props``, texts as they are and all else as JSON.

    Raises:
        UserError: what torch.onnx cannot express, weights above 2 GB, or a failed check.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if needed > _MOST_BYTES:
        raise UserError(f"the weights have {needed / 1e9:.1f} GB, expected less than 2: what one ONNX file holds")
    try:
        onnx_program = torch.onnx.export(
            program,
            (),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        graph = onnx_program.model
        _clean(graph, facts)
        onnx_program.save(str(path), external_data=False)
    except Exception as error:
        raise UserError(f"torch.onnx: {first_line(error)}") from error
    if graph.opset_imports.get("") != opset:
        raise UserError(f"torch.onnx gave opset {graph.opset_imports.get('')}, expected {opset}: leave out --opset")
    return Written(check_runner(onnx_runner(path), samples), {"opset": opset, "ir_version": graph.ir_version})


def _clean(graph: Any, facts: dict[str, Any]) -> None:
    """Put the facts into the file, name the batch axis, and drop what the exporter notes about source files."""
    symbol = str(graph.graph.inputs[0].shape[0])
    graphs = [graph.graph, *(function.graph for function in graph.functions.values())]
    values = [*graph.graph.inputs]
    for node in (node for part in graphs for node in part.all_nodes()):
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
        for axis, size in enumerate(value.shape or ()):
            if str(size) == symbol:
                value.shape[axis] = BATCH_AXIS
    graph.graph.metadata_props.clear()
    graph.metadata_props.clear()
    graph.metadata_props.update(
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    )


def onnx_runner(path: Path) -> Runner:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime does not load the file: {first_line(error)}") from error

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return tuple(session.run(list(OUTPUTS), {INPUT: images}))
        except Exception as error:
            raise UserError(f"ONNX Runtime: {first_line(error)}") from error

    return run


def write_torch(program: "ExportedProgram", path: Path, facts: dict[str, Any], samples: Sequence[Sample]) -> Written:
    """A torch.export file with the facts as its extra file ``export.json``.

    Raises:
        UserError: what torch.export cannot save or load, or a failed check.
    """
    try:
        buffer = io.BytesIO()  # under a temporary name torch would warn of the ending
        torch.export.save(program, buffer, extra_files={FACTS_MEMBER: json.dumps(facts)})
        path.write_bytes(buffer.getbuffer())
        run = torch_runner(path)
    except Exception as error:
        raise UserError(f"torch.export: {first_line(error)}") from error
    return Written(check_runner(run, samples), {})


def torch_runner(path: Path) -> Runner:
    """A saved torch.export file, loaded back."""
    with path.open("rb") as file:
        module = torch.export.load(io.BytesIO(file.read())).module()

    @torch.inference_mode()
    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, fake = module(torch.from_numpy(images))
        return logits.numpy(), fake.numpy()

    return run


def first_line(error: BaseException) -> str:
    """Kind and first line of an error of torch or ONNX, whose messages run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
