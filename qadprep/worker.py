"""What a worker process of `extract` does, on whichever engine: set up once, then one group after the other."""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.catalog.base import Group
from qadprep.config import ExtractConfig
from qadprep.errors import RunEnded
from qadprep.extract import extract_group
from qadprep.faces import Detector
from qadprep.faces.service import DetectorGone
from qadprep.lease import process_start
from qadprep.pack import pack_paths
from qadprep.results import GroupResult
from qadprep.store import is_local, remove, upload

if TYPE_CHECKING:
    from qadprep.store import Folder

_worker: dict[str, Any] = {}


def set_up_worker(
    root: Path,
    out: "Folder",
    config: ExtractConfig,
    detector: str,
    weights: Path | None,
    device: str,
    meta: dict[str, str],
    threads: int,
    remote_detector: Detector | None = None,
    precision: str = "fp32",
) -> None:
    """In each worker: one thread for OpenCV and torch, whose float results may depend on the number of threads.

    Args:
        remote_detector: stands for one that runs in another process; without it the worker loads its own.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    import cv2
    import torch

    from qadprep.faces import make_detector

    if not is_local(out):
        _remove_scratch_of_the_dead()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    _worker.update(
        root=root,
        out=out,
        config=config,
        detector=remote_detector or make_detector(detector, weights, device, precision=precision),
        meta=meta,
        threads=threads,
    )


def extract_one(group: Group) -> GroupResult:
    """One group in a worker that `set_up_worker` has prepared.

    Raises:
        RunEnded: the detector's process is gone, or the store cannot be written.
    """
    try:
        return _extract(group, _worker["out"])
    except DetectorGone as error:
        raise RunEnded(str(error)) from error


def _extract(group: Group, out: "Folder") -> GroupResult:
    if is_local(out):
        return extract_group(group, **_worker)
    with tempfile.TemporaryDirectory(
        prefix=f"{_scratch_prefix()}{os.getpid()}-{process_start(os.getpid())}-"
    ) as scratch:
        result = extract_group(group, **(_worker | {"out": Path(scratch)}))
        begun = time.monotonic()
        tar, table = pack_paths(Path(scratch), group.dataset, group.name)
        remote_tar, remote_table = pack_paths(out, group.dataset, group.name)
        remove(remote_table)  # never an old table beside a new tar
        upload(tar, remote_tar)
        upload(table, remote_table)
        result.seconds["upload"] = time.monotonic() - begun
    return result


def _scratch_prefix() -> str:
    """Of this container's processes: the temp folder may be shared with others that number theirs alike."""
    try:
        return f"qadprep-scratch-{Path('/proc/self/ns/pid').stat().st_ino}-"
    except OSError:
        return "qadprep-scratch-"


def _remove_scratch_of_the_dead() -> None:
    """Killed workers leave their scratch folders, whose names tell the process and when it started."""
    prefix = _scratch_prefix()
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        pid, _, rest = folder.name.removeprefix(prefix).partition("-")
        started = rest.partition("-")[0]
        if pid.isdigit() and started and process_start(int(pid)) != started:
            shutil.rmtree(folder, ignore_errors=True)
