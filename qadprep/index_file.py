"""Read a shard's parquet index that may have been damaged, or made to do harm, without harm."""

import errno
import hashlib
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qadprep.errors import UserError
from qadprep.shard_format import INDEX_NAME, index_schema

if TYPE_CHECKING:
    from qadprep.store import Folder

# Far more than a row needs: its keys and facts, and as much again for each quality.
_FIXED_BYTES, _ROW_BYTES, _QUALITY_BYTES = 1 << 20, 2048, 256


def read_index_file(file: "Folder", tuples: int, qualities: Sequence[str], *, sha256: str | None = None) -> pa.Table:
    """The known columns of an index, bounded before anything large is allocated.

    Args:
        file: the parquet file, local or remote.
        tuples: how many rows `shards.json` says it has.
        qualities: of the set.
        sha256: (hex) that the file must have; None takes any.

    Returns:
        A table whose texts are valid UTF-8; types and contents are as they are in the file.

    Raises:
        UserError: not there, another hash or number of rows, unreadable, or too large for so many tuples.
    """
    most_bytes = _FIXED_BYTES + tuples * (_ROW_BYTES + _QUALITY_BYTES * len(qualities))
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        size = file.stat().st_size
        if size > most_bytes:
            raise UserError(f"{file}: has {size} bytes, over {most_bytes} for {tuples} tuples")
        data = file.read_bytes()
        found = hashlib.sha256(data).hexdigest() if sha256 else None
        if found != sha256:
            raise UserError(
                f"{file}: sha256 is {found[:12]}…, {INDEX_NAME} says {sha256[:12]}…; damaged, or of another run: "
                "see `qadprep verify`"
            )
        return _unpack(data, tuples, most_bytes, qualities, str(file))
    except UserError:
        raise
    # A parquet file from elsewhere makes its reader raise nearly anything, MemoryError and OverflowError among them,
    # and every kind of store has its own errors.
    except Exception as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UserError(
            f"{file}: unreadable shard index ({cause[:200] or type(error).__name__}); write the shard set again"
        ) from error


def _unpack(data: bytes, tuples: int, most_bytes: int, qualities: Sequence[str], where: str) -> pa.Table:
    with pq.ParquetFile(io.BytesIO(data)) as parquet:
        facts, names = parquet.metadata, parquet.schema_arrow.names
        if facts.num_rows != tuples:
            raise UserError(
                f"{where}: {facts.num_rows} rows, but {INDEX_NAME} says {tuples} tuples; they are of different runs"
            )
        sizes = [facts.row_group(number).total_byte_size for number in range(facts.num_row_groups)]
    if min(sizes, default=0) < 0 or sum(sizes) > most_bytes:
        raise UserError(f"{where}: unpacks to over {most_bytes} bytes for {tuples} tuples")
    schema = index_schema(tuple(qualities))
    known = [name for name in schema.names if name in names]
    twice = [name for name in known if names.count(name) > 1]
    if twice:
        raise UserError(f"{where}: column {twice[0]!r} is there {names.count(twice[0])} times")
    texts = [name for name in known if schema.field(name).type == pa.string()]
    with pq.ParquetFile(io.BytesIO(data), read_dictionary=texts) as parquet:
        table = parquet.read(columns=known, use_threads=False)
    table.validate(full=True)
    # A dictionary can name one long text a million times in a few bytes: before the cells get their own.
    spread = sum(_spread_bytes(chunk) for name in texts for chunk in table[name].chunks)
    if spread > most_bytes:
        raise UserError(f"{where}: its texts take {spread} bytes, over {most_bytes} for {tuples} tuples")
    for number, kind in enumerate(table.schema.types):
        if pa.types.is_dictionary(kind):
            name = table.column_names[number]
            table = table.set_column(number, name, table[name].cast(kind.value_type))
    table.validate(full=True)
    return table


def _spread_bytes(texts: pa.Array) -> int:
    if not pa.types.is_dictionary(texts.type):
        return texts.nbytes
    return pc.sum(pc.take(pc.binary_length(texts.dictionary), texts.indices)).as_py() or 0
