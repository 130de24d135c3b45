"""The lines that `qadprep plan` prints."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qadprep.plan import Plan


def plan_lines(plan: "Plan") -> list[str]:
    """A plan for people: the arithmetic, the disk, what is there, the forecast, the notes."""
    protocol = plan.protocol
    names = ", ".join(protocol.classes)
    lines = [
        f"{protocol.name}: {protocol.title} (--dataset {protocol.dataset})",
        f"{protocol.frames} frames a video; classes: {names}; qualities: {', '.join(protocol.qualities)}; "
        f"crops of {protocol.size_px} px, align {protocol.align}, margin {protocol.margin:g}",
        "",
        *_arithmetic(plan),
    ]
    if plan.bytes is not None:
        lines += [
            "",
            f"disk: about {size_text(plan.bytes)} of face packs{', for what is on disk' if plan.root else ''}; "
            "the shard set takes as much again",
        ]
    if plan.root is not None:
        lines += ["", *_on_disk(plan)]
    if plan.trial is not None:
        lines += ["", *_trial(plan)]
    if plan.notes:
        lines += ["", "notes", *(f"- {note}" for note in plan.notes)]
    return lines


def size_text(number: float) -> str:
    """Bytes as text, in powers of 1000: `12.3 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 99.5 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def time_text(seconds: float) -> str:
    """Seconds as text: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _arithmetic(plan: "Plan") -> list[str]:
    protocol = plan.protocol
    lines = []
    for split in plan.splits:
        if split.videos is None:
            lines.append(f"{split.split}: every video, {protocol.frames} frames of each")
            continue
        line = (
            f"{split.split}: {split.videos:,} videos x {protocol.frames} frames x {len(protocol.classes)} classes = "
            f"{split.tuples:,} tuples, x {len(protocol.qualities)} qualities = {split.images:,} images"
        )
        if split.printed is not None:
            gap = split.images - split.printed
            line += f"; printed {split.printed:,} ({f'difference {gap:+,}' if gap else 'agrees'})"
        lines.append(line)
    return lines


def _on_disk(plan: "Plan") -> list[str]:
    lines = [f"on disk in {plan.root}"]
    # With every face taken there is no upper bound that could be told without looking.
    most = "with one face a frame" if plan.every_face else "at most"
    for entry in plan.classes:
        wanted = "all" if entry.wanted is None else f"{entry.wanted:,}"
        short = f", {entry.wanted - entry.taken:,} too few" if entry.wanted and entry.taken < entry.wanted else ""
        lines.append(
            f"{entry.split} {entry.method}: {_many(entry.there, 'video')}, {wanted} wanted{short}; "
            f"{most} {entry.tuples:,} tuples"
        )
    for split in plan.splits:
        target, have = split.printed or split.images, plan.reachable(split.split)
        if target is not None and have < target:
            lines.append(
                f"{split.split}: {most} {have:,} images, {target - have:,} fewer than the "
                f"{'printed ' if split.printed else ''}{target:,}"
            )
    if plan.without_original:
        lines.append(
            f"{plan.without_original:,} of the manipulated videos are taken without their original: each is cut by its "
            "own geometry"
        )
    return lines


def _trial(plan: "Plan") -> list[str]:
    trial = plan.trial
    made = f" ({', '.join(trial.made)} encoded on the way)" if trial.made else ""
    tried = f"{_many(trial.groups, 'group')} with {_many(trial.clips, 'video')} at {', '.join(trial.qualities)}{made}"
    lines = [
        f"trial: {tried} gave {trial.tuples:,} tuples, {size_text(trial.bytes)} in {time_text(trial.seconds)} of one "
        "worker",
        f"scaled to all videos: about {trial.total_tuples:,} tuples, {size_text(trial.total_bytes)} of face packs, "
        f"{time_text(trial.total_seconds)} with {_many(trial.workers, 'worker')}",
    ]
    lines += [f"not used in the trial: {what}: {reason}" for what, reason in trial.failures[:5]]
    if len(trial.failures) > 5:
        lines.append(f"... and {len(trial.failures) - 5} more")
    return lines
