"""A lock object with a heartbeat, for folders that have no file locks. See `qadprep.locks`."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.errors import RunEnded, UserError
from qadprep.parts import Part, started_parts
from qadprep.store import create, dump_json, remove, write_json

if TYPE_CHECKING:
    from qadprep.store import Folder

LOCK_NAME = ".lock"
BEAT_S, STALE_S = 20.0, 120.0
READ_AGAIN_AFTER_S = (0.2, 1.0, 3.0)
# Calling it says that the lock is still held; it raises RunEnded otherwise.
Held = Callable[[], None]


@contextlib.contextmanager
def lease(folder: "Folder", part: Part | None) -> Iterator[Held]:
    """Own a lock object for as long as the block lasts.

    Raises:
        UserError: another run has it, or it cannot be written.
    """
    path = folder / (part.lock_name if part else LOCK_NAME)
    mine = {"host": socket.gethostname(), "token": secrets.token_hex(8), **_identity()}
    try:
        if not create(path, dump_json(_record(mine))):
            refuse_if_alive(folder, path)
            write_json(path, _record(mine))  # its owner is dead
            time.sleep(1)  # another may have thought the same; the last to write has it
            refuse_if_alive(folder, path, mine["token"])
    except UserError:
        raise
    except Exception as error:  # each kind of store has its own
        raise UserError(f"{folder}: cannot be written ({type(error).__name__}: {error})") from error
    beat = _Heartbeat(path, mine)
    try:
        beat.start()
        for rival in _rivals(folder, part):
            refuse_if_alive(folder, rival)
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
                if _token_of(_read_once(self._path)) == self._mine["token"]:
                    write_json(self._path, _record(self._mine))
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
            if _token_of(_read_record(self._path)) == self._mine["token"]:
                remove(self._path)


def _rivals(folder: "Folder", part: Part | None) -> list["Folder"]:
    """Locks that must not be held beside this one: a whole run's and any part's, parts of other counts."""
    parts = [folder / other.lock_name for other in started_parts(folder) if part is None or other.count != part.count]
    return parts if part is None else [folder / LOCK_NAME, *parts]


def refuse_if_alive(folder: "Folder", path: "Folder", token: str = "") -> None:
    """Raise UserError where a lock object belongs to a run that lives, other than the one with this token."""
    record = _read_record(path)
    if record is None or record.get("token") == token:
        return
    age = time.time() - record.get("time", 0.0)
    if record.get("machine") and record["machine"] == _machine():
        dead = process_start(record.get("pid", 0)) != record.get("started")
    elif abs(age) > STALE_S:
        # The two machines' clocks may differ: only a record that stays as it is has no owner.
        time.sleep(2 * BEAT_S)
        dead = _read_record(path) in (None, record)
    else:
        dead = False
    if not dead:
        raise UserError(
            f"{folder}: another run is writing there ({record.get('host')}, process {record.get('pid')}, last sign of "
            f"life {max(0.0, age):.0f} s ago); wait for it, or choose another --out; if it is dead, delete {path} or "
            f"wait until that is {STALE_S:.0f} s old"
        )


def _read_record(path: "Folder") -> dict[str, Any] | None:
    """A lock's content; None only where there is no lock.

    Raises:
        UserError: it cannot be read, again and again.
    """
    for pause_s in READ_AGAIN_AFTER_S:
        with contextlib.suppress(Exception):  # each kind of store has its own
            return _read_once(path)
        time.sleep(pause_s)
    try:
        return _read_once(path)
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}), so another run may be writing there; if there "
            "is none, delete it"
        ) from error


def _read_once(path: "Folder") -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError("not the record of a run")
    return found


def _token_of(record: dict[str, Any] | None) -> str | None:
    return record and record.get("token")


def _record(mine: dict[str, Any]) -> dict[str, Any]:
    return {**mine, "time": time.time()}


def _identity() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "started": process_start(os.getpid())}


def _machine() -> str:
    """Where a process number means something: this start of this machine, and the container's own numbering."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """When a process started, in the system's own count; empty for none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return fields[19] if fields[0] not in "ZX" else ""
