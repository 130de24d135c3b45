"""The shard set: tuples in WebDataset tars with an index, read by number with one positioned read a tuple.

Torch-free; this is the one module that qadtrain's loader imports. The format is specified in docs/format.md.
"""

import hashlib
import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from qadprep.cache import default_folder
from qadprep.codecs import decode_image, pixel_hash
from qadprep.errors import UserError
from qadprep.shard_files import CACHE_BYTES, ShardError, ShardFiles
from qadprep.shard_format import INDEX_NAME, MAX_TUPLE_BYTES, fingerprint, member_name, read_info
from qadprep.shard_index import IN_MEMORY_TUPLES, ShardIndex, ShardRows, read_index
from qadprep.store import is_local, open_folder
from qadprep.ustar import BLOCK

if TYPE_CHECKING:
    from qadprep.store import Folder

__all__ = ["ShardError", "ShardSet", "Tuple", "decode_image", "fingerprint", "pixel_hash", "read_index", "read_info"]

# Where in a tar header the fields of the size and of the prefix begin.
_SIZE_AT, _PREFIX_AT = 124, 345


@dataclass(frozen=True)
class Tuple:
    """One face at one instant at every quality.

    Attributes:
        key: name inside the shard, `<dataset>/<method>/<video>/<frame:06d>_<face>`.
        label: 0 real, 1 fake.
        method: manipulation, `original` for real clips.
        video: the clip's name, such as `000_003`.
        frame: frame number in the video, from 0.
        face: number of the face in the group, from 0.
        images: quality -> uint8 (size_px, size_px, 3), RGB; qualities best first. Read-only where the codec is `raw`.
    """

    key: str
    label: int
    dataset: str
    method: str
    video: str
    frame: int
    face: int
    split: str
    images: Mapping[str, np.ndarray] = field(repr=False)


