"""Walking dataset folders: fast, in a fixed order, tolerant of case and of the qualities' outer folders."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from qadprep.errors import UserError

VIDEO_SUFFIX = ".mp4"
_WORD = re.compile(r"[^A-Za-z0-9_-]+")
_QUALITY_FOLDER = re.compile(r"raw|c\d{1,2}")


def entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, sorted by name, hidden names left out; empty when it is no folder.

    Raises:
        UserError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error


def child(folder: Path, *names: str) -> Path | None:
    """The folder below `folder` that has one of the names, in any case; the first in order of the names."""
    there = {entry.name.lower(): entry for entry in reversed(entries(folder))}
    for name in names:
        entry = there.get(name.lower())
        if entry is not None and entry.is_dir():
            return Path(entry.path)
    return None


def quality_roots(root: Path) -> list[tuple[str, Path]]:
    """(quality, folder) of every tree below a root of a dataset that is released at one quality.

    The root itself holds `raw` (the files as released); a child folder named `raw`, `c0` or `c<CRF>` holds the same
    tree at that quality, as `qadprep compress` writes it.
    """
    found = [("raw", root)]
    for entry in entries(root):
        if entry.is_dir() and _QUALITY_FOLDER.fullmatch(entry.name):
            found.append(("raw" if entry.name == "c0" else entry.name, Path(entry.path)))
    return found


def relative(path: str | Path, root: Path) -> str:
    """A path below a root as text with `/`; links are not followed, so it always lies below."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def videos(folder: Path, root: Path, ignored: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(stem, path relative to root) of the mp4 files in one folder, sorted; anything else goes to `ignored`.

    Folders are passed over in silence. A link to a file that is gone is ignored with its reason.
    """
    prefix = relative(folder, root)
    prefix = "" if prefix == "." else f"{prefix}/"
    for entry in entries(folder):
        path = prefix + entry.name
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122  (pathlib is ten times slower here)
        if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            ignored.append((path, "a link to a file that is not there"))
        elif entry.is_dir():
            continue
        elif suffix.lower() != VIDEO_SUFFIX:
            ignored.append((path, "not an mp4 file"))
        else:
            yield stem, path


def word(text: str) -> str:
    """Text as a name that fits keys and file names: runs of other characters become one `-`."""
    return _WORD.sub("-", text).strip("-")
