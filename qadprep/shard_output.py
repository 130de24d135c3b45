"""The folder of a shard set while it is written: what lies there already, and what is put there in which order."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.errors import UserError
from qadprep.lease import LOCK_NAME
from qadprep.locks import Held, drop_lock_file, sole_user
from qadprep.scratch import temporary_folder
from qadprep.shard_format import CARD_NAME, CONFIG_NAME, INDEX_NAME, SHARD_FILE, SPLIT
from qadprep.shard_writer import ENTRIES, put_json
from qadprep.store import is_local, parallel_reads, read_json, remove, upload
from qadprep.ustar import sync_folder

if TYPE_CHECKING:
    from qadprep.store import Folder

# What this code calls its temporary files and folders; whatever else has a hidden name belongs to somebody else.
_MADE = r"\.[0-9]+-[0-9a-f]{8}\.tmp"
_FILES = "|".join(map(re.escape, (CARD_NAME, CONFIG_NAME, INDEX_NAME, LOCK_NAME)))
_PLAN_FOLDER = re.compile(r"\.plan-[0-9]+-[0-9a-f]{8}")
_HALF_FILE = re.compile(rf"\.({SHARD_FILE.pattern}|{_FILES}){_MADE}")
_NOTE = re.compile(rf"({SPLIT.pattern}-[0-9]{{6}})\.json")
_HALF_NOTE = re.compile(rf"\.{_NOTE.pattern}{_MADE}")


@contextlib.contextmanager
def output_folder(out: "Folder") -> Iterator[Held]:
    """Be the sole user of a set's folder. At the end its lock is gone, and so is the folder where it is new and empty.

    Raises:
        UserError: another run is writing or reading there, or nothing can be written there.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()] if is_local(out) else []
    with sole_user(out) as held:
        try:
            yield held
        finally:
            drop_lock_file(out)
            with contextlib.suppress(OSError):  # it is not empty
                for folder in new:
                    folder.rmdir()


@contextlib.contextmanager
def scratch_beside(out: "Folder", *, inside: bool) -> Iterator[Path]:
    """A local folder for plans and half-made files, gone at the end.

    Args:
        inside: put it into `out` where that is local: then its files can be renamed into place.
    """
    with contextlib.ExitStack() as stack:
        if inside and is_local(out):
            scratch = out / f".plan-{os.getpid()}-{secrets.token_hex(4)}"
            scratch.mkdir()
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        else:
            scratch = stack.enter_context(temporary_folder())
        yield scratch


def refuse_foreign(out: "Folder") -> None:
    """A folder that this command did not write keeps its files, whatever their names.

    Raises:
        UserError: there are such files.
    """
    names = _names(out)
    if CONFIG_NAME in names:
        return
    strange = [name for name in names if not name.startswith(".") or name == ENTRIES]
    if strange:
        raise UserError(
            f"{out}: holds other files ({strange[0]} ...) and no {CONFIG_NAME}; choose a new or empty folder for --out"
        )


def clear_leftovers(out: "Folder") -> None:
    """Delete what killed runs left half-made. To be called by the folder's sole user only."""
    if not is_local(out):
        return
    for folder, half in ((out, _HALF_FILE), (out / ENTRIES, _HALF_NOTE)):
        for name in _names(folder):
            if half.fullmatch(name):
                remove(folder / name)
            elif folder is out and _PLAN_FOLDER.fullmatch(name):
                shutil.rmtree(folder / name, ignore_errors=True)


def clear_shards(out: "Folder", kept: set[str]) -> None:
    """Delete shard files and entries but those of some shards. Until `shards.json` is back there is no shard set.

    Args:
        kept: names such as `train-000000`.
    """
    remove(out / INDEX_NAME)
    for folder, ours in ((out, SHARD_FILE), (out / ENTRIES, _NOTE)):
        for name in _names(folder):
            if ours.fullmatch(name) and name.partition(".")[0] not in kept:
                remove(folder / name)


