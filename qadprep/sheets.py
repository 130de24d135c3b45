"""Contact sheets: pictures in which a person sees at a glance whether the crops of a tuple line up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qadprep.catalog.base import ORIGINAL
from qadprep.report_columns import IndexColumns, evenly, turns
from qadprep.sampling import draw

if TYPE_CHECKING:
    from qadprep.shardset import ShardSet, Tuple

DIFFERENCE_GAIN = 4
# Clips of one recording side by side: one of each method first.
MAX_CLIPS = 8
# Crops that are smaller are shown enlarged, each pixel as a square.
LEAST_SIDE_PX = 64
GAP_PX, LINE_PX = 4, 16
# Names that are put in drawn order: of more, only so many, spread evenly, take part.
_MOST_DRAWN = 4096
_INK, _CAPTION, _PAPER, _NOTHING = (0, 0, 0), (70, 70, 70), (255, 255, 255), (225, 225, 225)


@dataclass(frozen=True)
class Recording:
    """Where the tuples of one recording at some instants lie: a row an instant, a column a clip.

    Attributes:
        group: the recording's name.
        face: number of the face.
        clips: titles of the columns, the original first.
        frames: numbers of the frames, rising.
        positions: int64 (frames, clips): positions in the shard set; -1 where a clip has no tuple at that instant.
    """

    group: str
    face: int
    clips: tuple[str, ...]
    frames: tuple[int, ...]
    positions: np.ndarray


def difference(best: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|best - other| times `DIFFERENCE_GAIN`, clipped: uint8 of the pictures' shape. Black where nothing was lost."""
    change = np.abs(best.astype(np.int16) - other.astype(np.int16)) * DIFFERENCE_GAIN
    return np.clip(change, 0, 255).astype(np.uint8)


def difference_title(best: str, other: str) -> str:
    """Title of a column of differences: `|raw - c23| x4`."""
    return f"|{best} - {other}| x{DIFFERENCE_GAIN}"


def choose_rows(shards: "ShardSet | IndexColumns", count: int, split: str | None = None) -> list[int]:
    """Positions of tuples for a sheet: every method in turn, different videos first, always the same choice.

    Args:
        shards: the set, or its index.
        count: how many at most.
        split: of this split only.
    """
    columns = _columns(shards)
    inside = columns.inside(split)
    queues = []
    for number, (_, method) in enumerate(columns.class_names):
        positions = inside[columns.classes[inside] == number]
        clips, own = np.unique(columns.clips.codes[positions], return_inverse=True)
        if len(clips) > _MOST_DRAWN:
            positions = positions[np.isin(own, evenly(len(clips), _MOST_DRAWN))]
            clips, own = np.unique(columns.clips.codes[positions], return_inverse=True)
        drawn = np.array([draw(0, method, columns.clips.name(clip)[-1]) for clip in clips], np.uint64)
        queues.append(positions[np.lexsort((drawn[own], turns(own)))[:count]].tolist())
    taken = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return taken[:count]


