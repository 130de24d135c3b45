"""The run: exact resume, what the log and the run folder say, validation, the best checkpoint, early stop."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import StopAfter, assert_equal, begin, checkpoint, make_trainer, quiet_fit, records, tiny
from rich.console import Console
from safetensors.torch import load_file

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain import trainer as trainer_module
from qadtrain.checkpoint import checkpoint_path
from qadtrain.config_io import load_config
from qadtrain.position import Position
from qadtrain.tracking import Meter, Stopwatch
from qadtrain.validation import TRAIN_LOSS, best_by, validate


@pytest.fixture(scope="module")
def straight(shards_dir, tmp_path_factory) -> Path:
    """Three epochs of six steps without a stop."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("straight") / "run"
    summary = quiet_fit(shards_dir, run, tiny())
    assert (summary.epochs, summary.steps, summary.stopped_by) == (3, 18, "")
    return run


def assert_same_run(run: Path, straight: Path) -> None:
    for got, expected in zip(checkpoint(run), checkpoint(straight), strict=True):
        assert_equal(got, expected)
    assert_equal(*(load_file(checkpoint_path(folder, "best")) for folder in (run, straight)))
    for kind in ("epoch", "validation"):
        assert records(run, kind) == records(straight, kind)


# ``should_stop`` is asked after each step and once more after each epoch's validation, so 6 is the last step of epoch
# 1 before its validation and 7 the end of epoch 1.
@pytest.mark.parametrize(("stops", "workers"), [((6,), 1), ((7,), 0), ((9, 5), 2)])
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
    assert_same_run(run, straight)


@pytest.mark.parametrize(
    "options",
    [
        ["optim.ema_decay=0.8", "optim.accumulate_steps=2", "optim.clip_norm=0.5", "train.validate_every_steps=2"],
        ["data.sampling=method", "optim.schedule=cosine", "optim.optimizer=adamw", "train.precision=fp16"],
    ],
    ids=["average, parts, clipping", "balanced, fp16"],
)
def test_resume_at_any_step_is_exact_with_everything_that_keeps_state(make_shards, tmp_path, options):
    shards_dir = make_shards(tmp_path / "set", {"train": 48, "val": 16})  # three steps an epoch
    config = tiny("optim.epochs=2", "awp.start_epoch=1", *options)
    quiet_fit(shards_dir, tmp_path / "straight", config)
    stop = random.Random().randrange(1, 8)  # any: the message names it
    quiet_fit(shards_dir, tmp_path / "run", config, should_stop=StopAfter(stop))
    quiet_fit(shards_dir, tmp_path / "run", config, resume=True)
    try:
        assert_same_run(tmp_path / "run", tmp_path / "straight")
    except AssertionError as error:
        raise AssertionError(f"stopped at boundary {stop}: {error}") from error


def test_another_seed_gives_other_weights(shards_dir, straight, tmp_path):
    quiet_fit(shards_dir, tmp_path / "run", tiny("train.seed=1", "optim.epochs=2"))
    name = "backbone.classifier.weight"
    assert not torch.equal(checkpoint(tmp_path / "run")[0][name], checkpoint(straight)[0][name])


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
        assert record["grad_norm"] > 0 and 0.05 < record["memory_gb"] < 100
        assert record["skipped_steps"] == record["skipped_tuples"] == 0
    for record in records(straight, "epoch"):
        for metric in ("auc", "accuracy", "eer", "loss"):
            parts = [record[f"{metric}/{quality}"] for quality in ("raw", "c23", "c40")]
            assert record[f"{metric}/average"] == pytest.approx(sum(parts) / 3)


def test_run_folder_says_what_ran(straight, shards_dir):
    facts = json.loads((straight / "run.json").read_text())
    assert facts["shards"]["fingerprint"] == ShardSet(shards_dir).fingerprint
    assert facts["shards"]["qualities"] == ["raw", "c23", "c40"] and facts["precision"] == "fp32"
    assert facts["versions"]["torch"] in torch.__version__ and facts["model"]["origin"] == "random"
    assert facts["processes"] == 1 and facts["best_by"] == "auc/average" and len(facts["config_hash"]) == 12
    assert "git" in facts and "command" in facts
    assert 'name = "tiny"' in (straight / "config.toml").read_text()
    assert "image_size_px = 32" in (straight / "config.toml").read_text()
    assert list((straight / "tensorboard").glob("events*"))


