"""Output folders on a local disk or behind any fsspec URL (s3://bucket/prefix, gs://..., memory://...).

A folder is a `Path`, or a `UPath` with the same methods. Local files get their final name by a rename; an object store
shows an object only when its upload is whole, which comes to the same.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.config import write_json as write_local_json
from qadprep.errors import RunEnded, UserError

if TYPE_CHECKING:
    from upath import UPath

    Folder = Path | UPath

UPLOAD_TRIES = 3
_EXTRAS = {"s3": "s3", "s3a": "s3"}


def open_folder(place: "str | Folder") -> "Folder":
    """The folder that a path or URL names; nothing is created.

    Listings are not cached: other machines write into the same folder.

    Raises:
        UserError: an unknown kind of URL, or one whose package is not installed.
    """
    if not isinstance(place, str) or "://" not in place:
        return Path(place) if isinstance(place, str) else place
    protocol = place.split("://", 1)[0]
    from upath import UPath

    if protocol in ("file", "local"):
        return Path(UPath(place).path)
    try:
        folder = UPath(place.rstrip("/"), use_listings_cache=False)
        folder.fs  # noqa: B018  (the file system is made on first use)
    except ImportError as error:
        package = f"'qadprep[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else f"'fsspec[{protocol}]'"
        raise UserError(f"{place}: {error}; pip install {package}") from error
    except ValueError as error:
        raise UserError(f"{place}: not a folder or URL that can be written ({error})") from error
    return folder


def is_local(folder: "Folder") -> bool:
    """Whether a folder is on a file system of this machine, network mounts included."""
    return isinstance(folder, Path)


def parallel_reads(folder: "Folder") -> int:
    """How many small reads pay off at once: a remote store answers each only after a while."""
    return 1 if is_local(folder) else 32


def write_json(path: "Folder", values: dict[str, Any]) -> None:
    """Write JSON, readable by people, so that it is there whole or not at all."""
    if is_local(path):
        write_local_json(path, values)
    else:
        path.write_bytes(dump_json(values))


def dump_json(values: dict[str, Any]) -> bytes:
    """A JSON object as `write_json` writes it."""
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def read_json(path: "Folder") -> dict[str, Any] | None:
    """A JSON object, or None where there is no readable one."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def create(path: "Folder", data: bytes) -> bool:
    """Write a small file only if there is none of that name; whether it was written by this call."""
    try:
        if is_local(path):
            with path.open("xb") as file:
                file.write(data)
        else:
            path.fs.pipe_file(path.path, data, mode="create")
    except FileExistsError:
        return False
    return True


def upload(file: Path, target: "Folder") -> None:
    """Put a local file into a remote store under its final name, in one piece.

    Raises:
        RunEnded: it could not be written after some tries.
    """
    for attempt in range(1, UPLOAD_TRIES + 1):
        try:
            target.fs.put_file(str(file), target.path)
            return
        except Exception as error:  # each kind of store has its own
            if attempt == UPLOAD_TRIES:
                cause = f"{type(error).__name__}: {error}"
                raise RunEnded(f"{target}: cannot be written ({cause}): see to the store") from error
            time.sleep(4.0 ** (attempt - 1))


def remove(path: "Folder") -> None:
    """Delete a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
