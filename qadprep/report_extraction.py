"""The part of the HTML report that tells how an extraction went, from its summary.json."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadprep.extract_tables import class_rows, moved_rows, quality_rows, summary_lines, sync_rows
from qadprep.report_section import Section
from qadprep.store import open_folder, read_json
from qadprep.summary import REPORT_NAME, in_order_of_work

# More rows make a page that browsers are slow with; summary.json has them all.
MAX_ROWS = 500
_COLOURS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#72b7b2",
    "#b279a2",
    "#9d755d",
    "#bab0ac",
    "#eeca3b",
    "#d67195",
)
_LEGEND = (
    "Reference: the file that faces were found on. Proved: the same instants, offset 0 wins clearly. Static: too "
    "little motion to tell, but picture size and frame count agree. Shifted: a constant offset in time or space, which "
    "was taken into account. Refused: other frames or other content; the clip was cut by its own geometry or left out."
)


def extraction_sections(faces: str | Path) -> list[Section]:
    """Sections on the extraction of a folder of face packs.

    Args:
        faces: folder or URL that `extract` wrote.

    Raises:
        UserError: it has no summary, or one of another version.
    """
    facts = read_json(open_folder(faces) / REPORT_NAME)
    if facts is None:
        raise UserError(f"{faces}: no readable {REPORT_NAME}; is it what `extract` wrote, and did it come to its end?")
    try:
        return _sections(facts)
    except (KeyError, TypeError) as error:
        raise UserError(f"{faces}/{REPORT_NAME}: of another version ({error}); run `qadprep extract` again") from error


def _sections(facts: dict[str, Any]) -> list[Section]:
    sections = [
        Section("Extraction", " ".join(_head(facts)), anchor="extraction", chapter=True),
        Section("Attempted tuples = ok + reasons", "", *class_rows(facts)),
        Section("Files per quality", "", *quality_rows(facts)),
        Section("Sync proof: files per method, quality and verdict", _LEGEND, *sync_rows(facts)),
        _moved(facts, "Shifted or placed elsewhere", lambda entry: entry["verdict"] != "refused"),
        _moved(facts, "Refused by the sync proof", lambda entry: entry["verdict"] == "refused"),
        _stages(facts),
        _listed(
            "Could not be used",
            ("group", "what", "status", "why"),
            [(f["group"], f["what"], f["status"], f["message"]) for f in facts["failures"]],
        ),
        _listed("Used with a restriction", ("clip", "note"), [(n["clip"], n["note"]) for n in facts["notes"]]),
    ]
    return [section for section in sections if section.text or section.rows or section.html]


def stage_bar(seconds: dict[str, float]) -> str:
    """Seconds per stage as one horizontal bar with a legend: inline SVG, no script, nothing fetched."""
    total = sum(seconds.values())
    parts, legend, left = [], [], 0.0
    for number, (name, value) in enumerate(seconds.items()):
        colour, width = _COLOURS[number % len(_COLOURS)], 1000 * value / total
        label = f"{html.escape(name)}: {value:.1f} s, {100 * value / total:.0f} %"
        parts.append(
            f"<rect x='{left:.2f}' y='0' width='{width:.2f}' height='28' fill='{colour}'><title>{label}</title></rect>"
        )
        legend.append(f"<span><i style='background:{colour}'></i>{label}</span>")
        left += width
    bar = f"<svg class='bar' viewBox='0 0 1000 28' preserveAspectRatio='none' role='img'>{''.join(parts)}</svg>"
    return f"{bar}<p class='legend'>{''.join(legend)}</p>"


def _head(facts: dict[str, Any]) -> list[str]:
    skipped = f" ({facts['groups_skipped']} of them finished in an earlier run)" if facts["groups_skipped"] else ""
    lines = [
        f"{facts['tuples']:,} tuples of {facts['attempted']:,} attempted, from {facts['groups']:,} groups{skipped}; "
        f"{facts['pack_bytes'] / 1e6:.1f} MB of face packs.",
        f"{facts['seconds']:.1f} s with {facts['workers']} workers, engine {facts['engine']}.",
        f"Detector: {facts['detector']}.",
    ]
    return [
        *lines,
        *(f"{line[0].upper()}{line[1:]}." for line in summary_lines(facts) if not line.startswith("engine")),
    ]


def _moved(facts: dict[str, Any], title: str, wanted: Any) -> Section:
    columns, rows = moved_rows({"moved": [entry for entry in facts["moved"] if wanted(entry)]})
    return _listed(title, columns, rows)


def _stages(facts: dict[str, Any]) -> Section:
    seconds = {name: value for name, value in in_order_of_work(facts["stage_seconds"]).items() if value > 0}
    if not seconds:
        return Section("Where the time went")  # every group was finished earlier
    return Section("Where the time went", "Seconds of all workers together.", html=stage_bar(seconds))


def _listed(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Section:
    more = f"The first {MAX_ROWS} of {len(rows):,}; {REPORT_NAME} has them all." if len(rows) > MAX_ROWS else ""
    return Section(title, more, columns, rows[:MAX_ROWS])
