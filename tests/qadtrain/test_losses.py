"""The objective on hand-made outputs."""

import pytest
import torch

from qadtrain.config import HsicConfig
from qadtrain.hsic import cka_unbiased, gaussian_kernel
from qadtrain.losses import QadLoss, balanced_class_weights, quality_pairs
from qadtrain.models import ModelOutput

B, M = 8, 3


def output(seed: int = 0) -> tuple[ModelOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    early, late = (torch.randn(B * M, c, 2, 2, generator=generator, requires_grad=True) for c in (4, 6))
    logits = torch.randn(B * M, 2, generator=generator, requires_grad=True)
    return ModelOutput(logits, {"early": early, "late": late}), torch.arange(B) % 2


def test_pairs():
    assert quality_pairs(3, "reference") == [(0, 1), (0, 2)]
    assert quality_pairs(3, "all") == [(0, 1), (0, 2), (1, 2)]
    assert quality_pairs(1, "reference") == [] == quality_pairs(1, "all")


@pytest.mark.parametrize("pairs", ["reference", "all"])
def test_total_is_mean_ce_minus_alpha_times_weighted_hsic(pairs):
    out, labels = output()
    config = HsicConfig(alpha=0.3, weights=[0.5, 2.0], estimator="cka_unbiased", pairs=pairs)
    terms = QadLoss(config, ["early", "late"], M)(out, labels)
    ce = 0.0
    for b in range(B):
        for q in range(M):
            ce -= out.logits[b * M + q].log_softmax(0)[labels[b]].item() / (B * M)
    assert terms.cross_entropy.item() == pytest.approx(ce, rel=1e-5)
    expected = 0.0
    for tap, weight in (("early", 0.5), ("late", 2.0)):
        kernels = [gaussian_kernel(out.features[tap][q::M]) for q in range(M)]  # quality q of every tuple
        values = [cka_unbiased(kernels[a], kernels[b]).item() for a, b in quality_pairs(M, pairs)]
        expected += weight * sum(values)
        assert terms.cka_by_tap[tap].item() == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert terms.hsic.item() == pytest.approx(expected, abs=1e-5)
    assert terms.total.item() == pytest.approx(ce - 0.3 * expected, abs=1e-5)
    terms.total.backward()
    assert out.features["early"].grad.abs().sum() > 0


def test_minimising_it_aligns_the_qualities():
    out, labels = output()
    loss = QadLoss(HsicConfig(alpha=1.0, weights=[1.0, 1.0]), ["early", "late"], M)
    optimizer = torch.optim.Adam(list(out.features.values()), lr=0.05)
    first = loss(out, labels).cka_by_tap["late"].item()
    for _ in range(40):
        optimizer.zero_grad()
        loss(out, labels).total.backward()
        optimizer.step()
    assert loss(out, labels).cka_by_tap["late"].item() > max(0.9, first + 0.3)


def test_hsic_off_leaves_cross_entropy_but_still_measures_alignment():
    out, labels = output()
    for alpha, use in ((0.3, False), (0.0, True)):
        loss = QadLoss(HsicConfig(alpha=alpha, weights=[1.0, 1.0]), ["early", "late"], M)
        terms = loss(out, labels, use_hsic=use)
        assert terms.total.item() == terms.cross_entropy.item()
        assert set(terms.cka_by_tap) == {"early", "late"}
        assert torch.autograd.grad(terms.total, out.features["early"], allow_unused=True) == (None,)
        assert loss(out, labels, use_hsic=use, measure=False).cka_by_tap == {}


def test_balanced_weights_give_both_classes_the_same_say():
    labels = torch.tensor([0, 1, 1, 1, 1, 1])
    weights = balanced_class_weights(labels)
    assert weights.tolist() == pytest.approx([3.0, 0.6])
    assert balanced_class_weights(torch.ones(3, dtype=torch.int64)).tolist() == [1.0, 1.0]
    logits = torch.tensor([[2.0, 0.0]] * 6)
    loss = QadLoss(HsicConfig(alpha=0.0, weights=[]), [], 1, weights)
    real, fake = (-logits[0].log_softmax(0)).tolist()
    terms = loss(ModelOutput(logits, {}), labels)
    assert terms.total.item() == pytest.approx((real + fake) / 2, rel=1e-5)
