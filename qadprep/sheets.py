"""Contact sheets: pictures in which a person sees at a glance whether the crops of a tuple line up."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qadprep.sampling import draw
from qadprep.shardset import ShardSet, Tuple

DIFFERENCE_GAIN = 4
_GAP, _LINE = 4, 16


def difference(best: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|best - other| times 4, clipped: uint8 of the pictures' shape. Black where nothing was lost."""
    change = np.abs(best.astype(np.int16) - other.astype(np.int16)) * DIFFERENCE_GAIN
    return np.clip(change, 0, 255).astype(np.uint8)


def choose_rows(shards: ShardSet, count: int) -> list[int]:
    """Positions of tuples for a sheet: every method in turn, different videos first, always the same choice."""
    columns = (shards.table[name].to_pylist() for name in ("method", "video", "key"))
    by_method: dict[str, dict[str, list[int]]] = {}
    for position, (method, video, _) in enumerate(zip(*columns, strict=True)):
        by_method.setdefault(method, {}).setdefault(video, []).append(position)
    queues = []
    for method in sorted(by_method, key=lambda name: (name != "original", name)):
        videos = sorted(by_method[method].items(), key=lambda item: draw(0, method, item[0]))
        depth = max(len(positions) for _, positions in videos)
        queues.append([positions[i] for i in range(depth) for _, positions in videos if i < len(positions)])
    turns = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return turns[:count]


def tuple_sheet(tuples: Sequence[Tuple], qualities: Sequence[str]) -> Image.Image:
    """One row a tuple: its qualities side by side, then the amplified difference of the worst from the best."""
    columns = [*qualities, f"|{qualities[0]} - {qualities[-1]}| x{DIFFERENCE_GAIN}"]
    rows = []
    for item in tuples:
        pictures = [item.images[quality] for quality in qualities]
        pictures.append(difference(item.images[qualities[0]], item.images[qualities[-1]]))
        face = f" face {item.face}" if any(other.face for other in tuples) else ""
        label = "fake" if item.label else "real"
        rows.append((f"{item.method} {item.video} frame {item.frame}{face} ({label})", pictures))
    return grid(columns, rows)


def instant_sheet(by_method: Mapping[str, Tuple], qualities: Sequence[str]) -> Image.Image:
    """One recording at one instant: a column a method (the original first), a row a quality."""
    rows = [(quality, [item.images[quality] for item in by_method.values()]) for quality in qualities]
    return grid(list(by_method), rows)


def find_instant(shards: ShardSet) -> dict[str, Tuple]:
    """Method -> tuple of the recording, frame and face that most methods share, a fake among them where there is one;
    the original first. Empty for no tuples."""
    table = shards.table
    if not len(table):
        return {}
    columns = (table[name].to_pylist() for name in ("group", "frame", "face", "method", "label"))
    places: dict[tuple[str, int, int], dict[str, int]] = {}
    with_fake = set()
    for position, (group, frame, face, method, label) in enumerate(zip(*columns, strict=True)):
        places.setdefault((group, frame, face), {})[method] = position
        if label:
            with_fake.add((group, frame, face))
    best = max(sorted(places), key=lambda place: (len(places[place]), "original" in places[place], place in with_fake))
    methods = sorted(places[best], key=lambda name: (name != "original", name))
    return {method: shards[places[best][method]] for method in methods}


def grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """Pictures of one size in rows with a caption above each, and the columns' names on top."""
    if not rows:
        raise ValueError("a sheet needs at least one row")
    height, width = rows[0][1][0].shape[:2]
    font = ImageFont.load_default(size=12)
    sheet = Image.new(
        "RGB",
        (_GAP + len(columns) * (width + _GAP), _GAP + _LINE + len(rows) * (height + _LINE + _GAP)),
        (255, 255, 255),
    )
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(columns):
        pen.text((_GAP + number * (width + _GAP), 2), name, fill=(0, 0, 0), font=font)
    for line, (caption, pictures) in enumerate(rows):
        top = _GAP + _LINE + line * (height + _LINE + _GAP)
        pen.text((_GAP, top), caption, fill=(70, 70, 70), font=font)
        for number, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (_GAP + number * (width + _GAP), top + _LINE))
    return sheet
