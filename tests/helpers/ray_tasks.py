"""Tasks for tests of the Ray engine, importable by its workers."""

import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qadprep.faces import Face

_state: dict[str, object] = {}


def set_up(word: str) -> None:
    if word == "fails":
        raise FileNotFoundError("no such root")
    _state["word"] = word
    _state["times"] = int(_state.get("times", 0)) + 1


def said(number: int) -> tuple[str, int, int]:
    """The set-up's word, how often it ran in this process, the number."""
    return str(_state["word"]), int(_state["times"]), number


def where(_number: int) -> tuple[str, str]:
    """This worker's interpreter and working folder."""
    return sys.executable, str(Path.cwd())


def square(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    if number == 28:
        raise OSError(errno.ENOSPC, "No space left on device", "/out/28.tar")
    return number * number


def dies(task: tuple[int, str]) -> int:
    """Kills its process whenever it is 7; 8 only the first time."""
    number, folder = task
    mark = Path(folder) / f"{number}-{time.monotonic_ns()}"
    first = not list(Path(folder).glob(f"{number}-*"))
    mark.touch()
    if number == 7 or (number == 8 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


class Boxes:
    """A detector whose answer shows which frame it was asked about, and which process answered."""

    name = "boxes"

    def identity(self) -> dict[str, str | float | int]:
        return {"name": self.name, "version": 3}

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        points = np.array([[1, 1], [3, 1], [2, 2], [1, 3], [3, 3]])
        return [[Face(np.array([0, 0, 4, int(frame[0, 0, 0]) + 1]), points, 0.5)] for frame in frames_rgb]


def make_boxes(name: str, weights: Path | None, device: str, precision: str) -> Boxes:
    return Boxes()


_remote: dict[str, object] = {}


def take(detector: object) -> None:
    _remote["detector"] = detector


def heights(value: int) -> list[float]:
    frames = [np.full((8, 9, 3), value + index, np.uint8) for index in range(3)]
    return [float(faces[0].box_xyxy[3]) for faces in _remote["detector"].detect(frames)]
