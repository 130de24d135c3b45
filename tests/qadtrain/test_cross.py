"""Runs on several shard sets, beside the published rows."""

import csv
import json
import math

import pytest
from helpers.untrained_runs import untrained_run
from sklearn.metrics import accuracy_score, roc_auc_score

from qadprep.errors import UserError
from qadtrain.cross import _published_rows, cross, cross_csv, cross_latex, load_published
from qadtrain.score_files import fake_probability, read_scores

QUICK = {"num_workers": 0, "progress": False, "bootstrap": 100}


@pytest.fixture(scope="module")
def place(shards_dir, make_shards, tmp_path_factory):
    """Two runs, and beside shards_dir (FF++) a set of DFDC, at one quality, and one of reals alone."""
    folder = tmp_path_factory.mktemp("crossed")
    make_shards(folder / "dfdc", {"test": 48}, dataset="dfdc", seed=1)
    make_shards(folder / "one", {"test": 16}, dataset="wilddeepfake", qualities=("c23",), size_px=48, seed=2)
    make_shards(folder / "reals", {"test": 8}, dataset="celebdf", labels=(0,), seed=3)
    for seed, name in enumerate(("first", "second")):
        untrained_run(folder / name, shards_dir, seed)
    return folder


def test_rows_of_runs_beside_the_published_ones(place, shards_dir, tmp_path):
    sets = [str(shards_dir), str(place / "dfdc"), str(place / "one"), f"Celeb={place / 'reals'}"]
    table = cross([place / "first", place / "second"], sets, out_dir=tmp_path / "out", **QUICK)
    assert table.sets == ("FF++", "DFDC", "WildDeepfake", "Celeb") and table.failures == ()
    assert [(row.name, row.source) for row in table.rows[-3:]] == [
        ("QAD-E", "published"),
        ("first", "this run"),
        ("second", "this run"),
    ]
    assert len(table.rows) == 8 + 2
    cell = table.rows[-2].cells["DFDC"]
    kept = read_scores(place / "first" / "eval" / "dfdc-test" / "scores.parquet")
    label, prob = kept.index["label"].to_numpy(), fake_probability(kept.logits)
    assert cell.values["auc"] == pytest.approx(sum(roc_auc_score(label, prob[:, q]) for q in range(3)) / 3, abs=1e-6)
    accuracy = sum(accuracy_score(label, prob[:, q] > 0.5) for q in range(3)) / 3
    assert cell.values["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert cell.intervals["auc"][0] <= cell.values["auc"] <= cell.intervals["auc"][1]
    assert (cell.real, cell.fake, cell.qualities, cell.trained_on) == (72, 72, ("raw", "c23", "c40"), False)
    one = table.rows[-1].cells["WildDeepfake"]
    assert (one.qualities, one.real) == (("c23",), 8)
    assert math.isnan(one.intervals["auc"][0])  # 16 tuples of the fixture are one real video and one of each method
    assert table.rows[-2].cells["FF++"].trained_on
    reals = table.rows[-2].cells["Celeb"]
    assert math.isnan(reals.values["auc"]) and "raw: no fake samples" in reals.reason
    assert "Celeb" not in table.rows[0].cells

    notes = "\n".join(table.notes)
    assert "first was trained on the shard set of FF++" in notes
    assert "WildDeepfake: c23 only; share of fakes 50.0 %" in notes
    assert "first on Celeb: raw: no fake samples" in notes
    assert "published: Fang & Lin is not identified" in notes

    written = json.loads((tmp_path / "out" / "cross.json").read_text())
    assert written == json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert written["source"] == "QAD supplementary, Table 6"
    text = (tmp_path / "out" / "cross.txt").read_text()
    line = next(each for each in text.splitlines() if each.split()[:1] == ["QAD-E"])
    assert line.split() == ["QAD-E", "published", "87.8", "95.6", "56.5", "65.3", "65.5", "74.7", "-", "-"]
    assert "published rows: QAD supplementary, Table 6" in text
    latex = (tmp_path / "out" / "cross.tex").read_text()
    assert latex == cross_latex(table) and latex.count(r"\midrule") == 2
    assert r"Fang \& Lin (published) & 80.7 & 89.0 & 63.2 & 70.2 & 63.1 & 67.7 & - & - \\" in latex
    lines = list(csv.DictReader((tmp_path / "out" / "cross.csv").open()))
    assert (tmp_path / "out" / "cross.csv").read_text() == cross_csv(table)
    found = {(each["detector"], each["set"], each["metric"]): each for each in lines}
    assert found["MAT", "DFDC", "auc"]["source"] == "published (QAD supplementary, Table 6)"
    assert float(found["MAT", "DFDC", "auc"]["value"]) == 0.719
    assert float(found["first", "DFDC", "auc"]["value"]) == pytest.approx(cell.values["auc"], abs=1e-6)


def test_a_set_that_cannot_be_scored_is_a_line_and_the_rest_goes_on(place, tmp_path):
    (tmp_path / "empty").mkdir()
    sets = [str(tmp_path / "empty"), f"D={place / 'dfdc'}"]
    table = cross([place / "first", tmp_path / "no-run"], sets, level="video", published=False, **QUICK)
    assert len(table.failures) == 3 and table.sets == ("empty", "D")
    assert table.failures[0].startswith(f"{place / 'first'} on {tmp_path / 'empty'}: ")
    assert "not a run folder" in table.failures[2]
    assert [row.name for row in table.rows] == ["first", "no-run"] and table.source == ""
    assert set(table.rows[0].cells) == {"D"} and table.rows[1].cells == {}
    with pytest.raises(UserError, match=r"nothing could be scored: .*/first on .*/empty: .*; .*/no-run on .*/empty: "):
        cross([place / "first", tmp_path / "no-run"], [str(tmp_path / "empty")], **QUICK)


def test_names_of_sets(place, make_shards, tmp_path):
    other = make_shards(tmp_path / "again", {"test": 8}, dataset="dfdc", seed=9)
    run = place / "first"
    table = cross([run], [str(place / "dfdc"), str(other)], **QUICK)
    assert table.sets == (f"DFDC ({place / 'dfdc'})", f"DFDC ({other})")
    # published, in both columns of that dataset
    assert table.rows[0].cells[table.sets[1]].values["auc"] == pytest.approx(0.714)
    with pytest.raises(UserError, match="got the name 'A' for two shard sets"):
        cross([run], [f"A={place / 'dfdc'}", f"A={other}"], **QUICK)
    by_name = cross([run], [f"wilddeepfake={other}"], **QUICK)  # a copy of that dataset under another name
    assert by_name.rows[0].cells["wilddeepfake"].values["accuracy"] == pytest.approx(0.544)


def test_a_set_of_several_datasets_has_no_published_column():
    rows = _published_rows(load_published(), {"mixed": ("dfdc", "ffpp"), "dfdc": ("x",), "mine": ("ffpp",)})
    assert all(set(row.cells) == {"dfdc", "mine"} for row in rows)  # by its name, and by the one dataset in it
    assert _published_rows(load_published(), {"mixed": ("dfdc", "ffpp")}) == []


@pytest.mark.parametrize(
    ("runs", "sets", "option", "message"),
    [
        ([], ["x"], {}, "got 0 runs and 1 shard sets, expected one of each or more"),
        (["r"], [], {}, "got 1 runs and 0 shard sets"),
        (["r"], ["x"], {"level": "both"}, "--level: got 'both', expected frame or video"),
        (["r"], ["=x"], {}, "got '=x', expected the path of a shard set, or NAME=PATH"),
        (["r"], ["x"], {"aggregate": "no"}, "--aggregate: got 'no'"),
    ],
)
def test_wrong_use_is_one_line(runs, sets, option, message):
    with pytest.raises(UserError, match=message):
        cross(runs, sets, **option)


def test_the_published_table_is_whole():
    """Sums over the printed columns, added up from the document by hand."""
    table = load_published()
    assert [row["name"] for row in table["rows"]] == [
        "MesoNet", "Rössler et al.", "F3Net", "MAT", "Fang & Lin", "SBIs", "QAD-R", "QAD-E",
    ]  # fmt: skip
    sums = {key: [round(sum(row[key][n] for row in table["rows"]), 1) for n in (0, 1)] for key in table["sets"]}
    assert sums == {"ffpp": [616.4, 687.0], "dfdc": [478.7, 549.1], "wilddeepfake": [488.3, 534.5]}
    # and over the printed rows: no two numbers of a column changed places
    rows = [round(sum(sum(row[key]) for key in table["sets"]), 1) for row in table["rows"]]
    assert rows == [369.1, 416.9, 403.5, 435.7, 433.9, 411.0, 438.5, 445.4]
