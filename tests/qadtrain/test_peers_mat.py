"""MAT: textural residual, attention pooling, the region loss against numpy, AGDA, and the extra loss in a model."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional

from qadprep.errors import UserError
from qadtrain.awp import batchnorm_of_pass
from qadtrain.config import ModelConfig
from qadtrain.distributed import Ranks
from qadtrain.models import build_model
from qadtrain.models.mat import Mat, TextureEnhancement
from qadtrain.models.mat_regions import RegionCentres, attention_pool, degrade, gaussian_blur


def test_the_residual_has_no_mean_in_any_patch():
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 11, 8)
    residual, pooled = TextureEnhancement(5).residual(maps)
    assert pooled.shape == (2, 5, 3, 2)
    for row in range(3):
        for column in range(2):
            patch = (slice(None), slice(None), slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            assert torch.allclose(pooled[:, :, row, column], maps[patch].mean(dim=(2, 3)), atol=1e-6)
            assert residual[patch].mean(dim=(2, 3)).abs().max() < 1e-6
            assert torch.allclose(residual[patch] + pooled[:, :, row, column][:, :, None, None], maps[patch], atol=1e-6)


def test_pooling_is_the_normalised_weighted_sum():
    rng = np.random.default_rng(0)
    maps, attention = rng.normal(size=(2, 3, 4, 5)), rng.uniform(size=(2, 2, 4, 5))
    attention[1, 0] = 0
    pooled = attention_pool(torch.tensor(maps), torch.tensor(attention)).numpy()
    for n, k in np.ndindex(2, 2):
        total = (maps[n] * attention[n, k]).sum(axis=(1, 2))
        expected = np.zeros(3) if (n, k) == (1, 0) else total / np.linalg.norm(total)
        assert np.allclose(pooled[n, k], expected, atol=1e-6)
    assert np.allclose(
        attention_pool(torch.tensor(maps), torch.ones(2, 1, 2, 3))[0, 0], _unit(maps[0].sum(axis=(1, 2))), atol=1e-6
    )


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _region_loss(vectors: np.ndarray, labels: np.ndarray, before: np.ndarray, rate: float) -> tuple[float, np.ndarray]:
    """Eq. 4 and 5 in float64, with the mean over the batch."""
    centres = before - rate * (before - vectors.mean(axis=0))
    loss = 0.0
    for i, label in enumerate(labels):
        for j in range(len(before)):
            loss += max(((vectors[i, j] - centres[j]) ** 2).sum() - (0.05, 0.1)[label], 0) / len(labels)
    for i in range(len(before)):
        for j in range(len(before)):
            if i != j:
                loss += max(0.2 - ((centres[i] - centres[j]) ** 2).sum(), 0)
    return loss, centres


def test_the_region_loss_is_that_of_the_paper_and_its_centres_move():
    rng = np.random.default_rng(0)
    part = RegionCentres(4, 6)
    before = rng.normal(size=(4, 6)) / 10
    part.centres.copy_(torch.tensor(before))
    for epoch in (0, 3):
        part.set_epoch(epoch)
        vectors, labels = rng.normal(size=(5, 4, 6)) / 3, np.array([0, 1, 1, 0, 1])
        expected, after = _region_loss(vectors, labels, before, 0.05 * 0.9**epoch)
        given = torch.tensor(vectors, dtype=torch.float32), torch.tensor(labels)
        assert float(part(*given, update=False)) == pytest.approx(expected, rel=1e-5)
        assert np.allclose(part.centres, before, atol=1e-7)
        assert float(part(*given)) == pytest.approx(expected, rel=1e-5)
        assert np.allclose(part.centres, after, atol=1e-6)
        before = after


def test_a_compiled_part_follows_the_rate_of_each_epoch_without_compiling_again():
    graphs = []

    def counting(module, _inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    part, vectors, labels = RegionCentres(4, 6), torch.randn(5, 4, 6), torch.tensor([0, 1, 1, 0, 1])
    compiled, before = torch.compile(part, backend=counting, dynamic=False), np.zeros((4, 6))
    for epoch in range(4):
        part.set_epoch(epoch)
        expected, before = _region_loss(vectors.double().numpy(), labels.numpy(), before, 0.05 * 0.9**epoch)
        assert float(compiled(vectors, labels)) == pytest.approx(expected, rel=1e-5)
        assert np.allclose(part.centres, before, atol=1e-6)
    assert len(graphs) == 1
    assert "rate" not in part.state_dict()  # the weights of older runs still fit


class Both(Ranks):
    """One of two processes, whose neighbour's mean is already here."""

    def __init__(self, others: torch.Tensor) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "others", others)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, self.others[None]])


