"""One optimiser step: against an independent one in float64, by parts, in half precision, compiled, clipped."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers.fit_group_norm import GroupNormCnn
from helpers.training import GROUP_NORM, begin, make_trainer
from torch import nn
from torch.func import functional_call, grad
from torch.nn import functional

from qadprep.errors import UserError
from qadtrain import step as step_module
from qadtrain.device import seed_step
from qadtrain.ema import WeightAverage
from qadtrain.models import register

register("group_norm", lambda _config: GroupNormCnn())
PLAIN_CE = ["hsic.alpha=0", "optim.class_weights=none"]
SGD = ["optim.optimizer=sgd", "optim.momentum=0", "optim.schedule=constant", "optim.learning_rate=0.5"]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def test_steps_equal_independent_ones_in_float64(shards_dir, tmp_path):
    """AWP, clipping by the second pass's gradient, SGD at the restored weights, and the moving average after it."""
    gamma, clip, rate, decay = 0.1, 0.4, 0.5, 0.7
    options = [*GROUP_NORM, *PLAIN_CE, *SGD, f"awp.gamma={gamma}", f"optim.clip_norm={clip}", "awp.loss=ce"]
    trainer, batch = make_trainer(shards_dir, tmp_path, *options, f"optim.ema_decay={decay}")
    begin(trainer, 2)
    model = copy.deepcopy(trainer.model.backbone).double()
    images, labels = batch.images.double(), batch.labels.repeat_interleave(3)

    def loss_of(parameters):
        maps = functional_call(model, parameters, images)
        return functional.cross_entropy(maps, labels)

    model.forward = lambda x: model.forward_head(model.forward_features(x))
    w = {name: p.detach() for name, p in model.named_parameters()}
    average = dict(w)
    for _ in range(3):
        values = trainer.train_step(batch, measure=False)
        g = grad(loss_of)(w)
        v = {n: gamma * w[n].norm() / g[n].norm() * g[n] if w[n].ndim > 1 else torch.zeros_like(w[n]) for n in w}
        moved = {n: w[n] + v[n] for n in w}
        second = grad(loss_of)(moved)
        norm = torch.cat([value.flatten() for value in second.values()]).norm().item()
        assert values["awp_ce_rise"].item() == pytest.approx((loss_of(moved) - loss_of(w)).item(), abs=1e-6)
        assert values["grad_norm"].item() == pytest.approx(norm, rel=1e-4)
        w = {n: w[n] - rate * second[n] * min(1.0, clip / norm) for n in w}
        average = {n: decay * average[n] + (1 - decay) * w[n] for n in w}
    assert norm > clip  # or clipping would not have been tested
    kept = trainer.average.state_dict()
    for name, parameter in trainer.model.backbone.named_parameters():
        assert torch.allclose(parameter.double(), w[name], atol=2e-6), name
        assert torch.allclose(kept[f"backbone.{name}"].double(), average[name], atol=2e-6), name
        assert kept[f"backbone.{name}"].dtype == torch.float32


