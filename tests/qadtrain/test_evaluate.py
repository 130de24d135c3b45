"""Who is scored against whom, and what is written."""

import csv
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.untrained_runs import untrained_run
from rich.console import Console
from sklearn.metrics import roc_auc_score

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.evaluate import (
    AVERAGE,
    POOLED,
    eval_folder,
    evaluate,
    evaluation_lines,
    fake_margin,
    fake_probability,
    report_tables,
    summarise,
    write_scores,
)
from qadtrain.kept import kept_scores
from qadtrain.metrics import ALL_METRICS
from qadtrain.safe_files import sha256_of
from qadtrain.score_files import read_scores
from qadtrain.summary import SplitRows, check_aggregate
from qadtrain.tables import latex_table, latex_text, report_csv, report_latex


def index(rows: list[tuple[str, str, str, int]], faces: list[int] | None = None) -> pa.Table:
    dataset, method, video, label = zip(*rows, strict=True)
    face = pa.array(faces or [0] * len(rows), pa.int16())
    columns = {"dataset": dataset, "method": method, "video": video, "face": face}
    return pa.table(columns | {"label": pa.array(label, pa.int8())})


def ffpp_index() -> pa.Table:
    rows = [("ffpp", "original", f"{v:03d}", 0) for v in range(4) for _ in range(3)]
    rows += [
        ("ffpp", m, f"{v:03d}_{v + 1:03d}", 1) for m in ("FaceSwap", "Deepfakes") for v in range(3) for _ in range(3)
    ]
    return index(rows)


def test_each_method_is_scored_against_the_originals():
    table = ffpp_index()
    prob = np.random.default_rng(0).random((len(table), 2))
    report = summarise(prob, table, ("raw", "c40"))
    method, label = np.array(table["method"]), np.array(table["label"])
    for number, quality in enumerate(("raw", "c40")):
        row = report.cells["frame"][quality]
        for name in ("Deepfakes", "FaceSwap"):
            chosen = (method == name) | (method == "original")
            assert row[name].auc == pytest.approx(roc_auc_score(label[chosen], prob[chosen, number]))
            assert (row[name].real, row[name].fake) == (12, 9)
        assert row[AVERAGE].auc == pytest.approx((row["Deepfakes"].auc + row["FaceSwap"].auc) / 2)
        assert row[POOLED].auc == pytest.approx(roc_auc_score(label, prob[:, number]))
    for name in ("Deepfakes", "FaceSwap", AVERAGE, POOLED):
        mean = np.mean([report.cells["frame"][q][name].auc for q in ("raw", "c40")])
        assert report.cells["frame"][AVERAGE][name].auc == pytest.approx(mean)
    assert report.methods == ("Deepfakes", "FaceSwap")


def test_video_level_is_the_mean_probability_of_a_video():
    table = index(
        [("d", "original", "a", 0)] * 3
        + [("d", "original", "b", 0)]
        + [("d", "Fake", "a", 1)] * 2  # same clip name as an original: another video all the same
    )
    prob = np.array([0.9, 0.1, 0.2, 0.3, 0.2, 0.7])[:, None]
    cell = summarise(prob, table, ("raw",)).cells["video"]["raw"]["Fake"]
    # means: a 0.4, b 0.3 real; 0.45 fake
    assert (cell.real, cell.fake, cell.auc) == (2, 1, 1.0)
    assert cell.accuracy == pytest.approx(2 / 3)
    assert summarise(prob, table, ("raw",)).cells["frame"]["raw"]["Fake"].auc < 1


def test_faces_of_one_video_are_scored_by_their_own_labels():
    table = index(
        [("ffiw", "original", "a", 0)] * 2 + [("ffiw", "FFIW", "a", 1)] * 2 + [("ffiw", "FFIW", "a", 0)] * 2,
        [0, 0, 0, 0, 1, 1],
    )
    prob = np.array([0.1, 0.3, 0.9, 0.5, 0.6, 0.6])[:, None]
    report = summarise(prob, table, ("raw",))
    cell = report.cells["video"]["raw"]["FFIW"]
    # means: real face of the original 0.2, fake face 0.7, real face beside it 0.6
    assert (cell.real, cell.fake, cell.auc, cell.accuracy) == (2, 1, 1.0, pytest.approx(2 / 3))
    assert report.cells["frame"]["raw"]["FFIW"].auc == pytest.approx(6 / 8)


