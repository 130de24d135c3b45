"""One writer for an output folder: a file lock on local folders, a lock object with a heartbeat on remote ones."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qadprep.errors import UserError
from qadprep.lease import LOCK_NAME, Held, lease, refuse_if_alive
from qadprep.parts import Part, started_parts
from qadprep.store import is_local, remove

if TYPE_CHECKING:
    from qadprep.store import Folder

_TURN_NAME, _READ_NAME = ".lock-turn", ".lock-read"
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_UNWRITABLE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


@contextlib.contextmanager
def sole_user(folder: "Folder", part: Part | None = None) -> Iterator[Held]:
    """Be the only one who writes into an output folder, or the only one who works on a part of it.

    A local lock is freed by the system when the process ends, however it ends. A remote one that was left behind by a
    killed run is free at once on the same machine, and after two minutes without a sign of life elsewhere.

    Raises:
        UserError: another run is writing or reading there, or nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        if is_local(folder):
            with _writable(folder):
                folder.mkdir(parents=True, exist_ok=True)
        if is_local(folder) and _lock_local(folder, part, stack):
            yield lambda: None
        else:
            yield stack.enter_context(lease(folder, part))


@contextlib.contextmanager
def reader(folder: "Folder") -> Iterator[None]:
    """Read an output folder while nobody writes into it; needs no permission to write, and others may read as well.

    On folders without file locks, remote ones among them, only a run that is writing at the beginning is noticed.

    Raises:
        UserError: another run is writing there.
    """
    with contextlib.ExitStack() as stack:
        if not (is_local(folder) and _lock_to_read(folder, stack)):
            for path in [folder / LOCK_NAME, *(folder / part.lock_name for part in started_parts(folder))]:
                # An empty one was left by a file lock, of a machine on which the folder has them.
                if not is_local(folder) or (path.exists() and path.stat().st_size):
                    refuse_if_alive(folder, path)
        yield


@contextlib.contextmanager
def one_at_a_time(folder: "Folder") -> Iterator[None]:
    """Wait until no other part is at its beginning or end; on remote folders nothing needs that."""
    with contextlib.ExitStack() as stack:
        if is_local(folder):
            (folder / _READ_NAME).open("a").close()  # for readers that may not make it
            file = stack.enter_context((folder / _TURN_NAME).open("a+"))
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def alone(folder: "Folder", part: Part | None) -> bool:
    """Whether no other part is running in a local folder; to be asked inside `one_at_a_time`."""
    return part is None or not any(_is_held(folder / other.lock_name) for other in started_parts(folder)
                                   if other != part)  # fmt: skip


def _lock_local(folder: Path, part: Part | None, stack: contextlib.ExitStack) -> bool:
    """Lock for as long as `stack` lives; False on a network file system that has no file locks."""
    path = folder / LOCK_NAME
    with _writable(folder):
        new = not path.exists()
        whole = stack.enter_context(path.open("x+" if new else "a+"))
    try:
        free = _flock(whole, fcntl.LOCK_SH if part else fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            if new:
                remove(path)  # the lock object takes its place
            return False
        raise
    if not free:
        raise _busy(folder, "reading" if _is_held(folder / _READ_NAME) else "writing")
    if not _is_file(path, whole):
        return _lock_local(folder, part, stack)  # its last holder deleted it after it had been opened here
    if part is None:
        return True
    with _writable(folder):
        own = stack.enter_context((folder / part.lock_name).open("a+"))
    if not _flock(own, fcntl.LOCK_EX):
        raise UserError(f"{folder}: part {part} is running there already; wait for it, or choose another --part")
    for other in started_parts(folder):
        if other.count != part.count and _is_held(folder / other.lock_name):
            raise UserError(f"{folder}: part {other} is running there; --part {part} would do its groups again")
    with one_at_a_time(folder):  # or parts that ask at the same moment take each other for readers
        if _is_held(folder / _READ_NAME):
            raise _busy(folder, "reading")
    return True


def drop_lock_file(folder: "Folder") -> None:
    """Delete the lock file of a local folder before its sole user leaves; nothing else shall lie beside the output."""
    if is_local(folder):
        remove(folder / LOCK_NAME)


def _is_file(path: Path, file: IO[str]) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock_to_read(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock against writers for as long as `stack` lives; False on a network file system that has no file locks."""
    try:
        # First the lock that a starting part looks at, then those that parts hold: one of the two sees the other.
        free = _share(folder / _READ_NAME, stack) and _share(folder / LOCK_NAME, stack)
        free = free and all(_share(folder / part.lock_name, stack) for part in started_parts(folder))
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return False
        raise
    if not free:
        raise _busy(folder, "writing")
    return True


def _share(path: Path, stack: contextlib.ExitStack) -> bool:
    """Whether no writer holds a lock. One that is not there, or not for this user to open, stops nobody."""
    try:
        file = stack.enter_context(path.open())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
            return True
        raise
    return _flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another --out") from error


def _busy(folder: "Folder", doing: str) -> UserError:
    return UserError(f"{folder}: another run is {doing} there; wait for it, or choose another --out")


def _flock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_held(path: Path) -> bool:
    try:
        with path.open("r+") as file:
            return not _flock(file, fcntl.LOCK_EX)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return True  # nothing is known: nobody is alone there
        raise
