"""From a row of a pack to what a shard holds of it: its JSON member, its columns, and the room that it takes."""

import json

import numpy as np
import pyarrow as pa

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
