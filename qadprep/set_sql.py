"""SQL over the index of a shard set: conditions of users, counts for cards and tables. It reaches no file."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qadprep.shard_format import index_schema, splits_in_order
from qadprep.where import checked_condition, confine, where_error

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from qadprep.shardset import ShardSet

MEMORY_LIMIT = "512MB"
FACT_COLUMNS = ("split", "dataset", "method", "label", "video", "group", "geometry")


def index_of(shards: "ShardSet") -> pa.Table:
    """The index of a shard set, one row a tuple; with all columns of the format where there is no tuple at all."""
    return shards.table if len(shards) else index_schema(shards.qualities).empty_table()


@contextlib.contextmanager
def sql_over(**tables: pa.Table) -> "Iterator[DuckDBPyConnection]":
    """A DuckDB connection that sees these tables, each with a column `position` (its row number), and nothing else.

    Files, the network, extensions and Python's variables are out of its reach, for the text of a `--where` too.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="qadprep-sql-") as scratch:
        connection = duckdb.connect(":memory:", config={"python_enable_replacements": "false"})
        try:
            connection.execute(f"SET memory_limit='{MEMORY_LIMIT}'; SET enable_progress_bar=false")
            connection.execute("SET temp_directory=$1", [scratch])
            for name, table in tables.items():
                connection.register(name, table.append_column("position", pa.array(np.arange(len(table)))))
            confine(connection)
            yield connection
        finally:
            connection.close()


def rows_where(table: pa.Table, text: str) -> np.ndarray:
    """Positions of the tuples for which an SQL condition over the index's columns holds: int64, rising.

    Raises:
        UserError: not a condition, or one that asks for what is not there.
    """
    import duckdb

    with sql_over(tuples=table) as connection:
        condition = checked_condition(connection, text, "tuples")
        try:
            query = f"SELECT position FROM tuples WHERE {condition} ORDER BY position"
            return connection.sql(query).to_arrow_table()["position"].to_numpy()
        except duckdb.Error as error:  # such as a text that is no number, in a later row
            raise where_error("--where", text, error) from error


def facts_of(table: pa.Table) -> dict[str, Any]:
    """What a card says about tuples.

    Args:
        table: `split`, `dataset`, `method`, `label`, `video`, and `group` and `geometry` where they are known.

    Returns:
        `classes`: a dict with split, dataset, method, label, tuples and videos for each; `groups`: split -> recordings;
        `geometry`: kind -> tuples; `crossing`: recordings that are in several splits.
    """
    known = table.select([name for name in FACT_COLUMNS if name in table.column_names])
    with sql_over(tuples=known) as connection:
        classes = rows_of(
            connection,
            "SELECT split, dataset, method, label, count(*) AS tuples, count(DISTINCT video) AS videos FROM tuples "
            "GROUP BY ALL",
        )
        facts: dict[str, Any] = {"groups": {}, "geometry": {}, "crossing": 0}
        if "group" in known.column_names:
            groups = rows_of(
                connection,
                'SELECT split, count(DISTINCT (dataset, "group")) AS groups FROM tuples WHERE "group" IS NOT NULL '
                "GROUP BY split",
            )
            facts["groups"] = {row["split"]: row["groups"] for row in groups}
            facts["crossing"] = connection.execute(
                'SELECT count(*) FROM (SELECT 1 FROM tuples WHERE "group" IS NOT NULL GROUP BY dataset, "group" '
                "HAVING count(DISTINCT split) > 1)"
            ).fetchone()[0]
        if "geometry" in known.column_names:
            kinds = rows_of(
                connection,
                "SELECT geometry, count(*) AS tuples FROM tuples WHERE geometry IS NOT NULL GROUP BY ALL ORDER BY ALL",
            )
            facts["geometry"] = {row["geometry"]: row["tuples"] for row in kinds}
    order = splits_in_order({row["split"] for row in classes})
    classes.sort(key=lambda row: (order.index(row["split"]), row["dataset"], row["method"], row["label"]))
    return {"classes": classes, **facts, "groups": {s: facts["groups"][s] for s in order if s in facts["groups"]}}


def rows_of(connection: "DuckDBPyConnection", query: str, parameters: object = None) -> list[dict[str, Any]]:
    """The rows that a query gives, as dicts."""
    result = connection.execute(query, parameters)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
