"""Small official trees with real videos, for the end-to-end tests: one builder a dataset."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from helpers.footage import mask_video, middle, release, swapped

Footage = Callable[[int], np.ndarray]


def celebdf(root: Path, one: Footage) -> None:
    """Two train identities, one test pair of the official list (id1 by id3's face), one YouTube video."""
    for number, name in enumerate(("id1_0007", "id60_0001", "id61_0002")):
        release(one(number), root / "Celeb-real" / f"{name}.mp4")
    release(one(3), root / "YouTube-real" / "00170.mp4")
    for number, name in ((0, "id1_id3_0007"), (1, "id60_id61_0001")):
        release(swapped(one(number), middle(one(number))), root / "Celeb-synthesis" / f"{name}.mp4")


def ffiw(root: Path, two: Footage, region: Callable[[np.ndarray], tuple[int, int, int, int]]) -> None:
    """Two recordings with several people in the first archive; in each, the mask marks the faces in one region."""
    top = root / "FFIW10K-v1-release"
    for number, split in enumerate(("train", "val")):
        clip = two(number)
        stem = f"{split}_{number:08d}"
        release(clip, top / "source" / split / f"{stem}.mp4")
        release(swapped(clip, region(clip)), top / "target" / split / f"{stem}.mp4")
        mask_video(clip, region(clip), top / "target_mask" / split / f"{stem}_mask.mp4")


def dfdc(root: Path, one: Footage) -> None:
    """A train part, a part of our validation split, and a test folder with labels.csv."""
    for part, number in ((0, 0), (45, 1)):
        folder = root / f"dfdc_train_part_{part}"
        real, fake = f"real{part:06d}.mp4", f"fake{part:06d}.mp4"
        release(one(number), folder / real)
        release(swapped(one(number), middle(one(number))), folder / fake)
        labels = {
            real: {"label": "REAL", "split": "train"},
            fake: {"label": "FAKE", "split": "train", "original": real},
        }
        (folder / "metadata.json").write_text(json.dumps(labels))
    release(one(2), root / "test" / "aaaaaaaaaa.mp4")
    release(swapped(one(3), middle(one(3))), root / "test" / "bbbbbbbbbb.mp4")
    (root / "test" / "labels.csv").write_text("filename,label\naaaaaaaaaa.mp4,0\nbbbbbbbbbb.mp4,1\n")


def dfdcp(root: Path, one: Footage) -> None:
    """An original and one fake of each method."""
    names = {
        "original_videos/1001/1001_A_001.mp4": ("real", one(0)),
        "method_A/2002/2002_A/2002_1001_A_001.mp4": ("fake", swapped(one(0), middle(one(0)))),
        "method_B/3003/3003_B/3003_1001_A_001.mp4": ("fake", swapped(one(0), middle(one(0)))),
    }
    for path, (_, clip) in names.items():
        release(clip, root / path)
    labels = {path: {"label": label, "set": "train"} for path, (label, _) in names.items()}
    (root / "dataset.json").write_text(json.dumps(labels))


def dfd(root: Path, one: Footage) -> None:
    """DeepFakeDetection in an FF++ root at three qualities."""
    from helpers.clips import write_qualities

    clip = one(0)
    write_qualities(clip, root / "original_sequences" / "actors", "01__walking")
    fake = swapped(clip, middle(clip))
    write_qualities(fake, root / "manipulated_sequences" / "DeepFakeDetection", "01_02__walking__ABCDEFGH")


def wilddeepfake(root: Path, one: Footage) -> None:
    """A tar a category, each with one sequence of face crops; numbers with gaps, as in the release."""
    for number, category in enumerate(("real_train", "fake_train", "real_test", "fake_test")):
        label = category.split("_")[0]
        place = root / category / f"{number}.tar.gz"
        place.parent.mkdir(parents=True)
        with tarfile.open(place, "w") as tar:  # plain, despite the name
            for index, frame in enumerate(one(number)):
                _, data = cv2.imencode(".png", cv2.resize(frame, (224, 224))[:, :, ::-1])
                info = tarfile.TarInfo(f"./{number}/{label}/7/{10 + 3 * index}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data.tobytes()))


def generic(root: Path, one: Footage) -> Path:
    """A CSV with one recording at two qualities and its fake; returns the list."""
    from qadprep.video.encode import compress, write_raw

    for number, name in enumerate(("person", "person_fake")):
        clip = one(0) if not number else swapped(one(0), middle(one(0)))
        write_raw(clip, root / "best" / f"{name}.mp4", 25)
        compress(root / "best" / f"{name}.mp4", root / "worse" / f"{name}.mp4", 40)
    rows = ["path,label,split,group,method,quality"]
    for quality, folder in (("raw", "best"), ("c40", "worse")):
        rows.append(f"{folder}/person.mp4,real,train,person,original,{quality}")
        rows.append(f"{folder}/person_fake.mp4,fake,train,person,Swap,{quality}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"
