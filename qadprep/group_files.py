"""The files of one group: opened, checked against their names, and missing qualities made where that is wanted."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qadprep.catalog.base import Clip, Group, datasets
from qadprep.config import ExtractConfig
from qadprep.pack import FileRecord
from qadprep.quality import expected_crf
from qadprep.timing import StageTimer
from qadprep.video.encode import compress, crf_of, write_compressed
from qadprep.video.ffmpeg import FfmpegError
from qadprep.video.probe import ProbeError, VideoInfo
from qadprep.video.source import Source, open_source

MASK = "mask"
PICTURES_FPS = 25
_SCRATCH = ".made-"


@dataclass
class GroupFile:
    """One file of a group: its record for the pack, and the opened source where it can be read."""

    record: FileRecord
    source: Source | None = None

    @property
    def info(self) -> VideoInfo | None:
        """The probe, or None where the file cannot be read."""
        return self.source.info if self.source else None

    def refuse(self, status: str, message: str) -> None:
        """Note why the file is not used."""
        self.record.status, self.record.message = status, message


class GroupFiles:
    """All files of a group; `files[clip.id, quality]`, masks under the quality `mask`.

    A context manager: made files live in a folder below `scratch` and are gone when it ends.

    Args:
        root: the dataset's root.
        scratch: folder for made files; needed with `config.make_qualities` only.
    """

    def __init__(self, group: Group, root: Path, config: ExtractConfig, timer: StageTimer, scratch: Path) -> None:
        self.group, self.root, self.config, self.timer = group, root, config, timer
        self._scratch, self._made, self._count = scratch, None, 0
        entry = datasets().get(group.dataset)
        self._raw_is_lossless = entry is not None and entry.raw_is_lossless
        self.files: dict[tuple[str, str], GroupFile] = {}

    def __enter__(self) -> "GroupFiles":
        try:
            for clip in self.group.clips:
                self._open_clip(clip)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)

    def __getitem__(self, key: tuple[str, str]) -> GroupFile:
        return self.files[key]

    @property
    def records(self) -> list[FileRecord]:
        """The records of all files, in order of clip and quality."""
        return [file.record for file in self.files.values()]

    def best_quality(self, clip: Clip) -> str | None:
        """The best quality of the run at which the clip has a readable file."""
        return next((q for q in self.config.qualities if self.files[clip.id, q].source), None)

    def complete(self, clip: Clip) -> bool:
        """Whether every quality of the run can be used."""
        return all(self.files[clip.id, q].record.status == "ok" for q in self.config.qualities)

    def length(self, clip: Clip) -> int:
        """Frames that all qualities of a complete clip have."""
        return min(self.files[clip.id, q].info.frames for q in self.config.qualities)

    def _open_clip(self, clip: Clip) -> None:
        for quality in self.config.qualities:
            with self.timer.stage("probe"):
                self.files[clip.id, quality] = self._open(clip, quality)
        if self.config.make_qualities:
            for quality in self.config.qualities:
                if quality not in clip.paths and crf_of(quality):
                    self.files[clip.id, quality] = self._make(clip, quality)
        if has_mask(clip):
            with self.timer.stage("probe"):
                self.files[clip.id, MASK] = self._open_mask(clip)

    def _open(self, clip: Clip, quality: str) -> GroupFile:
        path = clip.paths.get(quality)
        file = GroupFile(FileRecord(clip=clip.name, method=clip.method, quality=quality, path=path or ""))
        if path is None:
            file.refuse("missing_quality", f"no {quality} file on disk for {clip.id}")
            return file
        self._read(file, self.root, path)
        fault = self._mislabelled(file.info, quality) if file.info else None
        if fault and self.config.accept_mislabelled:
            file.record.message = f"{path}: {fault}"
        elif fault:
            file.refuse("quality_mismatch", f"{path}: {fault}; fetch it again, or --accept-mislabelled")
        return file

    def _mislabelled(self, info: VideoInfo, quality: str) -> str | None:
        """What the stream says against its folder's name, or None."""
        wanted = expected_crf(quality, self._raw_is_lossless)
        if wanted is None or info.crf in (None, wanted):
            return None
        return f"its stream was made with CRF {info.crf:g}, its folder says {quality} ({wanted:g})"

    def _open_mask(self, clip: Clip) -> GroupFile:
        file = GroupFile(FileRecord(clip=clip.name, method=clip.method, quality=MASK, path=clip.mask or ""))
        if clip.mask is None:
            file.refuse("mask_missing", f"no mask on disk for {clip.id}: nothing says which of its faces are fake")
            return file
        self._read(file, self.root, clip.mask)
        if file.source is None:
            missing = file.record.status == "missing_file"
            file.record.status = "mask_missing" if missing else "mask_unreadable"
            if clip.faces != "all":
                # Only whether a frame was altered hangs on it, and the crops tell that too.
                file.record.status = "ok"
        return file

    def _read(self, file: GroupFile, root: Path, path: str) -> None:
        record = file.record
        record.bytes = size_of(root, path) if record.path else -1
        try:
            file.source = open_source(root, path)
        except ProbeError as error:
            file.refuse(error.reason, str(error).replace(str(root / path), path))
            return
        info = file.source.info
        record.width, record.height, record.frames = info.width, info.height, info.frames
        record.fps, record.pix_fmt, record.crf = str(info.fps), info.pix_fmt, info.crf
        pictures = file.source.pictures
        if pictures and pictures.skipped:
            name, reason = pictures.skipped[0]
            record.message = f"{path}: {len(pictures.skipped)} pictures left out ({name}: {reason} ...)"
        if pictures and pictures.error:
            record.message = f"{path}: {pictures.error}; what lies before was taken"

    def _make(self, clip: Clip, quality: str) -> GroupFile:
        """Encode a quality from the clip's raw file into the scratch folder."""
        file = GroupFile(FileRecord(clip=clip.name, method=clip.method, quality=quality, path=""))
        known = self.files.get((clip.id, "raw"))
        try:
            # The run itself may do without the raw file.
            if known:
                source = known.source
            else:
                source = open_source(self.root, clip.paths["raw"]) if "raw" in clip.paths else None
        except ProbeError:
            source = None
        if source is None:
            # Not from another quality: that would be compressed twice.
            file.refuse("missing_quality", f"no readable raw file of {clip.id} to make its {quality} from")
            file.record.made = self._made_from(clip, quality)
            return file
        file.record.made = self._made_from(clip, quality)
        fault = self._mislabelled(source.info, "raw")
        if fault and not self.config.accept_mislabelled:
            file.refuse("quality_mismatch", f"{clip.paths['raw']}: {fault}; nothing is made from it")
            return file
        if self._made is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._made = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self._scratch))
        self._count += 1
        name = f"{self._count}.mp4"  # not from the clip's words: two clips' could join to the same
        with self.timer.stage("compress"):
            try:
                encode_quality(source, self._made / name, crf_of(quality), self.config.pix_fmt)
            except FfmpegError as error:
                cause = str(error).replace(str(self._made / name), f"{clip.id} {quality}")
                file.refuse("encode_error", cause)
                return file
        with self.timer.stage("probe"):
            self._read(file, self._made, name)
        if file.info:
            file.record.made["encoder"] = file.info.encoder or ""
            fault = wrong_with(file.info, source.info, crf_of(quality), self.config.pix_fmt)
            if fault:
                file.refuse("not_verified", f"{clip.id}: the encoded {quality} is wrong: {fault}")
        return file

    def _made_from(self, clip: Clip, quality: str) -> dict[str, object] | None:
        """What a made quality hangs on, whether or not it came about: another raw file makes the pack stale."""
        if "raw" not in clip.paths:
            return None
        return {
            "from": clip.paths["raw"],
            "from_bytes": size_of(self.root, clip.paths["raw"]),
            "crf": crf_of(quality),
            "pix_fmt": self.config.pix_fmt,
            "encoder": "",
        }