def test_a_real_face_in_a_manipulated_video_is_real_for_every_method():
    rows = [("d", "original", "a", 0), ("d", "A", "b", 1), ("d", "A", "b", 0), ("d", "B", "c", 1)]
    report = summarise(np.array([0.1, 0.9, 0.7, 0.5])[:, None], index(rows, [0, 0, 1, 0]), ("raw",), bootstrap=100)
    for name, auc in (("A", 1.0), ("B", 0.5)):
        cell = report.cells["frame"]["raw"][name]
        assert (cell.real, cell.fake, cell.auc) == (2, 1, auc)


def test_several_datasets_keep_their_originals_apart():
    rows = [("one", "original", "a", 0), ("one", "Deepfakes", "b", 1), ("two", "original", "a", 0)]
    rows += [("two", "Deepfakes", "b", 1), ("three", "Swap", "c", 1)]
    report = summarise(np.array([0.1, 0.2, 0.5, 0.4, 0.9])[:, None], index(rows), ("raw",))
    row = report.cells["frame"]["raw"]
    assert report.methods == ("one/Deepfakes", "three/Swap", "two/Deepfakes")
    assert (row["one/Deepfakes"].auc, row["two/Deepfakes"].auc) == (1.0, 0.0)
    assert math.isnan(row["three/Swap"].auc) and row["three/Swap"].reason == "no real samples"
    assert row[AVERAGE].auc == 0.5 and row[AVERAGE].reason == "1 of 3 cells have no AUC and EER"
    text = json.dumps(report.as_json(), allow_nan=False)
    assert json.loads(text)["frame"]["raw"]["three/Swap"]["auc"] is None


def test_a_split_of_originals_alone_has_no_auc_anywhere():
    report = summarise(np.array([[0.1], [0.2]]), index([("d", "original", "a", 0)] * 2), ("raw",))
    assert report.methods == () and math.isnan(report.cells["frame"][AVERAGE][POOLED].auc)
    assert report.pooled("frame", "raw").reason == "no fake samples"
    assert len(list(report_tables(report))) == 2


def test_probability_is_softmax_in_float64():
    logits = np.array([[0.0, 0.0], [1.0, 3.0], [0.0, 30.0], [900.0, -900.0]])
    exact = [0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-30)), 0.0]
    assert fake_probability(logits) == pytest.approx(exact, rel=1e-12)
    assert fake_probability(logits)[2] < 1


def test_scores_parquet_has_a_row_for_each_tuple_and_quality(tmp_path):
    table = ffpp_index().append_column("key", pa.array([f"k{i}" for i in range(30)]))
    logits = np.random.default_rng(1).normal(size=(30, 2, 2))
    write_scores(tmp_path / "scores.parquet", logits, table, ("raw", "c40"))
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(rows) == 60
    for i in range(30):
        for q, quality in enumerate(("raw", "c40")):
            row = rows[2 * i + q]
            assert (row["key"], row["quality"]) == (f"k{i}", quality)
            assert (row["logit_real"], row["logit_fake"]) == tuple(logits[i, q])
            assert row["prob_fake"] == pytest.approx(math.exp(logits[i, q, 1]) / np.exp(logits[i, q]).sum())
            assert row["label"] == table["label"][i].as_py() and row["method"] == table["method"][i].as_py()


def test_a_video_takes_the_mean_margin_or_its_highest_frames_when_asked():
    table = index([("d", "original", "a", 0)] * 3 + [("d", "Fake", "b", 1)] * 4)
    logits = np.zeros((7, 1, 2))
    logits[:, 0, 1] = [-1.0, 0.0, 4.0, 2.0, 50.0, -60.0, 1.0]
    prob, margin, rows = fake_probability(logits), fake_margin(logits), SplitRows(table)
    video_b, video_a = rows.of_videos(margin, prob, "logit")[:, 0]  # by name: Fake comes first
    assert (video_a, video_b) == pytest.approx((1 / (1 + math.exp(-1)), 1 / (1 + math.exp(7 / 4))))
    assert rows.of_videos(margin, prob, "prob")[1, 0] == pytest.approx(prob[:3, 0].mean())
    assert rows.of_videos(margin, prob, "top2")[1, 0] == pytest.approx((prob[2, 0] + prob[1, 0]) / 2)
    assert rows.of_videos(margin, prob, "top9")[0, 0] == pytest.approx(prob[3:, 0].mean())
    by_logit = summarise(prob, table, ("raw",), margin=margin, aggregate="logit").cells["video"]["raw"]["Fake"]
    by_prob = summarise(prob, table, ("raw",)).cells["video"]["raw"]["Fake"]
    # The frame at -60 outweighs three others as a logit, and not as a probability.
    assert (by_logit.auc, by_prob.auc) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["mean", "top", "top0", "top-3", "TOP3", ""])
