"""What `extract` prints for people: the summary, and the forecast of a dry run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.plan_text import size_text, time_text
from qadprep.results import VERDICTS
from qadprep.summary import ExtractSummary, best_first
from qadprep.terminal import print_table, say

if TYPE_CHECKING:
    from qadprep.forecast import Forecast


def summary(result: ExtractSummary, out: Path | str) -> None:
    """What an extraction left: failures, restrictions, tuples, sync outcomes, time."""
    facts = result.as_dict()
    if facts["failures"]:
        rows = [(f["group"], f["what"], f["status"], f["message"]) for f in facts["failures"]]
        print_table("could not be used", ["group", "what", "status", "why"], rows)
    if facts["notes"]:
        print_table("used with a restriction", ["clip", "note"], [(n["clip"], n["note"]) for n in facts["notes"]])
    if facts["moved"]:
        print_table("files that show other frames or another part of the picture", *moved_rows(facts))
    _stages(facts["stage_seconds"], "where the time went (all workers together)")
    print_table("attempted tuples = ok + reasons", *class_rows(facts))
    print_table("files per quality", *quality_rows(facts))
    if facts["sync_files"]:
        print_table("sync proof of the files", *sync_rows(facts))
    for line in summary_lines(facts):
        say(line)
    if result.others:
        say(f"{out}: also holds {result.others} packs of groups that this run did not name; `shard` takes them too")
    skipped = f", {facts['groups_skipped']} of them finished earlier" if facts["groups_skipped"] else ""
    say(
        f"{facts['tuples']} tuples from {facts['groups']} groups{skipped}, {facts['pack_bytes'] / 1e6:.1f} MB in "
        f"{out}, {facts['seconds']:.1f} s with {facts['workers']} workers"
    )


Rows = tuple[list[str], list[tuple[Any, ...]]]


def class_rows(facts: dict[str, Any]) -> Rows:
    """(columns, rows) of the tuples per method and split, and in all; `facts` as in summary.json."""
    rows = [
        (c["method"], c["split"], c["attempted"], c["ok"], _words(c["reasons"]), _words(best_first(c["crops"])))
        for c in facts["classes"]
    ]
    reasons = {name: count for name, count in facts["statuses"].items() if name != "ok"}
    rows.append(("all", "", facts["attempted"], facts["tuples"], _words(reasons), ""))
    return ["method", "split", "attempted", "ok", "reasons", "crops"], rows


def quality_rows(facts: dict[str, Any]) -> Rows:
    """(columns, rows) of the files per quality."""
    rows = [
        (quality, counts["files"], counts["usable"], counts["files"] - counts["usable"])
        for quality, counts in best_first(facts["files"]).items()
    ]
    return ["quality", "files", "usable", "not usable"], rows


def sync_rows(facts: dict[str, Any]) -> Rows:
    """(columns, rows) of the sync outcomes per method and quality."""
    rows = []
    for entry in facts["sync_files"]:
        offsets = ", ".join(f"{count} by {offset}" for offset, count in entry["offsets_frames"].items())
        margin = "-" if entry["worst_margin"] is None else f"{entry['worst_margin']:.2f} {entry['worst_margin_file']}"
        counts = [entry[verdict] for verdict in VERDICTS]
        rows.append((entry["method"], entry["quality"], *counts, offsets, _words(entry["relations"]), margin))
    return ["method", "quality", *VERDICTS, "frames off", "placed elsewhere", "worst margin"], rows


def moved_rows(facts: dict[str, Any]) -> Rows:
    """(columns, rows) of the files that are shifted, placed elsewhere or refused."""
    rows = [(m["file"], m["quality"], m["verdict"], _shift(m), _place(m), m["reason"]) for m in facts["moved"]]
    return ["file", "quality", "verdict", "frames off", "place", "reason"], rows


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """Sentences on unaltered frames, detections, speed, memory and detector services."""
    lines = []
    if facts["unaltered"]:
        lines.append(f"frames that equal their original though the clip is manipulated: {_words(facts['unaltered'])}")
    found = facts["detections"]
    if found["made"] is not None and found["in_every_file"]:
        lines.append(
            f"detection: {found['made']:,} frames, {found['saved_by_reuse']:,} saved by reuse (in every file it would "
            f"have been {found['in_every_file']:,}, {found['in_every_file'] / max(1, found['made']):.1f} times as many)"
        )
    speed = facts["speed"]
    if speed["crops_written"]:
        decoded = f"{speed['decoded_per_second']:.1f} frames decoded and " if speed["frames_decoded"] else ""
        lines.append(f"speed: {decoded}{speed['crops_per_second']:.1f} crops written a second")
    for service in facts["detector_services"]:
        lines.append(
            f"detector on {service['device']}: {service['frames']:,} frames, busy {service['busy_seconds']:.1f} s, "
            f"{100 * service['share']:.0f} % of its time"
        )
    if facts["peak_rss_mib"]:
        lines.append(f"memory: at most {facts['peak_rss_mib'] / 1024:.2f} GiB a worker")
    ran = f"engine {facts['engine']}" + (f", part {facts['part']}" if facts["part"] else "")
    return [*lines, ran] if facts["engine"] != "local" or facts["part"] else lines


def forecast(result: "Forecast") -> None:
    """What is on disk, the sample, and what follows from it."""
    qualities = list(result.classes[0].files)
    rows = [(c.method, c.split, c.clips, *(c.files[quality] for quality in qualities)) for c in result.classes]
    print_table(f"on disk in {result.root}", ["method", "split", "clips", *qualities], rows)
    trial = result.trial
    if trial:
        _stages(trial.stage_seconds, f"where the time went in a sample of {trial.groups} groups (one worker)")
        if trial.failures:
            print_table("could not be used in the sample", ["what", "why"], trial.failures)
    print("\n".join(forecast_lines(result)))


def forecast_lines(result: "Forecast") -> list[str]:
    """The forecast in sentences."""
    lines = [
        f"{result.groups:,} groups, {result.clips:,} clips, {result.videos:,} videos "
        f"({size_text(result.video_bytes)}), {result.frames} tuples wanted a clip: "
        f"{result.tuples_at_one_face:,} at one face a frame"
    ]
    lines += [
        f"{number:,} of {result.clips:,} clips have no {quality} file" for quality, number in result.lacking.items()
    ]
    trial = result.trial
    if trial is None:
        return [*lines, result.remark]
    made = f" ({', '.join(trial.made)} encoded on the way)" if trial.made else ""
    decoded = f" from {trial.total_decoded_frames:,} decoded frames" if trial.total_decoded_frames else ""
    return [
        *lines,
        f"sample: {trial.groups:,} groups with {trial.clips:,} clips{made} gave {trial.tuples:,} of "
        f"{trial.attempted:,} attempted tuples, {size_text(trial.bytes)}, in {time_text(trial.seconds)} of one worker",
        f"expected: {trial.total_tuples:,} tuples, {trial.total_tuples * len(trial.qualities):,} crops{decoded}, "
        f"{size_text(trial.total_bytes)} of face packs",
        f"time: {time_text(trial.total_seconds)} with {trial.workers} workers (between "
        f"{time_text(trial.least_seconds)} and {time_text(trial.most_seconds)}, if all groups were like the quickest "
        "or the slowest of the sample)",
        "nothing was written",
    ]


def _stages(seconds: dict[str, float], title: str) -> None:
    total = sum(seconds.values())
    if total:
        rows = [(name, f"{value:.1f}", f"{100 * value / total:.0f} %") for name, value in seconds.items()]
        print_table(title, ["stage", "seconds", "share"], rows)


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _shift(entry: dict[str, Any]) -> str:
    """Frames by which a file is shifted; the best offset of a file that was refused says nothing."""
    offset = entry.get("offset_frames", 0)
    return f"{offset:+d}" if entry["verdict"] == "shifted" and offset else ""


def _place(entry: dict[str, Any]) -> str:
    """Where a file's picture lies in the reference's: `crop at 12,0`, with the scale where it is not 1."""
    relation = entry.get("relation", "equal")
    if relation in ("equal", "unknown"):
        return relation
    scales = entry.get("scale_x", 1.0), entry.get("scale_y", 1.0)
    scaled = "" if scales == (1.0, 1.0) else f", scale {scales[0]:.4g} x {scales[1]:.4g}"
    return f"{relation} at {entry.get('left_px', 0):.4g},{entry.get('top_px', 0):.4g}{scaled}"
