import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.numbered import numbered_frames

from qadprep.catalog.base import Catalog, Clip
from qadprep.catalog.manifest import read_manifest
from qadprep.errors import UserError
from qadprep.protocols import Protocol, load_protocol
from qadprep.scan import count, scan
from qadprep.video.encode import compress, write_raw

YOUTUBE, SWAPS = "original_sequences/youtube", "manipulated_sequences/FaceSwap"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """755 (test) and 756 (train) are cut from one YouTube video; 071 and 054 (train) share nothing."""
    root = tmp_path / "ffpp"
    touch(root, *(f"{YOUTUBE}/c23/videos/{name}.mp4" for name in ("071", "054", "755", "756")))
    touch(root, f"{SWAPS}/c23/videos/071_054.mp4", f"{YOUTUBE}/c40/videos/071.mp4", f"{YOUTUBE}/c40/videos/notes.txt")
    return root


def test_leaks_are_told_and_stay(leaky: Path, tmp_path: Path) -> None:
    report = scan(leaky, "ffpp", tmp_path / "m.parquet")
    (leak,) = report.leaks
    assert (leak.kind, set(leak.splits)) == ("recording", {"train", "test"}) and leak.droppable
    assert report.dropped == [] and len(read_manifest(tmp_path / "m.parquet")) == 5
    result = json.loads(json.dumps(report.as_dict()))
    assert result["leaks"][0]["clips"] == ["ffpp/original/755", "ffpp/original/756"]
    assert result["dropped"] == [] and result["quality"] is None
    assert (result["clips"], result["groups"], report.groups) == (5, 4, 4)


def test_dropped_clips_leave_the_manifest(leaky: Path, tmp_path: Path) -> None:
    report = scan(leaky, "ffpp", tmp_path / "m.parquet", drop_leaks=True)
    assert report.dropped == ["ffpp/original/756"] and len(report.leaks) == 1
    kept = {"ffpp/original/071", "ffpp/original/054", "ffpp/original/755", "ffpp/FaceSwap/071_054"}
    assert {clip.id for clip in read_manifest(tmp_path / "m.parquet")} == kept
    assert {clip.id for clip in report.catalog.clips} == kept
    assert report.counts["original", "train", "c23"] == 2
    # 756 is on disk: three of the 720 are there.
    assert report.absent["original", "train"] == 717
    assert report.as_dict()["dropped"] == ["ffpp/original/756"] and report.groups == 3


def test_a_protocol_keeps_its_clips(leaky: Path, tmp_path: Path) -> None:
    touch(leaky, "manipulated_sequences/Deepfakes/c23/videos/071_054.mp4", f"{SWAPS}/c23/videos/054_071.mp4")
    protocol = Protocol(
        name="p", title="P", dataset="ffpp", methods=("FaceSwap",), frames=4, videos_per_class={"train": 1}
    )
    report = scan(leaky, "ffpp", tmp_path / "m.parquet", protocol=protocol)
    clips = read_manifest(tmp_path / "m.parquet")
    assert clips == report.catalog.clips
    assert Counter((c.method, c.split) for c in clips) == {
        ("original", "train"): 1, ("FaceSwap", "train"): 1, ("original", "test"): 1
    }  # fmt: skip
    expected = report.catalog.expected
    assert expected["original", "train"] == expected["FaceSwap", "train"] == 1 and expected["FaceSwap", "val"] == 140
    assert {method for method, _ in expected} == {"original", "FaceSwap"}
    # The original of a fake may be left out by the draw, but it is on disk.
    assert report.no_original == []
    assert ("original", "train") not in report.absent and report.absent["original", "test"] == 139
    other = scan(leaky, "ffpp", protocol=protocol, seed=3).catalog.clips
    assert len(other) == 3
    with pytest.raises(UserError, match="'p' is of dataset ffpp, got --dataset celebdf"):
        scan(leaky, "celebdf", protocol=protocol)


def test_too_few_for_a_protocol(leaky: Path) -> None:
    report = scan(leaky, "ffpp", protocol=load_protocol("qad-ffpp-FaceSwap"))
    assert report.absent == {
        ("original", "train"): 717, ("original", "val"): 140, ("original", "test"): 139,
        ("FaceSwap", "train"): 719, ("FaceSwap", "val"): 140, ("FaceSwap", "test"): 140,
    }  # fmt: skip


