import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.rewritten import Made, rewrite

from qadprep.cli import main
from qadprep.diff import diff
from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadprep.split_set import split


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


def changed(change: Callable[[list[Made]], None]) -> Callable[[list[Made]], list[Made]]:
    def all_of(made: list[Made]) -> list[Made]:
        change(made)
        return made

    return all_of


def keys(folder: Path) -> list[str]:
    return ShardSet(folder).table["key"].to_pylist()


def test_a_set_equals_itself_in_other_shards_and_another_codec(made_shards_master: Path, tmp_path: Path) -> None:
    report = diff(made_shards_master, made_shards_master)
    assert report.equal and (report.common, report.moved, report.settings) == (60, 0, [])
    for codec in ("webp", "raw"):
        recoded = rewrite(made_shards_master, tmp_path / codec, codec=codec)
        report = diff(made_shards_master, recoded)
        assert report.equal and report.common == 60
        assert report.settings == [("codec", "png", codec)]


def test_tuples_of_one_side_only(made_shards_master: Path, tmp_path: Path) -> None:
    split(made_shards_master, tmp_path / "a", where="frame <> 10")
    split(made_shards_master, tmp_path / "b", where="method <> 'FaceSwap'")
    report = diff(tmp_path / "a", tmp_path / "b", show=3)
    # 15 clips of 4 frames; 5 of them FaceSwap.
    assert (report.common, report.only_in_a, report.only_in_b) == (30, 15, 10)
    assert report.examples["only_in_a"] == [key for key in keys(tmp_path / "a") if "FaceSwap" in key][:3]
    assert report.examples["only_in_b"] == [key for key in keys(tmp_path / "b") if "/000010_" in key][:3]
    assert report.moved == 0 and not report.pixels and not report.equal


def test_pixels_that_differ_are_measured(made_shards_master: Path, tmp_path: Path) -> None:
    def change(made: list[Made]) -> None:
        made[5].images["c23"] = made[5].images["c23"].copy()
        made[5].images["c23"][0, 0, 0] ^= 8
        made[20].images["c23"] = 255 - made[20].images["c23"]
        made[20].images["c40"] = 255 - made[20].images["c40"]

    other = rewrite(made_shards_master, tmp_path / "other", changed(change))
    names = keys(made_shards_master)
    report = diff(made_shards_master, other)
    assert report.pixels == {"c23": 2, "c40": 1} and report.tuples_with_other_pixels == 2
    assert not report.columns and not report.facts and not report.equal
    assert [(row["key"], row["quality"]) for row in report.shown] == [
        (names[5], "c23"), (names[20], "c23"), (names[20], "c40")
    ]  # fmt: skip
    first = report.shown[0]
    assert first["max_abs"] == 8 and first["mean_abs"] == pytest.approx(8 / (24 * 24 * 3))
    assert first["psnr_db"] == pytest.approx(10 * math.log10(255**2 * 24 * 24 * 3 / 64))
    with ShardSet(made_shards_master) as shards:
        image = shards[20].images["c40"].astype(int)
    assert report.shown[2]["mean_abs"] == pytest.approx(np.abs(255 - 2 * image).mean())
    assert len(diff(made_shards_master, other, show=1).shown) == 1
    assert diff(made_shards_master, other, show=0).pixels == report.pixels


@pytest.mark.parametrize("both", [True, False])
def test_sets_without_pixel_hashes_are_decoded(both: bool, made_shards_master: Path, tmp_path: Path) -> None:
    def change(made: list[Made]) -> None:
        made[7].images["raw"] = made[7].images["raw"][::-1].copy()

    gone = tuple(f"{quality}_pixels_sha256" for quality in ("raw", "c23", "c40"))
    old = rewrite(made_shards_master, tmp_path / "old", without=gone)
    same = diff(old, made_shards_master if not both else old)
    assert same.equal and same.common == 60
    other = rewrite(made_shards_master, tmp_path / "other", changed(change), without=gone if both else ())
    report = diff(old, other)
    assert report.pixels == {"raw": 1} and report.tuples_with_other_pixels == 1
    assert [row["key"] for row in report.shown] == [keys(old)[7]]


def test_hashes_that_only_some_shards_have(made_shards_master: Path, tmp_path: Path) -> None:
    def change(made: list[Made]) -> None:
        made[0].images["c40"] = made[0].images["raw"]

    split(made_shards_master, tmp_path / "a", where="split = 'train'")
    split(made_shards_master, tmp_path / "b", where="split <> 'train'")
    old = rewrite(tmp_path / "a", tmp_path / "old", without=("c40_pixels_sha256",))
    from qadprep.merge import merge

    merge([old, tmp_path / "b"], tmp_path / "mixed")
    assert ShardSet(tmp_path / "mixed").table["c40_pixels_sha256"].null_count == 36
    assert diff(tmp_path / "mixed", made_shards_master).equal
    other = rewrite(made_shards_master, tmp_path / "other", changed(change))
    assert diff(tmp_path / "mixed", other).pixels == {"c40": 1}


