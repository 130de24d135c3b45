from pathlib import Path

import pytest

from qadprep import machine
from qadprep.config import ExtractConfig
from qadprep.engines import worker_bytes
from qadprep.machine import WORKER_BYTES, available_bytes, available_cores, fit_workers


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What /proc and /sys say; a test fills it in."""
    files: dict[str, str] = {"/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   16777216 kB\n"}
    monkeypatch.setattr(machine, "_read", lambda file: files.get(str(file), "").strip())
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)))
    return files


def test_without_limits_the_machine_counts(system: dict[str, str]) -> None:
    assert (available_cores(), available_bytes()) == (16, 2**34)
    assert fit_workers(100) == 2**34 // WORKER_BYTES == 10


def test_a_container_has_less(system: dict[str, str]) -> None:
    system |= {
        "/proc/self/cgroup": "0::/a/b\n",
        "/sys/fs/cgroup/a/b/cpu.max": "350000 100000\n",
        "/sys/fs/cgroup/a/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/a/b/memory.max": "max\n",
        "/sys/fs/cgroup/a/memory.max": str(4 * 2**30),
        "/sys/fs/cgroup/a/memory.current": str(3 * 2**30),
        "/sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {2 * 2**30}\n",
    }
    assert (available_cores(), available_bytes()) == (4, 3 * 2**30)
    assert fit_workers(100) == 2


def test_the_older_kind_of_control_groups(system: dict[str, str]) -> None:
    system |= {
        "/proc/self/cgroup": "5:memory:/job\n3:cpu,cpuacct:/job\n",
        "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2**30),
        "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": "0",
    }
    assert available_bytes() == 2**30
    assert fit_workers(100) == 1  # never none


def test_a_wish_is_a_wish_but_no_more_workers_than_tasks(system: dict[str, str]) -> None:
    assert (fit_workers(100, 40), fit_workers(3, 40), fit_workers(3), fit_workers(0)) == (40, 3, 3, 1)


def test_large_crops_need_more_memory(system: dict[str, str]) -> None:
    config = ExtractConfig(dataset="ffpp", frames=64, size_px=128)
    assert worker_bytes(config) == WORKER_BYTES
    large = config.model_copy(update={"size_px": 1024})
    # 6 clips, 64 frames, 3 qualities of 3 MiB each, of which 256 MiB are in WORKER_BYTES.
    assert worker_bytes(large) == WORKER_BYTES + (6 * 64 * 3 * 3 - 256) * 2**20
    assert fit_workers(100, 0, worker_bytes(large)) == 2**34 // worker_bytes(large) == 3


def test_a_system_that_says_nothing(system: dict[str, str]) -> None:
    system.clear()
    assert available_bytes() is None and fit_workers(100) == 16


def test_this_machine() -> None:
    assert available_cores() >= 1 and (available_bytes() or 1) > 0
