"""Detectors as Ray actors, on the GPUs of a cluster."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qadprep.errors import UserError
from qadprep.faces import Detector, Face, make_detector
from qadprep.faces.service_process import Statistics
from qadprep.ray_package import ray

# Loading takes seconds, a GPU that somebody else holds may take for ever.
DETECTOR_WAIT_S = 180.0


class _DetectorActor:
    """A detector in its own process."""

    def __init__(self, make: Callable[..., Detector], name: str, weights: Path | None, device: str) -> None:
        self._detector = make(name, weights, device)
        self._start, self._done = time.monotonic(), Statistics(f"{device} of {os.uname().nodename}")

    def about(self) -> tuple[str, dict[str, Any]]:
        return self._detector.name, self._detector.identity()

    def detect(self, frames_rgb: list[np.ndarray]) -> list[list[Face]]:
        start = time.monotonic()
        found = self._detector.detect(frames_rgb)
        self._done = replace(
            self._done,
            frames=self._done.frames + len(frames_rgb),
            requests=self._done.requests + 1,
            batches=self._done.batches + 1,
            largest_batch=max(self._done.largest_batch, len(frames_rgb)),
            seconds_busy=self._done.seconds_busy + time.monotonic() - start,
        )
        return found

    def statistics(self) -> Statistics:
        return replace(self._done, seconds=time.monotonic() - self._start)


def start_detectors(
    count: int, gpus: float, name: str, weights: Path | None, device: str, precision: str = "fp32"
) -> "RayDetector":
    """Start detector actors and wait until they are loaded.

    Args:
        count: actors.
        gpus: GPUs that Ray sets apart for each.
    """
    actor = ray.remote(num_gpus=gpus, num_cpus=0, max_restarts=3, max_task_retries=3)(_DetectorActor)
    make = functools.partial(make_detector, precision=precision)
    actors = [actor.remote(make, name, weights, device) for _ in range(count)]
    try:
        asked = {one.about.remote(): one for one in actors}
        ready, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=DETECTOR_WAIT_S)
        for late in waiting:
            ray.kill(asked[late])
        if not ready:
            raise UserError(
                f"no detector could start on the Ray cluster in {DETECTOR_WAIT_S:.0f} s: are its GPUs taken?"
            )
        actors, about = [asked[one] for one in ready], ray.get(ready)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise UserError(f"the detector cannot start on the Ray cluster: {cause}") from error
    return RayDetector(actors, *about[0])


class RayDetector(Detector):
    """A detector behind actors, to which frames go by turns; can be sent to tasks."""

    def __init__(self, actors: list[Any], name: str, identity: dict[str, Any]) -> None:
        self._actors, self.name, self._identity = actors, name, identity
        # Every process begins elsewhere, or all would queue at the first.
        self._turn: Iterator[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_turn": None}

    def identity(self) -> dict[str, str | float | int]:
        """As of the detector itself."""
        return dict(self._identity)

    def statistics(self) -> list[Statistics]:
        """What each of the actors has done since it was last started; none of those that cannot be asked."""
        found = []
        for actor in self._actors:
            with contextlib.suppress(ray.exceptions.RayError):
                found.append(ray.get(actor.statistics.remote()))
        return found

    def detect(self, frames_rgb: Sequence[np.ndarray]) -> list[list[Face]]:
        """As of the detector itself."""
        if self._turn is None:
            self._turn = itertools.count(os.getpid())
        actor = self._actors[next(self._turn) % len(self._actors)]
        return ray.get(actor.detect.remote(list(frames_rgb)))
