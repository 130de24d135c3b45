"""A crop is the fully decoded frame at its index, warped with the stored affine, and nothing else."""

import shutil
from pathlib import Path

from helpers.pixels import Checked, check_packs

from qadprep.config import ExtractConfig
from qadprep.demo.dataset import make_dataset
from qadprep.extract_dataset import extract
from qadprep.video.encode import compress

QUALITIES = 3


def check_all(out: Path, root: Path) -> Checked:
    checked = check_packs(out, root)
    assert checked.faults == []
    assert checked.crops == QUALITIES * checked.tuples
    return checked


def test_of_the_made_tree(faces_master: Path, ffpp_tree_master: Path) -> None:
    checked = check_all(faces_master, ffpp_tree_master)
    # 4 originals and 8 fakes of 8 tuples; every file of this tree shows the same instants.
    assert checked.tuples == 96
    assert sum(checked.verdicts[verdict] for verdict in ("reference", "proved", "static")) == checked.crops
    assert checked.verdicts["proved"] >= checked.crops / 2


def test_where_clips_are_their_own_reference(ffpp_tree: Path, tmp_path: Path, one_process: None) -> None:
    shutil.rmtree(ffpp_tree / "original_sequences")
    shutil.rmtree(ffpp_tree / "manipulated_sequences" / "FaceSwap")
    config = ExtractConfig(dataset="ffpp", frames=4, size_px=128, align="box")
    extract(ffpp_tree, tmp_path / "out", config, detector="mtcnn")
    assert check_all(tmp_path / "out", ffpp_tree).tuples == 4 * 4


def test_the_check_sees_a_file_of_other_frames(ffpp_tree: Path, faces_master: Path) -> None:
    videos = ffpp_tree / "original_sequences" / "youtube"
    compress(videos / "raw" / "videos" / "071.mp4", videos / "c23" / "videos" / "071.mp4", 24)
    faults = check_packs(faces_master, ffpp_tree).faults
    assert len(faults) == 8
    assert all("c23/videos/071.mp4" in fault and "values differ" in fault for fault in faults)


def test_of_real_clips(real_clips: list[Path], tmp_path: Path) -> None:
    names = ("retalking_5", "liveportrait_d9", "dpe_s")
    clips = [clip for clip in real_clips if clip.stem in names] or real_clips[:3]
    folder, root = tmp_path / "clips", tmp_path / "root"
    folder.mkdir()
    for clip in clips:
        shutil.copy(clip, folder)
    # Where there is no real clip, the demo's portraits stand in.
    made = make_dataset(root, clips_dir=folder if clips else None, frames=24, pairs={"train": 1}, seed=1)
    assert made.from_clips == min(len(clips), 2)
    config = ExtractConfig(dataset="ffpp", frames=8, size_px=128)
    summary = extract(root, tmp_path / "out", config, detector="mtcnn", workers=2)
    checked = check_all(tmp_path / "out", root)
    assert not summary.failed, summary.as_dict()["failures"]
    # Two originals and ten fakes.
    assert checked.tuples == 12 * 8
