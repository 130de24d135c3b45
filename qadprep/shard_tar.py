"""The two files of a shard while they grow: the tar, tuple by tuple, and the index, row by row."""

import contextlib
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.shard_format import DESCRIBING, index_schema
from qadprep.shard_rows import MEASURED
from qadprep.ustar import BLOCK, HashedFile, end_of_archive, member_header

_INDEX_ROWS = 8192
_HASH_BYTES, _SYNC_BYTES = 1 << 20, 16 << 20


class TupleTar:
    """A tar that is written tuple by tuple, hashed and brought to the disk in threads beside it.

    Hashing takes longer than all else, and Python can do it in several threads at once.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.md5, self.sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        self._waiting: list[bytes] = []
        self._held = 0
        self._hashing: list[Future[None]] = []
        self._syncing: Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> "TupleTar":
        # One thread for each hash keeps its parts in order; the last one is for the disk.
        self._threads = [ThreadPoolExecutor(1) for _ in range(3)]
        return self

    def __exit__(self, *exc: object) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def add(self, members: list[tuple[str, bytes]]) -> tuple[list[tuple[int, int]], int, int, str]:
        """Append a tuple; ((offset, size) of each member's data, first byte, length, sha256 in hex)."""
        start, parts, places = self.position, [], []
        for name, data in members:
            parts += [member_header(name, len(data)), data, bytes(-len(data) % BLOCK)]
            places.append((self.position + BLOCK, len(data)))
            self.position += BLOCK + len(data) + len(parts[-1])
        whole = b"".join(parts)
        self._append(whole)
        return places, start, len(whole), hashlib.sha256(whole).hexdigest()

    def finish(self) -> None:
        """Write the archive's end; then the hashes are whole."""
        end = end_of_archive(self.position)
        self.position += len(end)
        self._append(end)
        self._flush()
        for future in [*self._hashing, *([self._syncing] if self._syncing else [])]:
            future.result()

    def _append(self, data: bytes) -> None:
        self._waiting.append(data)
        self._held += len(data)
        if self._held >= _HASH_BYTES:
            self._flush()

    def _flush(self) -> None:
        # In one piece: for each piece a thread would wait for its turn in Python.
        chunk = b"".join(self._waiting)
        self._waiting, self._held = [], 0
        for future in self._hashing:  # never more than one chunk behind
            future.result()
        digests = (self.md5, self.sha256)
        self._hashing = [t.submit(digest.update, chunk) for t, digest in zip(self._threads, digests, strict=False)]
        self._file.write(chunk)
        self._unsynced += len(chunk)
        if self._unsynced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
            if self._syncing:
                self._syncing.result()  # a write that failed is told once only
            self._file.flush()
            self._syncing, self._unsynced = self._threads[-1].submit(_sync, self._file.fileno()), 0


def _sync(handle: int) -> None:
    getattr(os, "fdatasync", os.fsync)(handle)  # macOS has only the latter


class IndexWriter:
    """The parquet index of a shard, written in row groups of one size."""

    def __init__(self, file: BinaryIO, qualities: tuple[str, ...]) -> None:
        self.hashed = HashedFile(file)
        self._qualities, self._schema = qualities, index_schema(qualities)
        self._writer = pq.ParquetWriter(self.hashed, self._schema, compression="zstd")
        self._held: list[pa.Table] = []

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        # Left open, the writer would close itself later, into a file that is gone.
        with contextlib.suppress(*((Exception,) if kind else ())):
            self._writer.close()

    def add(self, rows: pa.Table, places: list[tuple[list[tuple[int, int]], int, int, str]]) -> None:
        """Rows of a plan and where their tuples lie (see `TupleTar.add`)."""
        members = [members for members, _, _, _ in places]
        columns: dict[str, Any] = {name: rows[name] for name in ("key", "video", *DESCRIBING)}
        columns |= {
            "offset": [start for _, start, _, _ in places],
            "length": [length for _, _, length, _ in places],
            "sha256": [digest for _, _, _, digest in places],
        }
        for number, name in enumerate([*self._qualities, "json"]):
            columns[f"{name}_offset"] = [member[number][0] for member in members]
            columns[f"{name}_size"] = [member[number][1] for member in members]
        columns |= {f"{q}_{part}": rows[f"{q}_{part}"] for q in self._qualities for part in MEASURED}
        self._held.append(pa.table({name: columns[name] for name in self._schema.names}).cast(self._schema))
        if sum(map(len, self._held)) >= _INDEX_ROWS:
            self._write()

    def finish(self) -> None:
        """Write what is held and the file's end; then the hashes are whole."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held).combine_chunks())
            self._held = []
