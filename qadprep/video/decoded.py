"""One decoded frame and its pixels: RGB, a part of it, luminance and thumbnail, each made when it is asked for."""

import re
from typing import Any

import cv2
import numpy as np

THUMB_WIDTH, THUMB_HEIGHT = 160, 90

_PLANAR_Y = re.compile(r"(?:yuva?|yuvj)4\d\dp(9|1[0246])?(?:le)?|nv(?:12|21|16|24|42)")
_PLANAR_RGB = re.compile(r"gbra?p(9|1[0246])?(?:le)?")
# Formats of which a part converts to the same pixels as the whole: (pixels of a chroma sample, margin in pixels).
_PARTS = {
    "yuv444p": ((1, 1), 0),
    "yuvj444p": ((1, 1), 0),
    "yuv422p": ((2, 1), 16),
    "yuvj422p": ((2, 1), 16),
    "yuv420p": ((2, 2), 16),
    "yuvj420p": ((2, 2), 16),
}
_STEP = 32  # parts are rounded up to it, so that swscale's tables can be used again
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG


class Decoded:
    """One decoded frame, frame `index` of its file. Independent of its reader: it can be kept."""

    def __init__(self, index: int, rgb: np.ndarray | None = None) -> None:
        self.index = index
        self._rgb = rgb

    @property
    def rgb(self) -> np.ndarray:
        """The whole picture as it is shown: uint8 (height, width, 3), RGB."""
        return self._rgb

    def rgb_within(self, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
        """Like `rgb`, of the same size, but only the pixels inside the box are promised; the others are undefined.

        Args:
            box_xyxy: left, top, right, bottom in pixels, right and bottom exclusive; clipped to the picture.
        """
        return self.rgb

    @property
    def luma(self) -> np.ndarray:
        """Luminance of the whole picture: uint8 (height, width), 0..255 at every quality and pixel format."""
        return cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY)

    @property
    def thumbnail(self) -> np.ndarray:
        """Small luminance, uint8 (90, 160)."""
        return cv2.cvtColor(thumbnail_of(self.rgb), cv2.COLOR_RGB2GRAY)


def thumbnail_of(luma: np.ndarray) -> np.ndarray:
    """A luminance picture, uint8 (height, width), at thumbnail size: uint8 (90, 160)."""
    return cv2.resize(luma, (THUMB_WIDTH, THUMB_HEIGHT), interpolation=cv2.INTER_AREA)


