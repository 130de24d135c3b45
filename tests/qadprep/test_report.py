import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.summaries import DETAIL, eventful, written

from qadprep.config import write_json
from qadprep.errors import UserError
from qadprep.report import Section, write_report
from qadprep.report_extraction import MAX_ROWS, extraction_sections
from qadprep.shardset import ShardSet
from qadprep.sheets import choose_rows, difference, find_instant, grid
from qadprep.summary import REPORT_NAME, ExtractSummary


def row_of(page: str, *first: str) -> list[str]:
    """Cells of the one row of the page that begins with these."""
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    (found,) = [cells for cells in rows if cells[: len(first)] == list(first)]
    return found


def test_page_and_sheets(shards_master: Path, faces_master: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "qadprep", "report", shards_master, "--out", tmp_path]
    words += ["--faces", faces_master, "--json"]
    result = json.loads(subprocess.run([*map(str, words)], check=True, capture_output=True, text=True).stdout)
    assert sorted(Path(sheet).name for sheet in result["contact_sheets"]) == [
        "instant-test.png",
        "instant-train.png",
        "tuples-test.png",
        "tuples-train.png",
    ]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.findall(r"(?:src|href)='(?!data:)", page)  # nothing is fetched
    # 4 originals and 8 fakes: the original's best file is the reference, every other one is proved.
    assert "<h1 id='extraction' class='chapter'>Extraction</h1>" in page
    assert row_of(page, "FaceSwap", "c40")[:7] == ["FaceSwap", "c40", "0", "4", "0", "0", "0"]
    assert row_of(page, "original", "raw")[:7] == ["original", "raw", "4", "0", "0", "0", "0"]
    assert row_of(page, "all", "") == ["all", "", "96", "96", "", ""]
    assert "<td>train</td><td>Deepfakes</td><td>fake</td><td class='n'>2</td><td class='n'>16</td>" in page


def test_a_row_of_the_sheet_is_the_tuple(shards_master: Path, tmp_path: Path) -> None:
    write_report(shards_master, tmp_path)
    shards = ShardSet(shards_master, "train")
    sheet = cv2.imread(str(tmp_path / "tuples-train.png"), cv2.IMREAD_COLOR_RGB)
    first = shards[choose_rows(shards, 12)[0]]
    assert first.method == "original"
    top = 4 + 16 + 16
    for column, quality in enumerate(shards.qualities):
        left = 4 + column * (64 + 4)
        np.testing.assert_array_equal(sheet[top : top + 64, left : left + 64], first.images[quality])


def test_rows_take_every_method_and_different_videos(shards_master: Path) -> None:
    shards = ShardSet(shards_master, "train")
    rows = [shards[row] for row in choose_rows(shards, 6)]
    assert [row.method for row in rows] == ["original", "Deepfakes", "FaceSwap"] * 2
    assert len({(row.method, row.video) for row in rows}) == 6
    assert len(choose_rows(shards, 1000)) == len(shards)


def test_one_instant_over_methods(shards_master: Path) -> None:
    found = find_instant(ShardSet(shards_master, "test"))
    assert list(found) == ["original", "Deepfakes", "FaceSwap"]
    assert len({(item.frame, item.video[:3]) for item in found.values()}) == 1


def test_difference_is_amplified_and_clipped() -> None:
    a, b = np.array([[10, 200, 7]], np.uint8), np.array([[13, 100, 7]], np.uint8)
    np.testing.assert_array_equal(difference(a, b), [[12, 255, 0]])


def test_text_is_escaped(shards_master: Path, tmp_path: Path) -> None:
    extra = [Section("a <b>", "x & y", ("c",), [("<script>",)])]
    write_report(shards_master, tmp_path, notice="1 < 2", extra=extra)
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in page and "x &amp; y" in page and "&lt;script&gt;" in page and "1 &lt; 2" in page
    assert "<script>" not in page


def test_the_chapter_on_the_extraction(shards_master: Path, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    result = written(faces, "071", *eventful(), detected_frames=4, decoded_frames=40)
    result.seconds = {"others": 3.0, "and <": 1.0, "write": 0.0, "warp": 2.0, "decode": 4.0}
    result.failures.append(("clip <i>", "truncated", "ends early & late"))
    summary = ExtractSummary([result], detector="using MTCNN", seconds=5.0, workers=2, engine="ray")
    write_json(faces / REPORT_NAME, summary.as_dict())
    write_report(shards_master, tmp_path / "out", faces=faces)
    page = (tmp_path / "out" / "report.html").read_text()
    assert row_of(page, "FaceSwap", "val") == ["FaceSwap", "val", "3", "2", "1 small_face", "2 raw, 2 c40"]
    assert row_of(page, "c40", "4") == ["c40", "4", "3", "1"]
    assert row_of(page, "Deepfakes", "raw")[2:8] == ["0", "0", "0", "1", "0", "1 by +2"]
    moved, refused = page.index("Shifted or placed elsewhere"), page.index("Refused by the sync proof")
    assert moved < page.index("<td>centre_crop at 80,0</td>") < refused < page.index(f"<td>{DETAIL}</td>")
    assert "engine ray" in page and "Detection: 4 frames" in page and "8.0 frames decoded" in page
    assert "clip &lt;i&gt;" in page and "ends early &amp; late" in page and "<i>" not in page.replace("<i style", "")
    # The bar: parts of a width of 1000, one after the other.
    bars = re.findall(r"<rect x='([\d.]+)' y='0' width='([\d.]+)'[^>]*><title>(.*?)</title>", page)
    assert bars == [
        ("0.00", "400.00", "decode: 4.0 s, 40 %"),
        ("400.00", "200.00", "warp: 2.0 s, 20 %"),
        ("600.00", "100.00", "and &lt;: 1.0 s, 10 %"),
        ("700.00", "300.00", "others: 3.0 s, 30 %"),
    ]


def test_the_chapter_of_a_run_that_found_everything_done(shards_master: Path, tmp_path: Path) -> None:
    result = written(tmp_path / "faces", "071", *eventful())
    result.skipped = True
    write_json(tmp_path / "faces" / REPORT_NAME, ExtractSummary([result]).as_dict())
    write_report(shards_master, tmp_path / "out", faces=tmp_path / "faces")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "(1 of them finished in an earlier run)" in page and "Where the time went" not in page
    assert "<svg" not in page


def test_without_faces_there_is_no_chapter_and_a_wrong_folder_is_named(shards_master: Path, tmp_path: Path) -> None:
    write_report(shards_master, tmp_path / "out")
    assert "Extraction" not in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(UserError, match=r"no readable summary.json; is it what `extract` wrote"):
        write_report(shards_master, tmp_path / "out", faces=tmp_path)
    (tmp_path / REPORT_NAME).write_text('{"groups": 1}')
    with pytest.raises(UserError, match="of another version"):
        write_report(shards_master, tmp_path / "out", faces=tmp_path)


def test_long_lists_are_cut_and_said_to_be(tmp_path: Path) -> None:
    result = written(tmp_path, "071", *eventful())
    result.notes = [(f"ffpp/original/{number:03d}", "remark") for number in range(MAX_ROWS + 7)]
    write_json(tmp_path / REPORT_NAME, ExtractSummary([result]).as_dict())
    section = next(part for part in extraction_sections(tmp_path) if part.title == "Used with a restriction")
    assert len(section.rows) == MAX_ROWS and section.text == "The first 500 of 507; summary.json has them all."


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        grid(["a"], [])
