"""Two runs on one shard set: what is paired, what is refused, and whether differences and p values are right."""

import csv
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.untrained_runs import untrained_run
from rich.console import Console
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from qadprep.errors import UserError
from qadtrain.compare import compare_runs_on, compare_scores, comparison_csv, comparison_tables
from qadtrain.intervals import Cell, Samples, bootstrap_p, delong, resample
from qadtrain.kept import Scored
from qadtrain.score_files import OK, KeptScores, fake_probability, read_scores

QUICK = {"num_workers": 0, "progress": False}
NAMES = ("one", "two")


@pytest.fixture(scope="module")
def runs(shards_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return [untrained_run(folder / name, shards_dir, seed) for seed, name in enumerate(NAMES)]


def scored(logits: np.ndarray, keys: list[str] | None = None, *, split: str = "test", mark: str = "ab" * 32) -> Scored:
    """(videos * 4, qualities) margins -> scores of videos that are by turns real and fake."""
    tuples, qualities = logits.shape
    labels = np.arange(tuples) // 4 % 2
    columns = {
        "key": keys or [f"k{n}" for n in range(tuples)],
        "dataset": ["d"] * tuples,
        "method": np.where(labels, "Swap", "original").tolist(),
        "video": [f"v{n // 4}" for n in range(tuples)],
        "face": [0] * tuples,
        "label": labels.tolist(),
    }
    both = np.stack([np.zeros_like(logits), logits], axis=-1)
    kept = KeptScores(pa.table(columns), ("raw", "c40")[:qualities], both, np.full(logits.shape, OK, dtype=object))
    return Scored(kept, {"split": split, "shards": {"fingerprint": mark}}, None, made=False)


def margins(rng, videos: int, shift: float, spread: float = 1.0) -> np.ndarray:
    labels = np.arange(4 * videos) // 4 % 2
    return (shift * labels + spread * rng.normal(size=videos)[np.arange(4 * videos) // 4])[:, None]


def test_figures_are_those_of_each_run_and_the_scores_are_kept(runs, shards_dir):
    said = []
    found = compare_runs_on(*runs, shards_dir, bootstrap=100, say=said.append, **QUICK)
    assert [line.split(": ")[1].split(",")[0] for line in said] == ["scored", "scored"]
    kept = [read_scores(run / "eval" / "set-test" / "scores.parquet") for run in runs]
    label = kept[0].index["label"].to_numpy()
    for number, quality in enumerate(("raw", "c23", "c40")):
        row = found.get("frame", quality, "all")
        aucs = [roc_auc_score(label, fake_probability(each.logits)[:, number]) for each in kept]
        assert (row.a, row.b, row.difference) == pytest.approx((*aucs, aucs[1] - aucs[0]), abs=1e-6)
        assert row.low - 1e-6 <= row.difference <= row.high + 1e-6 and 0 < row.p <= 1 and math.isnan(row.p_delong)
    assert (found.compared, found.only_a, found.only_b, found.neither) == (96, 0, 0, 0)
    assert {row.metric for row in found.rows} == {"accuracy", "auc", "eer"}
    assert len(found.rows) == 2 * 4 * 4 * 3  # levels, qualities and average, cells, metrics
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["rows"][0]["p_delong"] is None

    again = compare_runs_on(*runs, bootstrap=100)  # without the set: the one that both are scored on
    assert again.rows == found.rows and again.fingerprint == found.fingerprint
    said.clear()
    compare_runs_on(*runs, shards_dir, level="video", metrics=["auc"], bootstrap=100, say=said.append, **QUICK)
    assert all(": scores kept in " in line for line in said) and len(said) == 2


def test_scores_of_another_checkpoint_or_damaged_ones_are_made_anew(shards_dir, tmp_path):
    a, b = (untrained_run(tmp_path / name, shards_dir, seed) for seed, name in enumerate(NAMES))
    compare_runs_on(a, b, shards_dir, level="frame", bootstrap=100, **QUICK)
    untrained_run(tmp_path / "other", shards_dir, 7)
    weights = (tmp_path / "other" / "checkpoints" / "best.safetensors").read_bytes()
    (a / "checkpoints" / "best.safetensors").write_bytes(weights)
    (b / "eval" / "set-test" / "scores.parquet").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"no shard set whose split 'test' is scored .*one: none; .*two: none"):
        compare_runs_on(a, b, bootstrap=100)
    said = []
    compare_runs_on(a, b, shards_dir, level="frame", bootstrap=100, say=said.append, **QUICK)
    assert [": scored, kept in" in line for line in said] == [True, True]


def test_a_run_with_itself_has_no_difference(runs, shards_dir):
    found = compare_runs_on(runs[0], runs[0], shards_dir, bootstrap=100, **QUICK)
    assert all((row.difference, row.low, row.high, row.p) == (0, 0, 0, 1) for row in found.rows)
    tests = [row.p_delong for row in found.rows if not math.isnan(row.p_delong)]
    assert set(tests) == {1.0} and len(tests) == 3 * 3  # qualities x (two methods and all), AUC of videos


def test_a_real_difference_is_seen_and_noise_is_not():
    rng = np.random.default_rng(0)
    weak = margins(rng, 120, 0.5)
    strong = weak + margins(rng, 120, 2.0, 0.0)
    found = compare_scores(scored(weak), scored(strong), names=NAMES, metrics=["auc", "brier"], bootstrap=300)
    row = found.get("video", "raw", "Swap")
    assert row.b > row.a and 0 < row.low < row.difference < row.high and row.p == pytest.approx(2 / 301)
    labels = np.arange(120) % 2
    assert row.p_delong == pytest.approx(delong(weak[::4, 0], strong[::4, 0], labels).p, rel=1e-9)
    assert row.p_delong < 1e-4
    noise = weak + margins(rng, 120, 0.0, 0.3)
    row = compare_scores(scored(weak), scored(noise), names=NAMES, metrics=["auc"], bootstrap=300).get(
        "frame", "raw", "Swap"
    )
    assert row.low < 0 < row.high and row.p > 0.05


def test_p_is_not_small_too_often_where_runs_are_equally_good():
    rng, small, cell = np.random.default_rng(1), 0, {"all": Cell((0,), (1,))}
    units = np.arange(120) // 4
    samples = Samples(units % 2, units, np.arange(30) % 2)
    for _ in range(60):
        shared = margins(rng, 30, 1.0)
        pair = [expit(shared + margins(rng, 30, 0.0, 0.7)) for _ in range(2)]
        a, b = (resample(prob, samples, cell, draws=64, seed=0)["all"][0, :, 2] for prob in pair)
        small += bootstrap_p(b - a) < 0.1
    assert small <= 13  # of 60 at 10 %: more in one of 200 such tests


def test_only_what_both_have_is_compared_and_the_rest_is_counted():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(80, 2))
    a, b = values.copy(), values.copy()
    a[0, 0] = math.nan
    b[3:5, 1] = math.nan
    a[9], b[9] = math.nan, math.nan
    order = rng.permutation(80)
    of_b = scored(b)
    shuffled = KeptScores(
        of_b.scores.index.take(pa.array(order)), ("c40", "raw"), of_b.scores.logits[order][:, ::-1],
        of_b.scores.status[order][:, ::-1],
    )  # fmt: skip
    found = compare_scores(scored(a), Scored(shuffled, of_b.contents, None, made=False), names=NAMES, bootstrap=100)
    assert (found.compared, found.only_a, found.only_b, found.neither) == (160 - 3 - 2, 2, 1, 2)
    assert all(row.difference == 0 for row in found.rows)  # what is left is equal, quality by quality
    assert "scored by one run only, and left out: 2 of one, 1 of two" in found.notes
    kept = np.isfinite(a[:, 1]) & np.isfinite(b[:, 1])
    labels = np.arange(80) // 4 % 2
    assert found.get("frame", "c40", "all").a == pytest.approx(roc_auc_score(labels[kept], values[kept, 1]), abs=1e-6)


def test_a_video_without_a_score_is_in_no_test_and_other_devices_are_told():
    rng = np.random.default_rng(3)
    a, b = margins(rng, 20, 1.0), margins(rng, 20, 1.0)
    a[8:12] = math.nan  # a video
    of_b = scored(b)
    on_gpu = Scored(of_b.scores, of_b.contents | {"device": "cuda"}, None, made=False)
    found = compare_scores(scored(a), on_gpu, names=NAMES, metrics=["auc"], bootstrap=100)
    kept = np.arange(20) != 2
    expected = delong(a[::4, 0][kept], b[::4, 0][kept], (np.arange(20) % 2)[kept])
    row = found.get("video", "raw", "Swap")
    assert (row.a, row.p_delong) == (pytest.approx(expected.auc_a, abs=1e-6), pytest.approx(expected.p))
    assert "scored with different device: None and cuda" in found.notes


def test_other_sets_other_splits_and_nothing_in_common_are_refused():
    values = np.zeros((8, 1))
    with pytest.raises(UserError, match="one was scored on shard set abababababab, two on cdcdcdcdcdcd"):
        compare_scores(scored(values), scored(values, mark="cd" * 32), names=NAMES)
    with pytest.raises(UserError, match="one was scored on split test, two on val"):
        compare_scores(scored(values), scored(values, split="val"), names=NAMES)
    with pytest.raises(UserError, match="have no score of the same tuple and quality"):
        compare_scores(scored(values), scored(values, [f"other{n}" for n in range(8)]), names=NAMES)
    with pytest.raises(UserError, match="a key stands twice"):
        compare_scores(scored(values), scored(values, ["k0"] * 8), names=NAMES)
    with pytest.raises(UserError, match="have no score of the same tuple and quality"):
        compare_scores(scored(values), scored(np.full((8, 1), math.nan)), names=NAMES)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"level": "clip"}, "--level: got 'clip', expected frame, video or both"),
        ({"metrics": ["auc", "f1"]}, "--metrics: got 'f1', expected some of accuracy"),
        ({"metrics": []}, "--metrics: got '', expected some of accuracy"),
        ({"bootstrap": 20}, "--bootstrap: got 20, expected 100 draws or more"),
        ({"aggregate": "max"}, "--aggregate: got 'max'"),
        ({"checkpoint": "first"}, "--checkpoint: got first, expected best or last"),
        ({"checkpoint": "last"}, r"last\.safetensors: no such checkpoint"),
        ({"split": "nowhere"}, "no split 'nowhere'"),
    ],
)
def test_wrong_use_is_one_line(runs, shards_dir, option, message):
    with pytest.raises(UserError, match=message):
        compare_runs_on(*runs, shards_dir, **({"bootstrap": 100} | option))


