"""What became of a group: made when it is extracted, and again from its pack when it was finished earlier."""

from collections import Counter
from dataclasses import dataclass, field

from qadprep.pack import FileRecord


@dataclass
class GroupResult:
    """What became of a group; small enough to be sent between processes.

    Attributes:
        tuples: complete tuples written.
        statuses: status -> number of attempted tuples.
        failures: (file or clip, status, message) of everything that could not be used.
        notes: (clip, remark) of what was used with a restriction.
        seconds: stage -> wall-clock seconds; empty for a group finished in an earlier run.
    """

    group: str
    tuples: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    sync: dict[str, int] = field(default_factory=dict)
    pack_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: bool = False


def summarise(
    group: str, rows: list[tuple[str, str, str]], files: list[FileRecord], notes: list[tuple[str, str]]
) -> GroupResult:
    """The result of a group from what its pack stores, for groups of this run and of earlier ones alike.

    Args:
        rows: (method, clip name, status) of every attempted tuple.
    """
    result = GroupResult(group, statuses=dict(Counter(status for _, _, status in rows)))
    result.tuples = result.statuses.get("ok", 0)
    result.notes = [(clip, remark) for clip, remark in notes]
    for record in files:
        if record.status != "ok":
            result.failures.append((record.path or f"{record.method}/{record.clip}", record.status, record.message))
        if record.sync:
            verdict = record.sync["verdict"]
            result.sync[verdict] = result.sync.get(verdict, 0) + 1
    blamed = {(record.method, record.clip) for record in files if record.status != "ok"}
    by_clip: dict[tuple[str, str], Counter[str]] = {}
    for method, name, status in rows:
        by_clip.setdefault((method, name), Counter())[status] += 1
    for clip, statuses in by_clip.items():
        if not statuses["ok"] and clip not in blamed:
            status = statuses.most_common(1)[0][0]
            count = sum(statuses.values())
            result.failures.append(("/".join(clip), status, f"no tuple from {count} attempted frames ({status})"))
    return result
