"""Draws of videos against scikit-learn on repeated samples; coverage; DeLong against its definition."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from qadtrain.intervals import (
    MOST_THRESHOLDS,
    Cell,
    Samples,
    bootstrap_p,
    delong,
    drawn_together,
    interval,
    resample,
    thresholds,
    video_weights,
)
from qadtrain.metrics import ALL_METRICS, full_scores

AUC = ALL_METRICS.index("auc")
BOTH = {"all": Cell((0,), (1,))}


def videos(rng, per_class: int, frames: int, *, spread: float = 1.0, noise: float = 0.5, shift: float = 1.0):
    """Fake probabilities (n,) and Samples; the frames of a video share a part of their score."""
    units = np.repeat(np.arange(2 * per_class), frames)
    strata = np.repeat([0, 1], per_class)
    labels = strata[units]
    score = shift * labels + spread * rng.normal(size=2 * per_class)[units] + noise * rng.normal(size=len(units))
    return expit(score), Samples(labels, units, strata)


def repeated(prob, samples, times):
    """Scores and labels of a draw, each sample as often as its video was drawn."""
    each = times[samples.units].astype(int)
    return np.repeat(prob, each), np.repeat(samples.labels, each)


def test_a_draw_is_what_scikit_learn_says_of_the_repeated_samples():
    rng = np.random.default_rng(0)
    labels_of = rng.integers(0, 3, 30)  # strata 0 real, 1 and 2 fake, of unequal sizes
    units = rng.integers(0, 30, 400)  # and videos of unequal lengths
    samples = Samples((labels_of > 0).astype(int)[units], units, labels_of)
    prob = np.round(expit(rng.normal(size=400) + samples.labels), 2)
    prob[:7] = math.nan
    cells = {"one": Cell((0,), (1,)), "all": Cell((0,), (1, 2)), "fakes": Cell((), (1, 2))}
    drawn = resample(np.stack([prob, prob[::-1]], axis=1), samples, cells, draws=70, seed=3)
    assert drawn["all"].shape == (2, 70, len(ALL_METRICS))
    number = 0
    for first, times in video_weights(samples.strata, 70, 3):
        assert first == number
        for one in times:
            assert np.array_equal(np.bincount(labels_of, weights=one), np.bincount(labels_of))
            if number % 9 == 0:
                for name, kept in (("one", (0, 1)), ("all", (0, 1, 2)), ("fakes", (1, 2))):
                    expected = full_scores(*repeated(prob, samples, one * np.isin(labels_of, kept)))
                    for column, metric in enumerate(ALL_METRICS):
                        value = getattr(expected, metric)
                        assert drawn[name][0, number, column] == pytest.approx(value, abs=2e-6, nan_ok=True), metric
            number += 1
    assert number == 70
    assert np.isnan(drawn["fakes"][:, :, AUC]).all() and not np.isnan(drawn["fakes"][:, :, 0]).any()


def test_the_videos_of_a_recording_are_drawn_together():
    rng = np.random.default_rng(6)
    # An original with two fakes, originals alone, and two recordings that are alone of their kind.
    has = [(0, 1, 2)] * 6 + [(0,)] * 4 + [(1,), (0, 2)]
    recordings, strata = np.repeat(np.arange(12), list(map(len, has))), np.concatenate(has)
    units = np.repeat(np.arange(len(strata)), 3)
    samples = Samples((strata > 0).astype(int)[units], units, strata, recordings)
    prob = np.round(expit(rng.normal(size=len(units)) + samples.labels), 2)
    found, kinds = drawn_together(samples)
    assert np.array_equal(found, recordings) and sorted(np.unique(kinds, return_counts=True)[1]) == [2, 4, 6]
    assert len(set(kinds[:6])) == len(set(kinds[6:10])) == len(set(kinds[10:])) == 1
    cells = {"two": Cell((0,), (2,)), "all": Cell((0,), (1, 2))}
    drawn = resample(prob[:, None], samples, cells, draws=70, seed=1)
    times = np.concatenate([each for _, each in video_weights(kinds, 70, 1)])
    for number in (0, 33, 69):
        of_units = times[number][recordings]
        for name, kept in (("two", (0, 2)), ("all", (0, 1, 2))):
            expected = full_scores(*repeated(prob, samples, of_units * np.isin(strata, kept)))
            values = [getattr(expected, metric) for metric in ALL_METRICS]
            assert drawn[name][0, number] == pytest.approx(values, abs=2e-6), name
    alone = Samples(samples.labels, units, strata, np.zeros_like(recordings))
    assert np.isnan(resample(prob[:, None], alone, cells, draws=5, seed=0)["all"]).all()


def test_intervals_of_a_mean_over_methods_cover_the_truth_where_recordings_are_drawn():
    """The five fakes of a recording are alike; drawn apart they would pass for five times as many."""
    rng, recordings, covered = np.random.default_rng(7), 25, {"together": [], "apart": []}
    strata = np.tile(np.arange(6), recordings)  # originals and five methods
    units, of = np.arange(len(strata)), np.repeat(np.arange(recordings), 6)
    labels = (strata > 0).astype(int)
    cells = {str(method): Cell((0,), (method,)) for method in range(1, 6)}
    truth = stats.norm.cdf(1 / math.sqrt(1 + 2 * 0.25))
    for _ in range(60):
        score = rng.normal(size=recordings)[of] * labels + labels + 0.5 * rng.normal(size=len(units))
        for name, its in (("together", of), ("apart", None)):
            drawn = resample(expit(score)[:, None], Samples(labels, units, strata, its), cells, draws=128, seed=0)
            low, high = interval(np.mean([values[0, :, AUC] for values in drawn.values()], axis=0))
            covered[name].append(low <= truth <= high)
    assert 0.85 <= np.mean(covered["together"]) <= 0.99
    assert np.mean(covered["apart"]) < 0.8


def test_draws_follow_the_seed():
    prob, samples = videos(np.random.default_rng(1), 10, 3)
    a, b, c = (resample(prob[:, None], samples, BOTH, draws=65, seed=seed)["all"] for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    longer = resample(prob[:, None], samples, BOTH, draws=64, seed=0)["all"]
    assert np.array_equal(a[:, :64], longer)


@pytest.mark.parametrize(("spread", "shift"), [(1.0, 1.0), (0.3, 2.0)])  # a poor detector, and a steep curve at 1 %
def test_many_distinct_scores_keep_the_auc_to_a_ten_thousandth(spread, shift):
    prob, samples = videos(np.random.default_rng(2), 50, 60, spread=spread, shift=shift)
    assert len(thresholds(prob, samples.labels)) <= MOST_THRESHOLDS < len(np.unique(prob))
    drawn = resample(prob[:, None], samples, BOTH, draws=10, seed=0)["all"][0]
    _, times = next(video_weights(samples.strata, 10, 0))
    bounds = {"eer": 2e-3, "partial_auc": 1e-3, "average_precision": 1e-3, "tpr_at_fpr": 3e-3, "brier": 1e-9}
    for row in range(10):
        repeats, labels = repeated(prob, samples, times[row])
        assert drawn[row, AUC] == pytest.approx(roc_auc_score(labels, repeats), abs=1e-4)
        expected = full_scores(repeats, labels)
        for name, tolerance in bounds.items():
            assert drawn[row, ALL_METRICS.index(name)] == pytest.approx(getattr(expected, name), abs=tolerance), name


def test_intervals_cover_the_truth_and_frames_as_units_do_not():
    rng, simulations = np.random.default_rng(3), 200
    truth = stats.norm.cdf(1 / math.sqrt(2 * (1 + 0.25)))  # of two normal distributions one apart
    covered = {"video": [], "frame": []}
    for number in range(simulations):
        prob, samples = videos(rng, 30, 4)
        each_frame = Samples(samples.labels, np.arange(len(prob)), samples.labels)
        for name, drawn_by in (("video", samples), ("frame", each_frame)):
            if name == "video" or number % 4 == 0:
                low, high = interval(resample(prob[:, None], drawn_by, BOTH, draws=128, seed=0)["all"][0, :, AUC])
                covered[name].append(low <= truth <= high)
    assert 0.90 <= np.mean(covered["video"]) <= 0.99
    assert np.mean(covered["frame"]) < 0.85


def test_interval_ends_and_missing_draws():
    low, high = interval(np.arange(1001.0))
    assert (low, high) == (pytest.approx(25), pytest.approx(975))
    few = np.arange(1001.0)
    few[:10] = math.nan
    assert not np.isnan(interval(few)).any()
    few[:200] = math.nan
    assert np.isnan(interval(few)).all()
    both = interval(np.stack([np.arange(1001.0), few]), axis=1)
    assert both[0][0] == pytest.approx(25) and math.isnan(both[1][1])


def test_p_of_paired_draws():
    assert bootstrap_p(np.zeros(99)) == 1.0
    assert bootstrap_p(np.full(99, 0.1)) == bootstrap_p(np.full(99, -0.1)) == pytest.approx(2 / 100)
    assert bootstrap_p(np.r_[np.full(10, -1.0), np.full(89, 1.0), math.nan]) == pytest.approx(2 * 11 / 100)
    assert math.isnan(bootstrap_p(np.full(3, math.nan)))


def by_definition(a, b, labels):
    """DeLong 1988 with its m x n placements: AUCs and variance of the difference."""
    fake, real = labels == 1, labels == 0
    aucs, of_fakes, of_reals = [], [], []
    for scores in (a, b):
        wins = np.array([[(x > y) + 0.5 * (x == y) for y in scores[real]] for x in scores[fake]])
        aucs.append(wins.mean())
        of_fakes.append(wins.mean(axis=1))
        of_reals.append(wins.mean(axis=0))
    covariance = np.cov(of_fakes) / fake.sum() + np.cov(of_reals) / real.sum()
    return aucs, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@pytest.mark.parametrize(("seed", "digits"), [(0, 9), (1, 1), (2, 0)])
def test_delong_is_its_definition_also_with_ties(seed, digits):
    rng = np.random.default_rng(seed)
    labels = (rng.random(45) < 0.6).astype(int)
    shared = rng.normal(size=45) + labels
    a, b = np.round(shared + rng.normal(size=45), digits), np.round(shared + 2 * rng.normal(size=45), digits)
    found = delong(a, b, labels)
    (auc_a, auc_b), variance = by_definition(a, b, labels)
    assert (found.auc_a, found.auc_b) == pytest.approx((auc_a, auc_b), abs=1e-12)
    assert found.auc_a == pytest.approx(roc_auc_score(labels, a))
    assert found.error == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert found.p == pytest.approx(math.erfc(abs(auc_a - auc_b) / math.sqrt(2 * variance)))


def test_delong_is_uniform_where_there_is_no_difference_and_sees_one_where_there_is():
    rng, p, seen = np.random.default_rng(5), [], 0
    labels = np.repeat([0, 1], 60)
    for number in range(300):
        shared = labels + rng.normal(size=120)
        a, b = shared + rng.normal(size=120), shared + rng.normal(size=120)
        p.append(delong(a, b, labels).p)
        if number < 60:
            seen += delong(1.5 * labels + rng.normal(size=120), rng.normal(size=120), labels).p < 0.05
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert seen / 60 > 0.9


def test_delong_where_there_is_nothing_to_estimate():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert delong(scores, scores, labels).p == 1.0
    assert delong(scores, scores**3, labels).p == 1.0  # the same ranking
    opposite = delong(scores, -scores, labels)
    assert (opposite.auc_a, opposite.auc_b, opposite.error) == (1.0, 0.0, 0.0)
    assert math.isnan(opposite.z) and math.isnan(opposite.p)  # four samples prove nothing
    assert math.isnan(delong(scores[1:], scores[1:], labels[1:]).p)
