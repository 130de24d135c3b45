import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import quick, ray_tasks
from helpers.packs import pack_hashes

from qadprep.config import ExtractConfig
from qadprep.engine_ray import Cluster, cluster, start_detectors
from qadprep.errors import RunEnded, UserError
from qadprep.extract_dataset import extract
from qadprep.ray_package import ray

# Starting clusters takes a minute in all.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def path_of_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in quick.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def here() -> Iterator[Cluster]:
    """A cluster of two cores on this machine, shared by the quick tests."""
    os.environ["PYTHONPATH"] = quick.environment()["PYTHONPATH"]
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**28, log_to_driver=False)
    yield Cluster()
    ray.shutdown()


def run(nodes: Cluster, tasks: list, function: Callable, workers: int = 2, **options: object) -> tuple[dict, dict]:
    results, crashes = {}, {}
    nodes.run_tasks(tasks, function, results.__setitem__, crashes.__setitem__, workers=workers, **options)
    return results, crashes


def test_results_and_errors_come_back(here: Cluster) -> None:
    results, crashes = run(here, [1, 2, 13, 4], ray_tasks.square)
    assert results == {1: 1, 2: 4, 4: 16}
    assert crashes == {13: "ValueError: unlucky"}
    assert run(here, [], ray_tasks.square) == ({}, {})


def test_workers_run_in_the_environment_that_is_there(here: Cluster) -> None:
    """Also when the tests were started by `uv run`, for which Ray would copy the folder and build another one."""
    results, _ = run(here, [1], ray_tasks.where)
    assert results[1] == (sys.executable, str(Path.cwd()))


def test_a_full_disk_ends_the_run(here: Cluster) -> None:
    with pytest.raises(RunEnded, match=r"the disk is full \(/out/28.tar\): free space"):
        run(here, [28, *range(29, 60)], ray_tasks.square)


def test_workers_are_set_up_once_and_anew_for_the_next_run(here: Cluster) -> None:
    first, _ = run(here, list(range(12)), ray_tasks.said, initializer=ray_tasks.set_up, initargs=("a",))
    assert {word for word, _, _ in first.values()} == {"a"} and max(times for _, times, _ in first.values()) == 1
    second, _ = run(here, list(range(12)), ray_tasks.said, initializer=ray_tasks.set_up, initargs=("b",))
    assert {word for word, _, _ in second.values()} == {"b"}


def test_workers_that_cannot_be_set_up_end_the_run(here: Cluster) -> None:
    with pytest.raises(UserError, match=r"workers of the Ray cluster cannot start: FileNotFoundError: no such root"):
        run(here, list(range(20)), ray_tasks.said, initializer=ray_tasks.set_up, initargs=("fails",))


def test_a_task_that_kills_its_worker_is_tried_again_and_then_reported(here: Cluster, tmp_path: Path) -> None:
    tasks = [(number, str(tmp_path)) for number in range(1, 11)]
    results, crashes = run(here, tasks, ray_tasks.dies)
    assert {task[0]: result for task, result in results.items()} == {n: n * n for n in range(1, 11) if n != 7}
    assert [task[0] for task in crashes] == [7] and "worker process or node died" in crashes[7, str(tmp_path)]
    tries = [len(list(tmp_path.glob(f"{number}-*"))) for number in (6, 7, 8)]
    assert tries == [1, 3, 2]  # twice beside the others, once alone


def test_how_many_workers_and_threads(here: Cluster) -> None:
    assert [here.fit_workers(tasks, wanted) for tasks, wanted in ((9, 0), (1, 0), (9, 5), (0, 0))] == [2, 1, 5, 1]
    assert [here.threads(workers) for workers in (1, 2, 5)] == [2, 1, 1]


def test_a_cluster_that_was_joined_before_stays(here: Cluster) -> None:
    with cluster() as joined:
        assert run(joined, [3], ray_tasks.square) == ({3: 9}, {})
    assert ray.is_initialized()


