"""Read crops out of face packs, wherever they lie."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qadprep.errors import UserError
from qadprep.store import is_local

if TYPE_CHECKING:
    from qadprep.store import Folder


class PackReader:
    """Pack tars: local ones stay open, a bounded number at a time; of remote ones a shard's tuples are read at once."""

    LIMIT = 256

    def __enter__(self) -> "PackReader":
        self._open: dict[Path, BinaryIO] = {}
        self._fetched: dict[tuple[str, int], bytes] = {}
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._open.values():
            file.close()

    def fetch(self, rows: list[dict[str, Any]], qualities: tuple[str, ...]) -> None:
        """Before a shard is written: get its tuples from a remote store, many requests at a time."""
        self._fetched.clear()
        if not rows or is_local(rows[0]["tar"]):
            return
        fields = [(f"{quality}_offset", f"{quality}_size") for quality in qualities]
        crops = [(row["tar"].path, row[offset], row[size]) for row in rows for offset, size in fields]
        paths, starts = [path for path, _, _ in crops], [offset for _, offset, _ in crops]
        ends = [offset + size for _, offset, size in crops]
        parts = rows[0]["tar"].fs.cat_ranges(paths, starts, ends, on_error="raise")
        self._fetched = {(path, start): bytes(data) for path, start, data in zip(paths, starts, parts, strict=True)}

    def read(self, tar: "Folder", offset: int, size: int) -> bytes:
        """Bytes of a tar.

        Raises:
            UserError: it ends before.
        """
        data = self._fetched[tar.path, offset] if self._fetched else self._read_local(tar, offset, size)
        if len(data) != size:
            raise UserError(
                f"{tar}: cut short at byte {offset + len(data)}; delete its parquet and run `qadprep extract`"
            )
        return data

    def _read_local(self, tar: Path, offset: int, size: int) -> bytes:
        if tar not in self._open:
            if len(self._open) >= self.LIMIT:
                self._open.pop(next(iter(self._open))).close()
            self._open[tar] = tar.open("rb")
        return os.pread(self._open[tar].fileno(), size, offset)
