"""One detector process for a GPU, serving many workers.

A detector in every worker would load the networks and a CUDA context (about half a gigabyte of GPU memory) once per
worker, and give the GPU a few frames at a time. Here the main process starts one process per device
(`DetectorService`); the workers get a handle (`RemoteDetector`) that is a `Detector` like any other and needs no
torch. Requests that wait at the same moment, of any workers, go through the networks together.

Everything is bounded: a worker has one request in flight, a request holds `REQUEST_BYTES_MOST`, a batch
`frames_most` frames. The answers are the detector's own, bit for bit, whoever else asks.
"""

import multiprocessing
import os
import secrets
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from qadprep.faces.base import Face, check_frames
from qadprep.faces.handshake import connect
from qadprep.faces.prepared import Prepared, Shrink
from qadprep.faces.service_process import JOIN, Statistics, serve
from qadprep.faces.wire import REQUEST_BYTES_MOST, SharedFrames, bytes_of, unpacked

_FRAMES_A_REQUEST = 32
_ANSWER_WITHIN_S = 600
_STOP_WITHIN_S = 30


class DetectorGone(Exception):
    """The detector process ended or hangs. No fault of the group at work: the run cannot go on."""


def service_wanted(device: str, workers: int) -> bool:
    """Whether detectors should run in processes of their own: on CUDA, with more than one worker."""
    return device.partition(":")[0] == "cuda" and workers > 1


