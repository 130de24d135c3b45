"""Who is scored against whom, and what is written."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from qadtrain.evaluate import AVERAGE, POOLED, fake_probability, report_tables, summarise, write_scores


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