def encode_quality(source: Source, path: Path, crf: int, pix_fmt: str) -> None:
    """Write a clip's frames at a CRF the FF++ way: RGB frames to libx264, everything else at its default.

    Args:
        path: the mp4 to write; appears only when complete.

    Raises:
        FfmpegError: decoding or encoding failed.
    """
    if pix_fmt == "yuv420p" and (source.info.width % 2 or source.info.height % 2):
        size = f"{source.info.width}x{source.info.height}"
        raise FfmpegError(f"{path}: picture is {size}, yuv420p needs even sides; use --pix-fmt yuv444p")
    if source.pictures is None:
        compress(source.path, path, crf, pix_fmt)
        return
    write_compressed(_pictures(source), path, PICTURES_FPS, crf, pix_fmt)


def _pictures(source: Source) -> Iterator[np.ndarray]:
    with source.reader(range(source.info.frames)) as reader:
        for frame in reader:
            yield frame.rgb
    if reader.missing:
        # Leaving a picture out would shift every later frame against the pictures.
        raise FfmpegError(f"picture {source.number(reader.missing[0])} cannot be decoded ({reader.error})")


def wrong_with(made: VideoInfo, source: VideoInfo, crf: int, pix_fmt: str) -> str | None:
    """What a made video, read back, has otherwise than it should; None when it is right."""
    expected = {
        "frames": source.frames,
        "width": source.width,
        "height": source.height,
        "crf": float(crf),
        "pix_fmt": pix_fmt,
    }
    for name, value in expected.items():
        if getattr(made, name) != value:
            return f"{name} is {getattr(made, name)}, expected {value}"
    return None


def has_mask(clip: Clip) -> bool:
    """Whether a mask is among the files of a clip: needed where it says which faces are fake, else if it is there."""
    return clip.label == 1 and (clip.faces == "all" or clip.mask is not None)


def wanted_files(group: Group, config: ExtractConfig) -> dict[tuple[str, str, str], str]:
    """(method, clip, quality) -> path of every file an extraction looks for; empty paths for those not on disk."""
    files = {(c.method, c.name, q): c.paths.get(q, "") for c in group.clips for q in config.qualities}
    return files | {(c.method, c.name, MASK): c.mask or "" for c in group.clips if has_mask(c)}


def size_of(root: Path, path: str) -> int:
    """Size in bytes of what a manifest's path names; -1 when it is not there.

    For pictures it is the tar's size, or the sum of the files in their folder.
    """
    place = root / path.split("::")[0]
    if place.is_dir():
        return sum(file.stat().st_size for file in place.iterdir() if file.is_file())
    return place.stat().st_size if place.is_file() else -1


def remove_made(folder: Path) -> None:
    """Delete the scratch folders that a killed run left."""
    for left in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
