"""Exact frames by index, through ffmpeg, with luminance thumbnails for the sync test made on the same way."""

import errno
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ffmpeg
import numpy as np

from qadprep.video.ffmpeg import SWS_FLAGS, FfmpegError, error_line, ffmpeg_exe, tied
from qadprep.video.probe import CONTAINERS, VideoInfo

THUMB_WIDTH, THUMB_HEIGHT = 160, 90

# Exit codes with which ffmpeg says: ended by a signal, no space left, no memory (the low byte of its error).
_NOT_THE_FILE = (255, 256 - errno.ENOSPC, 256 - errno.ENOMEM)


@dataclass(frozen=True)
class Decoded:
    """One decoded frame: `rgb` uint8 (height, width, 3), RGB, at frame `index` of the file."""

    index: int
    rgb: np.ndarray


class FrameReader:
    """Decodes the frames at `indices` of one file, in rising order, in one pass that stops after the last index.

    Args:
        path: video file.
        info: its probe; gives the picture size.
        indices: frame numbers from 0, counted in display order, strictly rising.
        thumbs: which frames also get a 160x90 luminance thumbnail: `"selected"` (those at `indices`), `"all"`
            (every frame from 0 to `thumbs_to`), or None.
        thumbs_to: last frame with a thumbnail; the last index when not given.
        threads: decoder threads of ffmpeg.

    Iterating yields `Decoded`, and raises FfmpegError when ffmpeg was ended from outside or had no memory or disk: that
    says nothing about the file. After the iteration `thumbnails` maps frame index -> uint8 (90, 160).
    Frames that the decoder could not give are not yielded: `missing` lists them, `error` says why.
    Used as a context manager it leaves no process behind, whatever happens.
    """

    def __init__(
        self,
        path: str | Path,
        info: VideoInfo,
        indices: Sequence[int],
        *,
        thumbs: Literal["selected", "all"] | None = None,
        thumbs_to: int | None = None,
        threads: int = 1,
    ) -> None:
        self.path, self.info = Path(path), info
        self.indices = [int(index) for index in indices]
        if not self.indices or any(b <= a for a, b in zip(self.indices, self.indices[1:], strict=False)):
            raise ValueError(f"indices must be strictly rising and not empty, got {self.indices[:8]}")
        if self.indices[0] < 0:
            raise ValueError(f"indices must not be negative, got {self.indices[0]}")
        self.thumbs, self.threads = thumbs, threads
        self.thumbs_to = self.indices[-1] if thumbs_to is None else thumbs_to
        self.thumbnails: dict[int, np.ndarray] = {}
        self.missing: list[int] = []
        self.error: str | None = None
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def __iter__(self) -> Iterator[Decoded]:
        size = self.info.width * self.info.height * 3
        done = 0
        with tempfile.TemporaryDirectory(prefix="qadprep-decode-") as folder:
            thumb_file = Path(folder, "thumbs.gray")
            error_file = Path(folder, "stderr.txt")
            with error_file.open("wb") as errors:
                # Not stderr=PIPE: a damaged file can fill the pipe and stop ffmpeg for ever.
                self._process = subprocess.Popen(
                    **tied(self._command(thumb_file)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,
                )
            try:
                for index in self.indices:
                    buffer = self._read(size)
                    if buffer is None:
                        break
                    done += 1
                    yield Decoded(index, np.frombuffer(buffer, np.uint8).reshape(self.info.height, self.info.width, 3))
                self._process.stdout.close()
                code = self._process.wait()
            finally:
                self._stop()
            self.missing = self.indices[done:]
            if code in _NOT_THE_FILE or (code < 0 and code != -signal.SIGPIPE):
                raise FfmpegError(f"{self.path}: ffmpeg ended with {code} ({error_line(error_file.read_bytes())})")
            if self.missing or code not in (0, -signal.SIGPIPE):
                self.error = error_line(error_file.read_bytes())
            if self.thumbs:
                self._read_thumbs(thumb_file)

    def _command(self, thumb_file: Path) -> list[str]:
        select = "+".join(f"between(n,{a},{b})" if b > a else f"eq(n,{a})" for a, b in _runs(self.indices))
        source = ffmpeg.input(
            str(self.path.absolute()),
            threads=self.threads,
            # A damaged picture ends the pass (with -xerror below): concealment would hand out a smear, and leaving
            # the frame out would shift every later index by one.
            err_detect="explode",
            format_whitelist=CONTAINERS,
            protocol_whitelist="file",
        )
        wanted = ffmpeg.output(
            source.video.filter("select", select)
            if self.thumbs is None
            else (chosen := source.video.filter("select", select).filter_multi_output("split"))[0]
            if self.thumbs == "selected"
            else (both := source.video.filter_multi_output("split"))[0].filter("select", select),
            "pipe:1",
            format="rawvideo",
            pix_fmt="rgb24",
            fps_mode="passthrough",
            sws_flags=SWS_FLAGS,
            **{"frames:v": len(self.indices)},
        )
        outputs = [wanted]
        if self.thumbs:
            stream = chosen[1] if self.thumbs == "selected" else both[1]
            count = len(self.indices) if self.thumbs == "selected" else self.thumbs_to + 1
            small = stream.filter("scale", THUMB_WIDTH, THUMB_HEIGHT, flags="area+accurate_rnd+bitexact")
            outputs.append(
                ffmpeg.output(
                    # By way of RGB: straight from YUV the grey would keep the video's limited range, raw's would not.
                    small.filter("format", "rgb24").filter("format", "gray"),
                    str(thumb_file),
                    format="rawvideo",
                    pix_fmt="gray",
                    fps_mode="passthrough",
                    **{"frames:v": count},
                )
            )
        command = ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else wanted
        return ffmpeg.compile(
            command.global_args("-hide_banner", "-nostdin", "-xerror", "-loglevel", "error", "-filter_threads", "1"),
            cmd=ffmpeg_exe(),
            overwrite_output=True,
        )

    def _read(self, size: int) -> bytearray | None:
        buffer = bytearray(size)
        view, filled = memoryview(buffer), 0
        while filled < size:
            count = self._process.stdout.readinto(view[filled:])
            if not count:
                return None
            filled += count
        return buffer

    def _read_thumbs(self, thumb_file: Path) -> None:
        numbers = self.indices if self.thumbs == "selected" else range(self.thumbs_to + 1)
        raw = np.fromfile(thumb_file, np.uint8) if thumb_file.exists() else np.empty(0, np.uint8)
        count = raw.size // (THUMB_WIDTH * THUMB_HEIGHT)
        pictures = raw[: count * THUMB_WIDTH * THUMB_HEIGHT].reshape(count, THUMB_HEIGHT, THUMB_WIDTH)
        self.thumbnails = dict(zip(numbers, pictures, strict=False))

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdout and not process.stdout.closed:
            process.stdout.close()
        if process.poll() is None:
            process.kill()
        process.wait()
        self._process = None


def decode_at(path: str | Path, info: VideoInfo, indices: Sequence[int]) -> np.ndarray:
    """The frames at `indices` as one array: uint8 (len(indices), height, width, 3), RGB.

    Raises:
        FfmpegError: a frame could not be decoded; the message names the file and the first missing index.
    """
    with FrameReader(path, info, indices) as reader:
        frames = [decoded.rgb for decoded in reader]
    if reader.missing:
        raise FfmpegError(f"{path}: frame {reader.missing[0]} could not be decoded ({reader.error})")
    return np.stack(frames)


def iter_frames(path: str | Path, info: VideoInfo) -> Iterator[np.ndarray]:
    """Every frame of a file in order, uint8 (height, width, 3), RGB; stops early where decoding fails."""
    with FrameReader(path, info, range(info.frames)) as reader:
        for decoded in reader:
            yield decoded.rgb


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut rising indices into runs of consecutive numbers, so that the select expression stays short."""
    start = previous = indices[0]
    for index in indices[1:]:
        if index != previous + 1:
            yield start, previous
            start = index
        previous = index
    yield start, previous
