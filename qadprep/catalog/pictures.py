"""Sequences of pictures in place of videos: how their paths are written, and what the headers of a tar list.

Nothing is ever unpacked: one pass over the headers notes where each picture's bytes lie. No picture is opened here.
"""

import os
import re
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PICTURE_BYTES = 64 * 2**20
INSIDE = "::"  # between a tar's path and the folder inside it

_BLOCK = 512
_GZIP = b"\x1f\x8b"
# What surrogateescape makes of bytes that are no UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_NAME_BYTES = 2**16
_MAX_PAX_BYTES = 2**20
_MAX_TAIL_BYTES = 2**24
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
# Their headers may carry a size, but no data follows.
_WITHOUT_DATA = (*_LINKS, *_DEVICES, tarfile.DIRTYPE)


class Picture(NamedTuple):
    """One picture inside a tar: its file name without the folder, where its bytes begin, and how many they are."""

    name: str
    offset: int
    bytes: int


@dataclass
class TarListing:
    """What a tar holds.

    Attributes:
        folders: folder inside (parts joined by `/`, empty at the top) -> its pictures in the tar's order.
        refused: (member, reason) of everything that is not read: unsafe names, links, devices, files that are no
            pictures. Hidden names are passed over in silence.
        error: why the tar could not be read to its end, or at all; None when all is well.
    """

    folders: dict[str, list[Picture]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None


class _DamagedError(Exception):
    """The rest of the tar cannot be read; the message says why."""


def is_pictures(path: str) -> bool:
    """Whether a clip's path names pictures (`<tar>::<folder inside>`, or a folder with a slash at its end)."""
    return INSIDE in path or path.endswith("/")


def split_path(path: str) -> tuple[str, str | None]:
    """(tar, folder inside) of a path of pictures; (folder, None) where they lie in a folder of their own."""
    file, mark, folder = path.rpartition(INSIDE)
    return (file, folder.strip("/")) if mark else (path.rstrip("/"), None)


def list_tar(path: str | Path) -> TarListing:
    """List the pictures of a plain tar by its headers, without reading any member's data.

    Raises nothing for bad input: what lies before a damage is listed, `error` says what is wrong with the rest.
    USTAR, GNU (long names) and pax headers are understood.
    """
    listing = TarListing()
    try:
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            listing.error = "not a regular file"
            return listing
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        listing.error = f"cannot be read ({error.strerror})"
        return listing
    try:
        _walk(handle, listing)
    except _DamagedError as error:
        listing.error = str(error)
    except OSError as error:
        listing.error = f"cannot be read to its end ({error.strerror})"
    finally:
        os.close(handle)
    return listing


def list_folder(path: str | Path) -> tuple[list[Picture], list[tuple[str, str]]]:
    """The pictures of one folder on disk, sorted by name, offsets 0, and (name, reason) of what is left out.

    Folders and hidden names are passed over in silence; links are followed.

    Raises:
        OSError: the folder cannot be listed.
    """
    found, refused = [], []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    continue
                if not entry.is_file():
                    reason = "a link to nothing" if entry.is_symlink() else "not a regular file"
                else:
                    reason = _refused(entry.name, size := entry.stat().st_size)
            except OSError as error:
                reason = f"cannot be followed ({error.strerror})"
            if reason:
                refused.append((_shown(entry.name), reason))
            else:
                found.append(Picture(entry.name, 0, size))
    return found, refused


def _walk(handle: int, listing: TarListing) -> None:
    """Follow the headers from the first to the end mark; fills `listing` as it goes."""
    total = os.fstat(handle).st_size
    if total == 0:
        raise _DamagedError("the file has 0 bytes; fetch it again")
    position, long_name, pax = 0, None, {}
    while True:
        block = os.pread(handle, _BLOCK, position)
        if position == 0 and block.startswith(_GZIP):
            raise _DamagedError("gzip-compressed; gunzip it first (the release's files are plain tars)")
        if len(block) < _BLOCK:
            raise _DamagedError("not a tar" if position == 0 else f"cut off at byte {position}, before its end mark")
        if block.count(0) == _BLOCK:
            _check_tail(handle, position + _BLOCK, total)
            return
        header = _header(block, position)
        start = position + _BLOCK
        size = _size(header, pax, position)
        position = start if header.type in _WITHOUT_DATA else start + -(-size // _BLOCK) * _BLOCK
        if start + size > total and header.type not in _WITHOUT_DATA:
            raise _DamagedError(f"cut off inside {_shown(long_name or pax.get('path') or header.name)}")
        if header.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _payload(handle, start, size, _MAX_NAME_BYTES).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            pax = _pax(_payload(handle, start, size, _MAX_PAX_BYTES), start)
        elif header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            _add(listing, pax.get("path") or long_name or header.name, header, pax, start, size)
            long_name, pax = None, {}


def _header(block: bytes, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise _DamagedError("not a tar" if position == 0 else f"damaged header at byte {position}") from error


def _size(header: tarfile.TarInfo, pax: dict[str, str], position: int) -> int:
    text = pax.get("size")
    size = header.size if text is None else int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if size < 0:
        raise _DamagedError(f"damaged header at byte {position}")
    return size


def _payload(handle: int, start: int, size: int, limit: int) -> bytes:
    if size > limit:
        raise _DamagedError(f"damaged header at byte {start - _BLOCK}: a name of {size} bytes")
    return os.pread(handle, size, start)


def _pax(data: bytes, start: int) -> dict[str, str]:
    """The records `<length> <key>=<value>\\n` of a pax header."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, mark, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if length <= len(digits) or length > len(data) or data[length - 1 : length] != b"\n" or not mark:
            raise _DamagedError(f"damaged pax header at byte {start}")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _add(listing: TarListing, name: str, header: tarfile.TarInfo, pax: dict[str, str], start: int, size: int) -> None:
    reason = _unsafe(name, header.type, pax)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if reason:
        listing.refused.append((_shown(name), reason))
    elif header.type == tarfile.DIRTYPE or not parts or any(part.startswith(".") for part in parts):
        return
    elif reason := _refused(parts[-1], size):
        listing.refused.append((_shown(name), reason))
    else:
        listing.folders.setdefault("/".join(parts[:-1]), []).append(Picture(parts[-1], start, size))


def _refused(name: str, size: int) -> str | None:
    if not name.lower().endswith(SUFFIXES):
        return "not a picture (png, jpg)"
    if size > MAX_PICTURE_BYTES:
        return f"{size} bytes, more than {MAX_PICTURE_BYTES} for one picture"
    return None


def _unsafe(name: str, kind: bytes, pax: dict[str, str]) -> str | None:
    """Why a member must not be read, or None."""
    if name.startswith("/"):
        return "an absolute name"
    if ".." in name.split("/"):
        return "a name with .."
    if _CONTROL.search(name):
        return "a name with control characters"
    if _SURROGATE.search(name):
        return "a name that is not UTF-8"
    if INSIDE in name:
        return f"a name with {INSIDE}"
    if kind in _LINKS:
        return "a link"
    if kind in _DEVICES:
        return "a device or pipe"
    if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in pax):
        return "a sparse file"
    if kind not in (*_REGULAR, tarfile.DIRTYPE):
        return f"a member of unknown kind {kind!r}"
    return None


def _check_tail(handle: int, position: int, total: int) -> None:
    """An empty header in the midst of a tar is damage, not its end: behind the end mark there is nothing but zeros."""
    last = min(total, position + _MAX_TAIL_BYTES)
    while position < last:
        data = os.pread(handle, 2**16, position)
        if not data:
            return
        if data.count(0) != len(data):
            raise _DamagedError(f"data behind the end mark at byte {position}: a header is overwritten")
        position += len(data)


def _shown(name: str) -> str:
    """A member's name, safe to print."""
    return name if name.isprintable() else ascii(name)[1:-1]
