"""`qadprep cat`: one tuple of a shard set, its facts and a picture of it."""

import difflib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qadprep.errors import UserError
from qadprep.raw_tuples import RawTuples
from qadprep.set_sql import index_of
from qadprep.shard_format import MAX_SIDE_PX
from qadprep.shardset import ShardSet, Tuple
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.store import Folder

MAX_CANDIDATES = 2000
MAX_SCALE = 16


def cat(place: "str | Folder", key: str, *, out: Path | None = None, scale: int = 1) -> dict[str, Any]:
    """Look one tuple up.

    Args:
        place: folder or fsspec URL of the shard set.
        key: a key, or a position (negative ones count from the end).
        out: PNG file to write: the qualities side by side, and below what each differs from the best in.
        scale: every pixel of a crop becomes a square of this side, px; crops that stay under 64 px are enlarged more.

    Returns:
        `key`, `position`, `shard`, `offset` and `length` (bytes), `sha256`, `qualities` (size in bytes, PSNR and pixel
        hash of each), `facts` (the JSON member), `picture` (path, or null).

    Raises:
        UserError: no such tuple, a scale or file name that cannot be.
        ShardError: the tuple is damaged.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise UserError(f"--scale: got {scale}; expected 1 to {MAX_SCALE}")
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: expected a name that ends in .png")
    with ShardSet(place, cache_bytes=0) as shards:  # of a remote set, one range is enough
        if out is not None and shards.size_px * scale > MAX_SIDE_PX:
            raise UserError(f"--scale: crops of {shards.size_px} px would get over {MAX_SIDE_PX} px wide; got {scale}")
        position = find(shards, key)
        item = shards[position]
        with RawTuples(shards, cache_bytes=0) as raw:
            facts = raw.facts(position)
        row = {name: shards.table[name][position].as_py() for name in shards.table.column_names}
        if out is not None:
            _save(_sheet(item, shards.qualities, scale), out)
    return {
        "key": item.key,
        "position": position,
        "shard": shards.shards[shards.shard_number(position)]["url"],
        "offset": row["offset"],
        "length": row["length"],
        "sha256": row.get("sha256"),
        "qualities": {
            quality: {
                "bytes": row[f"{quality}_size"],
                "psnr_db": _finite(row.get(f"{quality}_psnr_db")),
                "pixels_sha256": row.get(f"{quality}_pixels_sha256"),
            }
            for quality in shards.qualities
        },
        "facts": facts,
        "picture": None if out is None else str(out),
    }


def find(shards: ShardSet, key: str) -> int:
    """Position of a tuple that is named by its key or its position.

    Raises:
        UserError: there is none; the message names the nearest keys.
    """
    if re.fullmatch(r"-?\d{1,12}", key):
        position = int(key)
        if not -len(shards) <= position < len(shards):
            raise UserError(f"{shards.path}: no tuple {position}; it has {len(shards)}, counted from 0")
        return position % len(shards)
    try:
        return shards.position_of(key)
    except KeyError:
        near = difflib.get_close_matches(key, _candidates(index_of(shards)["key"], key), n=3, cutoff=0.0)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UserError(f"{shards.path}: no tuple {key!r}{hint}") from None


def _candidates(keys: pa.ChunkedArray, key: str) -> list[str]:
    """Keys that may be meant, a bounded number: those that begin with most of its parts, or else hold its last word."""
    parts = key.split("/")
    tries = [(pc.starts_with, "/".join(parts[:count]) + "/") for count in range(len(parts) - 1, 0, -1)]
    for match, pattern in [*tries, (pc.match_substring, key), (pc.match_substring, parts[-1])]:
        found = keys.filter(match(keys, pattern))
        if len(found):
            keys = found
            break
    every = max(1, -(-len(keys) // MAX_CANDIDATES))
    return keys.take(pa.array(np.arange(0, len(keys), every))).to_pylist()


def _sheet(item: Tuple, qualities: tuple[str, ...], scale: int) -> Any:
    """The tuple's picture: a row of the qualities, and a row of amplified differences from the best one."""
    from qadprep.sheets import DIFFERENCE_GAIN, difference, grid

    def enlarged(image: np.ndarray) -> np.ndarray:
        return image.repeat(scale, axis=0).repeat(scale, axis=1)

    images = [item.images[quality] for quality in qualities]
    lost = [None, *(enlarged(difference(images[0], image)) for image in images[1:])]
    rows = [
        (f"{item.key} ({'fake' if item.label else 'real'})", [enlarged(image) for image in images]),
    ]
    if len(images) > 1:
        rows.append((f"|{qualities[0]} - quality| x{DIFFERENCE_GAIN}", lost))
    return grid(list(qualities), rows)


def _save(picture: Any, path: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def _finite(value: float | None) -> float | str | None:
    """JSON has no infinity: crops that are equal say so."""
    return "equal" if value == float("inf") else value
