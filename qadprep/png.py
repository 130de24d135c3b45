"""PNG files as `crops.encode_png` writes them, decoded without an image library, since reading waits for decoding.

Every row is stored as its difference to the row above (filter 2 of PNG's specification, section 9.2), so that the
picture is a running sum down the columns, which NumPy takes over whole rows. Every other PNG is OpenCV's to decode.
"""

import zlib
from functools import lru_cache

import numpy as np

_UP = 2
_FIRST = bytes((_UP,))
_END = b"\0\0\0\0IEND\xaeB`\x82"


def decode_up(data: "bytes | memoryview", size_px: int) -> np.ndarray | None:
    """Decode a square 8-bit RGB PNG whose rows all have the filter Up, and that holds nothing but the picture.

    All checksums are compared: of the file's parts (CRC-32) and of the pixels (Adler-32).

    Args:
        data: the file.
        size_px: the side it must have.

    Returns:
        uint8 (size_px, size_px, 3), RGB; None for any other file, whole or damaged: ask a library then.
    """
    head = _head(size_px)
    if data[: len(head)] != head or data[-len(_END) :] != _END:
        return None
    parts, at, end = [], len(head), len(data) - len(_END)
    while at < end:
        length = int.from_bytes(data[at : at + 4], "big")
        check = at + 8 + length
        if check + 4 > end or data[at + 4 : at + 8] != b"IDAT":
            return None
        if zlib.crc32(data[at + 4 : check]) != int.from_bytes(data[check : check + 4], "big"):
            return None
        parts.append(data[at + 8 : check])
        at = check + 4
    row_bytes = 1 + 3 * size_px
    stream, packed = zlib.decompressobj(), b"".join(parts)
    try:
        first = stream.decompress(packed, 1)
        if first != _FIRST:  # most other files end here, before the work
            return None
        filtered = first + stream.decompress(stream.unconsumed_tail, size_px * row_bytes)
    except zlib.error:
        return None
    if len(filtered) != size_px * row_bytes or not stream.eof or stream.unused_data:
        return None
    rows = np.frombuffer(filtered, np.uint8).reshape(size_px, row_bytes)
    if (rows[:, 0] != _UP).any():
        return None
    pixels = rows[:, 1:].copy()
    # Sums of 2, 4, 8 ... rows: seven additions of the whole picture take half the time of 127 additions of a row.
    distance = 1
    while distance < size_px:
        pixels[distance:] += pixels[:-distance]
        distance *= 2
    return pixels.reshape(size_px, size_px, 3)


@lru_cache
def _head(side: int) -> bytes:
    """Signature and header of an 8-bit RGB PNG, not interlaced."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
