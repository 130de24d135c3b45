"""Files beside a cache's shards that keep the memory of a large set's index flat: they are mapped, not read.

`<name>.index`: an Arrow stream for each shard, converted from its parquet index, whose columns are used where they lie.
`<name>.keys`: hashes of all keys in order, with the tuples' positions. Neither belongs to the format: every part is
checked by its CRC before it is believed, and a damaged file is made anew.
"""

import contextlib
import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from qadprep.cache import mark_used, sole_maker, trim
from qadprep.progress import progress_bar
from qadprep.ustar import atomic_file, remove_leftovers

# Goes into the files' names: raise it when their layout or the tables' columns change.
FILE_VERSION = 1
CACHE_BYTES = 8_000_000_000
_SUFFIXES = (".index", ".keys")
_MAGIC = b"qadprep-index-1\n"
_END = struct.Struct("<QQI16s")  # of the table of contents: offset, length, CRC; then the magic bytes
_KEYS_HEAD = struct.Struct("<16sQI36x")  # magic bytes, number of keys, CRC of what follows
_ALIGNMENT = 64
_LONG_SHARDS = 100  # from here on converting takes a second or more, and shows its progress


class KeyTable(NamedTuple):
    """Keys to be found by their hash.

    Attributes:
        hashes: uint64 (tuples,), rising.
        positions: int64 (tuples,), of the tuples they belong to.
    """

    hashes: np.ndarray
    positions: np.ndarray


class MappedIndex:
    """The indexes of a set's shards in a mapped file."""

    def __init__(self, data: pa.Buffer, places: list[list[int]]) -> None:
        self._data, self._places = data, places

    @classmethod
    def open(cls, file: Path, shards: int) -> "MappedIndex | None":
        """None where there is no whole file of so many shards."""
        try:
            with pa.memory_map(str(file)) as mapped:
                data = mapped.read_buffer()
            offset, length, crc, magic = _END.unpack(data.slice(len(data) - _END.size))
            if magic != _MAGIC or offset + length + _END.size != len(data):
                return None
            contents = data.slice(offset, length)
            if zlib.crc32(contents) != crc:
                return None
            places = json.loads(contents.to_pybytes())
        except (OSError, ValueError, IndexError, struct.error, pa.ArrowException):
            return None
        return cls(data, places) if len(places) == shards else None

    def table(self, number: int) -> pa.Table | None:
        """One shard's index, in place; None where its bytes are not those written."""
        offset, length, crc = self._places[number]
        part = self._data.slice(offset, length)
        if zlib.crc32(part) != crc:
            return None
        return pa.ipc.open_stream(part, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()


def kept_index(file: Path, shards: int, tables: Callable[[], Iterator[pa.Table]]) -> Path | None:
    """A set's mapped file, made from its shards' tables if it is not there; None where it cannot be kept.

    Processes that want it at once wait for the one that makes it.
    """
    if not MappedIndex.open(file, shards):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with sole_maker(file):
                if not MappedIndex.open(file, shards):
                    remove_leftovers(file.parent, {file.stem})
                    _convert(file, tables(), shards)
                    trim(file.parent, _SUFFIXES, CACHE_BYTES, keep=file)
        except OSError as error:
            _say_not_kept(file.parent, error)
            return None
    mark_used(file)
    return file


def kept_keys(file: Path, make: Callable[[], KeyTable]) -> KeyTable:
    """A set's key table out of a mapped file, which is made if it is not there; in memory where it cannot be kept."""
    found = _map_keys(file)
    if found is None:
        found = make()
        data = found.hashes.tobytes() + found.positions.tobytes()
        try:
            with atomic_file(file) as target:
                target.write(_KEYS_HEAD.pack(_MAGIC, len(found.hashes), zlib.crc32(data)) + data)
        except OSError as error:
            _say_not_kept(file.parent, error)
            return found
        found = _map_keys(file) or found
    mark_used(file)
    return found


def hash_of(key: bytes) -> int:
    """The hash under which a key is found in a key table."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _convert(file: Path, tables: Iterator[pa.Table], shards: int) -> None:
    places, position = [], 0
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(atomic_file(file))
        long = shards >= _LONG_SHARDS
        advance = stack.enter_context(progress_bar("index", shards, "shards")) if long else lambda count, remark: None
        for table in tables:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            data = sink.getvalue()
            places.append([position, len(data), zlib.crc32(data)])
            padding = -len(data) % _ALIGNMENT
            target.write(data)
            target.write(b"\0" * padding)
            position += len(data) + padding
            advance(1, "")
        contents = json.dumps(places).encode()
        target.write(contents + _END.pack(position, len(contents), zlib.crc32(contents), _MAGIC))


def _map_keys(file: Path) -> KeyTable | None:
    try:
        data = np.memmap(file, np.uint8, "r")
        magic, count, crc = _KEYS_HEAD.unpack(data[: _KEYS_HEAD.size].tobytes())
    except (OSError, ValueError, struct.error):
        return None
    body = data[_KEYS_HEAD.size :]
    if magic != _MAGIC or len(body) != 16 * count or zlib.crc32(body) != crc:
        return None
    return KeyTable(body[: 8 * count].view("<u8"), body[8 * count :].view("<i8"))


def _say_not_kept(folder: Path, error: OSError) -> None:
    cause = error.strerror or error
    print(f"{folder}: cannot hold the index of a large set ({cause}); it takes memory instead", file=sys.stderr)
