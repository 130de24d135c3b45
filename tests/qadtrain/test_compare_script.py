"""scripts/compare_qad_ce.py: its statistics against figures worked out by hand, and a whole small run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_qad_ce.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_qad_ce", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def cells(c40: float, average: float) -> dict:
    quality = {"c40": {"auc": c40, "accuracy": c40 - 0.1}, "average": {"auc": average, "accuracy": 0.5}}
    return {"frame": quality, "video": quality}


@pytest.fixture
def scores() -> dict:
    """Two sides, three seeds; QAD is better by 2, 4 and 3 points on c40, and by 5, -4 and 2 on the average."""
    found = {("CE", 0): cells(0.60, 0.70), ("CE", 1): cells(0.50, 0.80), ("CE", 2): cells(0.55, 0.75)}
    return found | {
        ("QAD", 0): cells(0.62, 0.75),
        ("QAD", 1): cells(0.54, 0.76),
        ("QAD", 2): cells(0.58, 0.77),
    }


def test_spread_is_the_mean_and_the_sample_standard_deviation(script):
    found = script.spread([70.0, 74.0, 78.0])
    assert (found.mean, found.deviation, found.values) == (74.0, 4.0, (70.0, 74.0, 78.0))
    assert str(found) == "74.0 ± 4.0"
    assert script.spread([71.5]).deviation is None and str(script.spread([71.5])) == "71.5"


def test_differences_are_taken_within_a_seed(script):
    found = script.paired({2: 50.0, 0: 60.0, 1: 10.0}, {0: 61.0, 1: 13.0, 3: 99.0, 2: 52.0})
    assert found.values == (1.0, 3.0, 2.0) and (found.mean, found.deviation) == (2.0, 1.0)
    with pytest.raises(ValueError, match="no seed is in both"):
        script.paired({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 4.0, 3.0], "better at every seed, by more than the spread"),
        ([-2.0, -4.0, -3.0], "worse at every seed, by more than the spread"),
        ([5.0, -4.0, 2.0], "inside the spread"),  # not always of one sign
        ([0.1, 0.2, 6.0], "inside the spread"),  # of one sign, but scattered more than it is large
        ([30.0, 30.0, -0.1], "inside the spread"),  # larger than its deviation, but not at every seed
        ([0.0, 0.0, 0.0], "inside the spread"),
        ([9.0], "one seed: no spread"),
    ],
)
def test_a_difference_counts_only_at_every_seed_and_beyond_its_deviation(script, values, expected):
    assert script.verdict(script.spread(values)).startswith(expected)


def test_findings_name_the_worst_quality_and_the_average_of_each_side(script, scores):
    found = script.findings(scores, ("c40",))
    assert [(f["side"], f["level"], f["quality"]) for f in found] == [
        ("QAD", level, quality) for level in ("frame", "video") for quality in ("c40", "average")
    ]
    assert found[0]["values"] == pytest.approx((2, 4, 3)) and found[0]["deviation"] == pytest.approx(1)
    assert found[1]["values"] == pytest.approx((5, -4, 2)) and found[1]["mean"] == pytest.approx(1)
    assert script.sentence(found[0]) == (
        "QAD against CE, frame AUC on c40: +3.0 points (by seed +2.0 +4.0 +3.0): "
        "better at every seed, by more than the spread"
    )
    assert script.sentence(found[1]).endswith("inside the spread: no difference shown")
    assert script.findings({("QAD", 0): cells(0.5, 0.5)}, ("c40",)) == []


def test_the_table_holds_each_side_and_its_paired_difference(script, scores):
    lines = [line.split("  ") for line in script.table(scores, ("c40",), "frame", "auc")]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows == [
        ["frame AUC", "c40", "average"],
        ["CE", "55.0 ± 5.0", "75.0 ± 5.0"],
        ["QAD", "58.0 ± 4.0", "76.0 ± 1.0"],
        ["QAD - CE", "+3.0 ± 1.0", "+1.0 ± 4.6"],
    ]
    accuracy = script.table(scores, ("c40",), "video", "accuracy")
    assert accuracy[0].startswith("video ACC") and "45.0 ± 5.0" in accuracy[1]
    assert script.table({("QAD", 0): cells(0.5, 0.5)}, ("c40",), "frame", "auc")[1:] == ["QAD        50.0     50.0"]


def test_the_sides_differ_in_the_two_terms_alone(script):
    from qadtrain.config_io import load_config

    full = load_config(preset="tiny").flat()
    for side, overrides in script.SIDES.items():
        flat = load_config(preset="tiny", overrides=overrides).flat()
        changed = {name for name in full if flat[name] != full[name]}
        off = {"hsic.alpha"} if "HSIC" not in side and side != "QAD" else set()
        off |= {"awp.gamma"} if "AWP" not in side and side != "QAD" else set()
        assert changed == off and all(flat[name] == 0 for name in off)


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_whole_comparison_is_printed_written_and_not_trained_twice(shards_dir, tmp_path):
    request = ("--shards", shards_dir, "--work", tmp_path / "w", "--seeds", 1, "--epochs", 1, "--sides", "CE", "QAD",
               "--set", "awp.start_epoch=0", "--jobs", 1, "--json", tmp_path / "all.json")  # fmt: skip
    first = run_script(*request)
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert (found["steps"], found["tuples"], found["people"]) == (6, 32, 2)
    assert {(run["side"], run["seed"]) for run in found["runs"]} == {("CE", 0), ("QAD", 0)}
    ce, qad = ([r["scores"]["frame"]["c40"]["auc"] for r in found["runs"] if r["side"] == s] for s in ("CE", "QAD"))
    assert found["findings"][0]["values"] == pytest.approx([100 * (b - a) for a, b in zip(ce, qad, strict=True)])
    assert "QAD against CE, frame AUC on c40" in first.stdout and "2 people scored" in first.stdout
    weights = {path: path.read_bytes() for path in (tmp_path / "w").rglob("step-*.safetensors")}
    assert len(weights) == 2
    next((tmp_path / "w").rglob("report.json")).unlink()  # as if it was stopped before it was scored
    again = run_script(*request)
    assert again.returncode == 0 and again.stdout == first.stdout
    assert all(path.read_bytes() == before for path, before in weights.items())


def test_a_request_without_data_and_an_unknown_field_are_one_line(shards_dir, tmp_path):
    neither = run_script("--work", tmp_path)
    assert neither.returncode == 2 and "expected either CLIPS or --shards SET" in neither.stderr
    unknown = run_script("--shards", shards_dir, "--work", tmp_path, "--set", "awp.gama=1")
    assert unknown.returncode == 1 and unknown.stderr.startswith("error: ") and unknown.stderr.count("\n") == 1
