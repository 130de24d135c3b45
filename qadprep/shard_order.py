"""The tuples of a split in the order of the shard set, in memory that does not grow with their number.

DuckDB sorts narrow rows on disk, but wide ones in memory. So only places are sorted there; the rows go by their places
into files of bounded size, and each of these is put in order when its turn comes.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import duckdb

# Tuples of a class (split, label, method) stand at even distances: the place of each between 0 and 1.
EVEN = """
    SELECT id, split, label, draw, key,
        (row_number() OVER (PARTITION BY split, label, method ORDER BY draw, key) - 0.5)
            / count(*) OVER (PARTITION BY split, label, method) AS place
    FROM tuples"""
_SHUFFLED = "SELECT id, split, draw, key, 0 AS place FROM tuples"
# Rows of one file, and of one portion that is dealt out; a row has some 1 to 2 kB.
BUCKET_ROWS, DEAL_ROWS = 10_000, 8192
_MOST_FILES = 200


def rows_in_order(
    database: "duckdb.DuckDBPyConnection", split: str, count: int, even: bool, columns: str, scratch: Path
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The rows of one split.

    Args:
        database: with the table `tuples`.
        count: rows of the split.
        even: classes at even distances; else by their draws alone.
        columns: of `tuples t` that are wanted, in SQL.
        scratch: folder for files that are gone when the rows have been read.

    Returns:
        Their schema, and the rows in portions of any size. No two runs differ in the order of rows.
    """
    database.execute(
        f"""
        CREATE OR REPLACE TABLE places AS
        SELECT id, row_number() OVER (ORDER BY place, draw, key) - 1 AS place
        FROM ({EVEN if even else _SHUFFLED} WHERE split = $split)
        """,
        {"split": split},
    )
    rows = database.sql(f"SELECT {columns}, p.place FROM tuples t JOIN places p USING (id)")
    reader = rows.to_arrow_reader(DEAL_ROWS)
    schema = reader.schema.remove(reader.schema.get_field_index("place"))
    return schema, _sorted(reader, count, scratch / "buckets")


def _sorted(rows: pa.RecordBatchReader, count: int, folder: Path) -> Iterator[pa.RecordBatch]:
    """Rows by their column `place`, 0 to count - 1; the column is left out."""
    per_file = max(BUCKET_ROWS, -(-count // _MOST_FILES))
    folder.mkdir()
    try:
        files = [folder / f"{number}.arrow" for number in range(-(-count // per_file))]
        _deal(rows, files, per_file)
        for number, file in enumerate(files):
            with pa.OSFile(str(file)) as stream:
                table = pa.ipc.open_stream(stream).read_all()
            places = table["place"].to_numpy()
            order = np.argsort(places)
            start = number * per_file
            if not np.array_equal(places[order], np.arange(start, min(start + per_file, count))):
                raise RuntimeError(f"the order of {count} tuples has gaps in its places {start} and following")
            yield from table.take(order).drop_columns(["place"]).combine_chunks().to_batches()
            file.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deal(rows: pa.RecordBatchReader, files: list[Path], per_file: int) -> None:
    """Put each row into the file of its place."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    streams = [file.open("wb") for file in files]
    try:
        writers = [pa.ipc.new_stream(stream, rows.schema, options=options) for stream in streams]
        for batch in rows:
            turns = batch["place"].to_numpy() // per_file
            order = np.argsort(turns, kind="stable")
            dealt = batch.take(pa.array(order))
            ends = np.searchsorted(turns[order], np.arange(len(files) + 1))
            for writer, start, end in zip(writers, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                if end > start:
                    writer.write_batch(dealt.slice(start, end - start))
        for writer in writers:
            writer.close()
    finally:
        for stream in streams:
            stream.close()
