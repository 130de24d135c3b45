"""`qadprep verify`: is every byte of a shard set what was written, and is every tuple whole?"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.shard_format import INDEX_NAME, read_info
from qadprep.store import open_folder
from qadprep.verify_faults import Fault
from qadprep.verify_run import byte_progress, check_shards
from qadprep.verify_set import config_faults, count_faults, crossing_groups, twice_there, unlisted_files
from qadprep.verify_shard import Level

if TYPE_CHECKING:
    from qadprep.store import Folder

__all__ = ["Fault", "Level", "VerifyReport", "verify"]

MAX_LISTED = 2000
_LACKING = {
    "sha256": "the indexes have no hashes of tuples: a damaged byte is found, but not always whose it is",
    "json_offset": "the indexes have no json members: they are not compared",
    "index_sha256": f"{INDEX_NAME} has no hashes of the indexes",
    "group": "the indexes have no groups: recordings in several splits are not looked for",
}


@dataclass
class VerifyReport:
    """Result of `verify`.

    Attributes:
        level: what was checked: `quick`, `hashes` or `full`.
        shards: in the set; `tuples` and `bytes` are of those that could be read.
        faults: the first faults of every shard, then those of the set.
        fault_count: of all, listed or not.
        damaged: shards with a fault of their own.
        crossing: groups (recordings) in more than one split, as `shard` found and noted them.
        notes: what could not be checked, since the set is of an older minor version.
    """

    level: str
    shards: int = 0
    tuples: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    fault_count: int = 0
    damaged: list[str] = field(default_factory=list)
    crossing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "level": self.level,
            "shards": self.shards,
            "tuples": self.tuples,
            "bytes": self.bytes,
            "ok": not self.fault_count,
            "groups_in_several_splits": self.crossing,
            "notes": self.notes,
            "fault_count": self.fault_count,
            "damaged_shards": self.damaged,
            "faults": [fault._asdict() for fault in self.faults],
        }

    def add(self, found: Iterator[Fault] | list[Fault], count: int | None = None) -> None:
        """Take over faults; `count` where there are more than are listed."""
        listed = list(found)
        self.fault_count += len(listed) if count is None else count
        self.faults += listed[: max(0, MAX_LISTED - len(self.faults))]


def verify(
    shards: "str | Folder",
    *,
    level: Level = "full",
    workers: int = 0,
    progress: bool = True,
    only: Collection[str] | None = None,
) -> VerifyReport:
    """Check a shard set against its own hashes, counts and indexes.

    Args:
        shards: local folder or fsspec URL.
        level: `quick` reads sizes and tar headers, `hashes` every byte, `full` decodes every crop as well and compares
            every tuple, picture and json member with the index.
        workers: threads, or for decoding on more than four cores processes; 0 takes one per core. Does not change the
            result.
        progress: show it on stderr.
        only: names of the shards to read; of the others only the index is. None reads all.

    Returns:
        The report; damage is in its faults, never raised.

    Raises:
        UserError: there is no shard set, or its `shards.json` cannot be read.
    """
    folder = open_folder(shards)
    info = read_info(folder)
    entries = info["shardlist"]
    report = VerifyReport(level, len(entries))
    levels = [level if only is None or entry["url"] in only else None for entry in entries]
    total = sum(entry.get("filesize") or 0 for entry, its in zip(entries, levels, strict=True) if its)
    hashes: list[np.ndarray] = []
    splits: Counter = Counter()
    groups: set[tuple[str, str, str]] = set()
    lacking: set[str] = set()
    indexed = True
    with byte_progress(total, progress) as advance:
        for entry, check in zip(entries, check_shards(folder, info, levels, workers, advance), strict=True):
            report.tuples += check.tuples
            report.bytes += check.bytes
            report.add(check.faults.listed, check.faults.count)
            report.damaged += [entry["url"]] if check.faults.count else []
            hashes.append(check.key_hashes)
            splits += check.splits
            groups |= check.groups
            lacking |= check.lacking
            indexed &= check.indexed
    report.notes = [_note(name) for name in sorted(lacking)]
    report.add(unlisted_files(folder, info))
    report.add(config_faults(folder, info))
    twice, count = twice_there(folder, info, hashes)
    report.add(twice, count)
    report.damaged += sorted({fault.shard for fault in twice} - set(report.damaged))
    report.crossing = crossing_groups(groups)
    if indexed:
        report.add(count_faults(info, splits))
        noted = info.get("groups_in_several_splits")
        if noted is not None and "group" not in lacking and len(report.crossing) != noted:
            fault = f"{len(report.crossing)} groups are in several splits, {noted} were when it was written"
            report.add([Fault(INDEX_NAME, "", None, f"{fault}: {'; '.join(report.crossing[:3])}")])
    return report


def _note(name: str) -> str:
    quality = name.removesuffix("_pixels_sha256")
    return _LACKING.get(name) or f"the indexes have no hashes of the pixels of {quality}: they are decoded only"
