"""The terms of Theorem 1 against a reference written out tuple by tuple, their limits, and what is written."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers.untrained_runs import untrained_run
from PIL import Image

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.evaluate import load_run, score_split
from qadtrain.theorem import TheoremTerms, all_pairs, count_term, deviation, theorem_terms
from qadtrain.theorem_output import figure, theorem_notes, theorem_tables

QUALITIES = ("raw", "c23", "c40")
GRID = (0.25, 1.0, 3.0)


def made(n: int = 7, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, scale, (n, 3, 2)), rng.integers(0, 2, n)


def reference(better, worse, labels, temperature) -> dict[str, float]:
    """Eq. 24 and 25, written out."""
    a = c = tight = difference = 0.0
    for f_r, f_c, y in zip(better.tolist(), worse.tolist(), labels.tolist(), strict=True):
        p = []
        for f in (f_r, f_c):
            e = [math.exp(value / temperature) for value in f]
            p.append([value / sum(e) for value in e])
        a += 2 * (1 - p[1][y])
        c += 8 / temperature * math.sqrt((f_r[0] - f_c[0]) ** 2 + (f_r[1] - f_c[1]) ** 2)
        tight += 8 * math.sqrt((p[0][0] - p[1][0]) ** 2 + (p[0][1] - p[1][1]) ** 2)
        difference += abs(p[0][y] - p[1][y])
    n = len(labels)
    return {"a": a / n, "c": c / n, "c_tight": tight / n, "p_difference": difference / n}


def test_terms_are_those_of_the_equations():
    logits, labels = made()
    pairs = {pair.name: pair for pair in all_pairs(logits, labels, QUALITIES, GRID)}
    assert {name: pair.for_information for name, pair in pairs.items()} == {
        "raw-c23": False,
        "raw-c40": False,
        "c23-c40": True,
    }
    for name, (first, second) in {"raw-c23": (0, 1), "raw-c40": (0, 2), "c23-c40": (1, 2)}.items():
        for place, temperature in enumerate(GRID):
            wanted = reference(logits[:, first], logits[:, second], labels, temperature)
            for term, value in wanted.items():
                assert getattr(pairs[name], term)[place] == pytest.approx(value, rel=1e-12), (name, term)
        wrong = [int(np.argmax(row)) != label for row, label in zip(logits[:, second], labels, strict=True)]
        assert pairs[name].error == np.mean(wrong)


def test_a_case_by_hand():
    # One tuple, fake: p_fake 3/4 at raw and 1/4 at c23; the logits are ln 3 apart from zero, then the other way.
    log3 = math.log(3)
    (pair,) = all_pairs(np.array([[[0.0, log3], [log3, 0.0]]]), np.array([1]), ("raw", "c23"), (1.0, 2.0))
    assert pair.a[0] == pytest.approx(1.5)
    assert pair.c.tolist() == pytest.approx([8 * math.sqrt(2) * log3, 4 * math.sqrt(2) * log3])
    assert pair.c_tight[0] == pytest.approx(8 * math.sqrt(0.5))
    assert pair.p_difference[0] == pytest.approx(0.5)
    assert (pair.error, pair.logit_distance) == (1.0, pytest.approx(math.sqrt(2) * log3))


def test_limits_of_the_temperature():
    logits, labels = made()
    for pair in all_pairs(logits, labels, QUALITIES, (1e-6, 1e9)):
        assert pair.a.tolist() == pytest.approx([2 * pair.error, 1.0], abs=1e-6)
        assert pair.c[1] == pytest.approx(0, abs=1e-6)
        first, second = (QUALITIES.index(name) for name in (pair.better, pair.worse))
        changed = np.mean(logits[:, first].argmax(axis=1) != logits[:, second].argmax(axis=1))
        assert pair.c_tight.tolist() == pytest.approx([8 * math.sqrt(2) * changed, 0.0], abs=1e-6)


def test_identical_qualities_have_no_collaboration_term():
    logits, labels = made()
    logits[:, 1:] = logits[:, :1]
    for pair in all_pairs(logits, labels, QUALITIES, GRID):
        assert not pair.c.any() and not pair.c_tight.any() and not pair.p_difference.any() and pair.a.all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_tighter_form_is_at_most_half_of_the_term(scale):
    logits, labels = made(50, scale)
    for pair in all_pairs(logits, labels, QUALITIES, tuple(2.0**power for power in range(-6, 9))):
        assert (pair.c_tight <= pair.c / 2 + 1e-12).all()
        assert (pair.c_tight > 0).all()
    # The factor two is reached: a small step across the middle.
    step = np.array([[[0.0, 0.0], [1e-4, -1e-4]]])
    (pair,) = all_pairs(step, np.array([0]), ("raw", "c40"), (1.0,))
    assert pair.c_tight[0] == pytest.approx(pair.c[0] / 2, rel=1e-6)


def test_confident_logits_keep_their_digits():
    (pair,) = all_pairs(np.array([[[0.0, 60.0], [0.0, 60.0]]]), np.array([1]), ("raw", "c40"), (1.0,))
    assert pair.a[0] == pytest.approx(2 * math.exp(-60), rel=1e-9, abs=0)


def test_terms_of_the_number_of_tuples():
    assert f"{count_term(92_160):.1e} {deviation(92_160, 0.05):.1e}" == "1.7e-04 4.5e-03"
    assert f"{count_term(17_920):.1e} {deviation(17_920, 0.05):.1e}" == "8.9e-04 1.0e-02"


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards_dir):
    return untrained_run(tmp_path_factory.mktemp("theorem") / "run", shards_dir, 2)


@pytest.fixture(scope="module")
def terms(run, shards_dir, tmp_path_factory) -> TheoremTerms:
    out = tmp_path_factory.mktemp("theorem-out")
    return theorem_terms(run, shards_dir, temperatures=(4, 1, 0.5, 1), out_dir=out, device="cpu", num_workers=0)


def test_a_run_on_a_split(terms, run, shards_dir):
    config, model, _ = load_run(run, "best")
    with ShardSet(shards_dir, "test") as shards:
        logits = score_split(model, shards, config, torch.device("cpu"), num_workers=0)
        labels = shards.table["label"].to_numpy().astype(int)
    assert terms.temperatures == (0.5, 1.0, 4.0) and (terms.n, terms.left_out, terms.trained_n) == (32, 0, 96)
    assert (terms.b, terms.root) == (0.5, pytest.approx(math.sqrt(math.log(40) / 64)))
    assert terms.same_as_trained and terms.run == "run"
    for pair, second in zip(terms.pairs[:2], (1, 2), strict=True):
        for place, temperature in enumerate(terms.temperatures):
            wanted = reference(logits[:, 0], logits[:, second], labels, temperature)
            assert pair.c[place] == pytest.approx(wanted["c"], rel=1e-9)
            assert terms.total(pair)[place] == pytest.approx(wanted["a"] + 0.5 + wanted["c"], rel=1e-9)


def test_files_hold_the_same_figures(terms):
    files = {path.name: path for path in terms.files}
    assert sorted(files) == ["theorem.csv", "theorem.json", "theorem.png", "theorem.svg"]
    told = json.loads(files["theorem.json"].read_text())
    assert told == json.loads(json.dumps(terms.as_json()))
    with files["theorem.csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9
    for pair in terms.pairs:
        sums, entry = terms.total(pair), told["pairs"][pair.name]
        own = [float(line["A+B+C"]) for line in lines if line["pair"] == pair.name]
        assert own == sums.tolist()
        at = int(np.argmin(sums))
        assert entry["least_sum"]["A+B+C"] == {
            "value": sums[at],
            "temperature": terms.temperatures[at],
            "at_end_of_grid": at in (0, 2),
        }
        assert entry["collaboration_term"] == pair.c.tolist()
    assert told["trained"] == {"n": 96, "B": 16 / 96, "root": pytest.approx(deviation(96, 0.05))}
    assert Image.open(files["theorem.png"]).size[0] > 800
    svg = files["theorem.svg"].read_text()
    assert "collaboration term" in svg and "raw and c40" in svg and "c23 and c40" not in svg


def test_lines_of_the_figure_are_the_terms(terms, monkeypatch):
    drawn = []
    monkeypatch.setattr("qadtrain.theorem_output.picture_files", lambda sheet: drawn.append(sheet) or {})
    figure(terms)
    for axes, pair in zip(drawn[0].axes, terms.pairs[:2], strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        wanted = {"A": pair.a, "C, collaboration term": pair.c, "C', its tighter form": pair.c_tight}
        for name, values in (wanted | {"A + B + C": terms.total(pair)}).items():
            assert list(lines[name].get_xdata()) == list(terms.temperatures)
            assert list(lines[name].get_ydata()) == values.tolist()
        assert set(lines["share of errors on the split"].get_ydata()) == {pair.error}


def test_nothing_is_called_a_bound(terms):
    said = terms.files[0].read_text() + "".join(theorem_notes())
    tables = theorem_tables(terms)
    said += "".join(str(table.title) + str(table.caption) for table in tables)
    assert "bound" not in said.lower() and "omitted" in said and "collaboration term" in said
    assert [len(table.rows) for table in tables] == [3, 3, 3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 1.0}, "--delta: got 1.0, expected a probability between 0 and 1"),
        ({"temperatures": (1.0, 0.0)}, "--temperature: got \\[1.0, 0.0\\], expected numbers above 0"),
        ({"temperatures": (math.nan,)}, "--temperature: got"),
        ({"temperatures": (1e-310,)}, "--temperature: got \\[1e-310\\], expected numbers above 0, from 1e-9 to 1e9"),
        ({"temperatures": (math.inf,)}, "--temperature: got \\[inf\\], expected .* to 1e9"),
        ({"temperatures": ()}, "--temperature: got \\[\\]"),
        ({"checkpoint": "none"}, "--checkpoint: got none"),
        ({"split": "dev"}, "no split 'dev'"),
    ],
)
def test_wrong_use_is_one_line(run, shards_dir, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        theorem_terms(run, shards_dir, out_dir=tmp_path, device="cpu", num_workers=0, **options)
    assert not list(tmp_path.iterdir())


def test_damaged_tuples_are_left_out_and_named(run, make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("qadtrain.theorem_output.figure", lambda terms: {})  # drawing takes longest
    shards = make_shards(tmp_path / "set", {"test": 8})
    options = {"temperatures": (1.0, 2.0), "device": "cpu", "num_workers": 0}
    checkpoints = run / "checkpoints"
    shutil.copy(checkpoints / "best.safetensors", checkpoints / "last.safetensors")
    whole = theorem_terms(run, shards, checkpoint="last", **options)
    assert whole.files[0].parent == run / "theorem" / "set-test-last"  # beside those of the best one
    with ShardSet(shards, "test") as opened:
        config, model, _ = load_run(run, "best")
        logits = score_split(model, opened, config, torch.device("cpu"), num_workers=0)
        table, labels = opened.table, opened.table["label"].to_numpy().astype(int)
    with (shards / "test-000000.tar").open("r+b") as file:
        file.seek(table["c40_offset"][3].as_py())
        file.write(b"\0" * 64)
    terms = theorem_terms(run, shards, out_dir=tmp_path / "out", **options)
    (message,) = terms.damaged
    assert table["key"][3].as_py() in message and (terms.n, terms.left_out, whole.n) == (7, 0, 8)
    kept = [0, 1, 2, 4, 5, 6, 7]
    wanted = reference(logits[kept, 0], logits[kept, 2], labels[kept], 2.0)
    assert terms.pairs[1].a[1] == pytest.approx(wanted["a"], rel=1e-9)
    assert json.loads((tmp_path / "out" / "theorem.json").read_text())["damaged"] == [message]
    assert theorem_tables(terms)[-1].caption == "1 tuples left out: damaged"
    with (shards / "test-000000.tar").open("r+b") as file:
        file.write(b"\0" * (shards / "test-000000.tar").stat().st_size)
    with pytest.raises(UserError, match="none of 8 tuples can be read: "):
        theorem_terms(run, shards, out_dir=tmp_path / "none", **options)


def test_one_quality_and_logits_that_are_not_finite(run, make_shards, shards_dir, tmp_path):
    one = make_shards(tmp_path / "one", {"test": 4}, qualities=("raw",))
    with pytest.raises(UserError, match="got one quality, raw; the theorem compares two"):
        theorem_terms(run, one, device="cpu", num_workers=0)
    broken = untrained_run(tmp_path / "broken", shards_dir, 2, bias=(math.nan, 0.0))
    with pytest.raises(UserError, match="logits are not finite"):
        theorem_terms(broken, shards_dir, device="cpu", num_workers=0)
