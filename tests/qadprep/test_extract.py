import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.clips import FRAMES, moving_face, write_qualities
from helpers.packs import pack_hashes

from qadprep.catalog.base import Group, read_dataset
from qadprep.catalog.manifest import write_manifest
from qadprep.config import ExtractConfig
from qadprep.errors import UserError
from qadprep.extract import extract_group
from qadprep.extract_dataset import extract, load_config
from qadprep.faces import Detector, make_detector
from qadprep.faces.alignment import warp_face
from qadprep.pack import find_packs, read_pack
from qadprep.shardset import decode_image, pixel_hash
from qadprep.video.decode import decode_at
from qadprep.video.encode import compress
from qadprep.video.probe import probe

CONFIG = ExtractConfig(dataset="ffpp", frames=6, size_px=64, detector={"name": "mtcnn"})
FAKE_054 = "manipulated_sequences/{}/{}/videos/054_071.mp4"
ORIGINAL = "original_sequences/youtube/{}/videos/{}.mp4"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector("mtcnn")


def group_of(root: Path, name: str) -> Group:
    return next(group for group in read_dataset("ffpp", root).groups() if group.name == name)


def rows_of(out: Path, group: str) -> list[dict]:
    return read_pack(out / "ffpp" / f"{group}.parquet").table.to_pylist()


def test_one_geometry_cuts_every_clip_and_quality_bit_for_bit(
    ffpp_tree_master: Path, tmp_path: Path, detector: Detector
) -> None:
    result = extract_group(group_of(ffpp_tree_master, "054"), ffpp_tree_master, tmp_path, CONFIG, detector)
    assert result.statuses == {"ok": 18} and not result.failures and result.sync == {"reference": 1, "proved": 8}
    pack = read_pack(tmp_path / "ffpp" / "054.parquet")
    rows = pack.table.to_pylist()
    data = pack.tar.read_bytes()
    by_frame: dict[int, set[tuple]] = {}
    for row in rows:
        by_frame.setdefault(row["frame"], set()).add((tuple(row["affine"]), tuple(row["box_xyxy"])))
        assert row["geometry"] == "reference" and row["detector"] == "mtcnn"
    assert len(by_frame) == 6 and all(len(geometries) == 1 for geometries in by_frame.values())
    for row in rows:
        clip = ORIGINAL.format("{}", "054") if row["method"] == "original" else FAKE_054.format(row["method"], "{}")
        for quality in ("raw", "c23", "c40"):
            video = ffpp_tree_master / clip.format(quality)
            frame = decode_at(video, probe(video), [row["frame"]])[0]
            expected = warp_face(frame, np.array(row["affine"]).reshape(2, 3), 64)
            offset, size = row[f"{quality}_offset"], row[f"{quality}_size"]
            stored = decode_image(data[offset : offset + size], 64)
            np.testing.assert_array_equal(stored, expected)
            assert row[f"{quality}_pixels_sha256"] == pixel_hash(expected)
        assert row["raw_psnr_db"] == np.inf and row["c23_psnr_db"] > row["c40_psnr_db"] > 15


def test_crops_of_original_and_fake_agree_outside_the_altered_region(
    ffpp_tree_master: Path, tmp_path: Path, detector: Detector
) -> None:
    extract_group(group_of(ffpp_tree_master, "054"), ffpp_tree_master, tmp_path, CONFIG, detector)
    pack = read_pack(tmp_path / "ffpp" / "054.parquet")
    data = pack.tar.read_bytes()
    crops = {
        (row["method"], row["frame"]): decode_image(data[row["raw_offset"] : row["raw_offset"] + row["raw_size"]], 64)
        for row in pack.table.to_pylist()
    }
    for (method, frame), crop in crops.items():
        if method != "original":
            change = np.abs(crop.astype(int) - crops["original", frame])
            assert change.max() > 10  # the altered middle
            assert change[-3:].max() == 0  # below the altered region, the picture is the same


