"""metrics.jsonl, the meter, and the other sinks."""

import io
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qadprep.errors import UserError
from qadtrain import tracking
from qadtrain.config_io import load_config

QUIET = Console(file=io.StringIO())


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_records_are_lines_and_a_restart_drops_what_came_after(tmp_path):
    with tracking.Tracker(tmp_path, QUIET) as tracker:
        for step in (5, 10, 15):
            tracker.record("train", 0, step, {"loss": 1.0 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '[1]\n{"kind": "tra')  # killed while writing
    first = [json.loads(line) for line in path.read_text().splitlines()[:2]]
    with tracking.Tracker(tmp_path, QUIET, global_step=10) as tracker:
        tracker.record("train", 0, 12, {"loss": 0.5})
    lines = records(tmp_path)
    assert lines[:2] == first
    assert [(line["kind"], line["global_step"], line.get("event")) for line in lines] == [
        ("train", 5, None),
        ("train", 10, None),
        ("event", 10, "resume"),
        ("train", 12, None),
        ("event", 12, "end"),
    ]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)  # the time of the first attempt counts
    assert {**lines[0], "seconds": 0} == {"kind": "train", "epoch": 0, "global_step": 5, "seconds": 0, "loss": 0.2}


def test_numbers_go_to_tensorboard_and_what_is_not_finite_is_null(tmp_path):
    with tracking.Tracker(tmp_path, QUIET) as tracker:
        tracker.record("train", 0, 5, {"loss": 0.25, "cka/layer1": float("nan"), "note": "text"})
        tracker.event("skip", 0, 5, tuple="a/b/c")
    train, skip, _ = records(tmp_path)
    assert train["cka/layer1"] is None and train["note"] == "text" and train["loss"] == 0.25
    assert skip["event"] == "skip" and skip["tuple"] == "a/b/c" and skip["kind"] == "event"
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["train/loss"]
    ((step, value),) = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert (step, value) == (5, 0.25)


@pytest.mark.parametrize(
    ("error", "stopping", "state", "reason"),
    [
        (None, "", "finished", ""),
        (None, "SIGTERM", "stopped", "SIGTERM"),
        (UserError("the loss\nis nan"), "", "failed", "UserError: the loss is nan"),
        (KeyboardInterrupt(), "", "stopped", "KeyboardInterrupt:"),
    ],
    ids=["finished", "signal", "error", "ctrl-c"],
)
def test_the_end_of_a_run_is_its_last_record(tmp_path, error, stopping, state, reason):
    def run() -> None:
        with tracking.Tracker(tmp_path, QUIET) as tracker:
            tracker.record("train", 1, 7, {"loss": 1.0})
            if stopping:
                tracker.stopping(stopping)
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    end = records(tmp_path)[-1]
    assert (end["event"], end["state"], end["reason"].strip()) == ("end", state, reason)
    assert (end["epoch"], end["global_step"]) == (1, 7)


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    with tracking.Tracker(tmp_path, QUIET, wandb="offline", enabled=False) as tracker:
        tracker.record("train", 0, 1, {"loss": 1.0})
        tracker.event("skip", 0, 1)
        tracker.say("not said")
    assert list(tmp_path.iterdir()) == [] and QUIET.file.getvalue() == ""


def test_a_full_disk_under_the_records_is_one_error_of_the_run(tmp_path):
    with pytest.raises(UserError, match=r"/dev/full: cannot be written \(No space left on device\).*--resume"):
        with Path("/dev/full").open("a", encoding="utf-8") as full, tracking.Tracker(tmp_path, QUIET) as tracker:
            tracker._file.close()
            tracker._file = full
            tracker.record("train", 0, 1, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_wandb_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    message = r"train\.wandb: got offline, but the package wandb is not installed; pip install 'qadprep\[wandb\]'"
    with pytest.raises(UserError, match=message):
        tracking.Tracker(tmp_path, QUIET, wandb="offline")
    assert list(tmp_path.iterdir()) == []
    tracking.check_wandb("off")


@pytest.mark.slow
def test_wandb_offline_writes_files_that_name_no_machine(tmp_path):
    """In a process of its own, for wandb starts services; the run goes on under the same id."""
    program = (
        "import io, sys\nfrom pathlib import Path\nfrom rich.console import Console\n"
        "from qadtrain.config_io import load_config\nfrom qadtrain.tracking import Tracker\n"
        "run = Path(sys.argv[1])\n"
        "for step in (0, 5):\n"
        "    config = load_config('tiny')\n"
        "    with Tracker(run, Console(file=io.StringIO()), step, wandb='offline', config=config) as tracker:\n"
        "        tracker.record('train', 0, step + 5, {'loss': 0.125})\n"
    )
    run = tmp_path / "the-run"
    run.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    files = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    identity = (run / "wandb" / "id.txt").read_text()
    assert len(files) == 2 and {file.name for file in files} == {f"run-{identity}.wandb"}
    contents = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in contents and b"0.125" in contents and b"awp.gamma" in contents
    assert os.uname().nodename.encode() not in contents
    assert not list(run.rglob("requirements.txt")) and not list(run.rglob("wandb-metadata.json"))


def test_meter_means_and_rates():
    meter = tracking.Meter()
    meter.add({"loss": torch.tensor(1.0), "sometimes": 4.0}, waited_s=0.1, total_s=0.5)
    meter.add({"loss": torch.tensor(2.0), "odd": float("nan")}, waited_s=0.2, total_s=0.5)
    means = meter.take(tuples_per_step=8)
    assert means == pytest.approx({"loss": 1.5, "sometimes": 4.0, "tuples_per_s": 16.0, "data_wait": 0.3})
    meter.add({"loss": 3.0}, waited_s=0.0, total_s=1.0)
    assert meter.take(8)["loss"] == 3.0


def test_facts_name_versions_and_the_command_without_folders():
    from qadtrain import facts

    found = facts.code_facts(["/opt/venv/bin/qadtrain", "fit", "/data/x/shards", "--out=/tmp/run 1", "--set", "a.b=c"])
    assert found["command"] == "qadtrain fit shards '--out=run 1' --set a.b=c"
    assert facts.command_line(["/x/qadtrain/__main__.py", "runs"]) == "qadtrain runs"
    assert found["versions"]["torch"] == version("torch") and found["versions"]["python"].startswith("3.")
    assert len(facts.config_hash(load_config("tiny"))) == 12


def test_the_commit_is_that_of_the_code_and_marked_where_it_was_changed(tmp_path):
    from qadtrain.facts import git_hash

    def git(*words: str) -> str:
        options = ["-c", "user.name=A", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *options, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_hash(tmp_path) is None
    git("init", "-q")
    code = tmp_path / "package"
    code.mkdir()
    (code / "a.py").write_text("1")
    assert git_hash(code) is None  # not a file of the repository it lies in
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert git_hash(code) == git("rev-parse", "HEAD")[:12]
    (code / "new.py").write_text("not tracked")
    assert git_hash(code) == git("rev-parse", "HEAD")[:12]
    (code / "a.py").write_text("2")
    assert git_hash(code) == git("rev-parse", "HEAD")[:12] + "-dirty"