def test_an_unknown_aggregate_is_named(name):
    with pytest.raises(UserError, match=r"--aggregate: got '.*', expected prob, logit, or top and a number"):
        check_aggregate(name)


def test_frames_without_a_score_are_in_no_figure():
    table = ffpp_index()
    prob = np.random.default_rng(2).random((30, 2))
    holes = prob.copy()
    holes[4, 0] = holes[12, 0] = math.nan  # an original and a fake at raw
    holes[0:3, 1] = math.nan  # a whole video at c40
    report = summarise(holes, table, ("raw", "c40"), full=True, bootstrap=100)
    label = table["label"].to_numpy()
    raw = report.pooled("frame", "raw")
    kept = np.isfinite(holes[:, 0])
    assert raw.auc == pytest.approx(roc_auc_score(label[kept], prob[kept, 0]))
    assert (raw.real, raw.fake, raw.unscored) == (11, 17, 2) and raw.reason == "2 samples without a score"
    c40 = report.pooled("video", "c40")
    assert (c40.real, c40.fake, c40.unscored) == (3, 6, 1)
    assert report.pooled("video", "raw").unscored == 0
    low, high = report.bounds("frame", "c40", POOLED)["auc"]
    assert low <= report.pooled("frame", "c40").auc <= high


def test_intervals_of_cells_and_averages():
    table = ffpp_index()
    label = table["label"].to_numpy()
    prob = np.clip(np.random.default_rng(3).normal(0.4 + 0.2 * label[:, None], 0.2, (30, 2)), 0, 1)
    report = summarise(prob, table, ("raw", "c40"), full=True, bootstrap=300, seed=1)
    for level in ("frame", "video"):
        for quality in ("raw", "c40", AVERAGE):
            assert list(report.intervals[level][quality]) == ["Deepfakes", "FaceSwap", POOLED, AVERAGE]
            for name, cell in report.cells[level][quality].items():
                for metric in ("accuracy", "auc", "average_precision", "brier"):
                    low, high = report.bounds(level, quality, name)[metric]
                    place = (level, quality, name, metric)
                    assert low - 1e-6 <= getattr(cell, metric) <= high + 1e-6, place
                    assert low < high or level == "video", place  # videos: 4 against 3, which may part perfectly
    widths = [np.diff(report.bounds("frame", q, POOLED)["auc"]).item() for q in ("raw", "c40", AVERAGE)]
    assert widths[2] < max(widths[:2])
    again = summarise(prob, table, ("raw", "c40"), full=True, bootstrap=300, seed=1)
    assert again.intervals == report.intervals
    cell = json.loads(json.dumps(report.as_json(), allow_nan=False))["frame"]["raw"]["Deepfakes"]
    assert cell["interval"]["auc"] == list(report.bounds("frame", "raw", "Deepfakes")["auc"])
    assert cell["always_fake"] == pytest.approx(9 / 21)


def test_the_fakes_of_a_recording_are_drawn_with_their_original():
    rows = [("d", "original", f"{v}", 0) for v in range(20)]
    rows += [("d", m, f"{v}_x", 1) for m in ("A", "B", "C") for v in range(20)]
    apart = index(rows)
    together = apart.append_column("group", pa.array([f"{v}" for v in range(20)] * 4))
    one = np.random.default_rng(5).normal(size=20)
    margin = np.r_[0.01 * one, np.tile(one, 3) + 0.2][:, None]  # whichever method: the recording decides
    width = {}
    for name, table in (("apart", apart), ("together", together)):
        report = summarise(1 / (1 + np.exp(-margin)), table, ("raw",), bootstrap=400)
        width[name] = np.diff(report.bounds("video", "raw", AVERAGE)["auc"]).item()
        single = np.diff(report.bounds("video", "raw", "A")["auc"]).item()
    # Three fakes of a recording say no more than one; as independent ones they would shrink the interval by root 3.
    assert width["together"] == pytest.approx(single) and width["apart"] < 0.75 * width["together"]


