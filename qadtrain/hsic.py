"""HSIC and CKA between two sets of features of the same tuples.

Shapes: features are (m, ...) and are flattened to (m, d); kernels are (..., m, m); results are (...), one for each
leading index (a group of tuples, a pair of qualities). With H = I - 11'/m the estimators are

* ``biased``        tr(K H L H) / (m - 1)^2                                   (Gretton et al. 2005)
* ``unbiased``      Song et al. 2012, eq. 5; may be negative; needs m >= 4
* ``cka_unbiased``  unbiased(K, L) / sqrt(unbiased(K, K) unbiased(L, L))       (Nguyen et al. 2021)
* ``nhsic_cca``     tr(R_K R_L), R = K H (K H + eps m I)^-1                   (Fukumizu et al. 2007; HSIC bottleneck)

All of them are unchanged when a constant is added to every entry of a kernel. The Gaussian and the inverse
multiquadric use that: they are kept as k - 1, which keeps its digits when the bandwidth s is so wide that every k
rounds to nearly 1 (at s = 6 sqrt(d) they all lie near 0.99). For the same reason the small (m, m) algebra runs in
float64; the large Gram products (``gram.py``) run in float32.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from qadtrain.gram import full_precision, quality_grams

Estimator = Literal["cka_unbiased", "unbiased", "biased", "nhsic_cca"]
Kernel = Literal["gaussian", "imq", "linear"]
Bandwidth = Literal["fixed", "median"]

MIN_TUPLES = 4  # the unbiased estimator divides by m - 3


def distances_from_gram(gram: Tensor) -> Tensor:
    """(..., m, m) Gram matrix -> squared Euclidean distances, >= 0, with an exactly zero diagonal.

    A distance below the digits of the Gram matrix is zero: a dead layer would else get a kernel, and a gradient,
    made of rounding errors.
    """
    norms = gram.diagonal(dim1=-2, dim2=-1)
    sums = norms[..., :, None] + norms[..., None, :]
    distances = sums - 2 * gram
    seen = distances.detach() > 8 * torch.finfo(torch.float32).eps * sums.detach()
    seen = seen & ~torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)
    seen = seen | distances.detach().isnan()
    return torch.where(seen, distances, torch.zeros_like(distances))


def squared_distances(features: Tensor) -> Tensor:
    """(m, ...) -> (m, m) squared Euclidean distances, >= 0, with an exactly zero diagonal."""
    return distances_from_gram(quality_grams(features)[0, 0])


def linear_kernel(features: Tensor) -> Tensor:
    """(m, ...) -> (m, m) Gram matrix of the centred features."""
    return quality_grams(features)[0, 0]


def gaussian_kernel(features: Tensor, *, bandwidth: Bandwidth = "median", sigma: float = 6.0) -> Tensor:
    """(m, ...) -> (m, m) Gaussian kernel minus one; see :func:`kernel_from_gram`."""
    return kernel_matrix(features, "gaussian", bandwidth=bandwidth, sigma=sigma)


def imq_kernel(features: Tensor, *, bandwidth: Bandwidth = "median", sigma: float = 6.0) -> Tensor:
    """(m, ...) -> (m, m) inverse multiquadric minus one; see :func:`kernel_from_gram`."""
    return kernel_matrix(features, "imq", bandwidth=bandwidth, sigma=sigma)


def kernel_matrix(features: Tensor, kernel: Kernel, *, bandwidth: Bandwidth, sigma: float) -> Tensor:
    """(m, ...) -> (m, m) float64 kernel, up to an added constant (see the module's head)."""
    dims = features[0].numel()
    return kernel_from_gram(quality_grams(features)[0, 0], kernel, bandwidth=bandwidth, sigma=sigma, dims=dims)


def kernel_from_gram(gram: Tensor, kernel: Kernel, *, bandwidth: Bandwidth, sigma: float, dims: int) -> Tensor:
    """(..., m, m) Gram matrices of centred features -> (..., m, m) kernels, each with a bandwidth of its own.

    Args:
        kernel: ``gaussian``: exp(-t) - 1 with t = d^2 / (2 s^2). ``imq``, the inverse multiquadric:
            1 / sqrt(1 + t) - 1, whose tail is heavier. Both have diagonal 0. ``linear``: the Gram matrix itself.
        bandwidth: ``fixed``: s = sigma * sqrt(dims) (HSIC-bottleneck convention). ``median``: 2 s^2 = median of the
            squared distances off the diagonal, so that the median entry of the Gaussian is exp(-1). It is a
            constant for the gradient, else the features could earn by changing the scale.
        sigma: only for ``fixed``.
        dims: length d of a flattened feature; only for ``fixed``.

    Raises:
        ValueError: a kernel that does not exist.
    """
    if kernel == "linear":
        return gram
    if kernel not in ("gaussian", "imq"):
        raise ValueError(f"kernel: got {kernel!r}, expected gaussian, imq or linear")
    distances = distances_from_gram(gram)
    if bandwidth == "fixed":
        scaled = distances / (2 * sigma**2 * dims)
    else:
        scaled = distances / _median(distances.detach())[..., None, None]
    return torch.expm1(-scaled) if kernel == "gaussian" else torch.expm1(-0.5 * torch.log1p(scaled))


def _median(distances: Tensor) -> Tensor:
    """(..., m, m) -> (...) lower median off the diagonal, above 0 also where most or all tuples are equal."""
    rows, columns = torch.triu_indices(*distances.shape[-2:], offset=1, device=distances.device)
    # Sorted, since torch.median and kthvalue have no deterministic form on CUDA.
    pairs = distances[..., rows, columns].sort(dim=-1).values
    median, mean = pairs[..., (pairs.shape[-1] - 1) // 2], pairs.mean(dim=-1)
    # Most distances zero: their mean still follows the scale. All zero (a dead layer): the kernel is constant.
    scale = torch.where(median > 0, median, mean)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def hsic_biased(kernel_x: Tensor, kernel_y: Tensor) -> Tensor:
    """tr(K H L H) / (m - 1)^2. Saturated and useless as a score when m is much smaller than d."""
    m = _paired_size(kernel_x, kernel_y, minimum=2)
    return _inner(_double_centred(kernel_x), _double_centred(kernel_y)) / (m - 1) ** 2


def hsic_unbiased(kernel_x: Tensor, kernel_y: Tensor) -> Tensor:
    """Song et al. 2012 in the U-centred form (Szekely & Rizzo 2014): sum(U_K * U_L) / (m (m - 3)).

    Same value as tr(K~L~) + (1'K~1)(1'L~1)/((m-1)(m-2)) - 2/(m-2) 1'K~L~1, over m (m - 3), with fewer digits
    lost; the diagonals are zeroed, so unbiased(K, K) is a sum of squares and never negative.
    """
    m = _paired_size(kernel_x, kernel_y, minimum=MIN_TUPLES)
    return _inner(_u_centred(kernel_x), _u_centred(kernel_y)) / (m * (m - 3))


def cka_unbiased(kernel_x: Tensor, kernel_y: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Unbiased CKA in about [-1, 1]: 1 for equal features, near 0 for independent ones, 0 for constant ones."""
    m = _paired_size(kernel_x, kernel_y, minimum=MIN_TUPLES)
    u_x, u_y = _u_centred(kernel_x), _u_centred(kernel_y)
    u_x, u_y = u_x / _scale(u_x), u_y / _scale(u_y)  # CKA has no scale; epsilon then means the same everywhere
    norm = m * (m - 3)
    self_x, self_y = _inner(u_x, u_x) / norm, _inner(u_y, u_y) / norm
    return _inner(u_x, u_y) / norm / torch.sqrt(self_x * self_y + epsilon)


def nhsic_cca(kernel_x: Tensor, kernel_y: Tensor, epsilon: float = 1e-5) -> Tensor:
    """tr(R_K R_L) with R = K_c (K_c + epsilon m I)^-1, between 0 and m - 1.

    The reference centres on one side, K_c = K H. The trace is the same with the symmetric H K H (H commutes
    with (H K H + c I)^-1), which allows a Cholesky solve in place of a general inverse. NaN where a kernel is not
    positive definite even with epsilon m added, or not finite.
    """
    m = _paired_size(kernel_x, kernel_y, minimum=2)
    ridge = epsilon * m * torch.eye(m, dtype=kernel_x.dtype, device=kernel_x.device)

    def ratio(kernel: Tensor) -> Tensor:
        symmetric = _double_centred(kernel)
        # Without the check, which would wait for the device and raise where the trainer counts a bad step.
        factor, failed = torch.linalg.cholesky_ex(symmetric + ridge)
        solved = torch.cholesky_solve(symmetric, factor)
        return torch.where((failed == 0)[..., None, None], solved, torch.full_like(solved, torch.nan))

    return _inner(ratio(kernel_x), ratio(kernel_y).mT)


def estimate(kernel_x: Tensor, kernel_y: Tensor, estimator: Estimator, *, epsilon: float = 1e-5) -> Tensor:
    """One of the estimators by name, on two (m, m) kernels; ``epsilon`` is for ``nhsic_cca``."""
    if estimator == "nhsic_cca":
        return nhsic_cca(kernel_x, kernel_y, epsilon)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "biased": hsic_biased,
        "unbiased": hsic_unbiased,
        "cka_unbiased": cka_unbiased,
    }
    if estimator not in functions:
        raise ValueError(f"estimator: got {estimator!r}, expected one of nhsic_cca, {', '.join(functions)}")
    return functions[estimator](kernel_x, kernel_y)


def pair_values(
    grams: Tensor,
    pairs: Sequence[tuple[int, int]],
    *,
    kernel: Kernel,
    bandwidth: Bandwidth,
    sigma: float,
    dims: int,
    estimator: Estimator,
    epsilon: float = 1e-5,
    classes: Sequence[Sequence[Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The chosen estimator, and unbiased CKA for the logs, of each pair of qualities; the mean over the groups.

    Args:
        grams: (groups, qualities, m, m) of :func:`qadtrain.gram.quality_grams`.
        pairs: P index pairs of qualities.
        dims: length of a flattened feature.
        classes: for each group the places (int64, on the device of ``grams``) of each class's tuples in it. Then
            the value of a group is the mean over its classes, weighted by their tuples, of the value inside the
            class, with a bandwidth of its own. Classes with fewer than MIN_TUPLES are left out; a group without
            any other counts as zero, with a gradient of zero. ``None``: all tuples of a group together.

    Returns:
        (P,) with gradient, and (P,) unbiased CKA without.
    """
    options = {"kernel": kernel, "bandwidth": bandwidth, "sigma": sigma, "dims": dims}
    with full_precision(grams.device):
        if classes is None:
            values, ckas = _estimates(kernel_from_gram(grams, **options), pairs, estimator, epsilon)
            return values.mean(dim=0), ckas.mean(dim=0)
        values, ckas = grams.new_zeros(len(pairs)), grams.new_zeros(len(pairs))
        for gram, places in zip(grams, classes, strict=True):
            counted = [place for place in places if len(place) >= MIN_TUPLES]
            tuples = sum(map(len, counted))
            for place in counted:
                own = gram.index_select(-1, place).index_select(-2, place)
                inside = _estimates(kernel_from_gram(own, **options)[None], pairs, estimator, epsilon)
                share = len(place) / (tuples * len(grams))
                values, ckas = values + share * inside[0][0], ckas + share * inside[1][0]
        return values, ckas


def _estimates(
    kernels: Tensor, pairs: Sequence[tuple[int, int]], estimator: Estimator, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(groups, qualities, m, m) -> the estimator with gradient and unbiased CKA without, (groups, P) each."""
    first = torch.stack([kernels[:, a] for a, _ in pairs], dim=1)
    second = torch.stack([kernels[:, b] for _, b in pairs], dim=1)
    values = estimate(first, second, estimator, epsilon=epsilon)
    if estimator == "cka_unbiased":
        return values, values.detach()
    return values, cka_unbiased(first.detach(), second.detach())


def _paired_size(kernel_x: Tensor, kernel_y: Tensor, minimum: int) -> int:
    m = kernel_x.shape[-1]
    if kernel_x.shape[-2:] != (m, m) or kernel_y.shape[-2:] != (m, m):
        got = f"{tuple(kernel_x.shape)} and {tuple(kernel_y.shape)}"
        raise ValueError(f"kernels: got {got}, expected two (m, m) matrices over the same m tuples")
    if m < minimum:
        raise ValueError(f"kernels: got m = {m} tuples, expected at least {minimum} for this estimator")
    return m


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-2, -1))


def _double_centred(kernel: Tensor) -> Tensor:
    rows = kernel - kernel.mean(dim=-1, keepdim=True)
    both = rows - rows.mean(dim=-2, keepdim=True)
    return (both + both.mT) / 2  # symmetric to the last bit, as Cholesky assumes


def _u_centred(kernel: Tensor) -> Tensor:
    m = kernel.shape[-1]
    off_diagonal = 1 - torch.eye(m, dtype=kernel.dtype, device=kernel.device)
    zeroed = kernel * off_diagonal  # zeroed, not "minus diag(K)", which would broadcast along the rows
    sums = zeroed.sum(dim=-1)
    total = sums.sum(dim=-1)[..., None, None]
    means = (sums[..., :, None] + sums[..., None, :]) / (m - 2) - total / ((m - 1) * (m - 2))
    return (zeroed - means) * off_diagonal


def _scale(matrix: Tensor) -> Tensor:
    largest = matrix.detach().abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(largest > 0, largest, torch.ones_like(largest))
