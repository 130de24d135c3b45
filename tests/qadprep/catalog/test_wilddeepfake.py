import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.catalog.base import Catalog, find_dataset, read_dataset
from qadprep.catalog.wilddeepfake import compressed_path, read_wilddeepfake
from qadprep.errors import UserError


def shard(path: Path, *members: str, link: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"bytes"))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def facts(catalog: Catalog) -> dict[str, tuple]:
    return {clip.name: (clip.method, clip.label, clip.split, clip.paths) for clip in catalog.clips}


def test_the_release_as_it_is(tmp_path: Path) -> None:
    # Shard and sequence numbers repeat over the categories.
    for category, label in (
        ("real_train", "real"),
        ("real_test", "real"),
        ("fake_train", "fake"),
        ("fake_test", "fake"),
    ):
        shard(tmp_path / category / "12.tar.gz", *(f"./12/{label}/{s}/{f}.png" for s in (345, 7) for f in (1, 20)))
    shard(tmp_path / "real_train" / "3.tar", "./3/real/345/9.png")
    catalog = read_dataset("wilddeepfake", tmp_path)
    assert facts(catalog) == {
        f"{category}-{place}-{sequence}": (
            "original" if category.startswith("real") else "WildDeepfake",
            int(category.startswith("fake")),
            category.split("_")[1],
            {"raw": f"{category}/{place}.tar{'.gz' * (place == 12)}::{place}/{category.split('_')[0]}/{sequence}"},
        )
        for category in ("real_train", "real_test", "fake_train", "fake_test")
        for place, sequence in ((12, 345), (12, 7), (3, 345))
        if place == 12 or category == "real_train"
    }
    assert all((clip.group, clip.target, clip.source) == (clip.name, clip.name, "") for clip in catalog.clips)
    assert len(catalog.groups()) == 9
    assert catalog.expected == {
        ("original", "train"): 3409,
        ("original", "test"): 396,
        ("WildDeepfake", "train"): 3099,
        ("WildDeepfake", "test"): 410,
    }
    assert catalog.ignored == catalog.gaps == catalog.remarks == []


def test_other_spellings_and_unpacked_shards(tmp_path: Path) -> None:
    root = tmp_path / "deepfake_in_the_wild"
    touch(
        root,
        "Real Train/1/real/5/1.png",  # unpacked inside the category
        "Real Train/2/2/real/6/1.JPG",  # unpacked into a folder of its own
        "Real Train/2/2/real/6/notes.txt",
        "Real Train/2/2/real/stray.png",
        "Real Train/readme.md",
        "Real Train/.DS_Store",
        "Real Train/4/4/1.png",
    )
    shard(root / "Real Train" / "1.tar.gz", "1/real/5/1.png", "1/real/8/1.png", "1/1.png", "1.png")
    (root / "Real Train" / "2" / "loop").symlink_to(root / "Real Train")
    catalog = read_dataset("wilddeepfake", tmp_path)
    top = "deepfake_in_the_wild/Real Train"
    assert {name: paths["raw"] for name, (_, _, _, paths) in facts(catalog).items()} == {
        "real_train-1-5": f"{top}/1.tar.gz::1/real/5",
        "real_train-1-8": f"{top}/1.tar.gz::1/real/8",
        "real_train-2-6": f"{top}/2/2/real/6/",
    }
    outside = "pictures outside a sequence; expected <shard>/<label>/<sequence>/<frame>.png"
    assert dict(catalog.ignored) == {
        f"{top}/readme.md": "not a tar",
        f"{top}/1.tar.gz::": outside,
        f"{top}/1.tar.gz::1": outside,
        f"{top}/1/real/5/": f"raw is already there as {top}/1.tar.gz::1/real/5",
        f"{top}/2/2/real/6/notes.txt": "not a picture (png, jpg)",
        f"{top}/2/2/real/": outside,
        f"{top}/4/4/": outside,
        f"{top}/2/loop": "a link to a folder above it",
    }
    assert [entry for entry, _ in catalog.gaps] == ["real_test", "fake_train", "fake_test"]


def test_the_category_is_trusted_over_the_inner_label(tmp_path: Path) -> None:
    shard(tmp_path / "fake_test" / "9.tar.gz", "./9/real/1/1.png", "./9/fake/2/1.png", "./9/Real/2/1.png")
    catalog = read_dataset("wilddeepfake", tmp_path)
    assert {clip.name: (clip.label, clip.method) for clip in catalog.clips} == {
        "fake_test-9-1": (1, "WildDeepfake"),
        "fake_test-9-fake-2": (1, "WildDeepfake"),
        "fake_test-9-Real-2": (1, "WildDeepfake"),
    }
    ((what, remark),) = catalog.remarks
    assert what == "fake_test" and remark.startswith("2 sequences lie in a folder of the other label")
    assert "fake_test/9.tar.gz::9/real/1" in remark and "fake_test/9.tar.gz::9/Real/2" in remark
    assert "9/fake/2" not in remark


def test_a_sequence_with_its_shards_number(tmp_path: Path) -> None:
    shard(tmp_path / "real_train" / "12.tar.gz", "./12/real/12/1.png")
    assert list(facts(read_wilddeepfake(tmp_path))) == ["real_train-12-12"]


