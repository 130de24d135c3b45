"""The page about runs: its contents, and that a browser shows it whole without the network."""

import hashlib
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.browser import NO_NETWORK, ask, run
from helpers.run_folders import write_run
from helpers.untrained_runs import untrained_run
from PIL import Image

from qadprep.errors import UserError
from qadprep.plot_style import COLOURS
from qadprep.shardset import ShardSet
from qadtrain.compare import compare_runs_on
from qadtrain.cross import cross
from qadtrain.evaluate import evaluate
from qadtrain.gradcam import gradcam
from qadtrain.gradcam_consistency import consistency
from qadtrain.robustness import evaluate_robustness
from qadtrain.run_plots import curves, points, thinned
from qadtrain.run_report import write_run_report
from qadtrain.run_report_hardest import Hard, hardest, strip_of
from qadtrain.run_report_looks import robustness_chapter, theorem_chapter
from qadtrain.run_results import ROBUSTNESS, THEOREM, Found, Results, remarks_on_weights
from qadtrain.theorem import theorem_terms


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "a <b>", epochs=2, stopping="SIGTERM")
    with (first / "metrics.jsonl").open("a") as file:  # a foreign line, and half of one
        file.write('{"kind": "validation", "global_step": 41, "auc/raw": 1.0}\n{"kind": "tra')
    return first, write_run(folder / "second", ("awp.gamma=0.5",), epochs=4, level=2.0)


def table(text: str, caption: str) -> list[list[str]]:
    """Cells of a table of the page, a list for each row."""
    part = text[text.index(f">{caption}</caption>") :]
    rows = re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")], re.DOTALL)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_one_run(folders, tmp_path):
    out = tmp_path / "gamma0.002"  # a folder, though its name has what looks like an ending
    out.mkdir()
    found = write_run_report(folders[:1], out)
    nothing = {"results": {}, "faults": []}
    assert found == {"report": str(out / "report.html"), "runs": ["a <b>"], "figures": 10} | nothing
    text = (out / "report.html").read_text()
    assert text.count("<svg") == text.count("</svg>") == 10 and "<script" not in text
    assert not re.search(r"(src|href)=[\"'](?!#)", text)
    head, row = table(text, "Best validation")
    cells = dict(zip(head, row, strict=True))
    assert (cells["run"], cells["state"], cells["epochs"], cells["AUC c23"]) == (
        "a &lt;b&gt;",
        "stopped",
        "2/4",
        "75.00",
    )
    assert (cells["best"], cells["in epoch"]) == ("0.8000", "2")
    assert "SIGTERM" in text[: text.index("Training</h2>")]
    assert "a &lt;b&gt;: lines of metrics.jsonl that cannot be read: 2." in text
    rates = dict(zip(*table(text, "Rates"), strict=True))
    assert (rates["tuples/s"], rates["data wait"], rates["skipped"]) == ("100.5", "25.0%", "3 tuples")
    assert ["optim.epochs", "4", "32"] in table(text, "What differs from the defaults")
    facts = dict(table(text, "Facts"))
    assert facts["commit"] == "0123456789ab" and facts["parameters"] == "12,345" and facts["version, torch"] == "2.0"
    assert facts["data, fingerprint"] == "ab12ab12ab12ab12" and facts["start weights"] == "random start"
    (_, event) = table(text, "Events")
    assert event[1] == "40" and event[3:] == ["end", "state stopped, reason SIGTERM"]
    again = write_run_report(folders[:1], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text and again["report"].endswith("again.html")


def test_two_runs_in_a_browser(folders, tmp_path):
    page = tmp_path / "two.html"
    write_run_report(folders, page)
    expression = (
        "{figures: [...document.querySelectorAll('figure svg')].map(e => {const r = e.getBoundingClientRect(); return "
        "[r.width, r.height, e.querySelectorAll('path').length, e.getAttribute('aria-label'), e.textContent]}),"
        " heads: [...document.querySelectorAll('h2')].map(e => e.textContent),"
        " ids: [...document.querySelectorAll('[id]')].map(e => e.id),"
        " asked: performance.getEntriesByType('resource').map(e => e.name)}"
    )
    found = ask(page, expression, tmp_path / "profile")
    assert found["asked"] == [] and len(found["ids"]) == len(set(found["ids"]))
    assert found["heads"] == ["Summary", "Training", "Validation", "Throughput", "Configuration and facts"]
    assert len(found["figures"]) == 14
    for width, height, paths, label, text in found["figures"]:
        assert width > 400 and height > 150 and paths > 10
        assert "a <b>" in text and "second" in text and label.endswith("over the steps: a <b>, second")
    labels = [label.split(" over")[0] for *_, label, _ in found["figures"]]
    assert {"loss", "ce", "hsic", "hsic/stage1", "auc/raw", "auc/c23", "auc/average"} <= set(labels)
    assert ["awp.gamma", "0.002", "0.5"] in table(page.read_text(), "What the runs differ in")
    dom = run(page, tmp_path / "profile", "--dump-dom", NO_NETWORK)
    assert "<title>2 training runs</title>" in dom


def test_what_cannot_be_reported_is_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="no run given"):
        write_run_report([], tmp_path)
    with pytest.raises(UserError, match=r"run\.json: not a run folder"):
        write_run_report([tmp_path], tmp_path)
    empty = write_run(tmp_path / "empty", epochs=1)
    (empty / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"no records in metrics\.jsonl yet"):
        write_run_report([folders[0], empty], tmp_path)


