"""Frames at the size a detector wants."""

import cv2
import numpy as np
import pytest

from qadprep.faces.prepared import Shrink


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_large_frame_is_shrunk_by_area_mean():
    frame = np.repeat(np.repeat(noise(30, 64), 10, axis=0), 10, axis=1)
    picture = Shrink(64)(frame)
    assert np.array_equal(picture.small_rgb, noise(30, 64))
    assert picture.size_wh == (640, 300) and picture.full_rgb is None
    assert len(picture.arrays) == 1


def test_the_full_frame_is_kept_where_it_was_shrunk():
    frame = noise(100, 200)
    picture = Shrink(50, keep_full=True)(frame)
    assert picture.full_rgb is frame and picture.small_rgb.shape == (25, 50, 3)
    assert [array.shape for array in picture.arrays] == [(25, 50, 3), (100, 200, 3)]
    small = Shrink(200, keep_full=True)(frame)
    assert small.full_rgb is None and np.array_equal(small.small_rgb, frame)


@pytest.mark.parametrize(
    ("size_wh", "small_wh"),
    [((1283, 719), (640, 359)), ((10000, 3), (640, 1)), ((3, 10000), (1, 640)), ((641, 641), (640, 640))],
)
def test_sizes_are_rounded_and_keep_a_pixel(size_wh, small_wh):
    assert Shrink(640)(noise(*size_wh[::-1])).small_rgb.shape == (*small_wh[::-1], 3)


def test_bilinear_both_ways_for_detectors_of_one_size():
    up, down = Shrink(192, enlarge=True)(noise(48, 96)), Shrink(192, enlarge=True)(noise(172, 512))
    assert np.array_equal(up.small_rgb, cv2.resize(noise(48, 96), (192, 96), interpolation=cv2.INTER_LINEAR))
    assert down.small_rgb.shape == (64, 192, 3)  # 64.5 goes to the even 64
    assert Shrink(192, enlarge=True)(noise(1, 2000)).small_rgb.size == 0


def test_a_view_becomes_contiguous_before_it_is_handed_on():
    picture = Shrink(640)(noise(40, 30)[:, ::-1])
    assert picture.small_rgb.flags["C_CONTIGUOUS"]
    assert np.array_equal(picture.small_rgb, noise(40, 30)[:, ::-1])
