"""kill -9 at random moments, then go on: the packs are those of an undisturbed run, byte for byte."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.packs import pack_hashes

from qadprep.shardset import ShardSet


def command(tree: Path, out: Path) -> list[str]:
    words = [sys.executable, "-m", "qadprep", "extract", tree, "--out", out, "--frames", "8", "--size", "64"]
    return [*map(str, words), "--detector", "mtcnn", "--workers", "2"]


@pytest.mark.slow
def test_extract_killed_at_random_moments(ffpp_tree_master: Path, faces_master: Path, tmp_path: Path) -> None:
    rng = random.Random(os.environ.get("QAD_KILL_SEED", "0"))
    # The first workers need some seconds to load the detector; the kills are spread over the whole length of a run.
    begun = time.monotonic()
    subprocess.run(command(ffpp_tree_master, tmp_path / "whole"), check=True, capture_output=True)
    length = time.monotonic() - begun
    kills = 0
    for part in (0.55, 0.7, 0.8, 0.85, 0.9, 0.95):
        process = subprocess.Popen(command(ffpp_tree_master, tmp_path / "faces"), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=length * (part + rng.uniform(-0.05, 0.05)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 3
    last = subprocess.run(command(ffpp_tree_master, tmp_path / "faces"), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert pack_hashes(tmp_path / "faces") == pack_hashes(faces_master) == pack_hashes(tmp_path / "whole")
    assert not list((tmp_path / "faces").rglob("*.tmp"))


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
