"""Cut an ordered stream of tuples into shards, and write the plan file of each."""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.config import ShardConfig
from qadprep.shard_rows import RowDigest
from qadprep.ustar import end_of_archive

# Rows that are in Python's hands at once.
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be.

    Attributes:
        name: such as `train-000000`.
        bytes: of its tar; where crops are coded again to `webp`, of a tar with the packs' PNG files, which is larger.
        file: its plan, a parquet file with a row a tuple (columns as `shard_rows.row_table`); None where not asked for.
        digest: of its rows (see `RowDigest`); empty where no plan is written.
    """

    name: str
    split: str
    tuples: int
    bytes: int
    file: Path | None
    digest: str


def cut(
    rows: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    split: str,
    config: ShardConfig,
    scratch: Path,
    wanted: Collection[str] | None,
) -> Iterator[PlannedShard]:
    """The shards of a split.

    Args:
        rows: its tuples in order; column `bytes` is the room that each takes in a tar.
        scratch: folder for the plan files.
        wanted: names of the shards whose plan files are written; None writes all.
    """
    number = 0
    shard = _Cutting(split, number, scratch, wanted, schema)
    try:
        for batch in rows:
            start = 0
            for row, size in enumerate(batch["bytes"].to_pylist()):
                if shard.is_full(size, config):
                    shard.add(batch.slice(start, row - start))
                    yield shard.close()
                    start, number = row, number + 1
                    shard = _Cutting(split, number, scratch, wanted, schema)
                shard.tuples += 1
                shard.bytes += size
            shard.add(batch.slice(start))
        yield shard.close()
    finally:
        shard.abandon()


class _Cutting:
    """A shard that is being filled; its plan goes to disk in blocks, the same whatever portions rows arrive in."""

    def __init__(
        self, split: str, number: int, scratch: Path, wanted: Collection[str] | None, schema: pa.Schema
    ) -> None:
        self.name, self.split = f"{split}-{number:06d}", split
        self.tuples = self.bytes = 0
        self._held: list[pa.RecordBatch] = []
        self._file = self._writer = None
        if wanted is None or self.name in wanted:
            self._path = scratch / f"{self.name}.plan.parquet"
            self._file = self._path.open("wb")
            self._digest = RowDigest()
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def is_full(self, size: int, config: ShardConfig) -> bool:
        """Whether a tuple of so many bytes belongs into the next shard."""
        over = config.shard_bytes is not None and self.bytes + size > config.shard_bytes
        return self.tuples >= config.tuples_per_shard or (over and self.tuples > 0)

    def add(self, rows: pa.RecordBatch) -> None:
        """The rows that were counted since the last call."""
        if self._writer and len(rows):
            self._digest.add(rows)
            self._held.append(rows)
            self._write_blocks(BLOCK_ROWS)

    def close(self) -> PlannedShard:
        path, digest = None, ""
        if self._writer:
            self._write_blocks(1)
            self._writer.close()
            self._file.close()
            path, digest = self._path, self._digest.hexdigest()
        size = self.bytes + len(end_of_archive(self.bytes))
        return PlannedShard(self.name, self.split, self.tuples, size, path, digest)

    def abandon(self) -> None:
        """Close the file, whatever state it is in; nothing after `close`."""
        if self._writer:
            with contextlib.suppress(Exception):  # why it is abandoned is known already
                self._writer.close()
            self._file.close()

    def _write_blocks(self, least: int) -> None:
        while (held := sum(map(len, self._held))) >= least:
            table = pa.Table.from_batches(self._held)
            block = table.slice(0, BLOCK_ROWS).combine_chunks()
            self._writer.write_table(block, row_group_size=BLOCK_ROWS)
            self._held = table.slice(BLOCK_ROWS).to_batches() if held > BLOCK_ROWS else []
