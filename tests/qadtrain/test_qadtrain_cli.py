"""The commands, their exit codes and their output."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qadtrain import cli
from qadtrain.trainer import Trainer

FAST = [
    "--preset",
    "tiny",
    "--set",
    "optim.epochs=2",
    "--set",
    "awp.start_epoch=1",
    "--workers",
    "0",
    "--device",
    "cpu",
]


def test_fit_then_eval(run_cli, shards_dir, tmp_path):
    run = tmp_path / "run"
    code, out, err = run_cli("fit", shards_dir, "--out", run, *FAST, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["epochs"], summary["steps"], summary["stopped_by"]) == (2, 12, "")
    assert set(summary["checkpoints"]) == {"best", "last"} and all(map(os.path.exists, summary["checkpoints"].values()))
    assert "epoch 2/2 done" in err and "tiny at 32 px on cpu (fp32)" in err

    code, out, err = run_cli("eval", run, shards_dir, "--workers", "0", "--json")
    assert code == 0, err
    report = json.loads(out)
    folder = Path(report.pop("folder"))
    assert folder == run / "eval" / "set-test"
    assert report == json.loads((folder / "report.json").read_text())
    assert report["tuples"] == 32 and report["shards"]["same_as_trained"]
    assert set(report["metrics"]) == {"frame", "video"}
    assert list(report["metrics"]["frame"]) == ["raw", "c23", "c40", "average"]
    assert list(report["metrics"]["frame"]["raw"]) == ["Deepfakes", "NeuralTextures", "all", "average"]
    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    assert len(scores) == 32 * 3
    right = [(row["prob_fake"] > 0.5) == row["label"] for row in scores if row["quality"] == "c23"]
    assert report["metrics"]["frame"]["c23"]["all"]["accuracy"] == pytest.approx(sum(right) / 32)
    assert "frame level" in err and "video level" in err

    code, again, _ = run_cli("eval", run, shards_dir, "--workers", "1", "--batch-tuples", "5", "--out", tmp_path / "e")
    assert code == 0 and "frame level" in again and "NeuralTextures" in again
    other = pq.read_table(tmp_path / "e" / "scores.parquet").to_pylist()
    assert [row["key"] for row in other] == [row["key"] for row in scores]
    for row, expected in zip(other, scores, strict=True):
        assert row["logit_fake"] == pytest.approx(expected["logit_fake"], abs=1e-4)

    code, out, err = run_cli("runs", tmp_path, "--json")
    assert code == 0 and [one["name"] for one in json.loads(out)["runs"]] == ["run"], err
    code, out, _ = run_cli("runs", tmp_path)
    assert code == 0 and "run" in out and "finished" in out
    code, _, err = run_cli("runs", tmp_path, "--compare")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    code, out, _ = run_cli("report", run)
    assert code == 0 and out == f"written: {run / 'report.html'}\n"
    assert "<svg" in (run / "report.html").read_text()

    code, _, err = run_cli("eval", run, shards_dir, "--split", "nowhere")
    assert code == 2 and err == f"error: {shards_dir}: no split 'nowhere'; it has train, val, test\n"
    code, _, err = run_cli("eval", run, shards_dir, "--checkpoint", "first")
    assert code == 2 and err == "error: --checkpoint: got first, expected best or last\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_next_step_and_tells_how_to_go_on(run_cli, shards_dir, tmp_path, monkeypatch, number):
    run, train_step = tmp_path / "run", Trainer.train_step

    def interrupted(self, batch, *, measure):
        if self.position.global_step == 3:
            os.kill(os.getpid(), number)
        return train_step(self, batch, measure=measure)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        got, out, err = run_cli("fit", shards_dir, "--out", run, *FAST)
    assert got == 0 and out == ""
    assert f"stopped by {number.name} at step 4; checkpoint saved. Continue with: qadtrain fit" in err
    assert signal.getsignal(number) is before
    # Without a preset a resume takes the run's own configuration.
    got, out, err = run_cli("fit", shards_dir, "--out", run, "--resume", "--json")
    assert got == 0 and json.loads(out)["steps"] == 12
    assert "resuming at epoch 1, step 4" in err


def test_a_second_ctrl_c_ends_at_once_with_130(run_cli, shards_dir, tmp_path, monkeypatch):
    def impatient(self, batch, *, measure):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(Trainer, "train_step", impatient)
    code, out, err = run_cli("fit", shards_dir, "--out", tmp_path / "run", *FAST)
    assert (code, out) == (130, "") and err.endswith("interrupted\n")


def test_batch_skip_bad_and_allowed_changes(run_cli, shards_dir, tmp_path):
    run = tmp_path / "run"
    few = ["--set", "optim.epochs=1", "--set", "train.log_every_steps=1"]
    code, out, err = run_cli("fit", shards_dir, "--out", run, *FAST, *few, "--batch", "auto", "--skip-bad", 3, "--json")
    assert code == 0 and json.loads(out)["batch_tuples"] == 64, err
    assert "batch: 64 tuples a step (automatic)" in err
    config = (run / "config.toml").read_text()
    assert "batch_tuples = 64" in config and "skip_bad = 3" in config
    resume = ["fit", shards_dir, "--out", run, "--resume", "--json"]
    code, _, err = run_cli(*resume, "--batch", 32, "--set", "optim.epochs=2")
    assert code == 2 and "data.batch_tuples: got 32, expected 64" in err and "--allow-changes" in err
    code, out, err = run_cli(*resume, "--batch", 32, "--set", "optim.epochs=2", "--allow-changes")
    assert code == 0 and json.loads(out)["steps"] == 1 + 3, err
    assert "changed since the start: data.batch_tuples: got 32, expected 64; optim.epochs: got 2, expected 1" in err


def test_one_of_several_processes_speaks(run_cli, shards_dir, tmp_path, monkeypatch):
    """Rank 1 as torchrun starts it, with the work itself left out."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("qadtrain.fit.fit", lambda *_args, **_options: None)
    assert run_cli("fit", shards_dir, "--out", tmp_path / "run", *FAST, "--json") == (0, "", "")
    code, _, err = run_cli("fit", shards_dir, "--out", tmp_path / "run", "--batch", "few")
    assert code == 2 and err == "error: process 1: --batch: got 'few', expected auto or a number of tuples from 1\n"


