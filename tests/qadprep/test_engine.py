import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qadprep.engine import run_tasks
from qadprep.errors import UserError
from qadprep.locks import sole_user


def square(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_die(number: int) -> int:
    os._exit(3)


def run(tasks: list[int], workers: int = 2, function=square) -> tuple[dict[int, int], dict[int, str]]:
    results, crashes = {}, {}
    run_tasks(tasks, function, results.__setitem__, crashes.__setitem__, workers=workers)
    return results, crashes


def test_results_and_errors_come_back() -> None:
    results, crashes = run([1, 2, 13, 4])
    assert results == {1: 1, 2: 4, 4: 16}
    assert crashes == {13: "ValueError: unlucky"}


def test_only_the_guilty_task_of_a_dead_worker_is_reported() -> None:
    results, crashes = run(list(range(1, 13)))
    assert results == {n: n * n for n in range(1, 13) if n != 7}
    assert list(crashes) == [7] and "worker process died" in crashes[7]


def test_workers_that_always_die_end_the_run() -> None:
    with pytest.raises(UserError, match="worker processes died"):
        run(list(range(20)), function=always_die)


def test_nothing_to_do() -> None:
    assert run([]) == ({}, {})


def test_a_folder_has_one_user(tmp_path: Path) -> None:
    hold = (
        "import time\nfrom pathlib import Path\nfrom qadprep.locks import sole_user\n"
        f"with sole_user(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing there"), sole_user(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with sole_user(tmp_path):  # freed by the kill
        pass


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import time, os, pathlib\n"
        "from qadprep.engine import run_tasks\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "import sleeper\n"
        "if __name__ == '__main__':\n"
        "    run_tasks([1, 2], sleeper.sleep, print, print, workers=2)\n"
    )
    (tmp_path / "sleeper.py").write_text(
        "import os, time, pathlib\n"
        "def sleep(n):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'pid{{n}}').write_text(str(os.getpid()))\n"
        "    time.sleep(120)\n"
    )
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.wait()
    pids = [int(file.read_text()) for file in tmp_path.glob("pid*")]
    assert len(pids) == 2
    while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