def test_the_best_is_the_average_model_and_is_what_was_validated(shards_dir, tmp_path):
    run = tmp_path / "run"
    config = tiny("optim.ema_decay=0.8", "optim.epochs=2", "train.best_metric=loss/raw", "optim.head_only_epochs=0")
    summary = quiet_fit(shards_dir, run, config)
    losses = [record["loss/raw"] for record in records(run, "epoch")]
    assert losses[1] < losses[0] and summary.best_epoch == 1 and summary.best_score == losses[1]
    weights, state = checkpoint(run)
    best = load_file(checkpoint_path(run, "best"))
    assert_equal(best, dict(state["ema"]))
    assert not torch.equal(best["backbone.classifier.weight"], weights["backbone.classifier.weight"])
    trainer, _ = make_trainer(shards_dir, run, "optim.ema_decay=0.8")
    trainer.model.load_state_dict(best)
    scores = validate(trainer.model, ShardSet(shards_dir, "val"), config, trainer.device)
    assert scores["loss/raw"] == pytest.approx(losses[1], abs=1e-6)


def test_validation_loss_is_the_cross_entropy_of_the_logits(shards_dir, tmp_path, monkeypatch):
    trainer, _ = make_trainer(shards_dir, tmp_path)
    val = ShardSet(shards_dir, "val")
    logits = np.random.default_rng(0).normal(size=(32, 3, 2)) * 3
    monkeypatch.setattr("qadtrain.validation.score_split", lambda *_args, **_kwargs: logits)
    values = validate(trainer.model, val, trainer.config, trainer.device)
    labels = np.array(val.table["label"].to_pylist())
    for number, quality in enumerate(val.qualities):
        odds = np.exp(logits[:, number])
        chances = odds[np.arange(32), labels] / odds.sum(axis=1)
        assert values[f"loss/{quality}"] == pytest.approx(-np.log(chances).mean(), rel=1e-12)
        right = (logits[:, number, 1] > logits[:, number, 0]) == (labels == 1)
        assert values[f"accuracy/{quality}"] == pytest.approx(right.mean())


@pytest.mark.parametrize("name", ["auc", "auc/c99", "f1/average", "average/auc", ""])
def test_an_unknown_best_metric_is_refused_with_the_choices(name):
    with pytest.raises(UserError) as caught:
        best_by(name, ("raw", "c40"))
    assert str(caught.value) == (
        f"train.best_metric: got {name!r}, expected one of accuracy, auc, eer, loss, then / and one of raw, c40, "
        "average"
    )


def test_which_score_is_better():
    assert best_by("auc/average", ("raw",)).is_better(0.6, 0.5) and best_by("accuracy/raw", ("raw",)).is_better(1, None)
    for lower in (best_by("eer/raw", ("raw",)), best_by("loss/average", ("raw",)), TRAIN_LOSS):
        assert lower.is_better(0.4, 0.5) and not lower.is_better(0.5, 0.5) and not lower.is_better(0.6, 0.5)
        assert not lower.is_better(float("nan"), None)


def test_rates_count_the_wall_without_what_was_paused():
    now = [10.0]
    watch, meter = Stopwatch(lambda: now[0]), Meter()
    for _ in range(2):
        now[0] += 0.5  # the device works on
        meter.add({}, waited_s=0.1)
    with watch.paused():
        now[0] += 60  # a validation
    now[0] += 1
    assert meter.take(8, watch.lap()) == pytest.approx({"tuples_per_s": 8.0, "data_wait": 0.1})
    now[0] += 3
    assert watch.lap() == pytest.approx(3)


def test_validations_inside_an_epoch_and_early_stop(shards_dir, tmp_path, monkeypatch):
    """AUC by script: the third check is the best one, two more without a better one end the run."""
    scores = iter([0.5, 0.6, 0.9, 0.8, 0.9, 1.0])
    seen = []

    def scripted(*_args) -> dict[str, float]:
        seen.append(next(scores))
        return {"auc/average": seen[-1], "auc/raw": float("nan")}

    monkeypatch.setattr("qadtrain.checks.validate", scripted)
    options = [
        "optim.early_stop_checks=2",
        "train.validate_every_steps=4",
        "optim.epochs=8",
        "train.keep_checkpoints=2",
    ]
    summary = quiet_fit(shards_dir, tmp_path / "run", tiny(*options))
    assert seen == [0.5, 0.6, 0.9, 0.8, 0.9]
    # Steps 4, 6 (end), 8, 12 (end; not twice), 16: epochs of six steps.
    assert [r["global_step"] for r in records(tmp_path / "run", "validation")] == [4, 8, 16]
    assert [r["global_step"] for r in records(tmp_path / "run", "epoch")] == [6, 12]
    assert summary.stopped_early and summary.stopped_by == "" and summary.steps == 16 and summary.best_score == 0.9
    saved = Position.read(checkpoint(tmp_path / "run")[1]["position"])
    assert (saved.best_epoch, saved.checks_since_best, saved.global_step) == (1, 2, 16)
    assert records(tmp_path / "run", "epoch")[0]["auc/raw"] is None
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*.state.pt"))) == 2
    again = quiet_fit(shards_dir, tmp_path / "run", tiny(*options), resume=True)
    assert again.steps == 16 and again.stopped_early  # it has ended


