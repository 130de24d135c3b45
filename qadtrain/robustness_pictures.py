"""Corrupted tuples of a shard set: which are taken, and how they come to the network."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qadprep.errors import UserError
from qadprep.shardset import ShardError, ShardSet, decode_image
from qadtrain.corruption_codecs import CLIP_FRAMES, jpeg, video
from qadtrain.corruption_filters import resized
from qadtrain.corruptions import CORRUPTIONS, corrupt, level, picture_seed
from qadtrain.data import VERIFY, _quiet_worker, automatic_workers
from qadtrain.workers import WorkerBatches

CLEAN = "clean"
PLACES = ("crop", "input", "256")


@dataclass(frozen=True)
class View:
    """One way in which the tuples are shown to a detector.

    Attributes:
        corruption: name in ``corruptions.py``, or ``clean``.
        severity: 1..5; 0 for ``clean``.
        side_px: pictures are brought to this side before they are corrupted, and rounded; 0 = the crop's own.
        blocks: rule of the corruption ``blocks``.
        seed: of all that is random.
    """

    corruption: str
    severity: int
    side_px: int = 0
    blocks: str = "scaled"
    seed: int = 0

    @property
    def by_codec(self) -> bool:
        """Whether the loader's workers corrupt, on the CPU."""
        return self.severity > 0 and not CORRUPTIONS[self.corruption].on_device


class Pictures(NamedTuple):
    """A batch of whole tuples, and the damaged ones that were met on the way."""

    rows: np.ndarray  # int64 (B,), rows of the split's index
    images: Tensor  # uint8 (B, M, H, W, 3) RGB
    damaged: list[tuple[int, str]]  # row, message


def chosen_rows(index: pa.Table, limit: int | None) -> np.ndarray:
    """Rows of the tuples to score: all, or ``limit`` of them spread evenly over the videos.

    Each face of a video gets the same number of tuples as far as it has them, evenly spaced in time; where not every
    one can have one more, those are evenly spaced in the order of dataset, method and video. Nothing is random.

    Args:
        index: columns dataset, method, video, face and frame.
        limit: at least 1; None = all.

    Returns:
        int64, rising.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit: got {limit}, expected at least 1 tuple")
    if limit is None or limit >= len(index):
        return np.arange(len(index))
    films = _films(index)
    sizes = np.array([len(rows) for rows in films])
    share = max(n for n in range(limit + 1) if np.minimum(sizes, n).sum() <= limit)
    quota = np.minimum(sizes, share)
    larger = np.flatnonzero(sizes > share)
    more = limit - int(quota.sum())
    quota[larger[_spaced(len(larger), more)]] += 1
    return np.sort(np.concatenate([rows[_spaced(len(rows), n)] for rows, n in zip(films, quota, strict=True)]))


def clips(index: pa.Table) -> list[np.ndarray]:
    """Rows of the index, 8 neighbouring frames of one face of a video at a time, in order of time."""
    return [rows[first : first + CLIP_FRAMES] for rows in _films(index) for first in range(0, len(rows), CLIP_FRAMES)]


def _films(index: pa.Table) -> list[np.ndarray]:
    """int64 rows of each face of each video, in order of time."""
    columns = [index[name].to_pylist() for name in ("dataset", "method", "video", "face", "frame")]
    keys = list(zip(*columns, strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [np.array(list(rows)) for _, rows in groupby(order, key=lambda row: keys[row][:4])]


def _spaced(count: int, wanted: int) -> np.ndarray:
    """``wanted`` of 0..count-1, evenly spaced, the same room at both ends."""
    return ((np.arange(wanted) + 0.5) * count / max(1, wanted)).astype(np.int64)


class CorruptedTuples(Dataset):
    """Tuples by unit: one row of the index, or for video compression the rows of one clip.

    Clips are cut before ``rows`` are chosen, so that a tuple's picture does not depend on which others are.

    Args:
        rows: those to give.
        qualities: those to give, in this order.
    """

    def __init__(self, shards: ShardSet, rows: np.ndarray, qualities: Sequence[str], view: View) -> None:
        self.shards, self.qualities, self.view = shards, tuple(qualities), view
        self.chosen = set(rows.tolist())
        if view.by_codec and view.corruption == "video":
            self.units = [unit for unit in clips(shards.table) if self.chosen.intersection(unit.tolist())]
        else:
            self.units = [np.array([row]) for row in rows]

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, number: int) -> list[tuple[int, np.ndarray | str]]:
        """(row, uint8 (M, H, W, 3)) of each chosen tuple of a unit; a message instead of the pictures of damaged ones.

        A clip is made of its whole tuples; those of it that are damaged are given although they were not chosen.
        """
        whole, found = [], []
        for row in self.units[number].tolist():
            try:
                whole.append((row, decoded(self.shards, row, self.qualities)))
            except ShardError as error:
                found.append((row, f"{error}; {VERIFY}"))
        if whole and self.view.by_codec:
            pictures = self._coded(np.stack([images for _, images in whole]))
            whole = [(row, images) for (row, _), images in zip(whole, pictures, strict=True)]
        return [(row, images) for row, images in whole if row in self.chosen] + found

    def batches(self, tuples: int) -> list[list[int]]:
        """Numbers of units, so many together that they give at least ``tuples`` tuples, or all that are left."""
        batches, size = [[]], 0
        for number, unit in enumerate(self.units):
            if size >= tuples:
                batches.append([])
                size = 0
            batches[-1].append(number)
            size += len(self.chosen.intersection(unit.tolist()))
        return [batch for batch in batches if batch]

    def _coded(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 (T, M, H, W, 3): each quality's pictures as JPEG, or as one clip."""
        if self.view.side_px:
            there = resized(
                torch.from_numpy(pictures.reshape(-1, *pictures.shape[2:])).permute(0, 3, 1, 2), self.view.side_px
            )
            pictures = there.permute(0, 2, 3, 1).numpy().reshape(*pictures.shape[:2], *there.shape[2:], 3)
        value = int(level(self.view.corruption, self.view.severity))
        if self.view.corruption == "video":
            return np.stack([video(pictures[:, n], value) for n in range(pictures.shape[1])], axis=1)
        return np.stack([[jpeg(image, value) for image in members] for members in pictures])


