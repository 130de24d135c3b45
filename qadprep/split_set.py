"""`qadprep split`: a shard set -> several, or a part of it. Tuples are copied as they are, in their order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qadprep.config import ShardConfig
from qadprep.errors import UserError
from qadprep.locks import reader
from qadprep.progress import progress_bar
from qadprep.sampling import draw
from qadprep.set_facts import identity, origin, part_counts
from qadprep.set_files import refuse_source, refuse_unreadable
from qadprep.set_shards import NewShard, Piece, shard_starts
from qadprep.set_sql import index_of, rows_of, rows_where, sql_over
from qadprep.set_writer import NewSet, check_output, files_of, write_set
from qadprep.shard_format import CONFIG_NAME, splits_in_order
from qadprep.shard_output import clear_set, output_folder
from qadprep.shardset import ShardSet
from qadprep.store import open_folder, read_json

if TYPE_CHECKING:
    from qadprep.store import Folder

MAX_PARTS = 1000
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
_LABELS = {0: "real", 1: "fake"}


@dataclass(frozen=True)
class _Part:
    """One of the new sets: the folder's name (empty for `out` itself), its positions, and how it was chosen."""

    name: str
    positions: np.ndarray
    chosen: dict[str, Any]


def split(
    place: "str | Folder",
    out: "str | Folder",
    *,
    by: str | None = None,
    where: str | None = None,
    folds: int | None = None,
    tuples_per_shard: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a shard set for each value of a column, for the tuples that meet a condition, or for each of some folds.

    Args:
        place: folder or fsspec URL of the shard set.
        out: folder or URL; the sets go into folders below it, that of `where` into itself.
        by: a column of the index, such as `method`, `dataset`, `split`, `label` (folders `real` and `fake`).
        where: a condition over the index's columns, in SQL.
        folds: deal the recordings (groups) of each dataset and split into this many sets; none is in two of them.
        seed: of the folds.
        overwrite: replace other shard sets, and delete parts of an earlier split below `out` that this one has not.

    Returns:
        `sets`: for each its `name`, `out`, `tuples` per split, `shards`, `bytes`, `groups_in_several_splits`;
        `tuples`: in all.

    Raises:
        UserError: not one of the three ways, a column that is not there or has too many values, no tuple, a damaged
            source, or an `out` that is not free.
        RunEnded: the disk is full, or the store cannot be written.
    """
    if [by, where, folds].count(None) != 2:
        raise UserError("split: expected one of --by COLUMN, --where CONDITION and --folds K")
    tuples_per_shard = ShardConfig.checked(tuples_per_shard=tuples_per_shard).tuples_per_shard
    folder, out = open_folder(place), open_folder(out)
    results = []
    with reader(folder), ShardSet(folder) as source:
        if not len(source):
            raise UserError(f"{folder}: holds no tuple")
        table = index_of(source)
        if where is not None:
            parts = [_Part("", rows_where(table, where), {"where": where})]
            if not len(parts[0].positions):
                raise UserError(f"--where {where!r}: none of the {len(source)} tuples meets it")
        elif by is not None:
            parts = list(_by_value(table, by))
        else:
            parts = list(_folds(table, folds, seed))
        for part in parts:  # before anything is written
            check_output(_target(out, part), [source], _described(source, part, tuples_per_shard), overwrite)
        if parts[0].name:
            _clear_other_parts(out, source, parts, overwrite)
        with progress_bar("split", sum(len(part.positions) for part in parts), "tuples") as advance:
            for part in parts:
                target = _target(out, part)
                shards = list(_new_shards(source, part.positions, tuples_per_shard))
                description = _described(source, part, tuples_per_shard)
                info = write_set(target, [source], shards, description, advance=advance, overwrite=overwrite)
                results.append(
                    {
                        "name": part.name or description.name,
                        "out": str(target),
                        "tuples": info["tuples"],
                        "shards": len(info["shardlist"]),
                        "bytes": sum(entry["filesize"] for entry in info["shardlist"]),
                        "groups_in_several_splits": info["groups_in_several_splits"],
                    }
                )
    return {"sets": results, "tuples": sum(sum(result["tuples"].values()) for result in results)}


def _target(out: "Folder", part: _Part) -> "Folder":
    return out / part.name if part.name else out


def _clear_other_parts(out: "Folder", source: ShardSet, parts: list[_Part], overwrite: bool) -> None:
    """Delete what an earlier split left below `out` and this one will not write anew: of both together a recording
    would be in two folds.

    Raises:
        UserError: there is such a set and no `overwrite`, or it is the source.
    """
    names = {part.name for part in parts}
    below = sorted(out.iterdir(), key=lambda folder: folder.name) if out.is_dir() else []
    others = [folder for folder in below if folder.name not in names
              and (read_json(folder / CONFIG_NAME) or {}).get("made_by") == "split"]  # fmt: skip
    if not others:
        return
    if not overwrite:
        raise UserError(
            f"{others[0]}: is a part of another split, and none of this one's; choose another --out, or --overwrite to "
            "delete it"
        )
    for folder in others:
        refuse_source(folder, [source.path])
    everything = NewShard("", tuple(Piece(0, number) for number in range(len(source.shards))))
    for folder in others:
        refuse_unreadable(folder, files_of([source], [everything]))
    for folder in others:
        with output_folder(folder):
            clear_set(folder)


def _described(source: ShardSet, part: _Part, tuples_per_shard: int) -> NewSet:
    config = {
        "made_by": "split",
        **part.chosen,
        "tuples_per_shard": tuples_per_shard,
        "split_of": identity(source),
        **origin([source]),
    }
    counts = part_counts(source, "other_parts" if part.name else "filter_where", len(part.positions))
    name = "-".join(filter(None, [source.info.get("name", ""), part.name or "part"]))
    return NewSet(name, config, counts)


def _by_value(table: pa.Table, column: str) -> Iterator[_Part]:
    if column not in table.column_names:
        raise UserError(f"--by {column}: the index has no such column; it has {', '.join(table.column_names)}")
    if pa.types.is_floating(table[column].type):
        raise UserError(f"--by {column}: a measure has no values to split by; expected e.g. --where '{column} < 100'")
    codes = table[column].combine_chunks().dictionary_encode("encode")
    values = codes.dictionary.to_pylist()
    if len(values) > MAX_PARTS:
        raise UserError(f"--by {column}: has {len(values)} values, over {MAX_PARTS}; choose a column with fewer")
    names = [_folder_name(column, value) for value in values]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"--by {column}: two values would both go to {doubled[0]!r}; use --where for each")
    number = codes.indices.to_numpy()
    for code in sorted(range(len(values)), key=names.__getitem__):
        yield _Part(names[code], np.flatnonzero(number == code), {"by": column, "value": values[code]})


def _folder_name(column: str, value: Any) -> str:
    """A value as a folder below `out`; the index may come from anybody, so nothing else passes."""
    if value is None or value == "":
        return "none"
    if column == "label":
        return _LABELS.get(value, str(value))
    name = str(value).lower() if isinstance(value, bool) else str(value)
    if not _FOLDER_NAME.fullmatch(name):
        raise UserError(f"--by {column}: the value {value!r} cannot be a folder's name; use --where for it")
    return name


def _folds(table: pa.Table, count: int, seed: int) -> Iterator[_Part]:
    """Recordings in drawn order, dealt round: each dataset and split is spread over the folds as evenly as it goes."""
    if not 2 <= count <= MAX_PARTS:
        raise UserError(f"--folds: got {count}; expected 2 to {MAX_PARTS}")
    if "group" not in table.column_names or table["group"].null_count:
        raise UserError(
            "--folds: the index does not tell which recording a tuple shows; write the set again with `qadprep shard`"
        )
    known = table.select(["dataset", "group", "split"])
    with sql_over(tuples=known) as connection:
        query = 'SELECT dataset, "group", min(split) AS split FROM tuples GROUP BY ALL'
        groups = rows_of(connection, query)
    if len(groups) < count:
        raise UserError(f"--folds: got {count}, but the set has {len(groups)} recordings")
    groups.sort(key=lambda row: (row["dataset"], row["split"], draw(seed, row["dataset"], row["group"]), row["group"]))
    dealt = pa.table(
        {
            "dataset": pa.array([row["dataset"] for row in groups], pa.string()),
            "group": pa.array([row["group"] for row in groups], pa.string()),
            "fold": pa.array(np.arange(len(groups)) % count),
        }
    )
    with sql_over(tuples=known, dealt=dealt) as connection:
        query = 'SELECT fold FROM tuples JOIN dealt USING (dataset, "group") ORDER BY tuples.position'
        folds = connection.sql(query).to_arrow_table()["fold"].to_numpy()
    for fold in range(count):
        yield _Part(f"fold-{fold}", np.flatnonzero(folds == fold), {"folds": count, "fold": fold, "fold_seed": seed})


def _new_shards(source: ShardSet, positions: np.ndarray, tuples_per_shard: int) -> Iterator[NewShard]:
    """Shards of consecutive tuples of one split, in the source's order."""
    starts = shard_starts(source)
    shard_of = np.searchsorted(starts, positions, side="right") - 1
    split_of = np.array([entry["split"] for entry in source.shards])
    for name in splits_in_order(set(split_of)):
        chosen = np.isin(shard_of, np.flatnonzero(split_of == name))
        own, shards = positions[chosen], shard_of[chosen]
        for begin in range(0, len(own), tuples_per_shard):
            part, numbers = own[begin : begin + tuples_per_shard], shards[begin : begin + tuples_per_shard]
            yield NewShard(
                name,
                tuple(Piece(0, int(shard), part[numbers == shard] - starts[shard]) for shard in np.unique(numbers)),
            )
