"""Files of many kinds: every index gives the ffmpeg program's frame, with as little decoded as possible."""

from pathlib import Path

import numpy as np
import pytest
from helpers.by_ffmpeg import decode_all, encode, run_ffmpeg
from helpers.numbered import number_of, numbered_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.video.decode import FrameReader
from qadprep.video.encode import write_raw
from qadprep.video.packets import packet_table
from qadprep.video.probe import ProbeError, probe

COUNT = 40
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-x264-params")
IDR = "bframes=2:keyint=10:min-keyint=10:scenecut=0"
MADE = {
    "pyramid.mp4": (*X264, "bframes=4:b-pyramid=normal:keyint=250"),
    "open_gop.mp4": (*X264, "bframes=3:open-gop=1:keyint=12:b-adapt=0"),
    "slices.mp4": (*X264, "slices=4:bframes=3:keyint=20"),
    "fields.ts": (*X264, "interlaced=1:bframes=2:keyint=20"),
    **{f"idr.{end}": (*X264, IDR) for end in ("mp4", "mkv", "avi", "ts", "h264", "flv")},
    "vfr.mp4": (*X264, "bframes=3", "-vf", r"setpts='(N+2*floor(N/3)+mod(N*7\,5)/3)/25/TB'", "-fps_mode", "vfr",
                "-video_track_timescale", "9000"),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none:pools=none:bframes=4:keyint=15:open-gop=1"),
    "part2.avi": ("-c:v", "mpeg4", "-q:v", "3", "-bf", "2"),
    "part2.mp4": ("-c:v", "mpeg4", "-q:v", "3", "-bf", "2"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-b:v", "1M", "-cpu-used", "8"),
}  # fmt: skip
DERIVED = ("trimmed.mp4", "trimmed_idr.mp4", "trimmed_both.mp4", "two_streams.mp4", "fragments.mp4", "wrong_count.avi")
EVERY = (*MADE, *DERIVED)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    frames = numbered_frames(COUNT)
    paths = {name: encode(folder / name, frames, *options) for name, options in MADE.items()}
    paths |= {name: folder / name for name in DERIVED}
    copy = ("-c", "copy")
    run_ffmpeg("-ss", "0.3", "-i", paths["pyramid.mp4"], *copy, paths["trimmed.mp4"])
    run_ffmpeg("-ss", "0.62", "-i", paths["idr.mp4"], *copy, paths["trimmed_idr.mp4"])
    run_ffmpeg("-ss", "0.3", "-i", paths["pyramid.mp4"], "-t", "0.8", *copy, paths["trimmed_both.mp4"])
    streams = ("-i", paths["idr.mp4"], "-i", paths["part2.mp4"], "-map", "0:v", "-map", "1:v")
    run_ffmpeg(*streams, *copy, paths["two_streams.mp4"])
    run_ffmpeg("-i", paths["idr.mp4"], *copy, "-movflags", "frag_keyframe+empty_moov", paths["fragments.mp4"])
    data = bytearray(paths["part2.avi"].read_bytes())
    for mark, place in ((b"avih", 24), (b"strh", 40)):  # the frame counts of both headers
        start = data.index(mark) + place
        assert int.from_bytes(data[start : start + 4], "little") == COUNT
        data[start : start + 4] = (17).to_bytes(4, "little")
    paths["wrong_count.avi"].write_bytes(data)
    return paths


@pytest.fixture(scope="module")
def truth(files: dict[str, Path]) -> dict[str, np.ndarray]:
    return {name: decode_all(files[name], 160, 96) for name in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_every_frame_is_that_of_the_ffmpeg_program(files: dict, truth: dict, name: str) -> None:
    info = probe(files[name])
    assert info.frames == len(truth[name]) == packet_table(files[name]).frames
    first = number_of(truth[name][0])
    assert first == (8 if name.startswith("trimmed") and "idr" not in name else first)
    with FrameReader(files[name], info, range(info.frames)) as reader:
        for frame in reader:
            np.testing.assert_array_equal(frame.rgb, truth[name][frame.index])
            assert number_of(frame.rgb) == frame.index + first
    assert (reader.missing, reader.error) == ([], None)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_choice_of_frames_is_exact(files: dict, truth: dict, name: str, data: st.DataObject) -> None:
    count = len(truth[name])
    indices = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=5)))
    thumbs = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    threads = data.draw(st.sampled_from([1, 2]))
    with FrameReader(files[name], probe(files[name]), indices, thumbs_at=thumbs, threads=threads) as reader:
        got = {frame.index: frame.rgb for frame in reader}
    assert (list(got), sorted(reader.thumbnails), reader.error) == (indices, sorted(thumbs), None)
    for index, rgb in got.items():
        np.testing.assert_array_equal(rgb, truth[name][index])


