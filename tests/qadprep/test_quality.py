import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.numbered import encode_with, numbered_frames
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog.base import Catalog, Clip
from qadprep.quality import QualityReport, check_quality, expected_crf, read_crf
from qadprep.video.encode import compress, write_raw
from qadprep.video.probe import ProbeError, probe


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw, c23, c40, an H.264 stream without x264's header, MPEG-4 part 2, sound only, and broken files."""
    folder = tmp_path_factory.mktemp("videos")
    frames = numbered_frames(30)
    write_raw(frames, folder / "raw.mp4", 25)
    for crf in (23, 40):
        compress(folder / "raw.mp4", folder / f"c{crf}.mp4", crf)
    encode_with(folder / "bitrate.mp4", frames, b="200000")
    write_mpeg4(folder / "mpeg4.mp4", frames)
    hide_header(folder / "c23.mp4", folder / "hidden.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "half.mp4").write_bytes((folder / "c23.mp4").read_bytes()[:3000])
    return folder


def write_mpeg4(path: Path, frames: np.ndarray) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def hide_header(source: Path, path: Path) -> None:
    data = source.read_bytes()
    assert data.count(b"x264 - core") == 1
    path.write_bytes(data.replace(b"x264 - core", b"y265 - core"))


def catalog_of(root: Path, dataset: str, *paths: dict[str, str]) -> Catalog:
    clips = [
        Clip(dataset, "original", f"v{i}", 0, "train", f"v{i}", f"v{i}", "", files) for i, files in enumerate(paths)
    ]
    return Catalog(dataset, root, clips)


@pytest.mark.parametrize(
    ("name", "crf"),
    [("raw", 0.0), ("c23", 23.0), ("c40", 40.0), ("bitrate", None), ("mpeg4", None), ("hidden", None)],
)
def test_the_crf_of_a_file(videos: Path, name: str, crf: float | None) -> None:
    assert read_crf(videos / f"{name}.mp4") == crf == probe(videos / f"{name}.mp4").crf


@pytest.mark.parametrize(
    ("name", "reason"),
    [("empty", "empty_file"), ("text", "unreadable"), ("half", "unreadable"), ("absent", "missing_file")],
)
def test_files_that_are_no_video(videos: Path, name: str, reason: str) -> None:
    with pytest.raises(ProbeError) as caught:
        read_crf(videos / f"{name}.mp4")
    assert caught.value.reason == reason and f"{name}.mp4" in str(caught.value)


def test_what_a_quality_promises() -> None:
    assert expected_crf("raw", True) == 0.0 and expected_crf("raw", False) is None
    assert expected_crf("c23", True) == expected_crf("c23", False) == 23.0
    assert expected_crf("masks", True) is None


@given(st.integers(1, 51), st.booleans())
def test_a_made_quality_promises_its_number(crf: int, lossless: bool) -> None:
    assert expected_crf(f"c{crf}", lossless) == float(crf)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_files_against_their_folders(videos: Path, workers: int) -> None:
    catalog = catalog_of(
        videos,
        "ffpp",  # whose raw promises to be lossless
        {"raw": "raw.mp4", "c23": "c23.mp4", "c40": "c40.mp4"},
        {"raw": "c23.mp4", "c23": "c40.mp4", "c40": "raw.mp4"},
        {"raw": "mpeg4.mp4", "c23": "bitrate.mp4", "c40": "hidden.mp4"},
        {"raw": "text.mp4", "c23": "empty.mp4", "c40": "gone/x.mp4"},
        {"raw": "pictures/", "c23": "a.tar.gz::x/y"},
    )
    report = check_quality(catalog, workers)
    assert (report.agree, report.unknown) == (3, 5)
    assert report.mismatched == [("c23.mp4", "raw", 23.0), ("c40.mp4", "c23", 40.0), ("raw.mp4", "c40", 0.0)]
    assert [path for path, _ in report.unreadable] == ["text.mp4", "empty.mp4", "gone/x.mp4"]
    assert report.unreadable[1][1] == "empty.mp4: the file has 0 bytes; fetch it again"
    assert report.as_dict()["mismatched"][0] == {"path": "c23.mp4", "quality": "raw", "found_crf": 23.0}
    assert report.as_dict()["unreadable"][2]["reason"].startswith("gone/x.mp4: ")


def test_a_raw_as_released_promises_nothing(videos: Path) -> None:
    catalog = catalog_of(videos, "nobody", {"raw": "c23.mp4", "c40": "c40.mp4"}, {"raw": "text.mp4", "c40": "c23.mp4"})
    report = check_quality(catalog)
    assert (report.agree, report.unknown, report.mismatched) == (1, 1, [("c23.mp4", "c40", 23.0)])
    assert [path for path, _ in report.unreadable] == ["text.mp4"]


def test_more_files_than_are_waited_for_at_once(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qadprep.quality._FILES_AT_ONCE", 4)
    report = check_quality(catalog_of(videos, "ffpp", *[{"c23": "c23.mp4", "c40": "c23.mp4"}] * 9), 2)
    assert (report.agree, report.mismatched) == (9, [("c23.mp4", "c40", 23.0)] * 9)
    assert check_quality(catalog_of(videos, "ffpp")) == QualityReport()


def test_a_trimmed_file_still_tells(videos: Path, tmp_path: Path) -> None:
    import av

    # Cut before a frame that is no keyframe: the packets before it stay in the file and an edit list hides them.
    with av.open(str(videos / "c23.mp4")) as source, av.open(str(tmp_path / "cut.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            packet.pts, packet.dts = packet.pts - 10 * packet.duration, packet.dts - 10 * packet.duration
            packet.stream = copy
            target.mux(packet)
    shutil.copy(videos / "c23.mp4", tmp_path / "whole.mp4")
    assert probe(tmp_path / "cut.mp4").frames < probe(tmp_path / "whole.mp4").frames
    assert read_crf(tmp_path / "cut.mp4") == 23.0
