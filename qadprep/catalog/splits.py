"""Official split lists, shipped in manifests/."""

import functools
import json
from pathlib import Path

import qadprep


def manifests_folder() -> Path:
    """The folder of shipped lists: inside an installed wheel, or beside the package in a checkout."""
    package = Path(qadprep.__file__).parent
    installed = package / "_manifests"
    return installed if installed.is_dir() else package.parent / "manifests"


@functools.cache
def load_ffpp_splits() -> dict[str, list[tuple[str, str]]]:
    """FaceForensics++'s official splits: `train`, `val`, `test` -> 360, 70, 70 unordered pairs of ids.

    A pair (a, b) puts the originals a and b and the fakes a_b and b_a into that split.
    Source: ondyari/FaceForensics, dataset/splits.
    """
    folder = manifests_folder() / "faceforensics"
    return {
        split: [(a, b) for a, b in json.loads((folder / f"{split}.json").read_text("utf-8"))]
        for split in ("train", "val", "test")
    }
