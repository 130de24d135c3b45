"""The chunked Gram matrix against float64, its gradient, and what it keeps for the backward pass."""

import numpy as np
import pytest
import torch

from qadtrain import gram
from qadtrain.gram import as_rows, quality_grams

N, M = 8, 3  # tuples, qualities


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 7 columns, the last one shorter, and the float32 path for every size."""
    monkeypatch.setattr(gram, "CHUNK_NUMBERS", 7 * N * M)
    monkeypatch.setattr(gram, "DOUBLE_DIMS", 0)


def np_grams(x: np.ndarray, group: int) -> np.ndarray:
    """(groups, M, group, group) by H X X' H with an explicit H, in float64."""
    h = np.eye(group) - np.ones((group, group)) / group
    out = np.zeros((N // group, M, group, group))
    for g in range(N // group):
        for q in range(M):
            rows = np.stack([x[(g * group + i) * M + q].ravel() for i in range(group)]).astype(np.float64)
            out[g, q] = h @ rows @ rows.T @ h
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [0, 4])
def test_values_match_float64_reference(dtype, group, small_chunks):
    x = (torch.randn(N * M, 5, 2, 3, generator=torch.Generator().manual_seed(0)) + 2).to(dtype)
    got = quality_grams(x, M, group)
    assert got.dtype == torch.float64
    expected = np_grams(x.double().numpy(), group or N)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert np.abs(got.numpy() - expected).max() < tolerance * np.abs(expected).max()
    assert torch.equal(got, got.mT)


@pytest.mark.parametrize("group", [0, 4])
def test_gradient_by_finite_differences_and_by_plain_autograd(group, small_chunks):
    x = torch.randn(N * M, 9, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(N // (group or N), M, group or N, group or N, dtype=torch.float64)  # not symmetric
    assert torch.autograd.gradcheck(lambda z: (quality_grams(z, M, group) * weights).sum(), (x,))
    (got,) = torch.autograd.grad((quality_grams(x, M, group) * weights).sum(), x)
    plain = x.unflatten(0, (-1, group or N, M)).transpose(1, 2)
    plain = plain - plain.mean(dim=2, keepdim=True)
    (expected,) = torch.autograd.grad((plain @ plain.mT * weights).sum(), x)
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_half_precision_gradient_comes_in_its_own_dtype_under_autocast(small_chunks):
    x = torch.randn(N * M, 40).bfloat16().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(quality_grams(x, M).square().sum(), x)
    exact = x.detach().double().requires_grad_(True)
    (expected,) = torch.autograd.grad(quality_grams(exact, M).square().sum(), exact)
    assert got.dtype == torch.bfloat16
    # Rounded once, at the end: half a step of bfloat16 relative to each entry, not to a bfloat16 sum.
    assert ((got.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5 * expected.abs().max()).all()


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_rows_are_a_view_in_either_memory_layout_and_the_gradient_keeps_it(fmt):
    x = torch.randn(N * M, 5, 3, 2).to(memory_format=fmt).requires_grad_(True)
    rows = as_rows(x)
    assert rows.data_ptr() == x.data_ptr() and rows.is_contiguous() and rows.shape == (N * M, 30)
    assert torch.equal(rows.detach().sort().values, x.detach().flatten(1).sort().values)
    quality_grams(x, M).square().sum().backward()
    assert x.grad.is_contiguous(memory_format=fmt)
    assert torch.allclose(quality_grams(x, M), quality_grams(x.detach().contiguous(), M), atol=1e-9)


def test_what_is_kept_for_backward_is_the_features_themselves():
    x = torch.randn(N * M, 64, 32, 32).bfloat16().to(memory_format=torch.channels_last).requires_grad_(True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = quality_grams(x, M).square().sum()
    assert x.untyped_storage().data_ptr() in kept  # shared with the network: no byte of its own
    others = sum(kept.values()) - x.nbytes
    assert others <= 4 * M * N * N * 8
    value.backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.abs().sum() > 0


def test_matmul_precision_is_highest_inside_forward_and_backward_and_put_back(monkeypatch):
    seen = []
    real = torch.bmm

    def watched(*args):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return real(*args)

    monkeypatch.setattr(torch, "bmm", watched)
    torch.set_float32_matmul_precision("high")
    try:
        x = torch.randn(N * M, 6, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            quality_grams(x, M).sum().backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", False)] * 2


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="got 10 rows, expected a multiple of 3 tuples of 3 qualities"):
        quality_grams(torch.randn(10, 4), 3)
    with pytest.raises(ValueError, match="got 24 rows, expected a multiple of 5 tuples of 3 qualities"):
        quality_grams(torch.randn(24, 4), 3, 5)
