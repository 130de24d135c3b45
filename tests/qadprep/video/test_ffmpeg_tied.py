"""A program started through `tied` does not outlive a killed parent, with setpriv and without."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qadprep.video import ffmpeg

PARENT = """
import subprocess, sys, time
from qadprep.video import ffmpeg
ffmpeg._setpriv = lambda: sys.argv[1] == "yes"
child = subprocess.Popen(**ffmpeg.tied(["sleep", "60"]))
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("setpriv", ["yes", "no"] if ffmpeg._setpriv() else ["no"])
def test_the_child_ends_with_its_parent(setpriv: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, setpriv], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 10
    while b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes()[:6] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.getpgid(child) == child  # Ctrl-C on the terminal does not reach it
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_exit_codes_come_through() -> None:
    assert subprocess.Popen(**ffmpeg.tied(["sh", "-c", "exit 7"])).wait() == 7
    assert subprocess.Popen(**ffmpeg.tied(["sh", "-c", "kill -9 $$"])).wait() == -signal.SIGKILL