def _decoded(path: Path, indices: list[int], thumbs: tuple[int, ...] = ()) -> int:
    with FrameReader(path, probe(path), indices, thumbs_at=thumbs) as reader:
        assert [number_of(frame.rgb) for frame in reader] == indices
    return reader.frames_decoded


def test_only_what_is_needed_is_decoded(files: dict[str, Path]) -> None:
    assert _decoded(files["idr.mp4"], [0]) == 1
    # The first picture, and the last ten's own start.
    assert _decoded(files["idr.mp4"], [30]) == 2
    assert _decoded(files["idr.mp4"], [0, 30]) == 2
    assert _decoded(files["idr.mp4"], [30], (10,)) == 3
    table = packet_table(files["pyramid.mp4"])
    assert table.exact and sum(table.droppable) >= 12
    assert _decoded(files["pyramid.mp4"], [0, COUNT - 1]) <= COUNT - sum(table.droppable) + 1
    assert _decoded(files["pyramid.mp4"], list(range(COUNT))) == COUNT
    assert _decoded(files["idr.avi"], [5]) > 5  # no times of display: counted


def test_what_cannot_be_left_out_safely_is_decoded(files: dict[str, Path]) -> None:
    for name in ("fields.ts", "idr.avi", "idr.h264"):
        assert not packet_table(files[name]).exact
    for name in ("fields.ts", "hevc.mp4", "part2.mp4"):
        table = packet_table(files[name])
        assert not any(table.droppable) and not any(table.starts)


def test_a_file_cut_inside_an_open_gop_counts_what_can_be_shown(files: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.ts"
    options = "log-level=none:pools=none:bframes=4:keyint=15:min-keyint=15:open-gop=1:b-adapt=0"
    whole = encode(tmp_path / "whole.mp4", numbered_frames(COUNT), "-c:v", "libx265", "-x265-params", options)
    run_ffmpeg("-ss", "0.7", "-i", whole, "-c", "copy", cut)
    expected = decode_all(cut, 160, 96)
    info = probe(cut)
    assert info.frames > len(expected)
    with FrameReader(cut, info, range(info.frames)) as reader:
        got = [frame.rgb for frame in reader]
    np.testing.assert_array_equal(np.stack(got), expected)
    assert reader.missing == list(range(len(expected), info.frames))


@pytest.mark.parametrize("name", ["raw.mp4", "c23.mp4", "idr.ts"])
def test_damage_never_crashes_and_never_shifts(tmp_path: Path, name: str, files: dict[str, Path]) -> None:
    path = tmp_path / name
    if name == "raw.mp4":
        write_raw(numbered_frames(20), path, 25)
    elif name == "c23.mp4":
        encode(path, numbered_frames(20), "-c:v", "libx264", "-crf", "23", "-pix_fmt", "yuv444p")
    else:
        path.write_bytes(files[name].read_bytes())
    good, rng, read = path.read_bytes(), np.random.default_rng(4), 0
    for trial in range(60):
        data = bytearray(good)
        if trial % 3 == 0:
            data = data[: rng.integers(1, len(data))]
        elif trial % 3 == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            start = rng.integers(len(data))
            data[start : start + 200] = bytes(len(data[start : start + 200]))
        path.write_bytes(data)
        try:
            info = probe(path)
        except ProbeError:
            continue
        read += 1
        indices = sorted(rng.choice(info.frames, size=rng.integers(1, info.frames + 1), replace=False).tolist())
        outcomes = []
        for threads in (1, 2):
            with FrameReader(path, info, indices, threads=threads, thumbs_at=indices) as reader:
                got = [(frame.index, frame.rgb.tobytes()) for frame in reader]
            assert [index for index, _ in got] + reader.missing == indices
            assert reader.error or not reader.missing
            outcomes.append((got, sorted(reader.thumbnails)))
        assert outcomes[0] == outcomes[1]
    assert read >= 10
