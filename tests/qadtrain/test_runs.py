"""The list of runs and their comparison, from files alone."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from helpers.run_folders import without_end, write_run
from rich.console import Console

from qadprep.errors import UserError
from qadtrain import runs
from qadtrain.run_tables import compare_runs, comparison_tables, duration, runs_table, unique_names


def text_of(*tables) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


def test_a_run_is_read_from_its_files(tmp_path):
    run = runs.read_run(write_run(tmp_path / "a", epochs=2))
    assert (run.name, run.model, run.preset, run.fingerprint) == ("a", "tiny", "", "ab12" * 16)
    assert (run.epochs, run.epochs_total, run.steps) == (2, 4, 40)
    assert run.best_by == "auc/average" and run.best == pytest.approx(0.8) and run.best_epoch == 1
    assert run.best_auc == run.last_auc == pytest.approx({"raw": 0.85, "c23": 0.75})
    assert run.tuples_per_s == pytest.approx(100.5) and run.seconds < 60 and run.age_s < 60
    assert json.loads(json.dumps(run.as_json(), allow_nan=False))["best_auc"]["raw"] == pytest.approx(0.85)


def test_a_preset_is_known_by_its_values(tmp_path):
    epochs = runs.load_config("tiny").optim.epochs
    assert runs.read_run(write_run(tmp_path / "a", of_epochs=epochs)).preset == "tiny"
    assert runs.read_run(write_run(tmp_path / "b", ("train.seed=9",), of_epochs=epochs)).preset == ""


def test_the_state_is_judged_from_the_records(tmp_path):
    def state(name: str, **options) -> tuple[str, str]:
        run = runs.read_run(write_run(tmp_path / name, **options))
        return run.state, run.fault

    assert state("all", epochs=4) == ("finished", "")
    assert state("signal", stopping="SIGTERM") == ("stopped", "SIGTERM")
    assert state("budget") == ("stopped", "")
    assert state("error", error=UserError("the loss of step 3 is nan")) == (
        "failed",
        "UserError: the loss of step 3 is nan",
    )
    early = {"overrides": ("optim.early_stop_checks=2",), "stopping": "early stop"}
    assert state("early", epochs=3, **early) == ("stopped", "early stop")
    path = tmp_path / "early" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in [line for line in lines if line["kind"] == "epoch"][1:]:
        line["best"] = False
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert runs.read_run(tmp_path / "early").state == "finished"


def test_a_run_without_an_end_is_running_until_it_is_silent_for_long(tmp_path):
    folder = without_end(write_run(tmp_path / "a"))
    path = folder / "metrics.jsonl"
    assert runs.read_run(folder).state == "running"
    silent = time.time() - 1000
    os.utime(path, (silent, silent))
    run = runs.read_run(folder)
    assert run.state == "failed" and "without a word" in run.fault and run.age_s == pytest.approx(1000, abs=30)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["seconds"] += 400  # its steps are slow
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(path, (silent, silent))
    assert runs.read_run(folder).state == "running"


def test_folders_are_searched_and_broken_runs_listed_with_their_fault(tmp_path):
    older = write_run(tmp_path / "group" / "older")
    then = time.time() - 500
    os.utime(older / "metrics.jsonl", (then, then))
    write_run(tmp_path / "newer", ("awp.gamma=0.5",), epochs=4)
    (tmp_path / "empty").mkdir()
    for name, contents in {"not-json": "{", "foreign": '{"a": 1}', "list": "[]"}.items():
        broken = write_run(tmp_path / name)
        (broken / "run.json").write_text(contents)
    (write_run(tmp_path / "bad-config") / "config.toml").write_text("[awp]\ngamma = -1\n")
    half = write_run(tmp_path / "half-line", epochs=1)
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    found = {run.name: run for run in runs.list_runs([tmp_path, tmp_path / "newer"])}
    assert set(found) == {"older", "newer", "not-json", "foreign", "list", "bad-config", "half-line"}
    broken_names = {run.name for run in found.values() if run.state == "broken"}
    assert broken_names == {"not-json", "foreign", "list", "bad-config"}
    assert "not a run folder of `qadtrain fit`" in found["not-json"].fault
    assert "awp.gamma: got -1" in found["bad-config"].fault and "KeyError" in found["foreign"].fault
    assert found["half-line"].records.unreadable == 1 and found["half-line"].steps == 20
    names = [run.name for run in runs.list_runs([tmp_path])]
    assert names.index("newer") < names.index("older")
    shown = text_of(runs_table(list(found.values())))
    row = next(line for line in shown.splitlines() if line.strip().startswith("newer")).split()
    assert row[:8] == ["newer", "tiny", "finished", "4/4", "80", "0.9000", "95.0", "85.0"]
    assert "awp.gamma: got -1" in shown and "best: auc/average" in shown and "data: ab12ab12ab12" in shown


def test_a_folder_that_may_not_be_read_is_broken_and_the_others_are_listed(tmp_path, monkeypatch):
    for name in ("sound", "closed"):
        write_run(tmp_path / name)

    def guarded(method):
        def call(path, *arguments, **options):
            if path.parent.name == "closed":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return method(path, *arguments, **options)

        return call

    for name in ("is_file", "read_text"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))
    found = {run.name: run for run in runs.list_runs([tmp_path])}
    assert set(found) == {"sound", "closed"}
    assert found["closed"].state == "broken" and "Permission denied" in found["closed"].fault
    assert found["sound"].state == "stopped"


def test_folders_without_runs_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        runs.list_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"no run folder in it; `qadtrain fit"):
        runs.list_runs([tmp_path])


def test_runs_of_earlier_versions_and_without_validation_are_read(tmp_path):
    folder = write_run(tmp_path / "a", epochs=1)
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    old = next(record for record in records if record["kind"] == "epoch")
    old["auc"] = old.pop("auc/average")
    old.pop("seconds")
    path.write_text(json.dumps(old) + "\n")
    run = runs.read_run(folder)
    assert (run.best_by, run.best, run.seconds) == ("auc", pytest.approx(0.75), None)
    path.write_text(json.dumps({name: value for name, value in old.items() if not name.startswith("auc")}) + "\n")
    run = runs.read_run(folder)
    assert (run.best_by, run.best, run.best_auc) == ("train_ce", 1.0, {})


def test_a_comparison_has_what_differs_and_the_loss_at_equal_steps(tmp_path):
    first = runs.read_run(write_run(tmp_path / "a", epochs=2))
    second = runs.read_run(write_run(tmp_path / "b", ("awp.gamma=0.5",), epochs=3, log_every=10, level=2.0))
    found = compare_runs([first, second])
    assert found.names == ["a", "b"]
    assert found.fields == {"awp.gamma": [first.config.awp.gamma, 0.5]} and first.config.awp.gamma != 0.5
    assert found.metrics["auc/c23"] == pytest.approx([0.75, 0.8]) and found.metrics["epochs"] == [2, 3]
    assert found.metrics["steps"] == [40, 60]
    assert {step: pytest.approx(values) for step, values in found.losses.items()} == {
        step: [1 - 0.01 * step, 2 - 0.01 * step] for step in (10, 20, 30, 40)
    }
    shown = text_of(*comparison_tables(found))
    assert "awp.gamma" in shown and "0.5" in shown and "0123456789ab" in shown and "1.6" in shown
    json.dumps(found.as_json(), allow_nan=False)


def test_what_cannot_be_compared_is_one_line(tmp_path):
    run = runs.read_run(write_run(tmp_path / "a"))
    with pytest.raises(UserError, match="got 1 run, expected two or more"):
        compare_runs([run])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text("{")
    with pytest.raises(UserError, match="b: cannot be compared"):
        compare_runs([run, runs.read_run(tmp_path / "b")])


def test_equal_names_get_more_of_their_path(tmp_path):
    found = [runs.read_run(write_run(tmp_path / group / "run", epochs=1)) for group in ("x", "y")]
    assert unique_names(found) == ["x/run", "y/run"]
    assert unique_names([found[0], found[0]]) == ["run", "run"]


def test_durations_are_short():
    assert [duration(value) for value in (None, 12, 90, 750, 7560, 90_000 * 4)] == [
        "-",
        "12 s",
        "1.5 min",
        "12 min",
        "2.1 h",
        "4.2 d",
    ]