def test_a_protocol_takes_what_is_left_after_dropping(leaky: Path) -> None:
    protocol = Protocol(name="p", title="P", dataset="ffpp", methods=("FaceSwap",), frames=4)
    report = scan(leaky, "ffpp", protocol=protocol, drop_leaks=True)
    assert {c.name for c in report.catalog.clips} == {"071", "054", "755", "071_054"}
    assert report.dropped == ["ffpp/original/756"]
    limited = protocol.model_copy(update={"videos_per_class": {"train": 3}})
    assert ("original", "train") not in scan(leaky, "ffpp", protocol=limited).absent
    assert scan(leaky, "ffpp", protocol=limited, drop_leaks=True).absent["original", "train"] == 1


def test_the_streams_against_the_folders(tmp_path: Path) -> None:
    raw = tmp_path / "raw.mp4"
    write_raw(numbered_frames(8), raw, 25)
    root = tmp_path / "ffpp"
    for quality, crf in (("c23", 23), ("c40", 23)):
        compress(raw, root / YOUTUBE / quality / "videos" / "071.mp4", crf)
    touch(root, f"{YOUTUBE}/raw/videos/071.mp4")
    (root / YOUTUBE / "raw" / "videos" / "054.mp4").write_bytes(raw.read_bytes())
    report = scan(root, "ffpp", check_quality=True, workers=1)
    assert report.quality.agree == 2 and report.quality.unknown == 0
    assert report.quality.mismatched == [(f"{YOUTUBE}/c40/videos/071.mp4", "c40", 23.0)]
    assert report.quality.unreadable == [
        (f"{YOUTUBE}/raw/videos/071.mp4", f"{YOUTUBE}/raw/videos/071.mp4: the file has 0 bytes; fetch it again")
    ]
    assert report.as_dict()["quality"]["agree"] == 2


def test_what_a_reader_notes_is_in_the_report() -> None:
    clips = [
        Clip("d", "original", "a", 0, "train", "g", "a", "", {"raw": "a.mp4", "c40": "b.mp4"}),
        Clip("d", "F", "a", 1, "train", "g", "a", "", {"c40": "c.mp4"}),
        Clip("d", "F", "b", 1, "test", "h", "b", "", {"zoom": "d.mp4"}),
    ]
    catalog = Catalog(
        "d", Path("/r"), clips, [("x", "no clip")], [("y", "not there")], [("z", "odd")], {("F", "val"): 2}
    )
    report = count(catalog)
    assert (report.gaps, report.remarks) == ([("y", "not there")], [("z", "odd")])
    result = report.as_dict()
    assert result["gaps"] == [{"entry": "y", "reason": "not there"}]
    assert result["remarks"] == [{"what": "z", "remark": "odd"}]
    assert result["ignored"] == [{"path": "x", "reason": "no clip"}]
    assert report.qualities == ("raw", "c40", "zoom")
    assert report.incomplete == [("d/original/a", ["zoom"]), ("d/F/a", ["raw", "zoom"]), ("d/F/b", ["raw", "c40"])]
    assert report.absent == {("F", "val"): 2} and report.no_original == ["d/F/b"]
    assert result["videos"][0] == {"method": "F", "split": "test", "quality": "zoom", "found": 1, "expected": None}


def test_nothing_of_the_dataset_writes_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        scan(tmp_path / "empty", "ffpp", tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()
    with pytest.raises(UserError, match="unknown dataset"):
        scan(tmp_path, "nobody")


def test_scan_opens_no_video_unless_asked(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> np.ndarray:
        raise AssertionError("opened")

    monkeypatch.setattr("qadprep.video.probe._open", fail)
    assert len(scan(leaky, "ffpp").catalog.clips) == 5
    with pytest.raises(AssertionError, match="opened"):
        scan(leaky, "ffpp", check_quality=True)


def test_the_benchmark_runs() -> None:
    command = [sys.executable, "scripts/bench_scan.py", "--files", "400,90"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    # A third of FFIW's files are masks, which are no clips of their own.
    assert [row[:3] for row in rows] == [
        ["ffiw", "393", "262"], ["ffiw", "87", "58"], ["celebdf", "400", "400"], ["celebdf", "90", "90"]
    ]  # fmt: skip
    assert all(float(row[3]) < 10 for row in rows)
