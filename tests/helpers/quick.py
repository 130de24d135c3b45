"""An extraction in which only the looking at videos is left out: real engine, packs, locks and reports, in moments.

`python -m helpers.quick ROOT OUT [option=value ...]` runs one in a process that a test may kill.
"""

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import qadprep.extract_dataset
import qadprep.worker
from qadprep.catalog.base import Group
from qadprep.config import ExtractConfig
from qadprep.errors import RunEnded, UserError
from qadprep.group_facts import describe
from qadprep.pack import FileRecord, Row, write_pack
from qadprep.parts import Part
from qadprep.results import GroupResult, facts_of_rows, summarise
from qadprep.summary import ExtractSummary

CONFIG = ExtractConfig(dataset="generic", frames=3, size_px=32, qualities=("raw",))


def make_dataset(root: Path, groups: int = 8) -> Path:
    """A list of `groups` files that no decoder would take; each is a group."""
    root.mkdir(parents=True)
    lines = ["path,label"]
    for number in range(groups):
        (root / f"v{number:02d}.mp4").write_bytes(b"x" * (100 + number))
        lines.append(f"v{number:02d}.mp4,{number % 2}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


class QuickDetector:
    name = "quick"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


def extract_group(
    group: Group, root: Path, out: Path, config: ExtractConfig, detector: object, meta: dict[str, Any], threads: int
) -> GroupResult:
    """A pack of noise that depends on the group's name only."""
    stop = os.environ.get("QUICK_HOLD")
    if stop:
        begin = Path(stop) / f"begun-{group.name}-{os.getpid()}"
        begin.touch()
        while not (Path(stop) / "go").exists():
            time.sleep(0.01)
    time.sleep(float(os.environ.get("QUICK_SECONDS", "0")))
    rng = np.random.default_rng(list(hashlib.sha256(group.name.encode()).digest()))
    rows, files = [], []
    for clip in group.clips:
        path = clip.paths["raw"]
        size = (root / path).stat().st_size
        files.append(FileRecord(clip.name, clip.method, "raw", path, bytes=size, width=64, height=64, frames=9))
        for frame in range(config.frames):
            crop = rng.integers(0, 256, (config.size_px, config.size_px, 3), np.uint8)
            rows.append(
                Row(
                    clip.dataset, clip.group, clip.method, clip.name, clip.label, clip.split, clip.target, clip.source,
                    frame=frame, face=0, status="ok", geometry="own", detector="quick", affine=[1.0, 0, 0, 0, 1.0, 0],
                    crops={"raw": crop},
                )
            )  # fmt: skip
    facts = {"config_hash": config.hash(), "config": config.model_dump(mode="json"), "group": group.name, "notes": []}
    size = write_pack(
        out, group.dataset, group.name, rows, files, config.qualities, {**meta, **facts, "clips": describe(group)}
    )
    result = summarise(group.name, facts_of_rows(rows), files, [])
    result.pack_bytes, result.seconds = size, {"write": 0.5}
    return result


def set_up(root: Path, out: Any, config: ExtractConfig, *rest: Any) -> None:
    """Of a worker: as `qadprep.worker.set_up_worker`, without a detector."""
    qadprep.worker.extract_group = extract_group
    qadprep.worker._worker.clear()
    qadprep.worker._worker.update(root=root, out=out, config=config, detector=None, meta=rest[3], threads=1)


def extract_one(group: Group) -> GroupResult:
    """The real one, in whose process `set_up` has run."""
    return qadprep.worker.extract_one(group)


def extract(root: Path, out: str | Path, config: ExtractConfig = CONFIG, **options: Any) -> ExtractSummary:
    """`qadprep.extract_dataset.extract` with everything replaced that would look into a video."""
    import qadprep.faces

    before = qadprep.faces.choose_detector, qadprep.faces.make_detector
    module = qadprep.extract_dataset
    kept = module.extract_one, module.set_up_worker
    group_before = qadprep.worker.extract_group
    qadprep.faces.choose_detector = lambda name, weights=None: ("quick", "quick detector")
    qadprep.faces.make_detector = lambda name, weights=None, device="cpu", **options: QuickDetector()
    module.extract_one, module.set_up_worker = extract_one, set_up
    try:
        return module.extract(root, out, config, **({"workers": 1} | options))
    finally:
        qadprep.faces.choose_detector, qadprep.faces.make_detector = before
        module.extract_one, module.set_up_worker = kept
        qadprep.worker.extract_group = group_before


def command(root: Path, out: str | Path, **options: object) -> list[str]:
    """Words that run `extract` in a process of its own."""
    words = [sys.executable, "-m", "helpers.quick", str(root), str(out)]
    return words + [f"{name}={value}" for name, value in options.items()]


def environment(**more: str) -> dict[str, str]:
    """For that process: it must find this module."""
    here = str(Path(__file__).parents[1])
    paths = [here, str(Path(qadprep.__file__).parents[1])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


def main(words: list[str]) -> int:
    options: dict[str, Any] = dict(word.split("=", 1) for word in words[2:])
    for name in ("workers", "frames", "size_px"):
        if name in options:
            options[name] = int(options[name])
    if "part" in options:
        options["part"] = Part.parse(options["part"])
    settings = {name: options.pop(name) for name in ("frames", "size_px") if name in options}
    try:
        extract(Path(words[0]), words[1], CONFIG.model_copy(update=settings), **options)
    except (UserError, RunEnded) as error:
        print(f"qadprep: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunEnded) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
