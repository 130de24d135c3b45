"""Official lists of the datasets, shipped in manifests/."""

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


@functools.cache
def load_ffpp_youtube_ids() -> dict[str, str]:
    """FaceForensics++ id -> the YouTube video its sequence was cut from; 1000 ids of 977 videos.

    The file's values are `<YouTube id> <number of the sequence in that video>`; the number is dropped.
    Source: ondyari/FaceForensics, dataset/conversion_dict.json.
    """
    table = json.loads((manifests_folder() / "faceforensics" / "conversion_dict.json").read_text("utf-8"))
    return {name: value.rsplit(" ", 1)[0] for name, value in table.items()}


@functools.cache
def load_celebdf_test_list() -> str:
    """Celeb-DF-v2's official test list as text, 518 lines `<label> <folder>/<file>` where 1 means real.

    Source: yuezunli/celeb-deepfakeforensics, List_of_testing_videos.txt of the release.
    """
    return (manifests_folder() / "celebdf_v2" / "List_of_testing_videos.txt").read_text("utf-8")
