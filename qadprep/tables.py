"""What the commands print: tables for people, or one JSON object on stdout."""

from pathlib import Path
from typing import Any

from qadprep.catalog.leaks import Leak
from qadprep.compress import CompressSummary
from qadprep.plan import Plan
from qadprep.protocols import load_protocol, protocol_names
from qadprep.quality import QualityReport
from qadprep.repair import RepairReport
from qadprep.scan import ScanReport
from qadprep.shard import ShardSummary
from qadprep.terminal import count, finish, print_table, say
from qadprep.verify import VerifyReport

__all__ = ["compress", "count", "demo", "finish", "plan", "protocols", "report", "say", "scan", "shard", "verify"]


def scan(report: ScanReport, out: Path | None) -> None:
    """Videos per method, split and quality, then the gaps."""
    catalog = report.catalog
    named = {clip.split for clip in catalog.clips} | {split for _, split in catalog.expected}
    splits = [split for split in ("train", "val", "test", "none") if split in named]
    methods = list(dict.fromkeys(c.method for c in catalog.clips))
    methods += sorted({m for m, _ in catalog.expected} - set(methods))
    rows = []
    for method in methods:
        for split in splits:
            expected = catalog.expected.get((method, split))
            found = [report.counts.get((method, split, quality), 0) for quality in report.qualities]
            if any(found) or expected:
                absent = report.absent.get((method, split), 0) if expected is not None else "-"
                rows.append((method, split, *found, expected if expected is not None else "-", absent))
    print_table(
        f"{catalog.dataset}: {len(catalog.clips)} clips in {report.groups} groups",
        ["method", "split", *report.qualities, "official", "missing"],
        rows,
    )
    if report.incomplete:
        print_table(
            "clips that lack a quality",
            ["clip", "missing"],
            [(clip, ", ".join(missing)) for clip, missing in report.incomplete],
        )
    if report.no_original:
        title = f"{len(report.no_original)} manipulated clips without their original: cut with their own geometry"
        print_table(title, ["clip"], [(clip,) for clip in report.no_original])
    if catalog.ignored:
        print_table("files that were not taken", ["file", "reason"], catalog.ignored)
    if report.gaps:
        print_table("listed, but not on disk", ["entry", "reason"], report.gaps)
    if report.remarks:
        print_table("remarks", ["what", "remark"], report.remarks)
    _leaks(report)
    if report.quality:
        _quality(report.quality)
    if out:
        say(f"manifest: {out}")


def _leaks(report: ScanReport) -> None:
    """What crosses splits: a row for each kind, then what it is."""
    if not report.leaks:
        say("no recording, donor or identity crosses the splits, as far as names tell")
        return
    kinds: dict[tuple[str, str, bool], list[Leak]] = {}
    for leak in report.leaks:
        kinds.setdefault((leak.kind, " and ".join(leak.splits), leak.droppable), []).append(leak)
    print_table(
        "what crosses the splits",
        ["kind", "splits", "count", "clips", "--drop-leaks"],
        [
            (kind, splits, len(leaks), len({clip for leak in leaks for clip in leak.clips}),
             "drops the training clips" if droppable else "cannot help")
            for (kind, splits, droppable), leaks in kinds.items()
        ],
    )  # fmt: skip
    print_table(
        "one by one",
        ["kind", "what", "splits", "clips", "such as"],
        [(leak.kind, leak.what, " and ".join(leak.splits), len(leak.clips), _some(leak)) for leak in report.leaks],
    )
    if report.dropped:
        say(f"--drop-leaks: {len(report.dropped)} training clips left out")


def _some(leak: Leak) -> str:
    """A few clips of a leak, originals first."""
    names = sorted((clip.split("/", 1)[1] for clip in leak.clips), key=lambda name: not name.startswith("original/"))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _quality(quality: QualityReport) -> None:
    """Streams against folders."""
    rows = [(path, word, f"made with CRF {crf:g}") for path, word, crf in quality.mismatched]
    rows += [(path, "", reason) for path, reason in quality.unreadable]
    if rows:
        print_table("files that contradict their folder's quality", ["file", "folder", "stream"], rows)
    say(
        f"quality: {quality.agree} files agree with their folder, {len(quality.mismatched)} do not, "
        f"{quality.unknown} do not tell, {len(quality.unreadable)} cannot be read"
    )


def protocols() -> None:
    """The shipped protocols."""
    rows = [(name, load_protocol(name).title) for name in protocol_names()]
    print_table("protocols (`qadprep plan --protocol NAME`)", ["name", "what"], rows)


