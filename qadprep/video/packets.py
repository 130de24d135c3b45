"""The packets of a video file: which frame each one holds, and which of them must be decoded for some frames."""

import itertools
from collections import OrderedDict
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
# Of a group of FF++ and its masks, and some more; about 0.1 MB each.
_TABLES_KEPT = 32
_tables: OrderedDict[tuple[str, int, int, int], "PacketTable"] = OrderedDict()


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
    """The heads of all packets of a file's first video stream; nothing is decoded. The last ones are remembered.

    Raises:
        av.error.FFmpegError, OSError: as in `opened`. Damage behind the head is told by `error`.
    """
    import av

    key = _stamped(path)
    if key not in _tables:
        with opened(path) as container:
            reading = TableReading(container)
            try:
                for packet in container.demux(reading.stream):
                    reading.add(packet)
            except (av.error.FFmpegError, OSError) as caught:
                reading.error = str(getattr(caught, "strerror", None) or caught)
        table = reading.table()
        remember(path, table)
        return table
    _tables.move_to_end(key)
    return _tables[key]


def remember(path: str | Path, table: PacketTable) -> None:
    """Keep a table that was read on the way, so that the file's packets are not read once more for it."""
    _tables[_stamped(path)] = table
    while len(_tables) > _TABLES_KEPT:
        _tables.popitem(last=False)


def _stamped(path: str | Path) -> tuple[str, int, int, int]:
    """The stamp makes a changed file another one."""
    status = Path(path).stat()
    return str(path), status.st_ino, status.st_mtime_ns, status.st_size


class TableReading:
    """A packet table in the making; `add` takes every packet that the first video stream's demuxer gives."""

    def __init__(self, container: Any) -> None:
        self.stream = container.streams.video[0]
        self.error: str | None = None
        self._in_avi = container.format.name == "avi"
        self._context = self.stream.codec_context
        self._codec, self._extradata = (self._context.name, self._context.extradata) if self._context else ("", None)
        self._length_size = nal_length_size(self._extradata)
        self._known = self._extradata or b""
        self._alike = True
        self._pts: list[int | None] = []
        self._is_frame: list[bool] = []
        self._droppable: list[bool] = []
        self._starts: list[bool] = []

    def add(self, packet: Any) -> bool:
        """Take a packet; whether it holds a frame.

        The last one that a demuxer yields is an empty flush marker. A packet outside an edit list is marked
        `is_discard`: no player and no ffmpeg run shows it, so it is not a frame.
        """
        if not packet.size:
            return False
        data = memoryview(packet)
        if self._codec == "h264":
            unit = access_unit(data, self._length_size)
            if not self._pts:
                self._known += b"".join(unit.parameters)
            # Parameter sets that change midway might be missed by leaving packets out.
            self._alike &= all(parameters in self._known for parameters in unit.parameters)
            self._droppable.append(not unit.is_reference and not unit.parameters)
            self._starts.append(unit.is_idr)
        self._pts.append(packet.pts)
        self._is_frame.append(not packet.is_discard and not is_hidden(self._codec, data))
        return self._is_frame[-1]

    def table(self) -> PacketTable:
        """What the packets come to."""
        pts, is_frame, droppable, starts = self._pts, self._is_frame, self._droppable, self._starts
        h264 = self._codec == "h264"
        # Two packets may hold the two fields of one frame.
        fields = h264 and not is_progressive(self._extradata if self._extradata else self._known)
        reorders = bool(self._context and self._context.has_b_frames)
        if not h264 or fields or not self._alike:
            droppable = starts = [False] * len(pts)
        stamps = [stamp for stamp, frame in zip(pts, is_frame, strict=True) if frame]
        exact = not (fields or self.error or self._in_avi) and None not in stamps and len(set(stamps)) == len(stamps)
        # Some files tell the time of decoding in place of that of display; so does avi, which knows no other.
        exact = exact and not (reorders and stamps == sorted(stamps))
        rank = {stamp: place for place, stamp in enumerate(sorted(stamps))} if exact else {}
        numbers = tuple(rank[stamp] if frame and exact else None for stamp, frame in zip(pts, is_frame, strict=True))
        if numbers and numbers[0]:
            # Cut inside an open GOP: what the first pictures refer to is not there. Whether they come out must not
            # depend on which frames are wanted.
            droppable = starts = [False] * len(pts)
        return PacketTable(tuple(pts), numbers, len(stamps), tuple(droppable), tuple(starts), exact, self.error)
