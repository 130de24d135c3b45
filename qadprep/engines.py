"""Which engine runs an extraction, how many workers it has, and where faces are detected."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qadprep.config import ExtractConfig
from qadprep.errors import RunEnded, UserError
from qadprep.faces import Detector
from qadprep.faces.service import DetectorGone, DetectorService, devices_of, service_wanted
from qadprep.machine import WORKER_BYTES, available_cores, fit_workers
from qadprep.store import is_local

if TYPE_CHECKING:
    from qadprep.faces.service_process import Statistics
    from qadprep.store import Folder

ENGINES = ("local", "ray")
# A worker keeps a group's crops until it writes the pack. Of the usual group, an original and five manipulations, this
# much of them is part of WORKER_BYTES.
_CLIPS_OF_A_GROUP, _CROPS_INCLUDED_BYTES = 6, 256 * 2**20


class Setup(NamedTuple):
    """Arguments of `worker.set_up_worker`, in its order."""

    root: Path
    out: "Folder"
    config: ExtractConfig
    detector: str
    weights: Path | None
    device: str
    meta: dict[str, str]
    threads: int = 1
    remote_detector: Detector | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class Engine:
    """A started engine.

    Attributes:
        run_tasks: as `engine.run_tasks`.
        statistics: what the detector processes have done, where there are some.
    """

    run_tasks: Callable[..., None]
    workers: int
    setup: Setup
    statistics: "Callable[[], list[Statistics]]" = list


def worker_bytes(config: ExtractConfig) -> int:
    """Memory that a worker may need; more with large crops or many frames."""
    crops = _CLIPS_OF_A_GROUP * config.frames * len(config.qualities) * config.size_px**2 * 3
    return WORKER_BYTES + max(0, crops - _CROPS_INCLUDED_BYTES)


def check_engine(engine: str, address: str | None) -> None:
    """Raise UserError for an unknown engine, or an address that goes with another one."""
    if engine not in ENGINES:
        raise UserError(f"--engine: got {engine!r}; expected one of {', '.join(ENGINES)}")
    if address is not None and engine != "ray":
        raise UserError(f"--address {address} is for --engine ray, got --engine {engine}")


@contextlib.contextmanager
def start_engine(
    name: str, address: str | None, workers: int, tasks: int, setup: Setup, run_local: Callable[..., None]
) -> Iterator[Engine]:
    """Start an engine, with detector processes on GPUs where several workers would share them.

    Args:
        workers: wanted; 0 fits them to the machine or the cluster.
        tasks: number of groups to do.
        run_local: `engine.run_tasks`.

    Raises:
        UserError: no such cluster or device, Ray is not installed.
    """
    if name == "ray":
        from qadprep.engine_ray import cluster

        with cluster(address) as nodes:
            nodes.worker_bytes = worker_bytes(setup.config)
            workers = nodes.fit_workers(tasks, workers)
            remote = None
            on_gpu = setup.device.startswith("cuda") or (setup.device == "auto" and nodes.gpus())
            if tasks and on_gpu:
                remote = nodes.start_detectors(setup.detector, setup.weights, setup.precision)
            yield Engine(
                nodes.run_tasks,
                workers,
                setup._replace(
                    # The workers' own folder is another one.
                    root=setup.root.resolve(),
                    out=setup.out.resolve() if is_local(setup.out) else setup.out,
                    weights=setup.weights.resolve() if setup.weights else None,
                    device="cuda" if on_gpu else "cpu",
                    threads=nodes.threads(workers),
                    remote_detector=remote,
                ),
                remote.statistics if remote else list,
            )
        return
    workers = fit_workers(tasks, workers, worker_bytes(setup.config))
    engine = Engine(run_local, workers, setup._replace(threads=max(1, available_cores() // workers)))
    if not (tasks and service_wanted(setup.device, workers)):
        yield engine
        return
    devices = devices_of(setup.device)
    with _started(DetectorService(setup.detector, setup.weights, devices, precision=setup.precision)) as service:
        yield replace(
            engine, setup=engine.setup._replace(remote_detector=service.remote), statistics=service.statistics
        )


@contextlib.contextmanager
def _started(service: DetectorService) -> Iterator[DetectorService]:
    """A running detector service; one whose process dies while it loads ends the run with one line."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(service)
        except DetectorGone as error:
            raise RunEnded(str(error)) from error
        yield service
