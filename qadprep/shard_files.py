"""Bytes out of a shard set's tars, wherever they lie: local files, a cache of whole shards, or range requests."""

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.cache import default_folder, mark_used, sole_maker, trim
from qadprep.errors import RunEnded, UserError
from qadprep.shard_format import INDEX_NAME
from qadprep.store import is_local
from qadprep.ustar import atomic_file, remove_leftovers

if TYPE_CHECKING:
    from qadprep.store import Folder

CACHE_BYTES = 50_000_000_000
MAX_HANDLES = 512
_TRIES = 3
_CHUNK_BYTES = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ShardError(UserError):
    """A damaged or missing tuple or shard; the message names the shard, and of a tuple the key and the byte offset."""


class ShardFiles:
    """Positioned reads from the tars of a shard set.

    Local tars are read in place. Of a remote set a whole shard is fetched when first needed, checked by its sha256 and
    kept in a cache folder that processes share; without a cache each read is a range request.

    Safe between threads, and in forked and spawned processes.

    Args:
        folder: of the shard set.
        entries: of the shards in `shards.json`; reads name a shard by its place here.
        cache_dir: for shards of a remote set, `<sha256>.tar` each; None takes `$XDG_CACHE_HOME/qadprep/shards`.
        cache_bytes: most bytes of shards in the cache folder; the least recently used are deleted. 0: no cache.
        handles: most files open at once in a process.

    Raises:
        UserError: the cache folder of a remote set cannot be made.
    """

    def __init__(
        self,
        folder: "Folder",
        entries: Sequence[dict[str, Any]],
        *,
        cache_dir: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        handles: int = MAX_HANDLES,
    ) -> None:
        self._folder, self._entries = folder, entries
        self._cache_bytes, self._most_handles = cache_bytes, handles
        self._cache: Path | None = None
        self._written = _stamp(folder) if is_local(folder) else None
        if not is_local(folder) and cache_bytes:
            self._cache = cache_dir or default_folder("shards")
            try:
                self._cache.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self._cache}: cannot hold shards ({error.strerror}); choose another cache_dir, or cache_bytes=0"
                ) from error
        # Where no handle is ever closed to make room, the order of their use does not matter.
        self._many = len(entries) > handles
        self._ranges = self._cache is None and not is_local(folder)
        self._start()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes of a shard; fewer than `length` where it ends before.

        Raises:
            ShardError: the shard is missing, unreadable, or not the one that `shards.json` describes.
            RunEnded: the disk of the cache is full.
        """
        if self._process != _Process.number:
            self._start()
        if self._ranges:
            return self._range(shard, offset, length)
        # Held here, so that no other thread's opening of files can close it.
        handle = self._handle(shard) if self._many else self._open.get(shard) or self._handle(shard)
        try:
            return os.pread(handle.number, length, offset)
        except (OSError, OverflowError) as error:
            raise ShardError(f"{self._place(shard)}: not readable at byte {offset} ({error})") from error

    def close(self) -> None:
        """Close this process's handles; a later read opens them again."""
        with self._lock:
            self._open.clear()

    @property
    def open_handles(self) -> int:
        """Number of files open in this process."""
        return len(self._open)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_open", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        """Begin anew in this process: locks and connections to a store do not survive a fork."""
        if not is_local(self._folder) and hasattr(self, "_process"):
            from upath import UPath

            self._folder = UPath(str(self._folder), **self._folder.storage_options)
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Handle] = OrderedDict()
        self._process = _Process.number

    def _place(self, shard: int) -> "Folder":
        return self._folder / self._entries[shard]["url"]

    def _handle(self, shard: int) -> "_Handle":
        with self._lock:
            handle = self._open.get(shard)
            if handle is not None:
                self._open.move_to_end(shard)
                return handle
        opened = self._opened(shard)  # outside of the lock: it may have to be fetched
        with self._lock:
            handle = self._open.setdefault(shard, opened)
            if self._cache is not None:
                # A file that was deleted to make room takes its room until it is closed.
                gone = [number for number, other in self._open.items() if not os.fstat(other.number).st_nlink]
                for number in gone:
                    if number != shard:
                        del self._open[number]
            while len(self._open) > self._most_handles:
                self._open.popitem(last=False)
        return handle

    def _opened(self, shard: int) -> "_Handle":
        if self._cache is None:
            file = self._place(shard)
            if _stamp(self._folder) != self._written:
                raise ShardError(f"{self._folder}: was written anew since it was opened; open it again")
            try:
                return self._open_file(file)
            except OSError as error:
                raise ShardError(f"{file}: {error.strerror}; the shard set is incomplete") from error
        for _ in range(_TRIES):
            file = self._fetched(shard, self._cache)
            # Another process may have made room by deleting it.
            with contextlib.suppress(FileNotFoundError):
                handle = self._open_file(file)
                mark_used(file)
                return handle
        raise ShardError(f"{file}: is deleted again and again; give the cache more room (cache_bytes)")

    def _open_file(self, file: Path) -> "_Handle":
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            return _Handle(os.open(file, flags))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self.close()
        return _Handle(os.open(file, flags))

    def _fetched(self, shard: int, cache: Path) -> Path:
        """The shard's file in the cache, fetched when it is not there."""
        entry = self._entries[shard]
        file = cache / f"{entry['sha256']}.tar"
        if _is_whole(file, entry):
            return file
        try:
            with sole_maker(file):
                if not _is_whole(file, entry):
                    trim(cache, (".tar",), max(0, self._cache_bytes - (entry.get("filesize") or 0)))
                    remove_leftovers(cache, {file.stem})
                    self._fetch(shard, file)
                    trim(cache, (".tar",), self._cache_bytes, keep=file)
        except OSError as error:
            if error.errno in _FULL:
                why = f"{error.strerror} while a shard was fetched"
                raise RunEnded(f"{cache}: {why}: choose another cache_dir or smaller cache_bytes") from error
            raise UserError(f"{cache}: cannot hold shards ({error.strerror}); choose another cache_dir") from error
        return file

    def _fetch(self, shard: int, file: Path) -> None:
        source, expected = self._place(shard), self._entries[shard]["sha256"]

        def copy() -> str:
            digest = hashlib.sha256()
            target.seek(0)
            target.truncate()
            with source.fs.open(source.path, "rb", block_size=_CHUNK_BYTES) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    try:
                        target.write(chunk)
                    except OSError as error:
                        raise _LocalFault(error) from error
            return digest.hexdigest()

        with atomic_file(file) as target:
            found = self._patiently(shard, copy)
            if found != expected:
                raise ShardError(
                    f"{source}: sha256 is {found[:12]}…, {INDEX_NAME} says {expected[:12]}…; it is damaged, or was "
                    "written anew since the set was opened"
                )

    def _range(self, shard: int, offset: int, length: int) -> bytes:
        if offset < 0:
            raise ShardError(f"{self._place(shard)}: not readable at byte {offset}")
        place = self._place(shard)
        return self._patiently(shard, lambda: place.fs.cat_file(place.path, start=offset, end=offset + length))

    def _patiently(self, shard: int, ask: Callable[[], Any]) -> Any:
        """Ask a store, again after a while when it fails.

        Raises:
            ShardError: it keeps failing, or says that the shard is not there.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                return ask()
            except _LocalFault as fault:
                raise fault.error from None
            except FileNotFoundError as error:
                raise ShardError(f"{self._place(shard)}: not there; the shard set is incomplete") from error
            except Exception as error:  # each kind of store has its own
                if attempt == _TRIES:
                    cause = f"{type(error).__name__}: {error}"
                    raise ShardError(f"{self._place(shard)}: cannot be read ({cause}): see to the store") from error
                time.sleep(0.5 * 4.0 ** (attempt - 1))
        raise AssertionError("not reached")


class _Process:
    """Tells a process from those it was forked from, cheaper than its id does."""

    number = 0

    @classmethod
    def forked(cls) -> None:
        cls.number += 1


os.register_at_fork(after_in_child=_Process.forked)


class _Handle:
    """A file descriptor that is closed when nobody has it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


class _LocalFault(Exception):
    """An error of the cache's disk, not of the store."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """Tells one writing of a local set from another; None where there is none."""
    try:
        state = (folder / INDEX_NAME).stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def _is_whole(file: Path, entry: dict[str, Any]) -> bool:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return False
    return entry.get("filesize") in (None, size)
