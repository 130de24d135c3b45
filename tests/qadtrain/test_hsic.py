"""Estimators against float64 references written from the papers' formulas, and their behaviour as scores."""

import numpy as np
import pytest
import torch

from qadtrain import hsic


def np_gaussian(x: np.ndarray, two_s2: float) -> np.ndarray:
    distances = ((x[:, None] - x[None, :]) ** 2).sum(-1)
    return np.exp(-distances / two_s2)


def np_biased(k: np.ndarray, l_: np.ndarray) -> float:
    m = len(k)
    h = np.eye(m) - np.ones((m, m)) / m
    return np.trace(k @ h @ l_ @ h) / (m - 1) ** 2


def np_unbiased(k: np.ndarray, l_: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, term by term."""
    m = len(k)
    kt, lt = k - np.diag(np.diag(k)), l_ - np.diag(np.diag(l_))
    one = np.ones(m)
    value = np.trace(kt @ lt) + (one @ kt @ one) * (one @ lt @ one) / ((m - 1) * (m - 2))
    return (value - 2 / (m - 2) * (one @ kt @ lt @ one)) / (m * (m - 3))


def np_nhsic_cca(k: np.ndarray, l_: np.ndarray, epsilon: float = 1e-5) -> float:
    """The reference's form: one-sided centring and a general inverse."""
    m = len(k)
    h = np.eye(m) - np.ones((m, m)) / m

    def ratio(kernel: np.ndarray) -> np.ndarray:
        centred = kernel @ h
        return centred @ np.linalg.inv(centred + epsilon * m * np.eye(m))

    return np.trace(ratio(k) @ ratio(l_))


REFERENCES = {
    "biased": np_biased,
    "unbiased": np_unbiased,
    "cka_unbiased": lambda k, l_: np_unbiased(k, l_) / np.sqrt(np_unbiased(k, k) * np_unbiased(l_, l_)),
    "nhsic_cca": np_nhsic_cca,
}


def features(m: int = 24, d: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two dependent feature sets with a mean far from zero, float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m, d)) + 3
    y = 0.6 * x + rng.normal(size=(m, d))
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("estimator", REFERENCES)
@pytest.mark.parametrize("bandwidth", ["fixed", "median"])
def test_gaussian_estimators_match_float64_reference(estimator, bandwidth):
    x, y = features()
    kernels, references = [], []
    for z in (x, y):
        kernels.append(hsic.gaussian_kernel(torch.from_numpy(z), bandwidth=bandwidth, sigma=1.5))
        z64 = z.astype(np.float64)
        off_diagonal = ((z64[:, None] - z64[None]) ** 2).sum(-1)[np.triu_indices(len(z), 1)]
        median = np.sort(off_diagonal)[(len(off_diagonal) - 1) // 2]
        references.append(np_gaussian(z64, 2 * 1.5**2 * z.shape[1] if bandwidth == "fixed" else median))
    got = hsic.estimate(*kernels, estimator).item()
    assert got == pytest.approx(REFERENCES[estimator](*references), rel=2e-4)


@pytest.mark.parametrize("estimator", REFERENCES)
def test_linear_estimators_match_float64_reference(estimator):
    x, y = features(m=16, d=200)
    got = hsic.estimate(*(hsic.linear_kernel(torch.from_numpy(z)) for z in (x, y)), estimator).item()
    # Centred as in hsic.py: the unbiased forms zero the diagonal, which depends on the mean of linear features.
    k, l_ = ((z := x_ - x_.mean(0)) @ z.T for x_ in (x.astype(np.float64), y.astype(np.float64)))
    assert got == pytest.approx(REFERENCES[estimator](k, l_), rel=1e-4)


def test_unbiased_zeroes_the_diagonal_of_linear_kernels():
    """Regression against a widely copied bug: ``K - diag(K)`` subtracts a row vector and changes every entry."""
    x, y = (torch.from_numpy(z) for z in features(m=12, d=300))
    k, l_ = hsic.linear_kernel(x), hsic.linear_kernel(y)
    got = hsic.hsic_unbiased(k, l_).item()
    assert got == pytest.approx(np_unbiased(k.numpy(), l_.numpy()), rel=1e-9)
    changed = k + torch.diag(torch.arange(12, dtype=k.dtype) * 1e6)
    assert hsic.hsic_unbiased(changed, l_).item() == pytest.approx(got, rel=1e-9)
    m = len(k)
    wrong_k, wrong_l = (z - z.diagonal() for z in (k, l_))
    ones = torch.ones(m, dtype=k.dtype)
    wrong = (wrong_k @ wrong_l).trace() + wrong_k.sum() * wrong_l.sum() / ((m - 1) * (m - 2))
    wrong = (wrong - 2 / (m - 2) * (ones @ wrong_k @ wrong_l @ ones)) / (m * (m - 3))
    assert abs(wrong.item() - got) > 0.1 * abs(got)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_cka_is_one_for_identical_and_zero_for_independent_features(kernel):
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(48, 400, generator=generator) for _ in range(21)]
    kernels = [hsic.kernel_matrix(x, kernel, bandwidth="median", sigma=6.0) for x in draws]
    assert hsic.cka_unbiased(kernels[0], kernels[0]).item() == pytest.approx(1, abs=1e-6)
    independent = [hsic.cka_unbiased(kernels[0], other).item() for other in kernels[1:]]
    assert abs(np.mean(independent)) < 0.05
    raw = [hsic.hsic_unbiased(kernels[0], other).item() for other in kernels[1:]]
    self_hsic = hsic.hsic_unbiased(kernels[0], kernels[0]).item()
    assert abs(np.mean(raw)) < 0.05 * self_hsic
    # The biased form on the same data is what must not be read as a score.
    biased = hsic.hsic_biased(kernels[0], kernels[1]) / torch.sqrt(
        hsic.hsic_biased(kernels[0], kernels[0]) * hsic.hsic_biased(kernels[1], kernels[1])
    )
    assert biased > 0.4


