"""How far heat maps agree: hand cases, and a run over a split."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from helpers.untrained_runs import untrained_run
from scipy.stats import pearsonr

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.evaluate import load_run
from qadtrain.forward import plain_input
from qadtrain.gradcam_consistency import agreement, consistency, consistency_tables, interval, summary, top_area
from qadtrain.gradcam_maps import HeatMaps
from qadtrain.gradcam_pick import Rows, spread


def ramp() -> np.ndarray:
    return np.arange(25, dtype=np.float32).reshape(5, 5) / 24


def test_top_area_is_a_fifth_and_only_what_is_warm():
    assert np.flatnonzero(top_area(ramp())).tolist() == [20, 21, 22, 23, 24]
    few = np.zeros((5, 5), np.float32)
    few[2, 2:4] = 0.7, 1.0
    assert np.flatnonzero(top_area(few)).tolist() == [12, 13]
    tied = np.zeros((5, 5), np.float32)
    tied[:2] = 1.0  # ten pixels equal to the fifth
    assert top_area(tied).sum() == 10


def test_agreement_by_hand():
    first = ramp()
    second = np.roll(first, 2)  # its warmest five are 22, 23, 24, 0 and 1 rolled: places 22, 23, 24 and 0, 1
    correlation, iou = agreement(first, second)
    assert iou == pytest.approx(3 / 7)
    assert correlation == pytest.approx(pearsonr(first.ravel().astype(float), second.ravel().astype(float)).statistic)
    assert agreement(first, first) == pytest.approx((1.0, 1.0))
    assert agreement(first, 1 - first) == pytest.approx((-1.0, 0.0))
    assert all(math.isnan(value) for value in agreement(first, np.zeros_like(first)))


def test_interval_draws_whole_videos():
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, 60)
    values, clusters = np.repeat(means, 20) + rng.normal(0, 0.01, 1200), np.repeat(np.arange(60), 20)
    low, high = interval(values, clusters)
    # 1200 alike values are only 60 independent ones: +- 1.96 standard errors of 60.
    half = 1.96 * means.std(ddof=1) / math.sqrt(60)
    assert (low, high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.05)
    assert interval(values, clusters) == (low, high)
    assert all(math.isnan(end) for end in interval(values[:20], clusters[:20]))


def test_summary_counts_constant_maps_and_leaves_them_out():
    methods = ["d/original", "d/original", "d/A", "d/A"]
    videos = ["d/original/1", "d/original/2", "d/A/1", "d/A/1"]
    rows = Rows(list("abcd"), methods, videos, videos, np.array([0, 0, 1, 1]))
    values = np.array([[0.5, 0.2], [0.7, 0.4], [math.nan, math.nan], [0.9, 0.6]])
    cells = summary(values, rows, np.arange(4))
    assert list(cells) == ["all", "all real", "all fake", "A", "original"]
    assert (cells["all"]["tuples"], cells["all"]["left_out"], cells["all"]["videos"]) == (3, 1, 3)
    assert cells["all"]["correlation"]["mean"] == pytest.approx(0.7)
    assert cells["all real"]["iou"]["mean"] == pytest.approx(0.3)
    assert cells["A"] == {
        "tuples": 1,
        "left_out": 1,
        "videos": 1,
        "correlation": {"mean": pytest.approx(0.9), "low": None, "high": None},
        "iou": {"mean": pytest.approx(0.6), "low": None, "high": None},
    }
    assert summary(values[2:3], rows, np.array([2]))["all"]["iou"] == {"mean": None, "low": None, "high": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards_dir):
    return untrained_run(tmp_path_factory.mktemp("consistency") / "run", shards_dir, 3)


def test_a_run_over_a_split(run, shards_dir, tmp_path):
    told = consistency([run], shards_dir, out_dir=tmp_path, limit=24, batch_tuples=5, device="cpu", num_workers=0)
    assert told == json.loads((tmp_path / "consistency.json").read_text())
    pairs = told["runs"]["run"]
    assert list(pairs) == ["raw-c23", "raw-c40", "c23-c40", "control"]
    assert told["tuples"] == 24 and told["of_tuples"] == 32 and told["layers"] == {"run": ["stage3"]}
    for groups in pairs.values():
        cell = groups["all"]
        for measure in ("correlation", "iou"):
            assert cell[measure]["low"] <= cell[measure]["mean"] <= cell[measure]["high"]
        assert cell["tuples"] + cell["left_out"] == groups["all real"]["tuples"] + groups["all fake"]["tuples"] + (
            groups["all real"]["left_out"] + groups["all fake"]["left_out"]
        )
    # The checkerboard fades from raw to c40; another recording's face agrees least.
    means = [pairs[pair]["all"]["correlation"]["mean"] for pair in ("raw-c23", "raw-c40", "control")]
    assert means == sorted(means, reverse=True) and means[0] > 0.5
    with (tmp_path / "consistency.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 6
    assert float(lines[0]["iou_mean"]) == pairs["raw-c23"]["all"]["iou"]["mean"]
    assert len(consistency_tables(told)[0].rows) == 24


def test_pairs_and_control_by_hand(run, shards_dir, tmp_path):
    told = consistency([run], shards_dir, out_dir=tmp_path, limit=6, batch_tuples=4, device="cpu", num_workers=0)
    config, model, _ = load_run(run, "best")
    pairs, control, before = [], [], []
    with ShardSet(shards_dir, "test") as shards:
        rows = Rows.of(shards.table)
        for at in spread(rows, 6):
            images = torch.from_numpy(np.stack(list(shards[at].images.values())))[None]
            inputs = plain_input(images, config, 32, torch.device("cpu"))
            heat = HeatMaps(model, "tiny", inputs)
            raw, _, c40 = heat(inputs)[0]
            heat.close()
            pairs.append(agreement(raw, c40))
            others = [best for group, best in before if group != shards.table["group"][at].as_py()]
            control += [agreement(others[-1], c40)] if others else []
            before.append((shards.table["group"][at].as_py(), raw))
    assert 0 < len(control) < 6
    for name, values in (("raw-c40", pairs), ("control", control)):
        cell = told["runs"]["run"][name]["all"]
        known = np.array([value for value in values if np.isfinite(value).all()])
        assert (cell["tuples"], cell["left_out"]) == (len(known), len(values) - len(known))
        means = [cell[measure]["mean"] for measure in ("correlation", "iou")]
        assert means == pytest.approx(known.mean(axis=0), abs=0.01)  # a place at the border of the area may differ


def test_identical_qualities_agree_fully(run, make_shards, tmp_path, monkeypatch):
    shards = make_shards(tmp_path / "set", {"test": 8}, qualities=("raw", "c23"))
    heat = HeatMaps.__call__

    def same(self, images):  # what raw gives, for both
        maps, logits = heat(self, images)
        return maps[::2].repeat(2, axis=0), logits

    monkeypatch.setattr(HeatMaps, "__call__", same)
    told = consistency([run], shards, out_dir=tmp_path / "out", device="cpu", num_workers=0)
    cell = told["runs"]["run"]["raw-c23"]["all"]
    assert cell["tuples"] + cell["left_out"] == 8 and cell["tuples"] > 0
    assert (cell["correlation"]["mean"], cell["iou"]["mean"]) == pytest.approx((1, 1))
    # All eight are of one recording: there is no other one to compare with.
    control = told["runs"]["run"]["control"]["all"]
    assert (control["tuples"], control["left_out"], control["iou"]["mean"]) == (0, 0, None)


def test_damaged_tuples_are_left_out_and_named(run, make_shards, tmp_path):
    shards = make_shards(tmp_path / "set", {"test": 8})
    with ShardSet(shards, "test") as opened:
        key, offset = opened.table["key"][3].as_py(), opened.table["c23_offset"][3].as_py()
    with (shards / "test-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 64)
    told = consistency([run], shards, out_dir=tmp_path / "out", batch_tuples=4, device="cpu", num_workers=0)
    cell = told["runs"]["run"]["raw-c40"]["all"]
    assert (told["tuples"], cell["tuples"] + cell["left_out"]) == (7, 7)
    assert len(told["damaged"]) == 1 and key in told["damaged"][0]


def test_wrong_use(run, shards_dir, make_shards, tmp_path):
    options = {"out_dir": tmp_path / "out", "device": "cpu", "num_workers": 0}
    with pytest.raises(UserError, match="--limit: got 0"):
        consistency([run], shards_dir, limit=0, **options)
    one = make_shards(tmp_path / "one", {"test": 4}, qualities=("raw",))
    with pytest.raises(UserError, match="got one quality, raw"):
        consistency([run], one, **options)
