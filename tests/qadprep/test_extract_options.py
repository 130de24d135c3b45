"""Options of `extract` that decide which files and clips are used."""

import dataclasses
from pathlib import Path

import pytest

from qadprep.catalog.base import read_dataset
from qadprep.catalog.manifest import write_manifest
from qadprep.config import ExtractConfig
from qadprep.crops import encode_png
from qadprep.errors import UserError
from qadprep.extract_dataset import ExtractSummary, extract
from qadprep.pack import find_packs, read_pack
from qadprep.protocols import load_protocol
from qadprep.video.decode import decode_at
from qadprep.video.encode import write_raw
from qadprep.video.probe import probe

CONFIG = ExtractConfig(dataset="ffpp", frames=3, size_px=32)
pytestmark = pytest.mark.usefixtures("one_process")


def run(root: Path, out: Path, config: ExtractConfig = CONFIG, **options: object) -> ExtractSummary:
    return extract(root, out, config, workers=1, detector="mtcnn", **options)


def rows_of(out: Path) -> list[dict]:
    return [row for path in find_packs(out) for row in read_pack(path).table.to_pylist()]


def test_a_file_that_lies_about_its_quality_is_refused_by_name(ffpp_tree: Path, tmp_path: Path) -> None:
    folder = ffpp_tree / "manipulated_sequences" / "Deepfakes"
    liar = folder / "c23" / "videos" / "054_071.mp4"
    liar.write_bytes((folder / "c40" / "videos" / "054_071.mp4").read_bytes())
    result = run(ffpp_tree, tmp_path / "a").as_dict()
    [failure] = result["failures"]
    assert failure["what"].endswith("Deepfakes/c23/videos/054_071.mp4") and failure["status"] == "quality_mismatch"
    assert "made with CRF 40, its folder says c23 (23)" in failure["message"]
    assert {(r["method"], r["name"]) for r in rows_of(tmp_path / "a") if r["status"] == "quality_mismatch"} == {
        ("Deepfakes", "054_071")
    }
    accepted = run(ffpp_tree, tmp_path / "b", CONFIG.model_copy(update={"accept_mislabelled": True})).as_dict()
    assert not accepted["failures"] and accepted["tuples"] == result["tuples"] + 3
    [note] = accepted["notes"]  # used, but not in silence
    assert note["clip"] == "ffpp/Deepfakes/054_071" and "made with CRF 40, its folder says c23" in note["note"]


def test_raw_must_be_lossless_where_the_dataset_promises_it(ffpp_tree: Path, tmp_path: Path) -> None:
    youtube = ffpp_tree / "original_sequences" / "youtube"
    lossy = (youtube / "c23" / "videos" / "071.mp4").read_bytes()
    (youtube / "raw" / "videos" / "071.mp4").write_bytes(lossy)
    [failure] = run(ffpp_tree, tmp_path).as_dict()["failures"]
    assert failure["status"] == "quality_mismatch" and "CRF 23, its folder says raw (0)" in failure["message"]


def test_a_length_against_the_methods_rule_is_noted(ffpp_tree: Path, tmp_path: Path) -> None:
    for method in ("Deepfakes", "FaceSwap"):
        video = ffpp_tree / "manipulated_sequences" / method / "raw" / "videos" / "054_071.mp4"
        write_raw(decode_at(video, probe(video), range(20)), video, 25)
    notes = run(ffpp_tree, tmp_path).as_dict()["notes"]
    rule = [(note["clip"], note["note"]) for note in notes if "has its target's length" in note["note"]]
    # FaceSwap may be shorter than its target, Deepfakes may not.
    assert rule == [
        ("ffpp/Deepfakes/054_071", "a Deepfakes clip has its target's length, 26 frames, but this one has 20")
    ]


def test_a_protocol_takes_its_methods_alone(ffpp_tree_master: Path, tmp_path: Path) -> None:
    said: list[str] = []
    protocol = load_protocol("qad-ffpp-Deepfakes")
    run(ffpp_tree_master, tmp_path / "a", protocol=protocol, say=said.append)
    assert {row["method"] for row in rows_of(tmp_path / "a")} == {"original", "Deepfakes"}
    assert "qad-ffpp-Deepfakes: 2 of 720 videos of Deepfakes/train are on disk" in said
    with pytest.raises(UserError, match="protocol 'qad-celebdf' is of dataset celebdf, got --dataset ffpp"):
        run(ffpp_tree_master, tmp_path / "b", protocol=load_protocol("qad-celebdf"))


