"""The packets of a video file: which frame each one holds, and which of them must be decoded for some frames."""

import functools
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qadprep.video.bitstream import access_unit, is_hidden, is_progressive, nal_length_size
from qadprep.video.probe import CONTAINERS

# A damaged picture must be an error: concealment would hand out a smear.
EXPLODE = {"err_detect": "explode"}
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file", **EXPLODE}
_TABLES_KEPT = 4


@dataclass(frozen=True)
class PacketTable:
    """The packets of the first video stream in the order of the file, which is the order of decoding.

    Attributes:
        pts: time stamp of each packet, in the stream's units; None where the file has none.
        number: the frame that each packet holds, counted from 0 in display order; None for packets outside an edit
            list and pictures that are never shown. Meaningful only where `exact`.
        frames: how many packets hold a frame.
        droppable: no other picture needs this one.
        starts: decoding can begin here (IDR).
        exact: time stamps are there and unique, so they name the frames. Where not, frames can only be counted.
        error: why the packets could not be read to the end of the file; else None.
    """

    pts: tuple[int | None, ...]
    number: tuple[int | None, ...]
    frames: int
    droppable: tuple[bool, ...]
    starts: tuple[bool, ...]
    exact: bool
    error: str | None = None

    def without_leading(self) -> "PacketTable":
        """The table when the pictures shown before the first packet's are lost: a file cut inside an open GOP.

        No decoder can give them, so they are not frames; the first packet's picture becomes frame 0.
        """
        first = self.number[0] or 0
        numbers = tuple(None if n is None or n < first else n - first for n in self.number)
        return replace(self, number=numbers, frames=self.frames - first)

    def plan(self, needed: Collection[int]) -> list[bool]:
        """For each packet up to the last one that `needed` frames depend on: whether it is to be decoded.

        Between two starts all is left out behind the last needed frame, and elsewhere pictures nothing refers to.
        """
        holds = [number in needed for number in self.number]
        if not any(holds):
            return []
        last = len(holds) - 1 - holds[::-1].index(True)
        # The first packet always: x264's name stands in it, and the decoder works around the bugs of old versions.
        keep = [position == 0 or holds[position] or not self.droppable[position] for position in range(last + 1)]
        starts = [position for position in range(last + 1) if self.starts[position]]
        for begin, end in itertools.pairwise([0, *starts]):
            behind = next((place + 1 for place in range(end - 1, begin - 1, -1) if holds[place]), max(begin, 1))
            keep[behind:end] = [False] * (end - behind)
        return keep


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """The file as PyAV's container, closed at the end; only containers that hold a video themselves are opened.

    Raises:
        av.error.FFmpegError, OSError: it cannot be opened, or holds no video stream.
    """
    import av

    try:
        container = av.open(str(path), metadata_errors="replace", options=dict(_OPTIONS))
    except ValueError as error:
        raise error if isinstance(error, av.error.FFmpegError) else OSError(str(error)) from error
    with container:
        if not container.streams.video:
            raise OSError("holds no video stream")
        yield container


def packet_table(path: str | Path) -> PacketTable:
    """Read the heads of all packets of a file's first video stream; nothing is decoded. The last few are remembered.

    Raises:
        av.error.FFmpegError, OSError: as in `opened`. Damage behind the head is told by `error`.
    """
    status = Path(path).stat()
    return _packet_table(str(path), (status.st_ino, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=_TABLES_KEPT)
def _packet_table(path: str, stamp: tuple[int, int, int]) -> PacketTable:
    """The stamp makes a changed file another one."""
    import av

    pts: list[int | None] = []
    is_frame: list[bool] = []
    droppable: list[bool] = []
    starts: list[bool] = []
    error = None
    with opened(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        codec, extradata = (context.name, context.extradata) if context else ("", None)
        h264 = codec == "h264"
        length_size = nal_length_size(extradata)
        known = extradata or b""
        alike = True
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                data = memoryview(packet)
                if h264:
                    unit = access_unit(data, length_size)
                    if not pts:
                        known += b"".join(unit.parameters)
                    # Parameter sets that change midway might be missed by leaving packets out.
                    alike &= all(parameters in known for parameters in unit.parameters)
                    droppable.append(not unit.is_reference and not unit.parameters)
                    starts.append(unit.is_idr)
                pts.append(packet.pts)
                is_frame.append(not packet.is_discard and not is_hidden(codec, data))
        except (av.error.FFmpegError, OSError) as caught:
            error = str(getattr(caught, "strerror", None) or caught)
        # Two packets may hold the two fields of one frame.
        fields = h264 and not is_progressive(extradata if extradata else known)
        reorders = bool(context and context.has_b_frames)
        in_avi = container.format.name == "avi"
    if not h264 or fields or not alike:
        droppable = starts = [False] * len(pts)
    stamps = [stamp for stamp, frame in zip(pts, is_frame, strict=True) if frame]
    exact = not (fields or error or in_avi) and None not in stamps and len(set(stamps)) == len(stamps)
    # Some files tell the time of decoding in place of that of display; so does avi, which knows no other.
    exact = exact and not (reorders and stamps == sorted(stamps))
    rank = {stamp: place for place, stamp in enumerate(sorted(stamps))} if exact else {}
    numbers = tuple(rank[stamp] if frame and exact else None for stamp, frame in zip(pts, is_frame, strict=True))
    if numbers and numbers[0]:
        # Cut inside an open GOP: what the first pictures refer to is not there. Whether they come out must not
        # depend on which frames are wanted.
        droppable = starts = [False] * len(pts)
    return PacketTable(tuple(pts), numbers, len(stamps), tuple(droppable), tuple(starts), exact, error)
