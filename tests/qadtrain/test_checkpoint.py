"""Whole checkpoints or none, whatever the moment of a crash."""

import contextlib
import errno
import json
import os
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from qadprep.errors import UserError
from qadtrain import checkpoint, safe_files
from qadtrain.config_io import load_config, to_toml
from qadtrain.facts import config_hash


def model(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def state(step: int, **more) -> dict:
    return {"global_step": step, "position": {"epoch": step}, **more}


def names(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def loaded(run, **options) -> tuple[int, float]:
    """Step and value of the weights of the newest whole pair."""
    network = model(-1.0)
    step = checkpoint.load_last(run, network, **options)["global_step"]
    (value,) = network.weight.unique().tolist()
    return step, value


def test_round_trip(tmp_path):
    assert not checkpoint.has_checkpoints(tmp_path)
    assert not checkpoint.checkpoint_path(tmp_path, "last").exists()
    checkpoint.save_last(tmp_path, model(1.0), state(7), ema=model(0.5), note={"metric": 0.25})
    assert checkpoint.has_checkpoints(tmp_path)
    network = model(0.0)
    found = checkpoint.load_last(tmp_path, network)
    assert found["position"] == {"epoch": 7} and found["ema"]["weight"].eq(0.5).all()
    assert network.weight.eq(1.0).all()
    assert names(tmp_path) == ["step-00000007.safetensors", "step-00000007.state.pt"]
    checkpoint.save_best(tmp_path, model(2.0), {"epoch": 3})
    assert checkpoint.load_weights(checkpoint.checkpoint_path(tmp_path, "best"), network)["epoch"] == "3"
    assert network.weight.eq(2.0).all()
    checkpoint.save_best(tmp_path, model(3.0).state_dict(), {"epoch": 4})
    assert checkpoint.load_weights(checkpoint.checkpoint_path(tmp_path, "best"), network)["epoch"] == "4"
    assert network.weight.eq(3.0).all()


def test_the_header_says_what_the_weights_are(tmp_path):
    config = load_config("tiny")
    (tmp_path / "config.toml").write_text(to_toml(config))
    checkpoint.save_last(tmp_path, model(1.0), {"global_step": 9, "position": {"epoch": 2, "best_score": 0.75}})
    with safe_open(checkpoint.checkpoint_path(tmp_path, "last"), "pt") as file:
        note = file.metadata()
    assert note == {"global_step": "9", "epoch": "2", "best_score": "0.75", "config": config_hash(config)}
    assert config_hash(load_config("tiny", None, ["data.num_workers=3"])) == config_hash(config)
    assert config_hash(load_config("tiny", None, ["train.seed=3"])) != config_hash(config)


def test_the_newest_k_are_kept_beside_the_best(tmp_path):
    checkpoint.save_best(tmp_path, model(9.0), {})
    for step in (2, 4, 6, 10):
        checkpoint.save_last(tmp_path, model(step), state(step), keep=3)
    assert [pair.step for pair in checkpoint.pairs(tmp_path)] == [10, 6, 4]
    assert checkpoint.checkpoint_path(tmp_path, "last").name == "step-00000010.safetensors"
    assert len(names(tmp_path)) == 2 * 3 + 1 and "best.safetensors" in names(tmp_path)
    checkpoint.save_last(tmp_path, model(10), state(10), keep=3)  # again, as after the validation of an epoch
    assert [pair.step for pair in checkpoint.pairs(tmp_path)] == [10, 6, 4]
    checkpoint.save_last(tmp_path, model(12), state(12), keep=1)
    assert [pair.step for pair in checkpoint.pairs(tmp_path)] == [12]


def test_tied_and_strided_tensors_come_back(tmp_path):
    class Tied(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight
            self.conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
            nn.init.constant_(self.first.weight, value)

    saved, found = Tied(1.0), Tied(0.0)
    checkpoint.save_last(tmp_path, saved, state(1))
    checkpoint.load_last(tmp_path, found)
    assert found.second.weight.eq(1.0).all() and found.conv.weight.equal(saved.conv.weight)


class Killed(BaseException):
    """The process is gone: nothing is done after it, no clean-up either."""


class Disk:
    """The operations on files, counted; from the n-th on none happens, and that one is half done where it can be."""

    def __init__(self, monkeypatch, dies_at: int) -> None:
        self.count, self.dies_at = 0, dies_at
        for name in ("replace", "fsync", "unlink"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), name))

    def _counted(self, operation, name):
        def run(*arguments, **options):
            self.count += 1
            if self.count >= self.dies_at:
                if name == "fsync" and self.count == self.dies_at and os.fstat(arguments[0]).st_size > 99:
                    with contextlib.suppress(OSError):  # a folder
                        os.ftruncate(arguments[0], 50)  # what was not synced may be lost
                raise Killed
            return operation(*arguments, **options)

        return run


def prepared(folder, keep: int) -> None:
    for step in range(1, keep + 1):
        checkpoint.save_last(folder, model(step), state(step), keep)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("same_step", [False, True], ids=["next", "same-step"])
def test_killed_at_any_operation_a_whole_checkpoint_is_there(tmp_path, monkeypatch, keep, same_step):
    """Each operation in turn is the last one; then the run resumes and saves on."""
    step, outcomes = keep + (not same_step), []
    for dies_at in range(1, 40):
        run = tmp_path / str(dies_at)
        prepared(run, keep)
        with monkeypatch.context() as patch:
            disk = Disk(patch, dies_at)
            with contextlib.suppress(Killed):
                checkpoint.save_last(run, model(10.0), state(step, new=True), keep)
        evaluated = model(0.0)
        checkpoint.load_weights(checkpoint.checkpoint_path(run, "last"), evaluated)  # without any repair
        assert evaluated.weight.unique().tolist() in ([float(keep)], [10.0])
        said = []
        network = model(-1.0)
        found = checkpoint.load_last(run, network, said.append)
        expected = 10.0 if found.get("new") else float(keep)
        assert network.weight.eq(expected).all() and found["global_step"] == (step if found.get("new") else keep)
        assert said == []  # no pair was damaged: it was whole, or not yet one
        outcomes.append(bool(found.get("new")))
        checkpoint.save_last(run, model(20.0), state(step + 1), keep)
        assert loaded(run) == (step + 1, 20.0)
        assert len(names(run)) == 2 * keep and not any(name.endswith(".tmp") for name in names(run))
        if disk.count < dies_at:
            break
    assert outcomes == sorted(outcomes) and not outcomes[0] and outcomes[-1]
    assert len(outcomes) >= 7  # two files, the renames and their folders, and what is deleted


def test_a_full_disk_is_said_and_the_checkpoint_before_stands(tmp_path, monkeypatch):
    checkpoint.save_last(tmp_path, model(1.0), state(1))
    before = names(tmp_path)
    sync, calls, fails_at = os.fsync, [], [1]

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) >= fails_at[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    for operation in (1, 2):
        calls.clear()
        fails_at[0] = operation
        message = (
            r"step-00000002\.safetensors: cannot be written \(No space left on device\): needs \d+\.\d MB, \d+\.\d MB "
            r"free; the checkpoint step-00000001 stands; free space, then give the command again \(fit with --resume\)"
        )
        with pytest.raises(UserError, match=message):
            checkpoint.save_last(tmp_path, model(2.0), state(2))
        assert names(tmp_path) == before
    calls.clear()
    fails_at[0] = 1
    with pytest.raises(UserError, match=r"best\.safetensors: cannot be written"):
        checkpoint.save_best(tmp_path, model(2.0), {})
    assert names(tmp_path) == before
    monkeypatch.undo()
    assert loaded(tmp_path) == (1, 1.0)


def test_other_errors_of_the_disk_pass_and_leave_nothing(tmp_path, monkeypatch):
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.save_last(tmp_path, model(2.0), state(2))
    with pytest.raises(OSError, match="Input/output error"):
        safe_files.write_atomically(tmp_path / "run.json", b"{}")
    assert names(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def flip_a_bit(path, at: bytes = b"") -> None:
    """In the first byte of a text that stands once in the file, or in the last tensor."""
    data = bytearray(path.read_bytes())
    assert not at or data.count(at) == 1
    data[data.index(at) if at else -5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda pair: pair.state.write_bytes(b"cut"), "damaged checkpoint state"),
        (lambda pair: pair.state.write_bytes(pair.state.read_bytes()[:-100]), "damaged checkpoint state"),
        (lambda pair: flip_a_bit(pair.state, b"here"), "damaged checkpoint state"),
        (lambda pair: pair.weights.write_bytes(pair.weights.read_bytes()[:-4]), "damaged weights"),
        (lambda pair: flip_a_bit(pair.weights), "damaged weights"),
        (lambda pair: pair.weights.unlink(), "weights are missing"),
    ],
    ids=["state", "cut-state", "bit-in-state", "cut-weights", "bit", "no-weights"],
)
def test_a_damaged_newest_pair_is_passed_over_and_said(tmp_path, capsys, damage, said):
    for step in (1, 2):
        checkpoint.save_last(tmp_path, model(step), state(step, mark="here"), keep=2)
    damage(checkpoint.pairs(tmp_path)[0])
    lines = []
    assert loaded(tmp_path, say=lines.append) == (1, 1.0)
    (line,) = lines
    assert said in line and "step-00000002" in line and line.endswith("going on from the checkpoint of step 1 instead")
    assert loaded(tmp_path) == (1, 1.0) and line in capsys.readouterr().err
    checkpoint.save_last(tmp_path, model(1.5), state(1, again=True), keep=2)  # the damaged one is no newer one now
    assert [pair.step for pair in checkpoint.pairs(tmp_path)] == [1] and loaded(tmp_path) == (1, 1.5)


