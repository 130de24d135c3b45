"""The content of one tuple against its row in the index: its own hash, its pixels, its json member."""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from qadprep.shardset import decode_image, pixel_hash


def check_tuple(
    data: memoryview, row: dict[str, Any], info: dict[str, Any], members: list[tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    """Everything that is wrong with a tuple whose headers are right, as (fault, byte offset in the shard).

    Args:
        data: the tuple's bytes, headers included.
        row: of the index.
        members: (first byte in `data`, size) of each member: the qualities, then the json if the index knows it.
    """
    start = row["offset"]
    whole = row.get("sha256") is None or hashlib.sha256(data).hexdigest() == row["sha256"]
    sound = True
    for quality, (at, size) in zip(info["qualities"], members, strict=False):
        for fault in _picture_faults(bytes(data[at : at + size]), quality, row, info):
            sound = False
            yield f"{quality} at byte {start + at}: {fault}", start + at
    for at, size in members[len(info["qualities"]) :]:
        for fault in _json_faults(bytes(data[at : at + size]), row):
            sound = False
            yield f"json at byte {start + at}: {fault}", start + at
    if not whole and sound:
        yield f"a byte between {start} and {start + row['length']} is not what was written", start


def _picture_faults(data: bytes, quality: str, row: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    try:
        image = decode_image(data, info["size_px"], info["codec"])
    except ValueError as error:
        yield str(error)
        return
    written = row.get(f"{quality}_pixels_sha256")
    if written is not None and pixel_hash(image) != written:
        yield "pixels are not those written"


def _json_faults(data: bytes, row: dict[str, Any]) -> Iterator[str]:
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        yield "not readable as JSON"
        return
    if not isinstance(facts, dict):
        yield "not a JSON object"
        return
    for name in ("key", "label", "method", "frame"):
        if name not in facts:
            yield f"says no {name}"
    for name in sorted(facts.keys() & row.keys()):
        if not _equal(facts[name], row[name]):
            yield f"says {name} {facts[name]!r:.80}, the index {row[name]!r:.80}"


def _equal(told: Any, listed: Any) -> bool:
    """Whether a value of the json member is that of the index, in which numbers may have fewer digits."""
    if not isinstance(listed, float) or isinstance(told, bool) or not isinstance(told, int | float):
        # 1 and True are equal in Python.
        return told == listed and isinstance(told, bool) == isinstance(listed, bool)
    with np.errstate(over="ignore"):
        try:
            return bool(np.float32(told) == np.float32(listed)) or (math.isnan(told) and math.isnan(listed))
        except OverflowError:
            return False
