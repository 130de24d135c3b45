"""One writer for an output folder: a file lock on local folders, a lock object with a heartbeat on remote ones."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qadprep.errors import RunEnded, UserError
from qadprep.parts import Part, started_parts
from qadprep.store import create, is_local, read_json, remove

if TYPE_CHECKING:
    from qadprep.store import Folder

LOCK_NAME = ".lock"
BEAT_S, STALE_S = 20.0, 120.0
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
# Calling it says that the lock is still held; it raises UserError otherwise.
Held = Callable[[], None]


@contextlib.contextmanager
def sole_user(folder: "Folder", part: Part | None = None) -> Iterator[Held]:
    """Be the only one who writes into an output folder, or the only one who works on a part of it.

    A local lock is freed by the system when the process ends, however it ends. A remote one that was left behind by a
    killed run is free at once on the same machine, and after two minutes without a sign of life elsewhere.

    Raises:
        UserError: another run is writing there.
    """
    with contextlib.ExitStack() as stack:
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if is_local(folder) and _lock_local(folder, part, stack):
            yield lambda: None
        else:
            yield stack.enter_context(_lease(folder, part))


@contextlib.contextmanager
def one_at_a_time(folder: "Folder") -> Iterator[None]:
    """Wait until no other part is at its beginning or end; on remote folders nothing needs that."""
    with contextlib.ExitStack() as stack:
        if is_local(folder):
            file = stack.enter_context((folder / ".lock-turn").open("a+"))
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def alone(folder: "Folder", part: Part | None) -> bool:
    """Whether no other part is running in a local folder; to be asked inside `one_at_a_time`."""
    return part is None or not any(_is_held(folder / other.lock_name) for other in started_parts(folder)
                                   if other != part)  # fmt: skip


def _lock_local(folder: Path, part: Part | None, stack: contextlib.ExitStack) -> bool:
    """Lock for as long as `stack` lives; False on a network file system that has no file locks."""
    whole = stack.enter_context((folder / LOCK_NAME).open("a+"))
    try:
        free = _flock(whole, fcntl.LOCK_SH if part else fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return False
        raise
    if not free:
        raise UserError(f"{folder}: another run is writing there; wait for it, or choose another --out")
    if part is None:
        return True
    if not _flock(stack.enter_context((folder / part.lock_name).open("a+")), fcntl.LOCK_EX):
        raise UserError(f"{folder}: part {part} is running there already; wait for it, or choose another --part")
    for other in started_parts(folder):
        if other.count != part.count and _is_held(folder / other.lock_name):
            raise UserError(f"{folder}: part {other} is running there; --part {part} would do its groups again")
    return True


def _flock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_held(path: Path) -> bool:
    try:
        with path.open("a+") as file:
            return not _flock(file, fcntl.LOCK_EX)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _lease(folder: "Folder", part: Part | None) -> Iterator[Held]:
    path = folder / (part.lock_name if part else LOCK_NAME)
    mine = {"host": socket.gethostname(), "token": secrets.token_hex(8), **_identity()}
    try:
        if not create(path, _record(mine)):
            _refuse_if_alive(folder, path)
            path.write_bytes(_record(mine))  # its owner is dead
            time.sleep(1)  # another may have thought the same; the last to write has it
            _refuse_if_alive(folder, path, mine["token"])
    except UserError:
        raise
    except Exception as error:  # each kind of store has its own
        raise UserError(f"{folder}: cannot be written ({type(error).__name__}: {error})") from error
    beat = _Heartbeat(path, mine)
    try:
        for rival in _rivals(folder, part):
            _refuse_if_alive(folder, rival)
        beat.start()
        yield beat.check
    finally:
        beat.end()


class _Heartbeat(threading.Thread):
    """Writes the time into a lock object now and then, and deletes it at the end."""

    def __init__(self, path: "Folder", mine: dict[str, Any]) -> None:
        super().__init__(name="qadprep-lock", daemon=True)
        self._path, self._mine = path, mine
        self._ended, self._lost = threading.Event(), False

    def run(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(Exception):  # a lost beat is made up for by the next
                if self._is_mine():
                    self._path.write_bytes(_record(self._mine))
                else:
                    self._lost = True
                    return

    def check(self) -> None:
        if self._lost:
            raise RunEnded(f"{self._path}: the lock was deleted or taken by another run; this one ends")

    def end(self) -> None:
        self._ended.set()
        if self.ident:
            self.join()
        with contextlib.suppress(Exception):
            if self._is_mine():
                remove(self._path)

    def _is_mine(self) -> bool:
        return (read_json(self._path) or {}).get("token") == self._mine["token"]


def _rivals(folder: "Folder", part: Part | None) -> list["Folder"]:
    """Locks that must not be held beside this one: a whole run's and any part's, parts of other counts."""
    parts = [folder / other.lock_name for other in started_parts(folder) if part is None or other.count != part.count]
    return parts if part is None else [folder / LOCK_NAME, *parts]


def _refuse_if_alive(folder: "Folder", path: "Folder", token: str = "") -> None:
    record = read_json(path)
    if record is None or record.get("token") == token:
        return
    age = time.time() - record.get("time", 0.0)
    if record.get("machine") and record["machine"] == _machine():
        dead = _started(record.get("pid", 0)) != record.get("started")
    else:
        dead = age > STALE_S
    if not dead:
        raise UserError(
            f"{folder}: another run is writing there ({record.get('host')}, process {record.get('pid')}, last sign of "
            f"life {max(0.0, age):.0f} s ago); wait for it, or choose another --out; if it is dead, delete {path} or "
            f"wait until that is {STALE_S:.0f} s old"
        )


def _record(mine: dict[str, Any]) -> bytes:
    return json.dumps({**mine, "time": time.time()}).encode()


def _identity() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Where a process number means something: this start of this machine, and the container's own numbering."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the system's own count; empty for none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return fields[19] if fields[0] not in "ZX" else ""
