"""Walking dataset folders: fast, in a fixed order, tolerant of case and of the qualities' outer folders."""

import contextlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

VIDEO_SUFFIX = ".mp4"
_WORD = re.compile(r"[^A-Za-z0-9_-]+")
_QUALITY_FOLDER = re.compile(r"raw|c\d{1,2}")


# What the walk itself met, for the catalog that is being read; None outside of `collect_troubles`.
_troubles: ContextVar[dict[str, str] | None] = ContextVar("troubles", default=None)


@contextlib.contextmanager
def collect_troubles() -> Iterator[dict[str, str]]:
    """Gather what `entries` cannot take, path -> reason, instead of losing it."""
    troubles: dict[str, str] = {}
    token = _troubles.set(troubles)
    try:
        yield troubles
    finally:
        _troubles.reset(token)


def _trouble(path: str, reason: str) -> None:
    troubles = _troubles.get()
    if troubles is not None:
        troubles[path.encode("utf-8", "backslashreplace").decode()] = reason


def entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, sorted by name, hidden names left out; empty when it is no folder.

    Left out with a reason (see `collect_troubles`): a folder that may not be listed, a name that is not UTF-8, a link
    that leads to itself or to a folder above it. A link to nothing stays: who takes files names it.
    """
    try:
        with os.scandir(folder) as found:
            named = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        _trouble(str(folder), f"cannot be listed ({error.strerror})")
        return []
    return [entry for entry in named if _sound(entry, folder)]


def _sound(entry: os.DirEntry, folder: Path) -> bool:
    if not entry.name.isascii():
        try:
            entry.name.encode("utf-8")
        except UnicodeEncodeError:
            _trouble(entry.path, "its name is not UTF-8; rename it")
            return False
    if entry.is_symlink():
        try:
            if entry.is_dir():
                goal = os.path.realpath(entry.path)
                if any(os.path.realpath(above) == goal for above in (folder, *folder.parents)):
                    _trouble(entry.path, "a link to a folder above it")
                    return False
        except OSError as error:
            _trouble(entry.path, f"a link that cannot be followed ({error.strerror})")
            return False
    return True


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
