"""Pixels: those of the ffmpeg program, whole and in part; luminance that means the same at every quality."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.by_ffmpeg import decode_all, encode, run_ffmpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.video.decode import Decoded, FrameReader, thumbnail_of
from qadprep.video.probe import probe

X264 = ("-c:v", "libx264", "-preset", "veryfast")
BT709 = ("-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc")
FORMATS = {
    "gbrp": ("-c:v", "libx264rgb", "-crf", "10"),
    "yuv444p": (*X264, "-pix_fmt", "yuv444p"),
    "yuv422p": (*X264, "-pix_fmt", "yuv422p"),
    "yuv420p": (*X264, "-pix_fmt", "yuv420p"),
    "yuvj420p": (*X264, "-pix_fmt", "yuvj420p"),
    "bt709": (*X264, "-pix_fmt", "yuv420p", *BT709, "bt709"),
    "topleft": (*X264, "-pix_fmt", "yuv420p", "-x264-params", "chromaloc=2"),
    "yuv420p10le": (*X264, "-pix_fmt", "yuv420p10le"),
    "yuv444p10le": (*X264, "-pix_fmt", "yuv444p10le"),
    "gbrp10le": ("-c:v", "libx265", "-pix_fmt", "gbrp10le", "-x265-params", "log-level=none:pools=none"),
    "mpeg4": ("-c:v", "mpeg4", "-q:v", "3"),
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"),
}
# x264 and x265 make no odd sizes at 4:2:0; mpeg4 and mjpeg do.
SIZES = [(name, 176, 240) for name in FORMATS]
SIZES += [(name, 177, 239) for name in ("gbrp", "yuv444p", "yuv444p10le", "gbrp10le", "mpeg4", "mjpeg")]

TAGS = [("-display_rotation", angle) for angle in (90, 180, 270)]
TAGS += [("-display_hflip",), ("-display_vflip",), ("-display_hflip", "-display_rotation", 90)]


def scene(count: int, height: int, width: int) -> np.ndarray:
    """uint8 (count, height, width, 3): coloured clouds with a patch of noise, where chroma filters show."""
    rng = np.random.default_rng(0)
    clouds = rng.integers(0, 256, (count, 12, 16, 3), np.uint8)
    frames = np.stack([cv2.resize(cloud, (width, height), interpolation=cv2.INTER_LINEAR) for cloud in clouds])
    frames[:, 20:60, 30:90] = rng.integers(0, 256, (count, 40, 60, 3), np.uint8)
    return frames


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], Path]:
    folder = tmp_path_factory.mktemp("films")
    return {
        (name, height, width): encode(
            folder / f"{name}-{width}.{'avi' if name == 'mjpeg' else 'mp4'}", scene(3, height, width), *FORMATS[name]
        )
        for name, height, width in SIZES
    }


def frames_of(path: Path, count: int = 3) -> list[Decoded]:
    with FrameReader(path, probe(path), range(count)) as reader:
        frames = list(reader)
    assert reader.error is None
    return frames


@pytest.mark.parametrize(("name", "height", "width"), SIZES)
def test_pixels_are_those_of_the_ffmpeg_program(films: dict, name: str, height: int, width: int) -> None:
    frames = frames_of(films[name, height, width])
    expected = decode_all(films[name, height, width], width, height)
    assert len(frames) == len(expected) == 3
    for frame, picture in zip(frames, expected, strict=True):  # all kept: none writes into another's memory
        assert frame.rgb.dtype == np.uint8 and frame.rgb.flags.c_contiguous and frame.rgb.flags.writeable
        assert frame.rgb is frame.rgb
        np.testing.assert_array_equal(frame.rgb, picture)


@pytest.mark.parametrize(("name", "height", "width"), SIZES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_part_has_the_pixels_of_the_whole(
    films: dict, name: str, height: int, width: int, data: st.DataObject
) -> None:
    cached = _KEPT.setdefault((name, height, width), [])
    if not cached:
        cached.append((frames_of(films[name, height, width], 1)[0], frames_of(films[name, height, width], 1)[0].rgb))
    frame, whole = cached[0]
    left, right = sorted(data.draw(st.tuples(*[st.integers(-9, width + 9)] * 2)))
    top, bottom = sorted(data.draw(st.tuples(*[st.integers(-9, height + 9)] * 2)))
    part = frame.rgb_within((left, top, right, bottom))
    assert part.shape == (height, width, 3) and part.dtype == np.uint8
    assert frame._rgb is None or name not in _IN_PARTS  # only where it must is the whole converted
    inside = np.s_[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    np.testing.assert_array_equal(part[inside], whole[inside])


_KEPT: dict[tuple[str, int, int], list] = {}
_IN_PARTS = ("gbrp", "yuv444p", "yuv422p", "yuv420p", "yuvj420p", "bt709", "topleft")


def test_two_parts_kept_at_once_stay_right(films: dict) -> None:
    frames = frames_of(films["yuv444p", 176, 240])
    parts = [frame.rgb_within((10, 10, 90, 90)) for frame in frames]
    for frame, part in zip(frames, parts, strict=True):
        np.testing.assert_array_equal(part[10:90, 10:90], frame.rgb[10:90, 10:90])


@pytest.mark.parametrize(("name", "height", "width"), SIZES)
def test_luminance_is_the_grey_of_the_picture(films: dict, name: str, height: int, width: int) -> None:
    frame = frames_of(films[name, height, width])[1]
    luma, grey = frame.luma, cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)
    assert luma.shape == (height, width) and luma.dtype == np.uint8
    thumbnail = frame.thumbnail
    assert thumbnail.shape == (90, 160) and thumbnail.dtype == np.uint8
    assert np.abs(thumbnail.astype(int) - thumbnail_of(luma)).max() <= 2
    # BT.709 weighs the colours in another way; its range must be right all the same.
    assert np.abs(luma.astype(int) - grey).mean() < (10 if name == "bt709" else 0.6)
    assert abs(float(luma.mean()) - float(grey.mean())) < (3 if name == "bt709" else 0.5)


@pytest.mark.parametrize("name", ["gbrp", "yuv444p", "yuv420p", "yuvj420p", "yuv420p10le", "yuv444p10le", "gbrp10le"])
def test_black_and_white_reach_both_ends(tmp_path: Path, name: str) -> None:
    frames = np.zeros((2, 96, 160, 3), np.uint8)
    frames[:, :, 80:] = 255
    path = encode(tmp_path / "a.mp4", frames, *FORMATS[name])
    frame = frames_of(path, 2)[1]
    for picture in (frame.luma, frame.thumbnail):
        assert picture[:, :60].max() <= 2 and picture[:, 100:].min() >= 253


@pytest.mark.parametrize("name", ["gbrp", "yuv444p", "yuv420p"])
@pytest.mark.parametrize("tag", TAGS)
def test_turned_pictures_are_those_of_the_ffmpeg_program(films: dict, tmp_path: Path, name: str, tag: tuple) -> None:
    turned = tmp_path / "phone.mp4"
    run_ffmpeg(*tag, "-i", films[name, 176, 240], "-c", "copy", turned)
    info = probe(turned)
    assert (info.width, info.height) == ((176, 240) if tag[-1] in (90, 270) else (240, 176))
    expected = decode_all(turned, info.width, info.height)
    for frame, picture in zip(frames_of(turned), expected, strict=True):
        part = frame.rgb_within((20, 30, 60, 80))
        np.testing.assert_array_equal(part[30:80, 20:60], frame.rgb[30:80, 20:60])
        assert frame.rgb.flags.c_contiguous
        difference = np.abs(frame.rgb.astype(int) - picture)
        # At 4:2:0 the program turns the planes first, and its chroma filters round in the other direction.
        assert difference.max() <= (0 if name != "yuv420p" else 2)
        grey = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY)
        assert np.abs(frame.luma.astype(int) - grey).mean() < 0.6
        assert np.abs(frame.thumbnail.astype(int) - thumbnail_of(grey)).mean() < 1


def test_a_picture_in_memory_is_the_same_kind_of_object() -> None:
    rgb = scene(1, 120, 200)[0]
    decoded = Decoded(7, rgb)
    assert decoded.index == 7 and decoded.rgb is rgb and decoded.rgb_within((1, 2, 3, 4)) is rgb
    np.testing.assert_array_equal(decoded.luma, cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    assert decoded.thumbnail.shape == (90, 160)
