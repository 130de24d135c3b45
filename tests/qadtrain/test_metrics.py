"""Metrics against scikit-learn, and what one class alone gives."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from qadtrain.metrics import Scores, average, binary_scores


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


def test_hand_made_values():
    scores = binary_scores(np.array([0.1, 0.6, 0.4, 0.9]), np.array([0, 0, 1, 1]))
    assert (scores.accuracy, scores.auc, scores.eer) == (0.5, 0.75, 0.5)


def test_confident_scores_keep_their_order():
    """Closer to 1 than float32 can tell apart."""
    prob = 1 - np.array([4e-12, 3e-12, 2e-12, 1e-12])
    assert binary_scores(prob, np.array([0, 0, 1, 1])).auc == 1.0


@pytest.mark.parametrize(("label", "reason"), [(0, "no fake samples"), (1, "no real samples")])
def test_one_class_has_no_auc_and_says_why(label, reason):
    scores = binary_scores(np.array([0.2, 0.9, 0.8]), np.full(3, label))
    assert math.isnan(scores.auc) and math.isnan(scores.eer)
    assert scores.accuracy == pytest.approx(2 / 3 if label else 1 / 3)
    assert scores.reason == reason
    assert scores.as_json()["auc"] is None


def test_no_samples():
    scores = binary_scores(np.zeros(0), np.zeros(0, int))
    assert math.isnan(scores.accuracy) and scores.reason == "no samples"


def test_average_leaves_undefined_cells_out_and_counts_them():
    cells = [Scores(0.5, 0.8, 0.2, 4, 4), Scores(1.0, 0.6, 0.4, 4, 4), Scores(0.9, math.nan, math.nan, 0, 4, "x")]
    mean = average(cells)
    assert (mean.accuracy, mean.auc, mean.eer) == pytest.approx((0.8, 0.7, 0.3))
    assert mean.reason == "1 of 3 cells have no AUC and EER"
    assert math.isnan(average([]).auc)
