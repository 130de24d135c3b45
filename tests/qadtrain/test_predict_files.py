"""What is looked at: names, folders, pictures of every kind."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from qadprep.video.probe import ProbeError
from qadtrain import predict_files
from qadtrain.predict_files import Item, Still, list_items, open_item


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.MP4", "a/c.png", "a/.hidden.mp4", ".git/d.mp4", "e.csv", "out/annotated/b.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


def test_folders_give_known_endings_only(folder):
    items, others, empty = list_items([folder], skip=folder / "out")
    assert [item.name for item in items] == ["a/c.png", "b.MP4"]
    assert [item.is_image for item in items] == [True, False]
    assert [item.flat_name for item in items] == ["a%2Fc.png", "b.MP4"]
    assert (others, empty) == ({str(folder): 1}, [])


def test_names_are_unique_and_files_are_taken_once(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in (other / "b.MP4", other / "words.txt"):
        path.write_bytes(b"y")
    items, _, _ = list_items([folder / "b.MP4", other / "b.MP4", folder / "b.MP4", other / "words.txt"])
    assert [item.name for item in items] == ["b.MP4", "b (2).MP4", "words.txt"]
    items, _, _ = list_items([folder, other], skip=folder / "out")
    assert [item.name for item in items] == ["in/a/c.png", "in/b.MP4", "other/b.MP4"]


def test_links_that_lead_nowhere_are_reported(folder):
    (folder / "moved.mp4").symlink_to(folder / "not-here.mp4")
    (folder / "circle.mkv").symlink_to(folder / "circle.mkv")
    (folder / "notes.txt").symlink_to(folder / "not-here.txt")
    items, others, _ = list_items([folder], skip=folder / "out")
    assert [item.name for item in items] == ["a/c.png", "b.MP4", "circle.mkv", "moved.mp4"]
    assert others == {str(folder): 2}
    for item in items[2:]:
        with pytest.raises(ProbeError) as caught:
            open_item(item)
        assert caught.value.reason == "missing_file"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_pictures_are_read_as_rgb(tmp_path, name):
    rgb = np.zeros((24, 40, 3), np.uint8)
    rgb[:, :20] = (250, 10, 20)
    options = {"lossless": True} if name.endswith("webp") else {"quality": 95, "subsampling": 0}
    Image.fromarray(rgb).save(tmp_path / name, **({} if name.endswith("png") else options))
    still = open_item(Item(tmp_path / name, name))
    assert isinstance(still, Still)
    assert (still.info.width, still.info.height, still.info.frames, still.info.fps) == (40, 24, 1, Fraction(1))
    with still.reader([0]) as reader:
        (frame,) = reader
    assert np.abs(frame.rgb.astype(int) - rgb).max() <= (8 if "j" in name.lower() else 0)
    with still.reader([1]) as reader:
        assert not list(reader) and reader.missing == [1]


def test_picture_is_turned_as_its_tag_says(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_item(Item(tmp_path / "a.png", "a")).rgb, np.rot90(rgb, -1))


def test_grey_and_transparent_pictures_are_rgb(tmp_path):
    Image.new("L", (9, 7), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 7), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert open_item(Item(tmp_path / "grey.png", "")).rgb.tolist() == [[[77] * 3] * 9] * 7
    assert open_item(Item(tmp_path / "clear.png", "")).rgb.tolist() == [[[1, 2, 3]] * 9] * 7


def test_16_bit_and_printed_pictures_keep_their_brightness(tmp_path):
    """Grey of 16 bits, as scanners write it, and the inks of print."""
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "grey16.png")
    np.testing.assert_array_equal(open_item(Item(tmp_path / "grey16.png", "")).rgb, np.dstack([ramp >> 8] * 3))
    cv2.imwrite(str(tmp_path / "colour16.png"), np.dstack([ramp[::-1], ramp, ramp.T]))
    np.testing.assert_array_equal(
        open_item(Item(tmp_path / "colour16.png", "")).rgb, np.dstack([ramp.T, ramp, ramp[::-1]]) >> 8
    )
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(open_item(Item(tmp_path / "red.jpg", "")).rgb.astype(int) - [255, 0, 0]).max() < 8
    palette = Image.new("P", (9, 7), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert open_item(Item(tmp_path / "palette.png", "")).rgb.tolist() == [[[10, 200, 30]] * 9] * 7


def test_pictures_that_cannot_be_used(tmp_path, monkeypatch):
    rgb = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.webp").write_text("words")
    reasons = {}
    for name in ("cut.jpg", "empty.png", "words.webp", "none.png"):
        with pytest.raises(ProbeError) as caught:
            open_item(Item(tmp_path / name, name))
        reasons[name] = caught.value.reason
        assert "\n" not in str(caught.value)
    assert reasons == {
        "cut.jpg": "unreadable", "empty.png": "empty_file", "words.webp": "unreadable", "none.png": "missing_file",
    }  # fmt: skip
    monkeypatch.setattr(predict_files, "MAX_PICTURE_PX", 64 * 64 - 1)
    with pytest.raises(ProbeError, match="64x64, more than 4095 pixels") as caught:
        open_item(Item(tmp_path / "whole.jpg", ""))
    assert caught.value.reason == "too_large"
