"""The chapter of the report that shows crops: contact sheets of tuples, and recordings over their methods."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from qadprep.report_columns import IndexColumns
from qadprep.report_section import Picture, Section, Tabs
from qadprep.shardset import ShardError
from qadprep.sheets import (
    DIFFERENCE_GAIN,
    Recording,
    alteration_sheet,
    choose_recordings,
    choose_rows,
    recording_sheet,
    stacked,
    tuple_sheet,
)
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.shardset import ShardSet, Tuple

ROWS_PER_SHEET = 12
MOST_ROWS = 200
RECORDINGS, INSTANTS = 2, 3
# PNG data in the page, before base64 adds a third; with it a page stays under 20 MB.
MOST_PICTURE_BYTES = 12_000_000
# A sheet is held in memory as it is drawn, three bytes a pixel.
_MOST_SHEET_PIXELS = 60_000_000


class TupleReader:
    """Reads tuples of a set; a damaged one is noted, not raised.

    Args:
        advance: called once a tuple.

    Attributes:
        damaged: a line for each tuple that could not be read.
    """

    def __init__(self, shards: "ShardSet", advance: Callable[[int, str], None]) -> None:
        self._shards, self._advance = shards, advance
        self.damaged: list[str] = []

    def read(self, position: int) -> "Tuple | None":
        """The tuple at a position, or None."""
        self._advance(1, "")
        try:
            return self._shards[position]
        except ShardError as error:
            if str(error) not in self.damaged:
                self.damaged.append(str(error))
            return None


@dataclass
class Choice:
    """What is shown of one split: positions of tuples, and recordings."""

    split: str
    rows: list[int]
    recordings: list[Recording]

    @property
    def tuples(self) -> int:
        """How many tuples are read for it."""
        return len(self.rows) + sum(int((recording.positions >= 0).sum()) for recording in self.recordings)


@dataclass
class _Room:
    """What the page has left for pictures, shared out by what they are expected to take."""

    bytes_left: int
    cells_left: int
    files: list[Path] = field(default_factory=list)
    too_large: list[tuple[str, str]] = field(default_factory=list)

    def share(self, cells: int) -> int:
        part = self.bytes_left * cells // max(1, self.cells_left)
        self.cells_left -= cells
        return part


def choose(shards: "ShardSet", columns: IndexColumns, rows: int) -> list[Choice]:
    """What to show of each split.

    Args:
        rows: tuples per split at most; large crops get fewer, see `_MOST_SHEET_PIXELS`.
    """
    side = max(64, shards.size_px) + 24
    most = max(1, _MOST_SHEET_PIXELS // (side * side * (2 * len(shards.qualities) - 1)))
    return [
        Choice(
            split,
            choose_rows(columns, min(rows, most), split),
            choose_recordings(columns, RECORDINGS, max(1, min(INSTANTS, most // 4)), split),
        )
        for split in columns.split_names
    ]


def picture_sections(
    shards: "ShardSet", choices: Sequence[Choice], out: Path, reader: TupleReader
) -> tuple[list[Section], list[Path]]:
    """The chapter, and the PNG files that it wrote into `out`: `tuples-<split>.png` and `methods-<split>.png`.

    The files hold everything that was chosen; the page shows as much of it as its size allows.
    """
    best, *others = shards.qualities
    cells = sum(_cells(choice, len(shards.qualities)) for choice in choices)
    room = _Room(MOST_PICTURE_BYTES, cells)
    tuples: list[Picture] = []
    recordings: list[Tabs] = []
    for choice in choices:
        sheet = _tuples(shards, choice, out, reader, room)
        if sheet:
            tuples.append(sheet)
        recordings += _recordings(shards, choice, out, reader, room)
    lost = ", then what each lower quality took away: the absolute difference of the pixels, amplified "
    text = (
        f"One tuple a row: the same crop at every quality{lost}{DIFFERENCE_GAIN} times and cut at 255 (black: nothing "
        "lost). The face must stand at the same place in all pictures of a row."
    )
    alone = "One tuple a row. The set has one quality only, so there is nothing to compare inside a row."
    sections = [Section("Pictures", anchor="pictures", chapter=True)]
    sections.append(Section("Tuples", text if others else alone, pictures=tuples, anchor="tuples"))
    if recordings:
        text = (
            "The original and its manipulations at the same instants: a row an instant, a column a clip, a tab a "
            f"quality. The last tab shows what each clip changed: its difference from the first column at {best}, "
            f"amplified {DIFFERENCE_GAIN} times. Outside of the altered region the clips must agree."
        )
        sections.append(Section("One recording over the methods", text, pictures=recordings, anchor="recordings"))
    else:
        text = "No two clips of a recording show the same instant, or the index does not tell recordings."
        sections.append(Section("One recording over the methods", text, anchor="recordings"))
    if room.too_large:
        text = "Not one row of these fits into the page; they are in files of their own beside it."
        sections.append(Section("Too large for the page", text, ("what", "file"), room.too_large))
    return sections, room.files


def _cells(choice: Choice, qualities: int) -> int:
    """Pictures that a split wants in the page."""
    grids = sum(recording.positions.size for recording in choice.recordings)
    return len(choice.rows) * (2 * qualities - 1) + grids * (qualities + 1)


def _tuples(shards: "ShardSet", choice: Choice, out: Path, reader: TupleReader, room: _Room) -> Picture | None:
    share = room.share(len(choice.rows) * (2 * len(shards.qualities) - 1))
    items = [item for item in map(reader.read, choice.rows) if item is not None]
    if not items:
        return None
    path = out / f"tuples-{choice.split}.png"
    data = _png(tuple_sheet(items, shards.qualities))
    _save(data, path, room)
    shown, parts = _fitting(
        lambda rows: [_png(tuple_sheet(items[:rows], shards.qualities))], len(items), share, room, [data]
    )
    caption = f"Split {choice.split}"
    if not shown:
        room.too_large.append((f"tuples of split {choice.split}", path.name))
        return None
    if shown < len(items):
        caption += f": the first {shown} of {len(items)} tuples; {path.name} has them all"
    words = [f"{item.method} {item.video} frame {item.frame}" for item in items[:shown]]
    more = f" and {len(words) - 6} more" if len(words) > 6 else ""
    alt = f"{shown} tuples of split {choice.split}, one a row, at {', '.join(shards.qualities)}: {', '.join(words[:6])}"
    return Picture(parts[0], alt + more, f"{caption}.")


def _recordings(shards: "ShardSet", choice: Choice, out: Path, reader: TupleReader, room: _Room) -> list[Tabs]:
    path = out / f"methods-{choice.split}.png"
    shown: list[Tabs] = []
    whole: list[tuple[str, Image.Image]] = []
    for recording in choice.recordings:
        share = room.share(recording.positions.size * (len(shards.qualities) + 1))
        found = {position: reader.read(position) for position in recording.positions.ravel().tolist() if position >= 0}
        tuples = {position: item for position, item in found.items() if item is not None}
        if not tuples:
            continue
        title = f"Split {choice.split}, recording {recording.group}" + (
            f", face {recording.face}" if recording.face else ""
        )
        names = [*shards.qualities, f"change from {recording.clips[0]}"]
        whole += [
            (f"{title}, {name}", sheet) for name, sheet in zip(names, _grids(recording, tuples, shards), strict=True)
        ]
        rows, pages = _fitting(
            lambda rows, recording=recording, tuples=tuples: [
                _png(sheet) for sheet in _grids(_first(recording, rows), tuples, shards)
            ],
            len(recording.frames),
            share,
            room,
        )
        if not rows:
            room.too_large.append((title, path.name))
            continue
        frames = ", ".join(map(str, recording.frames[:rows]))
        tabs = [
            (name, Picture(page, f"{title} at {name}: {', '.join(recording.clips)}, at frames {frames}"))
            for name, page in zip(names, pages, strict=True)
        ]
        shown.append(Tabs(title, tabs))
    if whole:
        _save(_png(stacked(whole)), path, room)
    return shown


def _grids(recording: Recording, tuples: dict[int, "Tuple"], shards: "ShardSet") -> list[Image.Image]:
    sheets = [recording_sheet(recording, tuples, quality) for quality in shards.qualities]
    return [*sheets, alteration_sheet(recording, tuples, shards.qualities[0])]


def _first(recording: Recording, rows: int) -> Recording:
    return Recording(
        recording.group, recording.face, recording.clips, recording.frames[:rows], recording.positions[:rows]
    )


def _fitting(
    draw: Callable[[int], list[bytes]], rows: int, share: int, room: _Room, whole: list[bytes] | None = None
) -> tuple[int, list[bytes]]:
    """As many rows as a share of the page's bytes allows: (rows, pictures); (0, []) where one is too much.

    A single row may take a third of all that is left: of large crops, a row of some splits is more than none of any.
    """
    pictures = draw(rows) if whole is None else whole
    while (size := sum(map(len, pictures))) > share:
        if rows == 1 and size > room.bytes_left // 3:
            return 0, []
        if rows == 1:
            break
        rows = max(1, min(rows - 1, rows * share // size))
        pictures = draw(rows)
    room.bytes_left -= size
    return rows, pictures


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # A third of the time of PIL's default level for 5 % more bytes.
    sheet.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _save(data: bytes, path: Path, room: _Room) -> None:
    with atomic_file(path) as file:
        file.write(data)
    room.files.append(path)
