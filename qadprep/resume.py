"""What is done already: the stored result of a finished group, and the summary of an extraction done in parts."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.catalog.base import Group
from qadprep.config import ExtractConfig
from qadprep.errors import UserError
from qadprep.faces.service_process import Statistics
from qadprep.group_facts import describe, with_faces
from qadprep.group_files import size_of, wanted_files
from qadprep.pack import pack_paths, read_meta, read_pack
from qadprep.parts import Part, part_reports
from qadprep.results import GroupResult, facts_of, summarise
from qadprep.store import parallel_reads
from qadprep.summary import ExtractSummary

if TYPE_CHECKING:
    from qadprep.store import Folder


def finished(group: Group, root: Path, out: "Folder", config: ExtractConfig) -> GroupResult | None:
    """The stored result of a group whose pack is complete, of this config, and of the files as they are now."""
    tar, table = pack_paths(out, group.dataset, group.name)
    meta = read_meta(table)
    if not meta or meta.get("config_hash") != config.hash() or not tar.is_file():
        return None
    if meta.get("clips") != describe(group):
        return None  # another split or label than then
    then = {(f["method"], f["clip"], f["quality"]): f["path"] for f in meta["files"]}
    if wanted_files(with_faces(group, config), config) != then:
        return None  # files came or went
    for record in meta["files"]:
        if (size_of(root, record["path"]) if record["path"] else -1) != record["bytes"]:
            return None  # fetched again
        made = record["made"]
        if made and size_of(root, made["from"]) != made["from_bytes"]:
            return None  # made from another file
    try:
        pack = read_pack(table)
    except UserError:
        return None  # damaged: made again
    result = summarise(group.name, facts_of(pack.table), pack.files, [tuple(note) for note in meta["notes"]])
    result.counts = dict(meta.get("counts") or {})
    result.pack_bytes, result.skipped = tar.stat().st_size, True
    return result


def all_finished(groups: Sequence[Group], root: Path, out: "Folder", config: ExtractConfig) -> list[GroupResult | None]:
    """`finished` of every group, in order."""
    with ThreadPoolExecutor(parallel_reads(out)) as pool:
        return list(pool.map(lambda group: finished(group, root, out, config), groups))


def part_report(summary: ExtractSummary, part: Part, groups: Sequence[Group]) -> dict[str, Any]:
    """A part's own summary, with what the summary of the whole will need of it and cannot take from the packs.

    Args:
        groups: those of all parts together.
    """
    measured = {r.group: {"seconds": r.seconds, "peak_rss_mib": r.peak_rss_mib, "skipped": r.skipped}
                for r in summary.results}  # fmt: skip
    return summary.as_dict() | {
        "groups_of_all_parts": _fingerprint(groups),
        "crashed": summary.crashed,
        "measured": measured,
        "detector_processes": [asdict(statistics) for statistics in summary.detectors],
    }


def join_parts(
    part: Part,
    groups: Sequence[Group],
    root: Path,
    out: "Folder",
    config: ExtractConfig,
    say: Callable[[str], None],
) -> ExtractSummary | None:
    """The summary of the whole extraction, once every part has come to its end; None before that.

    Args:
        part: the one that has just ended.
        groups: those of all parts together, as this part sees them.
        say: takes the reason why there is no summary yet.
    """
    reports = part_reports(out, part)
    missing = [str(sibling) for sibling in part.siblings() if sibling not in reports]
    if missing:
        say(f"part {part} is done; part {', '.join(missing)} still to come")
        return None
    strange = [str(p) for p, report in reports.items() if report.get("groups_of_all_parts") != _fingerprint(groups)]
    if strange:
        say(f"part {', '.join(strange)} saw other groups than part {part}: files came or went; run without --part")
        return None
    summary = ExtractSummary(
        crashed=sorted((group, message) for report in reports.values() for group, message in report["crashed"]),
        detector=reports[part]["detector"],
        seconds=max(report["seconds"] for report in reports.values()),
        workers=sum(report["workers"] for report in reports.values()),
        engine=reports[part]["engine"],
        detectors=[Statistics(**entry) for report in reports.values() for entry in report["detector_processes"]],
    )
    crashed = {group for group, _ in summary.crashed}
    measured = {group: facts for report in reports.values() for group, facts in report["measured"].items()}
    for group, result in zip(groups, all_finished(groups, root, out, config), strict=True):
        if result is not None:
            for name, value in measured.get(group.name, {}).items():
                setattr(result, name, value)
            summary.results.append(result)
        elif group.name not in crashed:
            say(f"{out}: group {group.name} is not up to date any more; run without --part")
            return None
    return summary


def _fingerprint(groups: Sequence[Group]) -> str:
    text = "\n".join(f"{group.dataset}/{group.name}" for group in groups)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
