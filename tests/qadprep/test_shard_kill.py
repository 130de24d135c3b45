"""kill -9 while shards are written, and a full disk: the next run ends with the bytes of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.sets import made_packs
from helpers.written import digests

from qadprep.config import ShardConfig
from qadprep.shard import shard


def command(faces: Path, out: Path, workers: int) -> list[str]:
    words = [sys.executable, "-m", "qadprep", "shard", faces, "--out", out, "--tuples-per-shard", 2, "--codec", "webp"]
    return [*map(str, words), "--workers", str(workers)]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 groups: 480 tuples."""
    groups = {f"{n:03d}": ("train", "val", "test")[n % 3] for n in range(40)}
    return made_packs(tmp_path_factory.mktemp("kill") / "faces", groups, size_px=48, qualities=("raw", "c40"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times_at_random_moments(faces: Path, tmp_path: Path) -> None:
    rng = random.Random(os.environ.get("QAD_KILL_SEED", "0"))
    shard(faces, tmp_path / "whole", ShardConfig(tuples_per_shard=2, codec="webp"), workers=1)
    expected, out = digests(tmp_path / "whole"), tmp_path / "s"
    kills, starts = 0, 0
    while kills < 20:
        starts += 1
        assert starts < 60
        process = subprocess.Popen(command(faces, out, rng.choice((1, 2))), stderr=subprocess.DEVNULL)
        before = len(list((out / ".entries").glob("*.json"))) if (out / ".entries").is_dir() else 0
        # Most kills fall between any two shards; some hit the plan, or the end.
        target = before + rng.choice((0, 0, 3, 8, 15, 500))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((out / ".entries").glob("*.json"))) >= target:
                break
            time.sleep(0.003)
        time.sleep(rng.uniform(0, 1.0) if target == before else rng.uniform(0, 0.05))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = {name: digest for name, digest in digests(out).items() if not name.startswith(".")}
        # What has its final name is whole, at any moment; shards.json is there only with all others.
        assert all(expected[name] == digest for name, digest in found.items())
        if "shards.json" in found:
            assert found == expected
            (out / "shards.json").unlink()
            for number in range(0, 100, 3):
                (out / f"train-{number:06d}.tar").unlink(missing_ok=True)
    subprocess.run(command(faces, out, 2), check=True, capture_output=True)
    assert digests(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up(faces: Path, tmp_path: Path, workers: int) -> None:
    """On a tmpfs with room for the plan and some shards, where this process may mount one; else by a limit on files."""
    shard(faces, tmp_path / "whole", ShardConfig(tuples_per_shard=60, codec="raw"), workers=1)
    expected, disk = digests(tmp_path / "whole"), tmp_path / "disk"
    disk.mkdir()
    words = [sys.executable, "-m", "qadprep", "shard", str(faces), "--out", str(disk / "s"), "--codec", "raw"]
    words += ["--tuples-per-shard", "60", "--workers", str(workers)]
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    limited = ["bash", "-c", 'ulimit -f 500; exec "$@"', "-", *words]
    try:
        full = subprocess.run(words if mounted else limited, capture_output=True, text=True, check=False)
        assert full.returncode == 1, full.stderr
        [line] = [line for line in full.stderr.splitlines() if line.startswith("qadprep: ")]
        assert "and run the same command again" in line and "Traceback" not in full.stderr
        assert line.startswith("qadprep: the disk is full" if mounted else "qadprep: a file grew over the size")
        found = {name: digest for name, digest in digests(disk / "s").items() if not name.startswith(".entries/")}
        assert all(expected[name] == digest for name, digest in found.items()) and "shards.json" not in found
        if mounted:
            assert any(name.endswith(".tar") for name in found)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        subprocess.run(words, check=True, capture_output=True)
        assert digests(disk / "s") == expected
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)
