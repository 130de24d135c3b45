"""The batches of a run on the CPU: any workers, ranks and starting points; damage, dead workers, self-blending."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain import workers as workers_module
from qadtrain.config import Config
from qadtrain.config_io import load_config
from qadtrain.data import (
    TupleBatch,
    TupleDataset,
    _quiet_worker,
    automatic_workers,
    shared_flip,
    to_network_input,
)
from qadtrain.prefetch import DeviceBatch, TrainBatches
from qadtrain.workers import WorkerBatches, dead_worker

CPU = torch.device("cpu")
AUGMENTED = [
    "augment.erase_probability=0.5",
    "augment.blur_probability=0.5",
    "augment.colour_probability=0.5",
    "augment.jpeg_probability=0.5",
    "data.sampling=method",
]


def tiny(*overrides: str) -> Config:
    base = ["data.batch_tuples=8", "optim.epochs=2", "optim.head_only_epochs=0", "data.num_workers=0"]
    return load_config("tiny", overrides=[*base, "data.image_size_px=24", *overrides])


def run(folder: Path, *overrides: str, **options) -> list[DeviceBatch]:
    with (
        ShardSet(folder, "train") as shards,
        TrainBatches(shards, tiny(*overrides), device=CPU, **options) as batches,
    ):
        return list(batches)


def same(a: DeviceBatch, b: DeviceBatch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.indices, b.indices)


@pytest.fixture(scope="module")
def small_dir(make_shards, tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("small") / "set", {"train": 36}, size_px=32)


def test_batches_without_augmentation_are_the_transform_of_the_tuples(small_dir):
    with ShardSet(small_dir, "train") as shards, TrainBatches(shards, tiny(), device=CPU) as batches:
        assert batches.steps_per_epoch == 4 and len(batches) == 8 and batches.qualities == ("raw", "c23", "c40")
        for number, batch in enumerate(batches):
            assert batch.images.shape == (24, 3, 24, 24) and batch.images.dtype == torch.float32
            assert batch.labels.dtype == torch.int64 and batch.skipped == 0 and batch.waited_s > 0
            items = [shards[int(index)] for index in batch.indices]
            flips = torch.tensor([shared_flip(41, number // 4, int(index), 0.5) for index in batch.indices])
            assert batch.labels.tolist() == [item.label for item in items]
            images = torch.from_numpy(np.stack([np.stack(list(item.images.values())) for item in items]))
            normalization = batches.config.data.normalization
            expected = to_network_input(images, flips, size_px=24, normalization=normalization, device=CPU)
            assert torch.equal(batch.images, expected)
        assert batches.skipped == [] and number == 7


def test_workers_and_starting_points_do_not_matter(small_dir):
    whole = run(small_dir, *AUGMENTED)
    assert len(whole) == 8 and not torch.equal(whole[0].images, run(small_dir, "data.sampling=method")[0].images)
    for workers in (1, 2):
        assert all(map(same, whole, run(small_dir, *AUGMENTED, f"data.num_workers={workers}")))
    rest = run(small_dir, *AUGMENTED, epoch=1, step=1)
    assert len(rest) == 3 and all(map(same, whole[5:], rest))


def test_ranks_give_the_slices_of_the_same_batches(small_dir):
    whole = run(small_dir, *AUGMENTED)
    halves = [run(small_dir, *AUGMENTED, ranks=SimpleNamespace(rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)
        assert torch.equal(torch.cat([first.labels, second.labels]), batch.labels)


def test_qualities_are_narrowed_and_ordered(small_dir):
    options = ["data.flip_probability=0", "data.image_size_px=32", "data.normalization=unit"]
    batch = run(small_dir, *options, 'data.qualities=["c40", "raw"]')[0]
    with ShardSet(small_dir, "train") as shards:
        for row, index in enumerate(batch.indices.tolist()):
            for number, quality in enumerate(("c40", "raw")):
                picture = torch.from_numpy(shards[index].images[quality]).permute(2, 0, 1).float() / 255
                assert torch.equal(batch.images[2 * row + number], picture)
    with pytest.raises(UserError, match=r"data.qualities: got \['raw', 'c99'\], .*out of raw, c23, c40: the qualities"):
        run(small_dir, 'data.qualities=["raw", "c99"]')
    with pytest.raises(UserError, match=r"data.qualities: got \['raw', 'raw'\], expected each once"):
        run(small_dir, 'data.qualities=["raw", "raw"]')


@pytest.fixture
def damaged(make_shards, tmp_path) -> tuple[Path, list[int]]:
    """A set with two damaged tuples, one of each label."""
    folder = make_shards(tmp_path / "set", {"train": 36})
    rows = pq.read_table(folder / "train-000000.parquet").to_pylist()
    data = bytearray((folder / "train-000000.tar").read_bytes())
    for index in (5, 12):
        start = rows[index]["c23_offset"]
        data[start : start + 40] = bytes(40)
    (folder / "train-000000.tar").write_bytes(data)
    return folder, [5, 12]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_tuples_are_replaced_reported_once_and_kept_in_the_state(damaged, workers):
    folder, bad = damaged
    options = ["data.skip_bad=2", "optim.epochs=4", f"data.num_workers={workers}"]
    said: list[str] = []
    with (
        ShardSet(folder, "train") as shards,
        TrainBatches(shards, tiny(*options), device=CPU, on_skip=said.append) as batches,
    ):
        given = list(batches)
        order = [[request[1] for request in batch] for batch in batches.sampler]
        labels = shards.table["label"].to_pylist()
        assert batches.skipped == bad
    assert sum(batch.skipped for batch in given) == 2 == len(said)
    assert sorted(line.split("-000000.tar: ffpp/")[0].split(", ")[1].split(":")[0] for line in said) == [
        "1 of at most 2",
        "2 of at most 2",
    ]
    assert all("c23" in line and "at byte" in line and "qadprep verify" in line for line in said)
    replaced = 0
    for batch, wanted in zip(given, order, strict=True):
        assert len(batch.labels) == 8
        for index, asked in zip(batch.indices.tolist(), wanted, strict=True):
            assert index not in bad and (index == asked) == (asked not in bad)
            assert labels[index] == labels[asked]
            replaced += index != asked
    assert replaced >= 6  # the same two again in each epoch, but the budget counts tuples
    resumed = run(folder, *options, epoch=2, step=0, skipped=bad)
    assert all(map(same, given[8:], resumed)) and not any(batch.skipped for batch in resumed)


def test_an_overdrawn_budget_ends_the_run_with_the_last_place(damaged):
    folder, _ = damaged
    with pytest.raises(
        UserError,
        match=r"data.skip_bad: got 2 damaged tuples, expected at most 1 \(a resume may raise it\): .*at byte.*verify",
    ):
        run(folder, "data.skip_bad=1", "optim.epochs=4")
    with pytest.raises(UserError, match=r"data.skip_bad: got 2 damaged tuples, expected at most 1"):
        run(folder, "data.skip_bad=1", "optim.epochs=4", skipped=[0])  # what an earlier part of the run met counts
    with pytest.raises(UserError, match=r"^(?!data).*train-000000.tar: ffpp/.* at byte \d+: c23.*qadprep verify"):
        run(folder, "optim.epochs=4")


def test_where_all_is_damaged_the_search_ends(make_shards, tmp_path):
    folder = make_shards(tmp_path / "set", {"train": 8})
    tar = folder / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut short.*qadprep verify"):
        run(folder, "data.skip_bad=1000")


def test_ranks_add_up_what_they_left_out(damaged):
    folder, bad = damaged
    for budget in (2, 1):
        ranks = SimpleNamespace(rank=0, world=2, gather_objects=lambda mine: [mine, [12]])
        config = tiny(f"data.skip_bad={budget}")
        with (
            ShardSet(folder, "train") as shards,
            TrainBatches(shards, config, device=CPU, ranks=ranks, skipped=[5]) as batches,
        ):
            if budget == 2:
                assert batches.share_skipped() == bad == batches.skipped
            else:
                with pytest.raises(
                    UserError, match=r"got 2 damaged tuples, expected at most 1 .*: the processes together"
                ):
                    batches.share_skipped()


@pytest.mark.slow
def test_a_killed_worker_is_one_line(shards_dir):
    config = tiny("data.num_workers=1", "optim.epochs=50")
    with (
        ShardSet(shards_dir, "train") as shards,
        pytest.raises(UserError, match=r"data.num_workers: DataLoader worker \(pid.*lower data.num_workers") as caught,
        TrainBatches(shards, config, device=CPU) as batches,
    ):
        before = children()
        for number, _ in enumerate(batches):
            if number == 2:
                (worker,) = children() - before
                os.kill(worker, signal.SIGKILL)
    assert "\n" not in str(caught.value)


def test_a_broken_connection_is_a_dead_worker_where_one_has_ended(monkeypatch):
    """Torch's own report may come later, or never; without a dead worker the error stays what it is."""
    monkeypatch.setattr(workers_module, "_WAIT_S", 0.05)
    context = multiprocessing.get_context("fork")
    for code, kind, message in (
        (9, UserError, r"DataLoader worker \(pid \d+\) ended with exit code 9; most often memory ran out"),
        (None, ConnectionResetError, "broken"),
    ):
        process = context.Process(target=(lambda: os._exit(9)) if code else (lambda: time.sleep(30)))

        class Loader:
            def __iter__(self, process=process):
                process.start()
                return self

            def __next__(self, process=process, code=code):
                if code:
                    process.join()
                raise ConnectionResetError("broken")

        with pytest.raises(kind, match=message):
            next(WorkerBatches(Loader()))
        process.kill()
        process.join()


