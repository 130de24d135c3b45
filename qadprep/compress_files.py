"""Make one clip's compressed videos: encode, read back, check, rename. Runs in the workers of `compress`."""

from dataclasses import dataclass
from pathlib import Path

from qadprep.group_files import encode_quality, size_of, wrong_with
from qadprep.ustar import sync_folder
from qadprep.video.ffmpeg import FfmpegError, ffmpeg_version
from qadprep.video.probe import ProbeError, VideoInfo, probe
from qadprep.video.source import open_source

_HALVES = (".*.part.mp4", ".*.mp4.tmp")


@dataclass
class MadeFile:
    """One made video, as it stands in compress.parquet.

    Attributes:
        path: relative to the output folder.
        source: path of what it was made from, relative to the dataset's root.
        source_bytes: that file's size when it was read; another one makes the video stale.
        crf, pix_fmt: as asked for, and as read back from the stream.
        encoder: x264's name, build and options, read back from the stream.
        status: `ok`, or the reason why there is no such video.
    """

    clip: str
    quality: str
    path: str
    source: str
    crf: int
    pix_fmt: str
    source_bytes: int = -1
    bytes: int = -1
    frames: int = 0
    width: int = 0
    height: int = 0
    encoder: str = ""
    ffmpeg: str = ""
    status: str = "ok"
    message: str = ""


@dataclass(frozen=True)
class ClipTask:
    """The videos to make of one clip.

    Attributes:
        replace: paths of those that an earlier run of this command made and that are out of date.
    """

    root: Path
    out: Path
    files: tuple[MadeFile, ...]
    replace: frozenset[str] = frozenset()


def make_files(task: ClipTask) -> tuple[list[MadeFile], int]:
    """Make what is missing of a clip; returns its files and how many were encoded. Bad input ends as a status."""
    source_path = task.files[0].source
    for path in task.replace:
        (task.out / path).unlink(missing_ok=True)  # out of date: must not outlive a failure below
    try:
        source = open_source(task.root, source_path)
    except ProbeError as error:
        for file in task.files:
            file.status = error.reason
            file.message = str(error).replace(str(task.root / source_path), source_path)
        return list(task.files), 0
    made = 0
    for file in task.files:
        file.source_bytes = size_of(task.root, source_path)
        place = task.out / file.path
        if place.exists():
            fault = check(place, file, source.info)
            if fault:
                file.status = "other_file"
                file.message = f"{place}: is there and not what would be made ({fault}); move it away"
            continue
        part = place.with_name(f".{place.name}.part.mp4")
        try:
            encode_quality(source, part, file.crf, file.pix_fmt)
            fault = check(part, file, source.info)
            if fault:
                file.status, file.message = "not_verified", f"{source_path}: the encoded video is wrong: {fault}"
                continue
            part.replace(place)
            sync_folder(place.parent)
            made += 1
        except FfmpegError as error:
            file.status = "encode_error"
            file.message = str(error).replace(str(part), f"{source_path} as {file.quality}")
        finally:
            part.unlink(missing_ok=True)
    return list(task.files), made


def check(path: Path, file: MadeFile, source: VideoInfo) -> str | None:
    """Read a made video back and fill in what it holds; returns what is wrong with it, or None."""
    try:
        info = probe(path)
    except ProbeError as error:
        return str(error)
    fault = wrong_with(info, source, file.crf, file.pix_fmt)
    if fault:
        return fault
    file.bytes, file.frames, file.width, file.height = info.bytes, info.frames, info.width, info.height
    file.encoder, file.ffmpeg = info.encoder or "", ffmpeg_version()
    return None


def up_to_date(old: MadeFile, wanted: MadeFile, root: Path, out: Path) -> bool:
    """Whether an earlier run's video is there, untouched, and made from the same source with the same settings."""
    if old.status != "ok" or (old.source, old.crf, old.pix_fmt) != (wanted.source, wanted.crf, wanted.pix_fmt):
        return False
    return size_of(out, old.path) == old.bytes and size_of(root, old.source) == old.source_bytes


def remove_halves(folder: Path) -> None:
    """Delete what a killed run left of videos it was writing in a folder."""
    for pattern in _HALVES:
        for half in folder.glob(pattern):
            half.unlink(missing_ok=True)
