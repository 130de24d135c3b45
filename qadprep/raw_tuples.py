"""The bytes of a tuple as they lie in its shard, headers included, and the facts in its JSON member."""

import json
import tarfile
from typing import Any

from qadprep.shard_files import CACHE_BYTES, ShardError, ShardFiles
from qadprep.shard_format import MAX_TUPLE_BYTES, member_name
from qadprep.shardset import ShardSet, tar_name
from qadprep.ustar import BLOCK


class RawTuples:
    """Reads whole tuples of a shard set, undecoded.

    Args:
        shards: the set.
        cache_bytes: as of `ShardSet`.
    """

    LIMIT = 64

    def __init__(self, shards: ShardSet, cache_bytes: int = CACHE_BYTES) -> None:
        self._shards = shards
        self._files = ShardFiles(shards.path, shards.shards, cache_bytes=cache_bytes, handles=self.LIMIT)
        self._names = shards.table.column_names

    def __enter__(self) -> "RawTuples":
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()

    def read(self, position: int) -> bytes:
        """A tuple's members, headers and padding included.

        Raises:
            ShardError: they are not there: the shard is missing, cut short, or of another run than its index.
        """
        offset, length = self._cell("offset", position), self._cell("length", position)
        if not BLOCK < length <= MAX_TUPLE_BYTES or length % BLOCK or offset < 0 or offset % BLOCK:
            raise self._damage(position, f"the index gives it {length} bytes at {offset}")
        data = self._pread(position, offset, length)
        first = member_name(self._cell("key", position), self._shards.qualities[0], self._shards.codec)
        if tar_name(data[:BLOCK]) != first.encode():
            raise self._damage(position, f"the bytes there are not {first}")
        return data

    def facts(self, position: int) -> dict[str, Any]:
        """The tuple's JSON member.

        Raises:
            ShardError: it cannot be read.
        """
        name = f"{self._cell('key', position)}.json"
        if "json_offset" in self._names and self._cell("json_offset", position) is not None:
            start, size = self._cell("json_offset", position), self._cell("json_size", position)
            if start < BLOCK or not 0 <= size <= MAX_TUPLE_BYTES:
                raise self._damage(position, f"the index gives {name} {size} bytes at {start}")
            data = self._pread(position, start - BLOCK, BLOCK + size)
            text = data[BLOCK:] if tar_name(data[:BLOCK]) == name.encode() else None
        else:  # an index of an older version
            text = _member(self.read(position), name)
        try:
            facts = json.loads(text) if text is not None else None
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            raise self._damage(position, f"no readable {name}")
        return facts

    def _pread(self, position: int, offset: int, length: int) -> bytes:
        data = self._files.read(self._shards.shard_number(position), offset, length)
        if len(data) != length:
            raise self._damage(position, f"cut short, {len(data)} of {length} bytes")
        return data

    def _cell(self, column: str, position: int) -> Any:
        return self._shards.table[column][position].as_py()

    def _damage(self, position: int, what: str) -> ShardError:
        place = self._shards.path
        return ShardError(f"{self._shards.where(position)}: {what}; `qadprep verify {place}` says what else is wrong")


def _member(data: bytes, name: str) -> bytes | None:
    """A member of a tuple's bytes; None where there is none."""
    at = 0
    while at + BLOCK <= len(data):
        header = data[at : at + BLOCK]
        try:
            size = tarfile.TarInfo.frombuf(header, "ascii", "strict").size
        except (tarfile.HeaderError, UnicodeDecodeError):
            return None
        at += BLOCK
        if tar_name(header) == name.encode():
            return data[at : at + size]
        at += size + -size % BLOCK
    return None
