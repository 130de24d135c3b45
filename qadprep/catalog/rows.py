"""Rows of tables and lists, CSV, parquet or JSON: what is wrong with a file or with a row is said in one line."""

import csv
import io
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qadprep.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LIST_BYTES = 1 << 30

# (`line 7`, column -> text without blanks at its ends, why the row cannot be read or None)
TableRow = tuple[str, dict[str, str], str | None]

_PARQUET = b"PAR1"
_SEPARATORS = (";", "\t", "|")


def read_rows(file: Path, required: Sequence[str]) -> tuple[list[str], list[TableRow]]:
    """(columns, rows) of a table. A byte-order mark and empty lines are passed over.

    Lines count from 1, the header being line 1 of a CSV; of a record over several lines it is the last. In parquet the
    first row is `row 1`. Missing values are empty text.

    Raises:
        UserError: no such file, empty, neither UTF-8 CSV nor parquet, another separator, or a required column missing.
    """
    data = _read(file)
    if not data.strip():
        raise UserError(f"{file}: the file is empty; expected a table with the columns {', '.join(required)}")
    columns, rows = _parquet(file) if data.startswith(_PARQUET) else _csv(data, file, required)
    for name in required:
        if name not in columns:
            raise UserError(f"{file}: column {name!r} is missing; found {', '.join(columns) or 'none'}")
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{file}: column {repeated!r} is there twice")
    return columns, rows


def read_json_entries(file: Path) -> list[tuple[str, dict[str, object] | None]]:
    """(key, value) of a JSON file that holds one object, in its order, repeated keys included.

    A value that is no object itself comes as None.

    Raises:
        UserError: cannot be read, or is not such a JSON file.
    """
    try:
        # As tuples, since a dict would keep the last of two equal keys without a word.
        found = json.loads(_read(file).decode("utf-8-sig"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        cause = str(error).splitlines()[0] if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{file}: not a readable JSON file ({cause})") from error
    if not isinstance(found, tuple):
        raise UserError(f"{file}: holds no JSON object; expected one entry a video")
    return [(key, dict(value) if isinstance(value, tuple) else None) for key, value in found]


def _read(file: Path) -> bytes:
    """The whole of a list.

    Raises:
        UserError: cannot be read, not a regular file, or of a size that no list has.
    """
    try:
        status = file.stat()
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{file}: not a regular file")
        if status.st_size > MAX_LIST_BYTES:
            raise UserError(f"{file}: has {status.st_size} bytes; a list has {MAX_LIST_BYTES} at most")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def _csv(data: bytes, file: Path, required: Sequence[str]) -> tuple[list[str], list[TableRow]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}: not UTF-8 text (line {line}); save it as CSV in UTF-8, or as parquet") from error
    if "\0" in text:
        raise UserError(f"{file}: neither a CSV nor a parquet file (it holds NUL bytes)")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[TableRow] = []
    try:
        header = next((line for line in lines if any(cell.strip() for cell in line)), None)
        if header is None:
            raise UserError(f"{file}: no header line; expected the columns {', '.join(required)}")
        columns = [name.strip() for name in header]
        for separator in _SEPARATORS:
            if len(columns) == 1 and separator in columns[0]:
                raise UserError(f"{file}: its columns are separated by {separator!r}; expected commas")
        if not set(columns) & set(required):
            shown = columns[0][:40]
            raise UserError(f"{file}: line 1 is no header ({shown!r} ...); expected the columns {', '.join(required)}")
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            problem = None if len(cells) == len(columns) else f"{len(cells)} fields; expected {len(columns)}"
            values = [cell.strip() for cell in cells]
            rows.append((f"line {lines.line_num}", dict(zip(columns, values, strict=False)), problem))
    except csv.Error as error:
        raise UserError(f"{file}: not a readable CSV (line {lines.line_num}: {error})") from error
    return columns, rows


def _parquet(file: Path) -> tuple[list[str], list[TableRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table(path): it would take folders named k=v on the way to the file for columns.
        table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})") from error
    columns = list(table.column_names)
    values = [[_text(value) for value in _values(column)] for column in table.columns]
    rows = [
        (f"row {number}", dict(zip(columns, cells, strict=True)), None)
        for number, cells in enumerate(zip(*values, strict=True), 1)
    ]
    return columns, rows


def _values(column: "pa.ChunkedArray") -> list[object]:
    """A column as Python values; one that Python has no values for (such as dates of the year 300,000) as text."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        try:
            return column.cast(pa.string()).to_pylist()
        except pa.ArrowException:
            return ["unreadable"] * len(column)


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is how pandas writes a missing text
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value).strip()
