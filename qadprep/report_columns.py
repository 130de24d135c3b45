"""The columns of a shard set's index as numpy arrays: text as numbers, so that no list of a million strings is made."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qadprep.catalog.base import ORIGINAL
from qadprep.shard_format import splits_in_order


@dataclass(frozen=True)
class Coded:
    """Which combination of values of some text columns each tuple has.

    Attributes:
        codes: int64 (tuples,): number of the tuple's combination; combinations are sorted.
        parts: int64 (combinations, columns): places in `texts`.
        texts: per column its different values, sorted.
    """

    codes: np.ndarray
    parts: np.ndarray
    texts: tuple[pa.Array, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def name(self, number: int) -> tuple[str, ...]:
        """The values of a combination."""
        return tuple(text[place].as_py() for text, place in zip(self.texts, self.parts[number].tolist(), strict=True))

    def names(self) -> list[tuple[str, ...]]:
        """All of them; for columns with few values."""
        return [self.name(number) for number in range(len(self))]


class IndexColumns:
    """Columns of an index, one entry a tuple.

    Args:
        table: as `ShardSet.table`.

    Attributes:
        count: number of tuples.
        split_names: train, val and test first.
        class_names: (dataset, method), originals first.
        splits, classes: int64 (count,): places in these lists.
        clips: by dataset, method and video.
        labels: int8 (count,): 0 real, 1 fake.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.count = len(table)
        found = self.coded("split")
        self.split_names = splits_in_order({name for (name,) in found.names()})
        self.splits = _renumbered(found.codes, [self.split_names.index(name) for (name,) in found.names()])
        found = self.coded("dataset", "method")
        self.class_names = sorted(found.names(), key=lambda name: (name[1] != ORIGINAL, name))
        self.classes = _renumbered(found.codes, [self.class_names.index(name) for name in found.names()])
        self.clips = self.coded("dataset", "method", "video")
        self.labels = self.numbers("label").astype(np.int8)

    def has(self, name: str) -> bool:
        """Whether the index has a column; those of older sets lack some."""
        return name in self._table.column_names

    def class_title(self, number: int) -> str:
        """How a class is called: by its method, with the dataset where the set has several."""
        dataset, method = self.class_names[number]
        return f"{dataset}/{method}" if len({dataset for dataset, _ in self.class_names}) > 1 else method

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, float64 (count,); empty cells, and a column that is not there, are NaN."""
        if not self.has(name):
            return np.full(self.count, np.nan)
        return self._table[name].cast(pa.float64()).to_numpy()

    def coded(self, *names: str) -> Coded:
        """Combinations of some text columns; empty cells count as empty text."""
        codes, parts, texts = np.zeros(self.count, np.int64), np.zeros((min(1, self.count), 0), np.int64), []
        for name in names:
            own, values = self._text(name)
            texts.append(values)
            pairs, codes = np.unique(codes * max(1, len(values)) + own, return_inverse=True)
            left, right = np.divmod(pairs, max(1, len(values)))
            parts = np.column_stack([parts[left], right])
        return Coded(codes, parts, tuple(texts))

    def inside(self, split: str | None) -> np.ndarray:
        """Positions of a split's tuples, rising; of all tuples for None."""
        if split is None:
            return np.arange(self.count)
        return np.flatnonzero(self.splits == self.split_names.index(split))

    def _text(self, name: str) -> tuple[np.ndarray, pa.Array]:
        """Codes of one column, and its sorted values."""
        if not self.count:
            return np.zeros(0, np.int64), pa.array([], pa.string())
        column = self._table[name].cast(pa.string()).fill_null("").dictionary_encode().unify_dictionaries()
        texts = column.chunk(0).dictionary
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks]).astype(np.int64)
        order = pc.sort_indices(texts).to_numpy()
        rank = np.empty(len(texts), np.int64)
        rank[order] = np.arange(len(texts))
        return rank[codes], texts.take(pa.array(order))


def _renumbered(codes: np.ndarray, places: list[int]) -> np.ndarray:
    return np.array(places, np.int64)[codes] if places else codes


def turns(codes: np.ndarray) -> np.ndarray:
    """How many earlier entries have the same code: int64 of the codes' shape, from 0."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    result = np.empty(len(codes), np.int64)
    result[order] = np.arange(len(codes)) - np.searchsorted(ordered, ordered)
    return result


def evenly(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` of the numbers 0..count-1, spread evenly, rising."""
    if count <= wanted:
        return np.arange(count)
    return (np.arange(wanted) * count + count // 2) // wanted