def test_facts_and_columns_that_differ(made_shards_master: Path, tmp_path: Path) -> None:
    def change(made: list[Made]) -> None:
        made[1].row["target"] = made[1].facts["target"] = "somebody"
        made[2].row["face_px"] = None
        made[3].row["face_px"] = made[3].row["face_px"] + 1
        made[4].facts["box_xyxy"] = [0, 0, 1, 1]
        del made[5].facts["score"]

    other = rewrite(made_shards_master, tmp_path / "other", changed(change))
    report = diff(made_shards_master, other)
    assert report.columns == {"target": 1, "face_px": 2}
    assert report.facts == {"box_xyxy": 1, "score": 1, "target": 1}
    names = keys(made_shards_master)
    assert report.examples["face_px"] == names[2:4] and report.examples["json_score"] == [names[5]]
    assert not report.pixels and report.moved == 0 and not report.equal
    old = rewrite(made_shards_master, tmp_path / "old", without=("sharpness", "unaltered"))
    report = diff(made_shards_master, old)
    assert report.equal and report.missing_columns == [("sharpness", "B"), ("unaltered", "B")]


def test_another_order(made_shards_master: Path, tmp_path: Path) -> None:
    def change(made: list[Made]) -> None:
        made[3], made[9] = made[9], made[3]

    other = rewrite(made_shards_master, tmp_path / "other", changed(change))
    report = diff(made_shards_master, other)
    names = keys(made_shards_master)
    assert report.moved == 2 and report.examples["moved"] == [names[3], names[9]] and not report.equal
    report = diff(made_shards_master, other, ignore_order=True)
    assert report.equal and report.moved is None
    # Tuples that are missing on one side do not move the others.
    rest = rewrite(made_shards_master, tmp_path / "rest", lambda made: made[4:])
    assert diff(made_shards_master, rest).moved == 0


def test_another_size_or_quality_is_another_set(made_shards_master: Path, tmp_path: Path) -> None:
    def larger(made: list[Made]) -> None:
        for one in made:
            one.images = {quality: image.repeat(2, 0).repeat(2, 1) for quality, image in one.images.items()}

    big = rewrite(made_shards_master, tmp_path / "big", changed(larger))
    info = json.loads((big / "shards.json").read_text())
    (big / "shards.json").write_text(json.dumps(info | {"size_px": 48}))
    report = diff(made_shards_master, big)
    assert ("size_px", "24", "48") in report.settings and report.tuples_with_other_pixels == 60
    fewer = rewrite(made_shards_master, tmp_path / "fewer")
    (fewer / "shards.json").write_text(
        json.dumps(json.loads((fewer / "shards.json").read_text()) | {"qualities": ["raw"]})
    )
    report = diff(made_shards_master, fewer)
    assert report.settings == [("qualities", "raw, c23, c40", "raw")] and not report.pixels and not report.equal


def test_damage_is_reported_not_raised(made_set: Path, made_shards_master: Path, tmp_path: Path) -> None:
    old = rewrite(made_shards_master, tmp_path / "old", without=("raw_pixels_sha256",))
    (made_set / "test-000000.tar").write_bytes(b"")
    with (made_set / "train-000000.tar").open("r+b") as file:
        file.seek(ShardSet(made_set).table["offset"][2].as_py())
        file.write(b"another name")
    report = diff(old, made_set)
    assert report.damaged == 13 and not report.equal and not report.pixels
    assert report.faults[0][:2] == ("B", keys(made_set)[2]) and "train-000000.tar" in report.faults[0][2]


def test_what_cannot_be_compared(made_shards_master: Path, tmp_path: Path) -> None:
    twice = rewrite(made_shards_master, tmp_path / "twice", lambda made: [*made, made[0]])
    with pytest.raises(UserError, match=f"holds {keys(twice)[0]} twice"):
        diff(made_shards_master, twice)
    with pytest.raises(UserError, match="--show: got -1"):
        diff(made_shards_master, made_shards_master, show=-1)
    with pytest.raises(UserError, match=r"no shards\.json there"):
        diff(made_shards_master, tmp_path)


def test_command(made_shards_master: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def change(made: list[Made]) -> None:
        made[0].images["c40"] = made[0].images["raw"]
        made[1].row["group"] = "x"

    other = rewrite(made_shards_master, tmp_path / "other", changed(change))
    assert run("diff", made_shards_master, made_shards_master) == 0
    assert "equal: 60 tuples, pixel for pixel, in the same order" in capsys.readouterr().err
    assert run("diff", made_shards_master, other) == 1
    printed = capsys.readouterr()
    assert "pixels of c40" in printed.out and "index: group" in printed.out and "different" in printed.err
    assert run("diff", made_shards_master, other, "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["equal"] is False and result["pixels"] == {"c40": 1} and result["columns"] == {"group": 1}
    assert result["shown"][0]["key"] == keys(made_shards_master)[0]
    assert run("diff", made_shards_master, tmp_path / "nothing") == 2
