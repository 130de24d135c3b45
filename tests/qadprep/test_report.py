import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from qadprep.report import Section, write_report
from qadprep.shardset import ShardSet
from qadprep.sheets import choose_rows, difference, find_instant, grid


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
    assert "<td>proved</td><td class='n'>32</td>" in page
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


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        grid(["a"], [])
