"""Write a shard set out of tuples of others: bytes are copied as they are, nothing is decoded or coded again."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import qadprep
from qadprep.card import write_card
from qadprep.config import guard_output
from qadprep.engine import run_ending
from qadprep.errors import UserError
from qadprep.set_facts import Counts
from qadprep.set_files import refuse_source, refuse_unreadable
from qadprep.set_shards import NewShard, ShardWriter
from qadprep.set_sql import facts_of
from qadprep.shard_format import (
    CARD_NAME,
    CONFIG_NAME,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    INDEX_NAME,
    MAX_SHARDS,
    read_info,
    splits_in_order,
)
from qadprep.shard_output import (
    clear_entries,
    clear_leftovers,
    clear_shards,
    output_folder,
    refuse_foreign,
    whole_shards,
)
from qadprep.shardset import ShardSet
from qadprep.store import write_json

if TYPE_CHECKING:
    from qadprep.store import Folder


@dataclass(frozen=True)
class NewSet:
    """What stands in `shards.json` beside the shards.

    Attributes:
        config: what decides the bytes; its hash is added.
    """

    name: str
    config: dict[str, Any]
    counts: Counts = field(default_factory=Counts)

    @property
    def described(self) -> dict[str, Any]:
        """The config with its hash, as it goes into `shard.json`."""
        return {**self.config, "config_hash": settings_hash(self.config)}


def settings_hash(config: dict[str, Any]) -> str:
    """sha256 (hex) of a config without its `config_hash`, as JSON with sorted keys."""
    rest = {name: value for name, value in config.items() if name != "config_hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_set(
    out: "Folder",
    sources: Sequence[ShardSet],
    shards: Sequence[NewShard],
    description: NewSet,
    *,
    advance: Callable[[int, str], None],
    overwrite: bool = False,
    link: bool = False,
) -> dict[str, Any]:
    """Write a shard set; `shards.json` comes last, so that a killed run leaves nothing that looks whole.

    Args:
        out: local or remote folder, not that of a source.
        sources: of one list of qualities, one codec and one size.
        shards: to be written, a split's shards one after another; numbered in this order.
        advance: of a progress bar; counts tuples.
        overwrite: replace a set of another config, or the same one; without it a finished one of this config stays.
        link: hard links instead of copies for whole shards, where the file system can.

    Returns:
        What went into `shards.json`.

    Raises:
        UserError: `out` belongs to a source, to another set or to somebody else; a source is damaged; too many shards.
        RunEnded: the disk is full, or the store cannot be written.
    """
    if len(shards) > MAX_SHARDS:
        raise UserError(f"{out}: would have {len(shards):,} shards, over {MAX_SHARDS:,}; make larger ones")
    config = description.described
    try:
        with output_folder(out):
            check_output(out, sources, description, overwrite)
            if not overwrite and (earlier := _finished(out, config)):
                advance(sum(earlier["tuples"].values()), "finished already")
                return earlier
            if (out / CONFIG_NAME).is_file():
                refuse_unreadable(out, files_of(sources, shards))
            # Without its `shards.json` the folder is no shard set: a killed run is never taken for a whole one.
            clear_shards(out, set())
            clear_leftovers(out)
            clear_entries(out)
            write_json(out / CONFIG_NAME, config)
            writer = ShardWriter(out, sources, link)
            for new in shards:
                writer.add(new)
                advance(writer.entries[-1]["nsamples"], writer.entries[-1]["url"])
            info = _info(sources[0], description, config, writer)
            write_json(out / INDEX_NAME, info)
            return info
    except OSError as error:
        ended = run_ending(error)
        if ended is None:
            raise
        raise ended from error


def check_output(out: "Folder", sources: Sequence[ShardSet], description: NewSet, overwrite: bool) -> None:
    """What can be known before anything is written.

    Raises:
        UserError: `out` belongs to a source, to another set or to somebody else.
    """
    refuse_source(out, [source.path for source in sources])
    refuse_foreign(out)
    guard_output(out, CONFIG_NAME, description.described, overwrite)


def files_of(sources: Sequence[ShardSet], shards: Sequence[NewShard]) -> Iterator[tuple["Folder", dict[str, Any]]]:
    """(folder, entry in `shards.json`) of the sources' shards that are needed."""
    needed = {(piece.source, piece.shard) for new in shards for piece in new.pieces}
    return ((sources[source].path, sources[source].shards[shard]) for source, shard in sorted(needed))


def _finished(out: "Folder", config: dict[str, Any]) -> dict[str, Any] | None:
    """`shards.json` of a whole set of this config in the folder: its sources may be gone or damaged by now."""
    try:
        info = read_info(out)
    except UserError:
        return None
    same = info.get("config") == config and info["format_version"] == f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
    return info if same and len(whole_shards(out, info)) == len(info["shardlist"]) else None


def _info(first: ShardSet, description: NewSet, config: dict[str, Any], writer: ShardWriter) -> dict[str, Any]:
    splits = [entry["split"] for entry in writer.entries]
    facts = facts_of(pa.concat_tables(writer.facts, promote_options="default"))
    info = {
        **description.counts.more,
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": description.name,
        "format_version": f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
        "tool": f"qadprep {qadprep.__version__}",
        "qualities": list(first.qualities),
        "codec": first.codec,
        "size_px": first.size_px,
        "tuples": {
            split: sum(entry["nsamples"] for entry in writer.entries if entry["split"] == split)
            for split in splits_in_order(set(splits))
        },
        "left_out": description.counts.left_out,
        "groups_in_several_splits": facts["crossing"],
        "config_hash": config["config_hash"],
        "config": config,
        "shardlist": writer.entries,
    }
    write_card(writer.out / CARD_NAME, info, facts)
    return info