class Stuck(torch.utils.data.Dataset):
    """A read that never returns, in a worker that ignores SIGTERM like all of ours."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(1000 * index)
        return index


def test_a_stuck_worker_is_killed_instead_of_waited_for(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = torch.utils.data.DataLoader(Stuck(), batch_size=1, num_workers=1, worker_init_fn=_quiet_worker)
    before = children()
    batches = WorkerBatches(loader)
    assert int(next(batches)) == 0
    (worker,) = children() - before
    batches.close()
    assert worker not in children()
    batches.close()  # and again is nothing
    with pytest.raises(StopIteration):
        next(batches)


def test_only_the_death_of_a_worker_is_renamed(shards_dir):
    assert dead_worker(RuntimeError("Caught KeyError in DataLoader worker process 0.")) is None
    bus = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ...\nmore")
    assert "/dev/shm" in str(dead_worker(bus))
    with (
        ShardSet(shards_dir, "train") as shards,
        pytest.raises(RuntimeError, match="out of luck"),
        TrainBatches(shards, tiny(), device=CPU),
    ):
        raise RuntimeError("out of luck")


def test_workers_end_with_the_context_and_stay_the_same_over_epochs(small_dir):
    before, seen = children(), set()
    with (
        ShardSet(small_dir, "train") as shards,
        TrainBatches(shards, tiny("data.num_workers=2", "optim.epochs=3"), device=CPU) as batches,
    ):
        for number, _ in enumerate(batches):
            if number < 9:
                seen |= children() - before
            if number == 9:
                break
    assert len(seen) == 2 and not children() & seen


def children() -> set[int]:
    """Process ids of this process's living children."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in task.read_text().split()}