def decoded(shards: ShardSet, row: int, qualities: Sequence[str]) -> np.ndarray:
    """uint8 (M, H, W, 3), RGB: a tuple at some qualities; ShardError where one cannot be read."""
    files, pictures = shards.views(row), []
    for quality in qualities:
        try:
            pictures.append(decode_image(files[quality], shards.size_px, shards.codec))
        except ValueError as error:
            raise ShardError(f"{shards.where(row)}: {quality}: {error}") from error
    return np.stack(pictures)


def all_damaged(shards: ShardSet, rows: Iterable[int]) -> bool:
    """Whether none of these tuples can be read at the set's qualities."""
    for row in rows:
        try:
            decoded(shards, row, shards.qualities)
        except ShardError:
            continue
        return False
    return True


def load(dataset: CorruptedTuples, *, batch_tuples: int, num_workers: int, device: torch.device) -> Iterator[Pictures]:
    """Batches in a fixed order; a dead worker ends it with advice (UserError)."""
    on_gpu = device.type == "cuda"
    workers = automatic_workers(on_gpu) if num_workers < 0 else num_workers
    loader = DataLoader(
        dataset,
        batch_sampler=dataset.batches(batch_tuples),
        num_workers=min(workers, len(dataset)),
        collate_fn=_collated,
        pin_memory=on_gpu,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator().manual_seed(0),  # the default one takes a number from the global generator
    )
    batches = WorkerBatches(loader)
    try:
        yield from batches
    finally:
        batches.close()


def _collated(units: list[list[tuple[int, np.ndarray | str]]]) -> Pictures:
    items = [item for unit in units for item in unit]
    whole = [(row, images) for row, images in items if not isinstance(images, str)]
    images = torch.from_numpy(np.stack([images for _, images in whole])) if whole else torch.empty(0, dtype=torch.uint8)
    rows = np.array([row for row, _ in whole], dtype=np.int64)
    return Pictures(rows, images, [(row, message) for row, message in items if isinstance(message, str)])


def shown(images: Tensor, keys: Sequence[str], view: View, device: torch.device) -> Tensor:
    """What a view makes of a batch, on the device; codecs have done their work before.

    Args:
        images: uint8 (B, M, H, W, 3) RGB.
        keys: of the B tuples. All qualities of a tuple get the same noise and the same blocks.

    Returns:
        uint8 (B, M, H', W', 3) RGB.
    """
    if view.by_codec or (view.severity == 0 and not view.side_px):
        return images
    tuples, members = images.shape[:2]
    pixels = images.to(device, non_blocking=True).flatten(0, 1).permute(0, 3, 1, 2)
    pixels = resized(pixels, view.side_px) if view.side_px else pixels
    if view.severity:
        seeds = [picture_seed(view.seed, view.corruption, key) for key in keys for _ in range(members)]
        pixels = corrupt(pixels, view.corruption, view.severity, torch.tensor(seeds), blocks=view.blocks)
    return pixels.permute(0, 2, 3, 1).unflatten(0, (tuples, members))
