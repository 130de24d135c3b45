"""Checks of `qadprep doctor`: disk, memory, cores, and what the system allows a process."""

import errno
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from qadprep.doctor import FAIL, OK, WARN, Check, check
from qadprep.machine import WORKER_BYTES, available_bytes, available_cores

GIB = 2**30
FREE_LEAST_BYTES, FREE_WANTED_BYTES = GIB, 20 * 10**9
WRITTEN_BYTES = 64 * 2**20
SLOW_BYTES_PER_S = 50 * 10**6
OPEN_FILES_LEAST = 1024
SHM_WANTED_BYTES = GIB


def checks(out: Path) -> list[Check]:
    """All checks of this module; `out` is where an extraction would write."""
    return [
        check_disk(out),
        check_temporary(),
        check_memory(),
        check_cores(),
        check_open_files(),
        check_shared_memory(),
    ]


@check("disk", "choose another --out")
def check_disk(out: Path) -> tuple[str, ...]:
    """Room, inodes and speed at the output folder, or at the nearest folder above it that is there."""
    if "://" in str(out) or ":/" in str(out):
        return OK, f"{out}: not a local folder, not looked at"
    place = _nearest(out)
    if not place.is_dir():
        return FAIL, f"{place} is a file", "choose a folder for --out"
    free = shutil.disk_usage(place).free
    if free < FREE_LEAST_BYTES:
        return FAIL, f"{place}: {free / 1e9:.1f} GB free", "free some space, or choose another --out"
    try:
        speed = _write_speed(place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FAIL, f"{place}: full while 64 MiB were written", "free some space or quota, or choose another --out"
        return FAIL, f"{place}: cannot be written to ({error.strerror})", f"chown or chmod {place}, or another --out"
    nodes = os.statvfs(place)
    found = f"{place}: {free / 1e9:.1f} GB free, {speed / 1e6:.0f} MB/s"
    if nodes.f_files and nodes.f_favail < 1000:
        return FAIL, f"{found}, {nodes.f_favail} inodes left", "delete files that are not needed: inodes run out"
    if free < FREE_WANTED_BYTES:
        return WARN, found, "FF++ at 64 frames and 128 px takes some 20 GB; `extract --dry-run` forecasts yours"
    if speed < SLOW_BYTES_PER_S:
        return WARN, found, "slow: write to a local disk and copy the packs afterwards"
    return OK, found


@check("temporary folder", "set TMPDIR to a folder with a few GB that can be written to")
def check_temporary() -> tuple[str, ...]:
    """Where trials and encoded videos go."""
    place = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"x")
    free = shutil.disk_usage(place).free
    if free < FREE_LEAST_BYTES:
        return WARN, f"{place}: {free / 1e9:.1f} GB free", "set TMPDIR to a folder with a few GB"
    return OK, f"{place}: {free / 1e9:.1f} GB free"


@check("memory", "--workers 1")
def check_memory() -> tuple[str, ...]:
    """Memory that is free for workers, inside a container's limit, against a worker on every core."""
    free = available_bytes()
    if free is None:
        return OK, "the system does not tell"
    found, fitting, cores = f"{free / GIB:.1f} GiB available", free // WORKER_BYTES, available_cores()
    if fitting < 1:
        mend = f"a worker takes up to {WORKER_BYTES / GIB:.1f} GiB: end other programs, or raise the container's limit"
        return FAIL, found, mend
    if fitting < cores:
        return WARN, f"{found}, too little for a worker on each of {cores} cores", f"--workers {fitting}"
    return OK, found


@check("cores", "--workers N")
def check_cores() -> tuple[str, ...]:
    """Cores that this process may use by its affinity mask and its container's quota."""
    return OK, f"{available_cores()} of {os.cpu_count()}"


@check("open files", "ulimit -n 4096")
def check_open_files() -> tuple[str, ...]:
    """How many files a process may hold open; `shard` holds 256 packs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_LEAST:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        return WARN, f"{soft} (at most {most})", f"ulimit -n {OPEN_FILES_LEAST if hard < 0 else min(4096, hard)}"
    return OK, "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


@check("shared memory", "mount a tmpfs at /dev/shm")
def check_shared_memory(place: Path = Path("/dev/shm")) -> tuple[str, ...]:
    """Ray and the data loaders of torch pass arrays through it."""
    if not place.is_dir():
        return WARN, f"no {place}", "needed for Ray and data loaders: mount a tmpfs there"
    size = shutil.disk_usage(place).total
    if size < SHM_WANTED_BYTES:
        return WARN, f"{place}: {size / 2**20:.0f} MiB", "docker run --shm-size=8g (Ray and data loaders need it)"
    return OK, f"{place}: {size / GIB:.1f} GiB"


def _nearest(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _write_speed(folder: Path) -> float:
    """Bytes per second of 64 MiB written and brought to the disk; the file is gone afterwards."""
    block = os.urandom(2**20)
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".qadprep-doctor-") as file:
        for _ in range(WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return WRITTEN_BYTES / max(time.perf_counter() - start, 1e-6)