def test_two_processes_have_the_centres_the_loss_and_the_gradient_of_one():
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 1, 0])
    whole = (torch.randn(4, 3, 5) / 3).requires_grad_()
    one = RegionCentres(3, 5)
    one.centres.copy_(torch.randn(3, 5) / 10)
    before = one.centres.clone()
    expected = one(whole, labels)
    (gradient,) = torch.autograd.grad(expected, whole)
    losses = []
    for own, other in (((0, 2), (2, 4)), ((2, 4), (0, 2))):
        part = RegionCentres(3, 5)
        part.centres.copy_(before)
        part.ranks = Both(whole[slice(*other)].mean(dim=0))
        losses.append(part(whole[slice(*own)], labels[slice(*own)]))
        assert torch.allclose(part.centres, one.centres, atol=1e-7)
    mean = torch.stack(losses).mean()  # what DDP's averaging of the gradients amounts to
    assert float(mean.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(mean, whole)[0], gradient, atol=1e-6)


def test_processes_exchange_only_from_the_first_epoch_on(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    part = RegionCentres(2, 2)
    part(torch.ones(1, 2, 2), torch.tensor([0]))  # a batch size that this process tries: nobody answers
    assert part.ranks == Ranks()
    part.set_epoch(0)
    assert part.ranks == Ranks(1, 2)


def test_fakes_may_lie_further_from_the_centre():
    part = RegionCentres(1, 2)
    vectors = torch.tensor([[[0.28, 0.0]], [[0.28, 0.0]]])  # squared distance 0.95^2 * 0.28^2 = 0.0708
    squared = (0.95 * 0.28) ** 2
    assert float(part(vectors, torch.tensor([0, 0]), update=False)) == pytest.approx(squared - 0.05, rel=1e-4)
    assert float(part(vectors, torch.tensor([1, 1]), update=False)) == 0


def test_the_loss_pushes_regions_apart_that_share_a_centre():
    part = RegionCentres(2, 2)
    part.centres.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.1]]))
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.1]]], requires_grad=True)
    part(vectors, torch.tensor([1])).backward()
    assert vectors.grad[0, 0, 1] > 0 > vectors.grad[0, 1, 1]  # descent moves the first down and the second up


def test_blur_is_that_of_scipy():
    images = np.random.default_rng(0).normal(size=(1, 2, 40, 30))
    expected = scipy.ndimage.gaussian_filter(images, (0, 0, 7, 7), mode="nearest", truncate=3)
    assert np.allclose(gaussian_blur(torch.tensor(images)), expected, atol=1e-6)


def test_only_the_attended_place_is_degraded():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    attention = torch.zeros(2, 8, 8)
    assert torch.equal(degrade(images, attention), images)
    attention[0, 2:6, 2:6] = 3.0
    degraded = degrade(images, attention)
    assert torch.equal(degraded[1], images[1])
    assert torch.equal(degraded[0, :, :8], images[0, :, :8])  # far from the region
    everything = degrade(images, torch.full((2, 8, 8), 0.1))
    assert torch.allclose(degraded[0, :, 28:36, 28:36], everything[0, :, 28:36, 28:36], atol=1e-5)
    assert everything.std() < 0.15 < images.std()
    flat = torch.full((1, 3, 32, 32), 0.7)
    assert torch.allclose(degrade(flat, torch.ones(1, 4, 4)), flat, atol=1e-5)


def test_the_shapes_at_380_px():
    with torch.device("meta"):
        maps = Mat().forward_features(torch.zeros(1, 3, 380, 380))
    assert maps.texture.shape == (1, 64, 95, 95) and maps.pooled.shape == (1, 32, 24, 24)
    assert maps.attention.shape == (1, 4, 24, 24) and maps.deep.shape == (1, 1792, 12, 12)


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, pretrained=False, taps=["trunk.blocks.1", "logits"]))[0]


