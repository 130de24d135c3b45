"""kill -9 at random moments, then go on: the packs are those of an undisturbed run, byte for byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import quick, trees
from helpers.footage import one_face
from helpers.packs import pack_hashes

from qadprep.compress import read_table
from qadprep.pack import find_packs
from qadprep.shardset import ShardSet


def command(tree: Path, out: Path, size: int = 64, frames: int = 8) -> list[str]:
    words = [sys.executable, "-m", "qadprep", "extract", tree, "--out", out, "--frames", frames, "--size", size]
    return [*map(str, words), "--detector", "mtcnn", "--workers", "2"]


@pytest.mark.slow
def test_extract_killed_at_random_moments(ffpp_tree_master: Path, tmp_path: Path) -> None:
    rng = random.Random(os.environ.get("QAD_KILL_SEED", "0"))
    whole, out = tmp_path / "whole", tmp_path / "faces"
    small = command(ffpp_tree_master, out, size=32, frames=3)
    begun = time.monotonic()
    subprocess.run(command(ffpp_tree_master, whole, size=32, frames=3), check=True, capture_output=True)
    length = time.monotonic() - begun
    expected = pack_hashes(whole)
    kills = 0
    while kills < 5:
        # The first seconds load the detector; the kills are spread over all of a run, most of them over its work.
        seconds = length * (rng.uniform(0, 1) if kills == 0 else rng.uniform(0.5, 1))
        process = subprocess.Popen(small, stderr=subprocess.DEVNULL, process_group=0)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        _check_no_torn_pack(out, expected)
        if (out / "summary.json").exists():  # it came to its end before the kill: begin anew
            shutil.rmtree(out)
    last = subprocess.run(small, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert pack_hashes(out) == expected
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_extract_killed_fifteen_times_between_any_two_writes(tmp_path: Path) -> None:
    """Without the videos a run is short and mostly writes: kills hit packs, table, config, lock and report."""
    rng = random.Random(os.environ.get("QAD_KILL_SEED", "0"))
    dataset = quick.make_dataset(tmp_path / "data", 40)
    whole, out = tmp_path / "whole", tmp_path / "faces"
    subprocess.run(quick.command(dataset, whole, workers=2), check=True, env=quick.environment(), capture_output=True)
    expected = pack_hashes(whole)
    assert len(expected) == 80
    kills = 0
    while kills < 15:
        process = subprocess.Popen(
            quick.command(dataset, out, workers=2),
            env=quick.environment(QUICK_SECONDS="0.02"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = len(find_packs(out))
        target = before + rng.randint(0, 6)
        while process.poll() is None and len(find_packs(out)) < target:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        kills += process.poll() is None
        process.kill()
        process.wait()
        _check_no_torn_pack(out, expected)
        if (out / "summary.json").exists():
            shutil.rmtree(out)
    words = quick.command(dataset, out, workers=2)
    last = subprocess.run(words, env=quick.environment(), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert pack_hashes(out) == expected
    assert (out / "extract.json").read_bytes() == (whole / "extract.json").read_bytes()
    assert not list(out.rglob("*.tmp"))


def _check_no_torn_pack(out: Path, expected: dict[str, str]) -> None:
    """What has its final name is whole, at any moment."""
    for name, digest in pack_hashes(out).items():
        assert Path(name).name.startswith(".") or expected[name] == digest, name


@pytest.mark.slow
def test_ctrl_c_ends_with_a_hint_and_the_next_goes_on(
    ffpp_tree_master: Path, faces_master: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(command(ffpp_tree_master, tmp_path / "faces"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "faces" / "ffpp").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "run the same command again to go on" in message
    assert "Traceback" not in message
    subprocess.run(command(ffpp_tree_master, tmp_path / "faces"), check=True, capture_output=True)
    assert pack_hashes(tmp_path / "faces") == pack_hashes(faces_master)


@pytest.mark.slow
def test_shard_killed_at_random_moments(faces_master: Path, shards_master: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    words = [sys.executable, "-m", "qadprep", "shard", faces_master, "--out", tmp_path / "s"]
    words += ["--tuples-per-shard", "40"]
    for _ in range(5):
        process = subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.5))
        process.kill()
        process.wait()
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    assert ShardSet(tmp_path / "s").fingerprint == ShardSet(shards_master).fingerprint
    assert {f.name: f.read_bytes() for f in (tmp_path / "s").iterdir()} == {
        f.name: f.read_bytes() for f in shards_master.iterdir()
    }


@pytest.mark.slow
def test_compress_killed_at_random_moments(portrait: np.ndarray, tmp_path: Path) -> None:
    trees.celebdf(tmp_path / "data", lambda number: np.tile(one_face("made", portrait, number), (4, 1, 1, 1)))
    words = [sys.executable, "-m", "qadprep", "compress", tmp_path / "data", "--dataset", "celebdf", "--workers", "2"]

    def run(out: Path) -> list[str]:
        return [*map(str, words), "--out", str(out)]

    def videos(out: Path) -> dict[str, bytes]:
        return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.glob("c*/*/*"))}

    begun = time.monotonic()
    subprocess.run(run(tmp_path / "whole"), check=True, capture_output=True)
    length = time.monotonic() - begun
    rng = random.Random(os.environ.get("QAD_KILL_SEED", "0"))
    kills = 0
    for part in (0.35, 0.45, 0.55, 0.65):
        process = subprocess.Popen(run(tmp_path / "all"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=length * (part + rng.uniform(-0.05, 0.05)))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
        for name, data in videos(tmp_path / "all").items():  # what has its final name is whole, at any moment
            if not Path(name).name.startswith("."):
                assert data == (tmp_path / "whole" / name).read_bytes()
    assert kills >= 2
    subprocess.run(run(tmp_path / "all"), check=True, capture_output=True)
    assert videos(tmp_path / "all") == videos(tmp_path / "whole")
    assert read_table(tmp_path / "all") == read_table(tmp_path / "whole")


@pytest.mark.slow
def test_extract_killed_while_it_makes_qualities(portrait: np.ndarray, tmp_path: Path) -> None:
    trees.celebdf(tmp_path / "data", lambda number: one_face("made", portrait, number))
    words = [sys.executable, "-m", "qadprep", "extract", tmp_path / "data", "--dataset", "celebdf", "--make-qualities"]
    words += ["--frames", "4", "--size", "64", "--detector", "mtcnn", "--workers", "1", "--out", tmp_path / "faces"]
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "faces").glob("celebdf/.made-*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list((tmp_path / "faces").glob("celebdf/.made-*"))
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    assert not list((tmp_path / "faces").glob("celebdf/.made-*"))
    assert len(list((tmp_path / "faces" / "celebdf").glob("*.parquet"))) == 4
