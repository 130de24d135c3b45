"""Take a shard set apart and put it together again: damage for the tests, with or without right hashes."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.shard_format import CODECS
from qadprep.ustar import BLOCK, TarWriter


def rows_of(folder: Path, shard: str = "train-000000") -> list[dict[str, Any]]:
    """The rows of a shard's index."""
    return pq.read_table(folder / f"{shard}.parquet").to_pylist()


def change_info(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what shards.json says."""
    info = json.loads((folder / "shards.json").read_text())
    change(info)
    (folder / "shards.json").write_text(json.dumps(info))


def refresh(folder: Path, shard: str = "train-000000") -> None:
    """Make shards.json say the sizes and hashes that a shard and its index have now."""

    def change(info: dict[str, Any]) -> None:
        entry = next(entry for entry in info["shardlist"] if entry["url"] == f"{shard}.tar")
        data, index = (folder / entry["url"]).read_bytes(), (folder / entry["index"]).read_bytes()
        entry.update(
            filesize=len(data),
            md5sum=hashlib.md5(data).hexdigest(),
            sha256=hashlib.sha256(data).hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    change_info(folder, change)


def change_index(folder: Path, change: Callable[[pa.Table], pa.Table], shard: str = "train-000000") -> None:
    """Write a changed index whose hash is right."""
    file = folder / f"{shard}.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    refresh(folder, shard)


def change_row(folder: Path, row: int, shard: str = "train-000000", **values: Any) -> None:
    """Change cells of one row of an index; the index's hash is right afterwards."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[row].update(values)
        return pa.Table.from_pylist(rows, schema=table.schema)

    change_index(folder, change, shard)


def change_tar(folder: Path, change: Callable[[bytes], bytes], shard: str = "train-000000") -> None:
    """Change a shard's bytes; nothing else knows of it."""
    file = folder / f"{shard}.tar"
    file.write_bytes(change(file.read_bytes()))


def flipped(data: bytes, place: int, mask: int = 0x20) -> bytes:
    """The data with bits of one byte turned over."""
    changed = bytearray(data)
    changed[place] ^= mask
    return bytes(changed)


def member(row: dict[str, Any], name: str) -> tuple[int, int]:
    """(first byte, first byte after) of a member with its header and padding; `name` is a quality or json."""
    first, size = row[f"{name}_offset"], row[f"{name}_size"]
    return first - BLOCK, first + size + -size % BLOCK


def rewrite(
    folder: Path,
    change: Callable[[list[tuple[dict[str, Any], dict[str, bytes]]]], Any],
    shard: str = "train-000000",
) -> None:
    """Write a shard again whose tuples were changed; all offsets, sizes and hashes of bytes are right afterwards.

    Args:
        change: takes a list of (row, member -> data) and changes it; members are the qualities and json.
    """
    info = json.loads((folder / "shards.json").read_text())
    names = {quality: f".{quality}.{CODECS[info['codec']]}" for quality in info["qualities"]} | {"json": ".json"}
    data = (folder / f"{shard}.tar").read_bytes()
    table = pq.read_table(folder / f"{shard}.parquet")
    tuples = [
        (row, {name: data[row[f"{name}_offset"] : row[f"{name}_offset"] + row[f"{name}_size"]] for name in names})
        for row in table.to_pylist()
    ]
    change(tuples)
    file = io.BytesIO()
    tar = TarWriter(file)
    for row, members in tuples:
        row["offset"] = tar.position
        for name, content in members.items():
            row[f"{name}_offset"], row[f"{name}_size"] = tar.add(row["key"] + names[name], content)
        row["length"] = tar.position - row["offset"]
        row["sha256"] = hashlib.sha256(file.getvalue()[row["offset"] :]).hexdigest()
    tar.finish()
    (folder / f"{shard}.tar").write_bytes(file.getvalue())
    pq.write_table(pa.Table.from_pylist([row for row, _ in tuples], table.schema), folder / f"{shard}.parquet")
    refresh(folder, shard)

    def recount(info: dict[str, Any]) -> None:
        entry = next(entry for entry in info["shardlist"] if entry["url"] == f"{shard}.tar")
        info["tuples"][entry["split"]] += len(tuples) - entry["nsamples"]
        entry["nsamples"] = len(tuples)

    change_info(folder, recount)