class DecodedFrame(Decoded):
    """A frame of a video, as the decoder gave it; converted by the reader's `Converter`."""

    def __init__(self, index: int, frame: Any, converter: "Converter") -> None:
        super().__init__(index)
        self._frame, self._converter = frame, converter

    @property
    def rgb(self) -> np.ndarray:
        if self._rgb is None:
            self._rgb = self._converter.turned(self._converter.rgb(self._frame))
        return self._rgb

    def rgb_within(self, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
        if self._rgb is not None or self._converter.turn is not None:
            return self.rgb
        part = self._converter.rgb_within(self._frame, box_xyxy)
        return self.rgb if part is None else part

    @property
    def luma(self) -> np.ndarray:
        return self._converter.turned(self._converter.luma(self._frame))

    @property
    def thumbnail(self) -> np.ndarray:
        if self._converter.turn is not None:
            return thumbnail_of(self.luma)
        return self._converter.thumbnail(self._frame)


class Converter:
    """Makes pixels of the frames of one file, the same on every machine and as the ffmpeg program makes them.

    Args:
        display_matrix: the nine numbers of the container's display matrix, or None: how the picture is turned.
    """

    def __init__(self, display_matrix: tuple[int, ...] | None = None) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.turn = turn_of(display_matrix)
        # The flags of `SWS_FLAGS`.
        self._flags = (
            Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
        )
        self._whole, self._part = VideoReformatter(), VideoReformatter()
        self._bare_whole: Any = None
        self._bare_part: Any = None

    def turned(self, picture: np.ndarray) -> np.ndarray:
        """A picture, (height, width) or (height, width, channels), turned for display; contiguous."""
        if self.turn is None:
            return picture
        transpose, rows, columns = self.turn
        if transpose:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[::rows, ::columns])

    def rgb(self, frame: Any) -> np.ndarray:
        """uint8 (height, width, 3), RGB, not turned."""
        if frame.format.name == "gbrp" and (planes := _planes(frame, np.uint8)):
            return cv2.merge([planes[2], planes[0], planes[1]])
        rows = _rows(frame) if _is_subsampled(frame) else None
        if not rows:
            return np.ascontiguousarray(self._to_rgb(frame, self._whole))
        # Without the tag that tells where chroma samples lie: the ffmpeg program does not look at it either.
        bare = self._bare_whole = _bare(frame, (frame.width, frame.height), self._bare_whole)
        for source, target in zip(rows, _rows(bare), strict=True):
            length = min(source.shape[1], target.shape[1])
            target[:, :length] = source[:, :length]
        return np.ascontiguousarray(self._to_rgb(bare, self._whole))

    def rgb_within(self, frame: Any, box_xyxy: tuple[int, int, int, int]) -> np.ndarray | None:
        """As `rgb`, right inside the box only; None where only the whole can be converted."""
        height, width = frame.height, frame.width
        left, top, right, bottom = _clipped(box_xyxy, width, height)
        if left >= right or top >= bottom:
            return np.empty((height, width, 3), np.uint8)
        name = frame.format.name
        if name == "gbrp" and (planes := _planes(frame, np.uint8)):
            result = np.empty((height, width, 3), np.uint8)
            parts = [planes[place][top:bottom, left:right] for place in (2, 0, 1)]
            result[top:bottom, left:right] = cv2.merge(parts).reshape(bottom - top, right - left, 3)
            return result
        (across, down), margin = _PARTS.get(name, ((0, 0), 0))
        # Of an odd size the steps of swscale's chroma filter are not exactly one half.
        planes = _planes(frame, np.uint8) if across and not (width % across or height % down) else None
        if not planes:
            return None
        x0, x1 = _stretch(left, right, margin, width)
        y0, y1 = _stretch(top, bottom, margin, height)
        part = self._bare_part = _bare(frame, (x1 - x0, y1 - y0), self._bare_part)
        for place, (source, target) in enumerate(zip(planes, _planes(part, np.uint8), strict=True)):
            dx, dy = (across, down) if place else (1, 1)
            target[:] = source[y0 // dy : y1 // dy, x0 // dx : x1 // dx]
        result = np.empty((height, width, 3), np.uint8)
        result[top:bottom, left:right] = self._to_rgb(part, self._part)[top - y0 : bottom - y0, left - x0 : right - x0]
        return result

    def luma(self, frame: Any) -> np.ndarray:
        """uint8 (height, width), full range, not turned."""
        bits = _bits(_PLANAR_Y, frame)
        planes = _planes(frame, np.uint8 if bits == 8 else np.uint16, count=1) if bits else None
        if not planes:
            return cv2.cvtColor(self.rgb(frame), cv2.COLOR_RGB2GRAY)
        if bits == 8:
            return planes[0].copy() if _is_full(frame) else cv2.LUT(planes[0], _LIMITED)
        return np.take(_eight_bits(np.arange(2**bits), bits, _is_full(frame)), planes[0], mode="clip")

    def thumbnail(self, frame: Any) -> np.ndarray:
        """uint8 (90, 160) luminance, not turned. Planes are made small first: that costs least."""
        if bits := _bits(_PLANAR_Y, frame):
            planes = _planes(frame, np.uint8 if bits == 8 else np.uint16, count=1)
            if planes:
                small = thumbnail_of(planes[0])
                if bits > 8:
                    return _eight_bits(small, bits, _is_full(frame))
                return small if _is_full(frame) else cv2.LUT(small, _LIMITED)
        elif bits := _bits(_PLANAR_RGB, frame):
            planes = _planes(frame, np.uint8 if bits == 8 else np.uint16, count=3)
            if planes:
                small = [thumbnail_of(planes[place]) for place in (2, 0, 1)]
                if bits > 8:
                    small = [_eight_bits(plane, bits, True) for plane in small]
                return cv2.cvtColor(cv2.merge(small), cv2.COLOR_RGB2GRAY)
        return cv2.cvtColor(thumbnail_of(self.rgb(frame)), cv2.COLOR_RGB2GRAY)

    def _to_rgb(self, frame: Any, reformatter: Any) -> np.ndarray:
        """By swscale; the rows may have filling between them."""
        converted = reformatter.reformat(frame, format="rgb24", interpolation=self._flags, threads=1)
        plane = converted.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(converted.height, plane.line_size)
        return rows[:, : 3 * converted.width].reshape(converted.height, converted.width, 3)


def turn_of(display_matrix: tuple[int, ...] | None) -> tuple[bool, int, int] | None:
    """(whether rows and columns change places, step over the rows, step over the columns); None for no change.

    Right angles and mirrored pictures, as the ffmpeg program turns them; other angles are not obeyed.
    """
    if display_matrix is None:
        return None
    a, b, _, c, d = display_matrix[:5]
    size = max(abs(value) for value in (a, b, c, d))
    if not size or min(max(abs(a), abs(d)), max(abs(b), abs(c))) > size / 50:
        return None
    if abs(b) > abs(a):
        turn = True, 1 if b > 0 else -1, 1 if c > 0 else -1
    else:
        turn = False, 1 if d > 0 else -1, 1 if a > 0 else -1
    return None if turn == (False, 1, 1) else turn


def _bare(frame: Any, size_px: tuple[int, int], old: Any) -> Any:
    """A frame of the same format, matrix and range, of (width, height), with undefined pixels; `old` if it fits."""
    from av import VideoFrame

    fits = old is not None and (old.width, old.height, old.format.name) == (*size_px, frame.format.name)
    bare = old if fits else VideoFrame(*size_px, frame.format.name)
    bare.colorspace, bare.color_range = frame.colorspace, frame.color_range
    return bare


def _is_subsampled(frame: Any) -> bool:
    return any(part.width != frame.width or part.height != frame.height for part in frame.format.components)


def _planes(frame: Any, dtype: type, count: int | None = None) -> list[np.ndarray] | None:
    """Views of a frame's planes, (height, width) each; None where rows run upwards."""
    views = []
    for plane in frame.planes[:count]:
        if plane.line_size <= 0:
            return None
        rows = np.frombuffer(plane, dtype).reshape(plane.height, -1)
        views.append(rows[:, : plane.width])
    return views


def _rows(frame: Any) -> list[np.ndarray] | None:
    """Views of a frame's planes as bytes with the filling at the end of the rows; None where rows run upwards."""
    if any(plane.line_size <= 0 for plane in frame.planes):
        return None
    return [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]


def _bits(pattern: re.Pattern[str], frame: Any) -> int:
    match = pattern.fullmatch(frame.format.name)
    return int(next((group for group in match.groups() if group), 8)) if match else 0


def _is_full(frame: Any) -> bool:
    return frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")


def _eight_bits(values: np.ndarray, bits: int, is_full: bool) -> np.ndarray:
    """Samples of more than 8 bits as uint8, 0..255."""
    scale = 255 / (2**bits - 1) if is_full else 255 / (219 << (bits - 8))
    low = 0 if is_full else 16 << (bits - 8)
    return np.clip(np.rint((values.astype(np.float32) - low) * scale), 0, 255).astype(np.uint8)


_LIMITED = _eight_bits(np.arange(256), 8, is_full=False)


def _clipped(box_xyxy: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = (int(value) for value in box_xyxy)
    return max(0, left), max(0, top), min(width, right), min(height, bottom)


def _stretch(low: int, high: int, margin: int, size: int) -> tuple[int, int]:
    """Widen low..high by the margin, to even ends and a multiple of a step, inside 0..size."""
    low = max(0, low - margin) & ~1
    length = -(-(min(size, high + margin) - low) // _STEP) * _STEP
    if low + length > size:
        low = max(0, size - length) & ~1
        length = size - low
    return low, low + length
