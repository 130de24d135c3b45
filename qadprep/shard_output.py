"""The folder of a shard set while it is written: what lies there already, and what is put there in which order."""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.errors import UserError
from qadprep.shard_format import CONFIG_NAME, INDEX_NAME, SHARD_FILE
from qadprep.shard_writer import ENTRIES, put_json
from qadprep.store import is_local, parallel_reads, read_json, remove, upload
from qadprep.ustar import remove_leftovers, sync_folder

if TYPE_CHECKING:
    from qadprep.store import Folder

_PLAN_PREFIX = ".plan-"


@contextlib.contextmanager
def scratch_beside(out: "Folder", *, inside: bool) -> Iterator[Path]:
    """A local folder for plans and half-made files, gone at the end.

    Args:
        inside: put it into `out` where that is local: then its files can be renamed into place.
    """
    if inside and is_local(out):
        scratch = out / f"{_PLAN_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        scratch.mkdir()
    else:
        scratch = Path(tempfile.mkdtemp(prefix="qadprep-shard-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_foreign(out: "Folder") -> None:
    """A folder that this command did not write keeps its files, whatever their names.

    Raises:
        UserError: there are such files.
    """
    names = _names(out)
    if CONFIG_NAME in names:
        return
    strange = [name for name in names if not name.startswith(".")]
    if strange:
        raise UserError(
            f"{out}: holds other files ({strange[0]} ...) and no {CONFIG_NAME}; choose a new or empty folder for --out"
        )


def clear_leftovers(out: "Folder") -> None:
    """Delete what killed runs left half-made. To be called by the folder's sole user only."""
    if is_local(out):
        remove_leftovers(out)
        remove_leftovers(out / ENTRIES)
        for folder in out.glob(f"{_PLAN_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)


def clear_shards(out: "Folder", kept: set[str]) -> None:
    """Delete shard files and entries but those of some shards. Until `shards.json` is back there is no shard set.

    Args:
        kept: names such as `train-000000`.
    """
    remove(out / INDEX_NAME)
    for folder in (out, out / ENTRIES):
        for name in _names(folder):
            stem, _, kind = name.partition(".")
            ours = SHARD_FILE.fullmatch(name) or (folder != out and kind == "json")
            if ours and stem not in kept:
                remove(folder / name)


def clear_entries(out: "Folder") -> None:
    """Delete the entries: `shards.json` says it all now."""
    if is_local(out):
        shutil.rmtree(out / ENTRIES, ignore_errors=True)
        return
    for name in _names(out / ENTRIES):
        remove(out / ENTRIES / name)


def finished_entries(out: "Folder") -> dict[str, dict[str, Any]]:
    """Shard name -> what a run noted when the shard was finished: `plan` (digest), `entry`; only where the files have
    the sizes that were noted.
    """
    sizes = _sizes(out)
    paths = [out / ENTRIES / name for name in _names(out / ENTRIES) if name.endswith(".json")]
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
    sizes = _sizes(out)

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
    return sorted(_sizes(folder))


def _sizes(folder: "Folder") -> dict[str, int]:
    """Name -> bytes of what lies in a folder, by one listing; empty where there is no folder."""
    if is_local(folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in found}
        return {}
    try:
        listed = folder.fs.ls(folder.path, detail=True, refresh=True)
    except FileNotFoundError:
        return {}
    except TypeError:  # not every store knows `refresh`
        listed = folder.fs.ls(folder.path, detail=True)
    return {item["name"].rstrip("/").rsplit("/", 1)[-1]: item["size"] or 0 for item in listed}
