"""The dataset's files: layout, lengths, rates, formats, what differs and what must not, resume, determinism."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from qadprep.catalog.splits import manifests_folder
from qadprep.demo.dataset import DemoDataset, make_dataset
from qadprep.demo.identities import make_identity
from qadprep.demo.portrait import Portrait
from qadprep.errors import UserError

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
MASKED = METHODS[:4]
QUALITIES = ("raw", "c23", "c40")
# frames=10 gives lengths 10, 7, 9, 8 in the order test pair, train pair; rates alternate 25 and 30.
LENGTH = {"953": 10, "974": 7, "071": 9, "054": 8}
RATE = {"953": 25, "974": 30, "071": 25, "054": 30}
ORDERED = (("953", "974"), ("974", "953"), ("071", "054"), ("054", "071"))
SMALL = {"frames": 10, "size_px": (160, 128), "pairs": {"train": 1, "test": 1}, "seed": 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_dataset(tmp_path_factory.mktemp("demo"), workers=2, **SMALL)


def frames_of(path: Path) -> np.ndarray:
    """Every frame by PyAV, uint8 (n, h, w, 3): another decoder than the one under test."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def original(root: Path, name: str, quality: str = "raw") -> Path:
    return root / f"original_sequences/youtube/{quality}/videos/{name}.mp4"


def fake(root: Path, method: str, name: str, kind: str = "raw") -> Path:
    return root / f"manipulated_sequences/{method}/{kind}/videos/{name}.mp4"


def expected_length(method: str, target: str, source: str) -> int:
    return {
        "Deepfakes": LENGTH[target],
        "FaceShifter": LENGTH[target],
        "Face2Face": LENGTH[source],
        "FaceSwap": min(LENGTH[target], LENGTH[source]),
        "NeuralTextures": min(LENGTH[target], LENGTH[source]),
    }[method]


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_is_the_official_one_and_complete(made: DemoDataset) -> None:
    names = [f"{a}_{b}" for a, b in ORDERED]
    expected = {original(made.root, name, q) for name in LENGTH for q in QUALITIES}
    expected |= {fake(made.root, method, name, q) for method in METHODS for name in names for q in QUALITIES}
    expected |= {fake(made.root, method, name, "masks") for method in MASKED for name in names}
    assert set(made.root.rglob("*.mp4")) == expected
    assert made.files_made == len(expected) == 12 + 60 + 16
    assert made.files_kept == 0
    others = {str(p.relative_to(made.root)) for p in made.root.rglob("*") if p.is_file() and p.suffix != ".mp4"}
    assert others == {"STAND-INS.txt", ".demo/settings.json"}


def test_ids_come_from_the_official_splits(made: DemoDataset) -> None:
    for split in ("train", "test"):
        official = json.loads((manifests_folder() / f"faceforensics/{split}.json").read_text("utf-8"))
        assert [list(pair) for pair in made.pairs[split]] == official[:1]
    assert made.pairs["val"] == ()
    split_of = {clip.name: clip.split for clip in made.clips}
    assert split_of["953"] == split_of["953_974"] == split_of["974_953"] == "test"
    assert split_of["071"] == split_of["054_071"] == "train"
    assert len(made.clips) == len(split_of) - 4 + 4 * len(METHODS) == 24


def test_notice_says_what_the_fakes_are(made: DemoDataset) -> None:
    text = (made.root / "STAND-INS.txt").read_text("utf-8")
    assert "stand-ins made for a demonstration by image operations" in text
    assert "not FaceForensics++ data" in text
    assert all(f"  {method}: " in text for method in METHODS)
    assert "953 (test): portrait 0, 10 frames" in text
    assert str(made.root) not in text


@pytest.mark.parametrize("quality", QUALITIES)
def test_lengths_and_rates_follow_ffpp(made: DemoDataset, quality: str) -> None:
    lengths, rates = {}, {}
    for clip in made.clips:
        path = (
            original(made.root, clip.name, quality)
            if clip.method == "original"
            else fake(made.root, clip.method, clip.name, quality)
        )
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
            count = sum(1 for _ in container.decode(video=0))
        assert (count, Fraction(rate)) == (clip.frames, clip.fps)
        lengths[clip.method, clip.name], rates[clip.method, clip.name] = count, rate
    for name, count in LENGTH.items():
        assert (lengths["original", name], rates["original", name]) == (count, RATE[name])
    for target, source in ORDERED:
        for method in METHODS:
            assert lengths[method, f"{target}_{source}"] == expected_length(method, target, source)
            assert rates[method, f"{target}_{source}"] == RATE[source]