def test_many_points_are_averaged_and_their_mean_stays():
    steps, values = np.arange(1000.0), np.sin(np.arange(1000.0))
    fewer_steps, fewer = thinned((steps, values), 100)
    assert len(fewer) == 100 and np.all(np.diff(fewer_steps) > 0)
    np.testing.assert_allclose(fewer, values.reshape(100, 10).mean(axis=1), rtol=1e-12)
    uneven = thinned((np.arange(7.0), np.arange(7.0)), 3)
    np.testing.assert_allclose(uneven[1], [0.5, 2.5, 5.0])


def test_a_curve_without_values_is_no_figure_and_numbers_are_no_formulas():
    assert curves("x", {"a": ([], [])}, "", "", "") == ""
    svg = curves("x", {"a": ([1, 2], [0.1, 1000.0])}, "side $x$", "alt", "", scale="log")
    assert "mathdefault" not in svg and "side $x$" in svg and ">100<" in svg


@pytest.fixture(scope="module")
def with_results(tmp_path_factory, make_shards):
    """Two runs scored by every command, and a folder `shared` with what concerns both."""
    folder = tmp_path_factory.mktemp("scored")
    shards = make_shards(folder / "set", {"test": 32})
    line = {"kind": "train", "epoch": 0, "global_step": 1, "seconds": 1.0, "loss": 0.5}
    here = {"device": "cpu", "num_workers": 0}
    runs, shared = [], folder / "shared"
    for seed, name in enumerate(("ce", "qad")):
        runs.append(untrained_run(folder / name, shards, seed))
        (runs[-1] / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        evaluate(runs[-1], shards, bootstrap=100, progress=False, **here)
    compared = compare_runs_on(*runs, shards, bootstrap=100, **here)
    (shared / "compare").mkdir(parents=True)
    (shared / "compare" / "compare.json").write_text(json.dumps(compared.as_json()))
    cross(runs, [str(shards)], bootstrap=100, out_dir=shared / "cross", **here)
    evaluate_robustness(
        runs, shards, out_dir=shared / "robustness", corruptions=["GB"], severities=[3], limit=8, **here
    )
    gradcam(runs, shards, out_dir=shared / "gradcam", count=1, **here)
    consistency(runs, shards, out_dir=shared / "gradcam", limit=4, **here)
    theorem_terms(runs[1], shards, temperatures=(1.0, 4.0), **here)
    return runs, shards, shared


@pytest.fixture(scope="module")
def results_page(with_results, tmp_path_factory):
    runs, shards, shared = with_results
    path = tmp_path_factory.mktemp("page") / "page.html"
    return path, write_run_report(runs, path, shards=[shards], results=[shared])


def test_results_are_in_the_page_as_they_are_in_their_files(with_results, results_page):
    (runs, _, shared), (path, found) = with_results, results_page
    assert found["faults"] == [] and found["results"] == {
        **{"eval": 2, "compare": 1, "cross": 1, "robustness": 1, "gradcam": 1, "consistency": 1, "theorem": 1}
    }
    text = path.read_text()
    report = json.loads((runs[1] / "eval" / "set-test" / "report.json").read_text())
    cell = report["metrics"]["frame"]["c40"]["Deepfakes"]
    low, high = cell["interval"]["auc"]
    shown = f"{100 * cell['auc']:.2f} ({100 * low:.1f} to {100 * high:.1f})"
    head, *rows = table(text, "AUC, frame level")
    assert head == ["quality", "run", "Deepfakes", "NeuralTextures", "average", "all"] and len(rows) == 8
    assert next(row for row in rows if row[:2] == ["c40", "qad"])[2] == shown
    compared = json.loads((shared / "compare" / "compare.json").read_text())
    wanted = next(
        row
        for row in compared["rows"]
        if [row[k] for k in ("level", "quality", "method", "metric")] == ["frame", "raw", "average", "auc"]
    )
    rows = table(text, "Mean over the methods, percent")
    row = next(row for row in rows if row[:4] == ["frame", "raw", "average", "AUC"])
    assert row[4:6] == [f"{100 * wanted['a']:.2f}", f"{100 * wanted['b']:.2f}"]
    assert row[6].startswith(f"{100 * wanted['difference']:+.2f} (")
    rows = table(text, "Detectors on FF++")
    assert ["QAD-R", "published", "85.3", "93.4"] in rows and [row[1] for row in rows[-2:]] == ["this run"] * 2
    lines = json.loads((shared / "robustness" / "robustness.json").read_text())["rows"]
    blurred = next(
        line["auc"]
        for line in lines
        if [line[k] for k in ("run", "severity", "level", "quality")] == ["ce", 3, "frame", "average"]
    )
    assert table(text, "AUC, frame level, mean over the qualities of ce, qad")[1][3] == f"{100 * blurred:.2f}"
    iou = json.loads((shared / "gradcam" / "consistency.json").read_text())["runs"]["ce"]["raw-c40"]["all"]["iou"]
    rows = table(text, "Consistency over the qualities")
    assert next(row for row in rows if row[:2] == ["ce", "raw-c40"])[4].startswith(f"{iou['mean']:.3f}")
    terms = json.loads((runs[1] / "theorem" / "set-test" / "theorem.json").read_text())
    (row,) = (row for row in table(text, "Terms") if row[3] == "raw-c40" and row[7] == "1")
    assert row[8:10] == [f"{terms['pairs']['raw-c40'][key][0]:.4g}" for key in ("A", "collaboration_term")]


def test_results_in_a_browser(results_page, tmp_path):
    page, _ = results_page
    expression = (
        "{images: [...document.querySelectorAll('img')].map(e => [e.naturalWidth, e.getBoundingClientRect().width,"
        " e.alt, e.src.slice(0, 22)]), heads: [...document.querySelectorAll('h2')].map(e => e.textContent),"
        " ids: [...document.querySelectorAll('[id]')].map(e => e.id), wide: document.documentElement.scrollWidth,"
        " asked: performance.getEntriesByType('resource').map(e => e.name).filter(e => !e.startsWith('data:'))}"
    )
    picture = tmp_path / "page.png"
    found = ask(page, expression, tmp_path / "profile", "--window-size=1280,7000", f"--screenshot={picture}")
    assert found["heads"][:9] == [
        "Summary", "Evaluation", "Comparison", "Other shard sets", "Robustness", "Heat maps", "Theorem 1",
        "Hardest tuples", "Training",
    ]  # fmt: skip
    assert found["asked"] == [] and len(found["ids"]) == len(set(found["ids"])) and found["wide"] <= 1280
    assert {source for *_, source in found["images"]} == {"data:image/png;base64,"}
    # A robustness figure, a panel, a theorem figure, and the hardest tuples of two runs at three qualities each.
    labels = [alt for *_, alt, _ in found["images"]]
    assert len(labels) == 3 + 2 * 3 and labels.count("Tuples most wrong at c40, at every quality") == 2
    assert all(natural > 200 for natural, *_ in found["images"])
    panel = next(each for each in found["images"] if each[2].startswith("Heat maps of"))
    assert panel[0] == panel[1]  # a crop's pixel is a pixel
    seen = np.asarray(Image.open(picture).convert("RGB"))
    assert seen.shape == (7000, 1280, 3)
    # Heat maps and drawings are there as colours: the bare text would be grey.
    assert (np.ptp(seen.astype(int), axis=2) > 60).sum() > 20_000


def test_hardest_tuples_are_those_of_the_scores(with_results):
    path = with_results[0][1] / "eval" / "set-test" / "scores.parquet"
    scores = pq.read_table(path).to_pylist()
    found = hardest(path, 3)
    assert list(found) == ["raw", "c23", "c40"]
    for quality, tuples in found.items():
        wrong = {}
        for row in (row for row in scores if row["quality"] == quality):
            gap = abs(row["prob_fake"] - row["label"])
            video = (row["method"], row["video"], row["label"])
            wrong[video] = max(wrong.get(video, 0.0), gap)
        np.testing.assert_allclose([each.wrong for each in tuples], sorted(wrong.values())[::-1][:3], rtol=1e-12)
        assert len({(each.method, each.key.split("/")[2]) for each in tuples}) == len(tuples)
        assert all(each.is_wrong(quality) == (each.wrong > 0.5) for each in tuples)


def test_results_that_are_broken_are_named_and_the_page_is_made(with_results, tmp_path):
    (first, _), _, shared = with_results
    copy = shutil.copytree(first, tmp_path / "ce")
    place = copy / "eval" / "set-test"
    (tmp_path / "robustness").mkdir()
    (tmp_path / "robustness" / "robustness.json").write_text('{"runs": ["ce"], "corruptions": [], "rows": 3}')
    (copy / "theorem").mkdir()
    (copy / "theorem" / "theorem.json").write_text("{")
    shutil.copytree(shared / "gradcam", copy / "gradcam")
    panel = next((copy / "gradcam").glob("01-*.png"))
    panel.write_bytes(b"GIF89a")
    (place / "scores.parquet").write_bytes(b"no")
    # Results beside the page that name other runs are none of this page's.
    shutil.copytree(shared / "cross", tmp_path / "cross")
    crossed = json.loads((tmp_path / "cross" / "cross.json").read_text())
    for row in crossed["rows"]:
        row["name"] = "other"
    (tmp_path / "cross" / "cross.json").write_text(json.dumps(crossed))
    found = write_run_report([copy], tmp_path / "page.html", shards=[tmp_path / "nowhere"])
    assert "cross" not in found["results"] and len(found["faults"]) == 5
    for part in (
        r"ce/theorem/theorem\.json: cannot be read",
        r"robustness: the result of `robustness` is not as expected",
        rf"gradcam: {re.escape(panel.name)}: expected a PNG",
        r"--shards: .*nowhere.*without pictures",
        r"eval/set-test: .*not a file of scores",
    ):
        assert any(re.search(part, line) for line in found["faults"]), part
    text = (tmp_path / "page.html").read_text()
    assert len(table(text, "Results that cannot be shown")) == 6
    with pytest.raises(UserError, match=r"--results: .*absent is not a folder"):
        write_run_report([copy], tmp_path / "page.html", results=[tmp_path / "absent"])


def test_without_shards_no_crops_and_scores_of_earlier_weights_are_said_to_be(with_results, tmp_path):
    copy = shutil.copytree(with_results[0][0], tmp_path / "ce")
    report = copy / "eval" / "set-test" / "report.json"
    contents = json.loads(report.read_text())
    contents["checkpoint"]["weights_sha256"] = "0" * 64
    contents["not_scored"] |= {"damaged": 2, "not_finite": 1}
    report.write_text(json.dumps(contents))
    found = write_run_report([copy], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert found["faults"] == [] and "The crops are shown where the report is given the shard set" in text
    hard = hardest(copy / "eval" / "set-test" / "scores.parquet")
    assert table(text, "Hardest tuples of ce on set-test")[1][1].replace("<wbr>", "") == hard["raw"][0].key
    assert "ce was trained further since" in text and "ce: 2 damaged tuples and 1 scores not finite" in text


def test_a_run_keeps_its_colour_where_another_has_no_values():
    for svg in (
        curves("x", {"ce": ([], []), "qad": ([1, 2], [0.1, 0.2])}, "", "", ""),
        points("x", {"ce": {}, "qad": {"raw": (50.0, 40.0, 70.0)}}, ("raw",), "", "", ""),
    ):
        assert COLOURS[1] in svg and COLOURS[0] not in svg and ">ce<" not in svg


def test_axes_have_numbers_that_can_be_read():
    def numbers(svg: str) -> list[float]:
        return [float(text) for text in re.findall(r"<text[^>]*>([0-9.]+)</text>", svg)]

    alone = numbers(curves("x", {"a": ([10], [0.25])}, "", "", ""))
    assert {9, 10, 11} <= set(alone) and 9.5 not in alone
    # A log axis inside of one decade would have no number at all.
    assert (
        len([n for n in numbers(curves("x", {"a": ([100, 200], [2.1, 2.9])}, "", "", "", scale="log")) if n < 10]) > 2
    )


def test_every_name_is_in_the_legend_and_leaves_room_for_the_curve():
    names = ["_first", *(f"run-{letter}-" + "x" * 90 + letter for letter in "ab")]
    for svg in (
        curves("x", {name: ([1, 2], [0.1, 0.5]) for name in names}, "side", "alt", ""),
        points("x", {name: {"raw": (50.0, 40.0, 70.0)} for name in names}, ("raw",), "side", "alt", ""),
    ):
        shown = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert " _first" in shown and sum(text.startswith("run-") and "…" in text for text in shown) == 2
        assert any(text.endswith("xa") for text in shown) and any(text.endswith("xb") for text in shown)


def test_points_have_their_intervals_and_nothing_is_no_figure():
    assert points("x", {"a": {}}, ("raw",), "", "", "") == ""
    svg = points("x", {"a": {"raw": (50.0, 40.0, 70.0)}, "b": {}}, ("raw", "c40"), "AUC", "alt", "below", at=50)
    assert svg.count("<svg") == 1 and ">raw<" in svg and ">c40<" in svg and "below" in svg


def test_the_crops_of_a_hard_tuple_stand_over_their_own_probabilities():
    images = {"raw": np.full((64, 64, 3), (200, 10, 10)), "c40": np.full((64, 64, 3), (10, 10, 200))}
    images = {quality: image.astype(np.uint8) for quality, image in images.items()}
    hard = Hard("ffpp/original/000/000001_0", 0, "original", 0.9, {"raw": 0.9, "c40": 0.1})
    picture = np.asarray(strip_of(hard, images))
    side = 128  # twice the crop's
    for column, quality in enumerate(images):
        left = column * (side + 6)
        assert (picture[16 : 16 + side, left : left + side] == images[quality][0, 0]).all(), quality
        below = picture[17 + side :, left : left + side].astype(int)
        red = ((below[..., 0] - below[..., 1] > 100) & (below[..., 0] > 150)).any()
        assert red == (quality == "raw")  # what is wrong is written in red


def test_one_run_scored_in_two_ways_has_two_tables(with_results, tmp_path):
    copy = shutil.copytree(with_results[0][0], tmp_path / "ce")
    again = shutil.copytree(copy / "eval" / "set-test", copy / "eval" / "set-test-top3")
    shutil.copytree(copy / "eval" / "set-test", copy / "eval" / "set-test-twice")
    contents = json.loads((again / "report.json").read_text())
    contents["aggregate"] = "top3"
    contents["metrics"]["video"]["raw"]["average"]["auc"] = 0.125
    (again / "report.json").write_text(json.dumps(contents))
    found = write_run_report([copy], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert found["faults"] == [] and found["results"] == {"eval": 3}
    rows = {name: table(text, f"AUC, video level on {name}")[1:] for name in ("set-test", "set-test-top3")}
    assert all([row[:2] for row in each] == [[q, "ce"] for q in ("raw", "c23", "c40", "average")]
               for each in rows.values())  # fmt: skip
    assert rows["set-test-top3"][0][-2].startswith("12.50") and not rows["set-test"][0][-2].startswith("12.50")
    assert "mean of its 3 highest probabilities" in text and "mean of its frames&#x27; probabilities" in text
    assert "Scores on set-test-twice" in text


def test_tuples_that_cannot_be_shown_are_named_and_so_is_another_set(with_results, make_shards, tmp_path):
    run, shards = with_results[0][0], with_results[1]
    broken = shutil.copytree(shards, tmp_path / "set")
    key = hardest(run / "eval" / "set-test" / "scores.parquet")["raw"][0].key
    with ShardSet(str(broken)) as opened:
        row = opened.table.slice(opened.position_of(key), 1).to_pylist()[0]
    with (broken / "test-000000.tar").open("r+b") as file:
        file.seek(row["raw_offset"])
        file.write(b"no picture")
    found = write_run_report([run], tmp_path / "page.html", shards=[broken])
    (line,) = found["faults"]
    assert line.startswith("hardest tuples: ") and key in line and line.endswith("raw: not a PNG file")
    other = make_shards(tmp_path / "other", {"test": 8}, seed=1)
    found = write_run_report([run], tmp_path / "page.html", shards=[other])
    assert found["faults"] == []
    assert (
        "No crops: no set of <code>--shards</code> is the one that was scored" in (tmp_path / "page.html").read_text()
    )


def test_weights_are_compared_with_those_of_their_own_run_alone(tmp_path):
    runs = {}
    for group in ("x", "y"):
        (tmp_path / group / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / group / "run" / "checkpoints" / "best.safetensors").write_text(group)
        runs[f"{group}/run"] = SimpleNamespace(path=tmp_path / group / "run")
    sha256 = hashlib.sha256(b"x").hexdigest()
    scored = Found(ROBUSTNESS, "", tmp_path, {"settings": {"weights": {"run": sha256}}})
    assert remarks_on_weights(scored, runs) == []  # whether it is x/run or y/run is not known
    (remark,) = remarks_on_weights(scored, {"y": runs["y/run"]})
    assert remark.startswith("y was trained further since")
    assert remarks_on_weights(scored, {"x": runs["x/run"]}) == []


def test_what_is_left_out_and_the_resolution_are_said(with_results):
    runs, _, shared = with_results
    terms = json.loads((runs[1] / "theorem" / "set-test" / "theorem.json").read_text())
    terms |= {"left_out": 2, "damaged": ["one that cannot be read"]}
    (_, section) = theorem_chapter(Results([Found(THEOREM, "qad", shared, terms)]))
    assert "qad: 3 tuples are left out: damaged, or no finite logits." in section.text
    blurred = json.loads((shared / "robustness" / "robustness.json").read_text())
    (_, section, *_) = robustness_chapter(Results([Found(ROBUSTNESS, "", shared, blurred)]), {})
    assert "Pictures are corrupted at: crop, 32 px; blocks: scaled." in section.text
