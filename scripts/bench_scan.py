"""Time `qadprep scan` on large trees, and measure how much memory it takes.

    uv run python scripts/bench_scan.py [--files 10000,100000] [--dataset ffiw,celebdf]

Makes trees of empty files in a temporary folder, in the layouts of FFIW-10K and Celeb-DF-v2 with more files than the
releases have, and scans each in a fresh process: folders read, leaks searched, manifest written, manifest read back.
Prints files found, seconds and files a second, and by how much the process grew from before the scan to its peak.
Empty files cost no disk but one inode each; the file system's cache is warm, since the tree was just made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="10000,100000", help="sizes of the trees, comma-separated")
    parser.add_argument("--dataset", default=",".join(TREES), help="layouts, comma-separated")
    parser.add_argument("--scan", nargs=2, metavar=("DATASET", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scan:
        print(json.dumps(measure(*arguments.scan)))
        return
    print("dataset    files    clips  scan s  files/s  manifest read s  memory growth MiB")
    for dataset in arguments.dataset.split(","):
        for number in map(int, arguments.files.split(",")):
            with tempfile.TemporaryDirectory(prefix="bench-scan-") as folder:
                made = TREES[dataset](folder, number)
                command = [sys.executable, __file__, "--scan", dataset, folder]
                result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(
                f"{dataset:9} {made:6} {result['clips']:8} {result['scan_s']:7.2f} {made / result['scan_s']:8.0f} "
                f"{result['read_s']:16.2f} {result['growth_mib']:18.1f}",
                flush=True,
            )


def measure(dataset: str, root: str) -> dict[str, float]:
    """Scan in this process; what is imported and read once for any tree is not counted."""
    from qadprep.catalog.base import datasets
    from qadprep.catalog.manifest import read_manifest
    from qadprep.scan import scan

    datasets()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = Path(root) / "manifest.parquet"
    start = time.perf_counter()
    report = scan(Path(root), dataset, manifest)
    scanned = time.perf_counter()
    clips = len(report.catalog.clips)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    del report
    middle = time.perf_counter()
    if len(read_manifest(manifest)) != clips:
        raise SystemExit("the manifest does not hold what was found")
    return {
        "clips": clips,
        "scan_s": scanned - start,
        "read_s": time.perf_counter() - middle,
        "growth_mib": growth / 1024,  # Linux counts in KiB
    }


def ffiw(root: str, number: int) -> int:
    """Sources, targets and masks in equal numbers: nine tenths train, the rest half val, half test."""
    each = number // 3
    for split, share in {"train": 0.9, "val": 0.05, "test": 0.05}.items():
        release = "FFIW10K-v1-release-test" if split == "test" else "FFIW10K-v1-release"
        for kind, ending in (("source", ""), ("target", ""), ("target_mask", "_mask")):
            touch(
                f"{root}/{release}/{kind}/{split}", (f"{split}_{i:08d}{ending}.mp4" for i in range(int(each * share)))
            )
    return count(root)


def celebdf(root: str, number: int) -> int:
    """As many files as wanted in the shares of the release, with 59 identities and more recordings of each."""
    real, youtube = number * 590 // 6529, number * 300 // 6529
    recordings = -(-real // 59)
    names = [f"id{person}_{recording:04d}" for recording in range(recordings) for person in range(59)][:real]
    touch(f"{root}/Celeb-real", (f"{name}.mp4" for name in names))
    touch(f"{root}/YouTube-real", (f"{i:05d}.mp4" for i in range(youtube)))
    pairs = ((a, b, r) for r in range(recordings) for a in range(59) for b in range(59) if a != b)
    fakes = (f"id{a}_id{b}_{r:04d}.mp4" for a, b, r in pairs)
    touch(f"{root}/Celeb-synthesis", (name for name, _ in zip(fakes, range(number - real - youtube), strict=False)))
    return count(root)


TREES = {"ffiw": ffiw, "celebdf": celebdf}


def touch(folder: str, names) -> None:
    os.makedirs(folder)  # noqa: PTH103
    for name in names:
        os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY))


def count(root: str) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


if __name__ == "__main__":
    main()
