import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.numbered import encode_with, number_of, numbered_frames

from qadprep.video.decode import THUMB_HEIGHT, THUMB_WIDTH, FrameReader, decode_at, iter_frames
from qadprep.video.encode import compress, write_raw
from qadprep.video.ffmpeg import FfmpegError
from qadprep.video.probe import ProbeError, probe
from qadprep.video.sync import Sync, temporal_shift, trusted

COUNT = 70


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return numbered_frames(COUNT)


@pytest.fixture(scope="module")
def videos(frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    paths = {name: folder / f"{name}.mp4" for name in ("raw", "c23", "c40", "open_gop", "gbrp10", "yuv420p")}
    write_raw(frames, paths["raw"], 25)
    compress(paths["raw"], paths["c23"], 23)
    compress(paths["raw"], paths["c40"], 40)
    compress(paths["raw"], paths["yuv420p"], 23, pix_fmt="yuv420p")
    encode_with(paths["open_gop"], frames, bf="3", b_pyramid="normal", **{"x264-params": "open-gop=1:keyint=12"})
    encode_with(paths["gbrp10"], frames, pix_fmt="yuv420p10le", crf="20", bf="2")
    return paths


@pytest.mark.parametrize("name", ["raw", "c23", "c40", "open_gop", "gbrp10", "yuv420p"])
def test_exactly_the_asked_frames_come_out(videos: dict[str, Path], name: str) -> None:
    info = probe(videos[name])
    assert info.frames == COUNT
    indices = [0, 1, 2, 11, 12, 13, 40, 41, 66, 69]
    assert [number_of(frame) for frame in decode_at(videos[name], info, indices)] == indices


def test_raw_is_lossless_to_the_bit(videos: dict[str, Path], frames: np.ndarray) -> None:
    info = probe(videos["raw"])
    assert (info.pix_fmt, info.rate_control, info.crf) == ("gbrp", "cqp", 0.0)
    np.testing.assert_array_equal(np.stack(list(iter_frames(videos["raw"], info))), frames)


@pytest.mark.parametrize(("name", "crf"), [("c23", 23.0), ("c40", 40.0)])
def test_compressed_like_ffpp(videos: dict[str, Path], frames: np.ndarray, name: str, crf: float) -> None:
    info = probe(videos[name])
    assert (info.codec, info.pix_fmt, info.rate_control, info.crf) == ("h264", "yuv444p", "crf", crf)
    assert (info.width, info.height, info.fps) == (160, 96, 25)
    # ffmpeg's mark of 4:4:4 input under default settings, found in FF++'s own files.
    assert b"chroma_qp_offset=4" in videos[name].read_bytes()
    error = np.abs(decode_at(videos[name], info, [30])[0].astype(int) - frames[30]).mean()
    assert 0.5 < error < 30


def test_compress_is_the_same_every_time(videos: dict[str, Path], tmp_path: Path) -> None:
    compress(videos["raw"], tmp_path / "again.mp4", 40)
    assert (tmp_path / "again.mp4").read_bytes() == videos["c40"].read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.mp4"]


def test_a_failed_encode_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(FfmpegError, match="encoding failed"):
        compress(tmp_path / "text.mp4", tmp_path / "out" / "x.mp4", 23)
    assert list((tmp_path / "out").iterdir()) == []


def test_write_refuses_wrong_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_raw([], tmp_path / "x.mp4", 25)
    with pytest.raises(ValueError, match="uint8"):
        write_raw([np.zeros((16, 16, 3), np.float32)], tmp_path / "x.mp4", 25)
    with pytest.raises(ValueError, match=r"\(16, 16, 3\)"):
        write_raw([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)], tmp_path / "x.mp4", 25)
    assert list(tmp_path.iterdir()) == []


def test_thumbnails_of_all_and_of_selected_frames_agree(videos: dict[str, Path]) -> None:
    info = probe(videos["c23"])
    with FrameReader(videos["c23"], info, [5, 9], thumbs_at=[*range(13), -1, COUNT, 10**9]) as reader:
        assert [frame.index for frame in reader] == [5, 9]
    with FrameReader(videos["c23"], info, [20], thumbs_at={5, 9, 33}) as picked:
        assert [frame.index for frame in picked] == [20]
    assert sorted(reader.thumbnails) == list(range(13))
    assert sorted(picked.thumbnails) == [5, 9, 33]
    assert reader.error is picked.error is None
    for index in (5, 9):
        assert picked.thumbnails[index].shape == (THUMB_HEIGHT, THUMB_WIDTH)
        np.testing.assert_array_equal(picked.thumbnails[index], reader.thumbnails[index])


def test_thumbnails_have_one_range_at_every_quality(videos: dict[str, Path]) -> None:
    means = []
    for name in ("raw", "c23", "yuv420p"):
        with FrameReader(videos[name], probe(videos[name]), [20], thumbs_at=[20]) as reader:
            list(reader)
        means.append(float(reader.thumbnails[20].mean()))
    # A limited-range grey would lie 9 levels off.
    assert max(means) - min(means) < 2


