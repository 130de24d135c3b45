"""Shard sets made on the spot: smooth pictures, of which the fakes carry a checkerboard that compression weakens."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from qadtrain import cli

AMPLITUDES = {"raw": 30.0, "c23": 18.0, "c40": 6.0}
METHODS = ("Deepfakes", "NeuralTextures")
FRAMES_PER_VIDEO = 4


@pytest.fixture(autouse=True)
def one_thread_and_restored_state():
    """One thread, since the tests' tensors are small; and no test sees the random state another one left."""
    torch.set_num_threads(1)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def picture(rng: np.random.Generator, size_px: int, fake: bool, amplitude: float) -> np.ndarray:
    """uint8 (size_px, size_px, 3): a smooth random picture, with a checkerboard in a corner when fake."""
    smooth = cv2.resize(rng.uniform(60, 190, (4, 4, 3)), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    if fake:
        board = np.indices((size_px // 2, size_px // 2)).sum(axis=0) % 2 * 2 - 1
        smooth[: size_px // 2, : size_px // 2] += amplitude * board[:, :, None]
    return np.clip(np.rint(smooth + rng.normal(0, 2, smooth.shape)), 0, 255).astype(np.uint8)


def write_shard_set(
    folder: Path,
    splits: dict[str, int],
    *,
    size_px: int = 32,
    qualities: tuple[str, ...] = ("raw", "c23", "c40"),
    labels: tuple[int, ...] = (0, 1),
    seed: int = 0,
    dataset: str = "ffpp",
) -> Path:
    """A shard set of one shard a split, in the format of qadprep.shardset; half of the tuples are fake."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shardlist = []
    for split, count in splits.items():
        name, rows, buffer = f"{split}-000000", [], io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(count):
                rows.append(_add_tuple(tar, buffer, rng, number, split, size_px, qualities, labels, dataset))
        (folder / f"{name}.tar").write_bytes(buffer.getvalue())
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        shardlist.append(
            {
                "url": f"{name}.tar",
                "index": f"{name}.parquet",
                "split": split,
                "nsamples": count,
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
            }
        )
    info = {"format_version": "1.0", "qualities": qualities, "codec": "png", "size_px": size_px, "shardlist": shardlist}
    (folder / "shards.json").write_text(json.dumps(info))
    return folder


def _add_tuple(tar, buffer, rng, number, split, size_px, qualities, labels, dataset) -> dict:
    label = labels[number % len(labels)]
    method = METHODS[number // 2 % 2] if label else "original"
    clip = number // (2 * len(METHODS) * FRAMES_PER_VIDEO)
    frame = number // (2 * len(METHODS)) % FRAMES_PER_VIDEO * 2 + (0 if label else number // 2 % 2)
    video = f"{split}{clip:03d}"
    key = f"{dataset}/{method}/{video}/{frame:06d}_0"
    row = {"key": key, "label": label, "dataset": dataset, "method": method, "video": video, "group": video}
    row |= {"frame": frame, "face": 0, "split": split, "offset": buffer.tell()}
    picture_seed = int(rng.integers(1 << 30))
    for quality in qualities:
        image = picture(np.random.default_rng(picture_seed), size_px, bool(label), AMPLITUDES[quality])
        data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
        row |= {f"{quality}_offset": buffer.tell() + 512, f"{quality}_size": len(data)}
        header = tarfile.TarInfo(f"{key}.{quality}.png")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    row["length"] = buffer.tell() - row["offset"]
    return row


@pytest.fixture
def run_cli(monkeypatch, capfd):
    """main() with arguments -> (exit code, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qadtrain", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def make_shards():
    """The writer itself, for tests that need a shard set of their own."""
    return write_shard_set


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory) -> Path:
    """96 / 32 / 32 tuples of 32 px at three qualities."""
    return write_shard_set(tmp_path_factory.mktemp("shards") / "set", {"train": 96, "val": 32, "test": 32})
