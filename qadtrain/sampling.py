"""Which tuple comes when: the order of an epoch from (seed, epoch) alone.

``shuffle`` is one permutation of the split. Balanced sampling draws each class (real and fake, or each method) equally
often. A class has an endless sequence of its own, one permutation of its tuples after another, and each epoch takes the
next piece of it; so no tuple comes twice before its class is exhausted, also from one epoch to the next. The pieces are
interleaved by a permutation of the epoch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Sampler

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.config import DataConfig

# Names of random streams: the second word of every seed, so that no two streams of a run are the same.
ORDER, FLIP, CLASS_ORDER, INTERLEAVE, AUGMENT, BLEND, SPARE = range(7)

ORIGINAL = "original"

# (epoch, index), or (epoch, index, repeat) where balanced sampling draws a tuple once more in one epoch.
Request = tuple[int, ...]


class Classes(NamedTuple):
    """What balanced sampling draws equally often."""

    numbers: np.ndarray  # int32 (tuples,): the class of each row of the index
    names: tuple[str, ...]


class EpochOrder:
    """The order of every epoch.

    Args:
        tuples: int64 (n,), the rows of the index that are sampled; a number n = all rows 0 .. n - 1.
        seed: of the run.
        draws: draws in an epoch, a multiple of the requests in a batch.
        classes: int (n,), the class of each entry of ``tuples``; None = plain shuffle.
    """

    def __init__(
        self, tuples: int | np.ndarray, *, seed: int, draws: int, classes: Sequence[int] | np.ndarray | None = None
    ) -> None:
        self.tuples, self.seed, self.draws = tuples, seed, draws
        self.members: list[np.ndarray] = []
        if classes is not None:
            rows = np.arange(tuples) if isinstance(tuples, int) else np.asarray(tuples)
            _, numbers, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
            self.members = np.split(rows[np.argsort(numbers, kind="stable")], np.cumsum(counts)[:-1])

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of one epoch.

        Returns:
            int64 (draws,) rows of the index, and int64 (draws,) how many times the row's class had been exhausted in
            this epoch before: it tells the draws of one tuple in one epoch apart.
        """
        if not self.members:
            order = epoch_order(self.seed, epoch, self.tuples)[: self.draws]
            return order, np.zeros(len(order), dtype=np.int64)
        count = len(self.members)
        pieces = [self._piece(number, epoch) for number in range(count)]
        lengths = [len(rows) for rows, _ in pieces]
        mix = np.random.default_rng([self.seed, INTERLEAVE, epoch]).permutation(np.repeat(np.arange(count), lengths))
        # A stable sort by class lists each class's places in the mix; its piece fills them in its own order.
        places = np.argsort(mix, kind="stable")
        order, repeats = np.empty(len(mix), dtype=np.int64), np.empty(len(mix), dtype=np.int64)
        order[places] = np.concatenate([rows for rows, _ in pieces])
        repeats[places] = np.concatenate([passes for _, passes in pieces])
        return order, repeats

    def _piece(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """What a class gives to an epoch.

        With C classes, class c has given floor((e * draws + c) / C) tuples before epoch e. These add up to e * draws
        over the classes (Hermite's identity), so the odd draws go round.
        """
        members, count = self.members[number], len(self.members)
        first, last = (((e * self.draws) + number) // count for e in (epoch, epoch + 1))
        passes = np.arange(first, last) // len(members)
        begin, end = first // len(members), -(-last // len(members))
        rows = [
            np.random.default_rng([self.seed, CLASS_ORDER, number, turn]).permutation(members)
            for turn in range(begin, end)
        ]
        if not rows:
            return np.empty(0, dtype=np.int64), passes
        offset = begin * len(members)
        return np.concatenate(rows)[first - offset : last - offset], passes - begin


class EpochBatches(Sampler[list[Request]]):
    """Batches of requests from any (epoch, step) to the end of the last epoch.

    Args:
        tuples: length of the split, or int64 (n,) the rows of its index that are sampled.
        batch_tuples: size of a **global** batch. The last, smaller one of an epoch is dropped: HSIC is a
            statistic of the batch, so its size is part of the method.
        seed, epochs: order and number of passes.
        start_epoch, start_step: where to begin.
        rank, ranks: this process's contiguous slice of each global batch.
        classes: int (n,), balanced sampling of these; None = shuffle.
        tuples_per_request: 2 where each request gives a real tuple and a fake made of it.

    Raises:
        UserError: fewer tuples than one batch, or a batch that the ranks cannot share evenly.
    """

    def __init__(
        self,
        tuples: int | np.ndarray,
        batch_tuples: int,
        *,
        seed: int,
        epochs: int,
        start_epoch: int = 0,
        start_step: int = 0,
        rank: int = 0,
        ranks: int = 1,
        classes: np.ndarray | None = None,
        tuples_per_request: int = 1,
    ) -> None:
        requests = tuples if isinstance(tuples, int) else len(tuples)
        there = requests * tuples_per_request
        if there < batch_tuples:
            raise UserError(
                f"data.batch_tuples: got {batch_tuples}, expected at most {there}, the tuples of the train split"
            )
        if batch_tuples % (ranks * tuples_per_request):
            pairs = " times 2, as each request of data.self_blended gives 2 tuples" if tuples_per_request > 1 else ""
            raise UserError(
                f"data.batch_tuples: got {batch_tuples}, expected a multiple of the {ranks} processes{pairs}"
            )
        self.batch_requests = batch_tuples // tuples_per_request
        self.steps_per_epoch = requests // self.batch_requests
        draws = self.steps_per_epoch * self.batch_requests
        self.order = EpochOrder(tuples, seed=seed, draws=draws, classes=classes)
        self.epochs, self.start_epoch, self.start_step = epochs, start_epoch, start_step
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return (self.epochs - self.start_epoch) * self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[Request]]:
        share = self.batch_requests // self.ranks
        for epoch in range(self.start_epoch, self.epochs):
            order, repeats = self.order.epoch(epoch)
            for step in range(self.start_step if epoch == self.start_epoch else 0, self.steps_per_epoch):
                first = step * self.batch_requests + self.rank * share
                pairs = zip(order[first : first + share].tolist(), repeats[first : first + share].tolist(), strict=True)
                yield [(epoch, index, repeat) if repeat else (epoch, index) for index, repeat in pairs]


def epoch_order(seed: int, epoch: int, tuples: int | np.ndarray) -> np.ndarray:
    """Permutation int64 (tuples,) of an epoch."""
    return np.random.default_rng([seed, ORDER, epoch]).permutation(tuples)


def classes_of(index: pa.Table, sampling: str) -> Classes | None:
    """The classes that ``data.sampling`` balances; None for ``shuffle``.

    ``label``: real and fake. ``method``: each manipulation, and the real tuples as one more, named ``original``; where
    the index holds several datasets, each dataset's methods and originals are classes of their own.

    Args:
        index: columns label, dataset and method, a row a tuple.
        sampling: ``shuffle``, ``label`` or ``method``.
    """
    if sampling == "shuffle":
        return None
    label = index["label"].to_numpy().astype(np.int32)
    if sampling == "label":
        return Classes(label, ("real", "fake"))
    datasets, dataset = _codes(index["dataset"])
    methods, method = _codes(index["method"])
    # Whatever the real clips' method is called ("YouTube-real", or a manipulated clip's unaltered face), they are one.
    method = np.where(label == 0, len(methods), method)
    methods = [*methods, ORIGINAL]
    pairs, numbers = np.unique(dataset.astype(np.int64) * len(methods) + method, return_inverse=True)
    several = len(np.unique(dataset)) > 1
    names = tuple(
        f"{datasets[pair // len(methods)]}/{methods[pair % len(methods)]}" if several else methods[pair % len(methods)]
        for pair in pairs
    )
    return Classes(numbers.astype(np.int32), names)


def sampled_rows(shards: ShardSet, data: DataConfig) -> tuple[int | np.ndarray, np.ndarray | None]:
    """Which rows of the index are sampled (a number = all of so many), and the class of each for balanced sampling.

    Raises:
        UserError: self-blending without real tuples, or one class alone to balance.
    """
    classes = classes_of(shards.table, data.sampling)
    rows: int | np.ndarray = len(shards)
    everything = np.arange(rows)
    if data.self_blended:
        rows = everything = np.flatnonzero(shards.table["label"].to_numpy() == 0)
        if not len(rows):
            raise UserError(f"data.self_blended: {shards.path}, split {shards.split}: expected real tuples, got none")
    if classes is None or (data.self_blended and data.sampling == "label"):  # each request is a real and a fake already
        return rows, None
    _check_balance(classes, everything, data.sampling)
    return rows, classes.numbers[everything]


def _check_balance(classes: Classes, chosen: np.ndarray, sampling: str) -> None:
    """Raise UserError where there is only one class to balance."""
    there = [classes.names[number] for number in np.unique(classes.numbers[chosen])]
    if len(there) < 2:
        raise UserError(
            f"data.sampling: got {sampling!r}, expected tuples of at least two classes in the train split; "
            f"it holds {', '.join(there) or 'none'} alone: use data.sampling=shuffle"
        )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Distinct texts of a column, and int (rows,) which one each row has; no Python object a row."""
    encoded = pc.dictionary_encode(column).unify_dictionaries()
    if not encoded.num_chunks:
        return [], np.empty(0, dtype=np.int32)
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary.to_pylist(), np.concatenate(codes)