def plan(result: Plan) -> None:
    """The plan's own lines."""
    for line in result.lines():
        print(line)


def compress(summary: CompressSummary, out: Path) -> None:
    """Failures and totals."""
    if summary.failures:
        print_table(
            "could not be made",
            ["clip", "quality", "status", "why"],
            [(file.clip, file.quality, file.status, file.message) for file in summary.failures],
        )
    result = summary.as_dict()
    say(
        f"{result['made']} videos made, {result['kept']} kept, {result['bytes'] / 1e6:.1f} MB, "
        f"{result['seconds']:.1f} s; manifest of all qualities: {out / summary.manifest}"
    )


def shard(summary: ShardSummary, faces: str, out: str) -> None:
    """Tuples per split and what was left out; and which packs are damaged."""
    print_table("tuples in the shards", ["split", "tuples"], list(summary.tuples.items()))
    if summary.left_out:
        print_table("attempted and left out", ["reason", "tuples"], list(summary.left_out.items()))
    if summary.faults:
        rows = [(fault.key, fault.pack, fault.byte, fault.fault) for fault in summary.faults]
        print_table("crops that cannot be used", ["tuple", "pack", "byte", "fault"], rows)
        if summary.further_faults:
            say(f"{summary.further_faults} further ones are not listed")
        tables = sorted({fault.pack.removesuffix(".tar") + ".parquet" for fault in summary.faults if fault.damaged})
        if tables:
            shown = ", ".join(tables[:8]) + (" ..." if len(tables) > 8 else "")
            say(f"damaged packs: in {faces} delete {shown}, run `qadprep extract` again, then this command")
        if not all(fault.damaged for fault in summary.faults):
            say(f"what cannot be read: see to {faces}, then run this command again")
    if summary.crashed:
        print_table("shards that could not be written", ["shard", "why"], summary.crashed)
    if summary.failed:
        say(f"no shard set yet: {summary.bytes / 1e6:.1f} MB of finished shards in {out} wait for the next run")
    else:
        state = "would be written to" if summary.dry_run else "in"
        say(f"{summary.shards} shards, {summary.bytes / 1e6:.1f} MB {state} {out}")


def verify(report: VerifyReport, place: str | Path, mended: RepairReport | None = None) -> None:
    """The faults, or that there is none; with `mended` also what was written again."""
    if mended is not None:
        say(f"{mended.found.fault_count} faults before; written again: {', '.join(mended.repaired) or 'nothing'}")
        if mended.crops:
            rows = [(crop.key, crop.pack, crop.byte, crop.fault) for crop in mended.crops]
            print_table("damaged crops in the packs themselves", ["key", "pack", "byte", "fault"], rows)
    if report.faults:
        rows = [(f.shard, f.key, "" if f.offset_bytes is None else f.offset_bytes, f.fault) for f in report.faults]
        print_table(f"{place}: faults", ["shard", "key", "byte", "fault"], rows)
    for note in report.notes:
        say(f"note: {note}")
    if report.crossing:
        say(f"{len(report.crossing)} recordings are in more than one split, such as {report.crossing[0]}")
    checked = {
        "full": "every hash, count and pixel agrees",
        "hashes": "every hash, count and tar header agrees; nothing was decoded",
        "quick": "every size, count and tar header agrees; nothing else was read",
    }
    state = f"{report.fault_count} faults" if report.fault_count else checked[report.level]
    say(f"{report.shards} shards, {report.tuples} tuples, {report.bytes / 1e6:.1f} MB: {state}")
    if report.damaged and mended is None:
        say(f"{len(report.damaged)} damaged shards; `qadprep verify {place} --repair --faces PACKS` writes them again")


def report(result: dict[str, Any]) -> None:
    """Where the page lies, and the tuples that it could not show."""
    if result["damaged"]:
        print_table("damaged tuples (`qadprep verify` names all)", ["what"], [(line,) for line in result["damaged"]])
    say(f"{result['report']}: {len(result['contact_sheets'])} contact sheets")


def demo(result: dict[str, Any]) -> None:
    """Where the results lie."""
    print_table(
        "stages of the demonstration", ["stage", "seconds"], [(k, f"{v:.1f}") for k, v in result["seconds"].items()]
    )
    say(result["scores_text"])
    say(f"look at {result['report']} and {', '.join(result['contact_sheets'])}")
    say(result["disclaimer"])