def test_parts_of_a_batch_give_the_step_of_the_whole(shards_dir, tmp_path):
    seen = {}
    for parts in (1, 2, 4):
        options = [*GROUP_NORM, *PLAIN_CE, *SGD, "awp.gamma=0.1", "awp.loss=ce", f"optim.accumulate_steps={parts}"]
        trainer, batch = make_trainer(shards_dir, tmp_path, *options)
        begin(trainer, 2)
        sizes = []
        trainer.model.register_forward_pre_hook(lambda _module, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        for _ in range(2):
            values = trainer.train_step(batch, measure=False)
        assert sizes == [48 // parts] * (4 * parts)
        seen[parts] = weights(trainer) | {"ce": values["ce"], "rise": values["awp_ce_rise"]}
    for parts in (2, 4):
        for name, value in seen[1].items():
            assert torch.allclose(seen[parts][name], value, atol=1e-6), (parts, name)


def test_class_weights_are_those_of_the_whole_batch_also_by_parts(shards_dir, tmp_path):
    """The first part has real tuples alone, so its own weight sum is another one than the last part's."""
    seen = {}
    for parts in (1, 4):
        options = [*GROUP_NORM, "hsic.alpha=0", *SGD, "awp.gamma=0.1", "awp.loss=ce", f"optim.accumulate_steps={parts}"]
        trainer, batch = make_trainer(shards_dir, tmp_path, *options)
        trainer.step.loss.class_weights = torch.tensor([3.0, 0.4])
        order = batch.labels.argsort(stable=True)
        rows = (order[:, None] * 3 + torch.arange(3)).flatten()
        sorted_batch = replace(batch, images=batch.images[rows], labels=batch.labels[order])
        begin(trainer, 2)
        for _ in range(2):
            values = trainer.train_step(sorted_batch, measure=False)
        seen[parts] = weights(trainer) | {"ce": values["ce"], "rise": values["awp_ce_rise"]}
    for name, value in seen[1].items():
        assert torch.allclose(seen[4][name], value, atol=1e-6), name


def test_a_direction_is_never_found_on_more_than_there_is(shards_dir, tmp_path):
    config = make_trainer(shards_dir, tmp_path, "awp.batch_fraction=0.3")[0].config
    grouped = config.model_copy(update={"hsic": config.hsic.model_copy(update={"group_tuples": 12})})
    assert [step_module.direction_tuples(config, tuples) for tuples in (16, 8)] == [5, 3]
    assert [step_module.direction_tuples(grouped, tuples) for tuples in (24, 6)] == [12, 6]


def test_head_only_epochs_change_the_classifier_alone(shards_dir, tmp_path):
    trainer, batch = make_trainer(shards_dir, tmp_path)
    before = weights(trainer)
    begin(trainer, 0)
    trainer.train_step(batch, measure=False)
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed == {"backbone.classifier.weight", "backbone.classifier.bias"}


@pytest.mark.parametrize("policy", ["reference", "clean"])
def test_batchnorm_statistics_see_one_pass_of_an_awp_step(shards_dir, tmp_path, policy):
    """``clean``: the statistics equal those of a step without AWP; ``reference``: one update, of the other pass."""
    seen = {}
    for gamma in ("0.0", "0.05"):
        trainer, batch = make_trainer(
            shards_dir, tmp_path, f"awp.gamma={gamma}", f"awp.batchnorm={policy}", "model.drop_rate=0"
        )
        begin(trainer, 2)
        trainer.train_step(batch, measure=False)
        seen[gamma] = {name: value.clone() for name, value in trainer.model.named_buffers()}
    assert seen["0.05"]["backbone.stem.1.num_batches_tracked"] == 1
    same = all(torch.equal(seen["0.0"][name], seen["0.05"][name]) for name in seen["0.0"])
    assert same == (policy == "clean")


def test_awp_step_leaves_the_weights_to_the_optimiser_alone(shards_dir, tmp_path):
    """With a learning rate of nothing the weights are bit-equal after a whole AWP step."""
    trainer, batch = make_trainer(shards_dir, tmp_path, "awp.gamma=0.05", "model.drop_rate=0")
    begin(trainer, 2)
    for group in trainer.step.optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    values = trainer.train_step(batch, measure=False)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert values["awp_ce_rise"] > 0


def test_awp_runs_when_and_on_what_it_is_told(shards_dir, tmp_path):
    trainer, batch = make_trainer(shards_dir, tmp_path, "awp.every_steps=2", "awp.batch_fraction=0.3")
    asked = []
    for epoch, step in ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2)):
        trainer.position.epoch, trainer.position.step = epoch, step
        asked.append(trainer._awp_now())
    assert asked == [False, False, True, False, True]
    begin(trainer, 2)
    sizes = []
    trainer.model.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    assert "awp_ce_rise" not in trainer.train_step(batch, measure=False)  # two batches: no rise to speak of
    assert sizes == [15, 48]  # ceil(0.3 * 16) tuples of three qualities


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_keeps_fp32_weights_and_near_the_fp32_gradient(shards_dir, tmp_path, precision, dtype):
    norms = {}
    for name in ("fp32", precision):
        trainer, batch = make_trainer(shards_dir, tmp_path, f"train.precision={name}", "model.drop_rate=0")
        begin(trainer, 2)
        dtypes = set()
        trainer.model.backbone.stage1.register_forward_hook(
            lambda _m, _i, output, dtypes=dtypes: dtypes.add(output.dtype)
        )
        values = trainer.train_step(batch, measure=True)
        norms[name] = values["grad_norm"].item()
        assert math.isfinite(values["loss"]) and -1 <= values["cka/stage1"] <= 1
    assert dtypes == {dtype}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert norms[precision] == pytest.approx(norms["fp32"], rel=0.1)


