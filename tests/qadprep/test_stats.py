import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.rewritten import Made, rewrite
from helpers.sets import made_packs, made_shards

from qadprep.cli import main
from qadprep.errors import UserError
from qadprep.sampling import draw
from qadprep.shardset import ShardSet
from qadprep.stats import ssim_of, stats

QUALITIES = ("raw", "c23", "c40")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


def ssim_by_formula(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 with a uniform 7 x 7 window and sample covariances, over the windows inside the picture."""

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (7, 7))[3:-3, 3:-3]

    a, b = a.astype(np.float64), b.astype(np.float64)
    unbiased = 49 / 48
    var_a, var_b = (unbiased * (mean(x * x) - mean(x) ** 2) for x in (a, b))
    cov = unbiased * (mean(a * b) - mean(a) * mean(b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean(a) * mean(b) + c1) * (2 * cov + c2)
    return float((top / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (var_a + var_b + c2))).mean())


def sharpness_by_formula(image_rgb: np.ndarray) -> float:
    """Variance of the four-neighbour Laplacian of the grey picture at 128 px, edges mirrored."""
    grey = cv2.resize(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), (128, 128), interpolation=cv2.INTER_LINEAR)
    wide = np.pad(grey.astype(np.float64), 1, mode="reflect")
    around = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]
    return float((around - 4 * wide[1:-1, 1:-1]).var())


def test_counts(made_shards_master: Path) -> None:
    numbers = stats(made_shards_master, sample=0)
    assert numbers["all"] == {"tuples": 60, "clips": 15, "groups": 5}
    names = ("split", "tuples", "clips", "groups", "real", "fake")
    assert [tuple(row[name] for name in names) for row in numbers["splits"]] == [
        ("train", 36, 9, 3, 12, 24),
        ("val", 12, 3, 1, 4, 8),
        ("test", 12, 3, 1, 4, 8),
    ]
    assert numbers["splits"][0]["fake_share"] == pytest.approx(2 / 3)
    assert [tuple(row.values()) for row in numbers["classes"]] == [
        (name, "ffpp", method, label, 4 * clips, clips, clips, 4, 4.0, 4)
        for name, clips in (("train", 3), ("val", 1), ("test", 1))
        for method, label in (("Deepfakes", 1), ("FaceSwap", 1), ("original", 0))
    ]
    assert numbers["tuples_per_clip"] == {"fewest": 4, "median": 4.0, "most": 4}
    assert numbers["geometry"] == {"reference": 60} and numbers["unaltered"] == 5
    assert numbers["left_out"] == {"no_face": 5} and numbers["missing_columns"] == []
    assert numbers["set"]["qualities"] == list(QUALITIES) and numbers["set"]["shards"] == 5


def test_clips_of_other_lengths(tmp_path: Path) -> None:
    faces = made_packs(tmp_path / "faces", {"a": "train"}, methods=("original",), frames=2, size_px=16)
    made_packs(tmp_path / "more", {"b": "train", "c": "train"}, methods=("original",), frames=5, size_px=16)
    one, more = made_shards(tmp_path / "one", faces), made_shards(tmp_path / "two", tmp_path / "more")
    from qadprep.merge import merge

    merge([one, more], tmp_path / "all")
    numbers = stats(tmp_path / "all", sample=0)
    assert numbers["tuples_per_clip"] == {"fewest": 2, "median": 5.0, "most": 5}
    assert numbers["splits"][0]["fake_share"] == 0.0


def test_bytes_are_those_of_the_files(made_shards_master: Path) -> None:
    sizes = stats(made_shards_master, sample=0)["bytes"]
    with ShardSet(made_shards_master) as shards:
        encoded = [shards.encoded(at) for at in range(len(shards))]
        whole = sum(shards.table["length"].to_pylist())
    for row in sizes["per_quality"]:
        found = [len(one[row["quality"]]) for one in encoded]
        assert (row["total"], row["mean"]) == (sum(found), pytest.approx(np.mean(found)))
    assert sizes["tuples"] == whole and sizes["json_and_headers"] == whole - sum(
        r["total"] for r in sizes["per_quality"]
    )
    assert sizes["tars"] == sum(file.stat().st_size for file in made_shards_master.glob("*.tar"))


def test_psnr_is_that_of_the_pixels(made_shards_master: Path, tmp_path: Path) -> None:
    def equal(made: list[Made]) -> list[Made]:
        for one in made:
            if one.row["method"] == "FaceSwap" or (one.row["method"], one.row["frame"]) == ("Deepfakes", 0):
                one.images["c23"] = one.images["raw"]
                one.row["c23_psnr_db"] = math.inf
        return made

    mixed = rewrite(made_shards_master, tmp_path / "mixed", equal)
    rows = {(row["method"], row["quality"]): row for row in stats(mixed, sample=0)["psnr_db"]}
    assert list(rows)[:2] == [("original", "c23"), ("original", "c40")] and len(rows) == 6
    for (method, quality), row in rows.items():
        values = []
        with ShardSet(mixed) as shards:
            for item in shards:
                if item.method == method:
                    error = (item.images["raw"].astype(float) - item.images[quality]) ** 2
                    values.append(10 * math.log10(255**2 / error.mean()) if error.any() else math.inf)
        finite = [value for value in values if math.isfinite(value)]
        assert (row["equal"], row["tuples"]) == (len(values) - len(finite), len(values))
        if finite:
            assert row["mean"] == pytest.approx(np.mean(finite), abs=1e-3)
            assert row["median"] == pytest.approx(np.median(finite), abs=1e-3)
        else:
            assert row["mean"] is None
    assert rows["FaceSwap", "c23"]["equal"] == 20 and rows["Deepfakes", "c23"]["equal"] == 5


def test_measures_of_the_index(made_shards_master: Path) -> None:
    measures = stats(made_shards_master, sample=0)["measures"]
    with ShardSet(made_shards_master) as shards:
        for name in ("face_px", "sharpness", "yaw_deg"):
            values = shards.table[name].to_numpy().astype(float)
            wanted = np.quantile(values, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
            found = [measures[name][part] for part in ("min", "p05", "p25", "median", "p75", "p95", "max")]
            np.testing.assert_allclose(found, wanted)
            assert measures[name]["tuples"] == 60 and measures[name]["mean"] == pytest.approx(values.mean())
    assert measures["mask_share"]["tuples"] == 0 and measures["mask_share"]["median"] is None


def test_the_sample_is_drawn_and_measured(made_shards_master: Path) -> None:
    with ShardSet(made_shards_master) as shards:
        names = sorted(shards.table["key"].to_pylist(), key=lambda key: draw(3, key))[:11]
        images = [shards.by_key(key).images for key in names]
    sample = stats(made_shards_master, sample=11, seed=3)["sample"]
    assert sample["tuples"] == 11 and sample["faults"] == []
    for row in sample["ssim"]:
        wanted = [ssim_by_formula(one["raw"], one[row["quality"]]) for one in images]
        assert row["mean"] == pytest.approx(np.mean(wanted), abs=1e-6)
        assert (row["min"], row["max"]) == (pytest.approx(min(wanted)), pytest.approx(max(wanted)))
    assert [row["quality"] for row in sample["ssim"]] == ["c23", "c40"]
    for row in sample["sharpness"]:
        wanted = [sharpness_by_formula(one[row["quality"]]) for one in images]
        assert row["median"] == pytest.approx(np.median(wanted), rel=1e-3)
    ssim, sharp = ([row["mean"] for row in sample[name]] for name in ("ssim", "sharpness"))
    assert all(0 < value < 1 for value in ssim) and sharp[0] > sharp[1] > sharp[2] > 0
    assert stats(made_shards_master, sample=1000)["sample"]["tuples"] == 60
    assert stats(made_shards_master, sample=0)["sample"]["ssim"][0]["mean"] is None


def test_ssim_of_equal_pictures_is_one() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert ssim_of(picture, picture) == 1.0
    assert ssim_of(picture, 255 - picture) < 0


def test_older_sets_say_what_is_missing(made_shards_master: Path, tmp_path: Path) -> None:
    gone = ("group", "geometry", "unaltered", "face_px", "c23_psnr_db", "json_offset", "json_size")
    numbers = stats(rewrite(made_shards_master, tmp_path / "old", without=gone), sample=2)
    assert numbers["missing_columns"] == ["group", "geometry", "face_px", "unaltered"]
    assert numbers["all"] == {"tuples": 60, "clips": 15, "groups": 0}
    assert numbers["geometry"] == {} and "face_px" not in numbers["measures"]
    assert {row["quality"] for row in numbers["psnr_db"]} == {"c40"}


def test_damage_is_listed(made_set: Path, capsys: pytest.CaptureFixture) -> None:
    row = ShardSet(made_set).table.slice(0, 1).to_pylist()[0]
    with (made_set / "train-000000.tar").open("r+b") as file:
        file.seek(row["c40_offset"])
        file.write(b"no picture")
    assert run("stats", made_set, "--sample", 1000, "--json") == 1
    sample = json.loads(capsys.readouterr().out)["sample"]
    assert sample["tuples"] == 59 and [fault["key"] for fault in sample["faults"]] == [row["key"]]
    assert "c40" in sample["faults"][0]["fault"]
    assert run("stats", made_set, "--sample", 1000) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_tables_and_page(made_shards_master: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "numbers.html"
    assert run("stats", made_shards_master, "--sample", 5, "--html", page) == 0
    printed = capsys.readouterr()
    for words in ("Deepfakes", "PSNR against raw, dB", "SSIM against raw, of 5 tuples", "fake share", "no_face"):
        assert words in printed.out
    assert "60 tuples of 15 clips and 5 recordings in 5 shards" in printed.err
    assert "5 tuples of manipulated clips show the original unaltered" in printed.err
    text = page.read_text()
    for words in ("PSNR against raw, dB", "Deepfakes", "0.667", "60 tuples of 15 clips", ">Splits</h"):
        assert words in text
    assert not re.findall(r"(?:src|href)=['\"](?!data:|#)", text) and "<script" not in text
    again = tmp_path / "again.html"
    run("stats", made_shards_master, "--sample", 5, "--html", again)
    assert again.read_bytes() == page.read_bytes()


def test_json_is_plain(made_shards_master: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("stats", made_shards_master, "--sample", 2, "--json") == 0
    text = capsys.readouterr().out
    assert not re.search(r"\b(NaN|Infinity)\b", text) and json.loads(text)["all"]["tuples"] == 60


def test_a_negative_sample_is_refused(made_shards_master: Path) -> None:
    with pytest.raises(UserError, match="--sample: got -1"):
        stats(made_shards_master, sample=-1)
