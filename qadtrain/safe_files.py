"""Files that are either whole or not there, also when the process dies or the disk is full."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from qadprep.errors import UserError
from qadprep.ustar import sync_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename: readers see the old file or the new one, whole.

    Raises:
        UserError: the disk is full; the old file stands.
    """
    temporary = pending(path)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    except BaseException as error:
        remove([temporary])
        raise explained(error, path, len(data)) from error
    sync_folder(path.parent)


def pending(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(path.name + ".tmp")


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def remove(paths: Iterable[Path]) -> None:
    """Delete files; those that are not there are none's loss."""
    for path in paths:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str | None:
    """SHA-256 of a file, in hexadecimal digits; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def explained(error: BaseException, path: Path, needed_bytes: int, kept: str = "") -> BaseException:
    """The error itself, or one line with the room that is needed where the disk is full.

    Args:
        needed_bytes: of the files that were to be written together.
        kept: what the user still has, such as ``the checkpoint of step 100``.
    """
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return error
    free = shutil.disk_usage(path.parent).free
    stands = f"; {kept} stands" if kept else ""
    return UserError(
        f"{path}: cannot be written ({os.strerror(error.errno)}): needs {needed_bytes / 1e6:.1f} MB, "
        f"{free / 1e6:.1f} MB free{stands}; free space, then give the command again (fit with --resume)"
    )
