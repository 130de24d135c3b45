"""Estimators against float64 references written from the papers' formulas, and their behaviour as scores."""

from functools import partial

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
    # The reference does not centre the features: no estimator changes when a_i + a_j is added to a kernel.
    k, l_ = (z @ z.T for z in (x.astype(np.float64), y.astype(np.float64)))
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


@pytest.mark.parametrize("kernel", ["gaussian", "imq", "linear"])
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


def np_kernel(x: np.ndarray, kernel: str, bandwidth: str, sigma: float = 1.5) -> np.ndarray:
    """By loops, from the definitions."""
    m = len(x)
    if kernel == "linear":
        return np.array([[float(x[i] @ x[j]) for j in range(m)] for i in range(m)])
    squares = np.array([[float(((x[i] - x[j]) ** 2).sum()) for j in range(m)] for i in range(m)])
    off_diagonal = sorted(squares[i, j] for i in range(m) for j in range(i))
    two_s2 = 2 * sigma**2 * x.shape[1] if bandwidth == "fixed" else off_diagonal[(len(off_diagonal) - 1) // 2]
    t = squares / two_s2
    return np.exp(-t) if kernel == "gaussian" else 1 / np.sqrt(1 + t)


def value_of(x, y, kernel, bandwidth, estimator, epsilon=1e-5):
    kernels = [hsic.kernel_matrix(z, kernel, bandwidth=bandwidth, sigma=1.5) for z in (x, y)]
    return hsic.estimate(*kernels, estimator, epsilon=epsilon)


@pytest.mark.parametrize("estimator", REFERENCES)
@pytest.mark.parametrize("kernel", ["gaussian", "imq", "linear"])
@pytest.mark.parametrize("bandwidth", ["fixed", "median"])
def test_every_estimator_and_its_gradient_match_loops_and_finite_differences(kernel, bandwidth, estimator):
    x, y = (z.astype(np.float64) for z in features(m=6, d=5, seed=3))
    tx, ty = torch.from_numpy(x).requires_grad_(True), torch.from_numpy(y)
    # At 1e-5 nhsic_cca is m - 1 for nearly any two kernels of full rank, and its gradient is rounding.
    epsilon = 0.05
    value = value_of(tx, ty, kernel, bandwidth, estimator, epsilon)
    reference = REFERENCES[estimator] if estimator != "nhsic_cca" else partial(np_nhsic_cca, epsilon=epsilon)
    k, l_ = (np_kernel(z, kernel, bandwidth) for z in (x, y))
    assert value.item() == pytest.approx(reference(k, l_), rel=1e-6, abs=1e-10)
    (gradient,) = torch.autograd.grad(value, tx)
    fixed_scale = 2 * 1.5**2 * 5
    if bandwidth == "median" and kernel != "linear":  # the reference holds the median where it is at x
        squares = ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(6, 1)]
        fixed_scale = np.sort(squares)[(len(squares) - 1) // 2]
    sigma = np.sqrt(fixed_scale / 2 / 5)
    step = 1e-5
    for place in [(0, 0), (2, 3), (5, 4)]:
        moved = []
        for sign in (1, -1):
            z = x.copy()
            z[place] += sign * step
            moved.append(reference(np_kernel(z, kernel, "fixed", sigma), l_))
        numeric = (moved[0] - moved[1]) / (2 * step)
        assert gradient[place].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)
    if bandwidth == "fixed":
        assert torch.autograd.gradcheck(lambda z: value_of(z, ty, kernel, bandwidth, estimator, epsilon), (tx,))


@pytest.mark.parametrize("estimator", REFERENCES)
@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
def test_order_of_tuples_scale_and_rotation_change_nothing(kernel, estimator):
    x, y = (torch.from_numpy(z).double() for z in features(m=10, d=6))
    value = value_of(x, y, kernel, "median", estimator, 0.05).item()
    order = torch.randperm(10)
    assert value_of(x[order], y[order], kernel, "median", estimator, 0.05).item() == pytest.approx(value, rel=1e-7)
    assert value_of(100 * x, 0.01 * y, kernel, "median", estimator, 0.05).item() == pytest.approx(value, rel=1e-7)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert value_of(x @ rotation, y, kernel, "median", estimator, 0.05).item() == pytest.approx(value, rel=1e-7)
    # Scaling is not without effect at a fixed bandwidth, nor is pairing the tuples differently.
    assert abs(value_of(100 * x, y, kernel, "fixed", estimator, 0.05).item() - value) > 1e-3 * abs(value)
    assert abs(value_of(x, y.roll(1, 0), kernel, "median", estimator, 0.05).item() - value) > 1e-3 * abs(value)


