"""Lossless codecs of the crops in a shard: PNG, lossless WebP, and plain arrays (`raw`, NumPy files).

Every decoder checks kind and size in the file's first bytes before anything is allocated. JPEG is not there: it would
write over the traces that are studied.
"""

import hashlib

import numpy as np

from qadprep.crops import encode_png
from qadprep.png import decode_up
from qadprep.shard_format import MAX_SIDE_PX

# OpenCV takes any quality over 100 as lossless.
_WEBP_LOSSLESS = 101


def encode_image(image_rgb: np.ndarray, codec: str) -> bytes:
    """One crop as a file.

    Args:
        image_rgb: uint8 (size_px, size_px, 3), RGB.
        codec: `png`, `webp` or `raw`.

    Raises:
        ValueError: another type or shape, an unknown codec, or an encoder that failed.
    """
    if codec == "png":
        return encode_png(image_rgb)
    height, width = image_rgb.shape[:2]
    if image_rgb.dtype != np.uint8 or image_rgb.shape != (height, height, 3) or height != width:
        raise ValueError(f"a crop must be uint8 (side, side, 3) RGB, got {image_rgb.dtype} {image_rgb.shape}")
    if codec == "raw":
        return npy_header(height) + np.ascontiguousarray(image_rgb).tobytes()
    if codec != "webp":
        raise ValueError(f"unknown codec {codec!r}; expected png, webp or raw")
    import cv2

    done, data = cv2.imencode(
        ".webp", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, _WEBP_LOSSLESS]
    )
    if not done:
        raise ValueError(f"WebP encoding failed for a picture of shape {image_rgb.shape}")
    return data.tobytes()


def decode_image(data: "bytes | memoryview", size_px: int, codec: str = "png") -> np.ndarray:
    """Decode one crop.

    Args:
        data: the file.
        size_px: the side it must have; checked in the file's header before anything is decoded.
        codec: `png`, `webp` or `raw`.

    Returns:
        uint8 (size_px, size_px, 3), RGB. Of `raw` a read-only view of `data`.

    Raises:
        ValueError: another kind of file, another size, or damaged.
    """
    if not 0 < size_px <= MAX_SIDE_PX:
        raise ValueError(f"side of {size_px} px, expected 1 to {MAX_SIDE_PX}")
    if codec == "raw":
        header = npy_header(size_px)
        if len(data) != len(header) + size_px * size_px * 3 or data[: len(header)] != header:
            raise ValueError(f"not a NumPy file of uint8 ({size_px}, {size_px}, 3)")
        return np.frombuffer(data, np.uint8, offset=len(header)).reshape(size_px, size_px, 3)
    size = {"png": _png_size, "webp": _webp_size}[codec](data)
    if size != (size_px, size_px):
        raise ValueError(f"picture is {size[0]}x{size[1]}, expected {size_px}x{size_px}")
    if codec == "png" and (image := decode_up(data, size_px)) is not None:
        return image
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None or image.shape != (size_px, size_px, 3):
        raise ValueError(f"damaged {codec.upper()} file")
    return image


def npy_header(side: int) -> bytes:
    """The first bytes of the NumPy file (format 1.0) of a uint8 array (side, side, 3); never parsed, only compared."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({side}, {side}, 3), }}"
    # NumPy fills up to a multiple of 64 bytes, magic, version and length included.
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def pixel_hash(image_rgb: np.ndarray) -> str:
    """sha256 (hex) of the decoded pixels with their shape: stays the same when a crop is recoded without loss."""
    digest = hashlib.sha256(f"{image_rgb.shape}{image_rgb.dtype}".encode())
    digest.update(np.ascontiguousarray(image_rgb).data)
    return digest.hexdigest()


def _png_size(data: bytes) -> tuple[int, int]:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise ValueError("not a PNG file")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of a file with one lossless picture and nothing else: no animation, no lossy stream."""
    if len(data) < 25 or data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or data[20] != 0x2F:
        raise ValueError("not a lossless WebP file")
    if int.from_bytes(data[4:8], "little") + 8 != len(data):
        raise ValueError("WebP file cut short or with bytes after its end")
    bits = int.from_bytes(data[21:25], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