def test_the_extra_loss_is_the_region_loss_and_with_agda_that_of_the_degraded_pictures():
    model, plain = build("mat"), build("mat-no-agda")
    model.load_state_dict(plain.state_dict())
    images, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1])  # three qualities of two tuples
    plain.train()
    output = plain(images, labels)
    maps = plain.backbone.forward_features(images)
    vectors = attention_pool(maps.pooled, maps.attention).detach().double().numpy()
    expected, centres = _region_loss(vectors, np.array([0, 0, 0, 1, 1, 1]), np.zeros((4, 32)), 0.05)
    assert float(output.extra_loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert np.allclose(plain.backbone.centres.centres, centres, atol=1e-6)

    model.train()
    both = model(images, labels)
    assert torch.allclose(both.logits, output.logits, atol=1e-5)
    assert both.features["trunk.blocks.1"].shape == (6, 32, 16, 16)
    assert torch.allclose(both.features["logits"], both.logits)  # of the pictures, not of the degraded ones
    assert float(both.extra_loss.detach()) > expected  # a cross-entropy is positive
    (functional.cross_entropy(both.logits, labels.repeat_interleave(3)) + both.extra_loss).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert idle == []


def test_the_extra_loss_needs_labels_and_training():
    model = build("mat-no-agda")
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    model.train()
    with pytest.raises(UserError, match=r"needs the labels, expected model\(images, labels\)"):
        model(images)
    model.train_head_only(True)
    assert model(images, extra_loss=False).extra_loss is None
    assert model(images).extra_loss is None
    model.train_head_only(False)
    model.eval()
    with torch.no_grad():
        assert model(images).extra_loss is None and model(images, labels).extra_loss is None
    assert (model.backbone.centres.centres == 0).all()
    model.train()
    for module in model.modules():
        if hasattr(module, "track_running_stats"):
            module.track_running_stats = False  # as in the pass of AWP that may not touch statistics
    model(images, labels)
    assert (model.backbone.centres.centres == 0).all()
    model(images, extra_loss=False)
    assert (model.backbone.centres.centres == 0).all()
    model.set_epoch(2)
    assert float(model.backbone.centres.rate) == pytest.approx(0.05 * 0.81)
    # Whichever pass of an AWP step keeps the statistics of the norms moves the centres, once.
    model.backbone.centres.set_epoch(0)
    for module in model.modules():
        if hasattr(module, "track_running_stats"):
            module.track_running_stats = True
    with torch.no_grad():
        maps = model.backbone.forward_features(images)
        once = 0.05 * attention_pool(maps.pooled, maps.attention).mean(dim=0)
        for policy in ("reference", "clean"):
            model.backbone.centres.centres.zero_()
            with batchnorm_of_pass(model, policy, perturbed=False):
                assert model(images, extra_loss=False).extra_loss is None
            with batchnorm_of_pass(model, policy, perturbed=True):
                assert model(images, labels).extra_loss is not None
            assert once.abs().max() > 0 and torch.allclose(model.backbone.centres.centres, once, atol=1e-6)


def test_the_degraded_pass_answers_to_the_attended_region(monkeypatch):
    """What AGDA adds is the cross-entropy of pictures degraded by one of their own maps."""
    model = build("mat").train()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 0])
    given = []

    def spy(pictures, attention):
        given.append((pictures, attention))
        return torch.zeros_like(pictures)

    monkeypatch.setattr("qadtrain.models.mat.degrade", spy)
    maps = model.backbone.forward_features(images)
    extra = model.backbone.extra_loss(maps, images, labels)
    pictures, attention = given[0]
    assert torch.equal(pictures, images) and not attention.requires_grad
    assert all(any(torch.equal(attention[n], maps.attention[n, k]) for k in range(4)) for n in range(2))
    vectors = attention_pool(maps.pooled, maps.attention).detach().double().numpy()
    region, _ = _region_loss(vectors, labels.numpy(), np.zeros((4, 32)), 0.05)
    blank = functional.cross_entropy(model.backbone(torch.zeros_like(images)), labels)
    assert float(extra.detach()) == pytest.approx(region + float(blank.detach()), rel=1e-4)
