"""Write a shard set out of tuples of others: bytes are copied as they are, nothing is decoded or coded again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import qadprep
from qadprep.card import write_card
from qadprep.config import guard_output
from qadprep.engine import run_ending
from qadprep.errors import UserError
from qadprep.locks import drop_lock_file, sole_user
from qadprep.raw_tuples import RawTuples
from qadprep.set_files import copy_file, linked, new_file, refuse_source
from qadprep.set_sql import FACT_COLUMNS, facts_of
from qadprep.shard_format import (
    CARD_NAME,
    CONFIG_NAME,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    INDEX_NAME,
    index_schema,
    read_info,
    splits_in_order,
)
from qadprep.shard_output import clear_entries, clear_leftovers, clear_shards, refuse_foreign, whole_shards
from qadprep.shardset import ShardSet
from qadprep.store import write_json
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


@dataclass(frozen=True)
class NewSet:
    """What stands in `shards.json` beside the shards.

    Attributes:
        config: what decides the bytes; its hash is added.
        more: further keys.
    """

    name: str
    config: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def identity(shards: ShardSet) -> dict[str, str]:
    """By what a set names the set that it was made from: name, fingerprint of the data and config hash."""
    return {
        "name": shards.info.get("name", ""),
        "fingerprint": shards.fingerprint,
        "config_hash": shards.info.get("config_hash", ""),
    }


def settings_hash(config: dict[str, Any]) -> str:
    """sha256 (hex) of a config without its `config_hash`, as JSON with sorted keys."""
    rest = {name: value for name, value in config.items() if name != "config_hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def shard_starts(shards: ShardSet) -> np.ndarray:
    """int64 (shards + 1,): position of the first tuple of each shard, then the number of tuples."""
    return np.concatenate([[0], np.cumsum([entry["nsamples"] for entry in shards.shards])]).astype(np.int64)


def write_set(
    out: "Folder",
    sources: Sequence[ShardSet],
    shards: Sequence[NewShard],
    description: NewSet,
    *,
    advance: Callable[[int, str], None],
    overwrite: bool = False,
    link: bool = False,
) -> dict[str, Any]:
    """Write a shard set; `shards.json` comes last, so that a killed run leaves nothing that looks whole.

    Args:
        out: local or remote folder, not that of a source.
        sources: of one list of qualities, one codec and one size.
        shards: to be written, a split's shards one after another; numbered in this order.
        advance: of a progress bar; counts tuples.
        overwrite: replace a set of another config, or the same one; without it a finished one of this config stays.
        link: hard links instead of copies for whole shards, where the file system can.

    Returns:
        What went into `shards.json`.

    Raises:
        UserError: `out` belongs to a source, to another set or to somebody else; a source is damaged.
        RunEnded: the disk is full, or the store cannot be written.
    """
    refuse_source(out, [source.path for source in sources])
    config = {**description.config, "config_hash": settings_hash(description.config)}
    try:
        with sole_user(out):
            refuse_foreign(out)
            guard_output(out, CONFIG_NAME, config, overwrite)
            if not overwrite and (earlier := _finished(out, config)):
                advance(sum(earlier["tuples"].values()), "finished already")
                drop_lock_file(out)
                return earlier
            # Without its `shards.json` the folder is no shard set: a killed run is never taken for a whole one.
            clear_shards(out, set())
            clear_leftovers(out)
            clear_entries(out)
            write_json(out / CONFIG_NAME, config)
            writer = _Writer(out, sources, link)
            for new in shards:
                writer.add(new)
                advance(writer.entries[-1]["nsamples"], writer.entries[-1]["url"])
            info = _info(sources[0], description, config, writer)
            write_json(out / INDEX_NAME, info)
            drop_lock_file(out)
            return info
    except OSError as error:
        ended = run_ending(error)
        if ended is None:
            raise
        raise ended from error


def _finished(out: "Folder", config: dict[str, Any]) -> dict[str, Any] | None:
    """`shards.json` of a whole set of this config in the folder: its sources may be gone or damaged by now."""
    try:
        info = read_info(out)
    except UserError:
        return None
    same = info.get("config") == config and info["format_version"] == f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
    return info if same and len(whole_shards(out, info)) == len(info["shardlist"]) else None


def _info(first: ShardSet, description: NewSet, config: dict[str, Any], writer: "_Writer") -> dict[str, Any]:
    splits = [entry["split"] for entry in writer.entries]
    facts = facts_of(pa.concat_tables(writer.facts, promote_options="default"))
    info = {
        **description.more,
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": description.name,
        "format_version": f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
        "tool": f"qadprep {qadprep.__version__}",
        "qualities": list(first.qualities),
        "codec": first.codec,
        "size_px": first.size_px,
        "tuples": {
            split: sum(entry["nsamples"] for entry in writer.entries if entry["split"] == split)
            for split in splits_in_order(set(splits))
        },
        "left_out": description.left_out,
        "groups_in_several_splits": facts["crossing"],
        "config_hash": config["config_hash"],
        "config": config,
        "shardlist": writer.entries,
    }
    write_card(writer.out / CARD_NAME, info, facts)
    return info


class _Writer:
    """Shards one after another."""

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
