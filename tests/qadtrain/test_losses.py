"""The objective on hand-made outputs."""

import math
from dataclasses import dataclass

import pytest
import torch

from qadprep.errors import UserError
from qadtrain.config import HsicConfig
from qadtrain.hsic import cka_unbiased, estimate, gaussian_kernel, kernel_matrix
from qadtrain.losses import QadLoss, balanced_class_weights, quality_pairs, softened_kl
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
    features = list(out.features.values())
    first = loss(out, labels).cka_by_tap["late"].item()
    for _ in range(40):
        slopes = torch.autograd.grad(loss(out, labels).total, features)
        with torch.no_grad():
            for x, slope in zip(features, slopes, strict=True):
                x -= 0.05 * slope.sign()
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


TAPS = ["early", "late"]


def gradients(value: torch.Tensor, out: ModelOutput) -> list[torch.Tensor]:
    wanted = [out.features["early"], out.features["late"], out.logits]
    return list(torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=True))


@pytest.mark.parametrize("estimator", ["cka_unbiased", "unbiased", "biased", "nhsic_cca"])
def test_groups_give_the_mean_over_consecutive_groups(estimator):
    out, labels = output()
    config = HsicConfig(alpha=1, weights=[0.5, 2.0], estimator=estimator, kernel="imq", group_tuples=4)
    terms = QadLoss(config, TAPS, M)(out, labels)
    expected = 0.0
    for tap, weight in zip(TAPS, config.weights, strict=True):
        for a, b in quality_pairs(M, "reference"):
            for start in (0, 4):
                x, y = (out.features[tap].reshape(B, M, -1)[start : start + 4, q] for q in (a, b))
                kernels = [kernel_matrix(z, "imq", bandwidth="median", sigma=6.0) for z in (x, y)]
                expected += weight * estimate(*kernels, estimator).item() / 2
    assert terms.hsic.item() == pytest.approx(expected, rel=1e-5)


def test_groups_that_do_not_divide_are_named():
    out, labels = output()
    with pytest.raises(UserError, match=r"hsic\.group_tuples: got 5, expected a divisor of the 8 tuples"):
        QadLoss(HsicConfig(weights=[1, 1], group_tuples=5), TAPS, M)(out, labels)
    with pytest.raises(UserError, match=r"hsic\.group_tuples: got 3, expected 0 \(one group\) or at least 4"):
        QadLoss(HsicConfig(weights=[1, 1], group_tuples=3), TAPS, M)