def test_one_class_has_no_interval_where_it_has_no_figure():
    report = summarise(np.array([[0.1], [0.9]]), index([("d", "original", "a", 0)] * 2), ("raw",), bootstrap=100)
    assert math.isnan(report.bounds("frame", "raw", POOLED)["auc"][0])
    assert report.as_json()["frame"]["raw"]["all"]["interval"]["auc"] is None
    # One video would be drawn every time: an interval of no width says nothing.
    assert report.pooled("frame", "raw").accuracy == 0.5
    assert math.isnan(report.bounds("frame", "raw", POOLED)["accuracy"][0])
    rows = [("d", "original", v, 0) for v in "ab"] + [("d", m, v, 1) for m, v in ("Xa", "Xb", "Yc")]
    cells = summarise(np.arange(5)[:, None] / 5, index(rows), ("raw",), bootstrap=100).intervals["frame"]["raw"]
    assert cells["X"]["auc"] == cells[POOLED]["auc"] == (1.0, 1.0)  # all parted, whichever videos are drawn
    assert math.isnan(cells["Y"]["auc"][0]) and math.isnan(cells[AVERAGE]["auc"][0])
    two = index([("d", "original", "a", 0), ("d", "original", "b", 0)])
    report = summarise(np.array([[0.1], [0.9]]), two, ("raw",), bootstrap=100)
    assert report.bounds("frame", "raw", POOLED)["accuracy"] == (0.0, 1.0)


def test_tables_in_text_latex_and_csv():
    table = ffpp_index()
    prob = np.random.default_rng(4).random((30, 2))
    report = summarise(prob, table, ("raw", "c40"), full=True, bootstrap=100)
    cell = report.cells["video"]["c40"]["FaceSwap"]
    console = Console(file=io.StringIO(), width=120)
    console.print(list(report_tables(report))[1])
    text = console.file.getvalue()
    low, high = report.bounds("video", "c40", "FaceSwap")["auc"]
    assert f"{100 * cell.auc:.2f}" in text and f"{100 * low:.1f} - {100 * high:.1f}" in text
    assert "ACC of calling everything fake: Deepfakes 42.9, FaceSwap 42.9, all 60.0" in " ".join(text.split())
    lines = list(csv.DictReader(io.StringIO(report_csv(report))))
    assert len(lines) == 2 * 3 * 4 * len(ALL_METRICS)
    line = next(each for each in lines if [*each.values()][:4] == ["video", "c40", "FaceSwap", "auc"])
    assert (float(line["value"]), float(line["low"])) == pytest.approx((cell.auc, low), abs=1e-6)
    assert (line["real"], line["fake"]) == ("4", "3")
    latex = report_latex(report, "video")
    assert latex.count(r" \\") == 1 + 3 * 3 and latex.startswith("% video level")
    row = next(each for each in latex.splitlines() if each.startswith("c40 & ACC"))
    assert row.split(" & ")[3] == f"{100 * cell.accuracy:.2f}"
    assert latex_text("50 % of a_b & c\\d") == r"50 \% of a\_b \& c\textbackslash{}d"


def test_the_caption_says_where_figures_are_missing_or_doubtful():
    prob = np.random.default_rng(6).random((30, 2))
    prob[21:, 0] = math.nan  # all of Deepfakes at raw
    prob[:, 1] = 0.25
    remarks = next(iter(report_tables(summarise(prob, ffpp_index(), ("raw", "c40"), bootstrap=100)))).caption.plain
    lines = remarks.splitlines()
    share = "share of fakes, and so the ACC of calling everything fake at"
    assert lines[:2] == [
        f"{share} raw: Deepfakes 0.0, FaceSwap 42.9, all 42.9",
        f"{share} c40: Deepfakes 42.9, FaceSwap 42.9, all 60.0",
    ]
    assert "raw (all): 9 samples without a score" in lines
    assert "raw (Deepfakes): no fake samples; 9 samples without a score" in lines
    assert "c40 (Deepfakes, FaceSwap, all): every score is 0.25: nothing is told apart" in lines
    assert "raw (average), average (Deepfakes): 1 of 2 cells have no AUC and EER" in lines
    rows = [("d", "original", v, 0) for v in "ab"] + [("d", m, v, 1) for m, v in ("Xa", "Xb", "Yc")]
    report = summarise(np.arange(5)[:, None] / 5, index(rows), ("raw",), bootstrap=100)
    assert "no interval where one recording is all" in next(iter(report_tables(report))).caption.plain


def test_a_row_of_latex_does_not_begin_with_an_option():
    r"""``\\`` takes what stands in brackets, or a star, after it for its own, also on the next line."""
    assert [line for line in latex_table(["a", "b"], [[["[1] run", "*"]]]).splitlines() if "run" in line] == [
        r"{[}1] run & {*} \\"
    ]


