"""What concerns a shard set as a whole: config, counts, keys that are there twice, recordings in several splits."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.errors import UserError
from qadprep.shard_format import CONFIG_NAME, INDEX_NAME
from qadprep.shardset import read_index
from qadprep.verify_faults import MAX_LISTED_PER_SHARD, Fault

if TYPE_CHECKING:
    from qadprep.store import Folder

# Of the entries of a config these are not settings of `shard` themselves.
_BESIDE_SETTINGS = ("config_hash", "packs_hash", "extract")


def unlisted_files(folder: "Folder", info: dict[str, Any]) -> Iterator[Fault]:
    """Shards and indexes that lie in the folder and are not in `shards.json`."""
    listed = {entry[kind] for entry in info["shardlist"] for kind in ("url", "index")}
    for name in sorted(file.name for file in folder.iterdir()):
        if name.endswith((".tar", ".parquet")) and not name.startswith(".") and name not in listed:
            yield Fault(name, "", None, f"is not in {INDEX_NAME}: left over from another run?")


def config_hash(config: dict[str, Any]) -> str | None:
    """The hash of a set's settings, computed anew; None where it is not known how it came about.

    `shard` hashes its settings with the content of the packs, `merge` and `split` all that they note.
    """
    if "made_by" in config:
        hashed = {name: value for name, value in config.items() if name != "config_hash"}
    elif "packs_hash" in config:
        settings = {name: value for name, value in config.items() if name not in _BESIDE_SETTINGS}
        hashed = {"packs": config["packs_hash"], **settings}
    else:
        return None
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def config_faults(folder: "Folder", info: dict[str, Any]) -> Iterator[Fault]:
    """Whether the settings are those that the hash is of, and `shard.json` says the same."""
    config = info.get("config") or {}
    computed = config_hash(config)
    for said in (info.get("config_hash"), config.get("config_hash")):
        if computed is not None and said != computed:
            yield Fault(INDEX_NAME, "", None, f"config_hash is {str(said)[:12]}…, its config gives {computed[:12]}…")
            break
    if not config:
        return
    try:
        beside = json.loads((folder / CONFIG_NAME).read_bytes())
    except FileNotFoundError:
        yield Fault(CONFIG_NAME, "", None, "the file is missing")
    except (OSError, ValueError, RecursionError) as error:
        yield Fault(CONFIG_NAME, "", None, f"cannot be read ({' '.join(str(error).split())[:200]})")
    else:
        if beside != config:
            names = sorted(beside.keys() | config.keys()) if isinstance(beside, dict) else []
            other = [name for name in names if beside.get(name) != config.get(name)]
            yield Fault(CONFIG_NAME, "", None, f"is not the config in {INDEX_NAME}: {(other or ['no object'])[0]}")


def count_faults(info: dict[str, Any], splits: Counter) -> Iterator[Fault]:
    """Tuples per split in `shards.json` against those in the indexes."""
    said = info.get("tuples")
    if said is None:
        return
    for split in sorted(said.keys() | splits.keys()):
        if said.get(split, 0) != splits[split]:
            fault = f"says {said.get(split, 0)} tuples of {split}, the indexes have {splits[split]}"
            yield Fault(INDEX_NAME, "", None, fault)


def crossing_groups(groups: set[tuple[str, str, str]]) -> list[str]:
    """Groups (recordings) that are in more than one split, as `<dataset>/<group>`.

    Args:
        groups: (dataset, group, split) of all tuples.
    """
    counts = Counter((dataset, group) for dataset, group, _ in groups if group is not None)
    return sorted(f"{dataset}/{group}" for (dataset, group), count in counts.items() if count > 1)


def twice_there(
    folder: "Folder", info: dict[str, Any], hashes: list[np.ndarray], limit: int = MAX_LISTED_PER_SHARD
) -> tuple[list[Fault], int]:
    """Keys that are there more than once, in one shard or in several: the first ones, and how many in all.

    Only hashes are held of all keys at once; the few that are equal are looked up in the indexes.

    Args:
        hashes: int64, of the keys of each shard in the order of `shards.json`; empty where an index is unreadable.
    """
    alike = np.concatenate([*hashes, np.zeros(0, np.int64)])
    starts = np.concatenate([[0], np.cumsum([len(part) for part in hashes])]).astype(np.int64)
    order = np.argsort(alike, kind="stable")
    second = np.flatnonzero(alike[order[1:]] == alike[order[:-1]]) + 1
    rows = np.unique(np.concatenate([order[second[:limit]], order[second[:limit] - 1]]))
    places: dict[str, tuple[str, int]] = {}
    faults: list[Fault] = []
    shards = np.searchsorted(starts, rows, side="right") - 1
    for shard in np.unique(shards).tolist():
        entry = info["shardlist"][shard]
        try:
            table = read_index(folder, entry, info["qualities"])
        except UserError:  # it could be read a moment ago
            continue
        for row in (rows[shards == shard] - starts[shard]).tolist():
            key, offset = table["key"][row].as_py(), table["offset"][row].as_py()
            if key in places:
                other, at = places[key]
                faults.append(Fault(entry["url"], key, offset, f"the same key is in {other} at byte {at}"))
            places.setdefault(key, (entry["url"], offset))
    # More of them than were looked up are taken for what they almost surely are.
    return faults, len(faults) + max(0, len(second) - limit)
