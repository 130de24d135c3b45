"""Small training runs and what they leave behind, for the tests of the trainer."""

import io
import json
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from qadprep.shardset import ShardSet
from qadtrain.checkpoint import pairs
from qadtrain.config import Config
from qadtrain.config_io import load_config
from qadtrain.data import TupleDataset, collate, to_network_input
from qadtrain.fit import FitSummary, fit, resolve
from qadtrain.prefetch import DeviceBatch
from qadtrain.trainer import Trainer

# Everything that draws random numbers or changes course is on: dropout, flips, warm-up, AWP, HSIC.
BASE = [
    "optim.epochs=3",
    "optim.head_only_epochs=1",
    "awp.start_epoch=2",
    "awp.loss=ce+hsic",
    "model.drop_rate=0.3",
    "train.log_every_steps=2",
    "train.device=cpu",
    "data.num_workers=0",
    "data.batch_tuples=16",
]
# The network of fit_group_norm.py: nothing in it depends on the other pictures of a batch.
GROUP_NORM = ["model.name=group_norm", 'model.taps=["stage1","stage2"]', "hsic.weights=[0.5,0.5]", "model.drop_rate=0"]
CPU = torch.device("cpu")


def tiny(*overrides: str) -> Config:
    """The preset tiny with :data:`BASE` and more."""
    return load_config("tiny", overrides=[*BASE, *overrides])


class StopAfter:
    """Asks for a stop at the given step boundary."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> str:
        self.left -= 1
        return "SIGTERM" if self.left == 0 else ""


def quiet_fit(shards: Path, run: Path, config: Config, **options) -> FitSummary:
    """fit() without output and without signals."""
    quiet = {"console": Console(file=io.StringIO()), "should_stop": lambda: ""}
    return fit(shards, run, config, **(quiet | options))


def checkpoint(run: Path) -> tuple[dict, dict]:
    """Weights and state of the newest checkpoint; the hash of the weights file is left out, for its header varies."""
    newest = pairs(run)[0]
    state = torch.load(newest.state, weights_only=True)
    del state["weights_sha256"]
    return load_file(newest.weights), state


def records(run: Path, kind: str) -> list[dict]:
    """The lines of metrics.jsonl of a kind, without the time they were written at."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] == kind]


def assert_equal(a, b, where: str = "") -> None:
    """Equal to the bit, with the place of the first difference."""
    assert type(a) is type(b), where
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def make_trainer(shards_dir: Path, run: Path, *overrides: str, tuples: int = 16) -> tuple[Trainer, DeviceBatch]:
    """A trainer that has not begun, and the first tuples of its split as one batch, unflipped."""
    shards = ShardSet(shards_dir, "train")
    config = resolve(tiny(*overrides), shards)
    trainer = Trainer(shards, None, config, run, Console(file=io.StringIO()), device=CPU)
    dataset = TupleDataset(shards, 0, 0.0)
    host = collate([dataset[0, i] for i in range(tuples)])
    images = to_network_input(host.images, None, size_px=32, normalization="half", device=CPU)
    return trainer, DeviceBatch(images, host.labels, host.indices, skipped=0, waited_s=0.0)


def begin(trainer: Trainer, epoch: int) -> None:
    """As if the run had come to the beginning of an epoch."""
    trainer.position.epoch = epoch
    trainer._start_phase()