def test_given_label_is_the_weighted_mean_of_the_classes_alone():
    out, _ = output()
    labels = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1])
    config = HsicConfig(alpha=0.4, weights=[1.0, 3.0], estimator="unbiased", given_label=True)
    terms = QadLoss(config, TAPS, M)(out, labels)
    for tap in TAPS:
        values, ckas = [], []
        for label in (0, 1):
            for a, b in quality_pairs(M, "reference"):
                kernels = [gaussian_kernel(out.features[tap].reshape(B, M, -1)[labels == label, q]) for q in (a, b)]
                values.append(estimate(*kernels, "unbiased").item())
                ckas.append(cka_unbiased(*kernels).item())
        assert terms.hsic_by_tap[tap].item() == pytest.approx(sum(values) / 4, rel=1e-5)
        assert terms.cka_by_tap[tap].item() == pytest.approx(sum(ckas) / 4, rel=1e-5)
    # Three of a class are too few: the other five alone count. Both too few: zero, and no gradient.
    five = QadLoss(config, TAPS, M)(out, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]))
    kernels = [gaussian_kernel(out.features["late"].reshape(B, M, -1)[3:, q]) for q in range(M)]
    expected = (estimate(kernels[0], kernels[1], "unbiased") + estimate(kernels[0], kernels[2], "unbiased")) / 2
    assert five.hsic_by_tap["late"].item() == pytest.approx(expected.item(), rel=1e-5)
    few = ModelOutput(out.logits[: 6 * M], {tap: x[: 6 * M] for tap, x in out.features.items()})
    terms = QadLoss(config, TAPS, M)(few, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert terms.hsic.item() == 0 == terms.cka_by_tap["early"].item()
    early, late, logits = gradients(terms.total, out)
    assert early is None and late is None and logits.abs().sum() > 0


def test_any_taps_also_pooled_and_logits():
    out, labels = output()
    out = ModelOutput(out.logits, {"pooled": out.features["late"].mean((2, 3)), "logits": out.logits})
    config = HsicConfig(alpha=0.5, weights=[0.0, 1.0], estimator="nhsic_cca", kernel="linear")
    terms = QadLoss(config, ["pooled", "logits"], M)(out, labels)
    kernels = [kernel_matrix(out.logits[q::M], "linear", bandwidth="median", sigma=1.0) for q in range(M)]
    expected = sum(estimate(kernels[0], kernels[q], "nhsic_cca").item() for q in (1, 2))
    assert terms.hsic.item() == pytest.approx(expected, rel=1e-5)
    assert set(terms.cka_by_tap) == {"pooled", "logits"}
    assert torch.autograd.grad(terms.hsic_by_tap["logits"] + terms.total, out.logits)[0].isfinite().all()


def test_hsic_keeps_the_features_and_little_else_for_backward():
    """Of bf16 features the HSIC term keeps their own bytes (shared with the network), no fp32 copy."""
    features = torch.randn(B * M, 32, 16, 16).bfloat16().to(memory_format=torch.channels_last).requires_grad_(True)
    out = ModelOutput(torch.zeros(B * M, 2), {"x": features})
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loss = QadLoss(HsicConfig(alpha=1.0, weights=[1.0], estimator="nhsic_cca"), ["x"], M)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = loss(out, torch.arange(B) % 2)
    assert features.nbytes <= sum(kept.values()) < 1.2 * features.nbytes
    terms.total.backward()
    assert features.grad.dtype == torch.bfloat16 and features.grad.abs().sum() > 0


def by_hand_kl(logits: torch.Tensor, pairs: list[tuple[int, int]], t: float) -> float:
    total = 0.0
    for b in range(B):
        for a, c in pairs:
            p, q = ([math.exp(z / t) for z in logits[b * M + i].tolist()] for i in (a, c))
            p, q = ([v / sum(w) for v in w] for w in (p, q))
            total += t * t * sum(u * math.log(u / v) for u, v in zip(p, q, strict=True))
    return total / (B * len(pairs))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("pairs", ["reference", "all"])
def test_softened_kl(temperature, pairs):
    out, _ = output()
    pairs = quality_pairs(M, pairs)
    got = softened_kl(3 * out.logits, M, pairs, temperature)
    assert got.item() == pytest.approx(by_hand_kl(3 * out.logits, pairs, temperature), rel=1e-5)
    same = out.logits[::M].repeat_interleave(M, dim=0)
    assert softened_kl(same, M, pairs, temperature).item() == pytest.approx(0, abs=1e-6)
    assert softened_kl(out.logits, 1, [], temperature).item() == 0


def test_what_awp_raises():
    out, labels = output()
    loss = QadLoss(HsicConfig(alpha=0.3, weights=[1.0, 1.0], pairs="all"), TAPS, M)
    terms = loss(out, labels)
    ce = terms.cross_entropy.item()
    assert loss.adversarial(out, labels, "ce", 4.0, True).item() == ce
    assert loss.adversarial(out, labels, "ce+hsic", 4.0, True).item() == terms.total.item() != ce
    assert loss.adversarial(out, labels, "ce+hsic", 4.0, False).item() == ce
    raised = loss.adversarial(out, labels, "kl", 4.0, True)
    assert raised.item() == pytest.approx(ce + by_hand_kl(out.logits, [(0, 1), (0, 2)], 4.0), rel=1e-5)
    assert gradients(raised, out)[2].abs().sum() > 0
    with pytest.raises(ValueError, match="got 'mse', expected ce, ce\\+hsic or kl"):
        loss.adversarial(out, labels, "mse", 4.0, True)


def by_hand_ce(logits: torch.Tensor, targets: list[int], weights: list[float], smoothing: float) -> float:
    total = 0.0
    for row, target in zip(logits.double().log_softmax(-1).tolist(), targets, strict=True):
        total -= (1 - smoothing) * weights[target] * row[target]
        total -= smoothing / 2 * (weights[0] * row[0] + weights[1] * row[1])
    return total / sum(weights[t] for t in targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [3.0, 0.6]])
