"""Metrics against scikit-learn and by hand, and what one class alone, equal scores and missing scores give."""

import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

from qadtrain.metrics import FullScores, Scores, average, binary_scores, full_scores


def test_values_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    prob = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1)
    scores = binary_scores(prob, labels)
    assert scores.accuracy == pytest.approx(accuracy_score(labels, prob > 0.5))
    assert scores.auc == pytest.approx(roc_auc_score(labels, prob))
    false_positive, true_positive, _ = roc_curve(labels, prob, drop_intermediate=False)
    nearest = np.argmin(np.abs(false_positive - (1 - true_positive)))
    assert scores.eer == pytest.approx((false_positive[nearest] + 1 - true_positive[nearest]) / 2)
    assert (scores.real, scores.fake, scores.reason) == ((labels == 0).sum(), (labels == 1).sum(), "")


def test_the_other_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    labels = (rng.random(800) < 0.7).astype(int)
    prob = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 2)  # many ties, also at 0 and 1
    scores = full_scores(prob, labels)
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, prob > 0.5))
    assert scores.partial_auc == pytest.approx(roc_auc_score(labels, prob, max_fpr=0.1))
    assert scores.average_precision == pytest.approx(average_precision_score(labels, prob))
    assert scores.brier == pytest.approx(brier_score_loss(labels, prob))
    assert scores.always_fake == pytest.approx(accuracy_score(labels, np.ones(800)))
    best = max((prob[labels == 1] >= t).mean() for t in [2.0, *prob] if (prob[labels == 0] >= t).mean() <= 0.01)
    assert 0 < scores.tpr_at_fpr == pytest.approx(best)
    core = binary_scores(prob, labels)
    assert all(getattr(core, name) == getattr(scores, name) for name in ("accuracy", "auc", "eer", "real", "fake"))


def test_of_two_points_as_near_to_equal_errors_the_first_counts():
    """Exact fractions: in float32 a rounding error chose, and moved EER by points in small sets."""
    rng = np.random.default_rng(2)
    for _ in range(100):
        real, fake = (int(number) for number in rng.integers(3, 30, 2))
        prob, labels = rng.random(real + fake), np.r_[np.zeros(real, int), np.ones(fake, int)]
        points = [
            (Fraction(int((prob[:real] >= t).sum()), real), Fraction(int((prob[real:] < t).sum()), fake))
            for t in [2.0, *sorted(prob, reverse=True)]
        ]
        nearest = min(points, key=lambda rates: abs(rates[0] - rates[1]))
        assert binary_scores(prob, labels).eer == pytest.approx(float(sum(nearest)) / 2, abs=1e-9)


def test_hand_made_values():
    scores = binary_scores(np.array([0.1, 0.6, 0.4, 0.9]), np.array([0, 0, 1, 1]))
    assert (scores.accuracy, scores.auc, scores.eer) == (0.5, 0.75, 0.5)


def test_calibration_by_hand():
    # Bin 0.1333-0.2: mean 0.15, no fake; bin 0.8667-0.9333: mean 0.9, half of them fake.
    scores = full_scores(np.array([0.14, 0.16, 0.9, 0.9]), np.array([0, 0, 1, 0]))
    assert scores.ece == pytest.approx((2 * 0.15 + 2 * 0.4) / 4)
    assert scores.brier == pytest.approx((0.14**2 + 0.16**2 + 0.1**2 + 0.9**2) / 4)


def test_partial_auc_and_tpr_of_a_perfect_and_a_random_detector():
    labels = np.repeat([0, 1], 100)
    perfect = full_scores(np.where(labels, 0.8, 0.3), labels)
    assert (perfect.partial_auc, perfect.tpr_at_fpr, perfect.balanced_accuracy) == (1.0, 1.0, 1.0)
    ranks = np.tile(np.arange(100), 2) / 100
    random = full_scores(ranks, labels)
    assert random.auc == pytest.approx(0.5) and random.partial_auc == pytest.approx(0.5)
    assert random.tpr_at_fpr == pytest.approx(0.01)  # exactly 1 real sample in 100 is called fake