@pytest.mark.parametrize(("kernel", "median_entry"), [("gaussian", np.exp(-1)), ("imq", 1 / np.sqrt(2))])
def test_median_of_squared_distances_is_two_s_squared_not_s(kernel, median_entry):
    """Regression against known code that uses that median as s: its kernel would lie near 1 everywhere."""
    x = torch.from_numpy(features(m=12, d=400)[0])
    entries = hsic.kernel_matrix(x, kernel, bandwidth="median", sigma=6.0)[tuple(np.triu_indices(12, 1))]
    assert (1 + entries).sort().values[33].item() == pytest.approx(median_entry, rel=1e-5)


def test_median_of_mostly_equal_tuples_still_follows_the_scale():
    x = torch.zeros(8, 5, dtype=torch.float64)
    x[0] = torch.arange(5)
    kernels = [hsic.gaussian_kernel(factor * x) for factor in (1.0, 1e-3)]
    assert torch.allclose(*kernels, rtol=1e-9)
    assert kernels[0][0, 1].item() == pytest.approx(np.expm1(-4), rel=1e-9)  # mean distance = 7 / 28 of the one there


def test_a_kernel_that_has_no_digits_left_gives_nan_not_an_exception():
    x, y = (torch.from_numpy(z) for z in features(m=6, d=5))
    x[2, 1] = torch.inf
    for estimator in REFERENCES:
        assert value_of(x, y, "gaussian", "median", estimator).isnan()


@pytest.mark.parametrize("estimator", REFERENCES)
def test_inside_classes_is_the_mean_of_each_class_alone(estimator):
    x, y = (torch.from_numpy(z).double() for z in features(m=14, d=20))
    places = [torch.arange(0, 10, 2), torch.tensor([1, 3, 5, 7, 9, 10]), torch.tensor([11, 12, 13])]  # 5, 6 and 3
    interleaved = torch.stack([x, y], dim=1).flatten(0, 1)
    options = {"kernel": "gaussian", "bandwidth": "median", "sigma": 1.5, "dims": 20, "estimator": estimator}
    values, ckas = hsic.pair_values(hsic.quality_grams(interleaved, 2), [(0, 1)], classes=[places], **options)
    for got, name in ((values, estimator), (ckas, "cka_unbiased")):
        alone = [value_of(x[p], y[p], "gaussian", "median", name).item() for p in places[:2]]
        assert got.item() == pytest.approx((5 * alone[0] + 6 * alone[1]) / 11, rel=1e-7)


def test_without_a_class_of_four_the_value_and_its_gradient_are_zero():
    x = torch.randn(12, 7, requires_grad=True)
    grams = hsic.quality_grams(x, 2)
    options = {"kernel": "gaussian", "bandwidth": "median", "sigma": 1.0, "dims": 7, "estimator": "unbiased"}
    places = [[torch.arange(3), torch.arange(3, 6)]]
    values, ckas = hsic.pair_values(grams, [(0, 1)], classes=places, **options)
    assert values.tolist() == ckas.tolist() == [0.0]
    assert torch.autograd.grad(values.sum() + 0 * x.sum(), x)[0].eq(0).all()


def test_class_structure_alone_is_dependence_only_without_the_labels():
    """Two classes far apart, otherwise independent features: aligned as a batch, not inside the classes."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(64) % 2
    x = torch.randn(64, 2, 50, generator=generator) + 3.0 * labels[:, None, None]
    options = {"kernel": "gaussian", "bandwidth": "median", "sigma": 1.0, "dims": 50, "estimator": "cka_unbiased"}
    grams = hsic.quality_grams(x.flatten(0, 1), 2)
    places = [[(labels == c).nonzero()[:, 0] for c in (0, 1)]]
    assert hsic.pair_values(grams, [(0, 1)], **options)[0].item() > 0.8
    assert abs(hsic.pair_values(grams, [(0, 1)], classes=places, **options)[0].item()) < 0.15


@pytest.mark.parametrize("kernel", ["gaussian", "imq", "linear"])
def test_bf16_features_are_within_a_hundredth_for_every_kernel(kernel):
    x, y = (torch.from_numpy(z) for z in features(m=16, d=5000))
    for estimator in ("cka_unbiased", "unbiased", "biased", "nhsic_cca"):
        exact = value_of(x, y, kernel, "median", estimator).item()
        rounded = value_of(x.bfloat16(), y.bfloat16(), kernel, "median", estimator).item()
        assert rounded == pytest.approx(exact, rel=1e-2)


def test_unknown_kernel_is_named():
    with pytest.raises(ValueError, match="got 'rbf', expected gaussian, imq or linear"):
        hsic.kernel_matrix(torch.randn(4, 5), "rbf", bandwidth="median", sigma=1.0)
