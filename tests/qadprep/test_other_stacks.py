"""Other people's readers on our shards: the lines of docs/format.md, run for real, give the same pixels."""

import json
import pickle
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.sets import QUALITIES, made_shards
from helpers.shard_damage import change_tar, rows_of
from torch.utils.data import DataLoader, Dataset

from qadprep.codecs import encode_image
from qadprep.shard_format import CODECS
from qadprep.shardset import ShardSet, Tuple, decode_image
from qadprep.ustar import TarWriter

if TYPE_CHECKING:
    import datasets

MEMBERS = {codec: [f"{quality}.{extension}" for quality in QUALITIES] for codec, extension in CODECS.items()}
each_codec = pytest.mark.parametrize("codec", list(CODECS))


@pytest.fixture(scope="module")
def sets(made_faces_master: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Codec -> the made set with it."""
    root = tmp_path_factory.mktemp("stacks")
    return {codec: made_shards(root / codec, made_faces_master, codec=codec) for codec in CODECS}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def urls(folder: Path, split: str) -> list[str]:
    return [str(folder / entry["url"]) for entry in ShardSet(folder, split).shards]


def by_key(folder: Path, split: str) -> dict[str, Tuple]:
    return {item.key: item for item in ShardSet(folder, split)}


@each_codec
def test_stock_webdataset(sets: dict[str, Path], codec: str) -> None:
    import webdataset as wds

    expected = by_key(sets[codec], "train")
    stream = wds.WebDataset(urls(sets[codec], "train"), shardshuffle=False)
    samples = list(stream.decode("rgb8", only=[*MEMBERS[codec], "json"]))
    assert [sample["__key__"] for sample in samples] == list(expected)  # 36 tuples, in the index's order
    for sample in samples:
        item = expected[sample["__key__"]]
        assert {name for name in sample if not name.startswith("__")} == {*MEMBERS[codec], "json"}
        for quality, name in zip(QUALITIES, MEMBERS[codec], strict=True):
            np.testing.assert_array_equal(sample[name], item.images[quality])
        facts = sample["json"]
        assert (facts["label"], facts["method"], facts["video"], facts["frame"]) == (
            item.label, item.method, item.video, item.frame
        )  # fmt: skip


@each_codec
def test_stock_webdataset_with_our_decoder(sets: dict[str, Path], codec: str) -> None:
    import webdataset as wds

    def decode(sample: dict) -> dict:
        images = {quality: decode_image(sample[f"{quality}.{CODECS[codec]}"], 24, codec) for quality in QUALITIES}
        return {"key": sample["__key__"], "images": images, "facts": json.loads(sample["json"])}

    expected = by_key(sets[codec], "val")
    samples = list(wds.WebDataset(urls(sets[codec], "val"), shardshuffle=False).map(decode))
    assert [sample["key"] for sample in samples] == list(expected)
    for sample in samples:
        for quality in QUALITIES:
            np.testing.assert_array_equal(sample["images"][quality], expected[sample["key"]].images[quality])


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_only_named_members_are_opened(made_set: Path, tmp_path: Path) -> None:
    """The docs' line leaves a pickle in a foreign tar alone; webdataset's default decoders run what is in it."""
    import webdataset as wds

    row = rows_of(made_set)[0]
    mark = tmp_path / "ran"

    def with_trap(data: bytes) -> bytes:
        trap = pickle.dumps(Trap(mark))
        file = tmp_path / "member.tar"
        with file.open("wb") as target:
            TarWriter(target).add(f"{row['key']}.pkl", trap)
        end = row["offset"] + row["length"]
        return data[:end] + file.read_bytes() + data[end:]

    change_tar(made_set, with_trap)
    place = str(made_set / "train-000000.tar")
    safe = list(wds.WebDataset(place, shardshuffle=False).decode("rgb8", only=[*MEMBERS["png"], "json"]))
    assert len(safe) == 16 and isinstance(safe[0]["pkl"], bytes) and not mark.exists()
    next(iter(wds.WebDataset(place, shardshuffle=False).decode("rgb8")))
    assert mark.exists()


def hugging_face(files: dict[str, list[str]], cache: Path, **options: object) -> "datasets.DatasetDict":
    import datasets

    return datasets.load_dataset("webdataset", data_files=files, cache_dir=str(cache), **options)


def features_of(codec: str) -> "datasets.Features":
    """As in the docs."""
    from datasets import Array3D, Features, Image, Value

    kind = Array3D((24, 24, 3), "uint8") if codec == "raw" else Image()
    facts = {"label": Value("int8"), "method": Value("string"), "video": Value("string"), "frame": Value("int32")}
    return Features({"__key__": Value("string"), "json": facts} | dict.fromkeys(MEMBERS[codec], kind))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(("codec", "named"), [("png", True), ("webp", True), ("raw", True), ("png", False)])
def test_hugging_face_datasets(sets: dict[str, Path], codec: str, named: bool, streaming: bool, tmp_path: Path) -> None:
    folder = sets[codec]
    files = {split: urls(folder, split) for split in ("train", "val")}
    features = features_of(codec) if named else None
    loaded = hugging_face(files, tmp_path, streaming=streaming, features=features)
    assert set(loaded) == {"train", "val"}
    for split in files:
        expected = by_key(folder, split)
        rows = list(loaded[split])
        assert [row["__key__"] for row in rows] == list(expected)
        for row in rows:
            item, facts = expected[row["__key__"]], row["json"]
            assert [facts[name] for name in ("label", "method", "video", "frame")] == [
                item.label, item.method, item.video, item.frame
            ]  # fmt: skip
            for quality, name in zip(QUALITIES, MEMBERS[codec], strict=True):
                np.testing.assert_array_equal(np.asarray(row[name], np.uint8), item.images[quality])


def test_hugging_face_guesses_types_when_none_are_named(tmp_path: Path) -> None:
    """Why the docs name them: it looks at five tuples, and a field that is null there breaks on a later number."""
    file = tmp_path / "faces.tar"
    with file.open("wb") as target:
        tar = TarWriter(target)
        for number in range(9):
            facts = {"label": 0, "method": "original", "video": "000", "frame": number}
            facts["mask_share"] = None if number < 6 else 0.5
            for name in MEMBERS["png"]:
                tar.add(
                    f"ffiw/original/000/{number:06d}_0.{name}", encode_image(np.zeros((24, 24, 3), np.uint8), "png")
                )
            tar.add(f"ffiw/original/000/{number:06d}_0.json", json.dumps(facts).encode())
        tar.finish()
    with pytest.raises(Exception, match="generating the dataset"):
        hugging_face({"train": [str(file)]}, tmp_path / "guessed")
    named = hugging_face({"train": [str(file)]}, tmp_path / "named", features=features_of("png"))
    assert [row["json"]["frame"] for row in named["train"]] == list(range(9))


@each_codec
def test_system_tar(sets: dict[str, Path], codec: str, tmp_path: Path) -> None:
    shards = ShardSet(sets[codec], "test")
    for place in urls(sets[codec], "test"):
        subprocess.run(["tar", "-xf", place, "-C", str(tmp_path)], check=True)
    for position, key in enumerate(shards.table["key"].to_pylist()):
        for quality, data in shards.encoded(position).items():
            assert (tmp_path / f"{key}.{quality}.{CODECS[codec]}").read_bytes() == data
        assert json.loads((tmp_path / f"{key}.json").read_text())["key"] == key
    assert sum(file.is_file() for file in tmp_path.rglob("*")) == 4 * len(shards)


class Faces(Dataset):
    """As in the docs: a map-style dataset of torch over a shard set."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        item = self.shards[index]
        images = np.stack([item.images[quality] for quality in self.shards.qualities])
        return torch.from_numpy(images), item.label


@pytest.mark.parametrize(("codec", "start"), [("png", "fork"), ("webp", "fork"), ("raw", "fork"), ("png", "spawn")])
def test_torch_loader(sets: dict[str, Path], codec: str, start: str) -> None:
    shards = ShardSet(sets[codec], "train")
    shards[0]  # a handle is open when the workers begin
    loader = DataLoader(
        Faces(shards),
        batch_size=8,
        shuffle=True,
        num_workers=2 if start == "fork" else 1,  # a spawned one takes seconds to begin
        multiprocessing_context=start,
        generator=torch.Generator().manual_seed(0),
    )
    order = torch.randperm(36, generator=_after_base_seed()).tolist()
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert images.shape == (36, 3, 24, 24, 3) and images.dtype == torch.uint8
    for row, index in enumerate(order):
        item = shards[index]
        assert labels[row] == item.label
        for number, quality in enumerate(QUALITIES):
            assert np.array_equal(images[row, number].numpy(), item.images[quality])


def _after_base_seed() -> torch.Generator:
    """The generator as the loader's sampler finds it: the workers' base seed was drawn first."""
    generator = torch.Generator().manual_seed(0)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator


@each_codec
def test_our_own_loader(sets: dict[str, Path], codec: str) -> None:
    from qadtrain.data import EpochBatches, make_loader, whole_batches

    shards = ShardSet(sets[codec], "train")
    sampler = EpochBatches(len(shards), 12, seed=1, epochs=1)
    loader = make_loader(shards, sampler, seed=1, flip_probability=0.5, num_workers=1, device=torch.device("cpu"))
    batches = list(whole_batches(loader))
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(36))
    for batch in batches:
        for row, index in enumerate(batch.indices.tolist()):
            assert np.array_equal(batch.images[row].numpy(), np.stack(list(shards[index].images.values())))
