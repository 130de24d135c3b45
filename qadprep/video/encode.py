"""Write videos the FaceForensics++ way: raw as lossless RGB H.264, c23 and c40 from RGB frames as 4:4:4 H.264."""

import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import ffmpeg
import numpy as np

from qadprep.video.ffmpeg import SWS_FLAGS, FfmpegError, error_line, ffmpeg_exe, tied


def crf_of(quality: str) -> int | None:
    """The x264 CRF that a quality's name stands for, 1 to 51: `c23` -> 23; None for `raw` and other words."""
    return int(quality[1:]) if re.fullmatch(r"c([1-9]|[1-4]\d|5[01])", quality, re.ASCII) else None


def write_raw(frames_rgb: Iterable[np.ndarray], path: Path, fps: Fraction | float) -> None:
    """Write frames losslessly as FF++'s raw quality: libx264rgb at CRF 0, pixel format gbrp (bit-exact RGB).

    Args:
        frames_rgb: uint8 (height, width, 3), RGB, all of one size.
        path: the mp4 to write; appears only when complete.
        fps: frames per second.

    Raises:
        ValueError: a frame of another shape or type, or no frame at all.
        FfmpegError: the encoder failed.

    Source: FaceForensics `dataset/compress.py`: `-crf 0 -c:v libx264rgb`, all other options at their defaults.
    """
    _encode(frames_rgb, path, fps, vcodec="libx264rgb", crf=0)


def write_compressed(
    frames_rgb: Iterable[np.ndarray], path: Path, fps: Fraction | float, crf: int, pix_fmt: str = "yuv444p"
) -> None:
    """Write frames as FF++ wrote c23 and c40: libx264 at a CRF, other options at their defaults.

    `pix_fmt` yuv444p is what ffmpeg chose for FF++'s RGB input; arguments and errors as in `write_raw`.
    """
    _encode(frames_rgb, path, fps, vcodec="libx264", crf=crf, pix_fmt=pix_fmt)


def compress(src: Path, dst: Path, crf: int, pix_fmt: str = "yuv444p") -> None:
    """Encode a video at another CRF the FF++ way: decoded to RGB first, then libx264 with its defaults.

    Args:
        src: any readable video; `dst` gets the same frames at the same rate.
        dst: the mp4 to write; appears only when complete.
        crf: x264 constant rate factor, 0..51; FF++ uses 23 and 40.
        pix_fmt: yuv444p as FF++'s files, or yuv420p.

    Raises:
        FfmpegError: decoding or encoding failed.
        OSError: the disk is full.
    """
    source = ffmpeg.input(str(Path(src).absolute()), err_detect="explode")
    # Written out, since in a graph of filters the output's own sws_flags reach no conversion. The pixels are those that
    # decoding gives, so that between a raw crop and a made one lies nothing but the compression.
    rgb = source.video.filter("scale", flags=SWS_FLAGS).filter("format", "gbrp")
    _run(
        rgb.filter("scale", flags=SWS_FLAGS).filter("format", pix_fmt),
        dst,
        None,
        vcodec="libx264",
        crf=crf,
        pix_fmt=pix_fmt,
    )


def _encode(frames: Iterable[np.ndarray], path: Path, fps: Fraction | float, **options: object) -> None:
    iterator = iter(frames)
    try:
        first = next(iterator)
    except StopIteration:
        raise ValueError(f"no frames to write into {path}") from None
    _check(first, first.shape)
    height, width = first.shape[:2]
    source = ffmpeg.input(
        "pipe:0",
        format="rawvideo",
        pix_fmt="rgb24",
        s=f"{width}x{height}",
        framerate=str(Fraction(fps).limit_denominator(1001)),
    )

    def feed():  # noqa: ANN202
        yield first
        for frame in iterator:
            _check(frame, first.shape)
            yield frame

    _run(source, path, feed(), **options)


def _check(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise ValueError(f"frames must be uint8 {shape} RGB, got {frame.dtype} {frame.shape}")


def _run(stream: object, path: Path, frames: Iterable[np.ndarray] | None, **options: object) -> None:
    """Run one encode into a temporary file beside `path`, then rename: a killed run leaves no half video."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".mp4.tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    command = ffmpeg.compile(
        # One encoder thread: x264's output depends on their number.
        ffmpeg.output(
            stream,
            str(temporary),
            format="mp4",
            threads=1,
            fps_mode="passthrough",
            fflags="+bitexact",
            # The conversion between YUV and RGB must not depend on what swscale picks for this processor.
            sws_flags=SWS_FLAGS,
            **options,
        ).global_args(
            "-hide_banner", "-nostdin" if frames is None else "-hide_banner", "-xerror", "-loglevel", "error"
        ),
        cmd=ffmpeg_exe(),
        overwrite_output=True,
    )
    try:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                **tied(command),
                stdin=subprocess.DEVNULL if frames is None else subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                if frames is not None:
                    for frame in frames:
                        process.stdin.write(np.ascontiguousarray(frame).data)
                    process.stdin.close()
                code = process.wait()
            except BrokenPipeError:
                code = process.wait() or 1
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            if code != 0:
                errors.seek(0)
                said = errors.read()
                if os.strerror(errno.ENOSPC).encode() in said:
                    # Not the video's fault: it must not be noted down as one that cannot be encoded.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
                raise FfmpegError(f"{path}: encoding failed ({error_line(said)})")
        os.chmod(temporary, 0o644)  # noqa: PTH101  (mkstemp makes it private)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
