"""Read a shard from its beginning to its end, or at some places, locally or behind a URL."""

import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.store import is_local
from qadprep.ustar import BLOCK

if TYPE_CHECKING:
    from qadprep.store import Folder

# Read at once: enough for numpy to work on many headers, little enough to stay in the processor's caches.
CHUNK_BYTES = 4 << 20


class ShardFile:
    """A shard that is read from its beginning to its end, or at some places, into one buffer.

    Raises:
        OSError: not there, or not a plain file.
    """

    def __init__(self, file: "Folder") -> None:
        self._local = is_local(file)
        self._buffer = bytearray(0)
        if self._local:
            # A pipe would be waited for.
            if not stat.S_ISREG(file.stat().st_mode):
                raise OSError(f"{file.name} is not a plain file")
            self._handle: Any = os.open(file, os.O_RDONLY)
            self.size = os.fstat(self._handle).st_size
        else:
            self._handle = file.open("rb", block_size=2 * CHUNK_BYTES)
            self.size = self._handle.seek(0, os.SEEK_END)

    def read(self, start: int, length: int) -> memoryview:
        """Bytes of the file, valid until the next call.

        Raises:
            OSError: the file ends before; it was changed meanwhile.
        """
        if len(self._buffer) < length:
            self._buffer = bytearray(max(length, CHUNK_BYTES))
        view = memoryview(self._buffer)[:length]
        done = 0
        if not self._local:
            self._handle.seek(start)
        while done < length:
            part = view[done:]
            got = os.preadv(self._handle, [part], start + done) if self._local else self._handle.readinto(part)
            if not got:
                raise OSError(f"ends at byte {start + done}, it had {self.size} bytes before")
            done += got
        return view.toreadonly()

    def headers(self, places: np.ndarray) -> np.ndarray:
        """uint8 (n, 512), the blocks at these bytes; reads nothing else of a local file."""
        if self._local:
            blocks = b"".join(os.pread(self._handle, BLOCK, place) for place in places.tolist())
            return np.frombuffer(blocks, np.uint8).reshape(len(places), BLOCK)
        first = int(places[0])
        return blocks_at(self.read(first, int(places[-1]) + BLOCK - first), places - first)

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._local:
            os.close(self._handle)
        else:
            self._handle.close()


def blocks_at(data: memoryview, places: np.ndarray) -> np.ndarray:
    """uint8 (n, 512), the blocks of tar that begin at these places of the data."""
    return np.frombuffer(data, np.uint8)[places[:, None] + np.arange(BLOCK)]