def test_a_probability_of_one_is_a_score_where_margins_are_averaged():
    table = index([("d", "original", "a", 0), ("d", "Fake", "b", 1)])
    cell = summarise(np.array([[0.0], [1.0]]), table, ("raw",), aggregate="logit").pooled("video", "raw")
    assert (cell.real, cell.fake, cell.unscored, cell.accuracy) == (1, 1, 0, 1.0)


def test_a_score_that_is_not_finite_has_no_probability(tmp_path):
    table = ffpp_index().append_column("key", pa.array([f"k{i}" for i in range(30)]))
    logits = np.random.default_rng(1).normal(size=(30, 2, 2))
    logits[3, 1] = [math.inf, 0.0]
    logits[5] = math.nan
    assert math.isnan(fake_probability(logits)[3, 1]) and fake_probability(np.array([math.inf, math.inf])) != 0.5
    write_scores(tmp_path / "scores.parquet", logits, table, ("raw", "c40"), damaged={5: "cut short"})
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert (rows[7]["status"], rows[7]["logit_real"], rows[7]["prob_fake"]) == ("not finite", math.inf, None)
    assert (rows[10]["status"], rows[10]["logit_real"], rows[10]["prob_fake"]) == ("damaged", None, None)
    kept = read_scores(tmp_path / "scores.parquet")
    assert np.array_equal(kept.logits, logits, equal_nan=True) and kept.qualities == ("raw", "c40")
    assert kept.index["key"].to_pylist() == table["key"].to_pylist()
    assert [kept.status[row, 1] for row in (3, 4, 5)] == ["not finite", "ok", "damaged"]


def test_files_that_are_no_scores_are_one_line(tmp_path):
    path = tmp_path / "scores.parquet"
    path.write_text("nothing")
    with pytest.raises(UserError, match="not a file of scores"):
        read_scores(path)
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(UserError, match="not a file of scores"):
        read_scores(path)
    table = ffpp_index().append_column("key", pa.array([f"k{i}" for i in range(30)]))
    write_scores(path, np.zeros((30, 2, 2)), table, ("raw", "c40"))
    pq.write_table(pq.read_table(path).drop_columns("face"), path)
    with pytest.raises(UserError, match=r"not a file of scores .*score the run again"):
        read_scores(path)
    write_scores(path, np.zeros((30, 2, 2)), table, ("raw", "c40"))
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match="expected a row for each tuple and quality"):
        read_scores(path)


def test_evaluate_keeps_scores_and_writes_tables(shards_dir, tmp_path):
    run = untrained_run(tmp_path / "run", shards_dir)
    report, contents, folder = evaluate(run, shards_dir, bootstrap=100, num_workers=0, progress=False)
    assert folder == run / "eval" / "set-test" and contents == json.loads((folder / "report.json").read_text())
    kept = read_scores(folder / "scores.parquet")
    label, prob = kept.index["label"].to_numpy(), fake_probability(kept.logits)
    assert report.pooled("frame", "c40").auc == pytest.approx(roc_auc_score(label, prob[:, 2]))
    assert contents["checkpoint"]["weights_sha256"] == sha256_of(run / "checkpoints" / "best.safetensors")
    assert contents["not_scored"]["damaged"] == contents["not_scored"]["not_finite"] == 0
    assert evaluation_lines(contents) == []
    assert (folder / "report.csv").read_text() == report_csv(report)
    assert r"\toprule" in (folder / "report.tex").read_text()
    with pytest.raises(UserError, match="--skip-bad: got -1, expected 0 or more"):
        evaluate(run, shards_dir, skip_bad=-1)
    with pytest.raises(UserError, match="--bootstrap: got 99, expected 0 for no intervals, or 100 draws or more"):
        evaluate(run, shards_dir, bootstrap=99)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):  # before the scores are made
        evaluate(tmp_path / "no run", shards_dir, out_dir=tmp_path / "file")


def test_results_cut_short_are_not_taken_for_whole_ones(shards_dir, tmp_path, monkeypatch):
    run, how = untrained_run(tmp_path / "run", shards_dir), {"bootstrap": 0, "num_workers": 0, "progress": False}
    folder = evaluate(run, shards_dir, **how)[2]
    assert [kept.folder for kept in kept_scores(run, "test", "best")] == [folder]
    assert list(kept_scores(run, "val", "best")) == []  # the same weights and set, but other tuples

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qadtrain.evaluate.write_scores", full_disk)
    with pytest.raises(OSError, match="No space"):
        evaluate(run, shards_dir, **how)
    assert list(kept_scores(run, "test", "best")) == [] and not (folder / "report.json").exists()