def test_members_are_named_as_specified(faces_master: Path) -> None:
    import tarfile

    with tarfile.open(faces_master / "ffpp" / "054.tar") as tar:
        names = tar.getnames()
        assert {member.mtime for member in tar.getmembers()} == {0}
    assert len(names) == len(set(names)) == 3 * 8 * 3
    method, video, last = names[-1].split("/")
    frame, quality, extension = last.split(".")
    assert (method, video, quality, extension) == ("FaceSwap", "054_071", "c40", "png")
    assert len(frame.split("_")[0]) == 6 and frame.split("_")[1] == "0"


def test_same_bytes_for_any_number_of_workers(ffpp_tree_master: Path, faces_master: Path, tmp_path: Path) -> None:
    config = ExtractConfig(dataset="ffpp", frames=8, size_px=64)
    extract(ffpp_tree_master, tmp_path, config, workers=1, detector="mtcnn")
    assert pack_hashes(tmp_path) == pack_hashes(faces_master)


def test_second_run_skips_and_reports_the_same(ffpp_tree_master: Path, faces_master: Path) -> None:
    before = pack_hashes(faces_master)
    config = ExtractConfig(dataset="ffpp", frames=8, size_px=64)
    summary = extract(ffpp_tree_master, faces_master, config, workers=1, detector="mtcnn").as_dict()
    assert summary["groups"] == summary["groups_skipped"] == 4 and summary["tuples"] == 96
    assert summary["sync"] == {"proved": 32, "reference": 4}
    assert pack_hashes(faces_master) == before
    assert load_config(faces_master).frames == 8


@pytest.mark.usefixtures("one_process")
def test_another_config_is_refused_and_overwrite_replaces(ffpp_tree_master: Path, tmp_path: Path) -> None:
    for name in ("071.parquet", "071.tar"):
        (tmp_path / "ffpp").mkdir(exist_ok=True)
        (tmp_path / "ffpp" / name).write_bytes(b"of another run")
    (tmp_path / "extract.json").write_text(json.dumps({"frames": 3}))
    small = ExtractConfig(dataset="ffpp", frames=2, size_px=32)
    with pytest.raises(UserError, match=r"was written with .* --overwrite"):
        extract(ffpp_tree_master, tmp_path, small, workers=1, detector="mtcnn")
    summary = extract(ffpp_tree_master, tmp_path, small, workers=1, detector="mtcnn", overwrite=True)
    assert summary.as_dict()["tuples"] == 24 and not summary.failed
    assert len(find_packs(tmp_path)) == 4