def save_of_version_1(run, step: int) -> None:
    folder = run / "checkpoints"
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in model(step).state_dict().items()}
    save_file(tensors, folder / "last.safetensors", metadata={"global_step": str(step)})
    torch.save({"version": 1, **state(step)}, folder / "last.state.pt")


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    save_of_version_1(tmp_path, 5)
    assert checkpoint.has_checkpoints(tmp_path)
    assert checkpoint.checkpoint_path(tmp_path, "last").name == "last.safetensors"
    assert loaded(tmp_path) == (5, 5.0)
    weights = checkpoint.checkpoint_path(tmp_path, "last")
    weights.rename(safe_files.pending(weights))  # killed between the renames
    assert loaded(tmp_path) == (5, 5.0)
    checkpoint.save_last(tmp_path, model(6.0), state(6), keep=2)
    assert "last.state.pt" in names(tmp_path) and loaded(tmp_path) == (6, 6.0)
    checkpoint.save_last(tmp_path, model(7.0), state(7), keep=2)
    assert not any(name.startswith("last") for name in names(tmp_path)) and loaded(tmp_path) == (7, 7.0)


def test_damage_of_an_earlier_version_is_named(tmp_path):
    save_of_version_1(tmp_path, 1)
    weights = checkpoint.checkpoint_path(tmp_path, "last")
    weights.write_bytes(weights.read_bytes().replace(b'"1"', b'"9"'))
    with pytest.raises(UserError, match="got weights of step 9, expected 1; start a new run"):
        checkpoint.load_last(tmp_path, model(0.0))


