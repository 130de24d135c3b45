"""The report's chapter on the extraction."""

import json
from pathlib import Path

import pytest
from helpers.pages import bars, eventful_faces, part, rows_of
from helpers.summaries import eventful, written

from qadprep.config import write_json
from qadprep.errors import UserError
from qadprep.report import Section, write_report
from qadprep.report_extraction import extraction_sections
from qadprep.report_page import MAX_ROWS, page
from qadprep.summary import REPORT_NAME, ExtractSummary


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of a small report's time."""
    chapter = Section("Distributions", anchor="distributions", chapter=True)
    monkeypatch.setattr("qadprep.report.distribution_sections", lambda *facts: [chapter])


def test_failures_and_lost_tuples_by_reason(tmp_path: Path) -> None:
    faces = eventful_faces(tmp_path)
    facts = json.loads((faces / REPORT_NAME).read_text())
    facts["failures"] = [
        {"group": f"{number:03d}", "what": f"clip {number}", "status": "truncated", "message": f"ends at {number}"}
        for number in range(30)
    ]
    facts["failures"] += [{"group": "001", "what": f"file {n}", "status": "unreadable", "message": "!"} for n in (1, 2)]
    write_json(faces / REPORT_NAME, facts)
    html = page("x", "", extraction_sections(faces))
    failures = part(html, "failures")
    assert rows_of(failures)[1:] == [["truncated", "30", "30", "clip 0"], ["unreadable", "2", "1", "file 1"]]
    assert bars(failures) == [
        ("0.00", "937.50", "truncated: 30 failures, 94 %"),
        ("937.50", "62.50", "unreadable: 2 failures, 6 %"),
    ]
    # Each reason has its own list; the long one is folded.
    listed = part(html, "could-not-be-used-truncated")
    assert "<details><summary>truncated: 30</summary>" in listed and "unreadable" not in listed
    assert rows_of(listed)[1:][29] == ["029", "clip 29", "ends at 29"]
    short = part(html, "could-not-be-used-unreadable")
    assert "<details>" not in short and rows_of(short)[1:] == [["001", "file 1", "!"], ["001", "file 2", "!"]]
    lost = part(html, "tuples-left-out-by-reason")
    assert rows_of(lost)[1:] == [
        ["sync_refused", "3", "21.4 %"], ["no_face", "2", "14.3 %"], ["small_face", "1", "7.1 %"],
    ]  # fmt: skip


@pytest.mark.usefixtures("no_figures")
def test_the_chapter_of_a_run_that_found_everything_done(made_shards_master: Path, tmp_path: Path) -> None:
    result = written(tmp_path / "faces", "071", *eventful())
    result.skipped = True
    write_json(tmp_path / "faces" / REPORT_NAME, ExtractSummary([result]).as_dict())
    write_report(made_shards_master, tmp_path / "out", faces=tmp_path / "faces", sample=0)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "(1 of them finished in an earlier run)" in html and "Where the time went" not in html


def test_long_lists_are_cut_and_said_to_be(tmp_path: Path) -> None:
    result = written(tmp_path, "071", *eventful())
    result.notes = [(f"ffpp/original/{number:03d}", "remark") for number in range(MAX_ROWS + 7)]
    write_json(tmp_path / REPORT_NAME, ExtractSummary([result]).as_dict())
    section = next(part for part in extraction_sections(tmp_path) if part.title == "Used with a restriction")
    assert len(section.rows) == MAX_ROWS and section.text == "The first 500 of 507; summary.json has them all."


@pytest.mark.usefixtures("no_figures")
def test_without_faces_there_is_no_chapter_and_a_wrong_folder_is_named(
    made_shards_master: Path, tmp_path: Path
) -> None:
    write_report(made_shards_master, tmp_path / "out", sample=0)
    assert "id='extraction'" not in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(UserError, match=r"no readable summary.json; is it what `extract` wrote"):
        write_report(made_shards_master, tmp_path / "out", faces=tmp_path)
    (tmp_path / REPORT_NAME).write_text('{"groups": 1}')
    with pytest.raises(UserError, match="of another version"):
        write_report(made_shards_master, tmp_path / "out", faces=tmp_path)
