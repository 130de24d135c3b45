"""Tuples for training: an order that depends on (seed, epoch) alone, and the transform on the device.

The loader's whole state is (epoch, step): the order of an epoch is one permutation of the split, cut into global
batches, and the flip of a tuple is drawn from (seed, epoch, index). Neither knows of workers or ranks.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from qadprep.errors import UserError
from qadprep.shardset import ShardError, ShardSet

MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_ORDER, _FLIP = 0, 1  # keeps the two random streams of one seed apart
MAX_AUTO_WORKERS = 8


class TupleBatch(NamedTuple):
    images: Tensor  # uint8 (B, M, H, W, 3) RGB, qualities best first
    labels: Tensor  # int64 (B,), 1 = fake
    flips: Tensor  # bool (B,), one for all members of the tuple
    indices: Tensor  # int64 (B,), rows of the split's index
    damage: str  # what is wrong with a tuple of the batch; empty when nothing is


class TupleDataset(Dataset):
    """Map-style over a shard set; an item is asked for as (epoch, index), so that workers keep no state."""

    def __init__(self, shards: ShardSet, seed: int, flip_probability: float) -> None:
        self.shards, self.seed, self.flip_probability = shards, seed, flip_probability

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, request: tuple[int, int]) -> tuple[np.ndarray, int, bool, int] | str:
        epoch, index = request
        try:
            item = self.shards[index]
        except ShardError as error:
            return str(error)  # an exception would cross the process border as a page of traceback
        images = np.stack([item.images[quality] for quality in self.shards.qualities])
        return images, item.label, shared_flip(self.seed, epoch, index, self.flip_probability), index


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) requests from any (epoch, step) to the end of the last epoch.

    Args:
        tuples: length of the split.
        batch_tuples: size of a **global** batch. The last, smaller one of an epoch is dropped: HSIC is a
            statistic of the batch, so its size is part of the method.
        seed, epochs: order and number of permutations.
        start_epoch, start_step: where to begin.
        rank, ranks: this process's contiguous slice of each global batch.

    Raises:
        UserError: fewer tuples than one batch, or a batch that the ranks cannot share evenly.
    """

    def __init__(
        self,
        tuples: int,
        batch_tuples: int,
        *,
        seed: int,
        epochs: int,
        start_epoch: int = 0,
        start_step: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if tuples < batch_tuples:
            raise UserError(
                f"data.batch_tuples: got {batch_tuples}, expected at most {tuples}, the tuples of the train split"
            )
        if batch_tuples % ranks:
            raise UserError(f"data.batch_tuples: got {batch_tuples}, expected a multiple of the {ranks} processes")
        self.tuples, self.batch_tuples, self.seed, self.epochs = tuples, batch_tuples, seed, epochs
        self.start_epoch, self.start_step, self.rank, self.ranks = start_epoch, start_step, rank, ranks

    @property
    def steps_per_epoch(self) -> int:
        return self.tuples // self.batch_tuples

    def __len__(self) -> int:
        return (self.epochs - self.start_epoch) * self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_tuples // self.ranks
        for epoch in range(self.start_epoch, self.epochs):
            order = epoch_order(self.seed, epoch, self.tuples)
            for step in range(self.start_step if epoch == self.start_epoch else 0, self.steps_per_epoch):
                first = step * self.batch_tuples + self.rank * share
                yield [(epoch, int(index)) for index in order[first : first + share]]


def epoch_order(seed: int, epoch: int, tuples: int) -> np.ndarray:
    """Permutation int64 (tuples,) of an epoch."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(tuples)


def shared_flip(seed: int, epoch: int, index: int, probability: float) -> bool:
    """Whether the tuple is mirrored in this epoch: one draw for all of its qualities."""
    return bool(np.random.default_rng([seed, _FLIP, epoch, index]).random() < probability)


def collate(items: Sequence[tuple[np.ndarray, int, bool, int] | str]) -> TupleBatch:
    """Items of :class:`TupleDataset` to one batch; damaged tuples leave their message instead of images."""
    damage = next((item for item in items if isinstance(item, str)), "")
    whole = [item for item in items if not isinstance(item, str)]
    if damage or not whole:
        empty = torch.empty(0)
        return TupleBatch(empty, empty, empty, empty, damage)
    images, labels, flips, indices = zip(*whole, strict=True)
    return TupleBatch(
        torch.from_numpy(np.stack(images)),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(flips, dtype=torch.bool),
        torch.tensor(indices, dtype=torch.int64),
        "",
    )


def make_loader(
    shards: ShardSet,
    sampler: Sampler[list[tuple[int, int]]] | Sequence[list[tuple[int, int]]],
    *,
    seed: int,
    flip_probability: float,
    num_workers: int,
    device: torch.device,
) -> DataLoader:
    """DataLoader over a batch sampler for a device.

    ``num_workers``: 0 = decode in this process; -1 = one per core, at most 8, or half of that where the network
    runs on the same cores.
    """
    on_gpu = device.type == "cuda"
    if num_workers < 0:
        cores = min(MAX_AUTO_WORKERS, len(os.sched_getaffinity(0)))
        num_workers = cores if on_gpu else max(1, cores // 2)
    return DataLoader(
        TupleDataset(shards, seed, flip_probability),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=on_gpu,
        worker_init_fn=_quiet_worker,
        # Own generator: the default draws a base seed from the global one, and a run with another number of
        # iterators (a resumed one) would then see other dropout masks.
        generator=torch.Generator().manual_seed(seed),
    )


def whole_batches(loader: DataLoader) -> Iterator[TupleBatch]:
    """The loader's batches; a damaged tuple ends the run with its place in the shard."""
    for batch in loader:
        if batch.damage:
            raise UserError(f"{batch.damage}; check the shard set with `qadprep verify`")
        yield batch


def open_split(path: str | Path, split: str) -> ShardSet:
    """A split with at least one tuple. Raises UserError naming the splits there are."""
    shards = ShardSet(path, split)
    if not len(shards):
        there = ", ".join(f"{name} ({count})" for name, count in shards.splits.items() if count)
        raise UserError(f"{path}: split {split!r} holds no tuples; there are {there or 'none in any split'}")
    return shards


def to_network_input(
    images: Tensor,
    flips: Tensor | None,
    *,
    size_px: int,
    normalization: str,
    device: torch.device,
    channels_last: bool = False,
) -> Tensor:
    """Move, flip, resize and normalise on the device.

    Args:
        images: uint8 (B, M, H, W, 3) RGB.
        flips: bool (B,); None = no flip.
        size_px: side of the result; bilinear, antialiased when shrinking.
        normalization: a key of :data:`MEAN_STD`.

    Returns:
        float32 (B * M, 3, size_px, size_px), tuple by tuple, normalised.
    """
    batch = images.to(device, non_blocking=True)
    pixels = batch.flatten(0, 1).permute(0, 3, 1, 2).float()
    if flips is not None:
        mirror = flips.to(device, non_blocking=True).repeat_interleave(images.shape[1])
        pixels = torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)
    if pixels.shape[-2:] != (size_px, size_px):
        pixels = functional.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True)
    mean, std = _mean_std(normalization, device)
    pixels = (pixels / 255 - mean) / std
    return pixels.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@lru_cache
def _mean_std(normalization: str, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in MEAN_STD[normalization])
    return mean, std


def _quiet_worker(_worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer alone answers them, with a
    # checkpoint, and needs its workers until then. They end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
