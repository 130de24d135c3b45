"""The proofs AWP needs: direction, restore to the bit, BatchNorm untouched, the loss rises, no wait for the device."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
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


def proxy_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch, gamma: float) -> torch.Tensor:
    """One step as the reference takes it: proxy, SGD on minus the loss, change scaled, add, step at w + v, subtract."""
    proxy = copy.deepcopy(model)
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    ascent.zero_grad()
    (-loss_of(proxy, batch)).backward()
    ascent.step()
    before, after = model.state_dict(), proxy.state_dict()
    moves = {}
    for name, w in before.items():
        if w.ndim > 1 and "weight" in name:
            change = after[name] - w
            moves[name] = gamma * w.norm() / (change.norm() + 1e-20) * change
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, v in moves.items():
            weights[name].add_(v)
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for name, v in moves.items():
            weights[name].sub_(v)
    return loss.detach()


def awp_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch, adversary: awp.AdversarialWeights):
    """One step as qadtrain takes it."""
    optimizer.zero_grad()
    with awp.batchnorm_of_pass(model, "reference", perturbed=False):
        perturbation = adversary.find(loss_of(model, batch))
    with adversary.applied(perturbation), awp.batchnorm_of_pass(model, "reference", perturbed=True):
        loss = loss_of(model, batch)
        loss.backward()
    optimizer.step()
    return loss.detach()


def test_training_follows_the_proxy_form_of_the_reference(batch):
    """Six steps: losses, gradients, weights and BatchNorm statistics, against the proxy in float64."""
    ours = small_model().train()
    reference = copy.deepcopy(ours).double()
    gamma, starts = 0.05, state(ours)
    adversary = awp.AdversarialWeights(ours, gamma)
    steps = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (ours, reference)]
    for _ in range(6):
        loss = awp_step(ours, steps[0], batch, adversary)
        expected = proxy_step(reference, steps[1], (batch[0].double(), batch[1]), gamma)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        for w, r in zip(ours.parameters(), reference.parameters(), strict=True):
            # The bias before BatchNorm has no gradient but rounding.
            assert (w.grad - r.grad).norm() < 1e-3 * r.grad.norm() + 1e-6
    for name, value in ours.state_dict().items():
        expected = reference.state_dict()[name]
        moved = (expected - starts[name]).double().norm()
        assert (value - expected).double().norm() <= 1e-3 * moved + 1e-6, name
    assert ours[1].num_batches_tracked == 6


@pytest.mark.parametrize("norm", ["tensor", "filter", "global"])
def test_norms_against_numpy(batch, norm):
    model, gamma = small_model(), 0.03
    adversary = awp.AdversarialWeights(model, gamma, norm=norm)
    gradients = torch.autograd.grad(loss_of(model, batch), adversary.parameters())
    perturbation = adversary.find_from(gradients)
    ws = [w.detach().double().numpy() for w in adversary.parameters()]
    gs = [g.double().numpy() for g in gradients]
    whole = np.sqrt(sum((g**2).sum() for g in gs))
    for w, g, v in zip(ws, gs, perturbation.values, strict=True):
        if norm == "global":
            expected = gamma * g / whole
        elif norm == "tensor":
            expected = gamma * np.sqrt((w**2).sum()) / np.sqrt((g**2).sum()) * g
        else:
            expected = np.stack(
                [
                    gamma * np.linalg.norm(wo.ravel()) / np.linalg.norm(go.ravel()) * go
                    for wo, go in zip(w, g, strict=True)
                ]
            )
        np.testing.assert_allclose(v.numpy(), expected, rtol=2e-5, atol=1e-9)
    names = {id(p): n for n, p in model.named_parameters()}
    moved = [names[id(p)] for p in perturbation.parameters]
    if norm == "global":
        assert moved == list(names.values())  # SAM moves biases and norms too
        assert sum(v.double().square().sum() for v in perturbation.values).sqrt().item() == pytest.approx(
            gamma, rel=1e-5
        )
    else:
        assert moved == ["0.weight", "3.weight", "6.weight"]
    assert perturbation.finite and perturbation.skipped_tensors == 0 and perturbation.skipped_steps == 0


def test_channels_last_gives_the_same_direction(batch):
    model = small_model()
    for norm in ("tensor", "filter"):
        plain = awp.AdversarialWeights(model, 0.03, norm=norm).find(loss_of(model, batch))
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        last = awp.AdversarialWeights(other, 0.03, norm=norm)
        found = last.find(loss_of(other, batch))
        for a, b in zip(plain.values, found.values, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
        before = state(other)
        with last.applied(found):
            assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
            assert torch.allclose(other[3].weight, before["3.weight"] + found.values[1])
        assert_same(state(other), before)


def test_direction_of_accumulated_parts_is_that_of_the_batch(batch):
    model = small_model().eval()  # in training mode BatchNorm would see other batches
    adversary = awp.AdversarialWeights(model, 0.03)
    whole = adversary.find(loss_of(model, batch))
    halves = [
        torch.autograd.grad(loss_of(model, (batch[0][half], batch[1][half])) / 2, adversary.parameters())
        for half in (slice(8), slice(8, 16))
    ]
    summed = adversary.find_from([a + b for a, b in zip(*halves, strict=True)])
    for a, b in zip(whole.values, summed.values, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norm", ["tensor", "filter", "global"])
def test_a_loss_scale_cancels_and_one_that_overflows_moves_nothing(batch, norm):
    model = small_model()
    adversary = awp.AdversarialWeights(model, 0.03, norm=norm)
    plain = adversary.find(loss_of(model, batch))
    scaled = adversary.find(loss_of(model, batch) * 2.0**16)
    for a, b in zip(plain.values, scaled.values, strict=True):
        assert (a - b).norm() <= 1e-6 * a.norm()
    overflown = adversary.find(loss_of(model, batch) * torch.inf)
    before = state(model)
    with adversary.applied(overflown):
        assert_same(state(model), before)
    assert overflown.skipped_steps == 1 and overflown.skipped_tensors == len(adversary.parameters())


def test_step_with_learning_rate_zero_leaves_the_weights_to_the_bit(batch):
    model = small_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for norm in ("tensor", "filter", "global"):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
        awp_step(model, optimizer, batch, awp.AdversarialWeights(model, 0.05, norm=norm))
        assert model[0].weight.grad.norm() > 0
        assert_same({name: p.detach() for name, p in model.named_parameters()}, before)


def test_nothing_reads_a_value_from_the_device():
    """A fake tensor has no values: whatever would wait for a GPU raises, as the last line does."""
    with FakeTensorMode():
        model = small_model().train()
        data = torch.zeros(16, 3, 8, 8), torch.zeros(16, dtype=torch.int64)
        for norm in ("tensor", "filter", "global"):
            adversary = awp.AdversarialWeights(model, 0.03, norm=norm)
            perturbation = adversary.find(loss_of(model, data))
            with adversary.applied(perturbation):
                loss_of(model, data).backward()
            total = perturbation.skipped_tensors + perturbation.skipped_steps
            assert total.dtype == torch.float32 and total.shape == ()
        with pytest.raises(DataDependentOutputException):
            bool(perturbation.finite)


def test_perturbed_weights_are_used_inside_one_autocast_region(batch):
    """Autocast keeps its bf16 casts to the end of the region; those of w must not serve for w + v."""
    model = small_model()
    adversary = awp.AdversarialWeights(model, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16), awp.batchnorm_statistics_kept(model):
        clean = loss_of(model, batch)
        perturbation = adversary.find(clean)
        with adversary.applied(perturbation):
            inside = loss_of(model, batch)
        after = loss_of(model, batch)
    assert inside.item() > clean.item() + 0.1
    assert after.item() == clean.item()


def test_compiled_forward_is_not_compiled_again_after_the_first_step(batch):
    """Two graphs, one for each state of the norms; the weights change in place under both."""
    torch._dynamo.reset()
    model = small_model().train()
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, dynamic=False)
    losses = []
    for runs, bare in ((compiled, model), (eager, eager)):
        adversary = awp.AdversarialWeights(bare, 0.05)
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.05)
        for step in range(4):
            optimizer.zero_grad()
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                with awp.batchnorm_of_pass(bare, "reference", perturbed=False):
                    perturbation = adversary.find(loss_of(runs, batch))
                with adversary.applied(perturbation), awp.batchnorm_of_pass(bare, "reference", perturbed=True):
                    loss = loss_of(runs, batch)
                    loss.backward()
            optimizer.step()
            losses.append(loss.item())
    torch._dynamo.reset()
    assert counter.frame_count == 2
    assert losses[:4] == pytest.approx(losses[4:], rel=1e-5)
    assert losses[3] < losses[0]
    assert model[1].num_batches_tracked == 4
    assert torch.allclose(model[1].running_var, eager[1].running_var, rtol=1e-5)


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


@pytest.mark.parametrize("policy", ["reference", "clean"])
def test_one_pass_alone_updates_the_statistics(batch, policy):
    model = small_model().train()
    counts = []
    for perturbed in (False, True):
        before = int(model[1].num_batches_tracked)
        with awp.batchnorm_of_pass(model, policy, perturbed=perturbed):
            loss_of(model, batch)
        counts.append(int(model[1].num_batches_tracked) - before)
    assert counts == ([0, 1] if policy == "reference" else [1, 0])


def test_sync_batchnorm_is_held_too(batch):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small_model()).train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with awp.batchnorm_statistics_kept(model):
        model(batch[0])
    assert_same(dict(model.named_buffers()), buffers)
    model(batch[0])
    assert model[1].num_batches_tracked == 1


@pytest.mark.parametrize("norm", ["tensor", "filter", "global"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_gradients_perturb_nothing(bad, norm):
    w = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 3))]
    g = [torch.ones(2, 2), torch.ones(3, 3)]
    g[1][1, 2] = bad
    perturbation = awp.direction(w, g, 0.1, norm)
    assert not perturbation.finite
    assert all(torch.equal(v, torch.zeros_like(v)) for v in perturbation.values)
    assert perturbation.skipped_tensors == 2 and perturbation.skipped_steps == 1


def test_zero_and_missing_gradients_and_zero_weights_stay_and_are_counted():
    w = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)] + [nn.Parameter(torch.zeros(2, 2))]
    g = [torch.zeros(2, 2), None, torch.full((2, 2), 3.0), torch.ones(2, 2)]
    perturbation = awp.direction(w, g, 0.1)
    assert perturbation.finite and perturbation.skipped_tensors == 3
    moved = {id(p): v for p, v in zip(perturbation.parameters, perturbation.values, strict=True)}
    assert torch.equal(moved[id(w[0])], torch.zeros(2, 2)) and torch.equal(moved[id(w[3])], torch.zeros(2, 2))
    assert torch.allclose(moved[id(w[2])], torch.full((2, 2), 0.1))
    assert id(w[1]) not in moved
    empty = awp.direction(w[:2], [torch.zeros(2, 2), None], 0.1)
    assert empty.finite and empty.skipped_tensors == 2 and not any(v.any() for v in empty.values)
    none = awp.direction(w[:2], [None, None], 0.1)
    assert none.finite and none.skipped_tensors == 2 and none.parameters == []
    assert awp.direction(w[:1], [torch.zeros(2, 2)], 0.1, "global").skipped_tensors == 1


def test_a_filter_without_gradient_stays_and_its_neighbour_moves():
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]]))
    g = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    perturbation = awp.direction([w], [g], 0.1, "filter")
    assert torch.allclose(perturbation.values[0], torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert perturbation.skipped_tensors == 0
    assert awp.direction([w], [g * torch.tensor([[1.0], [0.0], [1.0]])], 0.1, "filter").skipped_tensors == 1


def test_only_trainable_weight_tensors_of_two_dimensions_are_perturbable():
    model = small_model()
    model[0].weight.requires_grad_(False)
    model.register_parameter("table", nn.Parameter(torch.ones(2, 2)))  # no "weight" in its name
    assert list(awp.perturbable_parameters(model)) == ["3.weight", "6.weight"]


def test_frozen_tensors_stay_in_every_norm(batch):
    model = small_model().train()
    for parameter in model[:4].parameters():
        parameter.requires_grad_(False)
    before = state(model)
    for norm, names in (("tensor", ["6.weight"]), ("filter", ["6.weight"]), ("global", ["6.weight", "6.bias"])):
        adversary = awp.AdversarialWeights(model, 0.1, norm=norm)
        with awp.batchnorm_statistics_kept(model):
            perturbation = adversary.find(loss_of(model, batch))
        with adversary.applied(perturbation):
            moved = [name for name, value in state(model).items() if not torch.equal(value, before[name])]
        assert moved == names
    model.requires_grad_(False)
    still = awp.AdversarialWeights(model, 0.1).find(torch.zeros(()))
    assert still.parameters == [] and still.finite and still.skipped_tensors == 0


def test_resnet50_counts_are_those_of_the_reference_measurement():
    import timm

    with torch.device("meta"):
        model = timm.create_model("resnet50", num_classes=2)
    chosen = awp.perturbable_parameters(model)
    assert len(list(model.parameters())) == 161 and len(chosen) == 54
    assert sum(p.numel() for p in chosen.values()) / 1e6 == pytest.approx(23.46, abs=0.01)
    everything = awp.perturbable_parameters(model, "global")
    assert len(everything) == 161
    assert sum(p.numel() for p in everything.values()) / 1e6 == pytest.approx(23.51, abs=0.01)
