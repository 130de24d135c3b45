"""The loop: exact resume, AWP inside it, warm-up, and what stops a run."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain import trainer as trainer_module
from qadtrain.config import Config
from qadtrain.config_io import load_config
from qadtrain.data import TupleBatch, TupleDataset, collate
from qadtrain.fit import FitSummary, fit, resolve
from qadtrain.optim import make_optimizer
from qadtrain.trainer import Trainer

# Everything that draws random numbers or changes course is on: dropout, flips, warm-up, AWP, HSIC.
BASE = [
    "optim.epochs=3",
    "optim.head_only_epochs=1",
    "awp.start_epoch=2",
    "awp.loss=ce+hsic",
    "model.drop_rate=0.3",
    "train.log_every_steps=2",
    "train.device=cpu",
    "data.num_workers=0",
    "data.batch_tuples=16",
]


def tiny(*overrides: str) -> Config:
    return load_config("tiny", overrides=[*BASE, *overrides])


class StopAfter:
    """Asks for a stop at the given step boundary."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> str:
        self.left -= 1
        return "SIGTERM" if self.left == 0 else ""


def quiet_fit(shards: Path, run: Path, config: Config, **options) -> FitSummary:
    quiet = {"console": Console(file=io.StringIO()), "should_stop": lambda: ""}
    return fit(shards, run, config, **(quiet | options))


def checkpoint(run: Path) -> tuple[dict, dict]:
    state = torch.load(run / "checkpoints" / "last.state.pt", weights_only=True)
    return load_file(run / "checkpoints" / "last.safetensors"), state


