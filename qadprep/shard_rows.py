"""From a row of a pack to what a shard holds of it: its JSON member, its columns, the room that it takes; and the hash
by which rows are known again.
"""

import hashlib
import json
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qadprep.codecs import npy_header
from qadprep.shard_format import DESCRIBING
from qadprep.ustar import BLOCK

_IN_JSON = ("label", "split", "dataset", "method", "group", "target", "source", "frame", "face", "geometry", "detector",
            "score", "box_xyxy", "landmarks_xy", "affine", "mask_share")  # fmt: skip
# Per quality: columns of a pack that a plan keeps.
PLACE, MEASURED = ("offset", "size"), ("pixels_sha256", "psnr_db")


def row_table(packs: pa.Table, qualities: tuple[str, ...], codec: str, size_px: int) -> pa.Table:
    """What a plan says of each tuple.

    Args:
        packs: complete tuples with `tar` and `key` (see `shard_packs`).
        qualities: those that go into the shards.
        codec: of the shards.

    Returns:
        `key`, `video`, `tar`, `json` (its JSON member), `bytes` (in the shard, headers and padding included; for `webp`
        with the packs' PNG files), what describes it, and per quality `<q>_offset`, `<q>_size`, `<q>_pixels_sha256`,
        `<q>_psnr_db`.
    """
    texts = json_members(packs)
    sizes = _padded(np.array([len(text) for text in texts], np.int64))
    for quality in qualities:
        files = packs[f"{quality}_size"].to_numpy()
        if codec == "raw":
            files = np.full(len(packs), len(npy_header(size_px)) + 3 * size_px * size_px)
        sizes += _padded(files.astype(np.int64))
    columns = {
        "key": packs["key"],
        "video": packs["name"],
        "tar": packs["tar"],
        "json": pa.array(texts, pa.string()),
        "bytes": pa.array(sizes),
    }
    columns |= {name: packs[name] for name in DESCRIBING}
    for quality in qualities:
        columns |= {f"{quality}_{part}": packs[f"{quality}_{part}"] for part in (*PLACE, *MEASURED)}
    return pa.table(columns)


def json_members(packs: pa.Table) -> list[str]:
    """The text of each tuple's JSON member: keys sorted, ASCII, without blanks."""
    facts = packs.select(["key", "name", *_IN_JSON]).rename_columns(["key", "video", *_IN_JSON]).to_pylist()
    return [json.dumps(fact, sort_keys=True, separators=(",", ":")) for fact in facts]


def _padded(sizes: np.ndarray) -> np.ndarray:
    """Bytes of tar members: header, data, and zeros up to the block's end."""
    return BLOCK + -(-sizes // BLOCK) * BLOCK


class RowDigest:
    """sha256 over rows of one schema, however they are cut into portions and however Arrow keeps them.

    Each column has hashes of its own: which cells are null, how long texts and lists are, and what is in them. So a
    row counts the same in whichever portion it comes.

    Example:
        >>> digest = RowDigest()
        >>> digest.add(pa.table({"a": [1, None]}))
        >>> digest.hexdigest()[:8]
        '14564fba'
    """

    def __init__(self) -> None:
        self._parts: dict[str, hashlib._Hash] = defaultdict(hashlib.sha256)
        self._rows = 0

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Count some rows; all of them must have the same columns."""
        self._rows += rows.num_rows
        for name, kind, column in zip(rows.schema.names, rows.schema.types, rows.columns, strict=True):
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            for chunk in chunks:
                self._add(f"{name} {kind}", chunk)

    def hexdigest(self) -> str:
        """sha256 (hex) of all rows so far."""
        lines = [str(self._rows), *(f"{name} {part.hexdigest()}" for name, part in self._parts.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _add(self, name: str, cells: pa.Array) -> None:
        self._parts[f"{name} valid"].update(cells.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes())
        cells = cells.drop_null()
        kind = cells.type
        if pa.types.is_null(kind):
            return
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self._parts[f"{name} length"].update(pc.binary_length(cells).to_numpy(zero_copy_only=False).tobytes())
            self._parts[name].update("".join(cells.to_pylist()).encode())
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            self._parts[f"{name} length"].update(pc.list_value_length(cells).to_numpy(zero_copy_only=False).tobytes())
            self._add(f"{name} item", cells.flatten())
        elif not pa.types.is_primitive(kind):
            raise TypeError(f"column {name}: no digest is defined for its type")
        else:
            numbers = cells.cast(pa.uint8()) if pa.types.is_boolean(kind) else cells
            self._parts[name].update(numbers.to_numpy(zero_copy_only=False).tobytes())
