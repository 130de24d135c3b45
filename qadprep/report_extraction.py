"""The part of the HTML report that tells how an extraction went, from its summary.json."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadprep.extract_tables import class_rows, moved_rows, quality_rows, summary_lines, sync_rows
from qadprep.report_page import MAX_ROWS
from qadprep.report_plots import share_bar
from qadprep.report_section import Number, Section
from qadprep.results import VERDICTS
from qadprep.store import open_folder, read_json
from qadprep.summary import REPORT_NAME, in_order_of_work

# Longer lists are folded until the reader opens them.
_MOST_OPEN = 20
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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{faces}/{REPORT_NAME}: of another version ({error}); run `qadprep extract` again") from error


def _sections(facts: dict[str, Any]) -> list[Section]:
    verdicts = {verdict: facts["sync"][verdict] for verdict in VERDICTS if facts["sync"].get(verdict)}
    sections = [
        Section("Extraction", " ".join(_head(facts)), anchor="extraction", chapter=True),
        Section("Attempted tuples = ok + reasons", "", *class_rows(facts)),
        _left_out(facts),
        Section("Files per quality", "", *quality_rows(facts)),
        Section(
            "Sync proof: files per method, quality and verdict", _LEGEND, *sync_rows(facts),
            html=share_bar(verdicts, "files"),
        ),
        _moved(facts, "Shifted or placed elsewhere", lambda entry: entry["verdict"] != "refused"),
        _moved(facts, "Refused by the sync proof", lambda entry: entry["verdict"] == "refused"),
        _stages(facts),
        *_failures(facts["failures"]),
        _listed("Used with a restriction", ("clip", "note"), [(n["clip"], n["note"]) for n in facts["notes"]]),
    ]  # fmt: skip
    return [section for section in sections if not section.empty]


def _left_out(facts: dict[str, Any]) -> Section:
    """Attempted tuples that are not there, by reason."""
    reasons = {name: count for name, count in facts["statuses"].items() if name != "ok"}
    rows = [
        (name, count, Number(f"{100 * count / facts['attempted']:.1f} %"))
        for name, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    bar = share_bar({name: count for name, count, _ in rows}, "tuples")
    return Section("Tuples left out, by reason", "", ("reason", "tuples", "of all attempted"), rows, html=bar)


def _failures(failures: list[dict[str, Any]]) -> list[Section]:
    """What could not be used: counts by reason with a bar, then a list for each reason."""
    if not failures:
        return []
    counts = dict(sorted(Counter(f["status"] for f in failures).items(), key=lambda item: (-item[1], item[0])))
    rows = []
    for reason, count in counts.items():
        of_it = [f for f in failures if f["status"] == reason]
        rows.append((reason, count, len({f["group"] for f in of_it}), of_it[0]["what"]))
    sections = [
        Section(
            "Failures by reason",
            "Groups, clips and files that could not be used.",
            ("reason", "failures", "groups concerned", "such as"),
            rows,
            html=share_bar(counts, "failures"),
            anchor="failures",
        )
    ]
    for reason in counts:
        listed = [(f["group"], f["what"], f["message"]) for f in failures if f["status"] == reason]
        section = _listed(f"Could not be used: {reason}", ("group", "what", "why"), listed)
        section.folded, section.caption = len(listed) > _MOST_OPEN, f"{reason}: {len(listed):,}"
        sections.append(section)
    return sections


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
    return Section("Where the time went", "Seconds of all workers together.", html=share_bar(seconds, "s", 1))


def _listed(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Section:
    more = f"The first {MAX_ROWS} of {len(rows):,}; {REPORT_NAME} has them all." if len(rows) > MAX_ROWS else ""
    return Section(title, more, columns, rows[:MAX_ROWS])
