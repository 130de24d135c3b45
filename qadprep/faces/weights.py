"""Published detector weights: where they are kept, how they are fetched, checked and read.

What is checked: the file name of the RetinaFace release carries the first nine hex digits of a hash
("...-f168fae3c.zip"), in the naming scheme of `torch.hub`, where they are the start of the SHA-256 of the
file. No full SHA-256 is published with it, and the release does not say whether the archive or the weights
file inside it was hashed. A file taken from the release or from the cache is therefore accepted if the
SHA-256 of the archive, or that of the one file in it, starts with these digits: enough against damage and
mix-ups, not against forgery. A file given by the user is not held against them; its full SHA-256 goes into
the detector's identity in any case.

Nothing here runs code from a file: archives are read in memory and weights with `weights_only=True`.
"""

import hashlib
import http.client
import io
import os
import sys
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qadprep.errors import UserError

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30
# RetinaFace's are 110 MB; anything near this is not a detector.
_BYTES_MOST = 1 << 30


@dataclass(frozen=True)
class Published:
    """A file that somebody else publishes."""

    title: str
    url: str
    file_name: str
    sha256_prefix: str


RETINAFACE = Published(
    title="RetinaFace weights",
    url="https://github.com/ternaus/retinaface/releases/download/0.01/retinaface_resnet50_2020-07-20-f168fae3c.zip",
    file_name="retinaface_resnet50_2020-07-20-f168fae3c.zip",
    sha256_prefix="f168fae3c",
)


def cache_folder() -> Path:
    """`$QADPREP_CACHE`, or `~/.cache/qadprep`. Need not exist."""
    chosen = os.environ.get("QADPREP_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "qadprep"


def cached_weights(published: Published = RETINAFACE) -> Path:
    """Where the published file is kept, whether or not it is there."""
    return cache_folder() / published.file_name


def fetch(published: Published) -> Path:
    """The published file in the cache: found there or downloaded, and checked (see above) in both cases.

    A download goes to a temporary name beside the target and is renamed when it is whole and checked, so an
    interrupted one leaves nothing. Progress goes to stderr. Raises UserError where the file cannot be had or
    is not the published one.
    """
    path = cached_weights(published)
    if path.is_file():
        _check_hash(path, published, f"delete {path} to download it anew")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_beside(path) as partial:
            _download(published, partial)
            _check_hash(partial, published, "the download is damaged or was replaced: try again")
            partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise UserError(
            f"cannot download {published.title} from {published.url}: {reason}; fetch the file elsewhere, "
            f"then pass it as --weights FILE or put it at {path}"
        ) from error
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state_dict(path: Path) -> "dict[str, torch.Tensor]":
    """Read weights: a `.safetensors`, a file that `torch.save` wrote, or a zip archive with one such file in
    it.

    Returns name -> tensor, on the CPU. Raises UserError, one line, for anything else.
    """
    import safetensors
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        inner = _file_in_archive(path)
        state = torch.load(inner or path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # torch.load answers damaged input with nearly any exception
        first_line = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} is not a readable weights file ({type(error).__name__}: {first_line}); expected a "
            ".safetensors, a .pth written by torch.save, or a .zip with one .pth in it"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict: expected names with tensors, got {type(state).__name__}")
    return dict(state)


def _file_in_archive(path: Path) -> io.BytesIO | None:
    """The contents of the one file in an outer zip archive; None where the file is no such archive.

    What `torch.save` writes is a zip archive too; it is told by its `data.pkl`.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if any(Path(member.filename).name == "data.pkl" for member in members):
            return None
        if len(members) != 1:
            raise UserError(f"{path}: expected a .zip with one weights file in it, got {len(members)} files")
        if members[0].file_size > _BYTES_MOST:
            raise UserError(
                f"{path}: {members[0].filename} claims {members[0].file_size} bytes, more than {_BYTES_MOST}"
            )
        return io.BytesIO(archive.read(members[0]))


def _check_hash(path: Path, published: Published, advice: str) -> None:
    """Raise UserError unless the file, or the one file in it, has the published start of a SHA-256."""
    outer = sha256_of(path)
    if outer.startswith(published.sha256_prefix):
        return
    try:
        inner = _file_in_archive(path)
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError):
        inner = None
    if inner is not None and hashlib.sha256(inner.getbuffer()).hexdigest().startswith(published.sha256_prefix):
        return
    raise UserError(
        f"{published.title} have the wrong sha256: expected {published.sha256_prefix}..., got {outer}; "
        f"{advice}, or pass a file that you trust as --weights FILE"
    )


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A fresh file name in the same folder, gone afterwards unless it was renamed."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _download(published: Published, target: Path) -> None:
    """Write the bytes at the URL to `target`; OSError where they cannot be had in full."""
    request = urllib.request.Request(published.url, headers={"User-Agent": "qadprep"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, target.open("wb") as out:
        length = response.headers.get("Content-Length")
        expected = int(length) if length and length.isdecimal() else None
        done = 0
        while chunk := response.read(_CHUNK_BYTES):
            done += len(chunk)
            if done > _BYTES_MOST:
                raise OSError(f"more than {_BYTES_MOST} bytes")
            out.write(chunk)
            _show_progress(published.title, done, expected)
        if sys.stderr.isatty():
            print(file=sys.stderr)
        if expected is not None and done != expected:
            raise OSError(f"the connection broke after {done} of {expected} bytes")
        out.flush()
        os.fsync(out.fileno())
    if not sys.stderr.isatty():
        print(f"downloaded {published.title}: {done / 1e6:.1f} MB from {published.url}", file=sys.stderr)


def _show_progress(title: str, done: int, expected: int | None) -> None:
    """Rewrite one line on a terminal; a log file gets a single line at the end instead."""
    if sys.stderr.isatty():
        total = f" of {expected / 1e6:.1f}" if expected else ""
        print(f"\rdownloading {title}: {done / 1e6:.1f}{total} MB", end="", file=sys.stderr, flush=True)
