"""Folders for half-made files among the machine's temporary ones, tidied up after runs that were killed."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"qadprep-shard-([0-9]+)-.+")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, gone at the end; those of runs that were killed are deleted first.

    The folder is locked while it is used: process numbers alone do not tell who is alive, since containers that share
    the folder for temporary files count their own.
    """
    _remove_stale(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"qadprep-shard-{os.getpid()}-"))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(among: Path) -> None:
    for folder in among.glob("qadprep-shard-*"):
        match = _NAME.fullmatch(folder.name)
        if not match or _is_alive(int(match[1])):
            continue
        with contextlib.suppress(OSError), _locked(folder) as free:  # another user's cannot be opened
            if free and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock; False where somebody else holds it, or where the file system has none."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
