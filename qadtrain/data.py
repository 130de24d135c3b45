"""Tuples for training: read in the loader's workers, with all that is random about them drawn there.

The loader's whole state is (epoch, step): a batch is a list of requests (epoch, index) of ``sampling.py``, and all that
is random about a tuple is drawn from (seed, epoch, index). Neither knows of workers or ranks.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from qadprep.errors import UserError
from qadprep.raw_tuples import RawTuples
from qadprep.shardset import ShardError, ShardSet, decode_image
from qadtrain.augment import MEAN_STD, draw, jpeg_round_trip, to_network_input
from qadtrain.config import AugmentConfig
from qadtrain.sampling import BLEND, FLIP, SPARE, EpochBatches, Request, epoch_order
from qadtrain.self_blend import SelfBlend
from qadtrain.workers import WorkerBatches

__all__ = [
    "MEAN_STD", "EpochBatches", "TupleBatch", "TupleDataset", "chosen_qualities", "collate", "epoch_order",
    "make_loader", "open_split", "shared_flip", "to_network_input", "whole_batches",
]  # fmt: skip

MAX_AUTO_WORKERS = 8
VERIFY = "check the shard set with `qadprep verify`"
_MOST_SPARES = 100


class TupleBatch(NamedTuple):
    images: Tensor  # uint8 (B, M, H, W, 3) RGB, qualities best first
    labels: Tensor  # int64 (B,), 1 = fake
    flips: Tensor  # bool (B,), one for all members of the tuple
    indices: Tensor  # int64 (B,), rows of the split's index
    damage: str  # what is wrong with a tuple of the batch; empty when nothing is
    draws: Tensor | None = None  # float64 (B, 1 or M, 14): random numbers of augment.py; None = no augmentation
    left_out: Sequence[tuple[int, str]] = ()  # damaged tuples that others stand in for: row of the index, message


class Item(NamedTuple):
    """What a worker makes of one request: one tuple, or a real one and its self-blended fake."""

    images: np.ndarray  # uint8 (k, M, H, W, 3)
    labels: tuple[int, ...]  # k of them
    flip: bool
    index: int
    draws: np.ndarray | None
    left_out: tuple[tuple[int, str], ...] = ()


class TupleDataset(Dataset):
    """Map-style over a shard set; an item is asked for as (epoch, index), so that workers keep no state.

    Args:
        qualities: those to give, in this order; None = all of the shard set.
        augment: JPEG is applied here, the rest is only drawn; None = none.
        self_blended: each item is a real tuple (label 0) and a fake made of it (label 1). Both get the same flip and
            the same augmentation, as in SBI (Shiohara & Yamasaki, CVPR 2022): only the blending tells them apart.
        replace: another tuple of the same label (not of the same method) stands in for a damaged one, drawn from (seed,
            epoch, index).
    """

    def __init__(
        self,
        shards: ShardSet,
        seed: int,
        flip_probability: float,
        *,
        qualities: Sequence[str] | None = None,
        augment: AugmentConfig | None = None,
        self_blended: bool = False,
        replace: bool = False,
    ) -> None:
        self.shards, self.seed, self.flip_probability = shards, seed, flip_probability
        self.qualities = tuple(qualities or shards.qualities)
        self.augment, self.replace = augment or AugmentConfig(), replace
        self.labels = shards.table["label"].to_numpy().astype(np.int8)
        self.blend = SelfBlend(shards.size_px) if self_blended else None
        self._facts: RawTuples | None = None

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, request: Request) -> Item | str:
        epoch, index, *repeat = request
        left_out: list[tuple[int, str]] = []
        for candidate in (index, *self._spares(request)):
            key = (epoch, candidate, *repeat)
            try:
                return self._item(key)._replace(left_out=tuple(left_out))
            except ShardError as error:
                # An exception would cross the process border as a page of traceback.
                left_out.append((candidate, f"{error}; {VERIFY}"))
        return left_out[-1][1]

    def _item(self, key: tuple[int, ...]) -> Item:
        index = key[1]
        images, label = self._images(index), int(self.labels[index])
        labels, pictures = (label,), [images]
        if self.blend is not None:
            rng = np.random.default_rng([self.seed, BLEND, *key])
            try:
                pictures.append(self.blend.fake(images, self.landmarks_xy(index), rng))
            except ValueError as error:  # no face can be laid over these points
                raise ShardError(f"{self.shards.where(index)}: {error}") from error
            labels = (label, 1)
        draws = draw(self.augment, self.seed, key, len(self.qualities))
        if draws is not None and self.augment.jpeg_probability:
            pictures = [jpeg_round_trip(picture, draws, self.augment) for picture in pictures]
        flip = shared_flip(self.seed, *key[:2], self.flip_probability, *key[2:])
        return Item(np.stack(pictures), labels, flip, index, draws)

    def _images(self, index: int) -> np.ndarray:
        """uint8 (M, H, W, 3); of the tuple's files only the wanted ones are decoded."""
        files, pictures = self.shards.views(index), []
        for quality in self.qualities:
            try:
                pictures.append(decode_image(files[quality], self.shards.size_px, self.shards.codec))
            except ValueError as error:
                raise ShardError(f"{self.shards.where(index)}: {quality}: {error}") from error
        return np.stack(pictures)

    def landmarks_xy(self, index: int) -> np.ndarray:
        """The tuple's five facial points in its crop.

        Returns:
            float32 (5, 2), x and y in px of the crop, counted at pixel centres as OpenCV does; order of docs/format.md.

        Raises:
            ShardError: the tuple's JSON member holds no landmarks or no affine.
        """
        self._facts = self._facts or RawTuples(self.shards)
        facts = self._facts.facts(index)
        try:
            points = np.array(facts["landmarks_xy"], dtype=np.float64).reshape(5, 2)
            affine = np.array(facts["affine"], dtype=np.float64).reshape(2, 3)
            if not (np.isfinite(points).all() and np.isfinite(affine).all()):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ShardError(f"{self.shards.where(index)}: its JSON member holds no landmarks_xy and affine") from None
        # Landmarks count at pixel edges, the affine at pixel centres.
        return ((points - 0.5) @ affine[:, :2].T + affine[:, 2]).astype(np.float32)

    def _spares(self, request: Request) -> Iterator[int]:
        """Rows that stand in for a damaged one, in their order; only looked for when one is needed."""
        if not self.replace:
            return
        index = request[1]
        alike = np.flatnonzero(self.labels == self.labels[index])
        rng = np.random.default_rng([self.seed, SPARE, *request])
        for place in rng.integers(len(alike), size=_MOST_SPARES):
            if alike[place] != index:
                yield int(alike[place])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_facts": None}