def test_head_only_epochs_go_on_after_a_validation_inside(shards_dir, tmp_path):
    """A validation puts the network in training mode; the frozen norms must be back in evaluation mode."""
    trainer, batch = make_trainer(shards_dir, tmp_path)
    begin(trainer, 0)
    validate(trainer.model, ShardSet(shards_dir, "val"), trainer.config, trainer.device)
    trainer._start_phase()
    before = {name: value.clone() for name, value in trainer.model.named_buffers()}
    trainer.train_step(batch, measure=False)
    assert_equal(dict(trainer.model.named_buffers()), before)


def test_resume_and_restart_are_refused_in_one_line(shards_dir, make_shards, straight, tmp_path):
    def message(shards: Path, run: Path, config, **options) -> str:
        with pytest.raises(UserError) as caught:
            quiet_fit(shards, run, config, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "already has checkpoints; continue it with --resume" in message(shards_dir, straight, tiny())
    assert "no checkpoint to resume from" in message(shards_dir, tmp_path / "new", tiny(), resume=True)
    text = message(shards_dir, straight, tiny("awp.gamma=0.5", "optim.epochs=9"), resume=True)
    assert "awp.gamma: got 0.5, expected 0.002; optim.epochs: got 9, expected 3; go on all the same with" in text
    other = make_shards(tmp_path / "other", {"train": 96, "val": 32}, seed=9)
    assert "cannot resume on other data: got a shard set with fingerprint" in message(
        other, straight, tiny(), resume=True
    )
    facts = json.loads((straight / "run.json").read_text())
    (straight / "run.json").write_text(json.dumps(facts | {"precision": "bf16 autocast"}))  # begun on a GPU
    text = message(shards_dir, straight, tiny(), resume=True)
    assert "train.precision: got auto = fp32 on cpu, expected bf16 autocast; go on all the same with" in text
    (straight / "run.json").write_text(json.dumps(facts))
    finished = quiet_fit(shards_dir, straight, tiny("train.log_every_steps=7"), resume=True)
    assert finished.steps == 18


def test_changes_are_allowed_when_told_and_recorded(shards_dir, make_shards, tmp_path):
    run = tmp_path / "run"
    quiet_fit(shards_dir, run, tiny(), should_stop=StopAfter(9))
    other = make_shards(tmp_path / "other", {"train": 80, "val": 16}, seed=9)
    changes = ["optim.learning_rate=0.001", "optim.schedule=linear", "optim.head_only_epochs=0", "optim.epochs=4"]
    changes += ["train.best_metric=eer/raw", "optim.ema_decay=0.5"]
    summary = quiet_fit(other, run, tiny(*changes), resume=True, allow_changes=True)
    # Stopped at step 3 of epoch 2 (8 steps and the question at the end of epoch 1): 2 of 5 and two epochs are left.
    assert summary.steps == 8 + 3 + 10
    facts = json.loads((run / "run.json").read_text())
    event = facts["events"][0]
    assert (event["event"], event["step"]) == ("resumed", 8) and facts["shards"]["fingerprint"] == ShardSet(
        other
    ).fingerprint
    assert "optim.learning_rate: got 0.001, expected 0.004" in event["changes"]
    assert event["changes"][-1].startswith("data: got a shard set with fingerprint")
    changed = [record for record in records(run, "event") if record["event"] == "changed"]
    assert changed[0]["changes"] == event["changes"] and changed[0]["global_step"] == 8
    # Step 7 of 20 comes first in the linear schedule of the new configuration; the log has the rate of the step.
    rates = {record["global_step"]: record["lr"] for record in records(run, "train")}
    assert rates[10] == pytest.approx(0.001 * (1 - 8 / 19)) and rates[20] == pytest.approx(0.001 / 19)
    assert summary.best_by == "EER on the validation split, raw"
    assert quiet_fit(other, run, tiny(*changes), resume=True).steps == 21  # now it is the run's configuration


@pytest.mark.parametrize(
    ("splits", "labels", "reason"),
    [({"train": 32}, (0, 1), "no split 'val'"), ({"train": 32, "val": 8}, (1,), "split 'val' has only fake faces")],
)
def test_without_a_usable_validation_split_the_training_loss_picks_and_it_is_said(
    make_shards, tmp_path, splits, labels, reason
):
    shards = make_shards(tmp_path / "set", splits, labels=labels)
    out = io.StringIO()
    config = tiny("optim.epochs=2")
    summary = quiet_fit(shards, tmp_path / "run", config, console=Console(file=out, width=200))
    assert f"best checkpoint by cross-entropy on the train split: {reason}" in out.getvalue()
    assert summary.best_by == "cross-entropy on the train split"
    losses = [record["train_ce"] for record in records(tmp_path / "run", "epoch")]
    assert summary.best_epoch == losses.index(min(losses)) and summary.best_score == pytest.approx(min(losses))


def test_a_split_of_one_class_still_ranks_by_loss(make_shards, tmp_path):
    shards = make_shards(tmp_path / "set", {"train": 16, "val": 8}, labels=(1,))
    config = tiny("optim.epochs=2", "train.best_metric=loss/average")
    assert (
        quiet_fit(shards, tmp_path / "run", config).best_by == "loss on the validation split, mean over the qualities"
    )
    assert all(record["auc/average"] is None for record in records(tmp_path / "run", "epoch"))


def test_checkpoints_inside_an_epoch(shards_dir, tmp_path, monkeypatch):
    saved = []
    save_last = trainer_module.save_last

    def noting(run, model, state, keep, average):
        saved.append(state["global_step"])
        save_last(run, model, state, keep, average)

    monkeypatch.setattr(trainer_module, "save_last", noting)
    quiet_fit(shards_dir, tmp_path / "run", tiny("optim.epochs=2", "train.checkpoint_every_steps=4"))
    assert saved == [4, 6, 6, 8, 12, 12]  # each epoch before and after its validation


@pytest.mark.parametrize(
    ("step", "old", "new", "expected"),
    [(3, (6, 16), (3, 32), 1), (4, (6, 16), (12, 8), 8), (6, (6, 16), (3, 32), 3), (5, (6, 16), (2, 40), 2)],
)
def test_another_batch_goes_on_at_the_same_place_of_the_epoch(step, old, new, expected):
    position = Position(step=step)
    line = position.keep_place({"steps_per_epoch": old[0], "batch_tuples": old[1]}, *new)
    assert position.step == expected and f"is now step {expected} of {new[0]} ({new[1]} each)" in line
    assert expected == new[0] or expected * new[1] <= step * old[1] < (expected + 1) * new[1]


def test_another_batch_on_resume_leaves_no_tuple_out(shards_dir, tmp_path):
    run, config = tmp_path / "run", ["optim.epochs=2", "data.batch_tuples=32"]
    quiet_fit(shards_dir, run, tiny("optim.epochs=2"), should_stop=StopAfter(3))
    summary = quiet_fit(shards_dir, run, tiny(*config), resume=True, allow_changes=True)
    assert summary.steps == 3 + 2 + 3  # 48 of 96 tuples were seen: on at step 1 of 3


def test_a_position_of_an_earlier_version_is_read():
    old = {"epoch": 2, "step": 4, "global_step": 16, "ce_sum": 1.5, "best_score": -0.25, "best_epoch": 1}
    position = Position.read(old | {"of_another_time": 1})
    assert (position.ce_steps, position.best_score, position.checks_since_best) == (4, 0.25, 0)


def test_class_weights_follow_what_is_drawn(make_shards, tmp_path):
    """One real tuple to three fake ones of two methods."""
    shards = make_shards(tmp_path / "set", {"train": 32}, labels=(0, 1, 1, 1))
    seen = {}
    for sampling in ("shuffle", "label", "method"):
        trainer, _ = make_trainer(shards, tmp_path, f"data.sampling={sampling}", "optim.class_weights=balanced")
        seen[sampling] = trainer.step.loss.class_weights.tolist()
    assert seen["shuffle"] == pytest.approx([2.0, 2 / 3])
    assert seen["label"] == pytest.approx([1.0, 1.0])
    assert seen["method"] == pytest.approx([1.5, 0.75])  # original, and two methods


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
    shards = make_shards(tmp_path / "set", {"train": 8}, size_px=32)
    changes = [f"model.name={sister}", "model.pretrained=false", "data.image_size_px=32", "data.batch_tuples=8"]
    changes += ["data.num_workers=0", "optim.epochs=3", "optim.head_only_epochs=1", "awp.start_epoch=2"]
    changes += ["train.log_every_steps=1", "train.deterministic=true", "train.device=cpu"]
    config = load_config(preset, overrides=changes)
    quiet_fit(shards, tmp_path / "run", config)
    lines = records(tmp_path / "run", "train")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for line in lines:
        for tap in config.model.taps:
            assert 0 < line[f"hsic/{tap}"] <= 7  # nHSIC lies between 0 and m - 1
            assert -1.01 < line[f"cka/{tap}"] < 1.01
    assert lines[1]["loss"] == pytest.approx(lines[1]["ce"] - config.hsic.alpha * lines[1]["hsic"], rel=1e-5)
    assert "awp_ce_rise" in lines[2] and lines[2]["awp_skipped_steps"] == 0
