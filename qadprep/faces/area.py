"""Area means of pictures and of windows in them, from a table of sums.

The same numbers, bit for bit, as `torch.nn.functional.interpolate(mode="area")`, which is how facenet-pytorch
resizes: the sums are whole numbers below 2^24 and so exact in both. From the table every mean costs four look-ups
however large its window is, and all windows of all frames are one operation; on the CPU that is five times as fast,
and the result of a window cannot depend on what else is in the call.
"""

import cv2
import numpy as np
import torch

_INT32_MOST = 2**31 - 1


def sums_of(frames_rgb: list[np.ndarray], device: torch.device) -> torch.Tensor:
    """Tables of sums of frames of one size.

    frames_rgb: uint8 (height, width, 3) each. Returns (n, height + 1, width + 1, 3) on the device: at (y, x) the sum
    of all pixels above and left of it. int32; float64 for pictures whose sums do not fit.
    """
    height, width = frames_rgb[0].shape[:2]
    if height * width * 255 > _INT32_MOST:
        return torch.from_numpy(np.stack([cv2.integral(frame, sdepth=cv2.CV_64F) for frame in frames_rgb])).to(device)
    if device.type == "cpu":
        return torch.from_numpy(np.stack([cv2.integral(frame) for frame in frames_rgb]))
    frames = torch.from_numpy(np.stack(frames_rgb)).to(device)
    sums = frames.new_zeros(len(frames), height + 1, width + 1, 3, dtype=torch.int32)
    sums[:, 1:, 1:] = frames.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return sums


def resized(sums: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Whole pictures: float32 (n, 3, height, width), 0..255, channels last in memory."""
    device = sums.device
    top, bottom = _edges(torch.tensor([sums.shape[1] - 1], device=device), height)
    left, right = _edges(torch.tensor([sums.shape[2] - 1], device=device), width)
    rows = sums.index_select(1, bottom[0]) - sums.index_select(1, top[0])
    total = rows.index_select(2, right[0]) - rows.index_select(2, left[0])
    return _mean(total, (bottom - top)[:, :, None], (right - left)[:, None, :])


def windows(sums: torch.Tensor, frame: torch.Tensor, window_xyxy: torch.Tensor, size_px: int) -> torch.Tensor:
    """Windows of the pictures: float32 (m, 3, size_px, size_px), 0..255, channels last in memory.

    frame: int64 (m,), which picture. window_xyxy: int64 (m, 4), left, top, right, bottom in whole pixels, inside the
    picture and with an area.
    """
    left, top, right, bottom = window_xyxy.unbind(1)
    row_start, row_end = _edges(bottom - top, size_px)
    column_start, column_end = _edges(right - left, size_px)
    _, height, width, channels = sums.shape
    flat = sums.view(-1, channels)
    base = (frame * height + top)[:, None]
    above, below = ((base + row)[:, :, None] * width for row in (row_start, row_end))
    before, behind = ((left[:, None] + column)[:, None, :] for column in (column_start, column_end))

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        spots = (row + column).reshape(-1)
        return flat.index_select(0, spots).view(len(frame), size_px, size_px, channels)

    total = at(below, behind) - at(above, behind) - at(below, before) + at(above, before)
    return _mean(total, (row_end - row_start)[:, :, None], (column_end - column_start)[:, None, :])


def _edges(length: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Start and end, int64 (m, parts), of the pixels that each of `parts` equal shares of a length touches."""
    part = torch.arange(parts, device=length.device)
    return part * length[:, None] // parts, -(-(part + 1) * length[:, None] // parts)


def _mean(total: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    # Two divisions, as torch does it: one by the product would round differently.
    return (total.float() / rows[..., None] / columns[..., None]).permute(0, 3, 1, 2)
