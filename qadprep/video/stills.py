"""One picture file, PNG or JPEG: its size before it is decoded, whether it is whole, its pixels."""

import zlib
from collections.abc import Iterator

import cv2
import numpy as np

MAX_SIDE_PX = 4096

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


class PictureError(Exception):
    """This picture cannot be used; the message says why."""


class TooLargeError(PictureError):
    """More pixels than are decoded."""


def decode_picture(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """A PNG or JPEG as uint8 (height, width, 3), RGB. Its size is checked before anything is decoded.

    Raises:
        PictureError: not a whole PNG or JPEG, or not of the given (width, height).
    """
    codec, width, height = picture_header(data)
    if (width, height) != size:
        raise PictureError(f"is {width}x{height}, the sequence {size[0]}x{size[1]}")
    # The decoder would hand out what it has of a picture that is cut off, the rest grey.
    (_check_png if codec == "png" else _check_jpeg)(data)
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise PictureError(f"not a readable {codec} ({error.err or error.code})") from error
    if bgr is None or bgr.shape != (height, width, 3) or bgr.dtype != np.uint8:
        raise PictureError(f"not a readable {codec}")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def picture_header(data: bytes) -> tuple[str, int, int]:
    """(`png` or `jpeg`, width, height) from the first bytes of a picture.

    Raises:
        PictureError: neither of the two, cut off, or more than 4096 pixels wide or high.
    """
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:
        codec = "png"
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    elif data.startswith(_JPEG):
        codec = "jpeg"
        width, height = _jpeg_size(data)
    else:
        raise PictureError("empty file" if not data else "neither PNG nor JPEG")
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise TooLargeError(f"is {width}x{height}; expected 1 to {MAX_SIDE_PX} pixels a side")
    return codec, width, height


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, start in _jpeg_segments(data):
        # Start of frame; C4, C8 and CC are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(data) >= start + 7:
            return int.from_bytes(data[start + 5 : start + 7], "big"), int.from_bytes(
                data[start + 3 : start + 5], "big"
            )
    raise PictureError("a JPEG without its size")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, place of its length) of the segments up to the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        yield marker, position + 2
        if marker == 0xDA:
            return
        position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))


def _check_jpeg(data: bytes) -> None:
    """Inside a scan the end mark FF D9 cannot occur, so it is missing exactly where the picture is cut off."""
    scan = next((start for marker, start in _jpeg_segments(data) if marker == 0xDA), None)
    if scan is None or data.find(b"\xff\xd9", scan) < 0:
        raise PictureError("cut off")


def _check_png(data: bytes) -> None:
    position, view = len(_PNG), memoryview(data)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        if end > len(data):
            break
        kind = bytes(view[position + 4 : position + 8])
        needed = not kind[0] & 0x20  # a capital first letter; notes and the like may be damaged
        if needed and zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise PictureError("damaged (checksum)")
        if kind == b"IEND":
            return
        position = end
    raise PictureError("cut off")
