"""Schedules by value, the optimisers' settings, the gradient's norm and clipping."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qadtrain.config_io import load_config
from qadtrain.optim import advance, clip_gradients, continue_changed, gradient_norm, make_optimizer, relative_rate


def config_of(*overrides: str):
    return load_config("tiny", overrides=["optim.head_only_epochs=0", *overrides]).optim


def rates(config, total_steps: int) -> list[float]:
    optimizer, schedule = make_optimizer(nn.Linear(2, 2), config, total_steps)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("total_steps", [1, 2, 5, 20, 640])
def test_one_cycle_rises_then_falls_at_any_length(total_steps):
    config = load_config("qad-r").optim  # pct_start 0.05: at 20 steps torch's own formula would divide by zero
    seen = rates(config, total_steps)
    peak = seen.index(max(seen))
    assert all(0 < rate <= config.learning_rate * 1.0001 for rate in seen)
    assert seen[: peak + 1] == sorted(seen[: peak + 1]) and seen[peak:] == sorted(seen[peak:], reverse=True)
    if total_steps == 640:
        assert peak == 31 and max(seen) == pytest.approx(2e-4, rel=1e-3)


def test_schedules_by_value():
    """10 epochs of 2 steps, 2 epochs of warm-up: steps 0-3 rise, 3 is the peak, 19 the last."""
    base = ["optim.epochs=10", "optim.learning_rate=0.8", "optim.warmup_epochs=2", "optim.final_rate=0.1"]
    warmup = [0.2, 0.4, 0.6, 0.8]
    cosine = rates(config_of(*base, "optim.schedule=cosine"), 20)
    assert cosine[:4] == pytest.approx(warmup)
    assert cosine[11] == pytest.approx(0.8 * (0.1 + 0.9 * 0.5))  # half way from 3 to 19
    assert cosine[7] == pytest.approx(0.8 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert cosine[19] == pytest.approx(0.08)
    linear = rates(config_of(*base, "optim.schedule=linear"), 20)
    assert linear[:4] == pytest.approx(warmup)
    assert [linear[4], linear[11], linear[19]] == pytest.approx([0.8 * (1 - 0.9 / 16), 0.8 * 0.55, 0.08])
    assert rates(config_of(*base, "optim.schedule=constant"), 20) == pytest.approx(warmup + [0.8] * 16)
    without = config_of("optim.epochs=10", "optim.learning_rate=0.8", "optim.schedule=linear")
    assert rates(without, 5) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    total=st.integers(1, 200),
    warmup=st.floats(0, 20),
    final=st.floats(0, 1),
)
def test_relative_rates_stay_between_the_final_one_and_the_peak(schedule, total, warmup, final):
    config = config_of("optim.epochs=10").model_copy(
        update={"schedule": schedule, "warmup_epochs": warmup, "final_rate": final}
    )
    rate = relative_rate(config, total)
    seen = [rate(step) for step in range(total)]
    steps = min(round(warmup * total / 10), total)
    assert seen[:steps] == pytest.approx([(step + 1) / steps for step in range(steps)])
    fall = seen[max(steps - 1, 0) :]
    assert all(0 < value <= 1 + 1e-9 for value in seen[:steps])
    assert all(b <= a + 1e-9 for a, b in pairwise(fall))
    if schedule != "constant" and total - steps > 1:
        assert seen[-1] == pytest.approx(final, abs=1e-9)


def test_optimisers_take_their_own_settings():
    model = nn.Linear(2, 2)
    shared = ["optim.weight_decay=0.01", "optim.betas=[0.8,0.95]", "optim.momentum=0.7", "optim.schedule=constant"]
    adam, _ = make_optimizer(model, config_of(*shared), 10)
    assert type(adam) is torch.optim.Adam and adam.defaults["betas"] == (0.8, 0.95)
    adamw, _ = make_optimizer(model, config_of(*shared, "optim.optimizer=adamw"), 10)
    assert type(adamw) is torch.optim.AdamW and adamw.defaults["weight_decay"] == 0.01
    sgd, _ = make_optimizer(model, config_of(*shared, "optim.optimizer=sgd"), 10)
    assert type(sgd) is torch.optim.SGD and sgd.defaults["momentum"] == 0.7 and not sgd.defaults["nesterov"]
    # torch refuses to cycle the momentum of an optimiser that has none.
    plain = config_of("optim.optimizer=sgd", "optim.momentum=0", "optim.schedule=one_cycle")
    assert len(rates(plain, 7)) == 7


def test_norm_and_clipping_against_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    (3 * model(torch.randn(4, 5)).square()).sum().backward()
    model[1].bias.grad = None  # a frozen one has none
    gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    expected = torch.cat(gradients).norm().item()
    norm = gradient_norm(model.parameters())
    assert norm.item() == pytest.approx(expected, rel=1e-6)
    clip_gradients(model.parameters(), norm, 2 * expected)
    for parameter, before in zip((p for p in model.parameters() if p.grad is not None), gradients, strict=True):
        assert torch.equal(parameter.grad.flatten(), before.float())  # smaller than the limit: untouched
    clip_gradients(model.parameters(), norm, 0.5)
    assert gradient_norm(model.parameters()).item() == pytest.approx(0.5, rel=1e-5)
    for parameter, before in zip((p for p in model.parameters() if p.grad is not None), gradients, strict=True):
        assert torch.allclose(parameter.grad.flatten().double(), before * (0.5 / expected), rtol=1e-5)
    model[0].weight.grad[0, 0] = float("nan")
    assert math.isnan(gradient_norm(model.parameters()))
    assert gradient_norm([nn.Parameter(torch.ones(1))]) == 0


def test_a_schedule_moves_on_without_the_optimisers_step(recwarn):
    _, schedule = make_optimizer(nn.Linear(2, 2), config_of("optim.epochs=10", "optim.schedule=linear"), 10)
    advance(schedule, stepped=False)
    assert schedule.last_epoch == 1 and not recwarn.list


def test_going_on_under_another_configuration_keeps_moments_and_takes_the_new_settings():
    model = nn.Linear(2, 2)
    before, schedule = make_optimizer(model, config_of("optim.epochs=10", "optim.learning_rate=0.1"), 20)
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        before.step()
        schedule.step()
    changed = config_of("optim.epochs=10", "optim.learning_rate=0.4", "optim.schedule=linear", "optim.betas=[0.5,0.9]")
    after, linear = make_optimizer(model, changed, 21)
    continue_changed(after, linear, before.state_dict(), 5)
    assert after.param_groups[0]["lr"] == pytest.approx(0.4 * 0.75) and after.param_groups[0]["betas"] == (0.5, 0.9)
    for parameter in model.parameters():
        assert torch.equal(after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"])
        assert after.state[parameter]["step"] == 3
    other, schedule = make_optimizer(model, config_of("optim.epochs=10", "optim.optimizer=sgd"), 20)
    continue_changed(other, schedule, before.state_dict(), 0)
    assert not other.state  # Adam's moments mean nothing to SGD
