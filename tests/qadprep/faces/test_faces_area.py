"""Area means from tables of sums: torch's own area interpolation, bit for bit.

But for a result of a single pixel, which torch averages in another order; no detector asks for one.
"""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qadprep.faces import area
from qadprep.faces.area import resized, sums_of, windows

CPU = torch.device("cpu")


def noise(seed, height, width, count=1):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def by_torch(frame_rgb, height, width):
    image = torch.from_numpy(np.ascontiguousarray(frame_rgb)).permute(2, 0, 1)[None].float()
    return functional.interpolate(image, size=(height, width), mode="area")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(2, 70), st.integers(1, 70), st.integers(1, 3), st.integers(0, 9)
)
def test_whole_pictures_equal_torch_bit_for_bit(height, width, to_height, to_width, count, seed):
    """Shrunk and enlarged, one picture or several."""
    frames = noise(seed, height, width, count)
    found = resized(sums_of(frames, CPU), to_height, to_width)
    assert torch.equal(found, torch.cat([by_torch(frame, to_height, to_width) for frame in frames]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_windows_equal_torch_bit_for_bit(data):
    height, width, size = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80)), data.draw(st.integers(2, 60))
    frames = noise(data.draw(st.integers(0, 9)), height, width, 3)
    spots = []
    for _ in range(data.draw(st.integers(1, 5))):
        left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
        spots.append((data.draw(st.integers(0, 2)), left, top, right, bottom))
    table = torch.tensor(spots)
    found = windows(sums_of(frames, CPU), table[:, 0], table[:, 1:], size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for crop, (frame, left, top, right, bottom) in zip(found, spots, strict=True):
        assert torch.equal(crop[None], by_torch(frames[frame][top:bottom, left:right], size, size))


def test_no_windows_are_no_crops():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert windows(sums_of(noise(0, 9, 9), CPU), nothing, nothing.view(0, 4), 24).shape == (0, 3, 24, 24)


def test_pictures_whose_sums_do_not_fit_32_bits(monkeypatch):
    """The same from the table in float64, which takes over above 8.4 megapixels."""
    frames = noise(1, 40, 50, 2)
    usual = sums_of(frames, CPU)
    monkeypatch.setattr(area, "_INT32_MOST", 1000)
    wide = sums_of(frames, CPU)
    assert usual.dtype == torch.int32 and wide.dtype == torch.float64
    assert torch.equal(resized(usual, 7, 9), resized(wide, 7, 9))
    monkeypatch.undo()
    white = np.full((3000, 3000, 3), 255, np.uint8)
    sums = sums_of([white], CPU)
    assert sums.dtype == torch.float64 and sums[0, -1, -1, 0] == 3000 * 3000 * 255
    assert torch.equal(resized(sums, 3, 3), torch.full((1, 3, 3, 3), 255.0))
