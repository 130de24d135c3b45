"""Folders of files that can be made or fetched again: one maker at a time, the least recently used go first."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path


def default_folder(kind: str) -> Path:
    """Where files of a kind lie when nobody says where: `$XDG_CACHE_HOME/qadprep/<kind>`; not created."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named, "qadprep", kind)
    try:
        return Path.home() / ".cache" / "qadprep" / kind
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"qadprep-{os.getuid()}" / kind


@contextlib.contextmanager
def sole_maker(file: Path) -> Iterator[None]:
    """Make a file while no other thread or process makes it; they wait. Where there are no file locks, nobody waits.

    The lock's own file stays: files whose names begin alike share it, so there are few.
    """
    with (file.parent / f".{file.name[:2]}.lock").open("a") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a process that was forked meanwhile has the lock's handle too.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)


def mark_used(file: Path) -> None:
    """Let `trim` know that a file is in use."""
    with contextlib.suppress(OSError):
        os.utime(file)


def trim(folder: Path, suffixes: Collection[str], limit_bytes: int, keep: Path | None = None) -> int:
    """Delete least recently used files until the others take no more than a limit; returns how many were deleted.

    A process that has one open goes on reading it.

    Args:
        suffixes: of the files that count, such as `.tar`.
        keep: never deleted.
    """
    found = []
    for file in folder.iterdir():
        if file.suffix in suffixes and not file.name.startswith("."):
            with contextlib.suppress(OSError):  # another process trims as well
                state = file.stat()
                found.append((state.st_mtime_ns, file.name, state.st_size, file))
    total, deleted = sum(size for _, _, size, _ in found), 0
    for _, _, size, file in sorted(found):
        if total <= limit_bytes:
            break
        if file != keep:
            file.unlink(missing_ok=True)
            total, deleted = total - size, deleted + 1
    return deleted
