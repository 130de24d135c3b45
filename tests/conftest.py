"""Small real inputs that the tests make themselves: an FF++ tree of short videos with a real face."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.clips import FRAMES, fake_of, moving_face, write_qualities
from helpers.sets import made_packs, made_shards


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on given clips take long; they run with the slow ones."""
    for item in items:
        given = "real_clips" in getattr(item, "fixturenames", ()) or item.name.endswith("[real]")
        if given and os.environ.get("QAD_REAL_CLIPS"):
            item.add_marker(pytest.mark.slow)
    # The longest file of one test goes first among those, or one process would be left alone with it at the end.
    items.sort(key=lambda item: item.path.name != "test_reproduce.py")


PAIRS = {"train": ("071", "054"), "test": ("953", "974")}


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """scikit-image's astronaut, uint8 (512, 512, 3) RGB: a real face that needs no download."""
    from skimage import data

    return data.astronaut()


@pytest.fixture(scope="session")
def ffpp_tree_master(portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One train pair and one test pair: four originals, two methods, both orders, three qualities."""
    root = tmp_path_factory.mktemp("ffpp")
    clips = {}
    for seed, name in enumerate(name for pair in PAIRS.values() for name in pair):
        clips[name] = moving_face(portrait, FRAMES, seed)
        write_qualities(clips[name], root / "original_sequences" / "youtube", name)
    for a, b in PAIRS.values():
        for target, source in ((a, b), (b, a)):
            for method, strength in (("Deepfakes", 0.5), ("FaceSwap", 1.0)):
                folder = root / "manipulated_sequences" / method
                write_qualities(fake_of(clips[target], strength), folder, f"{target}_{source}", fps=30)
    return root


@pytest.fixture
def ffpp_tree(ffpp_tree_master: Path, tmp_path: Path) -> Path:
    """A copy of the tree that a test may damage."""
    return Path(shutil.copytree(ffpp_tree_master, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def faces_master(ffpp_tree_master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Face packs of the whole tree, 8 tuples a clip, 64 px."""
    from qadprep.config import ExtractConfig
    from qadprep.extract_dataset import extract

    out = tmp_path_factory.mktemp("faces")
    summary = extract(
        ffpp_tree_master, out, ExtractConfig(dataset="ffpp", frames=8, size_px=64), workers=2, detector="mtcnn"
    )
    assert not summary.failed, summary.as_dict()
    return out


@pytest.fixture(scope="session")
def shards_master(faces_master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of those packs, 40 tuples a shard."""
    from qadprep.config import ShardConfig
    from qadprep.shard import shard

    out = tmp_path_factory.mktemp("shards")
    shard(faces_master, out, ShardConfig(tuples_per_shard=40))
    return out


@pytest.fixture
def shards(shards_master: Path, tmp_path: Path) -> Path:
    """A copy of the shard set that a test may damage."""
    return Path(shutil.copytree(shards_master, tmp_path / "shards"))


@pytest.fixture(scope="session")
def made_faces_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Face packs of 5 groups, 3 methods, 4 frames, 24 px, made without any video (helpers/sets.py)."""
    return made_packs(tmp_path_factory.mktemp("made") / "faces")


@pytest.fixture(scope="session")
def made_shards_master(made_faces_master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shard set, 16 tuples a shard: 36 train in 3 shards, 12 val, 12 test."""
    return made_shards(tmp_path_factory.mktemp("made") / "shards", made_faces_master)


@pytest.fixture
def made_set(made_shards_master: Path, tmp_path: Path) -> Path:
    """A copy of that shard set that a test may damage."""
    return Path(shutil.copytree(made_shards_master, tmp_path / "set"))


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `extract`, `compress` and `plan` work in the test's own process: starting workers costs more than the work.

    The engine itself, and that the bytes do not depend on it, are tested where this is not used.
    """

    def run_tasks(tasks, function, on_result, on_crash, *, workers, initializer=None, initargs=()):
        if initializer:
            initializer(*initargs)
        for task in tasks:
            on_result(task, function(task))

    monkeypatch.setattr("qadprep.extract_dataset.run_tasks", run_tasks)
    monkeypatch.setattr("qadprep.compress.run_tasks", run_tasks)


@pytest.fixture(scope="session")
def real_clips() -> list[Path]:
    """Real face videos from the folder that QAD_REAL_CLIPS names; empty when it is not set."""
    folder = os.environ.get("QAD_REAL_CLIPS")
    return sorted(Path(folder).glob("*.mp4")) if folder else []
