"""Shards made of tuples of other sets: whole files are copied or linked, else tuple by tuple with their new places."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qadprep.errors import UserError
from qadprep.raw_tuples import RawTuples
from qadprep.set_files import copy_file, linked, new_file
from qadprep.set_sql import FACT_COLUMNS
from qadprep.shard_format import index_schema
from qadprep.shardset import ShardSet
from qadprep.ustar import HashedFile, end_of_archive

if TYPE_CHECKING:
    from qadprep.store import Folder


@dataclass(frozen=True)
class Piece:
    """Tuples of one shard of one source, in their order.

    Attributes:
        source: number of the source.
        shard: number in the source's `shards`.
        rows: int64, rows of the shard's index; None takes the shard as it is.
    """

    source: int
    shard: int
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class NewShard:
    """One shard to be written; one piece without `rows` is copied as a file."""

    split: str
    pieces: tuple[Piece, ...]


def shard_starts(shards: ShardSet) -> np.ndarray:
    """int64 (shards + 1,): position of the first tuple of each shard, then the number of tuples."""
    return np.concatenate([[0], np.cumsum([entry["nsamples"] for entry in shards.shards])]).astype(np.int64)


class ShardWriter:
    """Writes shards one after another.

    Attributes:
        entries: of the shards so far, for `shards.json`.
        facts: tables of what a card tells of their tuples.
    """

    def __init__(self, out: "Folder", sources: Sequence[ShardSet], link: bool) -> None:
        self.out, self.sources, self.link = out, sources, link
        self.entries: list[dict[str, Any]] = []
        self.facts = [index_schema(sources[0].qualities).empty_table().select(FACT_COLUMNS)]
        self._numbers: dict[str, int] = {}
        # A set's indexes have the same columns; what a source does not tell is null.
        known = {name for source in sources for name in source.table.column_names} | {"sha256"}
        schema = index_schema(sources[0].qualities)
        self._schema = pa.schema([column for column in schema if column.name in known])

    def add(self, new: NewShard) -> None:
        number = self._numbers.get(new.split, 0)
        self._numbers[new.split] = number + 1
        name = f"{new.split}-{number:06d}"
        [first, *others] = new.pieces
        # Every tuple gets its sha256: a set without them is not copied by files.
        if first.rows is None and not others and "sha256" in self.sources[first.source].table.column_names:
            entry, table = self._copy(name, first)
        else:
            entry, table = self._gather(name, new.pieces)
        self.entries.append({**entry, "url": f"{name}.tar", "split": new.split, "index": f"{name}.parquet"})
        self.facts.append(table.select([name for name in FACT_COLUMNS if name in table.column_names]))

    def _copy(self, name: str, piece: Piece) -> tuple[dict[str, Any], pa.Table]:
        source = self.sources[piece.source]
        folder, entry = source.path, dict(source.shards[piece.shard])
        target = self.out / f"{name}.tar"
        if self.link and linked(folder / entry["url"], target, entry.get("filesize")):
            entry["filesize"] = target.stat().st_size
        else:
            copy_file(folder / entry["url"], target, entry, entry["sha256"])
        table = _rows(source, piece)
        if source.table.schema.names == self._schema.names and entry.get("index_sha256"):
            copy_file(folder / entry["index"], self.out / f"{name}.parquet", dict(entry), entry["index_sha256"])
        else:
            entry["index_sha256"] = self._write_index(name, table)
        return entry, table

    def _gather(self, name: str, pieces: Sequence[Piece]) -> tuple[dict[str, Any], pa.Table]:
        tables = []
        with new_file(self.out / f"{name}.tar") as file:
            hashed = HashedFile(file)
            for piece in pieces:
                tables.append(_append(hashed, self.sources[piece.source], piece))
            hashed.write(end_of_archive(hashed.size))
        table = pa.concat_tables(tables, promote_options="default")
        entry = {
            "nsamples": len(table),
            "filesize": hashed.size,
            "md5sum": hashed.md5.hexdigest(),
            "sha256": hashed.sha256.hexdigest(),
            "index_sha256": self._write_index(name, table),
        }
        return entry, table

    def _write_index(self, name: str, table: pa.Table) -> str:
        columns = {
            column.name: table[column.name].cast(column.type)
            if column.name in table.column_names
            else pa.nulls(len(table), column.type)
            for column in self._schema
        }
        with new_file(self.out / f"{name}.parquet") as file:
            hashed = HashedFile(file)
            pq.write_table(pa.table(columns).combine_chunks(), hashed, compression="zstd")
        return hashed.sha256.hexdigest()


def _rows(source: ShardSet, piece: Piece) -> pa.Table:
    """The index rows of a piece."""
    start = shard_starts(source)[piece.shard]
    table = source.table.slice(start, source.shards[piece.shard]["nsamples"])
    return table if piece.rows is None else table.combine_chunks().take(pa.array(piece.rows))


def _append(hashed: HashedFile, source: ShardSet, piece: Piece) -> pa.Table:
    """Append a piece's tuples to a shard; returns their index rows, as they are there."""
    table = _rows(source, piece)
    start = shard_starts(source)[piece.shard]
    rows = np.arange(len(table)) if piece.rows is None else piece.rows
    known = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * len(table)
    offsets, digests = np.empty(len(table), np.int64), []
    with RawTuples(source) as tuples:
        for number, row in enumerate(rows):
            data = tuples.read(int(start + row))
            hashed.part = hashlib.sha256()
            offsets[number] = hashed.size
            hashed.write(data)
            digests.append(hashed.part.hexdigest())
            if known[number] not in (None, digests[-1]):
                raise UserError(
                    f"{source.where(int(start + row))}: the bytes are not those that were written (sha256); mend it "
                    "with `qadprep verify --repair`, or leave it out"
                )
    moved = offsets - table["offset"].to_numpy()
    for name in table.column_names:
        if name == "offset" or name.endswith("_offset"):
            table = table.set_column(table.column_names.index(name), name, pc.add(table[name], pa.array(moved)))
    digest_column = pa.array(digests, pa.string())
    if "sha256" in table.column_names:
        return table.set_column(table.column_names.index("sha256"), "sha256", digest_column)
    return table.append_column("sha256", digest_column)