def test_damage_in_the_middle_ends_the_pass_and_shifts_nothing(videos: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(videos["raw"].read_bytes())
    start = len(data) // 2
    data[start : start + 400] = bytes(400)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    info = probe(bad)
    with FrameReader(bad, info, range(COUNT)) as reader:
        got = [(frame.index, number_of(frame.rgb)) for frame in reader]
    assert reader.missing and reader.error
    assert len(got) + len(reader.missing) == COUNT
    assert all(index == number for index, number in got)
    with pytest.raises(FfmpegError, match=f"frame {reader.missing[0]} could not be decoded"):
        decode_at(bad, info, range(COUNT))


def test_bad_indices_are_refused(videos: dict[str, Path]) -> None:
    info = probe(videos["c40"])
    for wrong in ([], [3, 3], [5, 2], [-1, 2]):
        with pytest.raises(ValueError, match="indices"):
            FrameReader(videos["c40"], info, wrong)


def test_leaving_early_closes_the_file(videos: dict[str, Path]) -> None:
    info, handles = probe(videos["c23"]), Path("/proc/self/fd")
    before = len(list(handles.iterdir()))
    with FrameReader(videos["c23"], info, range(COUNT)) as reader:
        kept = next(iter(reader))
        assert len(list(handles.iterdir())) == before + 1
    assert len(list(handles.iterdir())) == before
    assert number_of(kept.rgb) == 0  # a frame outlives its reader
    with pytest.raises(RuntimeError, match="own"), FrameReader(videos["c23"], info, range(COUNT)) as reader:
        for _ in reader:
            raise RuntimeError("the caller's own")
    assert len(list(handles.iterdir())) == before


def test_reading_twice_gives_the_same(videos: dict[str, Path]) -> None:
    with FrameReader(videos["c40"], probe(videos["c40"]), [3, 50], thumbs_at=[4]) as reader:
        next(iter(reader))
        for _ in range(2):
            assert [number_of(frame.rgb) for frame in reader] == [3, 50]
            assert (sorted(reader.thumbnails), reader.missing) == ([4], [])


def test_a_file_that_is_gone_or_changed_or_no_video(videos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(videos["c23"].read_bytes())
    info = probe(path)
    with FrameReader(path, info, [0, 69]) as reader:
        assert [frame.index for frame in reader] == [0, 69]
    path.write_bytes(videos["open_gop"].read_bytes())
    with FrameReader(path, info, [0, 69]) as reader:
        assert [number_of(frame.rgb) for frame in reader] == [0, 69]
    for content in (b"", b"text" * 100):
        path.write_bytes(content)
        with FrameReader(path, info, [0, 69]) as reader:
            assert (list(reader), reader.missing) == ([], [0, 69])
        assert reader.error
    path.unlink()
    with FrameReader(path, info, [0, 69]) as reader:
        assert (list(reader), reader.missing, reader.error) == ([], [0, 69], "No such file or directory")
    script = tmp_path / "x.mp4"  # a text that names a video is not followed
    script.write_text(f"ffconcat version 1.0\nfile {videos['c23']}\n")
    with FrameReader(script, info, [0]) as reader:
        assert (list(reader), reader.missing) == ([], [0])


def test_a_picture_of_another_size_ends_the_pass(videos: dict[str, Path]) -> None:
    info = dataclasses.replace(probe(videos["c23"]), width=320)
    with FrameReader(videos["c23"], info, [2, 3]) as reader:
        assert (list(reader), reader.missing) == ([], [2, 3])
    assert reader.error == "frame 2 is 160x96, expected 320x96"


def test_frames_beyond_the_end_are_missing(videos: dict[str, Path]) -> None:
    for name in ("raw", "c23"):
        with FrameReader(videos[name], probe(videos[name]), [5, COUNT, 99]) as reader:
            assert [number_of(frame.rgb) for frame in reader] == [5]
        assert reader.missing == [COUNT, 99]
        assert reader.error == f"there is no frame {COUNT}, the file ends before it"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty_file"), (b"just text, no video\n" * 50, "unreadable"), (None, "missing_file")],
)
def test_probe_names_the_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProbeError) as caught:
        probe(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_probe_of_a_file_cut_short(videos: dict[str, Path], tmp_path: Path) -> None:
    import ffmpeg

    from qadprep.video.ffmpeg import ffmpeg_exe

    front = tmp_path / "front.mp4"  # index at the front, as downloads are: the cut file still opens
    ffmpeg.input(str(videos["c23"])).output(str(front), codec="copy", movflags="faststart").run(
        cmd=ffmpeg_exe(), quiet=True
    )
    data = front.read_bytes()
    front.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ProbeError, match=rf"holds \d+ of the {COUNT} frames") as caught:
        probe(front)
    assert caught.value.reason == "truncated"
    end = tmp_path / "end.mp4"  # index at the end: lost with the tail
    end.write_bytes(videos["c23"].read_bytes()[:-4000])
    with pytest.raises(ProbeError) as caught:
        probe(end)
    assert caught.value.reason == "unreadable"