def test_another_set_of_the_same_name_does_not_overwrite_the_scores(make_shards, shards_dir, tmp_path):
    run = untrained_run(tmp_path / "run", shards_dir)
    one, two = (make_shards(tmp_path / name / "set", {"test": 8}, seed=n) for n, name in enumerate("ab"))
    folders = [evaluate(run, path, bootstrap=0, num_workers=0, progress=False)[2] for path in (one, two, one)]
    assert folders[0] == folders[2] == run / "eval" / "set-test"
    assert folders[1].name == f"set-test-{ShardSet(two).fingerprint[:8]}"
    assert eval_folder(run, "s3://bucket/deep/shards/", "val", "last", "f" * 64) == run / "eval" / "shards-val-last"


def damaged_copy(shards: Path, folder: Path, rows: list[int]) -> Path:
    """The set with the raw crop of some test tuples overwritten."""
    copy = Path(shutil.copytree(shards, folder))
    table = pq.read_table(copy / "test-000000.parquet").to_pylist()
    data = bytearray((copy / "test-000000.tar").read_bytes())
    for row in rows:
        start = table[row]["raw_offset"]
        data[start : start + table[row]["raw_size"]] = bytes(table[row]["raw_size"])
    (copy / "test-000000.tar").write_bytes(data)
    return copy


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_tuples_are_counted_named_and_never_scored(shards_dir, tmp_path, workers):
    run = untrained_run(tmp_path / "run", shards_dir)
    # The first batch of 16 has two, and the rest of a batch is scored all the same.
    damaged = damaged_copy(shards_dir, tmp_path / "damaged", [1, 4])
    how = {"bootstrap": 0, "num_workers": workers, "progress": False}
    with pytest.raises(UserError, match=r"test-000000\.tar: ffpp/.*: raw: .*qadprep verify"):
        evaluate(run, damaged, **how)
    with pytest.raises(UserError, match="got 2 damaged tuples, expected at most 1: "):
        evaluate(run, damaged, skip_bad=1, **how)
    assert not (run / "eval").exists()
    report, contents, folder = evaluate(run, damaged, skip_bad=2, **how)
    assert contents["not_scored"]["damaged"] == 2 and contents["not_scored"]["not_finite"] == 0
    lines = evaluation_lines(contents)
    assert lines[0] == "2 of 32 tuples are damaged and have no score" and len(lines) == 3
    kept = read_scores(folder / "scores.parquet")
    assert kept.index["key"][1].as_py() in lines[1] and kept.index["key"][4].as_py() in lines[2]
    assert (kept.status[[1, 4]] == "damaged").all() and np.isnan(kept.logits[[1, 4]]).all()
    whole = read_scores(evaluate(run, shards_dir, **how)[2] / "scores.parquet")
    others = [row for row in range(32) if row not in (1, 4)]
    assert kept.logits[others] == pytest.approx(whole.logits[others], abs=1e-4)
    cell = report.pooled("frame", "c23")
    assert cell.real + cell.fake == 30 and cell.unscored == 2


def test_a_split_of_damaged_tuples_alone_has_no_figures(make_shards, tmp_path):
    shards = damaged_copy(make_shards(tmp_path / "set", {"test": 4}), tmp_path / "damaged", [0, 1, 2, 3])
    run = untrained_run(tmp_path / "run", shards)
    report, contents, _ = evaluate(run, shards, skip_bad=4, bootstrap=100, num_workers=0, progress=False)
    assert report.pooled("frame", "raw").reason == "no samples; 4 samples without a score"
    assert contents["metrics"]["video"]["raw"]["all"]["auc"] is None


def test_a_network_that_overflows_is_said_not_scored(shards_dir, tmp_path):
    run = untrained_run(tmp_path / "run", shards_dir, bias=(0.0, math.inf))
    report, contents, folder = evaluate(run, shards_dir, bootstrap=0, num_workers=0, progress=False)
    lines = evaluation_lines(contents)
    assert lines[0] == "96 scores are inf or NaN and left out (raw 32, c23 32, c40 32): the network overflowed"
    assert "ffpp/original/test000/000000_0" in lines[1] and "inf" in lines[1] and len(lines) == 21
    assert math.isnan(report.pooled("frame", "raw").accuracy)
    assert set(pq.read_table(folder / "scores.parquet")["prob_fake"].to_pylist()) == {None}
