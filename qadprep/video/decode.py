"""Exact frames by index. Only what the wanted frames need is decoded, and each one is known by its time stamp."""

import contextlib
import errno
import itertools
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qadprep.video.decoded import THUMB_HEIGHT, THUMB_WIDTH, Converter, Decoded, DecodedFrame, thumbnail_of
from qadprep.video.ffmpeg import FfmpegError
from qadprep.video.packets import EXPLODE, PacketTable, opened, packet_table
from qadprep.video.probe import VideoInfo

__all__ = [
    "THUMB_HEIGHT",
    "THUMB_WIDTH",
    "Decoded",
    "FrameReader",
    "check_indices",
    "decode_at",
    "iter_frames",
    "thumbnail_of",
]

# Errors of the machine, which say nothing about the file.
_NOT_THE_FILE = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class _PassError(Exception):
    """The pass ends here; the message says why."""


class _LeadingLostError(Exception):
    """The first picture to come out is that of the first packet, though others should be shown before it."""


class FrameReader:
    """Decodes the frames at `indices` of one file, in rising order, in one pass that stops after the last index.

    Args:
        path: video file.
        info: its probe; gives the picture size.
        indices: frame numbers from 0, counted in display order, strictly rising.
        thumbs_at: frame numbers that also get a 160x90 luminance thumbnail; those outside the file are left out.
        threads: decoder threads for H.264 in mp4 and mkv; others have one. The output does not depend on it.

    Iterating yields `Decoded`, and raises FfmpegError when there was no memory, disk or file handle left: that says
    nothing about the file. After the iteration `thumbnails` maps frame index -> uint8 (90, 160).
    A damaged picture ends the pass. Frames that could not be given are not yielded: `missing` lists them, `error`
    says why. `packets_read` and `frames_decoded` count what was read and what was given to the decoder.
    Used as a context manager it leaves no file open, whatever happens.
    """

    def __init__(
        self,
        path: str | Path,
        info: VideoInfo,
        indices: Sequence[int],
        *,
        thumbs_at: Collection[int] = (),
        threads: int = 1,
    ) -> None:
        self.path, self.info = Path(path), info
        self.indices = check_indices(indices)
        self.thumbs_at = frozenset(int(index) for index in thumbs_at if index >= 0)
        self.threads = threads
        self._iteration: Iterator[Decoded] | None = None
        self._reset()

    def _reset(self) -> None:
        self.thumbnails: dict[int, np.ndarray] = {}
        self.missing: list[int] = []
        self.error: str | None = None
        self.packets_read = self.frames_decoded = 0
        self._done = 0  # how many of the indices were given
        self._converter: Converter | None = None

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._iteration is not None:
            self._iteration.close()

    def __iter__(self) -> Iterator[Decoded]:
        if self._iteration is not None:
            self._iteration.close()
        self._iteration = self._iterate()
        return self._iteration

    def _iterate(self) -> Iterator[Decoded]:
        self._reset()
        with self._errors():
            table = packet_table(self.path)
            try:
                try:
                    yield from self._pass(table, self.threads)
                except _LeadingLostError:
                    table = table.without_leading()
                    yield from self._pass(table, self.threads)
            except _PassError:
                if self.threads == 1:
                    raise
                # Several threads run ahead of the damage and take good frames with them: these are fetched alone.
                yield from self._pass(table, 1)
            if self._done < len(self.indices):
                missing = self.indices[self._done]
                raise _PassError(table.error or f"there is no frame {missing}, the file ends before it")
        self.missing = self.indices[self._done :]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Let an error end the iteration, unless it says nothing about the file."""
        import av

        try:
            yield
        except _PassError as error:
            self.error = str(error)
        except (av.error.FFmpegError, OSError, MemoryError) as error:
            # PyAV's errors carry FFmpeg's number; so do those of a full disk or memory.
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_THE_FILE:
                raise FfmpegError(f"{self.path}: decoding failed ({_words(error)})") from error
            self.error = _words(error)

    def _pass(self, table: PacketTable, threads: int) -> Iterator[Decoded]:
        """Decode what is needed behind the frames that are done already."""
        wanted = set(self.indices[self._done :])
        thumbs = {index for index in self.thumbs_at - self.thumbnails.keys() if index < table.frames}
        if not (needed := wanted | thumbs):
            return
        with contextlib.closing(self._numbered(table, needed, threads)) as numbered:
            for index, frame in numbered:
                if frame.is_corrupt:
                    raise _PassError(f"frame {index} is damaged")
                if index not in needed:
                    continue
                decoded = DecodedFrame(index, frame, self._converter_for(frame, index))
                if index in thumbs:
                    self.thumbnails[index] = decoded.thumbnail
                if index in wanted:
                    self._done += 1
                    yield decoded

    def _numbered(self, table: PacketTable, needed: set[int], threads: int) -> Iterator[tuple[int, Any]]:
        """(frame number, PyAV's frame) of what comes out of the decoder, rising, up to the last needed one."""
        if not table.exact:
            final = max(needed)
            with contextlib.closing(self._decoded(table, None, threads)) as frames:
                for index, frame in enumerate(frames):
                    yield index, frame
                    if index == final:
                        return
            return
        plan = table.plan(needed)
        numbers = ((number, pts) for number, pts, kept in zip(table.number, table.pts, plan, strict=False) if kept)
        expected = iter(sorted((number, pts) for number, pts in numbers if number is not None))
        first = True
        with contextlib.closing(self._decoded(table, plan, threads)) as frames:
            for frame in frames:
                index, pts = next(expected, (None, None))
                if frame.pts != pts or index is None:
                    if first and table.number[0] and frame.pts == table.pts[0]:
                        raise _LeadingLostError
                    raise _PassError(
                        "more frames came out of the decoder than the file holds"
                        if index is None
                        else f"frame {index} did not come out of the decoder"
                    )
                first = False
                yield index, frame
        if (lost := next(expected, None)) is not None:
            raise _PassError(f"frame {lost[0]} did not come out of the decoder")

    def _decoded(self, table: PacketTable, plan: list[bool] | None, threads: int) -> Iterator[Any]:
        """The frames of the planned packets (None: all) in display order."""
        import av

        with opened(self.path) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise _PassError("there is no decoder for it")
            context.options = EXPLODE
            # Other codecs, and streams that can lose packets on their way, decode damage in another way each time
            # when several threads are at work.
            alike = context.name == "h264" and container.format.name.startswith(("mov", "matroska"))
            context.thread_count = threads if alike else 1
            context.thread_type = "AUTO" if context.thread_count > 1 else "SLICE"
            count = len(table.pts) if plan is None else len(plan)
            place, cut_off = -1, None
            for packet in container.demux(stream) if count else ():
                if not packet.size:
                    continue
                place += 1
                self.packets_read += 1
                if place >= len(table.pts) or packet.pts != table.pts[place]:
                    raise _PassError("the file changed while it was read")
                if plan is None or plan[place]:
                    if packet.is_corrupt:
                        cut_off = f"packet {place} is cut off or damaged"
                        break
                    self.frames_decoded += 1
                    try:
                        frames = context.decode(packet)
                    except av.error.FFmpegError as error:
                        _raise_unless_damage(error)
                        raise _PassError(f"packet {place} could not be decoded ({_words(error)})") from error
                    yield from frames
                if place == count - 1:
                    break
            try:
                frames = context.decode(None) if count else []
            except av.error.FFmpegError as error:
                _raise_unless_damage(error)
                raise _PassError(f"the last packets could not be decoded ({_words(error)})") from error
            yield from frames
            if cut_off:
                raise _PassError(cut_off)

    def _converter_for(self, frame: Any, index: int) -> Converter:
        if self._converter is None:
            self._converter = Converter(_display_matrix(frame))
        turn = self._converter.turn
        size = (frame.height, frame.width) if turn and turn[0] else (frame.width, frame.height)
        if size != (self.info.width, self.info.height):
            raise _PassError(f"frame {index} is {size[0]}x{size[1]}, expected {self.info.width}x{self.info.height}")
        return self._converter


def check_indices(indices: Sequence[int]) -> list[int]:
    """The indices as a list.

    Raises:
        ValueError: they are empty, negative, or not strictly rising.
    """
    indices = [int(index) for index in indices]
    if not indices or any(b <= a for a, b in itertools.pairwise(indices)):
        raise ValueError(f"indices must be strictly rising and not empty, got {indices[:8]}")
    if indices[0] < 0:
        raise ValueError(f"indices must not be negative, got {indices[0]}")
    return indices


def decode_at(path: str | Path, info: VideoInfo, indices: Sequence[int]) -> np.ndarray:
    """The frames at `indices` as one array: uint8 (len(indices), height, width, 3), RGB.

    Raises:
        FfmpegError: a frame could not be decoded; the message names the file and the first missing index.
    """
    with FrameReader(path, info, indices) as reader:
        frames = [decoded.rgb for decoded in reader]
    if reader.missing:
        raise FfmpegError(f"{path}: frame {reader.missing[0]} could not be decoded ({reader.error})")
    return np.stack(frames)


def iter_frames(path: str | Path, info: VideoInfo) -> Iterator[np.ndarray]:
    """Every frame of a file in order, uint8 (height, width, 3), RGB; stops early where decoding fails."""
    with FrameReader(path, info, range(info.frames)) as reader:
        for decoded in reader:
            yield decoded.rgb


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    try:
        data = bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return None
    return struct.unpack("=9i", data[:36]) if len(data) >= 36 else None


def _raise_unless_damage(error: Exception) -> None:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NOT_THE_FILE:
        raise error


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
