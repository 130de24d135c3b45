"""Conditions in SQL that a user types: checked to be one condition over a table's columns, and nothing else."""

import json
import re
from typing import TYPE_CHECKING, Any

from qadprep.errors import UserError

if TYPE_CHECKING:
    import duckdb

# What DuckDB calls stable, but what tells the time of the run or changes from one version of DuckDB to the next; the
# clocks among them may be written like columns.
_OF_THE_RUN = frozenset(
    {"age", "ago", "current_localtime", "current_localtimestamp", "current_time", "current_timestamp", "localtime",
     "localtimestamp", "create_sort_key", "hash", "version"}
)  # fmt: skip


def confine(connection: "duckdb.DuckDBPyConnection") -> None:
    """Take from a connection all that lies outside its own database: files, network, extensions, other settings, and
    the machine's time zone.
    """
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def checked_condition(connection: "duckdb.DuckDBPyConnection", text: str, table: str, option: str = "--where") -> str:
    """A condition, in brackets, that may stand behind WHERE.

    Only what depends on the row alone is let through: the same rows must be chosen every time.

    Args:
        connection: a confined one (see `confine`).
        text: such as `face_px >= 80 AND method != 'FaceSwap'`.
        table: whose columns it may use.
        option: how messages name it.

    Raises:
        UserError: not one condition, an unknown column, a subquery, a function such as random(); the message names
            the text and DuckDB's reason.
    """
    import duckdb

    condition = f"({text}\n)"  # the line's end closes a comment
    try:
        if not text.strip():
            raise ValueError("it is empty")
        columns = set(connection.sql(f"SELECT * FROM {table} LIMIT 0").columns)
        tree = _parse(connection, f"SELECT {condition}")
        usual = _parse(connection, "SELECT (true)")
        if len(tree) != 1 or _frame(tree[0]) != _frame(usual[0]) or len(tree[0]["node"]["select_list"]) != 1:
            raise where_error(option, text, "expected one condition over the columns, and nothing around it")
        unstable = _unstable(connection)
        for node in _nodes(tree[0]["node"]["select_list"][0]):
            if node.get("class") == "SUBQUERY":
                raise where_error(option, text, "no SELECT may stand in it")
            if node.get("class") == "STAR":
                raise where_error(option, text, "* and COLUMNS stand for several columns; name each column")
            # Some functions are written without brackets, like columns.
            names = [name for name in node.get("column_names", []) if name not in columns]
            for name in (node.get("function_name", ""), *names):
                if str(name).lower() in unstable:
                    raise where_error(option, text, f"{name} is not the same every time")
        kinds = [str(kind) for kind in connection.sql(f"SELECT {condition} FROM {table} LIMIT 0").types]
        connection.sql(f"SELECT 1 FROM {table} WHERE {condition} LIMIT 0").fetchall()
    except (duckdb.Error, ValueError) as error:
        raise where_error(option, text, error) from error
    if kinds not in (["BOOLEAN"], ['"NULL"']):
        raise where_error(option, text, f"it is a value of type {', '.join(kinds)}, not a condition")
    return condition


def where_error(option: str, text: str, reason: object) -> UserError:
    """The one line for a condition that cannot be used."""
    first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    return UserError(f"{option} {text!r}: {first}")


def _parse(connection: "duckdb.DuckDBPyConnection", sql: str) -> list[dict[str, Any]]:
    """The statements of a text as trees.

    Raises:
        ValueError: not SQL, or not a SELECT.
    """
    [text] = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    tree = json.loads(text)
    if tree["error"]:
        raise ValueError(tree.get("error_message") or "not a condition")
    return tree["statements"]


def _frame(statement: dict[str, Any]) -> Any:
    """A statement without its selected expressions and without places in the text."""
    return _without_places({**statement, "node": {**statement["node"], "select_list": []}})


def _without_places(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_places(part) for name, part in tree.items() if not name.startswith("query_location")}
    return [_without_places(part) for part in tree] if isinstance(tree, list) else tree


def _nodes(tree: Any) -> list[dict[str, Any]]:
    """Every part of an expression."""
    if isinstance(tree, list):
        return [node for part in tree for node in _nodes(part)]
    if isinstance(tree, dict):
        return [tree, *(node for part in tree.values() for node in _nodes(part))]
    return []


def _unstable(connection: "duckdb.DuckDBPyConnection") -> set[str]:
    """Functions that may give something else for the same row; macros that use one are such themselves."""
    found = connection.execute(
        "SELECT DISTINCT function_name, stability, macro_definition FROM duckdb_functions()"
    ).fetchall()
    names = {name for name, stability, _ in found if stability not in (None, "CONSISTENT")} | _OF_THE_RUN
    return names | {name for name, _, text in found if text and names & set(re.findall(r"\w+", text.lower()))}
