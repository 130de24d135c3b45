"""Accuracy, AUC and EER of one set of scores, through torchmetrics (exact, no binned thresholds)."""

from dataclasses import asdict, dataclass
from math import isnan, nan
from statistics import fmean

import numpy as np
import torch
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_eer

METRICS = ("accuracy", "auc", "eer")


@dataclass(frozen=True)
class Scores:
    """Fractions 0..1; NaN with a reason where a metric is not defined."""

    accuracy: float  # at probability 0.5
    auc: float
    eer: float
    real: int  # samples
    fake: int
    reason: str = ""

    def as_json(self) -> dict[str, float | int | str | None]:
        """NaN becomes null, which JSON has."""
        return {k: None if isinstance(v, float) and isnan(v) else v for k, v in asdict(self).items()}


def binary_scores(prob_fake: np.ndarray, labels: np.ndarray) -> Scores:
    """Metrics of fake probabilities.

    Args:
        prob_fake: float (n,), 0..1.
        labels: int (n,), 1 = fake.

    Returns:
        Accuracy at 0.5, area under the ROC curve, equal error rate. With one class alone AUC and EER are NaN
        and ``reason`` says which class is missing; with no samples all three are.
    """
    fake, real = int((labels == 1).sum()), int((labels == 0).sum())
    if fake + real == 0:
        return Scores(nan, nan, nan, 0, 0, "no samples")
    preds, target = torch.from_numpy(np.asarray(prob_fake, np.float64)), torch.from_numpy(np.asarray(labels, np.int64))
    accuracy = float(binary_accuracy(preds, target, threshold=0.5))
    if not fake or not real:
        return Scores(accuracy, nan, nan, real, fake, "no fake samples" if not fake else "no real samples")
    return Scores(
        accuracy,
        float(binary_auroc(preds, target, thresholds=None)),
        float(binary_eer(preds, target, thresholds=None)),
        real,
        fake,
    )


def average(scores: list[Scores]) -> Scores:
    """Plain mean of each metric over the cells where it is defined; ``reason`` counts the others."""
    means = {}
    for name in METRICS:
        values = [v for v in (getattr(score, name) for score in scores) if not isnan(v)]
        means[name] = fmean(values) if values else nan
    undefined = sum(isnan(score.auc) for score in scores)
    reason = f"{undefined} of {len(scores)} cells have no AUC and EER" if undefined else ""
    return Scores(**means, real=sum(s.real for s in scores), fake=sum(s.fake for s in scores), reason=reason)
