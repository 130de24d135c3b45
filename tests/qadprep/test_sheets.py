"""What the report's pictures show: which tuples and recordings are chosen, and every pixel of the sheets."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.pages import embedded, part, row_of
from helpers.sets import METHODS, made_packs, made_shards
from PIL import Image

from qadprep import report_pictures
from qadprep.report import write_report
from qadprep.report_columns import IndexColumns, evenly, turns
from qadprep.report_page import page
from qadprep.shardset import ShardSet, Tuple
from qadprep.sheets import (
    DIFFERENCE_GAIN,
    GAP_PX,
    LINE_PX,
    Recording,
    alteration_sheet,
    choose_recordings,
    choose_rows,
    difference,
    grid,
    recording_sheet,
)

TOP = GAP_PX + LINE_PX + LINE_PX


@pytest.fixture(scope="module")
def wide_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups at 96 px, where a picture is wider than any column's title, so that cells lie where one expects."""
    folder = tmp_path_factory.mktemp("wide")
    packs = made_packs(folder / "faces", {"000": "train", "001": "test"}, frames=2, size_px=96)
    return made_shards(folder / "shards", packs)


@pytest.fixture(scope="module")
def wide_report(wide_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, without a sample."""
    out = tmp_path_factory.mktemp("wide-report")
    write_report(wide_set, out, sample=0)
    return out


def cell(sheet: np.ndarray, line: int, column: int, side: int = 96) -> np.ndarray:
    """The picture in a sheet's cell."""
    top, left = TOP + line * (side + LINE_PX + GAP_PX), GAP_PX + column * (side + GAP_PX)
    return sheet[top : top + side, left : left + side]


def read(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return np.asarray(picture)


def index(
    rows: list[tuple], columns: tuple[str, ...] = ("split", "method", "video", "group", "frame", "face")
) -> pa.Table:
    """An index with these rows; the rest follows from them."""
    table = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    table["dataset"] = ["celebdf"] * len(rows)
    table["label"] = [int(method != "original") for method in table["method"]]
    return pa.table(table)


def test_a_row_of_the_sheet_is_the_tuple_and_its_differences(wide_set: Path, wide_report: Path) -> None:
    shards = ShardSet(wide_set)
    for split in ("train", "test"):
        sheet = read(wide_report / f"tuples-{split}.png")
        rows = choose_rows(shards, 12, split)
        assert len(rows) == 6
        for line, row in enumerate(rows):
            images = shards[row].images
            assert shards[row].split == split
            for column, quality in enumerate(shards.qualities):
                np.testing.assert_array_equal(cell(sheet, line, column), images[quality])
            for column, quality in ((3, "c23"), (4, "c40")):
                lost = np.abs(images["raw"].astype(int) - images[quality]) * DIFFERENCE_GAIN
                np.testing.assert_array_equal(cell(sheet, line, column), np.minimum(lost, 255))
    pictures = embedded((wide_report / "report.html").read_text())
    assert (wide_report / "tuples-test.png").read_bytes() in pictures


def test_the_grids_show_every_method_at_the_same_instants(wide_set: Path, wide_report: Path) -> None:
    html = (wide_report / "report.html").read_text()
    (recording,) = choose_recordings(ShardSet(wide_set), 9, 9, "test")
    assert recording.group == "001" and recording.clips == METHODS and recording.frames == (0, 10)
    tabs = part(html, "recordings").split("<fieldset")[2]
    pages = [np.asarray(Image.open(io.BytesIO(data))) for data in embedded(tabs)]
    assert re.findall(r"<label[^>]*>(.*?)</label>", tabs) == ["raw", "c23", "c40", "change from original"]
    by_key = {item.key: item for item in ShardSet(wide_set, "test")}
    for line, frame in enumerate(recording.frames):
        videos = ["001", "001_901", "001_901"]
        shown = [by_key[f"ffpp/{m}/{v}/{frame:06d}_0"].images for m, v in zip(METHODS, videos, strict=True)]
        for column, images in enumerate(shown):
            for number, quality in enumerate(("raw", "c23", "c40")):
                np.testing.assert_array_equal(cell(pages[number], line, column), images[quality])
            change = difference(shown[0]["raw"], images["raw"])
            np.testing.assert_array_equal(cell(pages[3], line, column), change)
        assert not cell(pages[3], line, 0).any() and cell(pages[3], line, 1).any()


def test_rows_take_every_method_and_different_videos(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master, "train")
    rows = [shards[row] for row in choose_rows(shards, 9)]
    assert [row.method for row in rows] == list(METHODS) * 3
    assert len({(row.method, row.video) for row in rows}) == 9
    assert sorted(choose_rows(shards, 1000)) == list(range(36))
    whole = ShardSet(made_shards_master)
    assert [whole[row].key for row in choose_rows(whole, 9, "train")] == [row.key for row in rows]


def test_a_recording_with_several_clips_of_a_method_and_gaps() -> None:
    rows = [("test", "original", "id0_0000", "id0_0000", frame, 0) for frame in (1, 2, 3, 4)]
    rows += [
        ("test", "Celeb-synthesis", f"id0_id{n}_0000", "id0_0000", frame, 0) for n in (1, 2) for frame in (2, 3, 5)
    ]
    rows += [("test", "Celeb-synthesis", "id0_id1_0000", "id0_0000", 2, 1)]  # a second face, seen once
    rows += [("train", "original", "id7_0000", "id7_0000", 2, 0), ("test", "original", "id8_0000", "id8_0000", 2, 0)]
    table = index(rows)
    (found,) = choose_recordings(IndexColumns(table), 5, 5, "test")
    assert found.clips == ("original", "Celeb-synthesis id0_id1_0000", "Celeb-synthesis id0_id2_0000")
    assert found.frames == (2, 3) and found.face == 0
    keys = [(table["video"][p].as_py(), table["frame"][p].as_py()) for p in found.positions.ravel().tolist()]
    videos = ("id0_0000", "id0_id1_0000", "id0_id2_0000")
    assert keys == [(video, frame) for frame in (2, 3) for video in videos]
    assert choose_recordings(IndexColumns(table), 5, 5, "train") == []
    # Clips that never show the same frame make no grid; nor does an index that does not tell recordings.
    apart = index([("test", "original", "a", "a", 1, 0), ("test", "fake", "a_b", "a", 2, 0)])
    assert choose_recordings(IndexColumns(apart), 5, 5) == []
    assert choose_recordings(IndexColumns(table.drop_columns(["group"])), 5, 5) == []


def test_the_recordings_with_the_most_methods_come_first() -> None:
    rows = []
    for number in range(30):
        methods = ("original", "A", "B", "C") if number in (7, 21) else ("original", "A")
        rows += [("test", m, f"{number}{m}", f"{number:03d}", frame, 0) for m in methods for frame in range(9)]
    found = choose_recordings(IndexColumns(index(rows)), 3, 3)
    assert {recording.group for recording in found[:2]} == {"007", "021"} and len(found) == 3
    assert [len(recording.clips) for recording in found] == [4, 4, 2]
    assert found[0].frames == (1, 4, 7)


def test_codes_agree_with_plain_python() -> None:
    rng = np.random.default_rng(3)
    names = [["train", "test"], ["original", "B", "A"], ["x", "y", "z"], ["1", "2"]]
    rows = [(*(str(rng.choice(values)) for values in names), int(rng.integers(5)), 0) for _ in range(200)]
    table = index(rows)
    columns = IndexColumns(pa.concat_tables([table.slice(0, 70), table.slice(70)]))
    assert columns.class_names == [("celebdf", "original"), ("celebdf", "A"), ("celebdf", "B")]
    assert [columns.split_names[code] for code in columns.splits] == [row[0] for row in rows]
    assert [columns.class_names[code][1] for code in columns.classes] == [row[1] for row in rows]
    assert [columns.clips.name(code) for code in columns.clips.codes] == [("celebdf", row[1], row[2]) for row in rows]
    seen: dict[str, int] = {}
    wanted = [seen.update({row[2]: seen.get(row[2], -1) + 1}) or seen[row[2]] for row in rows]
    assert turns(columns.coded("video").codes).tolist() == wanted
    assert evenly(10, 3).tolist() == [1, 5, 8] and evenly(3, 5).tolist() == [0, 1, 2]


def test_difference_is_amplified_and_clipped() -> None:
    a, b = np.array([[10, 200, 7]], np.uint8), np.array([[13, 100, 7]], np.uint8)
    np.testing.assert_array_equal(difference(a, b), [[12, 255, 0]])


def test_small_crops_are_enlarged_by_whole_pixels_and_missing_ones_are_grey() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    sheet = np.asarray(grid(["raw", "c23"], [("one", [crop, None])]))
    np.testing.assert_array_equal(sheet[TOP : TOP + 72, GAP_PX : GAP_PX + 72], crop.repeat(3, 0).repeat(3, 1))
    assert (sheet[TOP + 1 : TOP + 71, 2 * GAP_PX + 74 : 2 * GAP_PX + 140] == 225).all()
    with pytest.raises(ValueError, match="2 sizes in 1 rows"):
        grid(["a", "b"], [("one", [crop, crop[:20]])])


def test_a_grid_without_its_first_clip_shows_no_change() -> None:
    crop = np.full((64, 64, 3), 9, np.uint8)
    item = Tuple("k", 1, "d", "A", "a_b", 3, 0, "test", {"raw": crop})
    recording = Recording("a", 0, ("original", "A"), (3,), np.array([[4, 5]]))
    change = np.asarray(alteration_sheet(recording, {5: item}, "raw"))
    shown = np.asarray(recording_sheet(recording, {5: item}, "raw"))
    left = GAP_PX + 64 + GAP_PX
    assert (cell(shown, 0, 0, 64) == 225).all() and (shown[TOP : TOP + 64, left : left + 64] == 9).all()
    assert (change[TOP : TOP + 64, left : left + 64] == 225).all()


def pictures(shards: Path, out: Path) -> str:
    """A page with the chapter of pictures alone."""
    out.mkdir()
    with ShardSet(shards) as whole:
        choices = report_pictures.choose(whole, IndexColumns(whole.table), 12)
        reader = report_pictures.TupleReader(whole, lambda count, remark: None)
        return page("Pictures", "", report_pictures.picture_sections(whole, choices, out, reader)[0])


def test_a_page_stays_small_where_crops_are_large(
    wide_set: Path, wide_report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [len(data) for data in embedded((wide_report / "report.html").read_text())]
    assert sum(whole) < report_pictures.MOST_PICTURE_BYTES
    monkeypatch.setattr(report_pictures, "MOST_PICTURE_BYTES", sum(whole) * 6 // 10)
    html = pictures(wide_set, tmp_path / "less")
    less = [len(data) for data in embedded(html)]
    assert len(less) == len(whole) and sum(whole) // 4 < sum(less) <= sum(whole) * 6 // 10
    assert re.search(r"Split test: the first [1-5] of 6 tuples; tuples-test.png has them all", html)
    for name in ("tuples-test.png", "methods-train.png"):  # the files keep everything
        assert (tmp_path / "less" / name).read_bytes() == (wide_report / name).read_bytes()
    monkeypatch.setattr(report_pictures, "MOST_PICTURE_BYTES", 1000)
    html = pictures(wide_set, tmp_path / "none")
    assert embedded(html) == [] and len(html) < 20_000
    assert row_of(html, "tuples of split test") == ["tuples of split test", "tuples-test.png"]