def test_frames_without_a_face_are_refilled(portrait: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    clip = moving_face(portrait, 40, 0)
    clip[5:20] = np.random.default_rng(0).integers(0, 80, clip[5:20].shape, np.uint8)
    root = tmp_path / "data"
    write_qualities(clip, root / "original_sequences" / "youtube", "071")
    config = ExtractConfig(dataset="ffpp", frames=12, size_px=64)
    result = extract_group(group_of(root, "071"), root, tmp_path, config, detector)
    assert result.tuples == 12 and result.statuses["no_face"] >= 3
    rows = rows_of(tmp_path, "071")
    assert all((row["status"] in ("ok", "surplus")) == (not 5 <= row["frame"] < 20) for row in rows)
    assert len({row["frame"] for row in rows}) == len(rows)


def test_damage_in_the_middle_costs_the_frames_behind_it(ffpp_tree: Path, tmp_path: Path, detector: Detector) -> None:
    video = ffpp_tree / FAKE_054.format("Deepfakes", "raw")
    data = bytearray(video.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    video.write_bytes(data)
    result = extract_group(group_of(ffpp_tree, "054"), ffpp_tree, tmp_path, CONFIG, detector)
    assert result.statuses["ok"] + result.statuses["decode_error"] == 18 and result.statuses["decode_error"] >= 1
    [(path, status, message)] = result.failures
    assert (
        path.endswith("Deepfakes/raw/videos/054_071.mp4")
        and status == "decode_error"
        and "could not be decoded" in message
    )
    rows = [row for row in rows_of(tmp_path, "054") if row["method"] == "Deepfakes"]
    first_lost = min(row["frame"] for row in rows if row["status"] == "decode_error")
    assert all((row["status"] == "ok") == (row["frame"] < first_lost) for row in rows)


def test_damage_in_the_original_keeps_its_good_frames(ffpp_tree: Path, tmp_path: Path, detector: Detector) -> None:
    video = ffpp_tree / ORIGINAL.format("raw", "054")
    data = bytearray(video.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    video.write_bytes(data)
    result = extract_group(group_of(ffpp_tree, "054"), ffpp_tree, tmp_path, CONFIG, detector)
    [(path, status, _)] = result.failures
    assert path.endswith("youtube/raw/videos/054.mp4") and status == "decode_error"
    ok = dict.fromkeys(("original", "Deepfakes", "FaceSwap"), 0)
    for row in rows_of(tmp_path, "054"):
        ok[row["method"]] += row["status"] == "ok"
    # Lost frames are refilled from before the damage, for the original and its manipulations alike.
    assert set(ok.values()) == {6} and result.statuses["decode_error"] >= 3


def test_every_spare_is_tried_where_faces_are_rare(portrait: np.ndarray, tmp_path: Path, detector: Detector) -> None:
    clip = moving_face(portrait, 60, 0)
    clip[:46] = np.random.default_rng(0).integers(0, 80, clip[:46].shape, np.uint8)
    root = tmp_path / "data"
    write_qualities(clip, root / "original_sequences" / "youtube", "071")
    config = ExtractConfig(dataset="ffpp", frames=12, size_px=64)
    result = extract_group(group_of(root, "071"), root, tmp_path, config, detector)
    assert result.tuples == 12 and not result.notes


@pytest.mark.usefixtures("one_process")
def test_retry_failed_and_changed_labels(ffpp_tree_master: Path, tmp_path: Path) -> None:
    config = ExtractConfig(dataset="ffpp", frames=2, size_px=32)
    clips = [clip for clip in read_dataset("ffpp", ffpp_tree_master).clips if clip.group in ("054", "953")]
    clips = [
        clip if clip.group == "953" else dataclasses.replace(clip, paths=clip.paths | {"c40": "no.mp4"})
        for clip in clips
    ]

    def run(split: str, **options: bool) -> dict:
        changed = [dataclasses.replace(clip, split=split) for clip in clips]
        write_manifest(changed, tmp_path / "m.parquet")
        options |= {"workers": 1, "detector": "mtcnn", "manifest": tmp_path / "m.parquet"}
        return extract(ffpp_tree_master, tmp_path / "faces", config, **options).as_dict()

    assert (run("train")["groups_skipped"], run("train")["groups_skipped"]) == (0, 2)
    assert run("train", retry_failed=True)["groups_skipped"] == 1
    assert run("test")["groups_skipped"] == 0
    assert {row["split"] for row in rows_of(tmp_path / "faces", "953")} == {"test"}
    assert run("test", overwrite=True)["groups_skipped"] == 0


@pytest.mark.slow
def test_every_kind_of_bad_input_ends_in_the_table(ffpp_tree: Path, tmp_path: Path) -> None:
    """Truncated, empty, text, faceless, short, missing: each with its reason, and everything else is extracted."""
    deepfakes, faceswap = (ffpp_tree / "manipulated_sequences" / name for name in ("Deepfakes", "FaceSwap"))
    truncated = deepfakes / "c23" / "videos" / "071_054.mp4"
    truncated.write_bytes(truncated.read_bytes()[:-3000])
    (faceswap / "raw" / "videos" / "071_054.mp4").write_bytes(b"")
    (deepfakes / "c40" / "videos" / "054_071.mp4").write_text("this is text\n" * 100)
    (faceswap / "c40" / "videos" / "054_071.mp4").unlink()
    short = faceswap / "raw" / "videos" / "974_953.mp4"
    write_qualities(decode_at(short, probe(short), range(20)), faceswap, "974_953")
    very_short = deepfakes / "raw" / "videos" / "974_953.mp4"
    write_qualities(decode_at(very_short, probe(very_short), range(3)), deepfakes, "974_953")
    scenery = np.random.default_rng(0).integers(0, 90, (FRAMES, 60, 80, 3), np.uint8)
    faceless = np.stack([cv2.resize(np.roll(frame, i, 1), (240, 180)) for i, frame in enumerate(scenery)])
    for method, name in (("Deepfakes", "953_974"), ("FaceSwap", "953_974")):
        for quality in ("raw", "c23", "c40"):
            (ffpp_tree / "manipulated_sequences" / method / quality / "videos" / f"{name}.mp4").unlink()
    write_qualities(faceless, ffpp_tree / "original_sequences" / "youtube", "953")

    command = [sys.executable, "-m", "qadprep", "extract", ffpp_tree, "--out", tmp_path / "faces", "--frames", "6"]
    command += ["--size", "64", "--detector", "mtcnn", "--workers", "2"]
    run = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    result = json.loads(run.stdout)
    reasons = {(failure["what"].split("/")[-1], failure["status"]) for failure in result["failures"]}
    assert ("071_054.mp4", "unreadable") in reasons  # cut short at the end, where its index was
    assert ("071_054.mp4", "empty_file") in reasons
    assert ("054_071.mp4", "unreadable") in reasons
    assert ("054_071", "missing_quality") in reasons
    assert ("974_953.mp4", "too_short") in reasons
    assert ("953", "no_face") in reasons
    assert {f["what"] for f in result["failures"]} >= {"FaceSwap/054_071", "original/953"}
    notes = {note["clip"]: note["note"] for note in result["notes"]}
    assert notes["ffpp/FaceSwap/974_953"].startswith(f"shorter than its original: 20 of {FRAMES} frames")
    # The others are all there: 071, 054 and 974 originals, and FaceSwap 974_953.
    assert result["statuses"]["ok"] == 4 * 6 == result["tuples"]
    for failure in result["failures"]:
        assert "\n" not in failure["message"] and failure["message"]
    rows = [row for group in ("054", "071", "953", "974") for row in rows_of(tmp_path / "faces", group)]
    assert sum(row["status"] == "ok" for row in rows) == 24
    assert max(row["frame"] for row in rows if row["group"] == "974") < 20

    table = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert table.returncode == 1  # skipped groups still report their failures
    for word in ("empty_file", "missing_quality", "too_short", "no_face", "4 of them finished earlier"):
        assert word in table.stdout + table.stderr

    # A file that was fetched again is noticed, and its group done again.
    compress(ffpp_tree / FAKE_054.format("FaceSwap", "raw"), ffpp_tree / FAKE_054.format("FaceSwap", "c40"), 40)
    again = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=False)
    result = json.loads(again.stdout)
    assert result["groups_skipped"] == 3 and result["tuples"] == 30


def test_wrong_use_ends_with_one_line(ffpp_tree_master: Path, tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "qadprep", *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.returncode, result.stderr.strip()

    code, message = run("extract", ffpp_tree_master, "--out", tmp_path / "x", "--qualities", "raw,c99")
    assert code == 2 and "no video of quality 'c99'; it has raw,c23,c40" in message and "\n" not in message
    code, message = run("extract", tmp_path, "--out", tmp_path / "x")
    assert code == 2 and "no FaceForensics++ video found" in message and "\n" not in message
    code, message = run("extract", ffpp_tree_master, "--out", tmp_path / "x", "--frames", "0")
    assert code == 2 and "--frames: got 0" in message
    code, message = run("extract", ffpp_tree_master, "--out", tmp_path / "x", "--dataset", "nope")
    assert code == 2 and "unknown dataset 'nope'; known: celebdf, dfd" in message
    code, message = run("--debug", "extract", tmp_path, "--out", tmp_path / "x")
    assert code != 0 and "Traceback" in message
    assert not (tmp_path / "x").exists()
