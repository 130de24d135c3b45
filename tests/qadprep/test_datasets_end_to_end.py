"""Each dataset from its official tree through extract, shard and verify, on made and on real footage."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import trees
from helpers.footage import FRAMES, KINDS, one_face, two_faces

from qadprep.config import ExtractConfig, ShardConfig
from qadprep.extract_dataset import ExtractSummary, extract
from qadprep.pack import find_packs, read_pack
from qadprep.scan import scan
from qadprep.shard import shard
from qadprep.shardset import ShardSet
from qadprep.verify import verify

N = 6
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def one(kind: str, portrait: np.ndarray) -> Callable[[int], np.ndarray]:
    return functools.cache(lambda number: one_face(kind, portrait, number))


@pytest.fixture
def two(kind: str, portrait: np.ndarray) -> Callable[[int], np.ndarray]:
    return functools.cache(lambda number: two_faces(kind, portrait, number))


def run(root: Path, dataset: str, out: Path, qualities: tuple[str, ...], **options: object) -> ExtractSummary:
    """Extract, shard and verify; every step must end without a fault."""
    config = ExtractConfig(dataset=dataset, frames=N, size_px=64, qualities=qualities, **options)
    summary = extract(root, out / "faces", config, workers=2, detector="mtcnn")
    assert not summary.failed, summary.as_dict()["failures"]
    shard(out / "faces", out / "shards", ShardConfig(tuples_per_shard=50))
    report = verify(out / "shards", workers=1)
    assert not report.faults and report.tuples == summary.as_dict()["tuples"]
    return summary


def rows_of(out: Path, status: str | None = "ok") -> list[dict]:
    rows = [row for path in find_packs(out / "faces") for row in read_pack(path).table.to_pylist()]
    return [row for row in rows if status is None or row["status"] == status]


def clips_of(out: Path) -> Counter[tuple[str, str, str, int]]:
    """(method, name, split, label) -> tuples."""
    return Counter((row["method"], row["name"], row["split"], row["label"]) for row in rows_of(out))


def test_celebdf_with_qualities_made_on_the_fly(one: Callable, tmp_path: Path) -> None:
    trees.celebdf(tmp_path / "data", one)
    summary = run(tmp_path / "data", "celebdf", tmp_path, ("raw", "c23", "c40"), make_qualities=True)
    assert summary.as_dict()["statuses"]["ok"] == 6 * N
    found = clips_of(tmp_path)
    assert all(count == N for count in found.values()) and len(found) == 6
    assert ("CelebDF", "id1_id3_0007", "test", 1) in found and ("original", "00170", "test", 0) in found
    for row in rows_of(tmp_path):
        assert row["raw_psnr_db"] == np.inf and row["c23_psnr_db"] > row["c40_psnr_db"] > 15
        assert row["raw_sync"] and row["c40_sync"] in ("proved", "static")
        # A fake is cut where its original's face was found.
        assert row["geometry"] == "reference"
    for path in find_packs(tmp_path / "faces"):
        for record in read_pack(path).files:
            assert (record.made is None) == (record.quality == "raw")
            if record.made:
                assert record.crf == record.made["crf"] == int(record.quality[1:]) and "x264" in record.made["encoder"]
                assert record.pix_fmt == "yuv444p" and record.frames == FRAMES
    assert not list((tmp_path / "faces").rglob("*.mp4"))  # nothing of the made videos is left


def test_every_ffiw_face_carries_its_own_label(one: Callable, two: Callable, kind: str, tmp_path: Path) -> None:
    def region(clip: np.ndarray) -> tuple[int, int, int, int]:
        """The right half: in the made clips and in the first real one exactly one face lies wholly inside."""
        height, width = clip.shape[1:3]
        return width // 2, 0, width, height

    trees.ffiw(tmp_path / "data", two, region)
    config = ExtractConfig(dataset="ffiw", frames=N, size_px=64, qualities=("raw",))
    summary = extract(tmp_path / "data", tmp_path / "faces", config, workers=2, detector="mtcnn")
    shard(tmp_path / "faces", tmp_path / "shards", ShardConfig())
    assert not verify(tmp_path / "shards", workers=1).faults
    result = summary.as_dict()
    assert not result["failures"]
    rows = rows_of(tmp_path)
    assert {row["label"] for row in rows if row["method"] == "original"} == {0}
    fakes = [row for row in rows if row["method"] == "FFIW"]
    assert {row["label"] for row in fakes} == {0, 1}
    labels: dict[tuple[str, int], set[int]] = {}
    for row in fakes:
        # What the test painted: everything right of the middle was altered, nothing else.
        width = two(int(row["name"][-1])).shape[2]
        left, _, right, _ = row["box_xyxy"]
        left, right = max(left, 0), min(right, width)
        painted = max(0.0, right - max(left, width / 2)) / (right - left)
        assert row["mask_share"] == pytest.approx(painted, abs=0.05)
        assert row["label"] == (row["mask_share"] >= 0.2)
        if abs(painted - 0.2) > 0.05:
            assert row["label"] == (painted >= 0.2)
        labels.setdefault((row["name"], row["face"]), set()).add(row["label"])
    assert all(len(seen) == 1 for seen in labels.values())  # one face, one label
    first = {face for name, face in labels if name == "train_00000000"}
    assert len(first) >= 2
    keys = ShardSet(tmp_path / "shards").table.select(["key", "label", "face"]).to_pylist()
    assert {row["key"].rsplit("_", 1)[1] for row in keys} == {str(row["face"]) for row in keys}
    # Every attempted face is accounted for.
    assert sum(result["statuses"].values()) == len(rows_of(tmp_path, None))


def test_dfdc(one: Callable, tmp_path: Path) -> None:
    trees.dfdc(tmp_path / "data", one)
    run(tmp_path / "data", "dfdc", tmp_path, ("raw",))
    assert clips_of(tmp_path) == {
        ("original", "real000000", "train", 0): N,
        ("DFDC", "fake000000", "train", 1): N,
        ("original", "real000045", "val", 0): N,
        ("DFDC", "fake000045", "val", 1): N,
        ("original", "aaaaaaaaaa", "test", 0): N,
        ("DFDC", "bbbbbbbbbb", "test", 1): N,
    }
    groups = {(row["name"], row["group"], row["geometry"]) for row in rows_of(tmp_path)}
    assert ("fake000000", "real000000", "reference") in groups
    assert ("bbbbbbbbbb", "bbbbbbbbbb", "own") in groups  # its original is not published


def test_dfdc_preview(one: Callable, tmp_path: Path) -> None:
    trees.dfdcp(tmp_path / "data", one)
    run(tmp_path / "data", "dfdcp", tmp_path, ("raw",))
    assert {(method, label) for method, _, _, label in clips_of(tmp_path)} == {
        ("original", 0),
        ("method_A", 1),
        ("method_B", 1),
    }
    assert {row["group"] for row in rows_of(tmp_path)} == {"1001_A_001"}


def test_deepfakedetection_in_an_ffpp_root(one: Callable, tmp_path: Path) -> None:
    trees.dfd(tmp_path / "data", one)
    run(tmp_path / "data", "dfd", tmp_path, ("raw", "c23", "c40"))
    assert clips_of(tmp_path) == {
        ("original", "01__walking", "none", 0): N,
        ("DeepFakeDetection", "01_02__walking__ABCDEFGH", "none", 1): N,
    }


def test_wilddeepfake_pictures_are_resized_and_never_detected(one: Callable, tmp_path: Path) -> None:
    import cv2

    trees.wilddeepfake(tmp_path / "data", one)
    run(tmp_path / "data", "wilddeepfake", tmp_path, ("raw",))
    rows = rows_of(tmp_path)
    assert Counter((row["method"], row["split"], row["label"]) for row in rows) == {
        ("original", "train", 0): N,
        ("WildDeepfake", "train", 1): N,
        ("original", "test", 0): N,
        ("WildDeepfake", "test", 1): N,
    }
    assert {row["geometry"] for row in rows} == {"given"} and {row["detector"] for row in rows} == {""}
    # Frames keep the numbers of their files, and the pixels are the picture's.
    shards = ShardSet(tmp_path / "shards", split="train")
    for item in (shards[index] for index in range(len(shards))):
        assert (item.frame - 10) % 3 == 0
        number = int(item.method == "WildDeepfake")
        picture = cv2.resize(one(number)[(item.frame - 10) // 3], (224, 224))
        small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
        difference = np.abs(item.images["raw"].astype(int) - small).mean()
        assert difference < 3, difference


def test_wilddeepfake_realigned_and_at_three_qualities(one: Callable, tmp_path: Path) -> None:
    trees.wilddeepfake(tmp_path / "data", one)
    options = {"make_qualities": True, "realign": True}
    summary = run(tmp_path / "data", "wilddeepfake", tmp_path, ("raw", "c40"), **options)
    assert summary.as_dict()["tuples"] == 4 * N
    rows = rows_of(tmp_path)
    assert {row["geometry"] for row in rows} == {"reference", "own"} and {row["detector"] for row in rows} == {"mtcnn"}
    assert all(15 < row["c40_psnr_db"] < 60 and (row["frame"] - 10) % 3 == 0 for row in rows)


def test_generic_list(one: Callable, tmp_path: Path) -> None:
    table = trees.generic(tmp_path, one)
    run(table, "generic", tmp_path / "out", ("raw", "c40"))
    assert clips_of(tmp_path / "out") == {
        ("original", "person", "train", 0): N,
        ("Swap", "person_fake", "train", 1): N,
    }
    assert {row["geometry"] for row in rows_of(tmp_path / "out")} == {"reference"}


def test_scan_manifest_and_extract_agree(one: Callable, tmp_path: Path) -> None:
    trees.celebdf(tmp_path / "data", one)
    scan(tmp_path / "data", "celebdf", tmp_path / "m.parquet")
    config = ExtractConfig(dataset="celebdf", frames=2, size_px=32, qualities=("raw",))
    by_root = extract(tmp_path / "data", tmp_path / "a", config, workers=1, detector="mtcnn")
    manifest = tmp_path / "m.parquet"
    by_file = extract(tmp_path / "data", tmp_path / "b", config, workers=1, detector="mtcnn", manifest=manifest)
    assert by_root.as_dict()["statuses"] == by_file.as_dict()["statuses"]
