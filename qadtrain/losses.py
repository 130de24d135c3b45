"""The QAD objective: cross-entropy over all qualities minus weighted HSIC between their features.

    L = mean_q CE(f(x_q), y) - alpha * sum_l w_l * sum_(a,b) HSIC(z_l(x_a), z_l(x_b))

The form is inferred from the published configs and supplementary material; docs/method.md gives the reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from qadtrain.config import HsicConfig
from qadtrain.hsic import MIN_TUPLES, cka_unbiased, estimate, full_precision, kernel_matrix
from qadtrain.models import ModelOutput


@dataclass
class LossTerms:
    """Scalars of one batch. ``total`` carries the gradient; the dictionaries are detached, for the logs."""

    total: Tensor
    cross_entropy: Tensor
    hsic: Tensor  # sum_l w_l sum_pairs HSIC, before alpha
    hsic_by_tap: dict[str, Tensor] = field(default_factory=dict)  # mean over pairs, before w_l
    cka_by_tap: dict[str, Tensor] = field(default_factory=dict)  # unbiased CKA, mean over pairs


def quality_pairs(qualities: int, pairs: str) -> list[tuple[int, int]]:
    """Index pairs that HSIC compares: ``reference`` = 0 against each other one, ``all`` = every pair."""
    if pairs == "reference":
        return [(0, other) for other in range(1, qualities)]
    return list(combinations(range(qualities), 2))


def balanced_class_weights(labels: Tensor) -> Tensor:
    """float (2,) weights of real and fake with mean 1 over ``labels`` (int, n); ones when a class is missing."""
    counts = torch.bincount(labels, minlength=2)
    if (counts == 0).any():
        return torch.ones(2)
    return len(labels) / (2 * counts.float())


class QadLoss:
    """Callable on a model's output for B tuples of M qualities each."""

    def __init__(
        self, config: HsicConfig, taps: list[str], qualities: int, class_weights: Tensor | None = None
    ) -> None:
        self.config, self.qualities = config, qualities
        self.class_weights = class_weights  # float (2,): of real and of fake in the cross-entropy
        self.tap_weights = dict(zip(taps, config.weights, strict=True))
        self.pairs = quality_pairs(qualities, config.pairs)

    def __call__(
        self, output: ModelOutput, labels: Tensor, *, use_hsic: bool = True, measure: bool = True
    ) -> LossTerms:
        """Loss terms of a batch.

        Args:
            output: logits (B * M, 2) and features (B * M, ...), tuple by tuple: row b * M + q is quality q.
            labels: int64 (B,), 1 = fake.
            use_hsic: leave HSIC out of ``total`` when False (head-only epochs, AWP on CE).
            measure: compute HSIC and CKA for the logs also where they do not enter the loss.
        """
        logits = output.logits.float()
        cross_entropy = functional.cross_entropy(
            logits, labels.repeat_interleave(self.qualities), weight=self.class_weights
        )
        use_hsic = use_hsic and self.config.alpha > 0
        terms = LossTerms(cross_entropy, cross_entropy.detach(), torch.zeros_like(cross_entropy).detach())
        if not self.pairs or len(labels) < MIN_TUPLES or not (use_hsic or measure):
            return terms
        with torch.set_grad_enabled(use_hsic and torch.is_grad_enabled()):
            hsic = self._hsic(output.features, terms)
        if use_hsic:
            terms.total = cross_entropy - self.config.alpha * hsic.to(cross_entropy.dtype)
        terms.hsic = hsic.detach()
        return terms

    def _hsic(self, features: Mapping[str, Tensor], terms: LossTerms) -> Tensor:
        config = self.config
        total = torch.zeros((), dtype=torch.float64 if terms.total.device.type != "mps" else torch.float32)
        total = total.to(terms.total.device)
        for tap, weight in self.tap_weights.items():
            flat = features[tap]
            by_quality = flat.reshape(-1, self.qualities, *flat.shape[1:])
            with full_precision(flat.device):
                kernels = [
                    kernel_matrix(by_quality[:, q], config.kernel, bandwidth=config.bandwidth, sigma=config.sigma)
                    for q in range(self.qualities)
                ]
                values = [
                    estimate(kernels[a], kernels[b], config.estimator, epsilon=config.epsilon) for a, b in self.pairs
                ]
                with torch.no_grad():
                    ckas = [cka_unbiased(kernels[a], kernels[b]) for a, b in self.pairs]
            total = total + weight * torch.stack(values).sum()
            terms.hsic_by_tap[tap] = torch.stack(values).mean().detach()
            terms.cka_by_tap[tap] = torch.stack(ckas).mean()
        return total
