"""Which tuple goes into which shard, settled in a database on disk, so that memory does not grow with the tuples.

The complete tuples that pass the filters go from the packs into the database; the order is computed there; one pass in
that order cuts shards and writes a plan file for each, with all that a worker needs.
"""

import contextlib
import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qadprep.config import ShardConfig
from qadprep.errors import UserError
from qadprep.machine import available_cores
from qadprep.shard_choice import keep_instants, passing, refuse_doubles, refuse_one_label, thin
from qadprep.shard_cut import PlannedShard, cut
from qadprep.shard_format import MAX_SHARDS, splits_in_order
from qadprep.shard_order import rows_in_order
from qadprep.shard_packs import PackSource
from qadprep.shard_rows import row_table
from qadprep.where import checked_condition, confine

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = "256MB"
_INSERT_ROWS = 4096
_NO_ROOM = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT, "File too large": errno.EFBIG,
            "max_temp_directory_size": errno.ENOSPC}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A whole shard set to be.

    Attributes:
        tuples: per split, in the order of splits.
        left_out: attempted tuples that are not in it, by reason.
        crossing: recordings (groups) with tuples in more than one split.
        facts: counts for the dataset card: `classes`, `groups`, `geometry`.
    """

    shards: list[PlannedShard]
    tuples: dict[str, int]
    left_out: dict[str, int]
    crossing: int
    facts: dict[str, Any]


def plan_shards(source: PackSource, config: ShardConfig, scratch: Path, wanted: Collection[str] | None = None) -> Plan:
    """Choose, order and cut the tuples of a folder of packs.

    Args:
        source: read to its end here, which settles its hash and counts.
        scratch: an empty folder for the database and for the plan files.
        wanted: names of the shards whose plan files are written; None writes all.

    Raises:
        UserError: a filter that names what is not there, a bad `where`, one key in two packs, nothing left, a split
            that cannot be balanced, or more shards than a set may have.
        OSError: no room left in `scratch`.
    """
    qualities = config.qualities or source.config.qualities
    if unknown := [quality for quality in qualities if quality not in source.config.qualities]:
        raise _unknown(source, "qualities", unknown[0], source.config.qualities)
    with _database(scratch) as database:
        left_out: dict[str, int] = {}
        _fill(database, source, config, qualities, left_out)
        for reason, count in source.left_out().items():  # extraction may have left out for the same reasons
            left_out[reason] = left_out.get(reason, 0) + count
        refuse_doubles(database, source)
        if config.max_frames:
            left_out["over_max_frames"] = keep_instants(database, config.max_frames)
        if config.balance == "equal":
            refuse_one_label(database)
            left_out["thinned"] = thin(database)
        left_out = {reason: left_out[reason] for reason in sorted(left_out) if left_out[reason]}
        counts = dict(database.execute("SELECT split, count(*) FROM tuples GROUP BY split").fetchall())
        if not counts:
            words = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "nothing was attempted"
            raise UserError(
                f"{source.faces}: not one complete tuple in its packs that passes ({words}); see the table of "
                "`qadprep extract`, or loosen the filters"
            )
        tuples = {split: counts[split] for split in splits_in_order(set(counts))}
        columns = "t.* EXCLUDE (id, draw, instant)" if wanted is None or wanted else "t.bytes"
        shards = []
        for split, count in tuples.items():
            schema, rows = rows_in_order(database, split, count, config.balance != "natural", columns, scratch)
            for planned in cut(rows, schema, split, config, scratch, wanted):
                shards.append(planned)
                if len(shards) > MAX_SHARDS:
                    raise UserError(
                        f"over {MAX_SHARDS:,} shards, more than a set may have; expected larger --tuples-per-shard or "
                        "--shard-size"
                    )
        [crossing] = database.execute(
            'SELECT count(*) FROM (SELECT 1 FROM tuples GROUP BY dataset, "group" HAVING count(DISTINCT split) > 1)'
        ).fetchone()
        return Plan(shards, tuples, left_out, crossing, _facts(database))


@contextlib.contextmanager
def _database(scratch: Path) -> "Iterator[duckdb.DuckDBPyConnection]":
    import duckdb

    settings = {
        "memory_limit": MEMORY_LIMIT,
        "threads": min(2, available_cores()),
        "temp_directory": str(scratch / "spill"),
        "python_enable_replacements": "false",
    }
    file = scratch / "plan.duckdb"
    try:
        database = duckdb.connect(str(file), config=settings)
        try:
            database.execute("SET enable_progress_bar = false")
            confine(database)
            yield database
        finally:
            database.close()
            file.unlink(missing_ok=True)
    except duckdb.Error as error:
        for words, number in _NO_ROOM.items():
            if words in str(error):
                raise OSError(number, os.strerror(number), str(scratch)) from error
        raise


def _fill(
    database: "duckdb.DuckDBPyConnection",
    source: PackSource,
    config: ShardConfig,
    qualities: tuple[str, ...],
    left_out: dict[str, int],
) -> None:
    """The table `tuples`: rows of all packs that pass the filters; the others are counted by reason."""
    found: dict[str, set[str]] = {"split": set(), "method": set()}
    condition, count = None, 0
    for table in _portions(source.tables()):
        for name, names in found.items():
            names.update(table[name].unique().to_pylist())
        database.register("packs", table)
        if config.where is not None and condition is None:
            condition = checked_condition(database, config.where, "packs")
        table = passing(database, table, config, condition, left_out)
        database.unregister("packs")
        rows = row_table(table, qualities, config.codec, source.config.size_px)
        # DuckDB's own row numbers may change when rows are deleted.
        database.register("rows", rows.append_column("id", pa.array(np.arange(count, count + len(rows)))))
        sql = f"SELECT *, {_draw(config.seed, 'key')} AS draw, {_instant(config.seed)} AS instant FROM rows"
        database.execute(f"CREATE TABLE IF NOT EXISTS tuples AS {sql} LIMIT 0")
        database.execute(f"INSERT INTO tuples {sql}")
        database.unregister("rows")
        count += len(rows)
    for option, name, asked in (("splits", "split", config.splits), ("methods", "method", config.methods)):
        if unknown := [value for value in asked or () if value not in found[name]]:
            raise _unknown(source, option, unknown[0], sorted(found[name]))


def _portions(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Small tables joined: a statement for each pack would cost more than its rows."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _INSERT_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _draw(seed: int, words: str) -> str:
    """SQL for `sampling.draw` of a seed and an SQL text."""
    return f"('0x' || substr(sha256('{seed}/' || {words}), 1, 16))::UBIGINT"


def _instant(seed: int) -> str:
    """SQL for the draw of an instant: one for all clips of a group."""
    return _draw(seed, "dataset || '/' || \"group\" || '/' || frame::VARCHAR")


def _facts(database: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    names = ("split", "dataset", "method", "label", "tuples", "videos")
    classes = database.execute(
        """
        SELECT split, dataset, method, label, count(*), count(DISTINCT video) FROM tuples
        GROUP BY split, dataset, method, label ORDER BY split, dataset, method, label
        """
    ).fetchall()
    groups = database.execute('SELECT split, count(DISTINCT (dataset, "group")) FROM tuples GROUP BY split').fetchall()
    geometry = database.execute("SELECT geometry, count(*) FROM tuples GROUP BY geometry ORDER BY geometry").fetchall()
    found = dict(groups)
    return {
        "classes": [dict(zip(names, row, strict=True)) for row in classes],
        "groups": {split: found[split] for split in splits_in_order(set(found))},
        "geometry": dict(geometry),
    }


def _unknown(source: PackSource, option: str, got: str, there: Collection[str]) -> UserError:
    return UserError(f"--{option}: no {got!r} in {source.faces}; it has {', '.join(there)}")
