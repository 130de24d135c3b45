"""Make one clip's compressed videos: encode, read back, check, rename. Runs in the workers of `compress`."""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from qadprep.group_files import encode_quality, size_of, wrong_with
from qadprep.ustar import sync_folder
from qadprep.video.ffmpeg import FfmpegError, ffmpeg_version
from qadprep.video.probe import ProbeError, VideoInfo, probe
from qadprep.video.source import open_source

OK, FOUND = "ok", "found"
JOURNAL_NAME = "compress.journal"
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
        status: `ok`; `found` for a right video that somebody else put there; else why there is no such video.
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
        ours: paths of those that an earlier run of this command made and that are out of date.
        raw_crf: the CRF that the dataset promises for raw files; None where it promises none.
    """

    root: Path
    out: Path
    files: tuple[MadeFile, ...]
    ours: frozenset[str] = frozenset()
    raw_crf: float | None = None


def make_files(task: ClipTask) -> tuple[list[MadeFile], int]:
    """Make what is missing of a clip; returns its files and how many were encoded. Bad input ends as a status."""
    source_path = task.files[0].source
    for path in task.ours:
        (task.out / path).unlink(missing_ok=True)  # out of date: must not outlive a failure below
    try:
        source = open_source(task.root, source_path)
        if task.raw_crf is not None and source.info.crf not in (None, task.raw_crf):
            message = f"{source_path}: its stream was made with CRF {source.info.crf:g}, it cannot be raw"
            raise ProbeError("quality_mismatch", f"{message} ({task.raw_crf:g}); fetch it again")
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
            file.status = "other_file" if fault else FOUND
            if fault:
                file.message = f"{place}: is there and not what would be made ({fault}); move it away"
            continue
        part = place.with_name(f".{place.name}.part.mp4")
        try:
            encode_quality(source, part, file.crf, file.pix_fmt)
            fault = check(part, file, source.info)
            if fault:
                file.status, file.message = "not_verified", f"{source_path}: the encoded video is wrong: {fault}"
                continue
            _note(task.out, file)  # before the rename: a video of ours is never taken for somebody else's
            part.replace(place)
            sync_folder(place.parent)
            made += 1
        except FfmpegError as error:
            file.status = "encode_error"
            file.message = str(error).replace(str(part), f"{source_path} as {file.quality}")
        finally:
            part.unlink(missing_ok=True)
    return list(task.files), made


def _note(out: Path, file: MadeFile) -> None:
    """Append a video's entry to the journal, in one write, on disk when this returns."""
    handle = os.open(out / JOURNAL_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(asdict(file)) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read_journal(out: Path) -> list[MadeFile]:
    """Entries of a run that did not come to its end; a line cut off by a crash is left out."""
    try:
        lines = (out / JOURNAL_NAME).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            files.append(MadeFile(**json.loads(line)))
    return files


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


def untouched(old: MadeFile, out: Path) -> bool:
    """Whether a video is as this command left it."""
    return old.status == OK and size_of(out, old.path) == old.bytes


def up_to_date(old: MadeFile, wanted: MadeFile, root: Path, out: Path) -> bool:
    """Whether an earlier run's video is there, untouched, and made from the same source with the same settings."""
    same = (old.source, old.crf, old.pix_fmt) == (wanted.source, wanted.crf, wanted.pix_fmt)
    return same and untouched(old, out) and size_of(root, old.source) == old.source_bytes


def remove_halves(folder: Path) -> None:
    """Delete what a killed run left of videos it was writing in a folder."""
    for pattern in _HALVES:
        for half in folder.glob(pattern):
            half.unlink(missing_ok=True)