def test_an_fp16_overflow_is_left_out_and_lowers_the_scale(shards_dir, tmp_path, recwarn):
    trainer, batch = make_trainer(shards_dir, tmp_path, "train.precision=fp16", "optim.ema_decay=0.5")
    begin(trainer, 2)
    average = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    values = trainer.train_step(batch, measure=False)
    assert values["fp16_skipped_steps"] == 1 and values["awp_skipped_steps"] == 1
    assert trainer.step.scaler.get_scale() == 2.0**59 and trainer.position.skipped_steps == 0
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert trainer.step.schedule.last_epoch == 1 and not recwarn.list
    assert all(torch.equal(value, average[name]) for name, value in trainer.average.state_dict().items())
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert trainer.train_step(batch, measure=False)["fp16_skipped_steps"] == 0
    assert not torch.equal(trainer.model.head.weight, before["backbone.classifier.weight"])
    # A gradient that is not finite even unscaled is a fault like any other.
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer.model.backbone.stem[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match="the gradient of step 3 is not finite: training stopped"):
        trainer.train_step(batch, measure=False)


def test_a_compiled_network_compiles_nothing_after_its_warm_up(shards_dir, tmp_path, monkeypatch):
    """Head alone, all with AWP on a part of the batch, and a validation between: one graph for each kind of pass."""
    graphs = []

    def counting(module, _inputs):
        graphs.append(module)
        return module.forward

    options = ["awp.batch_fraction=0.5", "model.drop_rate=0", "awp.every_steps=2", "train.log_every_steps=1"]
    torch._dynamo.reset()
    monkeypatch.setattr(step_module, "COMPILE_BACKEND", counting)
    trainer, batch = make_trainer(shards_dir, tmp_path / "a", "train.compile=true", *options)
    plain, _ = make_trainer(shards_dir, tmp_path / "b", *options)
    counts = []
    for epoch in (0, 2):
        for one in (trainer, plain):
            one.position.step = 0
            begin(one, epoch)
            for number in range(4):
                one.train_step(batch, measure=bool(number % 2))
                if one is trainer:
                    counts.append(len(graphs))
            with torch.inference_mode():
                one.model.eval()(batch.images[:9])
    # Steps 0 and 1 of each kind of epoch are its warm-up.
    assert counts[0] == 1 and counts[1] == counts[3] and counts[5] == counts[7] <= 4
    for (name, got), expected in zip(trainer.model.state_dict().items(), weights(plain).values(), strict=True):
        assert torch.allclose(got, expected, atol=1e-5), name


class Regularised(GroupNormCnn):
    """A network with a loss of its own."""

    calls = 0

    def extra_loss(self, maps, images, labels):
        assert len(labels) == len(images) == len(maps)
        type(self).calls += 1
        return maps.square().mean()


def test_a_models_own_loss_is_added_in_the_second_pass_alone(shards_dir, tmp_path):
    register("regularised", lambda _config: Regularised())
    options = [*GROUP_NORM, *PLAIN_CE, "model.name=regularised", "awp.gamma=0.1", "optim.accumulate_steps=2"]
    trainer, batch = make_trainer(shards_dir, tmp_path, *options)
    begin(trainer, 2)
    Regularised.calls = 0
    values = trainer.train_step(batch, measure=False)
    assert Regularised.calls == 2  # once for each part
    assert values["extra"] > 0 and values["loss"] == pytest.approx(values["ce"] + values["extra"])


def test_random_numbers_of_a_step_depend_on_seed_step_and_process_alone():
    def drawn(*key):
        seed_step(*key)
        return torch.rand(4).tolist()

    first = drawn(41, 7, 0)
    torch.rand(5)
    assert drawn(41, 7, 0) == first
    assert len({tuple(drawn(*key)) for key in ((41, 7, 0), (41, 8, 0), (41, 7, 1), (42, 7, 0))}) == 4


def test_moving_average_is_applied_for_a_while_and_copies_what_counts_in_integers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = WeightAverage(model, 0.9)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for _ in range(5):
        model(torch.randn(2, 3, 8, 8))
        with torch.no_grad():
            model[0].weight.add_(torch.randn_like(model[0].weight))
        average.update()
        for name, value in model.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), average.applied():
        for name, value in model.state_dict().items():
            assert torch.allclose(value.double(), expected[name].double(), atol=1e-6), name
        assert model[1].num_batches_tracked == 5
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    other = WeightAverage(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0.9)
    other.load_state_dict(average.state_dict())
    assert all(torch.equal(v, average.state_dict()[n]) for n, v in other.state_dict().items())
    with pytest.raises(ValueError, match="got 1 averaged tensors, expected 7"):
        other.load_state_dict({"x": torch.zeros(1)})


def test_sync_batchnorm_is_refused_on_the_cpu(shards_dir, tmp_path):
    with pytest.raises(UserError, match=r"train.sync_batchnorm: got true on cpu, expected false"):
        make_trainer(shards_dir, tmp_path, "train.sync_batchnorm=true")
