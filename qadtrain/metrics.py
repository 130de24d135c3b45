"""Metrics of one set of scores, through torchmetrics and scikit-learn (exact, no binned thresholds)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from statistics import fmean

import numpy as np
import torch
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
    multiclass_accuracy,
)
from torchmetrics.functional.regression import mean_squared_error

METRICS = ("accuracy", "auc", "eer")
ALL_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "auc",
    "partial_auc",
    "eer",
    "average_precision",
    "tpr_at_fpr",
    "ece",
    "brier",
)
SHORT = {
    "accuracy": "ACC",
    "balanced_accuracy": "bal. ACC",
    "auc": "AUC",
    "partial_auc": "pAUC",
    "eer": "EER",
    "average_precision": "AP",
    "tpr_at_fpr": "TPR@1%",
    "ece": "ECE",
    "brier": "Brier",
}
PARTIAL_FPR = 0.1  # partial AUC up to here
TPR_AT_FPR = 0.01
ECE_BINS = 15
EER_TIE = 1e-12  # error rates nearer to each other by less than this are as near


@dataclass(frozen=True)
class Scores:
    """Fractions 0..1; NaN with a reason where a metric is not defined."""

    accuracy: float  # at probability 0.5
    auc: float
    eer: float
    real: int  # samples
    fake: int
    reason: str = ""
    unscored: int = 0  # samples without a finite score; in no other number here

    @property
    def always_fake(self) -> float:
        """Share of fakes: the accuracy of a detector that calls everything fake."""
        return self.fake / (self.real + self.fake) if self.real + self.fake else nan

    def as_json(self) -> dict[str, float | int | str | None]:
        """NaN becomes null, which JSON has."""
        values = asdict(self) | {"always_fake": self.always_fake}
        return {k: None if isinstance(v, float) and isnan(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class FullScores(Scores):
    """All metrics of ``ALL_METRICS``.

    Attributes:
        balanced_accuracy: mean of the accuracies of the two classes, at probability 0.5.
        partial_auc: area at false positive rates up to 0.1, McClish-standardised: 0.5 is chance, 1 perfect.
        average_precision: sum over the thresholds of the gain in recall times the precision; fakes are what is sought.
        tpr_at_fpr: most fakes found while at most 1 % of the real samples are called fake.
        ece: expected calibration error of the fake probability, 15 bins of equal width.
        brier: mean squared difference of the fake probability and the label.
    """

    balanced_accuracy: float = nan
    partial_auc: float = nan
    average_precision: float = nan
    tpr_at_fpr: float = nan
    ece: float = nan
    brier: float = nan


def binary_scores(prob_fake: np.ndarray, labels: np.ndarray) -> Scores:
    """Metrics of fake probabilities.

    Args:
        prob_fake: float (n,), 0..1; a sample whose score is not finite is left out and counted.
        labels: int (n,), 1 = fake.

    Returns:
        Accuracy at 0.5, area under the ROC curve, equal error rate. With one class alone AUC and EER are NaN
        and ``reason`` says which class is missing; with no samples all three are. ``reason`` also names what makes
        defined figures doubtful: samples without a score, and scores that are all the same.

    Raises:
        ValueError: a score outside 0..1.
    """
    preds, target, unscored = _finite(prob_fake, labels)
    fake = int(target.sum())
    real = len(target) - fake
    left_out = [f"{unscored} samples without a score"] if unscored else []
    if not fake + real:
        return Scores(nan, nan, nan, 0, 0, "; ".join(["no samples", *left_out]), unscored)
    accuracy = float(binary_accuracy(preds, target, threshold=0.5))
    if not fake or not real:
        missing = "no fake samples" if not fake else "no real samples"
        return Scores(accuracy, nan, nan, real, fake, "; ".join([missing, *left_out]), unscored)
    if preds.min() == preds.max():
        left_out.insert(0, f"every score is {float(preds[0]):.4g}: nothing is told apart")
    return Scores(
        accuracy,
        float(binary_auroc(preds, target, thresholds=None)),
        _equal_error_rate(preds, target),
        real,
        fake,
        "; ".join(left_out),
        unscored,
    )


def full_scores(prob_fake: np.ndarray, labels: np.ndarray) -> FullScores:
    """As :func:`binary_scores`, with all metrics. Where a class is missing, what ranks or balances is NaN.

    Partial AUC equals scikit-learn's ``roc_auc_score(max_fpr=0.1)``; the true positive rate is read from its ROC curve
    without interpolation; calibration bins P(fake) itself against the share of fakes, as torchmetrics does.
    """
    from sklearn.metrics import roc_curve

    core = binary_scores(prob_fake, labels)
    preds, target, _ = _finite(prob_fake, labels)
    more: dict[str, float] = {}
    if len(target):
        more["ece"] = float(binary_calibration_error(preds, target, n_bins=ECE_BINS, norm="l1"))
        more["brier"] = float(mean_squared_error(preds, target.double()))
    if core.real and core.fake:
        # In float64: at exactly 1 % of the real samples a rounding error would decide.
        fpr, tpr, _ = roc_curve(target.numpy(), preds.numpy(), drop_intermediate=False)
        more["balanced_accuracy"] = float(multiclass_accuracy(preds > 0.5, target, num_classes=2, average="macro"))
        more["partial_auc"] = float(binary_auroc(preds, target, max_fpr=PARTIAL_FPR, thresholds=None))
        more["average_precision"] = float(binary_average_precision(preds, target, thresholds=None))
        more["tpr_at_fpr"] = float(tpr[fpr <= TPR_AT_FPR].max())
    return FullScores(**asdict(core), **more)


def average(scores: Sequence[Scores], *, full: bool = False) -> Scores:
    """Plain mean of each metric over the cells where it is defined; ``reason`` counts the others.

    Args:
        full: all metrics, which the scores must then have; the mean is a :class:`FullScores`.
    """
    means = {}
    for name in ALL_METRICS if full else METRICS:
        values = [v for v in (getattr(score, name) for score in scores) if not isnan(v)]
        means[name] = fmean(values) if values else nan
    undefined = sum(isnan(score.auc) for score in scores)
    reason = f"{undefined} of {len(scores)} cells have no AUC and EER" if undefined else ""
    counts = {name: sum(getattr(score, name) for score in scores) for name in ("real", "fake", "unscored")}
    return (FullScores if full else Scores)(**means, **counts, reason=reason)


def _equal_error_rate(preds: torch.Tensor, target: torch.Tensor) -> float:
    """As torchmetrics' ``binary_eer``: at the first point of the curve where the two error rates are nearest.

    There is often a second one as near, with another mean, and in torchmetrics' float32 a rounding error decides.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(target.numpy(), preds.numpy(), drop_intermediate=False)
    gaps = np.abs(fpr + tpr - 1)
    first = int((gaps <= gaps.min() + EER_TIE).argmax())
    return float((fpr[first] + 1 - tpr[first]) / 2)


def _finite(prob_fake: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, int]:
    """float64 scores and int64 labels of the samples that have a score, and how many have none."""
    prob, y = np.asarray(prob_fake, np.float64), np.asarray(labels, np.int64)
    scored = np.isfinite(prob)
    prob, y = prob[scored], y[scored]
    # torchmetrics would take anything else for logits, in silence.
    if len(prob) and not (prob.min() >= 0 and prob.max() <= 1):
        raise ValueError(f"prob_fake: got values from {prob.min()} to {prob.max()}, expected 0..1")
    return torch.from_numpy(prob), torch.from_numpy(y), int((~scored).sum())
