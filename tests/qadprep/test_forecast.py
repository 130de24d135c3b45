"""`extract --dry-run`: what is on disk, a sample that is really extracted, and nothing written."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qadprep import extract_tables, plan_trial
from qadprep.config import ExtractConfig
from qadprep.errors import UserError
from qadprep.forecast import Forecast, forecast
from qadprep.parts import Part
from qadprep.plan_trial import Trial

CONFIG = ExtractConfig(dataset="ffpp", frames=4, size_px=64)


def state(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


def text_of(result: Forecast) -> str:
    json.dumps(result.as_dict())
    return "\n".join(extract_tables.forecast_lines(result))


@pytest.mark.usefixtures("one_process")
def test_a_sample_tells_of_the_whole(ffpp_tree_master: Path) -> None:
    before = state(ffpp_tree_master)
    result = forecast(ffpp_tree_master, CONFIG, count=2, workers=2, detector="mtcnn")
    assert state(ffpp_tree_master) == before
    # Four groups of one original and two manipulations each, at three qualities.
    assert (result.groups, result.clips, result.videos, result.workers) == (4, 12, 36, 2)
    assert result.video_bytes == sum(file.stat().st_size for file in ffpp_tree_master.rglob("*.mp4"))
    assert result.tuples_at_one_face == 12 * 4 and result.lacking == {}
    assert [(c.method, c.split, c.clips, c.files) for c in result.classes if c.method == "FaceSwap"] == [
        ("FaceSwap", "train", 2, {"raw": 2, "c23": 2, "c40": 2}),
        ("FaceSwap", "test", 2, {"raw": 2, "c23": 2, "c40": 2}),
    ]
    trial = result.trial
    assert (trial.groups, trial.clips, trial.attempted, trial.tuples) == (2, 6, 24, 24)
    assert (trial.total_tuples, trial.total_bytes) == (48, 2 * trial.bytes)
    assert trial.total_seconds == pytest.approx(2 * trial.seconds / 2)
    assert trial.least_seconds <= trial.total_seconds <= trial.most_seconds
    assert sum(trial.stage_seconds.values()) == pytest.approx(trial.seconds, abs=0.02)
    assert {"probe", "decode", "detect", "write"} <= set(trial.stage_seconds)
    expected = result.as_dict()["forecast"]
    assert (expected["tuples"], expected["crops"]) == (48, 144)
    assert expected["pack_gigabytes"] == round(trial.total_bytes / 1e9, 3)
    assert expected["hours"] == pytest.approx(trial.total_seconds / 3600, abs=1e-4)
    text = text_of(result)
    assert "4 groups, 12 clips, 36 videos" in text and "48 at one face a frame" in text
    assert "sample: 2 groups with 6 clips gave 24 of 24 attempted tuples" in text
    assert (
        "expected: 48 tuples, 144 crops" in text and "with 2 workers" in text and text.endswith("nothing was written")
    )


@pytest.mark.usefixtures("one_process")
def test_failures_of_the_sample_are_named(ffpp_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pair in ("071_054", "054_071", "953_974", "974_953"):
        (ffpp_tree / f"manipulated_sequences/FaceSwap/c40/videos/{pair}.mp4").write_bytes(b"x")
    result = forecast(ffpp_tree, CONFIG, count=1, detector="mtcnn")
    assert len(result.trial.failures) == 1 and result.trial.failures[0][0].startswith("manipulated_sequences/FaceSwap")
    assert (result.trial.tuples, result.trial.attempted) == (8, 12)
    extract_tables.forecast(result)
    shown = " ".join(capsys.readouterr().out.split())
    assert "could not be used in the sample" in shown and "where the time went in a sample of 1 groups" in shown


@pytest.mark.usefixtures("one_process")
def test_a_sample_that_comes_to_nothing(tmp_path: Path) -> None:
    for quality in CONFIG.qualities:
        file = tmp_path / f"original_sequences/youtube/{quality}/videos/071.mp4"
        file.parent.mkdir(parents=True)
        file.touch()
    result = forecast(tmp_path, CONFIG, count=5, detector="mtcnn")
    assert result.trial is None and result.as_dict()["forecast"] is None and result.as_dict()["sample"] is None
    assert "nothing measured: no tuple from 1 group(s)" in text_of(result)


def test_without_a_sample(ffpp_tree: Path) -> None:
    (ffpp_tree / "manipulated_sequences/FaceSwap/c40/videos/071_054.mp4").unlink()
    result = forecast(ffpp_tree, CONFIG, count=0)
    assert result.trial is None and (result.videos, result.lacking) == (35, {"c40": 1})
    text = text_of(result)
    assert "1 of 12 clips have no c40 file" in text and "no sample was asked for (--measure 0)" in text


def test_a_part_is_forecast_alone(ffpp_tree_master: Path) -> None:
    parts = [forecast(ffpp_tree_master, CONFIG, count=0, part=Part(number, 3)) for number in (1, 2, 3)]
    assert [(part.groups, part.clips, part.videos) for part in parts] == [(2, 6, 18), (1, 3, 9), (1, 3, 9)]
    with pytest.raises(UserError, match="--part 9/9: no group is left"):
        forecast(ffpp_tree_master, CONFIG, count=0, part=Part(9, 9))


def test_wrong_use_is_said_as_by_extract(ffpp_tree_master: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video of quality 'c30'"):
        forecast(ffpp_tree_master, CONFIG.model_copy(update={"qualities": ("raw", "c30")}), count=0)
    with pytest.raises(UserError):
        forecast(tmp_path / "none", CONFIG, count=0)


def test_the_command(ffpp_tree_master: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qadprep", "extract", str(ffpp_tree_master), "--out", str(tmp_path / "faces")]
    command += ["--frames", "4", "--size", "64", "--workers", "1"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    dry = run("--dry-run", "--measure", "1", "--json", "--detector", "mtcnn")
    assert dry.returncode == 0, dry.stderr
    facts = json.loads(dry.stdout)
    assert facts["forecast"]["tuples"] == 48 and facts["sample"]["groups"] == 1
    assert list(tmp_path.iterdir()) == []
    shown = run("--dry-run", "--measure", "0")
    assert shown.returncode == 0 and "on disk in" in shown.stdout and "Deepfakes" in shown.stdout
    for words, message in (
        (("--measure", "1"), "--measure 1 is for --dry-run, which is not given"),
        (("--dry-run", "--measure", "-1"), "--measure: got -1"),
    ):
        wrong = run(*words)
        assert wrong.returncode == 2 and message in wrong.stderr
    assert list(tmp_path.iterdir()) == []


def test_decoded_frames_are_forecast_where_they_were_counted() -> None:
    trial = Trial(1, 1, 2, 3, 4.0, ("raw",), ("c40",), [], 1, 20, 30, 40.0, 2, 50, 500, {}, 30.0, 50.0)
    result = Forecast(Path("x"), [], ("raw",), 10, 10, 10, 10, 2, 1, trial)
    assert result.as_dict()["forecast"]["decoded_frames"] == 500
    assert "20 crops from 500 decoded frames" in text_of(result) and "(c40 encoded on the way)" in text_of(result)
    unknown = dataclasses.replace(result, trial=dataclasses.replace(trial, total_decoded_frames=0))
    assert unknown.as_dict()["forecast"]["decoded_frames"] is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_small_sample_gets_the_cores_of_as_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    held = set(range(16))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: held)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: (held.clear(), held.update(set(cores))))
    monkeypatch.setattr(plan_trial, "available_cores", lambda: 16)
    for at_once, workers, inside in ((2, 16, 2), (2, 8, 4), (4, 4, 16), (1, 32, 1)):
        with plan_trial._share_of_cores(at_once, workers):
            assert len(held) == inside
        assert held == set(range(16))
