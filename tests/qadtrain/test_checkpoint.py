"""Whole checkpoints or none, whatever the moment of a crash."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from qadprep.errors import UserError
from qadtrain import checkpoint


def model(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def state(step: int) -> dict:
    return {"global_step": step, "position": {"epoch": step}, "random": checkpoint.random_state()}


def test_round_trip(tmp_path):
    assert not checkpoint.has_checkpoints(tmp_path)
    checkpoint.save_last(tmp_path, model(1.0), state(7))
    assert checkpoint.has_checkpoints(tmp_path)
    loaded = model(0.0)
    assert checkpoint.load_last(tmp_path, loaded)["position"] == {"epoch": 7}
    assert loaded.weight.eq(1.0).all()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last.safetensors", "last.state.pt"]
    checkpoint.save_best(tmp_path, model(2.0), {"epoch": 3})
    assert checkpoint.load_weights(checkpoint.checkpoint_path(tmp_path, "best"), loaded)["epoch"] == "3"
    assert loaded.weight.eq(2.0).all()


@pytest.mark.parametrize("renames_before_the_crash", [0, 1, 2])
def test_a_crash_at_any_rename_leaves_one_whole_pair(tmp_path, monkeypatch, renames_before_the_crash):
    checkpoint.save_last(tmp_path, model(1.0), state(1))
    rename, done = checkpoint._rename, []

    def crashing(source, target):
        if len(done) == renames_before_the_crash:
            raise KeyboardInterrupt
        done.append(target)
        rename(source, target)

    monkeypatch.setattr(checkpoint, "_rename", crashing)
    if renames_before_the_crash < 2:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_last(tmp_path, model(2.0), state(2))
    else:
        checkpoint.save_last(tmp_path, model(2.0), state(2))
    monkeypatch.setattr(checkpoint, "_rename", rename)
    loaded = model(0.0)
    step = checkpoint.load_last(tmp_path, loaded)["global_step"]
    assert step == (1 if renames_before_the_crash == 0 else 2)
    assert loaded.weight.eq(float(step)).all()
    checkpoint.save_last(tmp_path, model(3.0), state(3))  # and saving goes on
    assert checkpoint.load_last(tmp_path, loaded)["global_step"] == 3


def test_damage_is_named(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        checkpoint.load_last(tmp_path, model(0.0))
    checkpoint.save_last(tmp_path, model(1.0), state(1))
    with pytest.raises(UserError, match="weights of another model"):
        checkpoint.load_last(tmp_path, nn.Linear(3, 3))
    weights = checkpoint.checkpoint_path(tmp_path, "last")
    other = weights.read_bytes().replace(b'"1"', b'"9"')
    weights.write_bytes(other)
    with pytest.raises(UserError, match="got weights of step 9, expected 1"):
        checkpoint.load_last(tmp_path, model(0.0))
    weights.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"last\.safetensors: damaged weights file"):
        checkpoint.load_weights(weights, model(0.0))
    (tmp_path / "checkpoints" / "last.state.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"last\.state\.pt: damaged checkpoint state"):
        checkpoint.load_last(tmp_path, model(0.0))
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load_weights(tmp_path / "none.safetensors", model(0.0))
    with pytest.raises(UserError, match=r"run\.json: not a run folder"):
        checkpoint.read_run_json(tmp_path)


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draws() -> tuple:
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.random(), random.gauss(0, 1)

    random.gauss(0, 1)  # leaves a cached second value behind
    checkpoint.save_last(tmp_path, model(1.0), state(1))
    expected = draws()
    assert draws() != expected
    checkpoint.restore_random_state(checkpoint.load_last(tmp_path, model(0.0))["random"])
    assert draws() == expected
