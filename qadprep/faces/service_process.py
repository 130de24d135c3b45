"""What runs in a detector process: gather requests, detect, answer. See `qadprep.faces.service`."""

import contextlib
import ctypes
import os
import pickle
import queue
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Protocol

from qadprep.faces.base import Face
from qadprep.faces.handshake import listen, welcome
from qadprep.faces.prepared import Prepared, Shrink
from qadprep.faces.wire import SharedFrames, packed

JOIN = "join"


@dataclass(frozen=True)
class Statistics:
    """What a detector process has done.

    largest_batch: frames. seconds_busy: wall-clock time in the detector. seconds: since it was ready.
    """

    device: str
    frames: int = 0
    requests: int = 0
    batches: int = 0
    largest_batch: int = 0
    errors: int = 0
    clients: int = 0
    seconds_busy: float = 0.0
    seconds: float = 0.0

    @property
    def use(self) -> float:
        """Share of its time in which the detector was at work, 0..1."""
        return self.seconds_busy / self.seconds if self.seconds else 0.0


class Served(Protocol):
    """A detector that can be served."""

    name: str
    shrink: Shrink

    def identity(self) -> dict[str, str | float | int]: ...

    def detect_prepared(self, pictures: list[Prepared]) -> list[list[Face]]: ...


def serve(
    parent: int,
    control: Connection,
    device: str,
    detector: str,
    weights: Path | None,
    options: dict[str, Any],
    frames_most: int,
    patience_s: float,
    key: bytes,
) -> None:
    """Main function of a detector process; ends when the other end of `control` is closed or its parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: Linux only
    if os.getppid() != parent:
        os._exit(1)  # the parent was gone before the line above took effect
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import cv2
        import torch

        from qadprep.faces import make_detector

        # One thread, as in the workers: float results may depend on the number of threads.
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        loaded = make_detector(detector, weights, device, **options)
    except Exception as error:
        control.send(_sendable(error))
        return
    with contextlib.ExitStack() as stack:
        address = _address(stack)
        listener = stack.enter_context(listen(address))
        control.send((address, loaded.name, loaded.identity(), loaded.shrink))
        Server(loaded, listener, key, control, device, frames_most, patience_s).run()


class Server:
    """The loop of a detector process."""

    def __init__(
        self,
        detector: Served,
        listener: socket.socket,
        key: bytes,
        control: Connection,
        device: str,
        frames_most: int,
        patience_s: float,
    ) -> None:
        self._detector = detector
        self._listener = listener
        self._key = key
        self._control = control
        self._frames_most = frames_most
        self._patience_s = patience_s
        self._statistics = Statistics(device)
        self._start = time.monotonic()
        self._clients: dict[Connection, SharedFrames] = {}
        self._joined = 0
        self._arrivals: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._bell, self._ring = Pipe(duplex=False)

    def run(self) -> None:
        """Serve until the control connection closes."""
        # A handshake takes a moment and may fail: it must not hold up those who wait for faces.
        threading.Thread(target=self._accept, daemon=True).start()
        while True:
            try:
                requests = self._gather()
            except (EOFError, OSError):
                return  # nobody holds the other end
            self._answer(requests)

    def _accept(self) -> None:
        while True:
            try:
                connection = welcome(self._listener.accept()[0], self._key)
            except (AuthenticationError, EOFError, OSError):
                time.sleep(0.01)
                continue
            self._arrivals.put(connection)
            self._ring.send_bytes(b"")

    def _gather(self) -> dict[Connection, list[Prepared]]:
        """The requests of one batch: those waiting, and those that come within the patience, up to the limit."""
        requests: dict[Connection, list[Prepared]] = {}
        until = None
        while True:
            others = [client for client in self._clients if client not in requests]
            frames = sum(len(pictures) for pictures in requests.values())
            if requests and (frames >= self._frames_most or not others):
                return requests
            left_s = None if until is None else max(0.0, until - time.monotonic())
            ready = wait([self._control, self._bell, *others], left_s)
            if self._control in ready:
                self._control.recv()
                self._control.send(self._now())
            if self._bell in ready:
                self._bell.recv_bytes()
                self._clients[self._arrivals.get()] = SharedFrames()
                self._statistics = replace(self._statistics, clients=self._statistics.clients + 1)
            for client in others:  # in the order of waiting, so that nobody is passed over
                if client in ready and frames < self._frames_most:
                    pictures = self._read(client)
                    if pictures is not None:
                        requests[client] = pictures
                        frames += len(pictures)
            if requests and until is None:
                until = time.monotonic() + self._patience_s
            if requests and not ready:
                return requests

    def _read(self, client: Connection) -> list[Prepared] | None:
        """One client's request; None where it left, or where the message was no request."""
        try:
            message = client.recv()
            if message == JOIN:
                self._joined += 1
                client.send(self._joined - 1)
                return None
            return self._clients[client].receive(client, message)
        except (EOFError, OSError, RuntimeError):  # the last where it died before its descriptor came
            self._drop(client)
            return None

    def _answer(self, requests: dict[Connection, list[Prepared]]) -> None:
        pictures = [picture for of_client in requests.values() for picture in of_client]
        start = time.monotonic()
        try:
            found = self._detector.detect_prepared(pictures)
            answers: list[Any] = []
            for of_client in requests.values():
                answers.append(packed(found[: len(of_client)]))
                found = found[len(of_client) :]
        except Exception as error:
            self._end_where_cuda_is_broken()
            if len(requests) > 1:
                for client, of_client in requests.items():  # only the one whose frames it was gets the error
                    self._answer({client: of_client})
                return
            answers = [_sendable(error)]
        done = self._statistics
        self._statistics = replace(
            done,
            frames=done.frames + len(pictures),
            requests=done.requests + len(requests),
            batches=done.batches + 1,
            largest_batch=max(done.largest_batch, len(pictures)),
            errors=done.errors + isinstance(answers[0], Exception),
            seconds_busy=done.seconds_busy + time.monotonic() - start,
        )
        pictures.clear()
        for client, answer in zip(list(requests), answers, strict=True):
            requests[client].clear()  # the views, so that the memory can go
            try:
                self._clients[client].shed()
                self._clients[client] = self._clients.pop(client)  # to the end of the line
                client.send(answer)
            except OSError:
                self._drop(client)

    def _end_where_cuda_is_broken(self) -> None:
        """After some errors every further call on the device fails: better to end, which the workers are told."""
        if self._statistics.device.startswith("cuda"):
            import torch

            try:
                torch.cuda.synchronize(self._statistics.device)
            except RuntimeError as error:
                sys.exit(f"detector process on {self._statistics.device}: {error}")

    def _drop(self, client: Connection) -> None:
        self._clients.pop(client, None)
        client.close()

    def _now(self) -> Statistics:
        return replace(self._statistics, seconds=time.monotonic() - self._start)


def _address(stack: contextlib.ExitStack) -> str:
    """Where to listen: on Linux an abstract name, which ends with the process and leaves no file."""
    if sys.platform == "linux":
        return f"\0qadprep-{os.getpid()}-{secrets.token_hex(8)}"
    return str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qadprep-"))) / "detector")


def _sendable(error: Exception) -> Exception:
    """The error itself, or one with its text where it does not survive pickling."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
