"""What lies in a shard set's folder, read without `qadprep`'s own readers."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file in a folder, hidden ones included."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def index_rows(folder: Path, split: str = "*") -> list[dict[str, Any]]:
    """Rows of all indexes in the order of the shards, with the shard's name as `shard`."""
    return [
        {**row, "shard": file.stem}
        for file in sorted(folder.glob(f"{split}-??????.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


def pack_rows(faces: Path) -> list[dict[str, Any]]:
    """Complete tuples of a folder of packs, with `key` and `tar` (a path)."""
    rows = []
    for file in sorted(faces.glob("*/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            if row["status"] == "ok":
                row["key"] = f"{row['dataset']}/{row['method']}/{row['name']}/{row['frame']:06d}_{row['face']}"
                rows.append({**row, "tar": file.with_suffix(".tar")})
    return rows
