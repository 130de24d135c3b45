"""Weights files are whole safetensors with the same bytes each time."""

import json
import subprocess
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qadtrain.weights_file import saved_step, weights_bytes

NOTE = {"global_step": 12, "by": 'Fläche, "AUC"', **{f"n{i}": i for i in range(12)}}
MADE = "import sys, torch\nfrom qadtrain.weights_file import weights_bytes\nimport json\n"
MADE += "sys.stdout.buffer.write(weights_bytes({'b': torch.ones(3), 'a': torch.eye(2)}, json.loads(sys.argv[1])))"


def test_equal_weights_and_note_are_equal_bytes_in_every_process(tmp_path):
    here = weights_bytes({"b": torch.ones(3), "a": torch.eye(2)}, NOTE)
    for _ in range(2):
        again = weights_bytes({"b": torch.ones(3), "a": torch.eye(2)}, dict(reversed(NOTE.items())))
        assert again == here
    there = subprocess.run([sys.executable, "-c", MADE, json.dumps(NOTE)], check=True, capture_output=True).stdout
    assert there == here
    path = tmp_path / "w.safetensors"
    path.write_bytes(here)
    loaded = load_file(path)
    assert torch.equal(loaded["a"], torch.eye(2)) and torch.equal(loaded["b"], torch.ones(3)) and len(loaded) == 2
    with safe_open(path, "pt") as file:
        assert file.metadata() == {key: str(value) for key, value in NOTE.items()}
    assert saved_step(path) == 12


def test_tied_and_strided_tensors_and_files_that_are_none(tmp_path):
    layer = torch.nn.Linear(3, 2)
    tied = {"one": layer.weight, "two": layer.weight, "turned": layer.weight.t()}
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_bytes(tied, {}))
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tied.items())
    assert saved_step(path) == -1
    path.write_bytes(b"no weights")
    assert saved_step(path) is None and saved_step(tmp_path / "nothing") is None
