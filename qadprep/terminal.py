"""How commands print: tables for people, one JSON object on stdout, remarks on stderr. Imports nothing heavy."""

import json as json_module
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from qadprep.errors import UserError

MAX_ROWS = 40


def finish(result: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """Print the summary as JSON on stdout, or for people."""
    if as_json:
        print(json_module.dumps(result, sort_keys=True))
    else:
        show()


def say(text: str) -> None:
    """A remark during the work, on stderr."""
    print(text, file=sys.stderr, flush=True)


def count(value: int, option: str) -> int:
    """A number of workers.

    Raises:
        UserError: negative.
    """
    if value < 0:
        raise UserError(f"{option}: got {value}; expected 1 or more, or 0 for one per core")
    return value


def _console() -> Console:
    # Piped output has no width of its own: wide enough that no reason is cut.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _shown(cell: Any) -> str:
    """Text that any terminal takes: names of files and keys of lists may hold what is not UTF-8."""
    return str(cell).encode("utf-8", "backslashreplace").decode()


def print_table(title: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    """A titled table on stdout; columns of numbers are set to the right, and what is too long is cut at MAX_ROWS."""
    table = Table()
    for number, name in enumerate(columns):
        numeric = name in ("seconds", "share") or (rows and all(isinstance(row[number], int) for row in rows))
        # Folded, not cut: the ends of paths and of commands are what is needed.
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows[:MAX_ROWS]:
        table.add_row(*(_shown(cell) for cell in row))
    console = _console()
    console.print(f"\n{title}", markup=False)
    console.print(table, markup=False)
    if len(rows) > MAX_ROWS:
        console.print(f"... and {len(rows) - MAX_ROWS} more (--json lists all)")
