"""Plain USTAR archives with the same bytes for the same content, written so that a kill leaves no half file."""

import contextlib
import hashlib
import os
import secrets
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

BLOCK = 512


class TarWriter:
    """Append members to an open file; times, owners and modes are fixed.

    Used for face packs and shards alike. `position` is where the next header goes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Write one member; returns (byte offset of its data, size).

        Raises:
            ValueError: the name does not fit USTAR (100 characters, or 155 + 100 cut at a slash).
        """
        header = member_header(name, len(data))
        padding = -len(data) % BLOCK
        self._file.write(header + data + b"\0" * padding)
        offset = self.position + len(header)
        self.position = offset + len(data) + padding
        return offset, len(data)

    def finish(self) -> None:
        """Write the end of the archive: two empty blocks, filled up to tar's record of 20 blocks."""
        self._file.write(end_of_archive(self.position))


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's data: Python's own, but made without its detours where a name is short.

    Raises:
        ValueError: the name does not fit USTAR (100 characters, or 155 + 100 cut at a slash), or is not ASCII.
    """
    text = name.encode("ascii")
    if len(text) > 100 or size >= 8**11:
        return _python_header(name, size)
    # Checksums count their own field as eight spaces.
    header = bytearray(_EMPTY_HEADER)
    header[: len(text)] = text
    header[124:135] = b"%011o" % size
    # Adler-32 begins with the sum of the bytes, which of ASCII is less than its modulus: as sum(), but at once.
    header[148:155] = b"%06o\0" % ((zlib.adler32(header) & 0xFFFF) - 1)
    return bytes(header)


def end_of_archive(position: int) -> bytes:
    """What follows the last member, which ends at a position: two empty blocks, up to tar's record of 20 blocks."""
    return b"\0" * (2 * BLOCK + -(position + 2 * BLOCK) % tarfile.RECORDSIZE)


def _python_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


_EMPTY_HEADER = b"\0" * 100 + _python_header("", 0)[100:148] + b" " * 8 + _python_header("", 0)[156:]


class HashedFile:
    """A file for writing that hashes what passes through; `part` restarts where the caller replaces it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size, self.closed = 0, False
        self.md5, self.sha256, self.part = hashlib.md5(usedforsecurity=False), hashlib.sha256(), hashlib.sha256()

    def write(self, data: bytes) -> int:
        data = bytes(data)
        self._file.write(data)
        for digest in (self.md5, self.sha256, self.part):
            digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        self.closed = True


@contextlib.contextmanager
def atomic_file(path: Path):  # noqa: ANN201  (a context manager of BinaryIO)
    """Open a temporary file beside `path`; on success it is synced and renamed, on any error removed.

    The temporary's name starts with a dot and ends in `.tmp`: a killed run's leftovers are recognised by that.
    """
    # Process numbers repeat on the machines that share a network folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, names: Collection[str] | None = None) -> int:
    """Delete the temporary files that a killed run left in a folder; returns how many.

    Args:
        names: only those of files with these names, suffixes aside; for folders in which others write as well.
    """
    leftovers = list(folder.glob(".*.tmp")) if folder.is_dir() else []
    if names is not None:
        leftovers = [file for file in leftovers if file.name[1:].split(".")[0] in names]
    for file in leftovers:
        file.unlink(missing_ok=True)
    return len(leftovers)