def clear_entries(out: "Folder") -> None:
    """Delete the entries: `shards.json` says it all now."""
    for name in _names(out / ENTRIES):
        if _NOTE.fullmatch(name):
            remove(out / ENTRIES / name)
    if is_local(out):
        with contextlib.suppress(OSError):  # somebody else's file is in it
            (out / ENTRIES).rmdir()


def clear_set(out: "Folder") -> None:
    """Delete a whole set, and its folder where nothing else is in it. To be called by the folder's sole user only."""
    clear_shards(out, set())
    clear_leftovers(out)
    clear_entries(out)
    for name in (CARD_NAME, CONFIG_NAME):  # by the latter the folder is known as ours
        remove(out / name)
    if is_local(out):
        drop_lock_file(out)
        with contextlib.suppress(OSError):
            out.rmdir()


def finished_entries(out: "Folder") -> dict[str, dict[str, Any]]:
    """Shard name -> what a run noted when the shard was finished: `plan` (digest), `entry`; only where the files have
    the sizes that were noted.
    """
    sizes = file_sizes(out)
    paths = [out / ENTRIES / name for name in _names(out / ENTRIES) if _NOTE.fullmatch(name)]
    with ThreadPoolExecutor(parallel_reads(out)) as pool:
        noted = dict(zip((path.stem for path in paths), pool.map(read_json, paths), strict=True))
    found = {}
    for name, note in noted.items():
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            if note and all(sizes.get(file) == size for file, size in note["sizes"].items()):
                found[name] = {"plan": note["plan"], "entry": dict(note["entry"])}
    return found


def whole_shards(out: "Folder", info: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, int]]]:
    """Shard name -> (its entry in `shards.json`, sizes of its files), of a finished set's shards whose tar has the
    size and whose index has the hash that `shards.json` says.
    """
    sizes = file_sizes(out)

    def is_whole(entry: dict[str, Any]) -> bool:
        try:
            if sizes.get(entry["url"]) != entry["filesize"] or entry["index"] not in sizes:
                return False
            return hashlib.sha256((out / entry["index"]).read_bytes()).hexdigest() == entry["index_sha256"]
        except (OSError, KeyError):
            return False

    shards = info.get("shardlist", [])
    with ThreadPoolExecutor(parallel_reads(out)) as pool:
        whole = list(pool.map(is_whole, shards))
    return {
        entry["url"].removesuffix(".tar"): (entry, {name: sizes[name] for name in (entry["url"], entry["index"])})
        for entry, good in zip(shards, whole, strict=True)
        if good
    }


def put(file: Path, target: "Folder") -> None:
    """Put a local file of the scratch folder in place, whole or not at all."""
    if is_local(target):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        file.replace(target)
        sync_folder(target.parent)
    else:
        upload(file, target)
        file.unlink()


def note_finished(out: "Folder", scratch: Path, digest: str, entry: dict[str, Any], sizes: dict[str, int]) -> None:
    """Note a shard as finished, as `write_shard` does."""
    if is_local(out):
        (out / ENTRIES).mkdir(exist_ok=True)
    name = entry["url"].removesuffix(".tar")
    put_json(scratch, out / ENTRIES / f"{name}.json", {"plan": digest, "sizes": sizes, "entry": entry})


def _names(folder: "Folder") -> list[str]:
    return sorted(file_sizes(folder))


def file_sizes(folder: "Folder") -> dict[str, int]:
    """Name -> bytes of what lies in a folder, by one listing; empty where there is no folder.

    A link has the size of the file that it names, and -1 where there is none.
    """
    if is_local(folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
            return {entry.name: _size(entry) for entry in found}
        return {}
    try:
        listed = folder.fs.ls(folder.path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    except TypeError:  # not every store knows `refresh`
        listed = folder.fs.ls(folder.path, detail=True)
    return {item["name"].rstrip("/").rsplit("/", 1)[-1]: item["size"] or 0 for item in listed}


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1
