"""Files of a shard set that is written out of others: copied, linked, put in place whole."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from qadprep.errors import UserError
from qadprep.shard_format import INDEX_NAME
from qadprep.shard_output import file_sizes
from qadprep.store import is_local, upload
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.store import Folder

_CHUNK_BYTES = 1 << 20


def copy_file(source: "Folder", target: "Folder", entry: dict[str, Any], sha256: str) -> None:
    """Copy a file whose sha256 is known; its size, and `md5sum` where that is not known, go into its entry.

    Raises:
        UserError: the source is missing or not what was written; nothing is left at the target then.
    """
    digest = hashlib.sha256()
    md5 = None if entry.get("md5sum") else hashlib.md5(usedforsecurity=False)
    size = 0
    try:
        with source.open("rb") as reading, new_file(target) as file:
            while chunk := reading.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if md5:
                    md5.update(chunk)
            if digest.hexdigest() != sha256:
                raise UserError(
                    f"{source}: sha256 is {digest.hexdigest()[:12]}…, {INDEX_NAME} says {sha256[:12]}…; mend the set "
                    "with `qadprep verify --repair`"
                )
    except FileNotFoundError:
        raise UserError(f"{source}: not there; the shard set is incomplete") from None
    entry["filesize"] = size
    if md5:
        entry["md5sum"] = md5.hexdigest()


def linked(source: "Folder", target: "Folder", filesize: int | None) -> bool:
    """Give a local file a second name; False where that cannot be, or where its size is not the one that is known."""
    if not (is_local(source) and is_local(target)):
        return False
    try:
        if filesize not in (None, source.stat().st_size):
            return False  # the copy says what is wrong with it
        os.link(source.resolve(), target)  # what a link names, not the link
    except OSError:
        return False
    return True


@contextlib.contextmanager
def new_file(path: "Folder") -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole, on a disk or in a store."""
    if is_local(path):
        with atomic_file(path) as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix="qadprep-") as scratch:
        local = Path(scratch) / path.name
        with local.open("wb") as file:
            yield file
        upload(local, path)


def same_folder(one: "Folder", other: "Folder") -> bool:
    """Whether two paths or URLs name one folder."""
    if is_local(one) and is_local(other):
        return one.resolve() == other.resolve()
    return str(one).rstrip("/") == str(other).rstrip("/")


def refuse_source(out: "Folder", sources: "Iterable[Folder]") -> None:
    """What is read is not written over.

    Raises:
        UserError: `out` is the folder of a source.
    """
    for source in sources:
        if same_folder(out, source):
            raise UserError(f"{out}: is one of the sets that are read; choose another --out")


def refuse_unreadable(out: "Folder", files: "Iterable[tuple[Folder, dict[str, Any]]]") -> None:
    """Nothing in `out` is given up for sources that are not all there.

    Args:
        files: (folder, entry in `shards.json`) of the shards that will be read.

    Raises:
        UserError: one is missing, has another size, cannot be read, or is a link to a file in `out` itself.
    """
    sizes: dict[Folder, dict[str, int]] = {}
    for folder, entry in files:
        if folder not in sizes:
            sizes[folder] = file_sizes(folder)
        file, size = folder / entry["url"], sizes[folder].get(entry["url"], -1)
        if size < 0:
            raise UserError(f"{file}: not there; the shard set is incomplete")
        if entry.get("filesize") not in (None, size):
            raise UserError(
                f"{file}: has {size} bytes, {INDEX_NAME} says {entry['filesize']}; mend the set with `qadprep verify "
                "--repair`"
            )
        if is_local(file):
            _refuse_unreadable_file(file, out)


def _refuse_unreadable_file(file: Path, out: "Folder") -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    place = file
    while place.is_symlink():  # to its end, as it could be opened
        place = place.parent / place.readlink()
        if is_local(out) and same_folder(place.parent, out):
            raise UserError(f"{file}: is a link into {out}, whose files would be written anew; choose another --out")
