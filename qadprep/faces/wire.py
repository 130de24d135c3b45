"""How frames go to a detector process and faces come back.

Frames lie in memory that both sides map: written once, never sent. The memory belongs to no name, neither in the file
system nor in /dev/shm (whose size containers limit), so that nothing is left over however either side ends. What
goes over the connection is a few hundred bytes.
"""

import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

import numpy as np

from qadprep.faces.base import Face
from qadprep.faces.prepared import Prepared

# A request holds at most this much, unless it is a single frame; larger memory is given back after the answer.
REQUEST_BYTES_MOST = 64 << 20
_ROUNDED_TO_BYTES = 4 << 20


@dataclass(frozen=True)
class Request:
    """What is sent for some frames.

    shapes: of each frame the size (width, height) and the shapes of its pictures, which lie one behind the other in
    the memory. new_bytes: size of new memory, whose descriptor follows; 0 where the memory stays.
    """

    shapes: tuple[tuple[tuple[int, int], tuple[tuple[int, ...], ...]], ...]
    new_bytes: int


class SharedFrames:
    """One side of the memory of one client."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def send(self, connection: Connection, pictures: Sequence[Prepared]) -> None:
        """Write the pictures and send the request. MemoryError, or OSError where nobody is
        at the other end."""
        needed = bytes_of(pictures)
        new_bytes, descriptor = 0, -1
        try:
            if self._memory is None or len(self._memory) < needed:
                new_bytes = max(1, -(-needed // _ROUNDED_TO_BYTES)) * _ROUNDED_TO_BYTES
                self._memory = None
                descriptor = _nameless_memory(new_bytes)
                self._memory = mmap.mmap(descriptor, new_bytes)
            offset = 0
            for picture in pictures:
                for array in picture.arrays:
                    view = np.frombuffer(self._memory, np.uint8, array.size, offset)
                    view.reshape(array.shape)[...] = array
                    offset += array.size
            shapes = tuple((p.size_wh, tuple(array.shape for array in p.arrays)) for p in pictures)
            connection.send(Request(shapes, new_bytes))
            if new_bytes:
                send_handle(connection, descriptor, 0)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def receive(self, connection: Connection, request: Request) -> list[Prepared]:
        """The pictures of a request, which are views of the memory: valid until the answer is sent."""
        if request.new_bytes:
            self._memory = None
            descriptor = recv_handle(connection)
            try:
                self._memory = mmap.mmap(descriptor, request.new_bytes)
            finally:
                os.close(descriptor)
        pictures, offset = [], 0
        for size_wh, shapes in request.shapes:
            arrays = []
            for shape in shapes:
                arrays.append(np.frombuffer(self._memory, np.uint8, prod(shape), offset).reshape(shape))
                offset += prod(shape)
            pictures.append(Prepared(size_wh, *arrays))
        return pictures

    def shed(self) -> None:
        """Give back memory that a single huge frame asked for; both sides do so after every answer."""
        if self._memory is not None and len(self._memory) > REQUEST_BYTES_MOST:
            self._memory = None  # unmapped with the last view of it


def bytes_of(pictures: Sequence[Prepared]) -> int:
    """Memory the pictures take."""
    return sum(array.size for picture in pictures for array in picture.arrays)


def packed(faces_of_frames: list[list[Face]]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Faces of some frames as (faces a frame, float32 (n, 14) box and landmarks, float64 (n,) scores)."""
    faces = [face for of_frame in faces_of_frames for face in of_frame]
    numbers = np.zeros((len(faces), 14), np.float32)
    for row, face in zip(numbers, faces, strict=True):
        row[:4], row[4:] = face.box_xyxy, face.landmarks_xy.reshape(-1)
    return [len(of_frame) for of_frame in faces_of_frames], numbers, np.array([face.score for face in faces])


def unpacked(counts: list[int], numbers: np.ndarray, scores: np.ndarray) -> list[list[Face]]:
    """The inverse of `packed`, bit for bit."""
    faces = [Face(row[:4], row[4:].reshape(5, 2), score) for row, score in zip(numbers, scores, strict=True)]
    ends = np.cumsum(counts)
    return [faces[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _nameless_memory(size: int) -> int:
    """A descriptor of fresh shared memory."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("qadprep-frames")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)  # an error here, not a signal when the memory is written
        else:
            os.ftruncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise MemoryError(f"no {size} bytes of shared memory for frames: {error.strerror}") from error
    return descriptor