def test_a_rotation_tag_is_obeyed(videos: dict[str, Path], frames: np.ndarray, tmp_path: Path) -> None:
    import subprocess

    from qadprep.video.ffmpeg import ffmpeg_exe

    turned = tmp_path / "phone.mp4"
    command = [ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90", "-i", str(videos["raw"]), "-c", "copy"]
    subprocess.run([*command, str(turned)], check=True)
    info = probe(turned)
    assert (info.width, info.height, info.rotation_deg, info.frames) == (96, 160, 90, COUNT)
    np.testing.assert_array_equal(decode_at(turned, info, [7])[0], np.rot90(frames[7]))


def test_a_trimmed_video_is_not_called_truncated(videos: dict[str, Path], tmp_path: Path) -> None:
    import subprocess

    from qadprep.video.ffmpeg import ffmpeg_exe

    trimmed = tmp_path / "trimmed.mp4"  # by an edit list: the packets before the start are still in the file
    command = [ffmpeg_exe(), "-loglevel", "error", "-ss", "0.6", "-i", str(videos["c23"]), "-c", "copy", str(trimmed)]
    subprocess.run(command, check=True)
    info = probe(trimmed)
    assert info.frames < info.frames_header
    assert [number_of(frame) for frame in decode_at(trimmed, info, [0, 5])] == [15, 20]


def test_a_text_file_that_names_a_video_is_no_video(videos: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "x.mp4"
    script.write_text(f"ffconcat version 1.0\nfile {videos['c23']}\n")
    with pytest.raises(ProbeError) as caught:
        probe(script)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE])
def test_an_error_of_the_machine_says_nothing_about_the_file(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import av

    def fail(*args: object, **options: object) -> None:
        av.error.err_check(-number, "x.mp4")

    info = probe(videos["raw"])
    with FrameReader(videos["raw"], info, range(COUNT)) as reader:
        monkeypatch.setattr(av, "open", fail)
        with pytest.raises(FfmpegError, match=os.strerror(number)):
            list(reader)
    number = errno.EIO  # a bad sector, though, is the file's
    with FrameReader(videos["raw"], info, [1, 2]) as reader:
        assert (list(reader), reader.missing, reader.error) == ([], [1, 2], os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright (c) 2000-2021", True),
        ("ffmpeg version 5.0.3 Copyright", True),
        ("ffmpeg version 5.1.6-0+deb12u1 Copyright", False),
        ("ffmpeg version n9.0.2-17-g2a571b6068-20260930 Copyright", False),
        ("ffmpeg version N-118193-g5f38c82536 Copyright", False),
    ],
)
def test_old_ffmpeg_is_recognised(line: str, expected: bool) -> None:
    from qadprep.video.ffmpeg import too_old

    assert too_old(line) is expected


def test_probe_of_audio_only(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ProbeError) as caught:
        probe(path)
    assert caught.value.reason == "no_video_stream"


def _thumbs(path: Path, indices: list[int] | range, mode: str) -> dict[int, np.ndarray]:
    last = max(indices) if mode == "all" else -1
    with FrameReader(path, probe(path), indices, thumbs_at={*indices, *range(last + 1)}) as reader:
        list(reader)
    return reader.thumbnails


@pytest.mark.parametrize("offset", [-3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("quality", ["c23", "c40"])
def test_sync_finds_the_offset_that_was_made(videos: dict[str, Path], quality: str, offset: int) -> None:
    reference = _thumbs(videos["raw"], range(COUNT), "all")
    shown = _thumbs(videos[quality], [i + offset for i in range(8, 60, 4)], "selected")
    sync = temporal_shift(reference, {index - offset: picture for index, picture in shown.items()})
    assert sync.offset_frames == offset
    assert sync.verdict == ("proved" if offset == 0 else "shifted")
    assert sync.agreeing == sync.instants >= 9
    assert trusted(sync, same_size=True, same_count=True) == (offset == 0)
    assert not trusted(sync, same_size=False, same_count=True)


def test_sync_of_a_still_scene_is_never_proved() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (90, 160), np.uint8)
    sync = temporal_shift(dict.fromkeys(range(30), picture), dict.fromkeys(range(4, 26), picture))
    assert (sync.verdict, sync.residual) == ("static", 0.0)
    assert trusted(sync, same_size=True, same_count=True)
    assert not trusted(sync, same_size=True, same_count=False)


def test_sync_of_another_scene_is_refused() -> None:
    a, b = numbered_frames(30, seed=1)[..., 1], numbered_frames(30, seed=2)[..., 1]
    sync = temporal_shift(dict(enumerate(a)), dict(enumerate(b[:27])))
    assert sync.verdict == "refused"
    assert not trusted(sync, same_size=True, same_count=True)


def test_sync_without_common_frames() -> None:
    assert temporal_shift({}, {}) == Sync("refused", 0, 0.0, 255.0, 0, 0)
    picture = np.zeros((4, 4), np.uint8)
    assert temporal_shift({0: picture}, {0: picture}).verdict == "static"
