"""`qadprep merge`: several shard sets -> one. Whole shards are copied; nothing is decoded or coded again."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qadprep.errors import UserError
from qadprep.locks import reader
from qadprep.progress import progress_bar
from qadprep.set_facts import identity, merged_counts, of_the_same_packs, origin
from qadprep.set_files import refuse_source, same_folder
from qadprep.set_shards import NewShard, Piece, shard_starts
from qadprep.set_sql import index_of, sql_over
from qadprep.set_writer import NewSet, write_set
from qadprep.shard_format import splits_in_order
from qadprep.shardset import ShardSet
from qadprep.store import open_folder

if TYPE_CHECKING:
    from qadprep.store import Folder

# What all sets must agree in: a reader takes it for the whole set.
_SHARED = ("qualities", "codec", "size_px")
MAX_NAME_CHARS = 80


def merge(
    places: "Sequence[str | Folder]",
    out: "str | Folder",
    *,
    skip_duplicates: bool = False,
    link: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write one shard set that holds the tuples of several, in the order in which they are given.

    Args:
        places: folders or fsspec URLs of shard sets with the same qualities, codec and size.
        out: folder or URL of the new set.
        skip_duplicates: take a key that is in several sets from the first of them, instead of refusing.
        link: hard links instead of copies, where the file system can; only the sizes of linked files are checked.
        overwrite: replace another shard set in `out`.

    Returns:
        `tuples` per split, `shards`, `bytes`, `duplicates_skipped`, `groups_in_several_splits`, `sources`.

    Raises:
        UserError: fewer than two sets, one named twice, sets that differ in what they must share, a key in several of
            them, a damaged source, or an `out` that is not free.
        RunEnded: the disk is full, or the store cannot be written.
    """
    folders, out = [open_folder(place) for place in places], open_folder(out)
    if len(folders) < 2:
        raise UserError(f"merge: got {len(folders)} shard set; expected two or more")
    for number, folder in enumerate(folders):
        if any(same_folder(folder, other) for other in folders[:number]):
            raise UserError(f"{folder}: is named twice; expected different shard sets")
    refuse_source(out, folders)
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(reader(folder))
        sources = [stack.enter_context(ShardSet(folder)) for folder in folders]
        for source in sources[1:]:
            _refuse_other_kind(sources[0], source)
        doubles = _doubles(sources, skip_duplicates)
        config = {
            "made_by": "merge",
            "skip_duplicates": skip_duplicates,
            "merged": [identity(source) for source in sources],
            **origin(sources),
        }
        shards = list(_new_shards(sources, doubles))
        total = sum(map(len, sources)) - len(doubles)
        description = NewSet(_name(sources), config, merged_counts(sources, _different(sources), total))
        with progress_bar("merge", total, "tuples") as advance:
            info = write_set(out, sources, shards, description, advance=advance, overwrite=overwrite, link=link)
    return {
        "out": str(out),
        "tuples": info["tuples"],
        "shards": len(info["shardlist"]),
        "bytes": sum(entry["filesize"] for entry in info["shardlist"]),
        "duplicates_skipped": len(doubles),
        "groups_in_several_splits": info["groups_in_several_splits"],
        "sources": config["merged"],
    }


def _refuse_other_kind(first: ShardSet, other: ShardSet) -> None:
    for name in _SHARED:
        if first.info[name] != other.info[name]:
            raise UserError(
                f"{other.path}: {name} is {_words(other.info[name])}, of {first.path} it is "
                f"{_words(first.info[name])}; only sets that agree in {', '.join(_SHARED)} can be merged"
            )


def _doubles(sources: Sequence[ShardSet], skip: bool) -> np.ndarray:
    """Positions, counted over all sets, of tuples whose key came before: int64, rising."""
    keys = pa.concat_tables([index_of(source).select(["key"]) for source in sources])
    with sql_over(tuples=keys) as connection:
        query = """
            SELECT key, first, position FROM
              (SELECT key, position, min(position) OVER (PARTITION BY key) AS first FROM tuples)
            WHERE position <> first ORDER BY position
        """
        found = connection.sql(query).to_arrow_table()
    if len(found) and not skip:
        ends = np.cumsum([len(source) for source in sources])
        row = found.slice(0, 1).to_pylist()[0]
        first, second = (sources[int(np.searchsorted(ends, row[at], side="right"))] for at in ("first", "position"))
        both = f"in {first.path} and in {second.path}" if first is not second else f"twice in {first.path}"
        raise UserError(
            f"{row['key']} is {both}; {len(found)} keys come again in all; --skip-duplicates takes each from the first "
            "set that has it"
        )
    return found["position"].to_numpy()


def _different(sources: Sequence[ShardSet]) -> list[int]:
    """How many different tuples the sets of the same packs have together, for each list of `of_the_same_packs`; of a
    set by itself all of its tuples.
    """
    counts = []
    for group in of_the_same_packs(sources):
        members = [sources[number] for number in group]
        if len(members) == 1:
            counts.append(len(members[0]))
            continue
        keys = pa.concat_tables([index_of(member).select(["key"]) for member in members])
        with sql_over(tuples=keys) as connection:
            counts += connection.execute("SELECT count(DISTINCT key) FROM tuples").fetchone()
    return counts


def _new_shards(sources: Sequence[ShardSet], doubles: np.ndarray) -> Iterator[NewShard]:
    """The sets' shards by split, inside a split in the order of the sets; those with doubles by their other rows."""
    bases = np.cumsum([0, *(len(source) for source in sources)])
    for split in splits_in_order({split for source in sources for split in source.splits}):
        for number, source in enumerate(sources):
            starts = shard_starts(source) + bases[number]
            for shard, entry in enumerate(source.shards):
                if entry["split"] != split or not entry["nsamples"]:
                    continue
                low, high = np.searchsorted(doubles, [starts[shard], starts[shard + 1]])
                rows = None
                if low < high:
                    rows = np.setdiff1d(np.arange(entry["nsamples"]), doubles[low:high] - starts[shard])
                if rows is None or len(rows):
                    yield NewShard(split, (Piece(number, shard, rows),))


def _name(sources: Sequence[ShardSet]) -> str:
    names = list(dict.fromkeys(source.info.get("name") or "unnamed" for source in sources))
    whole = "+".join(names)
    return whole if len(whole) <= MAX_NAME_CHARS else f"{names[0]}+{len(names) - 1} others"


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
