"""The index of a shard set, shard by shard: tables in memory, or for a large set in a file that processes share."""

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qadprep.index_file import read_index_file
from qadprep.mapped_index import FILE_VERSION, KeyTable, MappedIndex, hash_of, kept_index, kept_keys
from qadprep.shard_format import check_cells, check_index, fingerprint
from qadprep.store import is_local, parallel_reads

if TYPE_CHECKING:
    from qadprep.store import Folder

# Sets of more tuples are mapped from a file.
IN_MEMORY_TUPLES = 50_000


class ShardRows:
    """One shard's index as flat arrays: a tuple is looked up without an Arrow object for each value.

    Attributes:
        key, sha256 (None where there is no such column): row -> bytes.
        texts: of dataset, method, video and split, row -> bytes; numbers: of label, frame and face, row -> int.
        offset, length: of the tuple, row -> int; members: of each quality the same two of its file.
    """

    __slots__ = ("key", "length", "members", "numbers", "offset", "sha256", "texts")

    def __init__(self, table: pa.Table, qualities: Sequence[str]) -> None:
        # The table itself is let go: for a thousand shards its Arrow objects would add up to many MB.
        self.key = _Texts(table, "key")
        self.sha256 = _Texts(table, "sha256") if "sha256" in table.column_names else None
        self.offset, self.length = _integers(table, "offset"), _integers(table, "length")
        self.members = [(_integers(table, f"{q}_offset"), _integers(table, f"{q}_size")) for q in qualities]
        self.texts = tuple(_Texts(table, name) for name in ("dataset", "method", "video", "split"))
        self.numbers = tuple(_integers(table, name) for name in ("label", "frame", "face"))


class _Texts:
    """A column of strings: row -> bytes."""

    __slots__ = ("_data", "_ends")

    def __init__(self, table: pa.Table, name: str) -> None:
        array = table[name].chunk(0)
        _, ends, data = array.buffers()
        self._ends = memoryview(np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1])
        self._data = memoryview(data if data is not None else b"")

    def __getitem__(self, row: int) -> bytes:
        return self._data[self._ends[row] : self._ends[row + 1]].tobytes()


def _integers(table: pa.Table, name: str) -> memoryview:
    return memoryview(table[name].chunk(0).to_numpy(zero_copy_only=True))


