"""Tuples a second out of a shard set: ours against stock webdataset, tarfile and other loaders, from one run.

    uv run python scripts/bench_shards.py
    uv run --with mosaicml-streaming --with litdata --with datasets python scripts/bench_shards.py
    uv run python scripts/bench_shards.py --shards DIR          # your own set, in its codec
    uv run python scripts/bench_shards.py --verify              # `verify` against sha256sum

The second line brings the other loaders for this run alone; what is not installed is left out.

One process, one thread. Ours is asked for tuples by number in random order; the streaming readers go through the shards
from front to back. Every side reads the same tuples out of the system's file cache, all sides take turns for some
rounds, and each one's best round counts. Loaders with formats of their own get the same encoded files.
"""

import argparse
import importlib.util
import io
import json
import logging
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench_shards_data import made_sets

CODECS = ("png", "webp", "raw")
EXTENSIONS = {"png": "png", "webp": "webp", "raw": "npy"}
UNDECODED, DECODED = "undecoded", "decoded"


class Side(NamedTuple):
    """One way to read: `run` reads some tuples and returns how many."""

    what: str
    kind: str
    codec: str
    run: Callable[[], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir(), "qadprep-bench-shards"))
    parser.add_argument("--shards", type=Path, help="a shard set of your own instead of a made one")
    parser.add_argument("--tuples", type=int, default=2000)
    parser.add_argument("--tuples-per-shard", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--verify", action="store_true", help="time `verify` without decoding against sha256sum")
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()

    from qadprep.shardset import read_info

    if arguments.shards:
        sets = {read_info(arguments.shards)["codec"]: arguments.shards}
    else:
        sets = made_sets(arguments.data, arguments.tuples, arguments.tuples_per_shard, CODECS)
    results = verify_speed(sets) if arguments.verify else reading_speed(sets, arguments.data, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def reading_speed(sets: dict[str, Path], data: Path, rounds: int) -> list[dict[str, Any]]:
    import cv2

    cv2.setNumThreads(1)
    sides = [side for codec, folder in sets.items() for side in our_sides(codec, folder)]
    sides += [side for codec, folder in sets.items() for side in stream_sides(codec, folder)]
    codec, folder = next(iter(sets.items()))
    for name, package, others in (
        ("Hugging Face datasets", "datasets", hugging_face_sides),
        ("mosaicml-streaming", "streaming", mosaic_sides),
        ("litdata", "litdata", litdata_sides),
    ):
        if importlib.util.find_spec(package):
            place = data / f"{package}-{folder.name}"
            place.mkdir(parents=True, exist_ok=True)
            sides += others(codec, folder, place)
        else:
            print(f"{name}: not installed")
    best = dict.fromkeys(range(len(sides)), 0.0)
    for turn in range(rounds + 1):  # the first one warms up
        for number, side in enumerate(sides):
            start = time.perf_counter()
            count = side.run()
            rate = count / (time.perf_counter() - start)
            best[number] = max(best[number], rate if turn else 0.0)
        print(f"round {turn} of {rounds}", flush=True)
    stock = {side.kind: best[number] for number, side in enumerate(sides)
             if side.what.startswith("stock webdataset") and side.codec == codec}  # fmt: skip
    rows = [
        {"what": side.what, "kind": side.kind, "codec": side.codec, "tuples_per_s": round(best[number], 1),
         "over_stock": round(best[number] / stock[side.kind], 2)}
        for number, side in enumerate(sides)
    ]  # fmt: skip
    for kind in (UNDECODED, DECODED):
        print(f"\n| {kind} | codec | tuples/s | over stock webdataset on {codec} |\n| --- | --- | --- | --- |")
        for row in rows:
            if row["kind"] == kind:
                print(f"| {row['what']} | {row['codec']} | {row['tuples_per_s']:,.0f} | {row['over_stock']:.1f} |")
    return rows


def our_sides(codec: str, folder: Path) -> list[Side]:
    from qadprep.shardset import ShardSet

    shards = ShardSet(folder)
    order = random.Random(0).sample(range(len(shards)), len(shards))
    few = order if codec == "raw" else order[:500]

    def read(get: Callable[[int], Any], positions: list[int]) -> int:
        for position in positions:
            get(position)
        return len(positions)

    return [
        Side("ShardSet.encoded, random order", UNDECODED, codec, lambda: read(shards.encoded, order)),
        Side("ShardSet.views, random order", UNDECODED, codec, lambda: read(shards.views, order)),
        Side("ShardSet[i], random order", DECODED, codec, lambda: read(shards.__getitem__, few)),
    ]


def stream_sides(codec: str, folder: Path) -> list[Side]:
    import webdataset as wds

    from qadprep.shardset import read_info

    info = read_info(folder)
    urls = [str(folder / entry["url"]) for entry in info["shardlist"]]
    only = [*(f"{quality}.{EXTENSIONS[codec]}" for quality in info["qualities"]), "json"]

    def by_tarfile() -> int:
        count = 0
        for url in urls:
            with tarfile.open(url, "r|") as tar:
                for member in tar:
                    tar.extractfile(member).read()
                    count += member.name.endswith(".json")
        return count

    def stock() -> Any:
        return wds.WebDataset(urls, shardshuffle=False)

    return [
        Side("stock webdataset, stream", UNDECODED, codec, lambda: count_of(stock())),
        Side("Python's tarfile, stream", UNDECODED, codec, by_tarfile),
        Side('stock webdataset, stream, .decode("rgb8")', DECODED, codec,
             lambda: count_of(stock().decode("rgb8", only=only), 500)),
    ]  # fmt: skip


def count_of(items: Iterable[Any], most: int | None = None) -> int:
    count = 0
    for count, _ in enumerate(items, 1):
        if count == most:
            break
    return count


def files_of(folder: Path) -> list[dict[str, bytes]]:
    """Every tuple's encoded files and facts, for loaders that have formats of their own."""
    from qadprep.shardset import ShardSet

    shards = ShardSet(folder)
    rows = shards.table.select(["key", "label"]).to_pylist()
    return [{"key": row["key"], "label": row["label"], **shards.encoded(position)} for position, row in enumerate(rows)]


def decoded(item: dict[str, Any], qualities: tuple[str, ...]) -> None:
    import numpy as np
    from PIL import Image

    for quality in qualities:
        np.asarray(Image.open(io.BytesIO(item[quality])).convert("RGB"))


def by_number_sides(name: str, codec: str, dataset: Any, qualities: tuple[str, ...]) -> list[Side]:
    """Sides of a loader whose items are dicts of encoded files, asked by number in random order and in order."""
    order = random.Random(0).sample(range(len(dataset)), len(dataset))

    def read(positions: Iterable[int]) -> int:
        count = 0
        for position in positions:
            dataset[position]
            count += 1
        return count

    def read_and_decode() -> int:
        for position in order[:500]:
            decoded(dataset[position], qualities)
        return min(500, len(order))

    return [
        Side(f"{name}, [i], random order", UNDECODED, codec, lambda: read(order[:500])),
        Side(f"{name}, [i], from front to back", UNDECODED, codec, lambda: read(range(len(order)))),
        Side(f"{name}, [i], random order, Pillow", DECODED, codec, read_and_decode),
    ]


def mosaic_sides(codec: str, folder: Path, place: Path) -> list[Side]:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    from qadprep.shardset import read_info

    logging.getLogger("streaming").setLevel(logging.ERROR)
    qualities = tuple(read_info(folder)["qualities"])
    if not (place / "index.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        columns = {"key": "str", "label": "int"} | dict.fromkeys(qualities, "bytes")
        with MDSWriter(out=str(place), columns=columns) as writer:
            for item in files_of(folder):
                writer.write(item)
    clean_stale_shared_memory()
    return by_number_sides("mosaicml-streaming", codec, StreamingDataset(local=str(place), batch_size=1), qualities)


def litdata_sides(codec: str, folder: Path, place: Path) -> list[Side]:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    from qadprep.shardset import read_info

    qualities = tuple(read_info(folder)["qualities"])
    if not (place / "index.json").is_file():
        writer = BinaryWriter(str(place), chunk_bytes="64MB")
        for number, item in enumerate(files_of(folder)):
            writer[number] = item
        writer.done()
        writer.merge()
    dataset = StreamingDataset(str(place))
    sides = by_number_sides("litdata", codec, dataset, qualities)
    stream = Side("litdata, stream", UNDECODED, codec, lambda: count_of(StreamingDataset(str(place))))
    return [*sides, stream]


def hugging_face_sides(codec: str, folder: Path, place: Path) -> list[Side]:
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    import datasets
    import numpy as np

    from qadprep.shardset import read_info

    info = read_info(folder)
    names = [f"{quality}.{EXTENSIONS[codec]}" for quality in info["qualities"]]
    files = [str(folder / entry["url"]) for entry in info["shardlist"]]

    def load(streaming: bool) -> Any:
        return datasets.load_dataset(
            "webdataset", data_files={"train": files}, split="train", streaming=streaming, cache_dir=str(place)
        )

    def encoded(dataset: Any) -> Any:
        for name in names:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        return dataset

    table = load(streaming=False)
    order = random.Random(0).sample(range(len(table)), len(table))
    plain = encoded(table)

    def read(positions: list[int]) -> int:
        for position in positions:
            plain[position]
        return len(positions)

    def read_and_decode() -> int:
        for position in order[:500]:
            item = table[position]
            for name in names:
                np.asarray(item[name])
        return min(500, len(order))

    return [
        Side("Hugging Face datasets, Arrow, random order", UNDECODED, codec, lambda: read(order)),
        Side("Hugging Face datasets, webdataset stream", UNDECODED, codec, lambda: count_of(encoded(load(True)))),
        Side("Hugging Face datasets, Arrow, random order, Pillow", DECODED, codec, read_and_decode),
    ]


def verify_speed(sets: dict[str, Path]) -> list[dict[str, Any]]:
    """Seconds of `verify` without decoding, one worker, against sha256sum over the same files."""
    from qadprep.verify import verify

    rows = []
    for codec, folder in sets.items():
        files = sorted(str(file) for file in folder.iterdir() if file.suffix in (".tar", ".parquet"))
        size = sum(Path(file).stat().st_size for file in files)
        theirs = ours = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
            theirs = min(theirs, time.perf_counter() - start)
            start = time.perf_counter()
            verify(folder, level="hashes", workers=1, progress=False)
            ours = min(ours, time.perf_counter() - start)
        rows.append({"codec": codec, "bytes": size, "verify_s": ours, "sha256sum_s": theirs})
        print(
            f"{codec}: verify --no-decode {size / ours / 1e6:.0f} MB/s, sha256sum {size / theirs / 1e6:.0f} MB/s, "
            f"{theirs / ours:.0%} of its speed (target at least 70 %)"
        )
    return rows


if __name__ == "__main__":
    main()