def test_user_errors_are_one_line_and_exit_2(run_cli, shards_dir, tmp_path):
    cases = {
        ("fit", tmp_path, "--out", tmp_path / "r", "--preset", "tiny"): "no shards.json there",
        ("fit", shards_dir, "--out", tmp_path / "r", "--preset", "huge"): "--preset: got huge, expected one of ce-e",
        ("fit", shards_dir, "--out", tmp_path / "r", *FAST, "--set", "awp.gama=1"): "awp.gama: no such field",
        ("fit", shards_dir, "--out", tmp_path / "r", *FAST, "--resume"): "no checkpoint to resume from",
        ("fit", shards_dir, "--out", tmp_path / "r", *FAST, "--device", "cuda:99"): "train.device: got 'cuda:99'",
        ("fit", shards_dir, "--out", tmp_path / "r", *FAST, "--weights", tmp_path / "no.pth"): "no.pth: no such file",
        ("fit", shards_dir, "--out", tmp_path / "r", *FAST, "--batch", "0"): "--batch: got '0', expected auto or a num",
        ("fit", shards_dir, "--out", tmp_path / "r", *FAST, "--allow-changes"): "got it without --resume",
        ("eval", tmp_path, shards_dir): "run.json: not a run folder of `qadtrain fit`",
    }
    for arguments, expected in cases.items():
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ") and err.count("\n") == 1 and expected in err, err
    assert not (tmp_path / "r").exists()


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    for arguments in (["--debug", "eval", "x", "y"], ["eval", "x", "y", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["qadtrain", *arguments])
        with pytest.raises(cli.UserError, match="not a run folder"):
            cli.main()


def test_ctrl_c_outside_of_training_is_130(run_cli, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("qadtrain.evaluate.evaluate", interrupt)
    assert run_cli("eval", "a", "b") == (130, "", "interrupted\n")


def test_help_does_not_import_torch():
    script = (
        "import sys, runpy; sys.argv = ['qadtrain', 'fit', '--help']\n"
        "try: runpy.run_module('qadtrain', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'cv2', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--preset", "--config", "--set", "--resume", "--device", "--weights", "--batch", "--skip-bad"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({}, ""),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, ""),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, "torchrun --nproc-per-node 4 -m "),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, "torchrun --nnodes 2 --nproc-per-node 4 -m "),
    ],
)
def test_the_command_that_goes_on_starts_as_many_processes(monkeypatch, variables, start):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli._launcher() == start