def choose_recordings(
    shards: "ShardSet | IndexColumns", count: int, instants: int, split: str | None = None
) -> list[Recording]:
    """Recordings that show the most methods, a real and a fake clip among them first; always the same choice.

    Args:
        shards: the set, or its index.
        count: how many recordings at most.
        instants: how many instants of each at most, spread over those that the most clips have.
        split: of this split only.

    Returns:
        Empty where no two clips show the same instant, or the index does not tell the recordings (older sets).
    """
    columns = _columns(shards)
    if not columns.has("group"):
        return []
    inside = columns.inside(split)
    coded = columns.coded("dataset", "group")
    groups = coded.codes
    pairs = np.unique(groups[inside] * len(columns.class_names) + columns.classes[inside])
    methods = np.bincount(pairs // max(1, len(columns.class_names)), minlength=len(coded))
    real, fake = (
        np.bincount(groups[inside][columns.labels[inside] == label], minlength=len(coded)) for label in (0, 1)
    )
    score = np.where(methods > 1, 2 * methods + ((real > 0) & (fake > 0)), 0)
    found: list[Recording] = []
    for value in np.unique(score[score > 0])[::-1]:
        best = np.flatnonzero(score == value)
        names = {group: coded.name(group) for group in best[evenly(len(best), _MOST_DRAWN)].tolist()}
        for group in sorted(names, key=lambda place: (draw(0, "recording", *names[place]), names[place])):
            if len(found) == count:
                return found
            recording = _recording(columns, inside[groups[inside] == group], names[group][-1], instants)
            found += [recording] if recording else []
    return found


def tuple_sheet(tuples: Sequence["Tuple"], qualities: Sequence[str]) -> Image.Image:
    """One row a tuple: its qualities side by side, then the amplified differences of the others from the best."""
    best, *others = qualities
    rows = []
    for item in tuples:
        pictures = [item.images[quality] for quality in qualities]
        pictures += [difference(item.images[best], item.images[other]) for other in others]
        face = f" face {item.face}" if any(other.face for other in tuples) else ""
        dataset = f"{item.dataset} " if len({other.dataset for other in tuples}) > 1 else ""
        label = "fake" if item.label else "real"
        rows.append((f"{dataset}{item.method} {item.video} frame {item.frame}{face} ({label})", pictures))
    return grid([*qualities, *(difference_title(best, other) for other in others)], rows)


def recording_sheet(recording: Recording, tuples: Mapping[int, "Tuple"], quality: str) -> Image.Image:
    """A recording at one quality: a row an instant, a column a clip.

    Args:
        tuples: position -> tuple; cells of positions that are missing stay empty.
    """
    return _recording_grid(recording, tuples, lambda item, first: item.images[quality])


def alteration_sheet(recording: Recording, tuples: Mapping[int, "Tuple"], quality: str) -> Image.Image:
    """A recording at one quality: what each clip changed, its amplified difference from the first clip's crop."""

    def change(item: "Tuple", first: "Tuple | None") -> np.ndarray | None:
        return difference(first.images[quality], item.images[quality]) if first else None

    return _recording_grid(recording, tuples, change)


def grid(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], side_px: int = LEAST_SIDE_PX
) -> Image.Image:
    """Pictures of one size in rows with a caption above each, and the columns' names on top.

    Args:
        rows: (caption, pictures); None leaves a grey cell.
        side_px: side of the cells where there is no picture at all.

    Raises:
        ValueError: no row, or pictures of several sizes.
    """
    sizes = {picture.shape for _, pictures in rows for picture in pictures if picture is not None}
    sizes = sizes or {(side_px, side_px, 3)}
    if len(sizes) != 1 or not rows:
        raise ValueError(f"a sheet needs rows with pictures of one size, got {len(sizes)} sizes in {len(rows)} rows")
    ((height, width, _),) = sizes
    zoom = -(-LEAST_SIDE_PX // width) if width < LEAST_SIDE_PX else 1
    font = ImageFont.load_default(size=12)
    step = GAP_PX + max(width * zoom, *(int(font.getlength(name)) + GAP_PX for name in columns))
    down = height * zoom + LINE_PX + GAP_PX
    widest = max(int(font.getlength(caption)) + 2 * GAP_PX for caption, _ in rows)
    sheet = Image.new("RGB", (max(GAP_PX + len(columns) * step, widest), GAP_PX + LINE_PX + len(rows) * down), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(columns):
        pen.text((GAP_PX + number * step, 2), name, fill=_INK, font=font)
    for line, (caption, pictures) in enumerate(rows):
        top = GAP_PX + LINE_PX + line * down
        pen.text((GAP_PX, top), caption, fill=_CAPTION, font=font)
        for number, picture in enumerate(pictures):
            left = GAP_PX + number * step
            if picture is None:
                pen.rectangle((left, top + LINE_PX, left + width * zoom - 1, top + down - GAP_PX - 1), fill=_NOTHING)
                continue
            shown = picture.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else picture
            sheet.paste(Image.fromarray(np.ascontiguousarray(shown)), (left, top + LINE_PX))
    return sheet


def stacked(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Sheets below each other, each under its title."""
    font = ImageFont.load_default(size=14)
    line = LINE_PX + 2 * GAP_PX
    widths = [max(sheet.width, int(font.getlength(title)) + 2 * GAP_PX) for title, sheet in parts]
    result = Image.new("RGB", (max(widths), sum(line + sheet.height for _, sheet in parts)), _PAPER)
    pen, top = ImageDraw.Draw(result), 0
    for title, sheet in parts:
        pen.text((GAP_PX, top + GAP_PX), title, fill=_INK, font=font)
        result.paste(sheet, (0, top + line))
        top += line + sheet.height
    return result


def _columns(shards: "ShardSet | IndexColumns") -> IndexColumns:
    return shards if isinstance(shards, IndexColumns) else IndexColumns(shards.table)


def _recording(columns: IndexColumns, positions: np.ndarray, group: str, instants: int) -> Recording | None:
    """The grid of one recording's tuples; None where no two clips show the same instant."""
    faces = columns.numbers("face")[positions]
    values, counts = np.unique(faces, return_counts=True)
    face = values[np.argmax(counts)]
    positions = positions[faces == face]
    frames = columns.numbers("frame")[positions].astype(np.int64)
    clips, own = np.unique(columns.clips.codes[positions], return_inverse=True)
    names = [columns.clips.name(clip) for clip in clips]
    # One clip of each method before the second of any.
    order = sorted(range(len(clips)), key=lambda place: (names[place][1] != ORIGINAL, draw(0, *names[place])))
    method = np.unique([names[place][:2] for place in order], axis=0, return_inverse=True)[1].reshape(-1)
    chosen = [order[place] for place in np.argsort(turns(method), kind="stable")[:MAX_CLIPS]]
    chosen.sort(key=lambda place: (names[place][1] != ORIGINAL, names[place]))
    table: dict[int, dict[int, int]] = {}
    for place, frame, position in zip(own.tolist(), frames.tolist(), positions.tolist(), strict=True):
        if place in chosen:
            table.setdefault(frame, {})[place] = position
    most = max(map(len, table.values()))
    if most < 2:
        return None
    whole = sorted(frame for frame, there in table.items() if len(there) == most)
    taken = [whole[place] for place in evenly(len(whole), instants)]
    methods = [names[place][1] for place in chosen]
    titles = [
        names[place][1] if methods.count(names[place][1]) == 1 else " ".join(names[place][1:]) for place in chosen
    ]
    cells = [[table[frame].get(place, -1) for place in chosen] for frame in taken]
    return Recording(group, int(face), tuple(titles), tuple(taken), np.array(cells, np.int64))


def _recording_grid(
    recording: Recording,
    tuples: Mapping[int, "Tuple"],
    cell: "Callable[[Tuple, Tuple | None], np.ndarray | None]",
) -> Image.Image:
    rows = []
    for frame, line in zip(recording.frames, recording.positions.tolist(), strict=True):
        items = [tuples.get(position) for position in line]
        rows.append((f"frame {frame}", [cell(item, items[0]) if item else None for item in items]))
    return grid(recording.clips, rows)
