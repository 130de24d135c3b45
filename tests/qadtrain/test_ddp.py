"""One process and several: the same order, the same losses, one way to resume and to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import fit_group_norm
from helpers.training import checkpoint, records

from qadtrain.checkpoint import pairs

SCRIPT = Path(fit_group_norm.__file__)
GROUPS = ["hsic.group_tuples=8"]  # each lies inside one of two processes
pytestmark = pytest.mark.slow


def command(processes: int, *arguments) -> list[str]:
    if processes == 1:
        return [sys.executable, str(SCRIPT), *map(str, arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    return [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]


def trained(processes: int, shards: Path, run: Path, *arguments) -> list[dict]:
    """The notes of a run: each step's order and loss."""
    notes = run.with_suffix(".json")
    done = subprocess.run(
        command(processes, shards, run, "--notes", notes, *arguments), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(notes.read_text())


@pytest.mark.parametrize(
    "options",
    [
        [*GROUPS, "data.sampling=method", "optim.accumulate_steps=1"],
        ["hsic.scope=gathered", "awp.loss=ce+hsic", "optim.head_only_epochs=1", "optim.clip_norm=0.5"],
    ],
    ids=["groups", "gathered"],
)
def test_two_processes_train_as_one(shards_dir, tmp_path, options):
    alone = trained(1, shards_dir, tmp_path / "one", *options)
    both = trained(2, shards_dir, tmp_path / "two", *options)
    assert [note["order"] for note in both] == [note["order"] for note in alone] and len(alone) == 12
    for one, two in zip(alone, both, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5), one["step"]
    for one, two in zip(records(tmp_path / "one", "epoch"), records(tmp_path / "two", "epoch"), strict=True):
        assert two["loss/average"] == pytest.approx(one["loss/average"], abs=1e-5)
        assert two["train_ce"] == pytest.approx(one["train_ce"], abs=1e-5)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == len(
        (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    )


def test_a_run_of_one_process_goes_on_with_two(shards_dir, tmp_path):
    whole = trained(1, shards_dir, tmp_path / "whole", *GROUPS)
    first = trained(1, shards_dir, tmp_path / "run", *GROUPS, "--stop-after", 4)
    rest = trained(2, shards_dir, tmp_path / "run", *GROUPS, "--resume")
    assert [note["order"] for note in first + rest] == [note["order"] for note in whole]
    for got, expected in zip(first + rest, whole, strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], abs=1e-5), expected["step"]
    assert checkpoint(tmp_path / "run")[1]["processes"] == 2
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["events"] == [{"event": "resumed", "step": 4, "processes": 2}]


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(shards_dir, tmp_path):
    run = tmp_path / "run"
    options = [*GROUPS, "optim.epochs=5000", "train.checkpoint_every_steps=5", "--wait-for-signals"]
    process = subprocess.Popen(
        command(2, shards_dir, run, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not pairs(run):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    workers = (run / "pids.txt").read_text().split()
    before = pairs(run)[0].step
    os.kill(int(workers[-1]), signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and out.count("stopped by SIGTERM") == 2, out
    assert pairs(run)[0].step >= before and checkpoint(run)[1]["global_step"] % 8 in (0, 6)
