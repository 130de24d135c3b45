"""What a run does when something goes wrong: each fault ends as the documentation says."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fit_group_norm import GroupNormCnn
from helpers.training import (
    CPU,
    GROUP_NORM,
    StopAfter,
    assert_equal,
    begin,
    checkpoint,
    make_trainer,
    quiet_fit,
    records,
    tiny,
)
from rich.console import Console

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain import cli, safe_files
from qadtrain.checkpoint import checkpoint_path, pairs
from qadtrain.distributed import Ranks
from qadtrain.guard import FiniteGuard, StopRequest, mean_values, on_main, together
from qadtrain.models import register
from qadtrain.signals import stop_signals
from qadtrain.step import TrainStep

register("group_norm", lambda _config: GroupNormCnn())


def poisoned_at(monkeypatch, *steps: int) -> None:
    """Makes the loss NaN at these steps, counted from 1."""
    backward = TrainStep._backward
    now = [0]

    def counting(self, images, labels, *, step, **options):
        now[0] = step
        return call(self, images, labels, step=step, **options)

    def poisoned(self, part, sums, use_hsic, measure):
        images, labels = part
        backward(self, (images * float("nan"), labels) if now[0] in steps else part, sums, use_hsic, measure)

    call = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", counting)
    monkeypatch.setattr(TrainStep, "_backward", poisoned)


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_checkpoint(shards_dir, tmp_path, monkeypatch):
    poisoned_at(monkeypatch, 9)
    with pytest.raises(UserError, match=r"loss of step 9 is nan: training stopped; the checkpoint before it is kept"):
        quiet_fit(shards_dir, tmp_path / "run", tiny())
    weights, state = checkpoint(tmp_path / "run")
    assert state["global_step"] == 6
    assert all(value.isfinite().all() for value in weights.values())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl"))
    assert json.loads(lines[-1])["state"] == "failed"


def test_steps_that_are_not_finite_are_left_out_up_to_the_budget(shards_dir, tmp_path, monkeypatch):
    poisoned_at(monkeypatch, 3, 8)
    # Without BatchNorm: its running statistics would have taken the NaN in.
    config = tiny(*GROUP_NORM, "train.skip_nonfinite=2", "optim.epochs=2", "optim.ema_decay=0.5", "awp.start_epoch=1")
    summary = quiet_fit(shards_dir, tmp_path / "run", config)
    assert (summary.skipped_steps, summary.steps) == (2, 12)
    weights, state = checkpoint(tmp_path / "run")
    assert all(value.isfinite().all() for value in [*weights.values(), *state["ema"].values()])
    steps = {record["global_step"]: record["skipped_steps"] for record in records(tmp_path / "run", "train")}
    assert steps == {2: 0, 4: 1, 6: 1, 8: 2, 10: 2, 12: 2}
    assert state["optimizer"]["state"][0]["step"] == 10 - 5  # frozen in the first epoch, then one left out
    events = [record for record in records(tmp_path / "run", "event") if record["event"] == "skipped_step"]
    assert [event["global_step"] for event in events] == [3, 8]
    with pytest.raises(
        UserError,
        match=r"the loss of step 8 is nan, after 1 steps left out .train.skip_nonfinite, a resume may raise it.:",
    ):
        quiet_fit(shards_dir, tmp_path / "less", tiny(*GROUP_NORM, "train.skip_nonfinite=1"))


def test_a_step_left_out_changes_nothing(shards_dir, tmp_path):
    options = ["train.skip_nonfinite=1", "awp.gamma=0.1", "optim.ema_decay=0.5"]
    trainer, batch = make_trainer(shards_dir, tmp_path, *options)
    begin(trainer, 2)
    trainer.train_step(batch, measure=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    average = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    poisoned = replace(batch, images=batch.images * float("nan"))  # reaches BatchNorm's running statistics too
    assert trainer.train_step(poisoned, measure=False) == {}
    assert trainer.position.skipped_steps == 1 and trainer.position.global_step == 2 == trainer.position.ce_steps + 1
    assert_equal(dict(trainer.model.state_dict()), before)
    assert_equal(trainer.average.state_dict(), average)
    assert trainer.step.schedule.last_epoch == 2


def damage(shards: Path, index: int, split: str = "train") -> str:
    """Zeros over a tuple of a split; returns its key."""
    with ShardSet(shards, split) as opened:
        row = opened.table.slice(index, 1).to_pylist()[0]
    with (shards / f"{split}-000000.tar").open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["length"]))
    return row["key"]


def test_a_damaged_tuple_is_named_or_left_out_and_counted_also_over_a_resume(make_shards, tmp_path):
    shards = make_shards(tmp_path / "set", {"train": 32, "val": 8})
    key = damage(shards, 5)
    with pytest.raises(UserError, match=rf"train-000000.tar: {key} at byte \d+: .*qadprep verify") as caught:
        quiet_fit(shards, tmp_path / "run", tiny())
    assert "\n" not in str(caught.value) and not pairs(tmp_path / "run")
    other = damage(shards, 12)
    config = tiny("data.skip_bad=2", "optim.epochs=2")
    quiet_fit(shards, tmp_path / "straight", config)
    summary = quiet_fit(shards, tmp_path / "left", config, should_stop=StopAfter(3))
    assert summary.skipped_tuples == 2 and summary.steps == 2  # an epoch is two steps; both were met
    assert checkpoint(tmp_path / "left")[1]["skipped"] == [5, 12]
    summary = quiet_fit(shards, tmp_path / "left", config, resume=True)
    assert summary.skipped_tuples == 2 and summary.steps == 4  # met again, counted once
    assert_equal(checkpoint(tmp_path / "left")[0], checkpoint(tmp_path / "straight")[0])
    with pytest.raises(
        UserError, match=rf"data.skip_bad: got 2 damaged tuples, expected at most 1 .*: .*({key}|{other})"
    ):
        quiet_fit(shards, tmp_path / "less", tiny("data.skip_bad=1"))


def test_a_quality_that_is_not_there_is_refused_before_the_run(shards_dir, tmp_path):
    with pytest.raises(UserError, match=r"data.qualities: got \['raw', 'c15'\], expected each once, out of raw, c23, "):
        quiet_fit(shards_dir, tmp_path / "run", tiny('data.qualities=["raw","c15"]'))
    assert not (tmp_path / "run").exists()
    config = tiny('data.qualities=["c23","c40"]', "train.best_metric=auc/c40", "optim.epochs=2")
    quiet_fit(shards_dir, tmp_path / "run", config)
    line = records(tmp_path / "run", "epoch")[0]
    assert "auc/c23" in line and "auc/raw" not in line
    with pytest.raises(UserError, match=r"train.best_metric: got 'auc/raw', expected one of .* of c23, c40, average"):
        quiet_fit(shards_dir, tmp_path / "run2", tiny('data.qualities=["c23","c40"]', "train.best_metric=auc/raw"))


def test_data_that_does_not_fit_is_refused(make_shards, tmp_path):
    one = make_shards(tmp_path / "one", {"train": 32}, qualities=("c23",))
    with pytest.raises(UserError, match=r"hsic.alpha: got 0.1, expected 0 for the one quality 'c23'"):
        quiet_fit(one, tmp_path / "run", tiny())
    summary = quiet_fit(one, tmp_path / "run", tiny("hsic.alpha=0", "optim.epochs=2", "train.best_metric=auc/c23"))
    assert summary.steps == 4
    cases = {
        ("data.batch_tuples=64", "hsic.alpha=0"): "data.batch_tuples: got 64, expected at most 32",
        ("optim.accumulate_steps=8",): "data.batch_tuples: got 16, expected at least 32: HSIC is estimated over 2 tup",
        ("awp.batch_fraction=0.1",): "awp.batch_fraction: got 0.1, which leaves 2 tuples for the direction,",
        ("hsic.group_tuples=12",): "hsic.group_tuples: got 12, expected a divisor of 16, the tuples that HSIC sees",
    }
    two = make_shards(tmp_path / "two", {"train": 32})
    for overrides, message in cases.items():
        with pytest.raises(UserError, match=message):
            quiet_fit(two, tmp_path / "run2", tiny(*overrides))
    assert not (tmp_path / "run2").exists()


def test_a_full_disk_is_one_line_exit_code_2_and_the_checkpoint_before_stands(
    shards_dir, tmp_path, monkeypatch, capsys
):
    run, write = tmp_path / "run", safe_files.write_synced

    def full(path, data):
        if "step-00000012" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    arguments = ["--preset", "tiny", "--device", "cpu", "--workers", "0", "--set", "optim.epochs=2"]
    monkeypatch.setattr(sys, "argv", ["qadtrain", "fit", str(shards_dir), "--out", str(run), *arguments])
    with monkeypatch.context() as patch:
        patch.setattr("qadtrain.checkpoint.write_synced", full)
        with pytest.raises(SystemExit) as end:
            cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and lines[-1].startswith("error: ")
    assert "step-00000012" in lines[-1] and "No space left on device" in lines[-1] and "Traceback" not in lines[-1]
    assert checkpoint(run)[1]["global_step"] == 6
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and checkpoint(run)[1]["global_step"] == 12
    # A full disk elsewhere, such as under metrics.jsonl, is one line too.
    monkeypatch.setattr(
        "qadtrain.fit.fit", lambda *_a, **_k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space", "m.jsonl"))
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith("error: m.jsonl: No space left")


class TwoRanks(Ranks):
    """One of two processes whose other one is known in advance."""

    def __init__(self, rank: int, other):
        super().__init__(rank=rank, world=2)
        object.__setattr__(self, "other", other)
        object.__setattr__(self, "asked", [])

    def sum(self, tensor):
        return tensor + torch.as_tensor(self.other)

    def any(self, flag):
        self.asked.append(flag)
        return bool(flag or self.other)

    def gather_objects(self, value):
        return [value, self.other] if self.rank == 0 else [self.other, value]

    def broadcast_object(self, value):
        return value if self.rank == 0 else self.other


def test_a_fault_of_one_process_stops_all_with_the_same_words():
    healthy = FiniteGuard(TwoRanks(0, [float("nan"), 1.0]), CPU, UserError)
    with pytest.raises(UserError, match="the loss of step 7 is nan"):
        healthy.add(7, torch.tensor(0.5), torch.tensor(1.0))
    guard = FiniteGuard(TwoRanks(0, [1.5, 3.0]), CPU, UserError)
    guard.add(1, torch.tensor(0.5), torch.tensor(1.0))
    guard.settle()
    verdict = guard.judge(2, torch.tensor(0.5), torch.tensor(1.0))
    assert (verdict.loss, verdict.gradient_norm, verdict.finite) == (1.0, 2.0, True)
    verdict = guard.judge(3, torch.tensor(0.5), torch.tensor(float("inf")))
    assert not verdict.finite and verdict.fault() == "the gradient of step 3 is not finite"
    with pytest.raises(UserError, match="full"):
        on_main(TwoRanks(1, "full"), lambda: pytest.fail("not the main process"))
    assert mean_values(TwoRanks(0, {"a": 3.0}), {"a": 1.0, "b": 5.0}) == {"a": 2.0, "b": 5.0}


def test_processes_agree_on_a_stop_at_every_eighth_boundary_or_within_seconds():
    alone = StopRequest(lambda: "SIGTERM", Ranks())
    assert alone.agreed(1) == "SIGTERM"
    now = [0.0]

    def answers(other: tuple[str, float], own: str, steps: range, step_s: float) -> dict[int, str]:
        """What a process hears at each boundary at which it asks."""
        ranks, heard = TwoRanks(1, other), {}
        stop = StopRequest(lambda: own, ranks, lambda: now[0])
        gather = ranks.gather_objects
        object.__setattr__(ranks, "gather_objects", lambda value: heard.update({step: None}) or gather(value))
        for step in steps:
            now[0] += step_s
            reason = stop.agreed(step)
            if step in heard:
                heard[step] = reason
        return heard

    assert answers(("", 0.1), "", range(1, 25), 0.2) == {1: "", 8: "", 16: "", 24: ""}
    assert answers(("", 0.1), "", range(1, 9), 2.0) == {1: "", 2: "", 4: "", 6: "", 8: ""}
    assert answers(("", 30.0), "", range(1, 5), 0.1) == {1: "", 2: "", 3: "", 4: ""}  # the other one is slow
    assert answers(("SIGTERM", 0.1), "", range(1, 2), 0.1) == {1: "SIGTERM"}
    assert answers(("", 0.1), "SIGINT", range(1, 2), 0.1) == {1: "SIGINT"}
    theirs = StopRequest(lambda: "", TwoRanks(1, ("", 0.1)), lambda: now[0])
    assert theirs.agreed(1) == ""
    object.__setattr__(theirs.ranks, "other", ("SIGTERM", 0.1))
    assert theirs.agreed(3) == "" and theirs.agreed(3, now=True) == "SIGTERM"


def test_an_error_of_one_process_ends_all_with_its_line():
    def bad():
        raise UserError("tuple 7 is damaged")

    assert together(Ranks(), lambda: 5) == 5
    assert together(TwoRanks(0, ""), lambda: 5) == 5
    with pytest.raises(UserError, match=r"^tuple 7 is damaged$"):
        together(TwoRanks(0, ""), bad)
    with pytest.raises(UserError, match=r"^theirs$"):
        together(TwoRanks(1, "theirs"), lambda: 5)


def test_a_damaged_tuple_or_a_crash_in_validation_costs_no_epoch(make_shards, tmp_path):
    shards = make_shards(tmp_path / "set", {"train": 32, "val": 16})
    key = damage(shards, 3, "val")
    with pytest.raises(UserError, match=rf"val-000000.tar: {key} at byte"):
        quiet_fit(shards, tmp_path / "run", tiny("optim.epochs=2"))
    assert checkpoint(tmp_path / "run")[1]["position"]["step"] == 2  # the whole epoch is there
    out = io.StringIO()
    config = tiny("optim.epochs=2", "data.skip_bad=1")  # not another configuration
    console = Console(file=out, width=400)
    summary = quiet_fit(shards, tmp_path / "run", config, resume=True, console=console)
    assert (summary.steps, summary.skipped_tuples, summary.skipped_val_tuples) == (4, 0, 1)
    assert out.getvalue().count("left out of the validation, at most 1: ") == 1 and key in out.getvalue()
    assert [record["skipped_val_tuples"] for record in records(tmp_path / "run", "epoch")] == [1, 1]
    damage(shards, 4, "val")
    with pytest.raises(UserError, match=r"--skip-bad: got 2 damaged tuples, expected at most 1: .*val-000000.tar"):
        quiet_fit(shards, tmp_path / "less", config)


def test_weights_with_a_score_that_is_not_finite_are_never_the_best(make_shards, tmp_path, monkeypatch):
    logits = np.random.default_rng(0).normal(size=(16, 3, 2))
    logits[5, 1] = float("inf")
    shards = make_shards(tmp_path / "set", {"train": 16, "val": 16})
    monkeypatch.setattr("qadtrain.validation.score_split", lambda *_args, **_kwargs: logits)
    summary = quiet_fit(shards, tmp_path / "run", tiny("optim.epochs=2"))
    assert (summary.best_epoch, summary.best_score) == (None, None)
    assert [record["not_finite_scores"] for record in records(tmp_path / "run", "epoch")] == [1, 1]
    assert not checkpoint_path(tmp_path / "run", "best").exists()


def test_an_epoch_without_a_step_is_not_the_best(make_shards, tmp_path, monkeypatch):
    poisoned_at(monkeypatch, 1, 2)
    shards = make_shards(tmp_path / "set", {"train": 32})
    config = tiny(*GROUP_NORM, "train.skip_nonfinite=2", "optim.epochs=2")
    summary = quiet_fit(shards, tmp_path / "run", config)
    first, second = (record["train_ce"] for record in records(tmp_path / "run", "epoch"))
    assert first is None and second > 0 and (summary.best_epoch, summary.best_score) == (1, second)


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(make_shards, tmp_path):
    shards, run = make_shards(tmp_path / "set", {"train": 16, "val": 8}), tmp_path / "run"
    config = tiny("optim.epochs=2")
    quiet_fit(shards, run, config)
    for file in (run / "checkpoints").glob("step-*"):
        file.unlink()  # best.safetensors alone, as after a validation inside the first epoch
    out = io.StringIO()
    with pytest.raises(UserError, match=r"awp.gamma: got 0.5, expected 0.002"):
        quiet_fit(shards, run, tiny("optim.epochs=2", "awp.gamma=0.5"), resume=True)
    summary = quiet_fit(shards, run, config, resume=True, console=Console(file=out, width=400))
    assert summary.steps == 2 and "no checkpoint yet, the run begins anew" in out.getvalue()


def test_the_first_ctrl_c_asks_and_the_second_ends(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with stop_signals() as should_stop:
        assert should_stop() == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop() == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun passes on a Ctrl-C that the process already had
    with stop_signals() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop() == "SIGINT"
        monkeypatch.setattr("qadtrain.signals.SAME_PRESS_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)


FIT = [sys.executable, "-m", "qadtrain", "fit"]
LONG = ["--preset", "tiny", "--device", "cpu", "--set", "optim.epochs=6", "--set", "train.checkpoint_every_steps=1"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}


@pytest.mark.slow
def test_killed_runs_resume_to_the_bit(shards_dir, tmp_path):
    """SIGKILL at any moment, with a checkpoint after every step, so often in the middle of one."""
    straight = [*FIT, shards_dir, "--out", tmp_path / "straight", *LONG, "--workers", "0"]
    assert subprocess.run(straight, check=False, **QUIET).returncode == 0
    run, kills = tmp_path / "run", 0
    while True:
        resume = ["--resume"] if pairs(run) else []
        process = subprocess.Popen([*FIT, shards_dir, "--out", run, *LONG, "--workers", "2", *resume], **QUIET)
        began = len(pairs(run)) and pairs(run)[0].step
        while process.poll() is None and (not pairs(run) or pairs(run)[0].step <= began):
            time.sleep(0.01)
        time.sleep(random.random() * 0.4)
        if kills < 4 and process.poll() is None:
            process.kill()
            process.communicate()
            kills += 1
            continue
        _, err = process.communicate()
        assert process.returncode == 0, err
        break
    assert kills >= 2
    got, expected = checkpoint(run), checkpoint(tmp_path / "straight")
    assert_equal(got[0], expected[0])
    assert_equal(got[1]["optimizer"], expected[1]["optimizer"])
    assert records(run, "epoch") == records(tmp_path / "straight", "epoch")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_a_process_with_workers_orderly(shards_dir, tmp_path, number):
    run = tmp_path / "run"
    command = [*FIT, shards_dir, "--out", run, *LONG, "--set", "optim.epochs=2000", "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, **QUIET)
    while not pairs(run):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and f"stopped by {number.name} at step" in err and "--resume" in err
    assert "Traceback" not in err