def test_unsafe_and_damaged_tars(tmp_path: Path) -> None:
    train = tmp_path / "real_train"
    shard(train / "1.tar.gz", "1/real/1/1.png", "/1/real/2/1.png", "1/../../x.png", link="1/real/3/1.png")
    shard(train / "2.tar.gz", "2/real/1/1.png", "2/real/2/1.png")
    data = (train / "2.tar.gz").read_bytes()
    (train / "2.tar.gz").write_bytes(data[:1200])
    (train / "3.tar.gz").write_bytes(b"\x1f\x8b\x08" + data)
    (train / "4.tar.gz").write_bytes(b"")
    (train / "5.tar.gz").write_bytes(b"text" * 200)
    shard(train / "6.tar.gz", "6/real/1/readme.txt")
    os.mkfifo(train / "7.tar.gz")
    (train / "8.tar.gz").symlink_to(train / "gone")
    catalog = read_dataset("wilddeepfake", tmp_path)
    assert sorted(facts(catalog)) == ["real_train-1-1", "real_train-2-1"]
    assert catalog.ignored == [
        ("real_train/1.tar.gz: /1/real/2/1.png", "an absolute name"),
        ("real_train/1.tar.gz: 1/../../x.png", "a name with .."),
        ("real_train/1.tar.gz: 1/real/3/1.png", "a link"),
        ("real_train/3.tar.gz", "gzip-compressed; gunzip it first (the release's files are plain tars)"),
        ("real_train/4.tar.gz", "the file has 0 bytes; fetch it again"),
        ("real_train/5.tar.gz", "not a tar"),
        ("real_train/6.tar.gz: 6/real/1/readme.txt", "not a picture (png, jpg)"),
        ("real_train/6.tar.gz", "holds no picture"),
        ("real_train/7.tar.gz", "not a regular file"),
        ("real_train/8.tar.gz", "cannot be read (No such file or directory)"),
    ]
    assert catalog.remarks == [
        ("real_train/2.tar.gz", "cut off at byte 1024, before its end mark; what lies before was taken")
    ]


def test_made_videos_are_more_qualities_of_their_sequences(tmp_path: Path) -> None:
    shard(tmp_path / "real_train" / "12.tar.gz", "./12/real/345/1.png")
    touch(tmp_path, "fake_test/7/7/fake/1/3.png")
    for clip in read_wilddeepfake(tmp_path).clips:
        touch(tmp_path, compressed_path(clip.paths["raw"], "c23"), compressed_path(clip.paths["raw"], "c40"))
    touch(tmp_path, "c23/fake_test/7/readme.txt", "c23/fake_test/loose.mp4")
    catalog = read_dataset("wilddeepfake", tmp_path)
    assert {clip.name: clip.paths for clip in catalog.clips} == {
        "real_train-12-345": {
            "raw": "real_train/12.tar.gz::12/real/345",
            "c23": "c23/real_train/12/real__345.mp4",
            "c40": "c40/real_train/12/real__345.mp4",
        },
        "fake_test-7-1": {
            "raw": "fake_test/7/7/fake/1/",
            "c23": "c23/fake_test/7/fake__1.mp4",
            "c40": "c40/fake_test/7/fake__1.mp4",
        },
    }
    assert catalog.ignored == [
        ("c23/fake_test/7/readme.txt", "not an mp4 file"),
        ("c23/fake_test/loose.mp4", "expected loose/<sequence>.mp4"),
    ]
    # A root with the made videos alone gives the same clips.
    alone = tmp_path / "alone"
    touch(alone, "c23/real_train/12/real__345.mp4", "c23/real_train/12/real__346.mp4")
    assert facts(read_wilddeepfake(alone)) == {
        f"real_train-12-{n}": ("original", 0, "train", {"c23": f"c23/real_train/12/real__{n}.mp4"}) for n in (345, 346)
    }
    assert read_wilddeepfake(alone).gaps == []


@pytest.mark.parametrize(
    "path",
    [
        "real_train/12.tar.gz::12/real/345",
        "raw/real_train/12.tar.gz::12/real/345",
        "x/Real Train/12.tar::12/real/345",
        "real-train/12/real/345/",
        "real_train/12/12/real/345/",
        "real_train/12.tar.gz::real/345",
        "c23/real_train/12/real__345.mp4",
    ],
)
def test_one_place_for_a_made_quality_however_the_pictures_lie(path: str) -> None:
    assert find_dataset("wilddeepfake").compressed_path(path, "c40") == "c40/real_train/12/real__345.mp4"


WORDS = st.text("abcXYZ019-. ", min_size=1, max_size=8).filter(lambda text: text.strip("-. "))


@given(parts=st.lists(WORDS, min_size=1, max_size=4), shard_name=WORDS)
def test_made_paths_stay_apart(parts: list[str], shard_name: str) -> None:
    path = compressed_path(f"real_test/{shard_name}.tar::{shard_name}/{'/'.join(parts)}", "c23")
    assert path == f"c23/real_test/{shard_name}/{'__'.join(parts)}.mp4" or parts[0] == shard_name
    assert compressed_path(path, "c23") == path


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected files such as real_train/1\.tar\.gz below it$"):
        read_wilddeepfake(tmp_path)
    (tmp_path / "real_train").mkdir()
    (tmp_path / "real_train" / "1.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match=r"real_train/1\.tar\.gz: gzip-compressed"):
        read_wilddeepfake(tmp_path)