def test_damage_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        checkpoint.load_last(tmp_path, model(0.0))
    checkpoint.save_last(tmp_path, model(1.0), state(1))
    with pytest.raises(UserError, match="weights of another model"):
        checkpoint.load_last(tmp_path, nn.Linear(3, 3))
    weights = checkpoint.checkpoint_path(tmp_path, "last")
    length = struct.unpack("<Q", weights.read_bytes()[:8])[0]
    assert json.loads(weights.read_bytes()[8 : 8 + length])["__metadata__"]["global_step"] == "1"
    weights.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"step-00000001\.safetensors: damaged weights file"):
        checkpoint.load_weights(weights, model(0.0))
    with pytest.raises(UserError, match=r"step-00000001\.safetensors: damaged weights; start a new run"):
        checkpoint.load_last(tmp_path, model(0.0))
    torch.save({"version": 3, "global_step": 1}, checkpoint.pairs(tmp_path)[0].state)
    with pytest.raises(UserError, match="format 3, expected 2"):
        checkpoint.load_last(tmp_path, model(0.0))
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load_weights(tmp_path / "none.safetensors", model(0.0))
    with pytest.raises(UserError, match=r"run\.json: not a run folder"):
        checkpoint.read_run_json(tmp_path)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"state\['position'\]\['best'\]: float64 cannot be in a checkpoint"):
        checkpoint.save_last(tmp_path, model(1.0), {"global_step": 1, "position": {"best": np.float64(0.5)}})
    with pytest.raises(TypeError, match=r"state\['loader'\]\[1\]: set cannot be"):
        checkpoint.save_last(tmp_path, model(1.0), {"global_step": 1, "loader": [1, {2}]})
    assert names(tmp_path) == []


def test_optimiser_schedule_and_scaler_are_plain_values(tmp_path):
    network = model(1.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(network(torch.ones(1, 2)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    parts = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    checkpoint.save_last(tmp_path, network, state(1, **{name: part.state_dict() for name, part in parts.items()}))
    found = checkpoint.load_last(tmp_path, model(0.0))
    assert found["scaler"]["scale"] == 8.0
    assert found["schedule"]["last_epoch"] == 1
    saved = optimizer.state_dict()["state"][0]["exp_avg"]
    assert found["optimizer"]["state"][0]["exp_avg"].equal(saved) and saved.abs().sum() > 0