def test_nhsic_cca_does_not_measure_alignment_when_m_is_small():
    """Why CKA is logged beside it: with d far above m it is the same at independence and at identity."""
    generator = torch.Generator().manual_seed(1)
    x, other = torch.randn(2, 32, 4000, generator=generator).relu()
    kernels = {
        name: hsic.gaussian_kernel(z, bandwidth="fixed", sigma=6.0)
        for name, z in {"x": x, "independent": other, "half": (x + other) / 2}.items()
    }
    same, independent = (hsic.nhsic_cca(kernels["x"], kernels[name]).item() for name in ("x", "independent"))
    assert 0.85 < independent / same < 1.15
    ckas = [hsic.cka_unbiased(kernels["x"], kernels[name]).item() for name in ("independent", "half", "x")]
    assert ckas[0] < 0.15 < ckas[1] < 0.95 < ckas[2]


def test_wide_bandwidth_keeps_its_digits():
    """At sigma = 6 sqrt(d) all k lie near 0.99; exp(...) in float32 would keep only three digits of 1 - k."""
    x, y = features(m=32, d=2000)
    got = hsic.hsic_unbiased(*(hsic.gaussian_kernel(torch.from_numpy(z), bandwidth="fixed") for z in (x, y))).item()
    two_s2 = 2 * 36 * 2000
    expected = np_unbiased(*(np_gaussian(z.astype(np.float64), two_s2) for z in (x, y)))
    assert got == pytest.approx(expected, rel=1e-3)


def test_bf16_features_agree_with_fp32_ones_under_autocast():
    x, y = (torch.from_numpy(z) for z in features(m=32, d=1000))

    def cka(a: torch.Tensor, b: torch.Tensor) -> float:
        return hsic.cka_unbiased(*(hsic.gaussian_kernel(z, bandwidth="fixed") for z in (a, b))).item()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cka(x.bfloat16(), y.bfloat16())
    assert rounded == pytest.approx(cka(x, y), abs=2e-3)


def test_distances_have_zero_diagonal_are_never_negative_and_ignore_a_large_mean():
    x = torch.from_numpy(features(m=10, d=64)[0])
    expected = torch.cdist(x.double(), x.double()) ** 2
    for shift in (0.0, 1000.0):
        distances = hsic.squared_distances(x + shift)
        assert distances.diagonal().eq(0).all()
        assert distances.min() >= 0
        assert torch.allclose(distances.double(), expected, rtol=2e-3)
    twins = hsic.squared_distances(torch.cat([x, x]))
    assert twins.min() >= 0 and twins[0, 10] < 1e-3


def test_gradient_is_right_and_the_median_is_a_constant_for_it():
    x, y = (torch.from_numpy(z).double() for z in features(m=6, d=5))
    x.requires_grad_(True)
    for estimator in REFERENCES:

        def value(z: torch.Tensor, estimator=estimator) -> torch.Tensor:
            kernels = (hsic.gaussian_kernel(v, bandwidth="fixed", sigma=1.0) for v in (z, y))
            return hsic.estimate(*kernels, estimator)

        assert torch.autograd.gradcheck(value, (x,), atol=1e-6)
    # With the bandwidth held, growing all features by one factor changes the kernel; were the median
    # differentiated too, it would follow and this derivative would vanish.
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    kernel = hsic.gaussian_kernel(x.detach() * scale, bandwidth="median")
    (slope,) = torch.autograd.grad(kernel.mean(), scale)
    assert slope < -0.1


def test_dead_features_give_zero_and_no_nan():
    dead = torch.full((8, 16), 2.0, requires_grad=True)
    alive = torch.from_numpy(features(m=8, d=16)[0])
    kernels = [hsic.gaussian_kernel(z, bandwidth="median") for z in (dead, alive)]
    for estimator in REFERENCES:
        value = hsic.estimate(*kernels, estimator)
        (gradient,) = torch.autograd.grad(value, dead, retain_graph=True)
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert gradient.isfinite().all()


def test_wrong_use_is_named():
    three = hsic.linear_kernel(torch.randn(3, 5))
    for estimator in ("unbiased", "cka_unbiased"):
        with pytest.raises(ValueError, match="got m = 3 tuples, expected at least 4"):
            hsic.estimate(three, three, estimator)
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(4, 4\)"):
        hsic.hsic_biased(three, hsic.linear_kernel(torch.randn(4, 5)))
    with pytest.raises(ValueError, match="got 'cka'"):
        hsic.estimate(three, three, "cka")


def test_precision_flag_is_put_back():
    torch.set_float32_matmul_precision("high")
    try:
        hsic.linear_kernel(torch.randn(4, 5))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
