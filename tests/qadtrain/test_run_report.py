"""The page about runs: its contents, and that a browser shows it whole without the network."""

import re

import numpy as np
import pytest
from helpers.browser import NO_NETWORK, ask, run
from helpers.run_folders import write_run

from qadprep.errors import UserError
from qadtrain.run_plots import curves, thinned
from qadtrain.run_report import write_run_report


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "a <b>", epochs=2, stopping="SIGTERM")
    return first, write_run(folder / "second", ("awp.gamma=0.5",), epochs=4, level=2.0)


def table(text: str, caption: str) -> list[list[str]]:
    """Cells of a table of the page, a list for each row."""
    part = text[text.index(f">{caption}</caption>") :]
    rows = re.findall(r"<tr>(.*?)</tr>", part[: part.index("</table>")], re.DOTALL)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_one_run(folders, tmp_path):
    found = write_run_report(folders[:1], tmp_path)
    assert found == {"report": str(tmp_path / "report.html"), "runs": ["a <b>"], "figures": 10}
    text = (tmp_path / "report.html").read_text()
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
    rates = dict(zip(*table(text, "Rates"), strict=True))
    assert (rates["tuples/s"], rates["data wait"], rates["skipped"]) == ("101.0", "25.0%", "3 tuples")
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
