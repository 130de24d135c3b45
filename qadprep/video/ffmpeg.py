"""Which ffmpeg program runs, and how its errors reach the user."""

import functools
import os
import re
import shutil
import subprocess

from qadprep.errors import UserError


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
        return named
    system = shutil.which("ffmpeg")
    if system:
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
    """First line of `ffmpeg -version`, such as `ffmpeg version 7.0.2 ...`; recorded with everything that is encoded."""
    result = subprocess.run(
        [ffmpeg_exe(), "-hide_banner", "-version"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return result.stdout.splitlines()[0].strip() if result.stdout else "unknown"


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
