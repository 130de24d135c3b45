"""Check one shard: its hashes, its tar headers against its index, and on request every tuple's content."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from qadprep.errors import UserError
from qadprep.shard_format import INDEX_NAME
from qadprep.shardset import read_index
from qadprep.ustar import BLOCK
from qadprep.verify_faults import Faults
from qadprep.verify_file import CHUNK_BYTES, ShardFile, blocks_at
from qadprep.verify_headers import check_headers, found_name, key_of
from qadprep.verify_index import Layout, check_rows, read_layout
from qadprep.verify_tuple import check_tuple

if TYPE_CHECKING:
    from qadprep.store import Folder

Level = Literal["full", "hashes", "quick"]


@dataclass
class ShardCheck:
    """What a shard is and what is wrong with it.

    Attributes:
        key_hashes: int64 (n,), 8 bytes of each key's hash; they find keys that are in several shards.
        splits: split -> tuples, as the index says.
        groups: (dataset, group, split) of its tuples.
        lacking: what could not be checked, since the index has no such column.
        indexed: whether the index could be read.
    """

    faults: Faults
    tuples: int = 0
    bytes: int = 0
    key_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    splits: Counter = field(default_factory=Counter)
    groups: set[tuple[str, str, str]] = field(default_factory=set)
    lacking: set[str] = field(default_factory=set)
    indexed: bool = False


def check_shard(
    folder: "Folder",
    info: dict[str, Any],
    entry: dict[str, Any],
    level: Level | None,
    advance: Callable[[int], None],
) -> ShardCheck:
    """Check one shard; whatever is wrong with it, its index included, is returned as faults.

    Args:
        entry: of the shard in `shards.json`.
        level: `quick` reads the headers, `hashes` the whole file, `full` decodes it as well; None reads the index only.
        advance: called with the bytes that were read since its last call.
    """
    check = ShardCheck(Faults(entry["url"]))
    try:
        table = _read_table(folder, info, entry, check)
        if level is not None:
            with ShardFile(folder / entry["url"]) as file:
                check.bytes = file.size
                _check_file(file, table, info, entry, level, check, advance)
    except FileNotFoundError:
        check.faults.add("the file is missing")
    # Whatever a damaged file or its store comes up with is a fault of this shard, never the end of the run.
    except Exception as error:
        cause = " ".join(str(error).split())
        check.faults.add(f"cannot be checked ({type(error).__name__}: {cause[:200]})")
    return check


def _read_table(folder: "Folder", info: dict[str, Any], entry: dict[str, Any], check: ShardCheck) -> pa.Table | None:
    """The index, after what it tells by itself has been checked; None if it cannot be read."""
    try:
        with ShardFile(folder / entry["index"]) as file:
            digest = hashlib.sha256()
            for start in range(0, file.size, CHUNK_BYTES):
                digest.update(file.read(start, min(CHUNK_BYTES, file.size - start)))
        _compare_hash(f"{entry['index']}: ", digest.hexdigest(), entry.get("index_sha256"), check, "index_sha256")
        table = read_index(folder, entry, info["qualities"])
    except FileNotFoundError:
        check.faults.add(f"{entry['index']}: the file is missing")
        return None
    except (UserError, OSError) as error:
        check.faults.add(str(error))
        return None
    check.indexed = True
    check.tuples = len(table)
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in table["key"].to_pylist())
    check.key_hashes = np.frombuffer(b"".join(digests), np.int64)
    check.splits = Counter({row["values"]: row["counts"] for row in table["split"].value_counts().to_pylist()})
    hashes = ["sha256", *(f"{quality}_pixels_sha256" for quality in info["qualities"])]
    for name in (*hashes, "json_offset", "group"):
        # Of older minor versions; a set that was merged from such a one has the column, but empty.
        if name not in table.column_names or 0 < table[name].null_count == len(table):
            check.lacking.add(name)
    if "group" not in check.lacking:
        found = (
            table.select(["dataset", "group", "split"])
            .group_by(["dataset", "group", "split"], use_threads=False)
            .aggregate([])
        )
        check.groups = {tuple(row.values()) for row in found.to_pylist()}
    check_rows(table, entry["split"], [name for name in hashes if name not in check.lacking], check.faults)
    return table


def _check_file(
    file: ShardFile,
    table: pa.Table | None,
    info: dict[str, Any],
    entry: dict[str, Any],
    level: Level,
    check: ShardCheck,
    advance: Callable[[int], None],
) -> None:
    if entry.get("filesize") is not None and file.size != entry["filesize"]:
        check.faults.add(f"has {file.size} bytes, {INDEX_NAME} says {entry['filesize']}")
    digests = _digests(entry, level)
    layout = None if table is None else read_layout(table, info, file.size, check.faults)
    # Tuples in one chain are hashed as they are checked; else the file is read once for its hash, and once more.
    together = layout is not None and layout.chained
    hashed = 0 if together else _hash_rest(file, 0, digests, advance)
    right = np.ones(0 if layout is None else len(layout.keys), bool)
    for first, last in _batches(layout) if layout is not None else ():
        start, end = int(layout.starts[first]), int(layout.ends[last - 1])
        places = (layout.data[first:last] - BLOCK).ravel()
        if level == "quick":
            data, headers = None, file.headers(places)
        else:
            data = file.read(start, end - start)
            headers = blocks_at(data, places - start)
        if together:
            for digest in digests:
                digest.update(data)
            hashed = end
            advance(end - start)
        right[first:last] = check_headers(headers, layout, first, last, check.faults)
        if level == "full":
            _check_content(data, table, info, layout, first, right[first:last], check.faults)
    _hash_rest(file, hashed, digests, advance)
    if layout is not None:
        _check_end(file, layout, check.faults)
    if digests and not _compare_hash("", digests[0].hexdigest(), entry["sha256"], check):
        if table is not None and "sha256" not in check.lacking:
            if level == "hashes":
                _locate(file, table["sha256"], layout, right, check.faults)
            if check.faults.count == 1:
                check.faults.add(f"every tuple is as the index says: {INDEX_NAME} is wrong, or the end of the archive")
    elif len(digests) > 1:
        _compare_hash("", digests[1].hexdigest(), entry["md5sum"], check, "md5sum")


def _digests(entry: dict[str, Any], level: Level) -> list[Any]:
    """Of the whole file: sha256, and beside the far slower decoding the md5 that wids readers use."""
    if level == "quick":
        return []
    md5 = level == "full" and entry.get("md5sum") is not None
    return [hashlib.sha256(), *([hashlib.md5(usedforsecurity=False)] if md5 else [])]


def _hash_rest(file: ShardFile, start: int, digests: list[Any], advance: Callable[[int], None]) -> int:
    """Hash the file from a byte on; returns its size."""
    for at in range(start, file.size, CHUNK_BYTES) if digests else ():
        data = file.read(at, min(CHUNK_BYTES, file.size - at))
        for digest in digests:
            digest.update(data)
        advance(len(data))
    return file.size


def _compare_hash(what: str, got: str, said: str | None, check: ShardCheck, name: str = "sha256") -> bool:
    """Whether a hash is right; one that `shards.json` does not have is noted as lacking."""
    if said is None:
        check.lacking.add(name)
    elif got != said:
        check.faults.add(f"{what}{name} is {got[:12]}…, {INDEX_NAME} says {said[:12]}…")
        return False
    return True


def _batches(layout: Layout) -> Iterator[tuple[int, int]]:
    """Row ranges of sound tuples that lie one after the other, about CHUNK_BYTES each."""
    starts, ends, sound = layout.starts, layout.ends, layout.sound
    chained = sound[1:] & sound[:-1] & (starts[1:] == ends[:-1])
    breaks = [*(np.flatnonzero(~chained) + 1).tolist(), len(starts)]
    first = 0
    for until in breaks:
        while first < until and sound[first]:
            fit = int(np.searchsorted(ends[first:until], starts[first] + CHUNK_BYTES, side="right"))
            yield first, first + max(1, fit)
            first += max(1, fit)
        first = until


def _check_content(
    data: memoryview,
    table: pa.Table,
    info: dict[str, Any],
    layout: Layout,
    first: int,
    right: np.ndarray,
    faults: Faults,
) -> None:
    base = int(layout.starts[first])
    for place, row in enumerate(table.slice(first, len(right)).to_pylist()):
        if not right[place]:
            continue
        start, end = int(layout.starts[first + place]), int(layout.ends[first + place])
        members = zip((layout.data[first + place] - start).tolist(), layout.sizes[first + place].tolist(), strict=True)
        for fault, at in check_tuple(data[start - base : end - base], row, info, list(members)):
            faults.add(fault, row["key"], at)


def _check_end(file: ShardFile, layout: Layout, faults: Faults) -> None:
    """After the last tuple there are zeros only: two blocks at least."""
    end = int(layout.ends[-1]) if len(layout.ends) else 0
    if not 0 <= end <= file.size:
        return
    if file.size - end < 2 * BLOCK:
        faults.add(f"no end of archive: the file ends at byte {file.size}, the last tuple at {end}", "", end)
    for at in range(end, file.size, CHUNK_BYTES):
        data = np.frombuffer(file.read(at, min(CHUNK_BYTES, file.size - at)), np.uint8)
        if data.any():
            place = at + int(np.argmax(data != 0))
            name = found_name(file.read(end, BLOCK)) if place < end + BLOCK else None
            what = f"{name!r} follows the last tuple at byte {end}" if name else f"byte {place} should be 0"
            faults.add(f"{what}: the index knows no more tuples", key_of(name or ""), end if name else place)
            return


def _locate(file: ShardFile, written: pa.ChunkedArray, layout: Layout, right: np.ndarray, faults: Faults) -> None:
    """Which tuples' own hashes are wrong, of a file whose hash is.

    Args:
        written: their hashes.
        right: bool (n,), tuples of which no other fault is known.
    """
    for first, last in _batches(layout):
        base = int(layout.starts[first])
        data = file.read(base, int(layout.ends[last - 1]) - base)
        for row in range(first, last):
            start, end = int(layout.starts[row]), int(layout.ends[row])
            said = written[row].as_py()
            if right[row] and said and hashlib.sha256(data[start - base : end - base]).hexdigest() != said:
                faults.add(f"a byte between {start} and {end} is not what was written", layout.key(row), start)
