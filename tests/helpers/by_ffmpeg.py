"""What the ffmpeg program makes of a video: the truth that decoding in Python is held against."""

import subprocess
from pathlib import Path

import numpy as np

from qadprep.video.ffmpeg import SWS_FLAGS, ffmpeg_exe


def run_ffmpeg(*arguments: object, stdin: bytes | None = None) -> bytes:
    """Run the program; what it writes to stdout."""
    command = [ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, input=stdin or b"").stdout


def encode(path: Path, frames: np.ndarray, *options: object, fps: int = 25) -> Path:
    """Encode uint8 (n, h, w, 3) RGB frames with the program's options."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", fps, "-i", "pipe:0")
    run_ffmpeg(*source, "-threads", 1, *options, path, stdin=np.ascontiguousarray(frames).tobytes())
    return path


def decode_all(path: Path, width: int, height: int, *input_options: object) -> np.ndarray:
    """Every frame as the program shows it: uint8 (n, height, width, 3) RGB."""
    data = run_ffmpeg(
        *input_options, "-threads", 1, "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-sws_flags", SWS_FLAGS,
        "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1",
    )  # fmt: skip
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)
