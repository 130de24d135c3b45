"""HSIC and CKA between two sets of features of the same tuples.

Shapes: features are (m, ...) and are flattened to (m, d); kernels are (m, m); results are scalars.
With H = I - 11'/m the estimators are

* ``biased``        tr(K H L H) / (m - 1)^2                                   (Gretton et al. 2005)
* ``unbiased``      Song et al. 2012, eq. 5; may be negative; needs m >= 4
* ``cka_unbiased``  unbiased(K, L) / sqrt(unbiased(K, K) unbiased(L, L))       (Nguyen et al. 2021)
* ``nhsic_cca``     tr(R_K R_L), R = K H (K H + eps m I)^-1                   (Fukumizu et al. 2007; HSIC bottleneck)

All of them are unchanged when a constant is added to every entry of a kernel. :func:`gaussian_kernel` uses
that: it returns k - 1 = expm1(-d^2 / 2 s^2), which keeps its digits when the bandwidth s is so wide that
every k rounds to nearly 1 (at s = 6 sqrt(d) they all lie near 0.99). For the same reason the small (m, m)
algebra runs in float64; the large Gram products run in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["cka_unbiased", "unbiased", "biased", "nhsic_cca"]
Kernel = Literal["gaussian", "linear"]
Bandwidth = Literal["fixed", "median"]

MIN_TUPLES = 4  # the unbiased estimator divides by m - 3


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast and TF32 off: a bf16 kernel at a wide bandwidth has five distinct values."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def centred(features: Tensor) -> Tensor:
    """(m, ...) of any float dtype -> (m, d) float32 (float64 stays), with the mean over m taken out.

    Distances and centred Grams do not change by it, and |x|^2 becomes small enough not to swamp them.
    """
    flat = features.flatten(1)
    if flat.dtype != torch.float64:
        flat = flat.float()
    return flat - flat.mean(dim=0, keepdim=True)


def _small(matrix: Tensor) -> Tensor:
    # The m x m algebra is free of cost in float64; Apple's GPUs alone have no float64.
    return matrix if matrix.device.type == "mps" else matrix.double()


def squared_distances(features: Tensor) -> Tensor:
    """(m, ...) -> (m, m) squared Euclidean distances, >= 0, with an exactly zero diagonal."""
    with full_precision(features.device):
        flat = centred(features)
        gram = flat @ flat.T
        norms = gram.diagonal()
        distances = (norms[:, None] - 2 * gram + norms[None, :]).clamp_min(0)
        off_diagonal = 1 - torch.eye(len(flat), dtype=distances.dtype, device=distances.device)
        return distances * off_diagonal


def linear_kernel(features: Tensor) -> Tensor:
    """(m, ...) -> (m, m) Gram matrix of the centred features."""
    with full_precision(features.device):
        flat = centred(features)
        return _small(flat @ flat.T)


def gaussian_kernel(features: Tensor, *, bandwidth: Bandwidth = "median", sigma: float = 6.0) -> Tensor:
    """(m, ...) -> (m, m) Gaussian kernel **minus one**: exp(-d^2 / (2 s^2)) - 1, diagonal 0.

    Args:
        bandwidth: ``fixed``: s = sigma * sqrt(d), d = flattened dimension (HSIC-bottleneck convention).
            ``median``: 2 s^2 = median of the squared distances off the diagonal, so that the median entry
            is exp(-1). It is a constant for the gradient, else the features could earn by changing the scale.
        sigma: only for ``fixed``.
    """
    distances = _small(squared_distances(features))
    if bandwidth == "fixed":
        two_s2 = 2 * sigma**2 * features.flatten(1).shape[1]
        return torch.expm1(-distances / two_s2)
    rows, columns = torch.triu_indices(*distances.shape, offset=1, device=distances.device)
    median = distances.detach()[rows, columns].median()
    # All features equal (a dead layer): any scale will do, the kernel is constant and HSIC is zero.
    two_s2 = torch.where(median > 0, median, torch.ones_like(median))
    return torch.expm1(-distances / two_s2)


def kernel_matrix(features: Tensor, kernel: Kernel, *, bandwidth: Bandwidth, sigma: float) -> Tensor:
    """(m, ...) -> (m, m) float64 kernel, up to an added constant (see the module's head)."""
    if kernel == "linear":
        return linear_kernel(features)
    return gaussian_kernel(features, bandwidth=bandwidth, sigma=sigma)


def hsic_biased(kernel_x: Tensor, kernel_y: Tensor) -> Tensor:
    """tr(K H L H) / (m - 1)^2. Saturated and useless as a score when m is much smaller than d."""
    m = _paired_size(kernel_x, kernel_y, minimum=2)
    return (_double_centred(kernel_x) * _double_centred(kernel_y)).sum() / (m - 1) ** 2


def hsic_unbiased(kernel_x: Tensor, kernel_y: Tensor) -> Tensor:
    """Song et al. 2012 in the U-centred form (Szekely & Rizzo 2014): sum(U_K * U_L) / (m (m - 3)).

    Same value as tr(K~L~) + (1'K~1)(1'L~1)/((m-1)(m-2)) - 2/(m-2) 1'K~L~1, over m (m - 3), with fewer digits
    lost; the diagonals are zeroed, so unbiased(K, K) is a sum of squares and never negative.
    """
    m = _paired_size(kernel_x, kernel_y, minimum=MIN_TUPLES)
    return (_u_centred(kernel_x) * _u_centred(kernel_y)).sum() / (m * (m - 3))


def cka_unbiased(kernel_x: Tensor, kernel_y: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Unbiased CKA in about [-1, 1]: 1 for equal features, near 0 for independent ones, 0 for constant ones."""
    m = _paired_size(kernel_x, kernel_y, minimum=MIN_TUPLES)
    u_x, u_y = _u_centred(kernel_x), _u_centred(kernel_y)
    u_x, u_y = u_x / _scale(u_x), u_y / _scale(u_y)  # CKA has no scale; epsilon then means the same everywhere
    norm = m * (m - 3)
    self_x, self_y = (u_x * u_x).sum() / norm, (u_y * u_y).sum() / norm
    return (u_x * u_y).sum() / norm / torch.sqrt(self_x * self_y + epsilon)


def nhsic_cca(kernel_x: Tensor, kernel_y: Tensor, epsilon: float = 1e-5) -> Tensor:
    """tr(R_K R_L) with R = K_c (K_c + epsilon m I)^-1, between 0 and m - 1.

    The reference centres on one side, K_c = K H. The trace is the same with the symmetric H K H (H commutes
    with (H K H + c I)^-1), which allows a Cholesky solve in place of a general inverse.
    """
    m = _paired_size(kernel_x, kernel_y, minimum=2)
    ridge = epsilon * m * torch.eye(m, dtype=kernel_x.dtype, device=kernel_x.device)

    def ratio(kernel: Tensor) -> Tensor:
        symmetric = _double_centred(kernel)
        return torch.cholesky_solve(symmetric, torch.linalg.cholesky(symmetric + ridge))

    return (ratio(kernel_x) * ratio(kernel_y).T).sum()


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


def _paired_size(kernel_x: Tensor, kernel_y: Tensor, minimum: int) -> int:
    m = kernel_x.shape[0]
    if kernel_x.shape != (m, m) or kernel_y.shape != (m, m):
        got = f"{tuple(kernel_x.shape)} and {tuple(kernel_y.shape)}"
        raise ValueError(f"kernels: got {got}, expected two (m, m) matrices over the same m tuples")
    if m < minimum:
        raise ValueError(f"kernels: got m = {m} tuples, expected at least {minimum} for this estimator")
    return m


def _double_centred(kernel: Tensor) -> Tensor:
    rows = kernel - kernel.mean(dim=1, keepdim=True)
    both = rows - rows.mean(dim=0, keepdim=True)
    return (both + both.T) / 2  # symmetric to the last bit, as Cholesky assumes


def _u_centred(kernel: Tensor) -> Tensor:
    m = len(kernel)
    off_diagonal = 1 - torch.eye(m, dtype=kernel.dtype, device=kernel.device)
    zeroed = kernel * off_diagonal  # zeroed, not "minus diag(K)", which would broadcast along the rows
    row_sums = zeroed.sum(dim=1)
    means = (row_sums[:, None] + row_sums[None, :]) / (m - 2) - row_sums.sum() / ((m - 1) * (m - 2))
    return (zeroed - means) * off_diagonal


def _scale(matrix: Tensor) -> Tensor:
    largest = matrix.detach().abs().max()
    return torch.where(largest > 0, largest, torch.ones_like(largest))