def devices_of(device: str) -> list[str]:
    """The devices a name stands for: "cuda" is every GPU that torch sees, any other name is itself."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or [device]


class RemoteDetector:
    """A worker's end of a `DetectorService`: a `Detector`, and picklable. Connects at the first call."""

    def __init__(
        self,
        name: str,
        identity: dict[str, str | float | int],
        shrink: Shrink,
        devices: Sequence[str],
        addresses: Sequence[str],
        key: bytes,
    ) -> None:
        self.name = name
        self._identity = identity
        self._shrink = shrink
        self._devices = tuple(devices)
        self._addresses = tuple(addresses)
        self._key = key
        self._leave()

    def identity(self) -> dict[str, str | float | int]:
        """See `Detector.identity`: that of the detector served."""
        return dict(self._identity)

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        """See `Detector.detect`. Frames are shrunk here and looked at there.

        Raises ValueError for wrong frames, what the detector itself raises, and DetectorGone.
        """
        check_frames(frames_rgb)
        found: list[list[Face]] = []
        waiting: list[Prepared] = []
        for frame in frames_rgb:
            picture = self._shrink(frame)
            full = bytes_of([*waiting, picture]) > REQUEST_BYTES_MOST or len(waiting) == _FRAMES_A_REQUEST
            if waiting and full:
                found += self._ask(waiting)
                waiting = []
            waiting.append(picture)
        return found + (self._ask(waiting) if waiting else [])

    def _ask(self, pictures: list[Prepared]) -> list[list[Face]]:
        if self._pid != os.getpid():
            self._leave()  # a fork must not talk over its parent's connection
        try:
            if self._connection is None:
                self._connect()
            self._frames.send(self._connection, pictures)
            answer = self._answer()
        except (EOFError, OSError, multiprocessing.AuthenticationError) as error:
            self._leave()
            raise DetectorGone(_gone(self._devices[self._at], repr(error))) from error
        except BaseException:
            self._leave()  # interrupted: the answer that still comes belongs to no question
            raise
        self._frames.shed()
        if isinstance(answer, Exception):
            raise answer
        return unpacked(*answer)

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._connection = connect(self._addresses[0], self._key)
        if len(self._addresses) > 1:
            # The first process counts who comes, so that the workers spread evenly.
            self._connection.send(JOIN)
            self._at = self._answer() % len(self._addresses)
            if self._at:
                self._connection.close()
                self._connection = connect(self._addresses[self._at], self._key)

    def _answer(self) -> Any:
        if not self._connection.poll(_ANSWER_WITHIN_S):
            raise TimeoutError(f"no answer within {_ANSWER_WITHIN_S} s")
        return self._connection.recv()

    def _leave(self) -> None:
        self._connection: Connection | None = None
        self._frames = SharedFrames()
        self._pid = os.getpid()
        self._at = 0

    def __getstate__(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "identity": self._identity,
            "shrink": self._shrink,
            "devices": self._devices,
            "addresses": self._addresses,
            "key": self._key,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class DetectorService:
    """Detector processes, one per device, for as long as the `with` block lasts.

    detector, weights, options: for `qadprep.faces.make_detector`. device: one name or several. frames_most: frames
    in one batch. patience_s: how long a batch waits for the requests of other workers.

    `start` (or entering the block) raises UserError as `make_detector` does, and DetectorGone where a process ends
    while it loads. The processes end with the process that started them, however that ends (on Linux, with the thread:
    start them from one that lasts).
    """

    def __init__(
        self,
        detector: str,
        weights: Path | None = None,
        device: str | Sequence[str] = "cpu",
        *,
        frames_most: int = 64,
        patience_s: float = 0.003,
        **options: Any,
    ) -> None:
        self._devices = [device] if isinstance(device, str) else list(device)
        if not self._devices or frames_most < 1 or patience_s < 0:
            raise ValueError(
                f"expected a device, frames_most of at least 1 and patience_s of at least 0, "
                f"got {self._devices}, {frames_most} and {patience_s}"
            )
        self._key = secrets.token_bytes(32)
        self._args = (detector, weights, options, frames_most, patience_s, self._key)
        self._processes: list[multiprocessing.Process] = []
        self._controls: list[Connection] = []
        self._last: list[Statistics] = []
        self._remote: RemoteDetector | None = None

    @property
    def remote(self) -> RemoteDetector:
        """The handle to give to workers. Raises ValueError before `start`."""
        if self._remote is None:
            raise ValueError("the detector service has not been started")
        return self._remote

    @property
    def pids(self) -> list[int]:
        """Process numbers, in the order of the devices."""
        return [process.pid for process in self._processes]

    def start(self) -> None:
        """Start the processes and wait until each has loaded its detector."""
        context = multiprocessing.get_context("spawn")
        try:
            for device in self._devices:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=serve,
                    args=(os.getpid(), theirs, device, *self._args),
                    name=f"detector {device}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._controls.append(ours)
            answers = [self._first_word(number) for number in range(len(self._devices))]
        except BaseException:
            self._end()
            raise
        addresses, names, identities, shrinks = zip(*answers, strict=True)
        self._remote = RemoteDetector(names[0], identities[0], shrinks[0], self._devices, addresses, self._key)

    def check(self) -> None:
        """Raise DetectorGone, with the exit code, if a process has ended."""
        for device, process in zip(self._devices, self._processes, strict=True):
            if not process.is_alive():
                raise DetectorGone(_gone(device, f"exit code {process.exitcode}"))

    def statistics(self, within_s: float = _ANSWER_WITHIN_S) -> list[Statistics]:
        """What each process has done so far; waits for the batch at work. After the end: the last known."""
        for number, control in enumerate(self._controls):
            try:
                control.send("statistics")
                if not control.poll(within_s):
                    raise TimeoutError
                self._last[number : number + 1] = [control.recv()]
            except (EOFError, OSError):
                self._last[number : number + 1] = self._last[number : number + 1] or [Statistics(self._devices[number])]
        return list(self._last)

    def stop(self) -> None:
        """End the processes, those at work after their batch. Does no harm twice."""
        self.statistics(_STOP_WITHIN_S)
        self._end()

    def _first_word(self, number: int) -> tuple[str, str, dict[str, str | float | int], Shrink]:
        try:
            answer = self._controls[number].recv()
        except (EOFError, OSError) as error:
            self._processes[number].join(_STOP_WITHIN_S)
            exit_code = self._processes[number].exitcode
            raise DetectorGone(_gone(self._devices[number], f"exit code {exit_code} while loading")) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _end(self) -> None:
        for control in self._controls:
            control.close()  # which ends the process
        for process in self._processes:
            process.join(_STOP_WITHIN_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._controls, self._processes = [], []

    def __enter__(self) -> "DetectorService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _gone(device: str, why: str) -> str:
    return (
        f"the detector process on {device} is gone ({why}): killed, out of memory, or a crash in a driver; groups that "
        "are done are kept: run the same command again"
    )
