"""Order, flips and the transform on the device."""

import numpy as np
import pytest
import torch

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.data import (
    EpochBatches,
    epoch_order,
    make_loader,
    open_split,
    shared_flip,
    to_network_input,
    whole_batches,
)


def test_an_epoch_is_a_permutation_and_epochs_and_seeds_differ():
    sampler = EpochBatches(103, 10, seed=1, epochs=2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 20 and sampler.steps_per_epoch == 10
    epochs = [[index for batch in batches[e * 10 : e * 10 + 10] for epoch, index in batch] for e in (0, 1)]
    assert [epoch for batch in batches for epoch, _ in batch] == [0] * 100 + [1] * 100
    for epoch in epochs:
        assert len(set(epoch)) == 100 and set(epoch) <= set(range(103))
    assert epochs[0] != epochs[1]
    assert list(EpochBatches(103, 10, seed=1, epochs=2)) == batches
    assert list(EpochBatches(103, 10, seed=2, epochs=2)) != batches


def test_any_epoch_and_step_is_a_start():
    whole = list(EpochBatches(50, 8, seed=3, epochs=3))
    for epoch, step in ((0, 1), (1, 0), (1, 5), (1, 6), (2, 3)):
        rest = EpochBatches(50, 8, seed=3, epochs=3, start_epoch=epoch, start_step=step)
        assert list(rest) == whole[epoch * 6 + step :]
        assert len(rest) == len(whole) - epoch * 6 - step


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_same_global_batches(ranks):
    whole = list(EpochBatches(50, 8, seed=3, epochs=2))
    parts = [list(EpochBatches(50, 8, seed=3, epochs=2, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert [[request for piece in pieces for request in piece] for pieces in zip(*parts, strict=True)] == whole


def test_too_few_tuples_or_uneven_ranks_are_refused():
    with pytest.raises(UserError, match=r"data\.batch_tuples: got 64, expected at most 50"):
        EpochBatches(50, 64, seed=0, epochs=1)
    with pytest.raises(UserError, match="expected a multiple of the 3 processes"):
        EpochBatches(50, 8, seed=0, epochs=1, ranks=3)


def test_flips_depend_on_seed_epoch_and_index_and_have_the_wanted_rate():
    flips = np.array([[shared_flip(0, epoch, index, 0.5) for index in range(500)] for epoch in (0, 1)])
    assert np.array_equal(flips[0], [shared_flip(0, 0, index, 0.5) for index in range(500)])
    assert not np.array_equal(flips[0], flips[1])
    assert 0.42 < flips.mean() < 0.58
    assert not any(shared_flip(0, 0, i, 0.0) for i in range(50)) and all(shared_flip(0, 0, i, 1.0) for i in range(50))
    assert not np.array_equal(np.argsort(epoch_order(0, 0, 500)) < 250, flips[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(shards_dir, workers):
    with ShardSet(shards_dir, "train") as shards:
        sampler = EpochBatches(len(shards), 8, seed=5, epochs=1, start_step=6)
        options = {"seed": 5, "flip_probability": 0.5, "device": torch.device("cpu")}
        batches = list(whole_batches(make_loader(shards, sampler, num_workers=workers, **options)))
        assert [batch.indices.tolist() for batch in batches] == [[i for _, i in request] for request in sampler]
        for batch in batches:
            assert batch.images.shape == (8, 3, 32, 32, 3) and batch.images.dtype == torch.uint8
            for row, index in enumerate(batch.indices.tolist()):
                item = shards[index]
                assert batch.labels[row] == item.label
                assert batch.flips[row] == shared_flip(5, 0, index, 0.5)
                for number, quality in enumerate(shards.qualities):
                    assert np.array_equal(batch.images[row, number].numpy(), item.images[quality])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_tuple_is_one_line_naming_its_place(make_shards, tmp_path, workers):
    folder = make_shards(tmp_path / "set", {"train": 8})
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with ShardSet(folder, "train") as shards:
        sampler = [[(0, i) for i in range(8)]]
        loader = make_loader(
            shards, sampler, seed=0, flip_probability=0, num_workers=workers, device=torch.device("cpu")
        )
        with pytest.raises(UserError, match=r"train-000000.tar: ffpp/.* at byte \d+.*qadprep verify") as caught:
            list(whole_batches(loader))
    assert "\n" not in str(caught.value)


def test_empty_and_unknown_splits_are_named(make_shards, tmp_path):
    folder = make_shards(tmp_path / "set", {"train": 8})
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        open_split(folder, "test")


def to_input(images: torch.Tensor, flips: torch.Tensor | None, size_px: int, **options) -> torch.Tensor:
    options = {"normalization": "half", "device": torch.device("cpu")} | options
    return to_network_input(images, flips, size_px=size_px, **options)


def test_values_order_and_normalisation():
    images = torch.randint(0, 256, (2, 3, 5, 5, 3), dtype=torch.uint8)
    result = to_input(images, None, 5, normalization="imagenet")
    assert result.shape == (6, 3, 5, 5) and result.dtype == torch.float32
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for b in range(2):
        for q in range(3):
            expected = (images[b, q].numpy() / 255 - mean) / std
            assert np.allclose(result[b * 3 + q].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2, 1).expand(1, 1, 2, 2, 3)
    assert to_input(black_and_white, None, 2).unique().tolist() == [-1.0, 1.0]


def test_the_flip_mirrors_every_quality_of_the_tuple():
    images = torch.randint(0, 256, (2, 3, 4, 4, 3), dtype=torch.uint8)
    plain, flipped = (to_input(images, flips, 4) for flips in (None, torch.tensor([True, False])))
    assert torch.equal(flipped[:3], plain[:3].flip(3))
    assert torch.equal(flipped[3:], plain[3:])


def test_resizing_is_antialiased_and_keeps_flat_colour():
    stripes = torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8)
    stripes[:, :, :, ::2] = 255
    small = to_input(stripes, None, 8)
    assert small.shape == (1, 3, 8, 8)
    assert small.abs().max() < 0.1  # mid grey; without antialiasing it would be stripes or one colour
    flat = to_input(torch.full((1, 1, 8, 8, 3), 51, dtype=torch.uint8), None, 20, channels_last=True)
    assert torch.allclose(flat, torch.full_like(flat, -0.6), atol=1e-5)
    assert flat.is_contiguous(memory_format=torch.channels_last)