def test_one_class_and_a_constant_detector_give_lines_not_faults():
    reals = scored(np.zeros((16, 1)))
    index = reals.scores.index.set_column(5, "label", pa.array([0] * 16))
    index = index.set_column(2, "method", pa.array(["original"] * 16))
    alone = Scored(KeptScores(index, ("raw",), reals.scores.logits, reals.scores.status), reals.contents, None, False)
    row = compare_scores(alone, alone, names=NAMES, bootstrap=100).get("video", "raw", "all")
    assert math.isnan(row.a) and math.isnan(row.p) and math.isnan(row.p_delong) and math.isnan(row.low)
    constant = compare_scores(reals, reals, names=NAMES, bootstrap=100).get("video", "raw", "Swap")
    assert (constant.a, constant.difference, constant.p_delong) == (0.5, 0, 1)


def test_tables_show_the_rows(runs, shards_dir):
    found = compare_runs_on(*runs, shards_dir, bootstrap=100, **QUICK)
    console = Console(file=io.StringIO(), width=120)
    for table in comparison_tables(found):
        console.print(table)
    text = " ".join(console.file.getvalue().split())
    row = found.get("video", "c40", "all")
    assert "frame level, percent: A = one, B = two" in text and "p DeLong" in text
    assert f"{100 * row.a:.2f} {100 * row.b:.2f} {100 * row.difference:+.2f}" in text
    assert "96 scores compared; intervals and p by 100 paired draws of recordings" in text
    lines = list(csv.DictReader(io.StringIO(comparison_csv(found))))
    assert len(lines) == len(found.rows)
    line = next(each for each in lines if [*each.values()][:4] == ["video", "c40", "all", "auc"])
    assert float(line["difference"]) == pytest.approx(row.difference, abs=1e-6)
    assert pq.read_table(runs[0] / "eval" / "set-test" / "scores.parquet").num_rows == 96
