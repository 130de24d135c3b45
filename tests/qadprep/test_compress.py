"""c23 and c40 for single-quality datasets: what is made, what is read back, what is never touched."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import trees
from helpers.clips import FRAMES, moving_face
from helpers.footage import one_face, release, two_faces
from helpers.packs import pack_hashes

from qadprep.catalog.base import read_dataset
from qadprep.catalog.manifest import read_manifest
from qadprep.compress import CompressConfig, compress_dataset, read_table
from qadprep.compress_files import read_journal
from qadprep.config import ExtractConfig
from qadprep.errors import UserError
from qadprep.extract_dataset import extract
from qadprep.video.decode import decode_at
from qadprep.video.encode import compress, crf_of, write_compressed, write_raw
from qadprep.video.probe import probe

CONFIG = CompressConfig(dataset="celebdf")


@pytest.fixture(scope="module")
def celebdf(portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("celebdf")
    trees.celebdf(root, lambda number: one_face("made", portrait, number))
    return root


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every made video; links to the originals are not followed."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("c*/*/*.mp4"))
    }


def test_quality_names() -> None:
    assert [crf_of(word) for word in ("c23", "c51", "c5", "raw", "c0", "c52", "c230")] == [23, 51, 5, *[None] * 4]


def test_made_videos_are_ffpps_kind_and_the_folder_is_a_root(celebdf: Path, tmp_path: Path) -> None:
    summary = compress_dataset(celebdf, tmp_path / "all", CONFIG, workers=2)
    assert (summary.made, summary.kept, summary.failures) == (12, 0, [])
    for file in read_table(tmp_path / "all"):
        info = probe(tmp_path / "all" / file.path)
        source = probe(celebdf / file.source)
        assert (info.frames, info.width, info.height, info.fps) == (source.frames, source.width, source.height, 25)
        assert info.crf == file.crf == crf_of(file.quality) and info.pix_fmt == file.pix_fmt == "yuv444p"
        assert "chroma_qp_offset=4" in file.encoder and file.ffmpeg.startswith("ffmpeg version")
        assert (file.bytes, file.source_bytes) == (info.bytes, source.bytes)
        # The pixels are those of encoding the decoded RGB frames, not of a detour.
        frames = decode_at(celebdf / file.source, source, range(source.frames))
        write_compressed(frames, tmp_path / "again.mp4", 25, file.crf)
        again = decode_at(tmp_path / "again.mp4", probe(tmp_path / "again.mp4"), [0, 11])
        made = decode_at(tmp_path / "all" / file.path, info, [0, 11])
        assert np.abs(made.astype(int) - again).mean() < 1.0
    catalog = read_dataset("celebdf", tmp_path / "all")
    assert {frozenset(clip.paths) for clip in catalog.clips} == {frozenset({"raw", "c23", "c40"})}
    assert not catalog.ignored
    before = {clip.id: clip for clip in read_dataset("celebdf", celebdf).clips}
    for clip in catalog.clips:  # labels, groups and splits are those of the released tree
        assert dataclasses.replace(clip, paths={}) == dataclasses.replace(before[clip.id], paths={})
    assert read_manifest(tmp_path / "all" / "compress-manifest.parquet") == catalog.clips


@pytest.mark.usefixtures("one_process")
def test_crops_from_made_files_equal_those_made_on_the_fly(celebdf: Path, tmp_path: Path) -> None:
    compress_dataset(celebdf, tmp_path / "all", CONFIG, workers=2)
    config = ExtractConfig(dataset="celebdf", frames=3, size_px=32)
    on_the_fly = config.model_copy(update={"make_qualities": True})
    extract(tmp_path / "all", tmp_path / "a", config, workers=1, detector="mtcnn")
    extract(celebdf, tmp_path / "b", on_the_fly, workers=2, detector="mtcnn")
    tars = [{n: h for n, h in pack_hashes(tmp_path / name).items() if n.endswith(".tar")} for name in ("a", "b")]
    assert tars[0] == tars[1] and len(tars[0]) == 4


@pytest.mark.usefixtures("one_process")
def test_second_run_keeps_and_only_what_changed_is_made_again(
    celebdf: Path, portrait: np.ndarray, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    trees.celebdf(root, lambda number: one_face("made", portrait, number))
    out = tmp_path / "all"
    compress_dataset(root, out, CONFIG, workers=2)
    before = hashes(out)
    (out / "c23" / "YouTube-real" / "00170.mp4").unlink()
    release(moving_face(portrait, FRAMES + 3, 9), root / "Celeb-real" / "id1_0007.mp4")
    left = out / "c40" / "Celeb-real" / ".id1_0007.mp4.part.mp4"
    left.write_bytes(b"half")
    summary = compress_dataset(root, out, CONFIG, workers=1)
    assert (summary.made, summary.kept, summary.failures) == (3, 9, []) and not left.exists()
    after = hashes(out)
    changed = {name for name in after if after[name] != before[name]}
    # The deleted one is there again with the same bytes.
    assert changed == {f"{quality}/Celeb-real/id1_0007.mp4" for quality in ("c23", "c40")} and set(after) == set(before)
    assert probe(out / "c40" / "Celeb-real" / "id1_0007.mp4").frames == FRAMES + 3
    with pytest.raises(UserError, match=r"was written with crf = \[23, 40\], now \[30\]"):
        compress_dataset(root, out, CompressConfig(dataset="celebdf", crf=(30,)))


@pytest.mark.usefixtures("one_process")
def test_a_run_that_was_cut_off_knows_its_own_videos_by_the_journal(
    portrait: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "data", tmp_path / "all"
    trees.celebdf(root, lambda number: one_face("made", portrait, number))

    def power_cut(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("qadprep.compress._write_table", power_cut)
        compress_dataset(root, out, CONFIG)
    assert len(read_journal(out)) == 12 and read_table(out) == []
    with (out / "compress.journal").open("a") as file:
        file.write('{"clip": "cut o')
    # The same number of frames and the same size, but other pictures: the old videos must go.
    release(one_face("made", portrait, 5), root / "Celeb-real" / "id1_0007.mp4")
    summary = compress_dataset(root, out, CONFIG)
    assert (summary.made, summary.kept, summary.failures) == (2, 10, [])
    assert not (out / "compress.journal").exists() and len(read_table(out)) == 12


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("right", [False, True])
def test_files_of_others_are_never_replaced(celebdf: Path, tmp_path: Path, right: bool) -> None:
    """Neither a wrong one nor a right one, whatever happens to its source later."""
    root = tmp_path / "data"
    shutil.copytree(celebdf, root)
    strange = root / "c23" / "Celeb-real" / "id1_0007.mp4"
    strange.parent.mkdir(parents=True)
    if right:
        compress(root / "Celeb-real" / "id1_0007.mp4", strange, 23)
        strange.write_bytes(strange.read_bytes() + bytes(8))  # as some other tool writes it
    else:
        strange.write_bytes(b"somebody's")
    before = strange.read_bytes()
    for overwrite in (False, True, False):
        summary = compress_dataset(root, root, CONFIG, overwrite=overwrite)
        statuses = {file.path: file.status for file in summary.files}
        assert statuses["c23/Celeb-real/id1_0007.mp4"] == ("found" if right else "other_file")
        assert strange.read_bytes() == before
        if not right:
            [failure] = summary.failures
            assert "move it away" in failure.message
    assert (summary.made, summary.kept) == (0, 12 if right else 11)
    (root / "Celeb-real" / "id1_0007.mp4").write_bytes(b"")
    compress_dataset(root, root, CONFIG)
    assert strange.read_bytes() == before


def test_nothing_is_written_through_links_and_nothing_before_that_is_known(celebdf: Path, tmp_path: Path) -> None:
    before = sorted(celebdf.rglob("*"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c23").symlink_to(celebdf)
    with pytest.raises(UserError, match="nothing is written through links"):
        compress_dataset(celebdf, tmp_path / "a", CONFIG)
    (tmp_path / "b" / "raw").mkdir(parents=True)
    with pytest.raises(UserError, match="is there and does not lead to"):
        compress_dataset(celebdf, tmp_path / "b", CONFIG)
    assert sorted(celebdf.rglob("*")) == before
    assert [file.name for file in (tmp_path / "b").rglob("*")] == ["raw"]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    "place",
    ["FF_raw/original/071.mp4", "FF_raw/original_sequences/071.mp4", "original_sequences/c0/videos/071.mp4"],
)
def test_copies_of_ffpp_in_other_layouts_become_whole_roots(portrait: np.ndarray, tmp_path: Path, place: str) -> None:
    root = tmp_path / "data"
    write_raw(one_face("made", portrait, 0), root / place, 25)
    summary = compress_dataset(root, tmp_path / "all", CompressConfig(dataset="ffpp", crf=(40,)))
    assert summary.made == 1 and not summary.failures
    catalog = read_dataset("ffpp", tmp_path / "all")
    [found] = catalog.clips
    assert set(found.paths) == {"raw", "c40"} and not catalog.ignored
    [listed] = read_manifest(tmp_path / "all" / "compress-manifest.parquet")
    assert listed == found and all((tmp_path / "all" / path).is_file() for path in listed.paths.values())


def test_raw_videos_in_two_folders_cannot_be_linked_into_one(tmp_path: Path) -> None:
    for folder, name in (("raw", "071"), ("c0", "054")):
        place = tmp_path / "original_sequences" / "youtube" / folder / "videos"
        place.mkdir(parents=True)
        (place / f"{name}.mp4").touch()
    with pytest.raises(UserError, match="both hold such videos; put them into one, or use --out"):
        compress_dataset(tmp_path, tmp_path.parent / "two", CompressConfig(dataset="ffpp"))
    assert not (tmp_path.parent / "two").exists()


@pytest.mark.usefixtures("one_process")
def test_the_dataset_in_a_folder_called_raw(portrait: np.ndarray, tmp_path: Path) -> None:
    root = tmp_path / "cd" / "raw"
    trees.celebdf(root, lambda number: one_face("made", portrait, number))
    assert compress_dataset(root, tmp_path / "cd", CompressConfig(dataset="celebdf", crf=(40,))).made == 6
    clips = read_dataset("celebdf", tmp_path / "cd").clips
    assert {frozenset(clip.paths) for clip in clips} == {frozenset({"raw", "c40"})} and len(clips) == 6


@pytest.mark.usefixtures("one_process")
def test_masks_and_inner_quality_folders_are_linked(portrait: np.ndarray, tmp_path: Path) -> None:
    def region(clip: np.ndarray) -> tuple[int, int, int, int]:
        return clip.shape[2] // 2, 0, clip.shape[2], clip.shape[1]

    trees.ffiw(tmp_path / "ffiw", lambda number: two_faces("made", portrait, number), region)
    config = CompressConfig(dataset="ffiw", crf=(40,))
    assert compress_dataset(tmp_path / "ffiw", tmp_path / "all", config, workers=2).made == 4
    catalog = read_dataset("ffiw", tmp_path / "all")
    assert len(catalog.clips) == 4 and not catalog.gaps
    for clip in catalog.clips:
        assert set(clip.paths) == {"raw", "c40"} and (clip.mask is None) == (clip.label == 0)
        assert clip.mask is None or (tmp_path / "all" / clip.mask).is_file()

    clip = one_face("made", portrait, 0)
    write_raw(clip, tmp_path / "ff" / "original_sequences" / "youtube" / "raw" / "videos" / "071.mp4", 25)
    config = CompressConfig(dataset="ffpp", crf=(23,))
    assert compress_dataset(tmp_path / "ff", tmp_path / "ff-all", config, workers=1).made == 1
    [found] = read_dataset("ffpp", tmp_path / "ff-all").clips
    assert set(found.paths) == {"raw", "c23"}
    # In place: the root itself gets the new folder.
    assert compress_dataset(tmp_path / "ff", tmp_path / "ff", config, workers=1).made == 1
    assert (tmp_path / "ff" / "original_sequences" / "youtube" / "c23" / "videos" / "071.mp4").is_file()


@pytest.mark.usefixtures("one_process")
def test_pictures_become_videos(portrait: np.ndarray, tmp_path: Path) -> None:
    trees.wilddeepfake(tmp_path / "wild", lambda number: one_face("made", portrait, number))
    config = CompressConfig(dataset="wilddeepfake", crf=(40,))
    summary = compress_dataset(tmp_path / "wild", tmp_path / "all", config, workers=2)
    assert summary.made == 4 and not summary.failures
    clips = read_dataset("wilddeepfake", tmp_path / "all").clips
    assert {frozenset(clip.paths) for clip in clips} == {frozenset({"raw", "c40"})}
    assert {probe(tmp_path / "all" / clip.paths["c40"]).frames for clip in clips} == {24}


def test_bad_input_ends_in_the_table(celebdf: Path, portrait: np.ndarray, tmp_path: Path) -> None:
    root = tmp_path / "data"
    trees.celebdf(root, lambda number: one_face("made", portrait, number))
    real = root / "Celeb-real"
    (real / "id60_0001.mp4").write_bytes(b"")
    damaged = bytearray((real / "id1_0007.mp4").read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 400] = bytes(400)
    (real / "id1_0007.mp4").write_bytes(damaged)
    command = [sys.executable, "-m", "qadprep", "compress", root, "--dataset", "celebdf", "--out", tmp_path / "all"]
    run = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    result = json.loads(run.stdout)
    found = {(f["clip"], f["quality"]): f["status"] for f in result["failures"]}
    assert found == {
        ("celebdf/original/id60_0001", "c23"): "empty_file",
        ("celebdf/original/id60_0001", "c40"): "empty_file",
        ("celebdf/original/id1_0007", "c23"): "encode_error",
        ("celebdf/original/id1_0007", "c40"): "encode_error",
    }
    assert result["made"] == 8 and not list((tmp_path / "all").rglob(".*.mp4*"))


@pytest.mark.usefixtures("one_process")
def test_an_odd_picture_size_cannot_be_yuv420p(portrait: np.ndarray, tmp_path: Path) -> None:
    clip = one_face("made", portrait, 0)[:, :-1, :-1]
    source = tmp_path / "data" / "YouTube-real" / "00170.mp4"
    write_compressed(clip, source, 25, 18)
    config = CompressConfig(dataset="celebdf", crf=(40,), pix_fmt="yuv420p")
    [failure] = compress_dataset(tmp_path / "data", tmp_path / "a", config, workers=1).failures
    assert failure.status == "encode_error" and "picture is 239x179, yuv420p needs even sides" in failure.message
    config = CompressConfig(dataset="celebdf", crf=(40,))
    assert compress_dataset(tmp_path / "data", tmp_path / "b", config, workers=1).made == 1


def test_wrong_use(celebdf: Path, tmp_path: Path) -> None:
    for crf in ((), (23, 23), (0,), (52,), ("x",)):
        with pytest.raises(UserError, match="--crf"):
            CompressConfig.checked(dataset="celebdf", crf=crf)
    with pytest.raises(UserError, match="lies inside the dataset"):
        compress_dataset(celebdf, celebdf / "c", CONFIG)
    with pytest.raises(UserError, match=r"no such clip below .* it has CelebDF, original"):
        compress_dataset(celebdf, tmp_path, CompressConfig(dataset="celebdf", methods=("FaceSwap",)))


@pytest.mark.usefixtures("one_process")
def test_nothing_is_made_from_a_quality_that_is_compressed_already(portrait: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "original_sequences" / "youtube"
    release(one_face("made", portrait, 0), tmp_path / "x.mp4")
    compress(tmp_path / "x.mp4", folder / "c23" / "videos" / "071.mp4", 23)
    config = CompressConfig(dataset="ffpp", crf=(40,))
    [failure] = compress_dataset(tmp_path, tmp_path.parent / "out", config).failures
    assert failure.status == "no_raw" and "no raw file on disk" in failure.message
    # Nor from a raw file that is none.
    (folder / "raw" / "videos").mkdir(parents=True)
    (tmp_path / "x.mp4").rename(folder / "raw" / "videos" / "071.mp4")
    [failure] = compress_dataset(tmp_path, tmp_path.parent / "out", config).failures
    assert failure.status == "quality_mismatch" and "made with CRF 18, it cannot be raw (0)" in failure.message
