"""gradcam, theorem and robustness as commands: JSON on stdout, exit codes, options that do not go together."""

import json

import pytest
from helpers.untrained_runs import untrained_run

from qadprep.shardset import ShardSet


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards_dir):
    return untrained_run(tmp_path_factory.mktemp("commands") / "run", shards_dir, 3)


@pytest.fixture(scope="module")
def hurt(make_shards, tmp_path_factory):
    """Eight tuples, one of them damaged; and its key."""
    folder = make_shards(tmp_path_factory.mktemp("commands") / "set", {"test": 8})
    with ShardSet(folder, "test") as opened:
        key, offset = opened.table["key"][3].as_py(), opened.table["c23_offset"][3].as_py()
    with (folder / "test-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 64)
    return folder, key


@pytest.fixture
def run_on_cpu(run_cli):
    """As run_cli, on the CPU and without loader processes."""
    return lambda *arguments: run_cli(*arguments, "--device", "cpu", "--workers", "0")


def test_gradcam(run_on_cpu, run, hurt, tmp_path):
    shards, key = hurt
    code, out, err = run_on_cpu("gradcam", run, "--shards", shards, "--out", tmp_path, "--count", 2, "--json")
    assert code == 1 and key in err and "sheet.png" in err  # the damaged tuple is no reason to stop, but it is named
    told = json.loads(out)
    assert told == json.loads((tmp_path / "gradcam.json").read_text()) and len(told["tuples"]) == 2
    shown = told["tuples"][0]["key"]
    assert f"\n1: {shown}, {told['tuples'][0]['label']}\n" in err
    code, out, err = run_on_cpu("gradcam", run, "--shards", shards, "--out", tmp_path / "one", "--key", shown, "--json")
    assert code == 0 and [entry["key"] for entry in json.loads(out)["tuples"]] == [shown], err


def test_consistency(run_on_cpu, run, hurt, tmp_path):
    arguments = ("gradcam", run, "--shards", hurt[0], "--out", tmp_path, "--consistency")
    code, out, err = run_on_cpu(*arguments, "--limit", 4, "--json")
    told = json.loads(out)
    assert code == (1 if told["damaged"] else 0), err
    assert told == json.loads((tmp_path / "consistency.json").read_text()) and told["of_tuples"] == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--consistency", "--key", "a", "--keep-maps"), "--consistency: got --key, --keep-maps beside it"),
        (("--consistency", "--pick", "hardest"), "--consistency: got --pick beside it"),
        (("--key", "a", "--count", "6"), "--key: got --count beside it"),
        (("--key", "a", "--limit", "5"), "--key: got --limit beside it"),
    ],
)
def test_options_that_would_do_nothing_are_refused(run_on_cpu, run, shards_dir, tmp_path, more, message):
    code, out, err = run_on_cpu("gradcam", run, "--shards", shards_dir, "--out", tmp_path / "out", *more)
    assert (code, out) == (2, "") and message in err and not (tmp_path / "out").exists()


def test_theorem(run_on_cpu, run, hurt, tmp_path, monkeypatch):
    monkeypatch.setattr("qadtrain.theorem_output.figure", lambda terms: {})
    shards, key = hurt
    code, out, err = run_on_cpu("theorem", run, shards, "--out", tmp_path, "--temperature", "1,2", "--json")
    assert code == 1 and key in err
    told = json.loads(out)
    assert told == json.loads((tmp_path / "theorem.json").read_text())
    assert (told["n"], told["temperatures"], len(told["damaged"])) == (7, [1.0, 2.0], 1)
    code, _, err = run_on_cpu("theorem", run, shards, "--temperature", "warm")
    assert code == 2 and "--temperature: got warm, expected numbers above 0" in err


def test_robustness(run_on_cpu, run, hurt, tmp_path, monkeypatch):
    monkeypatch.setattr("qadtrain.robustness_report.figure", lambda report: {})
    arguments = ("robustness", run, "--shards", hurt[0], "--out", tmp_path, "--corruptions", "CC,noise")
    code, out, err = run_on_cpu(*arguments, "--severities", "5", "--at", "256", "--json")
    told = json.loads(out)
    assert code == 1 and f"left out: {hurt[1]}" in err and "3 cells scored, 0 taken over" in err
    assert told == json.loads((tmp_path / "robustness.json").read_text())
    assert (told["corruptions"], told["severities"], told["tuples"]) == (["contrast", "noise"], [5], 7)
    assert told["settings"]["side_px"] == {"run": 256}
    code, _, err = run_on_cpu(*arguments, "--severities", "strong")
    assert code == 2 and "--severities: got strong, expected some of 1,2,3,4,5" in err