def test_local_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert (automatic_workers(True), automatic_workers(False)) == (8, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (automatic_workers(True), automatic_workers(False)) == (3, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "40")
    assert automatic_workers(True) == 1


def test_the_next_batch_is_asked_for_once_the_step_of_the_current_one_is_queued(small_dir, monkeypatch):
    """The CUDA path with recorded streams: the step waits for its own copy alone, and damage is told in its turn."""
    log: list[str] = []
    side = SimpleNamespace(record_event=lambda: log.count("copy"))
    current = SimpleNamespace(wait_event=lambda event: log.append(f"wait {event}"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)

    class On:
        def __init__(self, stream):
            assert stream is side

        def __enter__(self):
            log.append("on")

        def __exit__(self, *exc):
            log.append("off")

    monkeypatch.setattr(torch.cuda, "stream", On)

    class Held:
        def record_stream(self, stream):
            assert stream is current
            log.append("held")

    def moved(host: TupleBatch) -> tuple:
        log.append("copy")
        return () if host.damage else (Held(), Held())

    empty = torch.empty(0)
    hosts = [TupleBatch(empty, empty, empty, torch.tensor([n]), "bad" if n == 2 else "") for n in range(3)]
    with ShardSet(small_dir, "train") as shards:
        batches = TrainBatches(shards, tiny(), device=CPU)
        batches._moved = moved
        batches._host_batches = lambda: iter(hosts)
        given = batches._overlapped()
        assert next(given).indices == 0
        step = ["on", "copy", "off"]
        assert log == [*step, "wait 1", "held", "held"]
        log.append("kernels")
        assert next(given).indices == 1
        assert log[-7:] == ["kernels", *step, "wait 2", "held", "held"]
        with pytest.raises(UserError, match="bad"):
            next(given)


def frame_and_crop() -> tuple[np.ndarray, list[np.ndarray]]:
    """An affine, frame px to 32 px crop at pixel centres; crops of frames with one bright pixel each."""
    affine = cv2.getRotationMatrix2D((100, 80), 20, 0.5)
    affine[:, 2] += (16 - 100, 16 - 80)
    crops = []
    for x, y in POINTS:
        frame = np.zeros((160, 200), np.float32)
        frame[y - 3 : y + 4, x - 3 : x + 4] = 1  # a spot around (x, y), wide enough to survive shrinking
        crops.append(cv2.warpAffine(frame, affine, (32, 32)))
    return affine, crops


POINTS = ((88, 74), (110, 70), (100, 82), (94, 95), (108, 93))


def with_facts(folder: Path, **facts) -> Path:
    """Give every tuple of a set its JSON member, as `qadprep shard` writes it."""
    table = pq.read_table(folder / "train-000000.parquet")
    data, out, rows = (folder / "train-000000.tar").read_bytes(), io.BytesIO(), table.to_pylist()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            shift = out.tell() - row["offset"]
            out.write(data[row["offset"] : row["offset"] + row["length"]])
            tar.offset = out.tell()
            text = json.dumps({"key": row["key"], **facts}).encode()
            header = tarfile.TarInfo(f"{row['key']}.json")
            header.size = len(text)
            row |= {"json_offset": out.tell() + 512, "json_size": len(text)}
            tar.addfile(header, io.BytesIO(text))
            for name in row:
                if name.endswith("offset") and name != "json_offset":
                    row[name] += shift
            row["length"] = out.tell() - row["offset"]
    (folder / "train-000000.tar").write_bytes(out.getvalue())
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-000000.parquet")
    info = json.loads((folder / "shards.json").read_text())
    info["shardlist"][0]["sha256"] = hashlib.sha256(out.getvalue()).hexdigest()
    (folder / "shards.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def with_landmarks(make_shards, tmp_path) -> Path:
    affine, _ = frame_and_crop()
    # Landmarks count at pixel edges: the centre of pixel 88 is 88.5.
    edges = [value + 0.5 for point in POINTS for value in point]
    folder = make_shards(tmp_path / "set", {"train": 36})
    return with_facts(folder, landmarks_xy=edges, affine=affine.ravel().tolist())


def test_landmarks_lie_where_the_crop_shows_them(with_landmarks):
    with ShardSet(with_landmarks, "train") as shards:
        found = TupleDataset(shards, 0, 0.0).landmarks_xy(7)
        assert shards[7].key == shards.table["key"][7].as_py()
    assert found.shape == (5, 2) and found.dtype == np.float32
    for (x, y), crop in zip(found, frame_and_crop()[1], strict=True):
        ys, xs = np.indices(crop.shape)
        assert np.hypot(x - (xs * crop).sum() / crop.sum(), y - (ys * crop).sum() / crop.sum()) < 0.1


@pytest.mark.parametrize("workers", [0, 1])
def test_self_blended_batches_are_real_tuples_beside_their_fakes(with_landmarks, workers):
    options = ["data.self_blended=true", "data.image_size_px=32", "data.normalization=unit", "hsic.alpha=0"]
    given = run(with_landmarks, *options, f"data.num_workers={workers}")
    assert len(given) == 2 * (18 * 2 // 8)
    again = run(with_landmarks, *options, ranks=SimpleNamespace(rank=1, world=2))
    with ShardSet(with_landmarks, "train") as shards:
        for number, batch in enumerate(given):
            assert batch.labels.tolist() == [0, 1] * 4
            assert torch.equal(batch.indices[::2], batch.indices[1::2])
            images = batch.images.view(4, 2, 3, 3, 32, 32)
            for pair, index in zip(images, batch.indices[::2].tolist(), strict=True):
                assert shards[index].label == 0
                real = torch.from_numpy(np.stack(list(shards[index].images.values()))).permute(0, 3, 1, 2) / 255
                flipped = shared_flip(41, number // 4, index, 0.5)
                assert torch.allclose(pair[0], real.flip(3) if flipped else real, atol=1e-6)
                assert not torch.equal(pair[1], pair[0])
            assert torch.equal(batch.images[12:], again[number].images)  # the second rank's half: the same fakes


def test_self_blending_gives_the_landmarks_and_a_generator_of_the_tuple(with_landmarks, monkeypatch):
    with ShardSet(with_landmarks, "train") as shards:
        dataset = TupleDataset(shards, 3, 0.0, self_blended=True, qualities=("c40", "raw"))
        seen = []

        def fake(images, landmarks_xy, rng):
            seen.append((landmarks_xy, rng.random()))
            return 255 - images

        monkeypatch.setattr(dataset, "blend", SimpleNamespace(fake=fake))
        item = dataset[1, 4]
        assert item.labels == (0, 1) and item.images.shape == (2, 2, 32, 32, 3)
        assert np.array_equal(item.images[0, 0], shards[4].images["c40"])
        assert np.array_equal(item.images[1], 255 - item.images[0])
        for request in ((1, 4), (2, 4), (1, 6), (1, 4, 1)):
            dataset[request]
    assert np.array_equal(seen[0][0], dataset.landmarks_xy(4))
    assert seen[0][1] == seen[1][1] and len({draw for _, draw in seen}) == 4


@pytest.mark.parametrize("facts", [None, {"label": 0}, {"landmarks_xy": None, "affine": None}])
def test_a_set_without_landmarks_is_refused_before_the_run(make_shards, tmp_path, facts):
    folder = make_shards(tmp_path / "set", {"train": 36})
    if facts is not None:
        with_facts(folder, **facts)
    with pytest.raises(UserError, match=r"data.self_blended: .*train-000000.tar: ffpp.*qadprep shard"):
        run(folder, "data.self_blended=true", "hsic.alpha=0")


def test_landmarks_without_a_face_are_a_damaged_tuple(make_shards, tmp_path):
    line = [8.0, 8.0, 12.0, 8.0, 16.0, 8.0, 20.0, 8.0, 24.0, 8.0]
    folder = with_facts(
        make_shards(tmp_path / "set", {"train": 36}), landmarks_xy=line, affine=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    )
    with pytest.raises(
        UserError,
        match=r"train-000000.tar: ffpp/original/.* at byte \d+: landmarks: got .*verify`, or leave .* --skip-bad N",
    ):
        run(folder, "data.self_blended=true", "hsic.alpha=0")
