"""The QAD objective: cross-entropy over all qualities minus weighted HSIC between their features.

    L = mean_q CE(f(x_q), y) - alpha * sum_l w_l * sum_(a,b) HSIC(z_l(x_a), z_l(x_b))

The form is inferred from the published configs and supplementary material; docs/method.md gives the reasons.

With several processes DDP averages their gradients. Each process's loss is made so that this average is the gradient
of one process that holds the whole batch: the cross-entropy always, HSIC with ``hsic.scope = "gathered"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from qadprep.errors import UserError
from qadtrain.config import HsicConfig
from qadtrain.gram import as_rows, quality_grams
from qadtrain.hsic import MIN_TUPLES, pair_values
from qadtrain.models import ModelOutput

if TYPE_CHECKING:
    from qadtrain.distributed import Ranks

AdversarialLoss = Literal["ce", "ce+hsic", "kl"]


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


def softened_kl(logits: Tensor, qualities: int, pairs: Sequence[tuple[int, int]], temperature: float) -> Tensor:
    """Mean over pairs (a, b) and tuples of T^2 KL(softmax(z_a / T) || softmax(z_b / T)); gradient to both sides.

    T^2 keeps the size of the gradient as T grows (Hinton et al. 2015). Without pairs it is zero.

    Args:
        logits: float (B * qualities, classes), row b * qualities + q is quality q of tuple b.
        temperature: T > 0.
    """
    log_probs = (logits.float() / temperature).log_softmax(dim=-1).unflatten(0, (-1, qualities))
    if not pairs:
        return logits.float().sum() * 0
    divergences = [
        functional.kl_div(log_probs[:, b], log_probs[:, a], reduction="batchmean", log_target=True) for a, b in pairs
    ]
    return temperature**2 * torch.stack(divergences).mean()


class QadLoss:
    """Callable on a model's output for B tuples of M qualities each.

    Args:
        taps: names of the features that HSIC compares, one for each of ``config.weights``.
        qualities: M, best first.
        class_weights: float (2,) of real and of fake in the cross-entropy; its mean is over the weights of the
            images of all processes.
        label_smoothing: of the cross-entropy, 0 to below 1.
        ranks: the processes of the run; ``None`` = one.

    Raises:
        UserError: groups of fewer tuples than the unbiased estimator needs.
    """

    def __init__(
        self,
        config: HsicConfig,
        taps: list[str],
        qualities: int,
        class_weights: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        ranks: Ranks | None = None,
    ) -> None:
        if 0 < config.group_tuples < MIN_TUPLES:
            raise UserError(
                f"hsic.group_tuples: got {config.group_tuples}, expected 0 (one group) or at least {MIN_TUPLES}"
            )
        self.config, self.qualities, self.label_smoothing = config, qualities, label_smoothing
        self.class_weights = class_weights
        self.ranks = ranks if ranks is not None and ranks.world > 1 else None
        self.tap_weights = dict(zip(taps, config.weights, strict=True))
        self.pairs = quality_pairs(qualities, config.pairs)

    def __call__(
        self,
        output: ModelOutput,
        labels: Tensor,
        *,
        use_hsic: bool = True,
        measure: bool = True,
        weight_sum: Tensor | None = None,
    ) -> LossTerms:
        """Loss terms of a batch. All processes call it with equal arguments and equally many tuples.

        Args:
            output: logits (B * M, 2) and features (B * M, ...), tuple by tuple: row b * M + q is quality q.
            labels: int64 (B,), 1 = fake.
            use_hsic: leave HSIC out of ``total`` when False (head-only epochs, AWP on CE).
            measure: compute HSIC and CKA for the logs also where they do not enter the loss.
            weight_sum: of the cross-entropy, from :meth:`part_weight`.

        Raises:
            UserError: ``hsic.group_tuples`` does not divide the tuples.
        """
        cross_entropy = self.cross_entropy(output.logits, labels, weight_sum)
        use_hsic = use_hsic and self.config.alpha > 0
        terms = LossTerms(cross_entropy, cross_entropy.detach(), torch.zeros_like(cross_entropy).detach())
        if not self.pairs or not (use_hsic or measure) or self._tuples_seen(labels) < MIN_TUPLES:
            return terms
        with torch.set_grad_enabled(use_hsic and torch.is_grad_enabled()):
            hsic = self._hsic(output.features, labels, terms)
        if use_hsic:
            terms.total = cross_entropy - self.config.alpha * hsic.to(cross_entropy.dtype)
        terms.hsic = hsic.detach().to(cross_entropy.dtype)
        return terms

    def part_weight(self, labels: Tensor, parts: int) -> Tensor | None:
        """What the cross-entropy of each of several equal parts of a batch is divided by, over all processes.

        A part has another share of fakes than the next one: means over each part's own class weights would not
        average to the mean of the whole batch.

        Args:
            labels: int64, of all parts of this process.
            parts: how many there are.

        Returns:
            float32 (): the class weights of all processes' images, divided by ``parts``; None where the parts' own
            means are right.
        """
        if self.class_weights is None or parts == 1:
            return None
        total = self.class_weights.to(labels.device, torch.float32)[labels].sum() * self.qualities / parts
        return total if self.ranks is None else self.ranks.sum(total)

    def cross_entropy(self, logits: Tensor, labels: Tensor, weight_sum: Tensor | None = None) -> Tensor:
        """Mean over images and qualities, in float32. Its mean over the processes is that of the whole batch.

        Args:
            weight_sum: with class weights, what the weighted sum is divided by, from :meth:`part_weight`; None = the
                weights of these images in all processes.
        """
        targets = labels.repeat_interleave(self.qualities)
        smoothing = self.label_smoothing
        if self.class_weights is None:
            return functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        weights = self.class_weights.to(logits.device, torch.float32)
        if self.ranks is None and weight_sum is None:
            return functional.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=smoothing)
        total = functional.cross_entropy(
            logits.float(), targets, weight=weights, label_smoothing=smoothing, reduction="sum"
        )
        # Another share of fakes in each process: the mean over own weights would not average to the global one.
        if weight_sum is None:
            weight_sum = self.ranks.sum(weights[targets].sum())
        return total * (1 if self.ranks is None else self.ranks.world) / weight_sum

    def adversarial(
        self,
        output: ModelOutput,
        labels: Tensor,
        loss: AdversarialLoss,
        temperature: float,
        use_hsic: bool,
        weight_sum: Tensor | None = None,
    ) -> Tensor:
        """The scalar that AWP raises, with gradient; arguments as for a call.

        ``ce``: the cross-entropy. ``ce+hsic``: the whole objective (the cross-entropy alone while ``use_hsic`` is
        False). ``kl``: cross-entropy plus :func:`softened_kl` from the best quality to each other one, whatever
        ``hsic.pairs`` says.
        """
        if loss == "ce+hsic":
            return self(output, labels, use_hsic=use_hsic, measure=False, weight_sum=weight_sum).total
        cross_entropy = self.cross_entropy(output.logits, labels, weight_sum)
        if loss == "ce":
            return cross_entropy
        if loss != "kl":
            raise ValueError(f"loss: got {loss!r}, expected ce, ce+hsic or kl")
        pairs = quality_pairs(self.qualities, "reference")
        return cross_entropy + softened_kl(output.logits, self.qualities, pairs, temperature)

    def _gathers(self, local_tuples: int) -> bool:
        """Whether features of other processes are needed: not where every group lies inside one process."""
        group = self.config.group_tuples
        inside = group > 0 and local_tuples % group == 0
        return self.ranks is not None and self.config.scope == "gathered" and not inside

    def _tuples_seen(self, labels: Tensor) -> int:
        return len(labels) * (self.ranks.world if self.ranks is not None and self._gathers(len(labels)) else 1)

    def _hsic(self, features: Mapping[str, Tensor], labels: Tensor, terms: LossTerms) -> Tensor:
        config, seen = self.config, self._tuples_seen(labels)
        group = config.group_tuples or seen
        if seen % group:
            raise UserError(
                f"hsic.group_tuples: got {group}, expected a divisor of the {seen} tuples that HSIC sees at once "
                "(data.batch_tuples / optim.accumulate_steps; of one process with hsic.scope = local)"
            )
        gathers = self._gathers(len(labels))
        classes = None
        if config.given_label:
            with torch.no_grad():
                labels = self.ranks.gather(labels) if gathers else labels
            classes = class_places(labels, group)
        total: Tensor | None = None
        for tap, weight in self.tap_weights.items():
            rows = as_rows(features[tap])
            rows = self.ranks.gather(rows) if gathers else rows
            values, ckas = pair_values(
                quality_grams(rows, self.qualities, group),
                self.pairs,
                kernel=config.kernel,
                bandwidth=config.bandwidth,
                sigma=config.sigma,
                dims=rows.shape[1],
                estimator=config.estimator,
                epsilon=config.epsilon,
                classes=classes,
            )
            summed = weight * values.sum()
            total = summed if total is None else total + summed
            terms.hsic_by_tap[tap] = values.mean().detach()
            terms.cka_by_tap[tap] = ckas.mean()
        return torch.zeros_like(terms.cross_entropy) if total is None else total


def class_places(labels: Tensor, group_tuples: int) -> list[list[Tensor]]:
    """For each group of consecutive tuples the places of each class in it, as ``pair_values`` takes them.

    Labels on a GPU cost one wait for it, since how many tuples a class has decides the shapes.
    """
    groups = labels.detach().cpu().split(group_tuples)
    return [
        [(group == label).nonzero()[:, 0].to(labels.device) for label in group.unique().tolist()] for group in groups
    ]
