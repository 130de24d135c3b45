"""Which complete tuples go into a shard set: filters, one of each key, instants of a clip, balance of labels."""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from qadprep.config import ShardConfig
from qadprep.errors import UserError
from qadprep.shard_order import EVEN
from qadprep.shard_packs import PackSource
from qadprep.where import where_error

if TYPE_CHECKING:
    import duckdb


def passing(
    database: "duckdb.DuckDBPyConnection",
    table: pa.Table,
    config: ShardConfig,
    condition: str | None,
    left_out: dict[str, int],
) -> pa.Table:
    """The rows of a table, known as `packs`, that pass the filters."""
    import duckdb

    tests = [
        (config.splits, "filter_split", "NOT list_contains($splits, split)"),
        (config.methods, "filter_method", "NOT list_contains($methods, method)"),
        # What has no size was cropped by others.
        (config.min_face_px, "small_face", "face_px < $min_face_px"),
        (config.drop_unaltered, "unaltered", "unaltered"),
        (condition, "filter_where", f"NOT coalesce({condition}, false)"),
    ]
    cases = [f"WHEN {test} THEN '{reason}'" for wanted, reason, test in tests if wanted]
    if not cases:
        return table
    values = {"splits": config.splits, "methods": config.methods, "min_face_px": config.min_face_px or None}
    parameters = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
    try:
        reasons = database.sql(
            f"SELECT CASE {' '.join(cases)} ELSE '' END AS reason FROM packs", params=parameters or None
        ).to_arrow_table()["reason"]
    except duckdb.Error as error:
        if condition is None or isinstance(error, duckdb.IOException):
            raise
        raise where_error("--where", config.where or "", error) from error
    for count in reasons.value_counts().to_pylist():
        if count["values"]:
            left_out[count["values"]] = left_out.get(count["values"], 0) + count["counts"]
    return table.filter(pc.equal(reasons, ""))


def refuse_doubles(database: "duckdb.DuckDBPyConnection", source: PackSource) -> None:
    """A key stands for one tuple.

    Raises:
        UserError: two packs have one key.
    """
    double = database.execute(
        "SELECT key, min(tar), max(tar) FROM tuples GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 1"
    ).fetchone()
    if double:
        key, first, second = double
        places = f"in {first} and in {second}" if first != second else f"twice in {first}"
        raise UserError(f"{source.faces}: {key} is {places}; one of them is a copy: delete its tar and parquet")


def keep_instants(database: "duckdb.DuckDBPyConnection", most: int) -> int:
    """Delete the tuples at all but some instants of each clip; how many were deleted.

    Instants of the most clips of a group come first: what all of them have is kept of all of them.
    """
    return database.execute(
        """
        DELETE FROM tuples WHERE id IN (
            SELECT id FROM (
                SELECT id, dense_rank() OVER (
                    PARTITION BY dataset, "group", method, video ORDER BY clips DESC, instant, frame) AS turn
                FROM tuples JOIN (
                    SELECT dataset, "group", frame, count(DISTINCT (method, video)) AS clips
                    FROM tuples GROUP BY dataset, "group", frame) USING (dataset, "group", frame))
            WHERE turn > $most)
        """,
        {"most": most},
    ).fetchone()[0]


def refuse_one_label(database: "duckdb.DuckDBPyConnection") -> None:
    """What has nothing to be balanced with would be left out as a whole.

    Raises:
        UserError: a split has tuples of one label only.
    """
    found = database.execute(
        "SELECT split, min(label), count(*) FROM tuples GROUP BY split HAVING min(label) = max(label) ORDER BY split"
    ).fetchone()
    if found:
        split, label, count = found
        there, lacking = ("fake", "real") if label else ("real", "fake")
        raise UserError(
            f"--balance equal: split {split!r} has {count} {there} tuples and no {lacking} one; leave it out with "
            "--splits, loosen the filters, or choose --balance even"
        )


def thin(database: "duckdb.DuckDBPyConnection") -> int:
    """Delete tuples of each split's more numerous label, of all its methods alike; how many were deleted."""
    return database.execute(
        f"""
        DELETE FROM tuples WHERE id IN (
            SELECT id FROM (
                SELECT id, split, row_number() OVER (PARTITION BY split, label ORDER BY place, draw, key) AS turn
                FROM ({EVEN}))
            JOIN (
                SELECT split, least(count(*) FILTER (label = 0), count(*) FILTER (label = 1)) AS most
                FROM tuples GROUP BY split) USING (split)
            WHERE turn > most)
        """
    ).fetchone()[0]
