"""The decoder for the PNGs that extract writes: it agrees with OpenCV, or leaves the file to it."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.codecs import decode_image, encode_image
from qadprep.png import decode_up


def picture(seed: int, side: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(0, 255, (3, 3, 3)), (side, side), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows: bytes, side: int, *, between: bytes = b"", header: tuple[int, ...] = (8, 2, 0, 0, 0)) -> bytes:
    head = chunk(b"IHDR", struct.pack(">II", side, side) + bytes(header))
    return b"\x89PNG\r\n\x1a\n" + head + between + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@given(st.integers(0, 2**32), st.integers(2, 70))
def test_pixels_are_those_that_went_in_and_opencv_agrees(seed, side):
    image = picture(seed, side)
    data = encode_image(image, "png")
    for form in (data, memoryview(data)):
        decoded = decode_up(form, side)
        assert decoded is not None and decoded.dtype == np.uint8 and np.array_equal(decoded, image)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), image)
    assert decoded.flags.writeable and decoded.flags.c_contiguous


def test_a_picture_of_several_parts():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    data = encode_image(image, "png")
    assert data.count(b"IDAT") > 1 and np.array_equal(decode_up(data, 128), image)


@pytest.mark.parametrize(
    "change",
    [cv2.IMWRITE_PNG_FILTER_SUB, cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_FILTER_PAETH, cv2.IMWRITE_PNG_ALL_FILTERS],
)
def test_other_filters_are_left_to_opencv(change):
    image = picture(1, 32)
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, change]
    data = cv2.imencode(".png", image[:, :, ::-1], flags)[1].tobytes()
    assert decode_up(data, 32) is None
    assert np.array_equal(decode_image(data, 32), image)


def test_other_kinds_of_png_and_other_files_are_not_taken():
    image = picture(2, 8)
    rows = b"".join(b"\2" + row.tobytes() for row in np.diff(image.reshape(8, 24), axis=0, prepend=np.uint8(0)))
    whole = png(rows, 8)
    assert np.array_equal(decode_up(whole, 8), image)
    assert decode_up(whole, 9) is None  # another size
    assert decode_up(png(rows, 8, between=chunk(b"gAMA", bytes(4))), 8) is None
    assert decode_up(png(rows, 8, header=(8, 2, 0, 0, 1)), 8) is None  # interlaced
    assert decode_up(png(rows + b"\2", 8), 8) is None  # more pixels than the header says
    assert decode_up(png(rows[:-1], 8), 8) is None
    assert decode_up(whole + b"x", 8) is None
    assert decode_up(b"", 8) is None
    bomb = png(bytes(50_000_000), 8)
    assert decode_up(bomb, 8) is None


def test_no_damaged_byte_gives_other_pixels():
    image = picture(3, 16)
    data = encode_image(image, "png")
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        assert decode_up(bytes(damaged), 16) is None
        assert decode_up(data[:place], 16) is None