def shared_flip(seed: int, epoch: int, index: int, probability: float, repeat: int = 0) -> bool:
    """Whether the tuple is mirrored in this epoch: one draw for all of its qualities."""
    key = [seed, FLIP, epoch, index] + [repeat] * bool(repeat)
    return bool(np.random.default_rng(key).random() < probability)


def collate(items: Sequence[Item | str]) -> TupleBatch:
    """Items of :class:`TupleDataset` to one batch; damaged tuples leave their message instead of images."""
    damage = next((item for item in items if isinstance(item, str)), "")
    whole = [item for item in items if not isinstance(item, str)]
    if damage or not whole:
        empty = torch.empty(0)
        return TupleBatch(empty, empty, empty, empty, damage)
    times = len(whole[0].labels)
    draws = None if whole[0].draws is None else np.repeat(np.stack([item.draws for item in whole]), times, axis=0)
    return TupleBatch(
        torch.from_numpy(np.concatenate([item.images for item in whole])),
        torch.tensor([label for item in whole for label in item.labels], dtype=torch.int64),
        torch.tensor([item.flip for item in whole for _ in range(times)], dtype=torch.bool),
        torch.tensor([item.index for item in whole for _ in range(times)], dtype=torch.int64),
        "",
        None if draws is None else torch.from_numpy(draws),
        [skip for item in whole for skip in item.left_out],
    )


def make_loader(
    shards: ShardSet,
    sampler: Sampler[list[Request]] | Sequence[list[Request]],
    *,
    seed: int,
    flip_probability: float,
    num_workers: int,
    device: torch.device,
    **options: object,
) -> DataLoader:
    """DataLoader over a batch sampler for a device.

    Args:
        num_workers: 0 = decode in this process; -1 = see :func:`automatic_workers`.
        options: of :class:`TupleDataset`.
    """
    on_gpu = device.type == "cuda"
    return DataLoader(
        TupleDataset(shards, seed, flip_probability, **options),
        batch_sampler=sampler,
        num_workers=automatic_workers(on_gpu) if num_workers < 0 else num_workers,
        collate_fn=collate,
        pin_memory=on_gpu,
        worker_init_fn=_quiet_worker,
        # Own generator: the default draws a base seed from the global one, and a run with another number of
        # iterators (a resumed one) would then see other dropout masks.
        generator=torch.Generator().manual_seed(seed),
    )


def automatic_workers(on_gpu: bool) -> int:
    """One per core, at most 8, or half of that where the network runs on the same cores.

    Several training processes of one machine (``LOCAL_WORLD_SIZE`` of torchrun) share its cores.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(local) if local.isdecimal() and int(local) else 1
    cores = min(MAX_AUTO_WORKERS, len(os.sched_getaffinity(0)) // processes)
    return max(1, cores if on_gpu else cores // 2)


def whole_batches(loader: DataLoader) -> Iterator[TupleBatch]:
    """The loader's batches; a damaged tuple ends the run with its place in the shard, a dead worker with advice."""
    batches = WorkerBatches(loader)
    try:
        for batch in batches:
            if batch.damage:
                raise UserError(batch.damage)
            yield batch
    finally:
        batches.close()


def chosen_qualities(shards: ShardSet, wanted: Sequence[str]) -> tuple[str, ...]:
    """``data.qualities`` of a shard set: the wanted ones in their order, or all when none is named.

    Raises:
        UserError: one that the shard set does not hold, or one named twice.
    """
    missing = [name for name in wanted if name not in shards.qualities]
    if missing or len(set(wanted)) != len(wanted):
        raise UserError(
            f"data.qualities: got {list(wanted)}, expected each once, out of {', '.join(shards.qualities)}: "
            f"the qualities of {shards.path}"
        )
    return tuple(wanted) or tuple(shards.qualities)


def open_split(path: str | Path, split: str, qualities: Sequence[str] = ()) -> ShardSet:
    """A split with at least one tuple.

    Args:
        qualities: narrows and orders the set's attribute ``qualities``; empty = all.

    Raises:
        UserError: an empty or unknown split, naming those there are; a quality that is not there.
    """
    shards = ShardSet(path, split)
    shards.qualities = chosen_qualities(shards, qualities)
    if not len(shards):
        there = ", ".join(f"{name} ({count})" for name, count in shards.splits.items() if count)
        raise UserError(f"{path}: split {split!r} holds no tuples; there are {there or 'none in any split'}")
    return shards


def _quiet_worker(_worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer alone answers them, with a
    # checkpoint, and needs its workers until then. They end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # its threads of the parent process do not live on in a fork