def test_leaking_training_clips_are_left_out_on_request(ffpp_tree_master: Path, tmp_path: Path) -> None:
    clips = read_dataset("ffpp", ffpp_tree_master).clips
    # As if the official list had put the original of a train group into test.
    clips = [
        dataclasses.replace(clip, split="test") if clip.name == "054" else clip
        for clip in clips
        if clip.group in ("054", "071")
    ]
    write_manifest(clips, tmp_path / "m.parquet")
    options = {"manifest": tmp_path / "m.parquet"}
    assert len({r["name"] for r in rows_of_run(ffpp_tree_master, tmp_path / "all", **options)}) == 4
    kept = rows_of_run(ffpp_tree_master, tmp_path / "kept", drop_leaks=True, **options)
    assert {(row["method"], row["name"]) for row in kept} == {("original", "054")} | {("original", "071")}


def rows_of_run(root: Path, out: Path, **options: object) -> list[dict]:
    run(root, out, **options)
    return rows_of(out)


def test_a_made_quality_follows_its_source(ffpp_tree: Path, tmp_path: Path) -> None:
    raw = ffpp_tree / "original_sequences" / "youtube" / "raw" / "videos" / "054.mp4"
    (ffpp_tree / "original_sequences" / "youtube" / "c40" / "videos" / "054.mp4").unlink()
    config = CONFIG.model_copy(update={"qualities": ("c23", "c40"), "make_qualities": True})
    assert run(ffpp_tree, tmp_path, config).as_dict()["tuples"] == 36
    assert run(ffpp_tree, tmp_path, config).as_dict()["groups_skipped"] == 4
    # The raw file is no quality of this run, and yet the c40 of this group came from it.
    write_raw(decode_at(raw, probe(raw), range(25)), raw, 25)
    assert run(ffpp_tree, tmp_path, config).as_dict()["groups_skipped"] == 3


def test_nothing_is_made_from_a_raw_that_lies(ffpp_tree: Path, tmp_path: Path) -> None:
    youtube = ffpp_tree / "original_sequences" / "youtube"
    (youtube / "raw" / "videos" / "071.mp4").write_bytes((youtube / "c40" / "videos" / "071.mp4").read_bytes())
    (youtube / "c23" / "videos" / "071.mp4").unlink()
    config = CONFIG.model_copy(update={"qualities": ("c23", "c40"), "make_qualities": True})
    [failure] = run(ffpp_tree, tmp_path, config).as_dict()["failures"]
    assert failure["status"] == "quality_mismatch" and "nothing is made from it" in failure["message"]


def test_made_files_of_clips_with_joining_names_stay_apart(ffpp_tree_master: Path, tmp_path: Path) -> None:
    folder = ffpp_tree_master / "original_sequences" / "youtube" / "raw" / "videos"
    for name, source in (("a", "071"), ("a-b", "054")):
        (tmp_path / f"{name}.mp4").write_bytes((folder / f"{source}.mp4").read_bytes())
    rows = ["path,label,method,name,group", "a.mp4,1,a,b-c,g", "a-b.mp4,1,a-b,c,g"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    config = ExtractConfig(dataset="generic", frames=3, size_px=32, qualities=("raw", "c23"), make_qualities=True)
    result = run(tmp_path / "list.csv", tmp_path / "out", config).as_dict()
    assert result["tuples"] == 6 and not result["failures"]
    assert min(row["c23_psnr_db"] for row in rows_of(tmp_path / "out")) > 34


def test_pictures_that_are_left_out_are_noted(ffpp_tree_master: Path, tmp_path: Path) -> None:
    video = ffpp_tree_master / "original_sequences" / "youtube" / "raw" / "videos" / "071.mp4"
    folder = tmp_path / "shots"
    folder.mkdir()
    for index, frame in enumerate(decode_at(video, probe(video), range(5))):
        (folder / f"{index}.png").write_bytes(encode_png(frame))
    (folder / "cover.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "list.csv").write_text("path,label\nshots/,0\n")
    config = ExtractConfig(dataset="generic", frames=3, size_px=32, qualities=("raw",))
    result = run(tmp_path / "list.csv", tmp_path / "out", config).as_dict()
    assert result["tuples"] == 3 and not result["failures"]
    [note] = result["notes"]
    assert note["clip"] == "generic/original/shots" and "1 pictures left out (cover.png" in note["note"]