def test_formats_are_those_of_ffpp(made: DemoDataset) -> None:
    bytes_of = dict.fromkeys(QUALITIES, 0)
    for path in made.root.rglob("*.mp4"):
        kind = path.parts[-3]
        with av.open(str(path)) as container:
            found = container.streams.video[0].codec_context.pix_fmt
        assert found == ("yuv444p" if kind in ("c23", "c40") else "gbrp"), path
        if kind in QUALITIES:
            bytes_of[kind] += path.stat().st_size
    assert bytes_of["raw"] > 10 * bytes_of["c23"] > 20 * bytes_of["c40"]


def test_raw_holds_the_portrait_bit_for_bit(made: DemoDataset) -> None:
    portrait = Portrait(make_identity(2, 5), (160, 128))
    rendered = np.stack([rgb for rgb, _ in portrait.clip(9)])
    assert np.array_equal(frames_of(original(made.root, "071")), rendered)


@pytest.mark.parametrize("method", MASKED)
def test_outside_the_mask_fakes_are_the_target_bit_for_bit(made: DemoDataset, method: str) -> None:
    for target, source in ORDERED:
        name, n = f"{target}_{source}", LENGTH[target]
        real, forged = frames_of(original(made.root, target)), frames_of(fake(made.root, method, name))
        masks = frames_of(fake(made.root, method, name, "masks"))
        assert len(masks) == len(forged)
        assert set(np.unique(masks)) == {0, 255}
        for index, (picture, mask) in enumerate(zip(forged, masks, strict=True)):
            shown = real[index if index < n else 2 * n - 3 - index]
            altered = mask[..., 0] > 0
            assert np.array_equal(mask[..., 0], mask[..., 1]) and np.array_equal(mask[..., 0], mask[..., 2])
            assert np.array_equal(picture[~altered], shown[~altered])
            assert 0.005 < altered.mean() < 0.45
            change = np.abs(picture[altered].astype(int) - shown[altered])
            # The camera noise has sigma 0.8: a mean absolute difference of two noises would be 0.9.
            assert change.mean() > 1.8, (name, index)


def test_faceshifter_alters_the_face_and_nothing_else(made: DemoDataset) -> None:
    for target, source in ORDERED:
        real = frames_of(original(made.root, target)).astype(int)
        forged = frames_of(fake(made.root, "FaceShifter", f"{target}_{source}"))
        changed = (real != forged).any(axis=3)
        assert ((changed.mean(axis=(1, 2)) > 0.03) & (changed.mean(axis=(1, 2)) < 0.45)).all()
        rows, columns = np.nonzero(changed.any(axis=0))
        assert rows.min() > 10 and columns.min() > 20 and columns.max() < 140


def test_methods_differ_from_each_other(made: DemoDataset) -> None:
    pictures = {method: frames_of(fake(made.root, method, "953_974"))[2].astype(int) for method in METHODS}
    for a in METHODS:
        for b in METHODS:
            assert a == b or np.abs(pictures[a] - pictures[b]).max() > 20


def test_bytes_do_not_depend_on_the_number_of_workers(made: DemoDataset, tmp_path: Path) -> None:
    again = make_dataset(tmp_path, workers=1, **SMALL)
    assert digests(tmp_path) == digests(made.root)
    assert (again.pairs, again.clips) == (made.pairs, made.clips)


def test_a_second_run_writes_only_what_is_missing(made: DemoDataset) -> None:
    before = digests(made.root)
    lost = (fake(made.root, "FaceSwap", "054_071", "c40"), original(made.root, "974", "c23"))
    times = {path: path.stat().st_mtime_ns for path in made.root.rglob("*.mp4") if path not in lost}
    for path in lost:
        path.unlink()
    half = lost[0].with_name(".054_071-x.mp4.tmp")
    half.write_bytes(b"half a video")
    again = make_dataset(made.root, workers=1, **SMALL)
    assert (again.files_made, again.files_kept) == (2, 86)
    assert not half.exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert digests(made.root) == before


def test_a_folder_with_another_dataset_is_refused(made: DemoDataset, tmp_path: Path) -> None:
    before = digests(made.root)
    with pytest.raises(UserError, match="other settings"):
        make_dataset(made.root, workers=1, **{**SMALL, "seed": 6})
    assert digests(made.root) == before
    (tmp_path / "original_sequences").mkdir()
    with pytest.raises(UserError, match="did not make"):
        make_dataset(tmp_path, workers=1, **SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": 3}, "frames must be"),
        ({"size_px": (161, 128)}, "even"),
        ({"size_px": (64, 128)}, "96..2000"),
        ({"pairs": {"train": 0}}, "at least one pair"),
        ({"pairs": {"dev": 1}}, "train, val, test"),
        ({"pairs": {"val": 71}}, "list has 70"),
        ({"workers": 0}, "worker"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_dataset(tmp_path / "out", **{**SMALL, "workers": 1, **change})
    assert not (tmp_path / "out").exists()
