import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import quick
from helpers.packs import pack_hashes

from qadprep.engine import run_ending
from qadprep.errors import RunEnded
from qadprep.pack import find_packs, read_pack
from qadprep.video import encode

SIZE = 96  # px; a pack of three crops of noise has about 85 kB


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return quick.make_dataset(tmp_path / "data", 12)


@dataclass
class Disk:
    """A place with little room, and how to give it more."""

    folder: Path
    reason: str
    mounted: bool
    limits: dict = field(default_factory=dict)

    def make_room(self) -> None:
        self.limits.clear()
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,size=16m", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 400 kB where this process may mount one; else a limit on the size of any file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield Disk(folder, "the disk is full", True)
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        yield limited(folder)


def limited(folder: Path) -> Disk:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    return Disk(folder, "a file grew over the size that this process may write", False, {"preexec_fn": limit})


def run(disk: Disk, dataset: Path, workers: int, **environment: str) -> subprocess.CompletedProcess:
    words = quick.command(dataset, disk.folder / "faces", size_px=SIZE, workers=workers)
    return subprocess.run(
        words, env=quick.environment(**environment), capture_output=True, text=True, check=False, **disk.limits
    )


def check_fills_up_and_goes_on(disk: Disk, dataset: Path, workers: int, undisturbed: Path) -> int:
    quick.extract(dataset, undisturbed, quick.CONFIG.model_copy(update={"size_px": SIZE}))
    full = run(disk, dataset, workers)
    assert full.returncode == 1, full.stderr
    [line] = [line for line in full.stderr.splitlines() if line.startswith("qadprep: ")]
    assert line.startswith(f"qadprep: {disk.reason}"), line
    assert " and run the same command again; " in line and "Traceback" not in full.stderr
    whole = pack_hashes(undisturbed)
    done = find_packs(disk.folder / "faces")
    assert line.endswith(f"; {len(done)} of 12 groups are done")
    # What has its final name is whole, and half files do not take the room that is left.
    for table in done:
        assert read_pack(table).table.num_rows == 3
    assert all(whole[name] == digest for name, digest in pack_hashes(disk.folder / "faces").items())
    assert not list((disk.folder / "faces").rglob("*.tmp"))
    assert not (disk.folder / "faces" / "summary.json").exists()
    disk.make_room()
    again = run(disk, dataset, workers)
    assert again.returncode == 0, again.stderr
    assert pack_hashes(disk.folder / "faces") == whole
    return len(done)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk_ends_in_one_line_and_room_lets_it_go_on(
    disk: Disk, dataset: Path, workers: int, tmp_path: Path
) -> None:
    done = check_fills_up_and_goes_on(disk, dataset, workers, tmp_path / "whole")
    if disk.mounted:
        # Of 85 kB each in 400; what the other workers have half written takes room too.
        assert (2 if workers == 1 else 1) <= done <= 4


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert check_fills_up_and_goes_on(limited(tmp_path / "other"), dataset, 1, tmp_path / "whole") == 0


def test_an_encoder_without_room_is_no_fault_of_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the pack would say for good that the video cannot be encoded."""
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'av_interleaved_write_frame(): No space left on device' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(encode, "ffmpeg_exe", lambda: str(program))
    with pytest.raises(OSError, match="No space left on device") as caught:
        encode.compress(tmp_path / "a.mp4", tmp_path / "out" / "b.mp4", 23)
    assert caught.value.errno == errno.ENOSPC and str(run_ending(caught.value)).startswith("the disk is full")
    assert list((tmp_path / "out").iterdir()) == []
    program.write_text("#!/bin/sh\necho 'Invalid data found' >&2\nexit 1\n")
    with pytest.raises(encode.FfmpegError, match="encoding failed"):
        encode.compress(tmp_path / "a.mp4", tmp_path / "out" / "b.mp4", 23)


def test_which_errors_end_a_run() -> None:
    full = run_ending(OSError(errno.ENOSPC, "No space left on device", "/out/a.tar"))
    assert str(full) == "the disk is full (/out/a.tar): free space"
    assert str(run_ending(OSError(errno.EDQUOT, "x"))) == "the disk quota is used up: free space"
    ended = RunEnded("the store is gone")
    assert run_ending(ended) is ended
    for other in (OSError(errno.EIO, "x"), ValueError("x"), FileNotFoundError(errno.ENOENT, "x")):
        assert run_ending(other) is None
