"""Which ffmpeg program runs, and how its errors reach the user."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
from typing import Any

from qadprep.errors import UserError

# Fixed so that a frame's pixels do not depend on what swscale picks for this processor.
SWS_FLAGS = "bicubic+accurate_rnd+full_chroma_int+bitexact"


class FfmpegError(Exception):
    """ffmpeg ended with an error; the message is the last meaningful line it wrote."""


@functools.cache
def ffmpeg_exe() -> str:
    """Path of the ffmpeg program: `$QADPREP_FFMPEG`, else the system's, else the one in imageio-ffmpeg's wheel.

    Raises:
        UserError: none of the three is there.
    """
    named = os.environ.get("QADPREP_FFMPEG")
    if named:
        if not shutil.which(named):
            raise UserError(f"QADPREP_FFMPEG names {named!r}, which is not an executable file; correct or unset it")
        if too_old(version_line(named)):
            raise UserError(f"QADPREP_FFMPEG: {version_line(named)!r} is older than 5.1; name a newer one or unset it")
        return named
    system = shutil.which("ffmpeg")
    if system and not too_old(version_line(system)):
        return system
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"no ffmpeg found ({error}); install ffmpeg, or `pip install imageio-ffmpeg`, or set QADPREP_FFMPEG"
        ) from error


@functools.cache
def ffmpeg_version() -> str:
    """First line of `ffmpeg -version`, such as `ffmpeg version 7.0.2 ...`; stored in every face pack."""
    return version_line(ffmpeg_exe())


def version_line(program: str) -> str:
    """First line of a program's `-version`."""
    result = subprocess.run([program, "-version"], capture_output=True, text=True, errors="replace", check=False)
    return result.stdout.splitlines()[0].strip() if result.stdout else "unknown"


def too_old(line: str) -> bool:
    """Whether a version line names a release before 5.1, which lacks -fps_mode; builds without a number pass."""
    match = re.match(r"ffmpeg version n?(\d+)\.(\d+)", line)
    return bool(match) and (int(match.group(1)), int(match.group(2))) < (5, 1)


# Lines that say nothing about the cause: progress, banners, and the counters of a damaged stream.
_NOISE = re.compile(r"^(frame=|\[libx264|\[rawvideo|Conversion failed|Error while|Stream mapping|Press \[q\])")


def error_line(stderr: bytes) -> str:
    """The line of ffmpeg's stderr that best names the cause, with object addresses removed.

    Addresses (`0x55d1...`) differ from run to run and would make the stored reasons differ too.
    """
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    useful = [line for line in lines if not _NOISE.match(line)]
    line = (useful or lines or ["ffmpeg gave no message"])[0]  # the first names the cause, later ones its effects
    return re.sub(r"\s*@ 0x[0-9a-f]+", "", line)[:300]


def tied(command: list[str]) -> dict[str, Any]:
    """Arguments of Popen with which a program ends when this process is killed, and Ctrl-C passes it by.

    Through util-linux's setpriv where it is there: a function to run between fork and exec would make Python copy the
    page tables of the whole process at every start.
    """
    if _setpriv():
        return {"args": ["setpriv", "--pdeathsig", "KILL", "--", *command], "process_group": 0}
    return {
        "args": command,
        "process_group": 0,
        "preexec_fn": functools.partial(_die_with_parent, os.getpid()),
    }


@functools.cache
def _setpriv() -> bool:
    try:
        test = ["setpriv", "--pdeathsig", "KILL", "--", "true"]
        return subprocess.run(test, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _die_with_parent(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: Linux only
        if os.getppid() != parent:
            os._exit(1)
