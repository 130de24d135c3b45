"""What this process may use of its machine: cores and memory, inside a container too."""

import os
from pathlib import Path

WORKER_BYTES = 3 * 2**29
"""Memory that one worker of an extraction may need: 1.5 GiB."""

_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Processor cores this process may use: of its affinity mask and its container's quota, whichever is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups():
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def available_bytes() -> int | None:
    """Memory in bytes that can be taken without swapping: the machine's, or what a container's limit leaves of it.

    None where the system does not say.
    """
    found = []
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for folder in _cgroups():
        for limit, used, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _read(folder / limit), _read(folder / used)
            if most.isdecimal() and now.isdecimal():
                cache = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines() if " " in line)
                found.append(max(0, int(most) - int(now) + int(cache.get(reclaimable, 0))))
    return min(found) if found else None


def fit_workers(tasks: int, wanted: int = 0, each_bytes: int = WORKER_BYTES) -> int:
    """How many worker processes to start: `wanted`, or for 0 one per core, but no more than memory has room for.

    Args:
        tasks: number of tasks; there are never more workers than tasks, and never fewer than one.
        each_bytes: memory that one of them may need.
    """
    if wanted:
        return max(1, min(wanted, tasks))
    memory = available_bytes()
    room = available_cores() if memory is None else min(available_cores(), memory // each_bytes)
    return max(1, min(room, tasks))


def _cgroups() -> list[Path]:
    """The folders of this process' control groups and of those around them, where limits are set."""
    folders = [_CGROUP, _CGROUP / "memory"]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" or controllers == "memory":
            inner = (_CGROUP if number == "0" else _CGROUP / "memory") / path.strip("/")
            folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(_CGROUP)]
    return list(dict.fromkeys(folders))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
