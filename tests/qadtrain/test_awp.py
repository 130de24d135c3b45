"""The proofs AWP needs: direction, restore to the bit, BatchNorm untouched, the loss rises."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from qadtrain import awp


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.arange(16) % 2


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], only: str = "") -> None:
    assert a.keys() == b.keys()
    for name in a:
        if only in name:
            assert torch.equal(a[name], b[name]), name


def test_direction_is_the_definition_per_tensor_of_two_or_more_dimensions(batch):
    model, gamma = small_model(), 0.01
    perturbation = awp.AdversarialWeights(model, gamma).find(loss_of(model, batch))
    names = {id(p): n for n, p in model.named_parameters()}
    assert [names[id(p)] for p in perturbation.parameters] == ["0.weight", "3.weight", "6.weight"]
    gradients = torch.autograd.grad(loss_of(model, batch), perturbation.parameters)
    for w, g, v in zip(perturbation.parameters, gradients, perturbation.values, strict=True):
        expected = gamma * w.double().norm() / g.double().norm() * g.double()
        assert torch.allclose(v.double(), expected, rtol=1e-5, atol=1e-12)
        assert v.norm().item() == pytest.approx(gamma * w.norm().item(), rel=1e-5)


def test_equals_the_proxy_form_of_the_reference(batch):
    """Copy the model, one SGD step of 0.01 on minus the loss, scale the change to gamma times the weights."""
    model, gamma = small_model(), 0.005
    perturbation = awp.AdversarialWeights(model, gamma).find(loss_of(model, batch))
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-loss_of(proxy, batch)).backward()
    optimizer.step()
    before, after = dict(model.named_parameters()), dict(proxy.named_parameters())
    for name, v in zip(awp.perturbable_parameters(model), perturbation.values, strict=True):
        change = after[name] - before[name]
        expected = gamma * before[name].norm() / (change.norm() + 1e-20) * change
        assert (v - expected).norm() / expected.norm() < 3e-3  # the proxy's own cancellation in float32


def test_weights_come_back_to_the_bit_and_the_loss_rises_in_between(batch):
    model = small_model().train()
    before = state(model)
    adversary = awp.AdversarialWeights(model, 0.02)
    with awp.batchnorm_statistics_kept(model):
        clean = loss_of(model, batch)
        perturbation = adversary.find(clean)
        with adversary.applied(perturbation):
            raised = loss_of(model, batch)
            moved = model[0].weight.detach().clone()
    assert_same(state(model), before)
    assert not torch.equal(moved, before["0.weight"])
    assert raised.item() > clean.item()


def test_weights_come_back_when_an_exception_passes_through(batch):
    model = small_model().train()
    before = state(model)
    adversary = awp.AdversarialWeights(model, 0.02)
    with awp.batchnorm_statistics_kept(model):
        perturbation = adversary.find(loss_of(model, batch))
    with pytest.raises(RuntimeError, match="in the middle"), adversary.applied(perturbation):
        assert not torch.equal(model[0].weight, before["0.weight"])
        raise RuntimeError("in the middle")
    assert_same(state(model), before)


def test_weights_do_not_drift_over_many_cycles(batch):
    """What subtracting v again would do in bfloat16 weights; the copy brings the bits back."""
    model = small_model().bfloat16().train()
    before = state(model)
    adversary = awp.AdversarialWeights(model, 0.002)
    data = batch[0].bfloat16(), batch[1]
    with awp.batchnorm_statistics_kept(model):
        for _ in range(20):
            with adversary.applied(adversary.find(loss_of(model, data))):
                pass
    assert_same(state(model), before)


def test_direction_pass_leaves_batchnorm_alone_but_normalises_by_the_batch(batch):
    model = small_model().train()
    before = state(model)
    with awp.batchnorm_statistics_kept(model):
        kept = loss_of(model, batch).item()
    assert_same(state(model), before)
    plain = loss_of(model, batch).item()
    assert kept == plain
    assert model[1].num_batches_tracked == 1  # the flag is back: the plain pass counted
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_batchnorm_flag_comes_back_after_an_exception_and_evaluation_mode_is_not_touched(batch):
    model = small_model().train()
    with pytest.raises(RuntimeError), awp.batchnorm_statistics_kept(model):
        raise RuntimeError
    assert model[1].track_running_stats
    model.eval()
    outside = model(batch[0])
    with awp.batchnorm_statistics_kept(model):
        assert torch.equal(model(batch[0]), outside)


def test_timm_norm_layers_are_held_too():
    import timm

    model = timm.create_model("efficientnet_b0", num_classes=2, drop_rate=0.0).train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with awp.batchnorm_statistics_kept(model):
        model(torch.randn(2, 3, 32, 32))
    assert_same(dict(model.named_buffers()), buffers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_gradients_perturb_nothing(bad):
    w = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 3))]
    g = [torch.ones(2, 2), torch.full((3, 3), bad)]
    perturbation = awp.direction(w, g, 0.1)
    assert not perturbation.finite
    assert perturbation.parameters == []
    assert perturbation.skipped_tensors == 2


def test_zero_and_missing_gradients_and_zero_weights_are_left_out_and_counted():
    w = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)] + [nn.Parameter(torch.zeros(2, 2))]
    g = [torch.zeros(2, 2), None, torch.full((2, 2), 3.0), torch.ones(2, 2)]
    perturbation = awp.direction(w, g, 0.1)
    assert perturbation.finite and perturbation.skipped_tensors == 3
    assert len(perturbation.parameters) == 1 and perturbation.parameters[0] is w[2]
    assert torch.allclose(perturbation.values[0], torch.full((2, 2), 0.1))
    empty = awp.direction(w[:2], [torch.zeros(2, 2), None], 0.1)
    assert empty.finite and empty.parameters == [] and empty.skipped_tensors == 2


def test_only_trainable_weight_tensors_of_two_dimensions_are_perturbable():
    model = small_model()
    model[0].weight.requires_grad_(False)
    model.register_parameter("table", nn.Parameter(torch.ones(2, 2)))  # no "weight" in its name
    assert list(awp.perturbable_parameters(model)) == ["3.weight", "6.weight"]


def test_resnet50_counts_are_those_of_the_reference_measurement():
    import timm

    model = timm.create_model("resnet50", num_classes=2)
    chosen = awp.perturbable_parameters(model)
    assert len(list(model.parameters())) == 161 and len(chosen) == 54
    assert sum(p.numel() for p in chosen.values()) / 1e6 == pytest.approx(23.46, abs=0.01)
