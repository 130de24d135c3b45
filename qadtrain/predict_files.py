"""What a prediction is asked to look at: files and folders, each file under a name of its own; videos or pictures."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from qadprep.errors import UserError
from qadprep.video.decoded import Decoded
from qadprep.video.probe import MAX_PICTURE_PX, ProbeError, VideoInfo, probe
from qadprep.video.source import Source

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
VIDEO_ENDINGS = (
    ".3gp", ".asf", ".avi", ".flv", ".h264", ".hevc", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm",
    ".wmv",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One file to be looked at.

    Attributes:
        path: as it was given, or found in a given folder.
        name: unique in a prediction; below a folder the path inside of it.
    """

    path: Path
    name: str

    @property
    def is_image(self) -> bool:
        return self.path.suffix.lower() in IMAGE_ENDINGS

    @property
    def flat_name(self) -> str:
        """The name as that of a file in one folder, still unique."""
        return self.name.replace("%", "%25").replace("/", "%2F")


def list_items(inputs: Sequence[Path], skip: Path | None = None) -> tuple[list[Item], dict[str, int], list[Path]]:
    """The files that inputs name. Folders are searched with all that is below, hidden files and links to folders aside.

    Args:
        inputs: files, whatever their ending, and folders, of which only files with known endings are taken.
        skip: a folder whose files are left out: that of the results.

    Returns:
        The items; folder -> files in it that are neither video nor picture; folders without a video or picture.

    Raises:
        UserError: no input, or nothing but empty folders.
    """
    if not inputs:
        raise UserError("no input: expected videos, pictures or folders")
    items: dict[Path, Item] = {}
    taken: set[str] = set()
    others: dict[str, int] = {}
    empty: list[Path] = []
    folders = sum(path.is_dir() for path in inputs)
    for given in inputs:
        if not given.is_dir():
            _add(items, taken, given, given.name)
            continue
        found, rest = _inside(given, skip)
        # One folder: names as they are in it. Several: with the folder's own name before.
        prefix = f"{given.resolve().name}/" if folders > 1 or len(inputs) > 1 else ""
        for path in found:
            _add(items, taken, path, prefix + path.relative_to(given).as_posix())
        if rest:
            others[str(given)] = rest
        if not found:
            empty.append(given)
    if not items:
        names = ", ".join(map(str, empty))
        raise UserError(f"{names}: no video or picture; looked for {' '.join(VIDEO_ENDINGS + IMAGE_ENDINGS)}")
    return list(items.values()), others, empty


def _inside(folder: Path, skip: Path | None) -> tuple[list[Path], int]:
    avoided = skip.resolve() if skip is not None else None
    found, rest = [], 0
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        # A link to a file that is not there is a video that cannot be read: it is listed, and reported.
        there = path.is_file() or (path.is_symlink() and not path.exists())
        if hidden or not there or (avoided and Path(os.path.realpath(path)).is_relative_to(avoided)):
            continue
        if path.suffix.lower() in VIDEO_ENDINGS + IMAGE_ENDINGS:
            found.append(path)
        else:
            rest += 1
    return found, rest


def _add(items: dict[Path, Item], taken: set[str], path: Path, name: str) -> None:
    """A file that is named twice is looked at once."""
    key = Path(os.path.realpath(path))  # as resolve(), which stops at links that lead in a circle
    if key in items:
        return
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{Path(name).with_suffix('').as_posix()} ({number}){Path(name).suffix}"
    taken.add(unique)
    items[key] = Item(path, unique)


class Reader(Protocol):
    """Yields `Decoded` frames; `missing` and `error` say afterwards what could not be decoded, and why."""

    missing: list[int]
    error: str | None

    def __enter__(self) -> "Reader": ...

    def __exit__(self, *exc: object) -> None: ...

    def __iter__(self) -> Iterator[Decoded]: ...


class Still:
    """A picture as a video of one frame.

    Args:
        rgb: uint8 (height, width, 3), RGB.
    """

    def __init__(self, path: Path, rgb: np.ndarray, codec: str) -> None:
        self.path, self.rgb = path, rgb
        height, width = rgb.shape[:2]
        self.info = VideoInfo(
            width=width, height=height, frames=1, frames_header=1, fps=Fraction(1), codec=codec, pix_fmt="rgb24",
            rate_control=None, crf=None, rotation_deg=0, bytes=path.stat().st_size,
        )  # fmt: skip

    def reader(self, indices: Sequence[int], *, thumbs_at: Collection[int] = (), threads: int = 1) -> Reader:
        """As :meth:`qadprep.video.source.Source.reader`."""
        return _StillReader(self.rgb, list(indices))


class _StillReader:
    def __init__(self, rgb: np.ndarray, indices: list[int]) -> None:
        self._rgb, self._indices = rgb, indices
        self.missing = [index for index in indices if index]
        self.error = "a picture has one frame" if self.missing else None

    def __enter__(self) -> "_StillReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __iter__(self) -> Iterator[Decoded]:
        if 0 in self._indices:
            yield Decoded(0, self._rgb)


def open_item(item: Item) -> Source | Still:
    """Open a video, or read a picture whole.

    Raises:
        ProbeError: it cannot be used; ``reason`` is a short stable word.
    """
    if not item.is_image:
        return Source(probe(item.path), item.path)
    return Still(item.path, *_picture(item.path))


def _picture(path: Path) -> tuple[np.ndarray, str]:
    """(uint8 (height, width, 3) RGB turned as its Exif tag says, codec); its size is checked before it is decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise ProbeError("missing_file", f"{path}: no such file")
    if not path.stat().st_size:
        raise ProbeError("empty_file", f"{path}: the file has 0 bytes; fetch it again")
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            codec = str(image.format).lower()
            if image.width * image.height > MAX_PICTURE_PX:
                size = f"{image.width}x{image.height}"
                raise ProbeError("too_large", f"{path}: picture is {size}, more than {MAX_PICTURE_PX} pixels")
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I"):
                # 16 bits of grey: Pillow would cut off what is above 255. The high byte, as extraction takes it.
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            rgb = np.asarray(turned.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ProbeError("too_large", f"{path}: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        words = "neither JPEG, PNG nor WebP" if isinstance(error, UnidentifiedImageError) else said
        raise ProbeError("unreadable", f"{path}: not a readable picture ({words})") from error
    return np.ascontiguousarray(rgb), codec
