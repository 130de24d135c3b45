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


def repeated(prob, samples, weights):
    """Scores and labels of a draw, each sample as often as its video was drawn."""
    of_unit = np.empty(len(samples.strata))
    for stratum, each in weights.items():
        of_unit[samples.strata == stratum] = each
    times = of_unit[samples.units].astype(int)
    return np.repeat(prob, times), np.repeat(samples.labels, times)


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
    for first, weights in video_weights(samples.strata, 70, 3):
        assert first == number
        for row in range(len(weights[0])):
            one = {stratum: values[row] for stratum, values in weights.items()}
            assert {s: values.sum() for s, values in one.items()} == {s: (labels_of == s).sum() for s in range(3)}
            if number % 9 == 0:
                for name, kept in (("one", (0, 1)), ("all", (0, 1, 2)), ("fakes", (1, 2))):
                    chosen = {s: values * (s in kept) for s, values in one.items()}
                    expected = full_scores(*repeated(prob, samples, chosen))
                    for column, metric in enumerate(ALL_METRICS):
                        value = getattr(expected, metric)
                        assert drawn[name][0, number, column] == pytest.approx(value, abs=2e-6, nan_ok=True), metric
            number += 1
    assert number == 70
    assert np.isnan(drawn["fakes"][:, :, AUC]).all() and not np.isnan(drawn["fakes"][:, :, 0]).any()


def test_draws_follow_the_seed():
    prob, samples = videos(np.random.default_rng(1), 10, 3)
    a, b, c = (resample(prob[:, None], samples, BOTH, draws=65, seed=seed)["all"] for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    longer = resample(prob[:, None], samples, BOTH, draws=64, seed=0)["all"]
    assert np.array_equal(a[:, :64], longer)


def test_many_distinct_scores_keep_the_auc_to_a_ten_thousandth():
    prob, samples = videos(np.random.default_rng(2), 50, 60)
    assert len(thresholds(prob, samples.labels)) <= MOST_THRESHOLDS < len(np.unique(prob))
    drawn = resample(prob[:, None], samples, BOTH, draws=3, seed=0)["all"][0]
    _, weights = next(video_weights(samples.strata, 3, 0))
    for row in range(3):
        repeats, labels = repeated(prob, samples, {s: values[row] for s, values in weights.items()})
        assert drawn[row, AUC] == pytest.approx(roc_auc_score(labels, repeats), abs=1e-4)
        expected = full_scores(repeats, labels)
        for name, tolerance in (("eer", 2e-3), ("partial_auc", 1e-3), ("average_precision", 1e-3), ("brier", 1e-9)):
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
    assert (opposite.auc_a, opposite.auc_b, opposite.z, opposite.p) == (1.0, 0.0, math.inf, 0.0)
    assert math.isnan(delong(scores[1:], scores[1:], labels[1:]).p)