class ShardIndex:
    """The indexes of a set's shards.

    Args:
        folder: of the shard set.
        entries: all shards of the set, as in `shards.json`.
        chosen: which of them are read, by number; shards are named by their place in this list.
        qualities: of the set.
        cache: folder for the converted file; None keeps the tables in memory.

    Attributes:
        starts: position of each shard's first tuple, and last the number of tuples.

    Raises:
        UserError: an index cannot be read, or contradicts `shards.json`.
    """

    def __init__(
        self,
        folder: "Folder",
        entries: Sequence[dict[str, Any]],
        chosen: Sequence[int],
        qualities: Sequence[str],
        cache: Path | None = None,
    ) -> None:
        self._folder, self._entries, self._chosen, self._qualities = folder, entries, chosen, qualities
        self.starts = [0, *itertools.accumulate(entries[number]["nsamples"] for number in chosen)]
        self._mapping = _mapping(folder, entries, qualities, cache) if cache else None
        self._tables: list[pa.Table] = []
        if self._mapping is None:
            self._tables = list(_read_all(folder, [entries[number] for number in chosen], qualities))
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_mapped", "_rows", "_keys")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._mapped: MappedIndex | None = None
        self._rows: list[ShardRows | None] = [None] * len(self._chosen)
        self._keys: KeyTable | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the tables are in this process's own memory, not in a file that processes share."""
        return self._mapping is None

    def table(self, shard: int) -> pa.Table:
        """The index of one shard, one chunk a column."""
        if self._mapping is None:
            return self._tables[shard]
        if self._mapped is None:
            self._mapped = MappedIndex.open(self._mapping, len(self._entries)) or self._remade(self._mapping.parent)
        if self._mapped is None:
            return self._tables[shard]
        number = self._chosen[shard]
        table = self._mapped.table(number)
        if table is None:  # damaged on the disk: the next process makes it anew, this one reads the shard's own
            self._mapping.unlink(missing_ok=True)
            table = read_index(self._folder, self._entries[number], self._qualities, check_hash=True)
        return table

    def rows(self, shard: int) -> ShardRows:
        """The same as flat arrays."""
        rows = self._rows[shard]
        if rows is None:
            rows = self._rows[shard] = ShardRows(self.table(shard), self._qualities)
        return rows

    def whole(self) -> pa.Table:
        """All shards in one table without a copy; columns that some lack are null there."""
        tables = [self.table(shard) for shard in range(len(self._chosen))]
        return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})

    def place(self, position: int) -> tuple[int, int]:
        """(shard, row) of a tuple, given its position in all of them, from 0."""
        shard = bisect_right(self.starts, position) - 1
        return shard, position - self.starts[shard]

    def find(self, key: str) -> int | None:
        """Position of a key, the first where it is there twice; None where it is not there."""
        name = key.encode("utf-8", "surrogatepass")
        if self._keys is None:
            self._keys = self._load_keys()
        hashes, positions = self._keys
        wanted = np.uint64(hash_of(name))  # a plain int would turn the whole table into floats
        for place in range(int(np.searchsorted(hashes, wanted)), len(hashes)):
            if hashes[place] != wanted:
                break
            position = int(positions[place])
            shard, row = self.place(position)
            if self.rows(shard).key[row] == name:
                return position
        return None

    def _load_keys(self) -> KeyTable:
        if self._mapping is None:
            return self._hash_keys()
        mark = hashlib.sha256(json.dumps(list(self._chosen)).encode()).hexdigest()[:8]
        return kept_keys(self._mapping.with_name(f"{self._mapping.stem}-{mark}.keys"), self._hash_keys)

    def _hash_keys(self) -> KeyTable:
        hashes = np.empty(self.starts[-1], "<u8")
        for shard, start in enumerate(self.starts[:-1]):
            for place in range(start, self.starts[shard + 1]):
                hashes[place] = hash_of(self.rows(shard).key[place - start])
        order = np.argsort(hashes, kind="stable")
        return KeyTable(hashes[order], order.astype("<i8"))

    def _remade(self, cache: Path) -> MappedIndex | None:
        """The mapped file after it was found missing or damaged; None where memory has to do."""
        self._mapping = _mapping(self._folder, self._entries, self._qualities, cache)
        mapped = MappedIndex.open(self._mapping, len(self._entries)) if self._mapping else None
        if mapped is None:
            entries = [self._entries[number] for number in self._chosen]
            self._tables, self._mapping = list(_read_all(self._folder, entries, self._qualities)), None
        return mapped


def _mapping(folder: "Folder", entries: Sequence[dict[str, Any]], qualities: Sequence[str], cache: Path) -> Path | None:
    """The file of a set's converted indexes, made if it is not there; None where it cannot be kept."""
    hashes = [entry.get("index_sha256") for entry in entries]
    if not all(hashes):
        return None  # a set of an older version: nothing would tell that an index has changed
    content = [fingerprint(list(entries)), list(qualities), hashes]
    file = cache / f"{hashlib.sha256(json.dumps([FILE_VERSION, content]).encode()).hexdigest()}.index"
    return kept_index(file, len(entries), lambda: _read_all(folder, entries, qualities))


def _read_all(folder: "Folder", entries: Sequence[dict[str, Any]], qualities: Sequence[str]) -> Iterator[pa.Table]:
    def read(entry: dict[str, Any]) -> pa.Table:
        return read_index(folder, entry, qualities, check_hash=True)

    if is_local(folder):
        yield from map(read, entries)
        return
    at_once = parallel_reads(folder)
    with ThreadPoolExecutor(at_once) as pool:
        for first in range(0, len(entries), at_once):  # not all at once: their results would wait in memory
            yield from pool.map(read, entries[first : first + at_once])


def read_index(
    folder: "Folder", shard: dict[str, Any], qualities: Sequence[str], *, check_hash: bool = False
) -> pa.Table:
    """The index of one shard, one row a tuple and one chunk a column.

    Args:
        folder: of the shard set.
        shard: its entry in `shards.json`.
        qualities: of the set.
        check_hash: compare the file's sha256 with the entry's, where it has one, and refuse keys, splits and labels
            that cannot be right. `verify` looks at those by itself.

    Raises:
        UserError: unreadable, not the file that `shards.json` knows, without a needed column, or of another number of
            tuples than `shards.json` says.
    """
    file = folder / shard["index"]
    sha256 = shard.get("index_sha256") if check_hash else None
    table = read_index_file(file, shard["nsamples"], qualities, sha256=sha256)
    table = check_index(table, shard, list(qualities), str(file)).combine_chunks()
    return check_cells(table, shard, str(file)) if check_hash else table