def test_detectors_behind_actors(here: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qadprep.ray_detectors.make_detector", ray_tasks.make_boxes)
    detector = start_detectors(2, 0, "boxes", None, "cpu")
    assert (detector.name, detector.identity()) == ("boxes", {"name": "boxes", "version": 3})
    results, crashes = run(here, [10, 20, 30], ray_tasks.heights, initializer=ray_tasks.take, initargs=(detector,))
    assert results == {10: [11, 12, 13], 20: [21, 22, 23], 30: [31, 32, 33]} and not crashes
    done = detector.statistics()
    assert len(done) == 2 and sum(entry.frames for entry in done) == 9 and sum(entry.requests for entry in done) == 3
    assert all(entry.device.startswith("cpu of ") and 0 <= entry.use <= 1 for entry in done)


def test_no_gpu_no_detectors(here: Cluster) -> None:
    if ray.cluster_resources().get("GPU"):
        assert here.start_detectors("mtcnn", None, "fp32").identity()["name"] == "mtcnn"
    else:
        with pytest.raises(UserError, match="no node of the Ray cluster has a GPU"):
            here.start_detectors("mtcnn", None, "fp32")


@pytest.fixture
def no_cluster() -> None:
    if ray.is_initialized():  # the one that the tests above share
        ray.shutdown()


@pytest.mark.usefixtures("no_cluster")
def test_an_address_where_nothing_is() -> None:
    with pytest.raises(UserError, match=r"--address 127.0.0.1:1: no Ray cluster to join there"), cluster("127.0.0.1:1"):
        pass


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("engine_ray", "ray_detectors", "ray_package"):
        monkeypatch.delitem(sys.modules, f"qadprep.{name}")
    with pytest.raises(UserError, match=r"pip install 'qadprep\[ray\]'"):
        import qadprep.engine_ray  # noqa: F401


@pytest.fixture
def dataset(no_cluster: None, tmp_path: Path) -> Path:
    return quick.make_dataset(tmp_path / "data", 8)


def test_the_same_packs_as_the_local_engine(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = quick.extract(dataset, tmp_path / "local")
    monkeypatch.chdir(tmp_path)  # workers have another folder: a relative path must hold all the same
    summary = quick.extract(dataset, "ray", engine="ray", workers=2)
    assert summary.engine == "ray" and not summary.failed and len(summary.results) == len(local.results) == 8
    assert pack_hashes(tmp_path / "ray") == pack_hashes(tmp_path / "local")
    assert not ray.is_initialized()
    again = quick.extract(dataset, tmp_path / "ray", engine="ray", workers=2)
    assert all(result.skipped for result in again.results)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_real_clips_through_ray(ffpp_tree_master: Path, faces_master: Path, tmp_path: Path) -> None:
    config = ExtractConfig(dataset="ffpp", frames=8, size_px=64)
    summary = extract(ffpp_tree_master, tmp_path / "faces", config, engine="ray", detector="mtcnn", workers=2)
    assert not summary.failed
    assert pack_hashes(tmp_path / "faces") == pack_hashes(faces_master)


@pytest.mark.slow
def test_a_killed_worker_process(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.extract(dataset, tmp_path / "local")
    (tmp_path / "hold").mkdir()
    monkeypatch.setenv("QUICK_HOLD", str(tmp_path / "hold"))
    killed: list[int] = []

    def kill_one() -> None:
        with released(tmp_path / "hold"):
            pid = _pid_of_first(tmp_path / "hold")
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            time.sleep(0.5)

    thread = threading.Thread(target=kill_one)
    thread.start()
    summary = quick.extract(dataset, tmp_path / "faces", engine="ray", workers=2)
    thread.join()
    assert killed and not summary.failed and len(summary.results) == 8
    assert pack_hashes(tmp_path / "faces") == pack_hashes(tmp_path / "local")
    assert len({file.name.rsplit("-", 1)[0] for file in (tmp_path / "hold").glob("begun-*")}) == 8


@pytest.mark.slow
def test_a_killed_node(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster as TwoNodes

    quick.extract(dataset, tmp_path / "local")
    (tmp_path / "hold").mkdir()
    monkeypatch.setenv("QUICK_HOLD", str(tmp_path / "hold"))
    nodes = TwoNodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)
    lost: list[int] = []

    def lose_node() -> None:
        with released(tmp_path / "hold"):
            wait_until(lambda: len(list((tmp_path / "hold").glob("begun-*"))) == 2)  # one on each node
            nodes.remove_node(second, allow_graceful=False)
            lost.append(1)

    thread = threading.Thread(target=lose_node)
    thread.start()
    try:
        summary = quick.extract(dataset, tmp_path / "faces", engine="ray", address=nodes.address, workers=0)
    finally:
        thread.join()
        nodes.shutdown()
    assert lost and not summary.failed and len(summary.results) == 8 and summary.workers == 2
    assert pack_hashes(tmp_path / "faces") == pack_hashes(tmp_path / "local")


@contextlib.contextmanager
def released(hold: Path) -> Iterator[None]:
    """Whatever happens, the workers that are held go on in the end: the test must fail then, not hang."""
    try:
        yield
    finally:
        (hold / "go").touch()


def _pid_of_first(hold: Path) -> int:
    wait_until(lambda: list(hold.glob("begun-*")))
    return int(next(iter(hold.glob("begun-*"))).name.rsplit("-", 1)[1])


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
