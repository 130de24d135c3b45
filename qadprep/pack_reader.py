"""Read crops out of face packs, wherever they lie, and notice those that are not what was written."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qadprep.shard_format import MAX_TUPLE_BYTES
from qadprep.store import is_local
from qadprep.ustar import BLOCK, member_header

if TYPE_CHECKING:
    from qadprep.store import Folder

_PNG = b"\x89PNG\r\n\x1a\n"


class CropError(Exception):
    """A crop that cannot be used.

    Attributes:
        byte: where in the pack's tar.
        fault: what is wrong.
        damaged: the pack is not what was written; else it could only not be read now.
    """

    def __init__(self, byte: int, fault: str, *, damaged: bool = True) -> None:
        super().__init__(f"byte {byte}: {fault}")
        self.byte, self.fault, self.damaged = byte, fault, damaged


@dataclass(frozen=True)
class Crop:
    """Where a crop lies.

    Attributes:
        name: of the member, `<method>/<name>/<frame:06d>_<face>.<quality>.png`.
        offset: of its first byte in the tar, after the member's header.
        size: bytes.
    """

    name: str
    offset: int
    size: int


class PackReader:
    """Crops of the packs in a folder. Local tars stay open, a bounded number at a time; of remote ones many are read
    at once by `fetch`.

    Args:
        faces: folder of the packs.
        size_px: side that every crop must have.
    """

    LIMIT = 256

    def __init__(self, faces: "Folder", size_px: int) -> None:
        self._faces, self._size_px = faces, size_px
        self._open: dict[str, int] = {}
        self._fetched: dict[tuple[str, int], bytes | Exception] = {}

    def __enter__(self) -> "PackReader":
        return self

    def __exit__(self, *exc: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def fetch(self, tuples: Sequence[tuple[str, Sequence[Crop]]]) -> None:
        """Get the crops of these tuples from a remote store, many requests at a time; forgets those of the last call.

        Args:
            tuples: (tar relative to the folder, its crops) each.
        """
        self._fetched.clear()
        if is_local(self._faces) or not tuples:
            return
        spans = [(tar, *_span(crops)) for tar, crops in tuples]
        parts = self._faces.fs.cat_ranges(
            [(self._faces / tar).path for tar, _, _ in spans],
            [start for _, start, _ in spans],
            [end for _, _, end in spans],
            on_error="return",
        )
        self._fetched = {(tar, start): part for (tar, start, _), part in zip(spans, parts, strict=True)}

    def read(self, tar: str, crops: Sequence[Crop]) -> list[bytes]:
        """The PNG files of a tuple, by one read: its crops lie side by side.

        Names, sizes and the checksums inside the PNG files are compared; the pixels are not decoded.

        Args:
            tar: path relative to the folder, `<dataset>/<group>.tar`.

        Raises:
            CropError: missing, cut short or other bytes.
        """
        start, end = _span(crops)
        if start < 0 or end - start > MAX_TUPLE_BYTES:
            raise CropError(max(start, 0), f"the pack's table gives its crops the bytes {start} to {end}")
        data = self._fetched_part(tar, start) if self._fetched else self._read_local(tar, start, end - start)
        files = []
        for crop in crops:
            at = crop.offset - start
            part = data[at : at + crop.size]
            if len(part) != crop.size:
                raise CropError(start + len(data), "the tar is cut short")
            if data[at - BLOCK : at] != member_header(crop.name, crop.size):
                raise CropError(crop.offset - BLOCK, f"the bytes there are not the tar header of {crop.name}")
            if fault := png_fault(part, self._size_px):
                raise CropError(crop.offset, f"{crop.name}: {fault}")
            files.append(part)
        return files

    def _fetched_part(self, tar: str, start: int) -> bytes:
        part = self._fetched[tar, start]
        if isinstance(part, FileNotFoundError):
            raise CropError(start, "there is no such file")
        if isinstance(part, BaseException):
            raise CropError(start, f"cannot be read ({type(part).__name__}: {part})", damaged=False)
        return bytes(part)

    def _read_local(self, tar: str, start: int, size: int) -> bytes:
        try:
            if tar not in self._open:
                if len(self._open) >= self.LIMIT:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[tar] = os.open(Path(self._faces) / tar, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return os.pread(self._open[tar], size, start)
        except FileNotFoundError:
            raise CropError(start, "there is no such file") from None
        except OSError as error:
            raise CropError(start, f"cannot be read ({error.strerror})", damaged=False) from error


def png_fault(data: bytes, size_px: int) -> str | None:
    """What is wrong with a PNG file as far as its own checksums and its header tell; None when nothing is.

    Args:
        size_px: width and height that it must have.
    """
    if data[:8] != _PNG:
        return "not a PNG file"
    view, position = memoryview(data), 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if end > len(data):
            break
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return f"a damaged PNG file (checksum of the chunk at its byte {position})"
        if position == 8:
            width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
            if kind != b"IHDR" or (width, height) != (size_px, size_px):
                return f"picture is {width}x{height}, expected {size_px}x{size_px}"
        if kind == b"IEND":
            return None if end == len(data) else "a PNG file with bytes after its end"
        position = end
    return "a PNG file that is cut short"


def _span(crops: Sequence[Crop]) -> tuple[int, int]:
    """(first byte of the first header, end of the last crop)."""
    return min(crop.offset for crop in crops) - BLOCK, max(crop.offset + crop.size for crop in crops)
