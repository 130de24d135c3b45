"""The shard set: tuples in WebDataset tars with an index, read by number with one positioned read a tuple.

Torch-free; this is the one module that qadtrain's loader imports. The format is specified in docs/format.md.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.errors import UserError

FORMAT_MAJOR, FORMAT_MINOR = 1, 1
INDEX_NAME = "shards.json"
MAX_TUPLE_BYTES = 64 << 20  # bounds what one index row can make a reader allocate
MAX_SIDE_PX = 4096


class ShardError(Exception):
    """A damaged or missing tuple; the message names the shard, the key and the byte offset."""


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
        images: quality -> uint8 (size_px, size_px, 3), RGB; qualities best first.
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
    """Random access to a shard set on disk.

    Args:
        path: folder with `shards.json`.
        split: read this split only; None reads all.

    Attributes:
        qualities: names of the qualities in every tuple, best first.
        size_px: side of the square crops.
        fingerprint: sha256 (hex) over the sha256 of every shard of the set: two equal ones hold the same data.
        splits: split -> number of tuples in the whole set.
        table: the index, one row a tuple in shard order (columns in docs/format.md).

    Raises:
        UserError: no shard set there, a newer major format, an unknown split, or an index that contradicts
            `shards.json`.

    Handles are opened when first needed, one per shard and process: an instance may be forked or sent to
    spawned workers.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
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
        self.shards: list[dict[str, Any]] = [s for s in shards if split is None or s["split"] == split]
        tables = [read_index(self.path, shard) for shard in self.shards]
        self.table: pa.Table = pa.concat_tables(tables) if tables else pa.table({})
        counts = [len(table) for table in tables]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._columns = {
            name: self.table[name].to_numpy()
            for name in (
                "offset",
                "length",
                *(f"{q}_{part}" for q in self.qualities for part in ("offset", "size")),
            )
            if tables
        }
        self._reset_handles()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Tuple:
        """The tuple at a position, decoded.

        Raises:
            IndexError: outside 0..len-1 (negative numbers count from the end).
            ShardError: damaged data.
        """
        encoded = self.encoded(index)
        row = {name: self.table[name][self._position(index)].as_py() for name in _ROW_FIELDS}
        images = {}
        for quality, data in encoded.items():
            try:
                images[quality] = decode_image(data, self.size_px)
            except ValueError as error:
                raise ShardError(f"{self.where(index)}: {quality}: {error}") from error
        return Tuple(**row, images=images)

    def __iter__(self) -> Iterator[Tuple]:
        return (self[index] for index in range(len(self)))

    def encoded(self, index: int) -> dict[str, bytes]:
        """Quality -> the encoded image file of a tuple, by one positioned read.

        Raises:
            ShardError: the bytes at the index's place are not this tuple's.
        """
        index = self._position(index)
        shard = self.shard_number(index)
        offset, length = int(self._columns["offset"][index]), int(self._columns["length"][index])
        if not 0 < length <= MAX_TUPLE_BYTES:
            raise ShardError(f"{self.where(index)}: the index gives it {length} bytes, more than {MAX_TUPLE_BYTES}")
        data = os.pread(self._handle(shard), length, offset)
        if len(data) != length:
            raise ShardError(f"{self.where(index)}: got {len(data)} of {length} bytes; the shard is cut short")
        result = {}
        key = self.table["key"][index].as_py()
        for quality in self.qualities:
            start = int(self._columns[f"{quality}_offset"][index]) - offset
            size = int(self._columns[f"{quality}_size"][index])
            name = f"{key}.{quality}.{self.codec}".encode()
            # The member's own tar header must agree, or tar and index are of different runs.
            if start < 512 or start + size > length or tar_name(data[start - 512 : start]) != name:
                raise ShardError(
                    f"{self.where(index)}: the bytes there are not {name.decode()}; tar and index disagree"
                )
            result[quality] = data[start : start + size]
        return result

    def shard_number(self, index: int) -> int:
        """Which shard of `shards` holds the tuple at a position."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def where(self, index: int) -> str:
        """`<shard>: <key> at byte <offset>`: how messages name a tuple."""
        shard = self.shards[self.shard_number(index)]["url"]
        return f"{self.path / shard}: {self.table['key'][index].as_py()} at byte {self.table['offset'][index].as_py()}"

    def close(self) -> None:
        """Close the open shard files of this process."""
        with self._lock:
            if self._pid == os.getpid():
                for handle in self._handles.values():
                    os.close(handle)
            self._handles = {}

    def __enter__(self) -> "ShardSet":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_handles", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_handles()

    def _reset_handles(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[int, int] = {}
        self._pid = os.getpid()

    def _position(self, index: int) -> int:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"tuple {index} of {count}")
        return index % count

    def _handle(self, shard: int) -> int:
        with self._lock:
            if self._pid != os.getpid():  # after a fork the parent's handles are left to the parent
                self._handles, self._pid = {}, os.getpid()
            if shard not in self._handles:
                file = self.path / self.shards[shard]["url"]
                try:
                    self._handles[shard] = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except OSError as error:
                    raise ShardError(f"{file}: {error.strerror}; the shard set is incomplete") from error
            return self._handles[shard]


_ROW_FIELDS = ("key", "label", "dataset", "method", "video", "frame", "face", "split")


def read_info(path: Path) -> dict[str, Any]:
    """Read and check `shards.json`.

    Raises:
        UserError: missing, not JSON, not a shard set, or of a newer major format than this version reads.
    """
    file = path / INDEX_NAME
    try:
        info = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no {INDEX_NAME} there; expected a folder written by `qadprep shard`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); write the shard set again") from error
    version = str(info.get("format_version", "")) if isinstance(info, dict) else ""
    if not version.split(".")[0].isdigit() or "qualities" not in info or "shardlist" not in info:
        raise UserError(f"{file}: not a tuple shard set (no format_version, qualities or shardlist)")
    if int(version.split(".")[0]) > FORMAT_MAJOR:
        raise UserError(f"{file}: format {version} is newer than {FORMAT_MAJOR}.{FORMAT_MINOR}; upgrade qadprep")
    for shard in info["shardlist"]:
        # Names come from a file that may have been downloaded: nothing outside the folder is opened.
        for name in (shard.get("url", ""), shard.get("index", "")):
            if not name or Path(name).name != name:
                raise UserError(f"{file}: shard name {name!r} is not a plain file name")
    return info


def read_index(path: Path, shard: dict[str, Any]) -> pa.Table:
    """The index of one shard, one row a tuple.

    Args:
        path: folder of the shard set.
        shard: its entry in `shards.json`.

    Raises:
        UserError: unreadable, or of another number of tuples than `shards.json` says.
    """
    file = path / shard["index"]
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: unreadable shard index ({error}); write the shard set again") from error
    if len(table) != shard["nsamples"]:
        raise UserError(
            f"{file}: {len(table)} rows, but {INDEX_NAME} says {shard['nsamples']} tuples; they are of different runs"
        )
    return table


def fingerprint(shards: list[dict[str, Any]]) -> str:
    """sha256 (hex) over the shards' own sha256, in order: the identity of a shard set's data."""
    return hashlib.sha256("\n".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def tar_name(header: bytes) -> bytes:
    """The member name in a 512-byte USTAR header (prefix and name joined)."""
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name


def decode_image(data: bytes, size_px: int) -> np.ndarray:
    """Decode one lossless crop.

    Args:
        data: a PNG file.
        size_px: the side it must have; checked in the file's header before anything is decoded.

    Returns:
        uint8 (size_px, size_px, 3), RGB.

    Raises:
        ValueError: not a PNG, another size, or damaged.
    """
    import cv2

    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise ValueError("not a PNG file")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if (width, height) != (size_px, size_px) or size_px > MAX_SIDE_PX:
        raise ValueError(f"picture is {width}x{height}, expected {size_px}x{size_px}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None or image.shape != (size_px, size_px, 3):
        raise ValueError("damaged PNG file")
    return image


def pixel_hash(image_rgb: np.ndarray) -> str:
    """sha256 (hex) of the decoded pixels with their shape: stays the same when a crop is recoded without loss."""
    digest = hashlib.sha256(f"{image_rgb.shape}{image_rgb.dtype}".encode())
    digest.update(np.ascontiguousarray(image_rgb).data)
    return digest.hexdigest()
