"""Sequences of ready pictures in place of a video: probe one, decode pictures at positions. Nothing is unpacked."""

import contextlib
import functools
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from qadprep.catalog.pictures import (
    MAX_PICTURE_BYTES,
    Picture,
    TarListing,
    is_pictures,
    list_folder,
    list_tar,
    split_path,
)
from qadprep.video.decode import Decoded, check_indices
from qadprep.video.probe import ProbeError, VideoInfo
from qadprep.video.stills import PictureError, TooLargeError, decode_picture, picture_header

__all__ = ["PictureReader", "PictureSequence", "is_pictures"]

# The authors publish no frame rate; 25 is what `compress` writes such a sequence with.
FPS = Fraction(25)

_NUMBER = re.compile(r"([0-9]{1,9})\.(?:png|jpe?g)", re.IGNORECASE)
_HEADER_BYTES = 2**18  # enough for a JPEG whose size stands behind its thumbnails and profiles
_TARS_KEPT = 4


@dataclass
class PictureSequence:
    """Pictures of one sequence in the order of their numbers; opened with `PictureSequence.open`.

    Attributes:
        path: the path text it was opened with.
        numbers: frame number of each picture, rising: its file name's number. A picture's position in the sequence,
            from 0, is its place in this list.
        info: as of a video with `len(numbers)` frames: the size is that of the first picture with a readable header,
            `codec` is `png` or `jpeg`, `pix_fmt` rgb24, `bytes` the sum over the pictures.
        skipped: (file name, reason) of what lies beside the pictures and is left out.
        error: why the tar could not be read to its end, though this folder has pictures before that; else None.
    """

    path: str
    numbers: list[int]
    info: VideoInfo
    skipped: list[tuple[str, str]]
    error: str | None
    _source: "_Source" = field(repr=False)

    @classmethod
    def open(cls, root: Path, path: str) -> "PictureSequence":
        """List a sequence and read the header of its first picture.

        Args:
            root: the dataset's root folder.
            path: `<tar>::<folder inside>`, or a folder with a slash at its end; relative to the root.

        Raises:
            ProbeError: with reason `missing_file`, `unreadable`, `empty` (no picture named by a number), `too_large`
                or `unsafe` (a path that leaves the root; a tar's folder of links and the like).
        """
        file, folder = split_path(path)
        if posixpath.isabs(path) or ".." in file.split("/") or not is_pictures(path):
            raise ProbeError("unsafe", f"{path}: expected <tar>::<folder> or <folder>/ below the dataset's root")
        place = Path(root) / file
        if folder is None:
            found, skipped, error, stamp = *_list_own_folder(place, path), None, None
        else:
            found, skipped, error, stamp = _list_tar_folder(place, folder, path)
        numbered = _number(found, skipped)
        if not numbered:
            raise ProbeError("empty", f"{path}: no picture whose name is a number, such as 12.png")
        numbers = sorted(numbered)
        source = _Source(place, folder is not None, [numbered[number] for number in numbers], stamp)
        return cls(path, numbers, _info(source, path), skipped, error, source)


@dataclass
class _Source:
    """Where the bytes of a sequence's pictures lie: `file` is a tar or a folder."""

    file: Path
    is_tar: bool
    pictures: list[Picture]
    stamp: tuple[int, int] | None  # the tar's (mtime_ns, size) when it was listed

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """A handle of the tar for `read`; None for a folder.

        Raises:
            PictureError: the tar is gone, or is not the file that was listed.
        """
        if not self.is_tar:
            yield None
            return
        try:
            handle = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PictureError(f"{self.file.name}: {error.strerror}") from error
        try:
            if _stamp(os.fstat(handle)) != self.stamp:
                raise PictureError(f"{self.file.name}: changed since it was listed")
            yield handle
        finally:
            os.close(handle)

    def read(self, handle: int | None, position: int, limit: int = MAX_PICTURE_BYTES) -> bytes:
        """The bytes of one picture, at most `limit` of them."""
        picture = self.pictures[position]
        try:
            if handle is not None:
                return os.pread(handle, min(picture.bytes, limit), picture.offset)
            with (self.file / picture.name).open("rb") as file:
                return file.read(limit)
        except OSError as error:
            raise PictureError(f"{picture.name}: cannot be read ({error.strerror})") from error