def test_confident_scores_keep_their_order():
    """Closer to 1 than float32 can tell apart."""
    prob = 1 - np.array([4e-12, 3e-12, 2e-12, 1e-12])
    assert binary_scores(prob, np.array([0, 0, 1, 1])).auc == 1.0


@pytest.mark.parametrize(("label", "reason"), [(0, "no fake samples"), (1, "no real samples")])
def test_one_class_has_no_auc_and_says_why(label, reason):
    scores = full_scores(np.array([0.2, 0.9, 0.8]), np.full(3, label))
    for name in ("auc", "eer", "balanced_accuracy", "partial_auc", "average_precision", "tpr_at_fpr"):
        assert math.isnan(getattr(scores, name)), name
    assert scores.accuracy == pytest.approx(2 / 3 if label else 1 / 3)
    errors = np.array([0.2, 0.9, 0.8]) - label
    assert scores.brier == pytest.approx((errors**2).mean())
    assert scores.ece == pytest.approx(np.abs(errors).mean())  # a bin each
    assert scores.reason == reason and scores.always_fake == label
    assert scores.as_json()["auc"] is None


def test_no_samples():
    scores = full_scores(np.zeros(0), np.zeros(0, int))
    assert math.isnan(scores.accuracy) and math.isnan(scores.brier) and scores.reason == "no samples"
    assert scores.as_json()["always_fake"] is None


def test_equal_scores_are_named():
    scores = full_scores(np.full(6, 0.25), np.array([0, 0, 0, 0, 1, 1]))
    assert (scores.auc, scores.eer, scores.partial_auc) == (0.5, 0.5, 0.5)
    assert scores.tpr_at_fpr == 0 and scores.average_precision == pytest.approx(1 / 3)
    assert scores.reason == "every score is 0.25: nothing is told apart"


def test_samples_without_a_score_are_left_out_and_counted():
    prob, labels = np.array([0.1, math.nan, 0.6, 0.4, math.inf, 0.9]), np.array([0, 0, 0, 1, 1, 1])
    scores = full_scores(prob, labels)
    assert (scores.real, scores.fake, scores.unscored, scores.auc) == (2, 2, 2, 0.75)
    assert scores.reason == "2 samples without a score"
    nothing = binary_scores(np.full(3, math.nan), np.array([0, 1, 1]))
    assert math.isnan(nothing.accuracy) and nothing.reason == "no samples; 3 samples without a score"


def test_logits_are_not_taken_for_probabilities():
    with pytest.raises(ValueError, match=r"got values from -2\.0 to 3\.0, expected 0\.\.1"):
        binary_scores(np.array([-2.0, 3.0]), np.array([0, 1]))


def test_average_leaves_undefined_cells_out_and_counts_them():
    cells = [Scores(0.5, 0.8, 0.2, 4, 4), Scores(1.0, 0.6, 0.4, 4, 4), Scores(0.9, math.nan, math.nan, 0, 4, "x")]
    mean = average(cells)
    assert (mean.accuracy, mean.auc, mean.eer) == pytest.approx((0.8, 0.7, 0.3))
    assert mean.reason == "1 of 3 cells have no AUC and EER"
    assert math.isnan(average([]).auc)


def test_average_of_full_scores_is_full():
    cells = [FullScores(0.5, 0.8, 0.2, 4, 4, ece=0.1, brier=0.2), FullScores(0.7, 0.6, 0.4, 2, 4, "", 3, brier=0.4)]
    mean = average(cells, full=True)
    assert isinstance(mean, FullScores) and mean.unscored == 3
    assert (mean.ece, mean.brier) == pytest.approx((0.1, 0.3)) and math.isnan(mean.partial_auc)
    assert math.isnan(average([], full=True).ece)
