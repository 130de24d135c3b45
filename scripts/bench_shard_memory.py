"""How much memory `qadprep shard` takes as the number of tuples grows, and how fast it writes beside plain `tar`.

    python scripts/bench_shard_memory.py [--tuples 20000 100000 300000] [--size 16] [--throughput-tuples 20000]

The packs are made on the spot: tables and tars as `extract` writes them, with crops out of a small pool. Memory is the
high-water mark of resident memory that Linux keeps for the command itself and for each of its worker processes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.codecs import pixel_hash
from qadprep.config import ExtractConfig, ShardConfig
from qadprep.crops import encode_png
from qadprep.pack import FileRecord, Row, read_pack, write_pack
from qadprep.shard import shard
from qadprep.ustar import BLOCK, end_of_archive, member_header

QUALITIES = ("raw", "c23", "c40")
METHODS = ("original", "Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
FRAMES = 64
PER_PACK = FRAMES * len(METHODS)


def crops_pool(size_px: int, count: int = 40) -> dict[str, list[np.ndarray]]:
    """Quality -> uint8 (size_px, size_px, 3) pictures, smooth with grain; coarser quality by quality."""
    rng = np.random.default_rng(0)
    pool: dict[str, list[np.ndarray]] = {quality: [] for quality in QUALITIES}
    for _ in range(count):
        smooth = cv2.resize(rng.uniform(40, 210, (9, 9, 3)), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 5, smooth.shape)
        for quality in QUALITIES:
            pool[quality].append(np.clip(np.rint(smooth + grain), 0, 255).astype(np.uint8))
            grain = cv2.blur(grain, (3, 3)) * 1.5
    return pool


def make_packs(folder: Path, tuples: int, size_px: int) -> Path:
    """Packs of at least so many tuples: one is written as `extract` does, the others are made of its columns."""
    config = ExtractConfig(dataset="ffpp", frames=FRAMES, size_px=size_px, detector={"name": "made"})
    settings = config.model_dump(mode="json")
    (folder / "ffpp").mkdir(parents=True)
    (folder / "extract.json").write_text(json.dumps(settings))
    (folder / "summary.json").write_text('{"failures": []}')
    pool = crops_pool(size_px)
    files = {quality: [(encode_png(crop), pixel_hash(crop)) for crop in crops] for quality, crops in pool.items()}
    row = Row("ffpp", "g", "original", "g", 0, "train", "g", "", 0, 0, "ok", geometry="reference", detector="made",
              score=0.99, box_xyxy=[10.0, 20.0, 110.0, 140.0], landmarks_xy=[float(v) for v in range(10)],
              affine=[0.2, 0.0, 1.0, 0.0, 0.2, 2.0], face_px=109.5, sharpness=50.0, yaw_deg=5.0, pitch_deg=1.0,
              roll_deg=0.5, inside_share=1.0, scene=0, unaltered=False,
              crops={quality: crops[0] for quality, crops in pool.items()})  # fmt: skip
    sync = {"verdict": "proved", "offset_frames": 0, "margin": 0.8, "residual": 1.0}
    records = [FileRecord("g", "original", quality, f"{quality}/g.mp4", bytes=1, sync=sync) for quality in QUALITIES]
    meta = {"config_hash": config.hash(), "config": settings, "group": "g", "notes": [], "clips": []}
    write_pack(folder, "ffpp", "g", [row] * PER_PACK, records, QUALITIES, meta)
    template = read_pack(folder / "ffpp" / "g.parquet").table
    meta_bytes = template.schema.metadata
    for kind in ("tar", "parquet"):
        (folder / "ffpp" / f"g.{kind}").unlink()
    for number in range(-(-tuples // PER_PACK)):
        split = ("train", "train", "train", "train", "train", "train", "train", "train", "val", "test")[number % 10]
        table = fill_pack(folder / "ffpp" / f"{number:06d}.tar", number, split, template, files)
        pq.write_table(table.replace_schema_metadata(meta_bytes), folder / "ffpp" / f"{number:06d}.parquet")
    return folder


def fill_pack(
    tar: Path, number: int, split: str, template: pa.Table, files: dict[str, list[tuple[bytes, str]]]
) -> pa.Table:
    """Write the tar of a pack; returns its table."""
    group, parts, position = f"{number:06d}", [], 0
    columns: dict[str, list] = {name: [] for name in ("method", "name", "label", "frame")}
    columns |= {f"{q}_{part}": [] for q in QUALITIES for part in ("offset", "size", "pixels_sha256")}
    for method in METHODS:
        name = group if method == "original" else f"{group}_{number + 1:06d}"
        for frame in range(FRAMES):
            for column, value in zip(("method", "name", "label", "frame"),
                                     (method, name, int(method != "original"), frame), strict=True):  # fmt: skip
                columns[column].append(value)
            for quality in QUALITIES:
                data, digest = files[quality][(number * 7 + frame) % len(files[quality])]
                parts += [member_header(f"{method}/{name}/{frame:06d}_0.{quality}.png", len(data)), data]
                parts.append(bytes(-len(data) % BLOCK))
                columns[f"{quality}_offset"].append(position + BLOCK)
                columns[f"{quality}_size"].append(len(data))
                columns[f"{quality}_pixels_sha256"].append(digest)
                position += BLOCK + len(data) + len(parts[-1])
    tar.write_bytes(b"".join([*parts, end_of_archive(position)]))
    table = template.replace_schema_metadata(None)
    for column, value in {**columns, "group": [group] * PER_PACK, "split": [split] * PER_PACK}.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), pa.array(value, table.schema.field(place).type))
    return table


def peak_mib(words: list[str]) -> tuple[float, float, float]:
    """Run a command; (peak resident MiB of itself, of its largest child process, seconds)."""
    start, own = time.perf_counter(), 0
    # The last reading of each: a child that has only just been forked still shows its parent's memory.
    children: dict[str, int] = {}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        own = max(own, high_water_kib(str(process.pid)))
        for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
            try:
                pids = task.read_text().split()
            except OSError:
                continue
            children |= {pid: high_water_kib(pid) or children.get(pid, 0) for pid in pids}
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    return own / 1024, max(children.values(), default=0) / 1024, time.perf_counter() - start


def high_water_kib(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def bench_memory(counts: list[int], size_px: int, options: list[str], root: Path) -> None:
    print(f"memory: {size_px} px, {len(QUALITIES)} qualities, options {' '.join(options)}")
    print("| tuples | command, MiB | largest worker, MiB | seconds | tuples/s |")
    print("| --- | --- | --- | --- | --- |")
    for count in counts:
        faces = make_packs(root / "faces", count, size_px)
        words = [sys.executable, "-m", "qadprep", "shard", str(faces), "--out", str(root / "s"), *options]
        own, worker, seconds = peak_mib(words)
        print(f"| {count} | {own:.0f} | {worker:.0f} | {seconds:.1f} | {count / seconds:.0f} |", flush=True)
        shutil.rmtree(root / "faces")
        shutil.rmtree(root / "s")


def bench_throughput(count: int, size_px: int, workers: list[int], root: Path) -> None:
    """Both sides write the same members, from files in the page cache, and end when the disk has them."""
    faces = make_packs(root / "faces", count, size_px)
    config = ShardConfig()
    shard(faces, root / "warm", config, workers=1)
    tars = sorted((root / "warm").glob("*.tar"))
    size = sum(file.stat().st_size for file in tars)
    (root / "members").mkdir()
    for file in tars:
        subprocess.run(["tar", "-xf", file, "-C", root / "members"], check=True)
    names = root / "names.txt"
    listed = [subprocess.run(["tar", "-tf", file], check=True, capture_output=True, text=True).stdout for file in tars]
    names.write_text("".join(listed))
    print(f"\nthroughput: {count} tuples of {size_px} px, {size / 1e6:.0f} MB")
    print("| what | seconds | MB/s | of tar |")
    print("| --- | --- | --- | --- |")
    rows = []
    for turn in range(3):
        to_disk = f"tar -cf {root}/copy.tar -C {root}/members -T {names} && sync {root}/copy.tar"
        rows.append(("tar", timed(lambda line=to_disk: subprocess.run(["sh", "-c", line], check=True))))
        (root / "copy.tar").unlink()
        for number in workers:
            out = root / f"s{turn}-{number}"
            rows.append(
                (f"qadprep shard, {number} workers", timed(lambda o=out, n=number: shard(faces, o, config, workers=n)))
            )
            shutil.rmtree(out)
    best = {what: min(seconds for name, seconds in rows if name == what) for what, _ in rows}
    for what, seconds in best.items():
        print(f"| {what} | {seconds:.2f} | {size / 1e6 / seconds:.0f} | {best['tar'] / seconds:.0%} |")


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuples", type=int, nargs="*", default=[20_000, 100_000, 300_000])
    parser.add_argument("--size", type=int, default=16, help="side of the crops for the memory part, px")
    parser.add_argument("--options", default="--balance even --workers 2", help="of `qadprep shard`, memory part")
    parser.add_argument("--throughput-tuples", type=int, default=20_000, help="0 leaves the part out")
    parser.add_argument("--throughput-size", type=int, default=128, help="side of its crops, px")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="of the throughput part")
    parser.add_argument("--folder", type=Path, help="for the data; default a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        if arguments.tuples:
            bench_memory(arguments.tuples, arguments.size, arguments.options.split(), root)
        if arguments.throughput_tuples:
            bench_throughput(arguments.throughput_tuples, arguments.throughput_size, arguments.workers, root)


if __name__ == "__main__":
    main()