def test_label_smoothing_and_class_weights_are_exact_over_two_ranks(smoothing, weights):
    out, _ = output()
    labels = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0])
    targets = labels.repeat_interleave(M)
    tensor = None if weights is None else torch.tensor(weights)
    whole = QadLoss(HsicConfig(alpha=0, weights=[]), [], M, tensor, label_smoothing=smoothing)
    value = whole(ModelOutput(out.logits, {}), labels).total
    expected = by_hand_ce(out.logits.detach(), targets.tolist(), weights or [1.0, 1.0], smoothing)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    halves = []
    for rank in range(2):
        ranks = FakeRanks(rank, sums=[0.0 if tensor is None else tensor[targets].sum().item()])
        loss = QadLoss(HsicConfig(alpha=0, weights=[]), [], M, tensor, label_smoothing=smoothing, ranks=ranks)
        half = slice(rank * B // 2, (rank + 1) * B // 2)
        rows = slice(rank * B * M // 2, (rank + 1) * B * M // 2)
        halves.append(loss(ModelOutput(out.logits[rows], {}), labels[half]).total)
    assert (sum(halves) / 2).item() == pytest.approx(value.item(), rel=1e-6)
    (got,) = torch.autograd.grad(sum(halves) / 2, out.logits)  # DDP's average
    (exact,) = torch.autograd.grad(value, out.logits)
    assert torch.allclose(got, exact, atol=1e-7)


@dataclass
class FakeRanks:
    """Rank ``rank`` of two, in one process: ``gather`` puts the other one's tensors beside the own ones.

    All losses are differentiated together, which adds both processes' gradients as the real gather does.
    """

    rank: int
    others: list[torch.Tensor] | None = None  # what the other rank gives, in order of the calls
    sums: list[float] | None = None
    world: int = 2

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        other = self.others.pop(0)
        return torch.cat([tensor, other] if self.rank == 0 else [other, tensor])

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, self.sums[0])


@pytest.mark.parametrize("given_label", [False, True])
@pytest.mark.parametrize(("scope", "group"), [("gathered", 0), ("gathered", 8), ("gathered", 4), ("local", 4)])
def test_two_ranks_averaged_are_one_process_on_the_whole_batch(scope, group, given_label):
    out, _ = output()
    labels = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0])
    if group == 4:
        labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    config = HsicConfig(alpha=0.7, weights=[1.0, 2.0], scope=scope, group_tuples=group, given_label=given_label)
    whole = QadLoss(config.model_copy(update={"scope": "local"}), TAPS, M)(out, labels)
    totals, halves = [], []
    for rank in range(2):
        rows = slice(rank * B * M // 2, (rank + 1) * B * M // 2)
        halves.append(ModelOutput(out.logits[rows], {tap: x[rows] for tap, x in out.features.items()}))
    for rank in range(2):
        own, other = (labels[4 * r : 4 * r + 4] for r in (rank, 1 - rank))
        sent = ([other] if given_label else []) + [halves[1 - rank].features[tap].flatten(1) for tap in TAPS]
        loss = QadLoss(config, TAPS, M, ranks=FakeRanks(rank, others=sent if group != 4 else None))
        totals.append(loss(halves[rank], own).total)
        assert not sent or group == 4  # everything was asked for, or (groups inside a process) nothing
    assert (sum(totals) / 2).item() == pytest.approx(whole.total.item(), rel=1e-6)
    for got, exact in zip(gradients(sum(totals) / 2, out), gradients(whole.total, out), strict=True):
        assert torch.allclose(got, exact, atol=1e-7) and exact.abs().sum() > 0


def test_local_scope_of_two_ranks_is_another_loss():
    """Why ``gathered`` exists: HSIC is a statistic of the batch, halves do not average to it."""
    out, labels = output()
    config = HsicConfig(alpha=1.0, weights=[1.0, 1.0])
    whole = QadLoss(config, TAPS, M)(out, labels).hsic.item()
    halves = [
        QadLoss(config, TAPS, M, ranks=FakeRanks(rank))(
            ModelOutput(out.logits[rows], {tap: x[rows] for tap, x in out.features.items()}), labels[:4]
        ).hsic.item()
        for rank, rows in enumerate((slice(0, 4 * M), slice(4 * M, 8 * M)))
    ]
    assert abs(sum(halves) / 2 - whole) > 0.05