def assert_equal(a, b, where: str = "") -> None:
    assert type(a) is type(b), where
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def straight(shards_dir, tmp_path_factory) -> Path:
    """Three epochs of six steps without a stop."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("straight") / "run"
    summary = quiet_fit(shards_dir, run, tiny())
    assert (summary.epochs, summary.steps, summary.stopped_by) == (3, 18, "")
    return run


def records(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


# A stop at every kind of place. ``should_stop`` is asked after each step and once more after each epoch's
# validation, so 6 is the last step of epoch 1 before its validation and 7 the end of epoch 1.
@pytest.mark.parametrize(("stops", "workers"), [((3,), 0), ((6,), 0), ((7,), 0), ((9,), 2), ((16,), 1), ((2, 5, 6), 0)])
def test_resumed_training_gives_the_same_bits_as_training_straight_through(
    shards_dir, straight, tmp_path, stops, workers
):
    run = tmp_path / "run"
    for number, stop in enumerate(stops):
        config = tiny(f"data.num_workers={workers if number % 2 else 0}")
        summary = quiet_fit(shards_dir, run, config, resume=number > 0, should_stop=StopAfter(stop))
        assert summary.stopped_by == "SIGTERM" and summary.steps < 18
        torch.rand(5)  # the process between the two attempts is not the same
    summary = quiet_fit(shards_dir, run, tiny(f"data.num_workers={workers}"), resume=True)
    assert summary.steps == 18
    for got, expected in zip(checkpoint(run), checkpoint(straight), strict=True):
        assert_equal(got, expected)
    best = (load_file(folder / "checkpoints" / "best.safetensors") for folder in (run, straight))
    assert_equal(*best)
    assert records(run, "epoch") == records(straight, "epoch")


def test_another_seed_gives_other_weights(shards_dir, straight, tmp_path):
    quiet_fit(shards_dir, tmp_path / "run", tiny("train.seed=1"))
    assert not torch.equal(
        checkpoint(tmp_path / "run")[0]["backbone.classifier.weight"],
        checkpoint(straight)[0]["backbone.classifier.weight"],
    )


def test_the_log_says_what_each_epoch_did(straight):
    head, plain, adversarial = ([r for r in records(straight, "train") if r["epoch"] == e] for e in range(3))
    assert len(head) == len(plain) == len(adversarial) == 3
    for record in head:
        assert record["loss"] == pytest.approx(record["ce"])  # HSIC is off, its values are only measured
        assert "cka/stage1" in record and "awp_ce_rise" not in record
    for record in plain:
        weighted = 0.1 * record["hsic/stage1"] + 0.25 * record["hsic/stage2"] + 0.5 * record["hsic/stage3"]
        assert record["loss"] == pytest.approx(record["ce"] - 0.1 * 2 * weighted, rel=1e-5)
        assert "awp_ce_rise" not in record
    for record in adversarial:
        assert "awp_ce_rise" in record and record["awp_skipped_steps"] == record["awp_skipped_tensors"] == 0
        assert 0 < record["lr"] <= 4e-3 and 0 <= record["data_wait"] <= 1 and record["tuples_per_s"] > 0


def test_run_folder_says_what_ran(straight, shards_dir):
    facts = json.loads((straight / "run.json").read_text())
    assert facts["shards"]["fingerprint"] == ShardSet(shards_dir).fingerprint
    assert facts["shards"]["qualities"] == ["raw", "c23", "c40"] and facts["precision"] == "fp32"
    assert facts["versions"]["torch"] in torch.__version__ and facts["model"]["origin"] == "random"
    assert 'name = "tiny"' in (straight / "config.toml").read_text()
    assert "image_size_px = 32" in (straight / "config.toml").read_text()
    assert list((straight / "tensorboard").glob("events*"))


def make_trainer(shards_dir: Path, run: Path, *overrides: str) -> tuple[Trainer, TupleBatch]:
    shards = ShardSet(shards_dir, "train")
    config = resolve(tiny(*overrides), shards)
    trainer = Trainer(shards, None, config, run, Console(file=io.StringIO()))
    dataset = TupleDataset(shards, 0, 0.0)
    return trainer, collate([dataset[0, i] for i in range(16)])


def buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.named_buffers()}


def test_head_only_epochs_change_the_classifier_alone(shards_dir, tmp_path):
    trainer, batch = make_trainer(shards_dir, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._set_mode()
    trainer.train_step(batch, measure=False)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"backbone.classifier.weight", "backbone.classifier.bias"}


@pytest.mark.parametrize("policy", ["reference", "clean"])
def test_batchnorm_statistics_see_one_pass_of_an_awp_step(shards_dir, tmp_path, policy):
    """``clean``: the statistics equal those of a step without AWP; ``reference``: one update, of the other pass."""
    seen = {}
    for gamma in ("0.0", "0.05"):
        trainer, batch = make_trainer(
            shards_dir, tmp_path, f"awp.gamma={gamma}", f"awp.batchnorm={policy}", "model.drop_rate=0"
        )
        trainer.position.epoch = 2
        trainer._set_mode()
        trainer.train_step(batch, measure=False)
        seen[gamma] = buffers(trainer)
    assert seen["0.05"]["backbone.stem.1.num_batches_tracked"] == 1
    same = all(torch.equal(seen["0.0"][name], seen["0.05"][name]) for name in seen["0.0"])
    assert same == (policy == "clean")


def test_awp_step_leaves_the_weights_to_the_optimiser_alone(shards_dir, tmp_path):
    """With a learning rate of nothing the weights are bit-equal after a whole AWP step."""
    trainer, batch = make_trainer(shards_dir, tmp_path, "awp.gamma=0.05", "model.drop_rate=0")
    trainer.position.epoch = 2
    trainer._set_mode()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    values = trainer.train_step(batch, measure=False)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert values["awp_ce_rise"] > 0


def test_awp_runs_when_and_on_what_it_is_told(shards_dir, tmp_path):
    trainer, batch = make_trainer(shards_dir, tmp_path, "awp.every_steps=2", "awp.batch_fraction=0.5")
    asked = []
    for epoch, step in ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2)):
        trainer.position.epoch, trainer.position.step = epoch, step
        asked.append(trainer._awp_now())
    assert asked == [False, False, True, False, True]
    trainer.position.step = 0
    trainer._set_mode()
    sizes = []
    trainer.model.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    assert "awp_ce_rise" not in trainer.train_step(batch, measure=False)  # two batches: no rise to speak of
    assert sizes == [24, 48]


def test_bf16_on_request_keeps_fp32_weights_and_an_fp32_hsic(shards_dir, tmp_path):
    trainer, batch = make_trainer(shards_dir, tmp_path, "train.precision=bf16")
    trainer.position.epoch = 2
    trainer._set_mode()
    dtypes = set()
    trainer.model.backbone.stage1.register_forward_hook(lambda _m, _i, output: dtypes.add(output.dtype))
    values = trainer.train_step(batch, measure=True)
    assert dtypes == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert math.isfinite(values["loss"]) and 0 < values["cka/stage1"] <= 1


def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_checkpoint(shards_dir, tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def poisoned(self, batch, *, measure):
        if self.position.global_step == 8:
            with torch.no_grad():
                self.model.head.weight.fill_(float("nan"))
        return train_step(self, batch, measure=measure)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(UserError, match=r"loss of step 9 is nan: training stopped; the checkpoint before it is kept"):
        quiet_fit(shards_dir, tmp_path / "run", tiny())
    weights, state = checkpoint(tmp_path / "run")
    assert state["global_step"] == 6
    assert all(value.isfinite().all() for value in weights.values())
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl"))


def test_resume_and_restart_are_refused_in_one_line(shards_dir, make_shards, straight, tmp_path):
    def message(shards: Path, run: Path, config: Config, **options) -> str:
        with pytest.raises(UserError) as caught:
            quiet_fit(shards, run, config, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "already has checkpoints; continue it with --resume" in message(shards_dir, straight, tiny())
    assert "no checkpoint to resume from" in message(shards_dir, tmp_path / "new", tiny(), resume=True)
    text = message(shards_dir, straight, tiny("awp.gamma=0.5", "optim.epochs=9"), resume=True)
    assert "awp.gamma: got 0.5, expected 0.002; optim.epochs: got 9, expected 3" in text
    other = make_shards(tmp_path / "other", {"train": 96, "val": 32}, seed=9)
    assert "cannot resume on other data: got a shard set with fingerprint" in message(
        other, straight, tiny(), resume=True
    )
    finished = quiet_fit(shards_dir, straight, tiny("train.log_every_steps=7"), resume=True)
    assert finished.steps == 18


def test_data_that_does_not_fit_is_refused(make_shards, tmp_path):
    one = make_shards(tmp_path / "one", {"train": 32}, qualities=("c23",))
    with pytest.raises(UserError, match=r"hsic.alpha: got 0.1, expected 0 for a shard set with the one quality 'c23'"):
        quiet_fit(one, tmp_path / "run", tiny())
    assert quiet_fit(one, tmp_path / "run", tiny("hsic.alpha=0", "optim.epochs=2")).steps == 4
    with pytest.raises(UserError, match=r"data.batch_tuples: got 64, expected at most 32"):
        quiet_fit(one, tmp_path / "run2", tiny("hsic.alpha=0", "data.batch_tuples=64"))
    assert not (tmp_path / "run2").exists()


@pytest.mark.parametrize(
    ("splits", "labels", "reason"),
    [({"train": 32}, (0, 1), "no split 'val'"), ({"train": 32, "val": 8}, (1,), "split 'val' has only fake faces")],
)
def test_without_a_usable_validation_split_the_training_loss_picks_and_it_is_said(
    make_shards, tmp_path, splits, labels, reason
):
    shards = make_shards(tmp_path / "set", splits, labels=labels)
    out = io.StringIO()
    summary = quiet_fit(shards, tmp_path / "run", tiny(), console=Console(file=out, width=200))
    assert f"best checkpoint by cross-entropy on the train split: {reason}" in out.getvalue()
    assert summary.best_by == "cross-entropy on the train split"
    losses = [record["train_ce"] for record in records(tmp_path / "run", "epoch")]
    assert summary.best_epoch == losses.index(min(losses)) and summary.best_score == pytest.approx(min(losses))


def test_checkpoints_inside_an_epoch(shards_dir, tmp_path, monkeypatch):
    saved = []
    save_last = trainer_module.save_last

    def noting(run, model, state):
        saved.append(state["global_step"])
        save_last(run, model, state)

    monkeypatch.setattr(trainer_module, "save_last", noting)
    quiet_fit(shards_dir, tmp_path / "run", tiny("optim.epochs=2", "train.checkpoint_every_steps=4"))
    assert saved == [4, 6, 8, 12, 12]


@pytest.mark.parametrize("total_steps", [1, 2, 5, 20, 640])
def test_the_schedule_rises_then_falls_at_any_length(total_steps):
    config = load_config("qad-r").optim  # pct_start 0.05: at 20 steps torch's own formula would divide by zero
    optimizer, schedule = make_optimizer(torch.nn.Linear(2, 2), config, total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    peak = rates.index(max(rates))
    assert all(0 < rate <= config.learning_rate * 1.0001 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    if total_steps == 640:
        assert peak == 31 and max(rates) == pytest.approx(2e-4, rel=1e-3)


def test_tiny_learns_and_hsic_aligns(make_shards, tmp_path):
    shards = make_shards(tmp_path / "set", {"train": 192, "val": 64}, size_px=32)
    config = load_config("tiny", overrides=["data.num_workers=0", "train.device=cpu"])
    summary = quiet_fit(shards, tmp_path / "run", config)
    assert summary.best_score > 0.95
    last = records(tmp_path / "run", "epoch")[-1]
    assert last["auc/raw"] > 0.99 and last["auc/c40"] > 0.85
    train = records(tmp_path / "run", "train")
    assert train[-1]["ce"] < 0.3 < train[0]["ce"]
    rises = [record["awp_ce_rise"] for record in train if "awp_ce_rise" in record]
    assert rises and sum(rises) / len(rises) > 0


@pytest.mark.parametrize(("preset", "sister"), [("qad-r", "resnet18"), ("qad-e", "efficientnet_b0")])
def test_the_large_presets_run_as_they_are_but_for_their_size(make_shards, tmp_path, preset, sister):
    """Their taps, nhsic_cca, AWP, dropout and stochastic depth, on 8 tuples of 32 px with a smaller backbone."""
    shards = make_shards(tmp_path / "set", {"train": 16}, size_px=32)
    changes = [f"model.name={sister}", "model.pretrained=false", "data.image_size_px=32", "data.batch_tuples=8"]
    changes += ["data.num_workers=0", "optim.epochs=3", "optim.head_only_epochs=1", "awp.start_epoch=2"]
    changes += ["train.log_every_steps=1", "train.deterministic=true", "train.device=cpu"]
    config = load_config(preset, overrides=changes)
    quiet_fit(shards, tmp_path / "run", config)
    lines = records(tmp_path / "run", "train")
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    for line in lines:
        for tap in config.model.taps:
            assert 0 < line[f"hsic/{tap}"] <= 7  # nHSIC lies between 0 and m - 1
            assert -1.01 < line[f"cka/{tap}"] < 1.01
    assert lines[2]["loss"] == pytest.approx(lines[2]["ce"] - config.hsic.alpha * lines[2]["hsic"], rel=1e-5)
    assert all("awp_ce_rise" in line and line["awp_skipped_steps"] == 0 for line in lines[4:])
