"""F3-Net: frequency bands against scipy, local statistics against a loop, cross-attention, the two streams."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.fft
import timm
import torch

from qadtrain.models.f3net import F3Net, MixBlock
from qadtrain.models.frequency import (
    FLOOR,
    BandDecomposition,
    LocalFrequencyStatistics,
    band_masks,
    dct_matrix,
    decomposition_edges,
    local_edges,
)


def test_the_matrix_is_the_orthonormal_dct():
    picture = np.random.default_rng(0).normal(size=(13, 13))
    matrix = dct_matrix(13)
    assert np.allclose(matrix @ matrix.T, np.eye(13))
    assert np.allclose(matrix @ picture @ matrix.T, scipy.fft.dctn(picture, norm="ortho"))


@pytest.mark.parametrize(("size", "edges"), [(299, decomposition_edges(299)), (10, local_edges(10, 6))])
def test_bands_partition_the_spectrum_from_low_to_high(size, edges):
    masks = band_masks(size, edges)
    assert (masks.sum(axis=0) == 1).all()
    diagonal = np.add.outer(np.arange(size), np.arange(size))
    spans = [(diagonal[mask].min(), diagonal[mask].max()) for mask in masks]
    assert spans[0][0] == 0 and spans[-1][1] == 2 * size - 2
    assert all(high + 1 == low for (_, high), (low, _) in pairwise(spans))
    if size == 299:
        assert masks.mean(axis=(1, 2)) == pytest.approx([1 / 16, 1 / 16, 7 / 8], abs=0.003)
    else:
        assert [high - low + 1 for low, high in spans] == [4, 3, 3, 3, 3, 3]  # 19 diagonals in six parts


def test_the_bands_add_up_to_the_picture_while_the_filters_are_zero():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 41, 41)
    bands = BandDecomposition(41)(images)
    assert bands.shape == (2, 9, 41, 41)
    assert torch.allclose(bands.unflatten(1, (3, 3)).sum(dim=1), images, atol=1e-5)
    assert bands[:, 6:].mean().abs() < 1e-6  # the mean of the picture is all in the low band
    assert torch.allclose(bands[:, :3].mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=1e-6)


def test_band_decomposition_is_that_of_the_paper():
    rng = np.random.default_rng(1)
    images, filters = rng.normal(size=(2, 3, 17, 17)), rng.normal(size=(3, 17, 17))
    part = BandDecomposition(17)
    part.band_weight.data = torch.tensor(filters, dtype=torch.float32)
    squeezed = (1 - np.exp(-filters)) / (1 + np.exp(-filters))
    combined = band_masks(17, decomposition_edges(17)) + squeezed
    expected = [
        scipy.fft.idctn(scipy.fft.dctn(images, axes=(2, 3), norm="ortho") * one, axes=(2, 3), norm="ortho")
        for one in combined
    ]
    assert np.allclose(part(torch.tensor(images)).detach(), np.concatenate(expected, axis=1), atol=1e-5)


def test_local_statistics_are_those_of_a_loop():
    rng = np.random.default_rng(2)
    images, filters = rng.normal(size=(2, 3, 21, 16)), rng.normal(size=(6, 10, 10))
    part = LocalFrequencyStatistics()
    part.band_weight.data = torch.tensor(filters, dtype=torch.float32)
    combined = band_masks(10, local_edges(10, 6)) + np.tanh(filters / 2)
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    expected = np.empty((2, 6, 10, 8))
    for n, band, row, column in np.ndindex(expected.shape):
        norm = 0.0
        for colour in range(3):
            window = padded[n, colour, 2 * row : 2 * row + 10, 2 * column : 2 * column + 10]
            norm += np.abs(scipy.fft.dctn(window, norm="ortho") * combined[band]).sum()
        expected[n, band, row, column] = np.log10(norm + FLOOR)
    assert np.allclose(part(torch.tensor(images)).detach(), expected, atol=1e-4)


def test_a_flat_picture_has_only_a_low_band():
    statistics = LocalFrequencyStatistics()(torch.full((1, 3, 30, 30), 0.5))[0, :, 4:-4, 4:-4].detach()
    assert torch.allclose(statistics[0], torch.full_like(statistics[0], np.log10(3 * 0.5 * 10)), atol=1e-4)
    assert (statistics[1:] < -4).all() and torch.isfinite(statistics).all()


def test_a_299_px_picture_gives_149_x_149_statistics():
    """The size the paper states."""
    with torch.no_grad():
        assert LocalFrequencyStatistics()(torch.zeros(1, 3, 299, 299)).shape == (1, 6, 149, 149)


def test_autocast_does_not_reach_the_spectra():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 24, 24)
    for part in (BandDecomposition(24), LocalFrequencyStatistics()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = part(images)
        assert cast.dtype == torch.float32 and torch.equal(cast, part(images))


def test_the_mixblock_weighs_the_other_streams_places():
    torch.manual_seed(0)
    block = MixBlock(16)
    first, second = torch.randn(1, 16, 2, 3), torch.randn(1, 16, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(block(first, second), (first, second), strict=True))  # gains are zero
    block.first_gain.data.fill_(0.5)
    block.second_gain.data.fill_(2.0)
    query, key = block.query(first).flatten(2)[0].double(), block.key(second).flatten(2)[0].double()
    first_value, second_value = (
        block.first_value(first).flatten(2)[0].double(),
        block.second_value(second).flatten(2)[0].double(),
    )
    to_first, to_second = torch.zeros(16, 6, dtype=torch.double), torch.zeros(16, 6, dtype=torch.double)
    for place in range(6):
        weights = torch.stack([(query[:, place] * key[:, other]).sum() / 2**0.5 for other in range(6)]).softmax(0)
        to_first[:, place] = (second_value * weights).sum(dim=1)
        weights = torch.stack([(query[:, other] * key[:, place]).sum() / 2**0.5 for other in range(6)]).softmax(0)
        to_second[:, place] = (first_value * weights).sum(dim=1)
    mixed_first, mixed_second = block(first, second)
    assert torch.allclose(mixed_first, first + 0.5 * to_first.view(1, 16, 2, 3).float(), atol=1e-5)
    assert torch.allclose(mixed_second, second + 2 * to_second.view(1, 16, 2, 3).float(), atol=1e-5)


@pytest.fixture(scope="module")
def network() -> F3Net:
    torch.manual_seed(0)
    return F3Net(size_px=43)


def test_both_streams_meet_at_the_same_size_and_train(network):
    seen = []
    handles = [
        stream.block7.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
        for stream in (network.fad_stream, network.lfs_stream)
    ]
    for block in network.mix.values():
        block.first_gain.data.fill_(0.1)
        block.second_gain.data.fill_(0.1)
    network.train()
    maps = network.forward_features(torch.randn(2, 3, 43, 43))
    for handle in handles:
        handle.remove()
    assert seen[0] == seen[1] == (2, 728, 3, 3) and maps.shape == (2, 4096, 2, 2)
    pooled = network.forward_head(maps, pre_logits=True)
    assert torch.allclose(pooled, maps.mean(dim=(2, 3)))
    network.classifier(pooled)[:, 1].sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert idle == []
    assert all(part.band_weight.grad.abs().sum() > 0 for part in (network.fad, network.lfs))


def test_the_fad_stream_begins_as_the_imagenet_network(network):
    xception = timm.create_model("legacy_xception", num_classes=0)
    report = network.load_state_dict(network.trunk_state(xception.state_dict()), strict=False)
    assert not report.unexpected_keys
    new = {name for name in report.missing_keys if not name.endswith("num_batches_tracked")}
    assert {name.split(".")[0] for name in new} == {"fad", "lfs", "lfs_stream", "mix", "classifier"}
    assert {name for name in new if name.startswith("lfs_stream")} == {"lfs_stream.conv1.weight"}
    images = torch.randn(1, 3, 43, 43)
    with torch.no_grad():
        assert torch.allclose(network.fad_stream.conv1(network.fad(images)), xception.conv1(images), atol=1e-4)
    assert torch.equal(network.lfs_stream.block5.rep[1].pointwise.weight, xception.block5.rep[1].pointwise.weight)