class PictureReader:
    """Decodes the pictures at `indices` of a sequence, in rising order; the counterpart of `FrameReader`.

    Args:
        sequence: an opened sequence.
        indices: positions in the sequence from 0 (not frame numbers), strictly rising.
        thumbs_at: positions that also get a 160x90 luminance thumbnail; those outside the sequence are left out.

    Iterating yields `Decoded` with uint8 RGB of the sequence's size; grey, transparent and 16-bit pictures become that
    too (transparency is dropped, an orientation tag not obeyed). After the iteration `thumbnails` maps position ->
    uint8 (90, 160). A damaged picture, or one of another size than the sequence's, loses only itself: `missing` lists
    the wanted positions that could not be given, `error` is the first cause. `frames_decoded` counts the pictures.
    """

    def __init__(
        self,
        sequence: PictureSequence,
        indices: Sequence[int],
        *,
        thumbs_at: Collection[int] = (),
    ) -> None:
        self.sequence, self.info = sequence, sequence.info
        self.indices = check_indices(indices)
        self.thumbs_at = frozenset(int(index) for index in thumbs_at if 0 <= index < len(sequence.numbers))
        self.thumbnails: dict[int, np.ndarray] = {}
        self.missing: list[int] = []
        self.error: str | None = None
        self.frames_decoded = 0

    def __enter__(self) -> "PictureReader":
        return self

    def __exit__(self, *exc: object) -> None:
        pass  # the tar is open only while the iteration runs

    def __iter__(self) -> Iterator[Decoded]:
        self.thumbnails, self.missing, self.error, self.frames_decoded = {}, [], None, 0
        wanted = set(self.indices)
        try:
            with self.sequence._source.opened() as handle:
                for position in sorted(wanted | self.thumbs_at):
                    rgb = self._decode(handle, position)
                    if rgb is None:
                        if position in wanted:
                            self.missing.append(position)
                        continue
                    self.frames_decoded += 1
                    decoded = Decoded(position, rgb)
                    if position in self.thumbs_at:
                        self.thumbnails[position] = decoded.thumbnail
                    if position in wanted:
                        yield decoded
        except PictureError as error:
            self.missing, self.error = list(self.indices), str(error)

    def _decode(self, handle: int | None, position: int) -> np.ndarray | None:
        source = self.sequence._source
        try:
            if position >= len(source.pictures):
                raise PictureError(f"there is no picture {position}, the sequence has {len(source.pictures)}")
            data = source.read(handle, position)
            try:
                return decode_picture(data, (self.info.width, self.info.height))
            except PictureError as error:
                raise PictureError(f"{source.pictures[position].name}: {error}") from error
        except PictureError as error:
            self.error = self.error or str(error)
            return None


# Listing


def _list_own_folder(place: Path, path: str) -> tuple[list[Picture], list[tuple[str, str]]]:
    try:
        return list_folder(place)
    except FileNotFoundError as error:
        raise ProbeError("missing_file", f"{path}: no such folder") from error
    except OSError as error:
        raise ProbeError("unreadable", f"{path}: cannot be listed ({error.strerror})") from error


def _list_tar_folder(
    place: Path, folder: str, path: str
) -> tuple[list[Picture], list[tuple[str, str]], str | None, tuple[int, int]]:
    try:
        stamp = _stamp(place.stat())
    except OSError as error:
        raise ProbeError("missing_file", f"{path}: {error.strerror}") from error
    listing = _listing(str(place), *stamp)
    skipped = [
        (posixpath.basename(member), reason)
        for member, reason in listing.refused
        if posixpath.dirname(posixpath.normpath(member)) == folder
    ]
    if folder in listing.folders:
        return listing.folders[folder], skipped, listing.error, stamp
    if skipped:
        name, reason = skipped[0]
        raise ProbeError("unsafe", f"{path}: no picture that may be read; {name} is {reason}")
    if listing.error:
        raise ProbeError("unreadable", f"{path}: {listing.error}")
    raise ProbeError("missing_file", f"{path}: the tar has no such folder")


@functools.lru_cache(maxsize=_TARS_KEPT)
def _listing(path: str, mtime_ns: int, size: int) -> TarListing:
    """One pass over the headers of a tar for all its sequences; the stamp makes a changed tar another one."""
    return list_tar(path)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_size


def _number(found: Sequence[Picture], skipped: list[tuple[str, str]]) -> dict[int, Picture]:
    """Number -> picture; the first of a number stays, the others and names without a number go to `skipped`."""
    numbered: dict[int, Picture] = {}
    for picture in found:
        match = _NUMBER.fullmatch(picture.name)
        if not match:
            skipped.append((picture.name, "its name is no frame number"))
        elif (number := int(match.group(1))) in numbered:
            skipped.append((picture.name, f"frame {number} is already there as {numbered[number].name}"))
        else:
            numbered[number] = picture
    return numbered


def _info(source: _Source, path: str) -> VideoInfo:
    """Facts of the sequence, from the first picture whose header can be read."""
    first: PictureError | None = None
    try:
        with source.opened() as handle:
            for position in range(len(source.pictures)):
                try:
                    codec, width, height = picture_header(source.read(handle, position, _HEADER_BYTES))
                except PictureError as error:
                    first = first or error
                    continue
                count = len(source.pictures)
                return VideoInfo(
                    width=width,
                    height=height,
                    frames=count,
                    frames_header=count,
                    fps=FPS,
                    codec=codec,
                    pix_fmt="rgb24",
                    rate_control=None,
                    crf=None,
                    rotation_deg=0,
                    bytes=sum(picture.bytes for picture in source.pictures),
                )
    except PictureError as error:
        first = error
    reason = "too_large" if isinstance(first, TooLargeError) else "unreadable"
    raise ProbeError(reason, f"{path}: no picture can be read; the first is {first}") from first