class ShardSet:
    """Random access to a shard set.

    Args:
        path: folder with `shards.json`, local or a URL of fsspec (`s3://bucket/prefix`).
        split: read this split only; None reads all.
        check: compare every tuple's bytes with their sha256 in the index before they are given out; without it damage
            is noticed where it hits a tar header or the decoder.
        cache_dir: folder for what can be fetched or made again: whole shards of a remote set, and the index of a large
            or remote one. None takes `$XDG_CACHE_HOME/qadprep`. Processes may share it.
        cache_bytes: most bytes that shards of remote sets take there, the least recently used are deleted; 0 keeps
            none, and each tuple is one range request.

    Attributes:
        qualities: names of the qualities in every tuple, best first.
        size_px: side of the square crops.
        fingerprint: sha256 (hex) over the sha256 of every shard of the set: two equal ones hold the same data.
        splits: split -> number of tuples in the whole set.
        table: the index, one row a tuple in shard order (columns in docs/format.md).

    Raises:
        UserError: no shard set there, a newer major format, an unknown split, or an index that contradicts
            `shards.json`.

    Handles are opened when first needed, a bounded number in each process. An instance may be used by several threads,
    forked, and sent to spawned workers.

    Example:
        >>> with ShardSet("shards", split="train") as tuples:
        ...     tuples[0].images["c40"].shape
        (128, 128, 3)
    """

    def __init__(
        self,
        path: "str | Folder",
        split: str | None = None,
        *,
        check: bool = False,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.path = open_folder(path)
        self.info = _info(self.path)
        self.qualities: tuple[str, ...] = tuple(self.info["qualities"])
        self.codec: str = self.info["codec"]
        self.size_px: int = int(self.info["size_px"])
        self.split = split
        shards = self.info["shardlist"]
        self.fingerprint: str = fingerprint(shards)
        self.splits: dict[str, int] = {}
        for shard in shards:
            self.splits[shard["split"]] = self.splits.get(shard["split"], 0) + int(shard["nsamples"])
        if split is not None and split not in self.splits:
            raise UserError(f"{self.path}: no split {split!r}; it has {', '.join(self.splits) or 'no tuples at all'}")
        chosen = [number for number, shard in enumerate(shards) if split is None or shard["split"] == split]
        self.shards: list[dict[str, Any]] = [shards[number] for number in chosen]
        folder = Path(cache_dir) if cache_dir is not None else None
        large = sum(self.splits.values()) > IN_MEMORY_TUPLES
        mapped = large or (not is_local(self.path) and cache_bytes > 0)
        index_folder = (folder or default_folder("index")) if mapped else None
        self._index = ShardIndex(self.path, shards, chosen, self.qualities, index_folder)
        self._files = ShardFiles(self.path, self.shards, cache_dir=folder, cache_bytes=cache_bytes)
        # Quality and what follows the key in the name's field of a member's header.
        self._endings = [(quality, member_name("", quality, self.codec).encode() + b"\0") for quality in self.qualities]
        self._table: pa.Table | None = None
        self._check = check
        if check and len(self) and "sha256" not in self._index.table(0).column_names:
            raise UserError(
                f"{self.path}: its index holds no sha256 of the tuples (format {self.info['format_version']}); "
                "write the set again, or read it unchecked"
            )

    def __len__(self) -> int:
        return self._index.starts[-1]

    @overload
    def __getitem__(self, index: int) -> Tuple: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tuple]: ...

    def __getitem__(self, index: int | slice) -> Tuple | list[Tuple]:
        """The tuple at a position, decoded; of a slice a list of them.

        Raises:
            IndexError: outside 0..len-1 (negative numbers count from the end).
            ShardError: damaged or missing data.
        """
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position, rows, row, files = self._read(index, copied=False)
        images = {}
        for quality, data in files.items():
            try:
                images[quality] = decode_image(data, self.size_px, self.codec)
            except ValueError as error:
                raise ShardError(f"{self.where(position)}: {quality}: {error}") from error
        dataset, method, video, split = (texts[row].decode() for texts in rows.texts)
        label, frame, face = (numbers[row] for numbers in rows.numbers)
        return Tuple(rows.key[row].decode(), label, dataset, method, video, frame, face, split, images)

    def __iter__(self) -> Iterator[Tuple]:
        return (self[index] for index in range(len(self)))

    def __contains__(self, key: object) -> bool:
        """Whether there is a tuple with this key."""
        return isinstance(key, str) and self._index.find(key) is not None

    def by_key(self, key: str) -> Tuple:
        """The tuple with a key, decoded.

        Raises:
            KeyError: there is none in this set or split.
            ShardError: damaged or missing data.
        """
        return self[self.position_of(key)]

    def position_of(self, key: str) -> int:
        """Position of the tuple with a key.

        Raises:
            KeyError: there is none in this set or split.
        """
        position = self._index.find(key)
        if position is None:
            place = f"{self.path}, split {self.split}" if self.split else str(self.path)
            raise KeyError(f"no tuple {key!r} in {place}")
        return position

    def encoded(self, index: int) -> dict[str, bytes]:
        """Quality -> the encoded image file of a tuple, by one positioned read.

        Raises:
            IndexError: outside 0..len-1 (negative numbers count from the end).
            ShardError: the bytes at the index's place are not this tuple's.
        """
        return self._read(index, copied=True)[3]

    def views(self, index: int) -> dict[str, memoryview]:
        """As `encoded`, read-only views into the bytes read: nothing is copied, and one view keeps the whole tuple."""
        return self._read(index, copied=False)[3]

    @property
    def table(self) -> pa.Table:
        """The index, one row a tuple in shard order, one chunk a shard; columns in docs/format.md.

        Of a large set it lies in a file and is read from there: leave it in Arrow instead of making lists of it.
        """
        if self._table is None:
            self._table = self._index.whole()
        return self._table

    def to_arrow(self) -> pa.Table:
        """`table` with one more column `shard`: the shard's file name."""
        names = [pa.array([shard["url"]]) for shard in self.shards if shard["nsamples"]]
        counts = [shard["nsamples"] for shard in self.shards if shard["nsamples"]]
        kind = pa.dictionary(pa.int32(), pa.string())
        chunks = [
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), name)
            for name, count in zip(names, counts, strict=True)
        ]
        if not chunks:
            return self.table
        return self.table.append_column("shard", pa.chunked_array(chunks, kind))

    def shard_number(self, index: int) -> int:
        """Which shard of `shards` holds the tuple at a position."""
        return self._index.place(self._position(index))[0]

    def where(self, index: int) -> str:
        """`<shard>: <key> at byte <offset>`: how messages name a tuple."""
        shard, row = self._index.place(self._position(index))
        rows = self._index.rows(shard)
        key = rows.key[row].decode(errors="replace")
        return f"{self.path / self.shards[shard]['url']}: {key} at byte {rows.offset[row]}"

    def close(self) -> None:
        """Close the open shard files of this process; a later read opens them again."""
        self._files.close()

    def __enter__(self) -> "ShardSet":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def _position(self, index: int) -> int:
        position, count = operator.index(index), self._index.starts[-1]
        if not -count <= position < count:
            raise IndexError(f"tuple {index} of {count}")
        return position % count

    def _read(self, index: int, *, copied: bool) -> tuple[int, ShardRows, int, dict[str, Any]]:
        """(position, its shard's index, row there, quality -> the file as bytes or as a view)."""
        # The way of every tuple, so what is short is written out here: a call costs as much as it does.
        starts = self._index.starts
        position = index if type(index) is int and 0 <= index < starts[-1] else self._position(index)
        shard = bisect_right(starts, position) - 1
        row = position - starts[shard]
        rows = self._index.rows(shard)
        offset, length = rows.offset[row], rows.length[row]
        if not 0 < length <= MAX_TUPLE_BYTES:
            raise ShardError(f"{self.where(position)}: the index gives it {length} bytes, not 1 to {MAX_TUPLE_BYTES}")
        data = self._files.read(shard, offset, length)
        if len(data) != length:
            raise ShardError(f"{self.where(position)}: got {len(data)} of {length} bytes; the shard is cut short")
        if self._check:
            self._compare(data, rows, row, position)
        key, files = rows.key[row], {}
        source = data if copied else memoryview(data)
        for (quality, ending), (offsets, sizes) in zip(self._endings, rows.members, strict=True):
            start, name = offsets[row] - offset, key + ending
            head, end = start - BLOCK, start + sizes[row]
            # The member's own tar header must agree, or tar and index are of different runs. Most names fit the
            # header's first field, and are compared where they are.
            if not 0 <= head < start <= end <= length or not (
                (data.startswith(name, head) and not data[head + _PREFIX_AT]) or tar_name(data[head:start]) == name[:-1]
            ):
                name = name[:-1].decode(errors="replace")
                raise ShardError(f"{self.where(position)}: the bytes there are not {name}; tar and index disagree")
            files[quality] = source[start:end]
        return position, rows, row, files

    def _compare(self, data: bytes, rows: ShardRows, row: int, position: int) -> None:
        """Raise ShardError when a tuple's bytes, or the sizes in its headers, are not those that the index holds."""
        if rows.sha256 is None or hashlib.sha256(data).hexdigest().encode() != rows.sha256[row]:
            fault = "its bytes are not those written" if rows.sha256 else "its index holds no sha256 of it"
            raise ShardError(f"{self.where(position)}: {fault}")
        for offsets, sizes in rows.members:
            head = offsets[row] - rows.offset[row] - BLOCK
            if head >= 0 and data[head + _SIZE_AT : head + _SIZE_AT + 11] != b"%011o" % sizes[row]:
                raise ShardError(f"{self.where(position)}: a member's size in tar and index disagree")


def _info(folder: "Folder") -> dict[str, Any]:
    """As `read_info`; what a store's own exceptions say becomes one line too."""
    try:
        return read_info(folder)
    except UserError:
        raise
    except Exception as error:
        if is_local(folder):
            raise
        raise UserError(f"{folder / INDEX_NAME}: not readable ({type(error).__name__}: {error})") from error


def tar_name(header: bytes) -> bytes:
    """The member name in a 512-byte USTAR header (prefix and name joined)."""
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name
