"""scripts/reproduce.py: its plan, what it does again and what not, and the whole way from a dataset to the page."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.run_folders import write_run

from qadprep.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import reproduce

        yield reproduce
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in ("reproduce", "reproduce_steps", "reproduce_work"):
            del sys.modules[name]


def planned(script, *arguments: str) -> dict[str, str]:
    """Stage -> its command, in order."""
    _, settings = script.parse(arguments)
    return {stage.name: " ".join(stage.command) for stage in script.plan(settings, Path("made.py"))}


def test_runs_are_presets_names_and_fields(script):
    parsed = script.parse_runs(["ce,qad-e", "soft=qad:awp.gamma=0.001:hsic.weights=[0.1,0.2,0.3]"], demo=False)
    assert [(run.name, run.preset, run.overrides) for run in parsed] == [
        ("ce", "ce-r", ()),
        ("qad-e", "qad-e", ()),
        ("soft", "qad-r", ("awp.gamma=0.001", "hsic.weights=[0.1,0.2,0.3]")),
    ]
    (demo,) = script.parse_runs(["plain=ce:train.seed=3"], demo=True)
    assert demo.preset == "tiny" and demo.overrides == ("hsic.alpha=0", "awp.gamma=0", "train.seed=3")
    for wrong, message in (
        (["qad,qad"], "each name once"),
        ([","], "got none"),
        (["a/b=qad-r"], "expected PRESET"),
        (["a=qad-r:awp.gamma"], "expected PRESET"),
    ):
        with pytest.raises(UserError, match=message):
            script.parse_runs(wrong, demo=False)


def test_the_plan_for_a_dataset(script):
    stages = planned(
        script, "/data/FF++", "--out", "w", "--protocol", "qad-ffpp-all", "--runs", "ce,qad", "--gpus", "2",
        "--cross", "Celeb=celeb", "--set", "train.seed=5",
    )  # fmt: skip
    assert list(stages) == [
        "scan", "extract", "shard", "fit-ce", "fit-qad", "eval-ce", "eval-qad", "compare-qad", "cross", "robustness",
        "gradcam", "consistency", "theorem-ce", "theorem-qad", "report",
    ]  # fmt: skip
    assert stages["scan"] == (
        "qadprep scan /data/FF++ --dataset ffpp --protocol qad-ffpp-all --out w/manifest.parquet --seed 0"
    )
    assert "--protocol qad-ffpp-all" in stages["extract"] and "--frames" not in stages["extract"]
    assert stages["fit-ce"] == (
        "torchrun --nproc-per-node 2 -m qadtrain fit w/shards --out w/runs/ce --preset ce-r --set train.seed=5 "
        "--device auto"
    )
    assert stages["compare-qad"].startswith("qadtrain compare w/runs/ce w/runs/qad --shards w/shards")
    assert "--set w/shards --set Celeb=celeb" in stages["cross"] and "--no-published" not in stages["cross"]
    assert "--corruptions figure6" in stages["robustness"] and "--limit" not in stages["robustness"]
    assert stages["report"] == (
        "qadtrain report w/runs/ce w/runs/qad --out w/report.html --shards w/shards --shards celeb"
    )


def test_the_plan_for_a_shard_set_and_for_the_demonstration(script):
    stages = planned(script, "--shards", "mine", "--out", "w", "--runs", "qad-e")
    assert next(iter(stages)) == "fit-qad-e" and not any(name.startswith("compare") for name in stages)
    assert stages["eval-qad-e"].startswith("qadtrain eval w/runs/qad-e mine --out w/runs/qad-e/eval/mine-test")
    demo = planned(script, "--clips", "films", "--out", "w", "--count", "3", "--set", "optim.epochs=1")
    assert demo["dataset"] == "python made.py w/dataset --seed 0 --clips films"
    assert "--preset tiny --set optim.epochs=2 --set awp.start_epoch=1 --set optim.epochs=1 " in demo["fit-qad"]
    assert "--count 3" in demo["gradcam"] and "--limit 24" in demo["gradcam"] and "--workers 0" in demo["fit-ce"]
    assert "--no-published" in demo["cross"]


def test_every_stage_needs_earlier_ones_alone(script):
    _, settings = script.parse(["--demo", "--out", "w", "--runs", "ce,qad,c=tiny"])
    seen = set()
    for stage in script.plan(settings, Path("made.py")):
        assert set(stage.needs) <= seen and stage.name not in seen
        seen.add(stage.name)


@pytest.fixture
def chain(script, tmp_path):
    """Two stages that write a file each, the second from the first one's, and one that stands alone."""
    stage = sys.modules["reproduce_steps"].Stage
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); print('written', sys.argv[2])"

    def make(text: str = "1", code: int = 0):
        first, second, alone = (tmp_path / name for name in ("first", "second", "alone"))
        end = f"; sys.exit({code})"
        return [
            stage("a", ("python", "-c", write + end, str(first), text), (first,), soft=True),
            stage("b", ("python", "-c", write, str(second), "2"), (second,), ("a",)),
            stage("c", ("python", "-c", write, str(alone), "3"), (alone,)),
        ]

    return make


def states(script, stages, folder, screen=None) -> list[str]:
    with Path(os.devnull).open("w") as nowhere:
        return [one.state for one in script.run_all(stages, script.Work(folder), screen or nowhere)]


def test_what_is_done_is_kept_and_what_changed_is_done_again(script, chain, tmp_path):
    assert states(script, chain(), tmp_path) == ["done"] * 3
    assert (tmp_path / "logs" / "a.log").read_text().splitlines()[-1] == "written 1"
    assert states(script, chain(), tmp_path) == ["kept"] * 3
    assert states(script, chain("changed"), tmp_path) == ["done", "done", "kept"]  # b is made from a's file
    (tmp_path / "second").write_text("touched")
    assert states(script, chain("changed"), tmp_path) == ["kept", "done", "kept"]
    assert (tmp_path / "second").read_text() == "2"
    (tmp_path / "alone").unlink()
    assert states(script, chain("changed"), tmp_path) == ["kept", "kept", "done"]
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    stages = [
        type(s)(s.name, tuple(w.replace(str(tmp_path), str(moved)) for w in s.command),
                tuple(moved / o.name for o in s.outputs), s.needs, soft=s.soft)
        for s in chain("changed")
    ]  # fmt: skip
    assert states(script, stages, moved) == ["kept"] * 3


def test_a_stage_that_fails_takes_along_what_needs_it_alone(script, chain, tmp_path):
    outcomes = script.run_all(chain(code=2), script.Work(tmp_path), sys.stderr)
    assert [one.state for one in outcomes] == ["failed", "left out", "done"]
    assert outcomes[0].detail == "exit code 2; its output is in logs/a.log" and outcomes[1].detail == "needs a"
    assert states(script, chain(code=1), tmp_path) == ["partly", "done", "kept"]
    assert [one.detail for one in script.run_all(chain(code=1), script.Work(tmp_path), sys.stderr)] == [
        "partly", "", "",
    ]  # fmt: skip
    stage = sys.modules["reproduce_steps"].Stage
    hollow = stage("d", ("python", "-c", "pass"), (tmp_path / "never",))
    (outcome,) = script.run_all([hollow], script.Work(tmp_path), sys.stderr)
    assert (outcome.state, outcome.detail.split(";")[0]) == ("failed", "exit code 0, but it left no never")


def test_each_of_several_other_sets_counts(script, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shards.json").write_text("1")
    words = ["--demo", "--out", str(tmp_path / "w"), "--cross", f"A={tmp_path / 'a'}", "--cross", f"B={tmp_path / 'b'}"]
    _, settings = script.parse(words)
    (stage,) = (one for one in script.plan(settings, Path("made.py")) if one.name == "cross")
    found = {script.Work(tmp_path / "w").digest(stage)}
    for name in ("a", "b"):
        (tmp_path / name / "shards.json").write_text("2")
        found.add(script.Work(tmp_path / "w").digest(stage))
    assert len(found) == 3


def test_a_crash_is_no_partial_result_when_an_earlier_one_lies_there(script, tmp_path):
    stage = sys.modules["reproduce_steps"].Stage
    kept = tmp_path / "summary.json"
    kept.write_text("of other settings")
    crashed = stage("x", ("python", "-c", "import sys; sys.exit(1)"), (kept,), soft=True)
    (outcome,) = script.run_all([crashed], script.Work(tmp_path), sys.stderr)
    assert outcome.state == "failed" and "summary.json is of an earlier call" in outcome.detail
    assert kept.exists() and not script.Work(tmp_path).is_done(crashed)


def test_the_page_is_made_without_tables_of_an_earlier_call(script, tmp_path):
    stage = sys.modules["reproduce_steps"].Stage
    data, scored, compared, alone, page = (tmp_path / name for name in ("data", "scored", "compared", "alone", "page"))
    for path in (data, scored, compared, page):
        path.write_text("earlier")
    fails = ("python", "-c", "import sys; sys.exit(2)")
    list_folder = "import os, sys; open(sys.argv[2], 'w').write(' '.join(sorted(os.listdir(sys.argv[1]))))"
    stages = [
        stage("data", fails, (data,)),
        stage("eval", fails, (scored,), result=True),
        stage("compare", ("python", "-c", "pass"), (compared,), ("eval",), result=True),
        stage("alone", ("python", "-c", f"open({str(alone)!r}, 'w')"), (alone,), result=True),
        stage("report", ("python", "-c", list_folder, str(tmp_path), str(page)), (page,), always=True, result=True),
    ]
    outcomes = script.run_all(stages, script.Work(tmp_path), sys.stderr)
    assert [one.state for one in outcomes] == ["failed", "failed", "left out", "done", "done"]
    # What training and data left is theirs to judge; the page does not look at it.
    assert page.read_text().split() == ["alone", "data", "logs", "page", "reproduce.json"]


def test_wrong_use_is_said_before_the_first_stage(script, tmp_path):
    (tmp_path / "set").mkdir()
    given = ["--shards", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    for more, message in (
        (["--runs", "qad-x"], "--runs: qad-x: --preset: got qad-x"),
        (["--runs", "a=qad-r:awp.gama=1"], "--runs: a: awp.gama: no such field"),
        (["--set", "optim.epochs=0"], "optim.epochs: got 0"),
        (["--cross", f"X={tmp_path}"], "--cross: .*it has no shards.json"),
        (["--bootstrap", "0"], "--bootstrap: got 0, expected at least 100"),
        (["--severities", "1,6"], "--severities: got 1,6"),
        (["--corruptions", "CS,none"], "--corruptions: got 'none'"),
    ):
        with pytest.raises(UserError, match=message):
            script.check(script.parse([*given, *more])[1])
    script.check(script.parse(given)[1])
    with pytest.raises(UserError, match="unknown protocol 'ffpp'"):
        script.parse([str(tmp_path), "--out", "w", "--protocol", "ffpp"])
    _, settings = script.parse([str(tmp_path / "list.csv"), "--out", "w", "--protocol", "qad-celebdf"])
    assert settings.dataset == "celebdf"
    with pytest.raises(UserError, match=r"list\.csv: no such"):
        script.check(settings)
    (tmp_path / "list.csv").touch()  # a dataset may be a list of files
    script.check(settings)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reproduce.json").write_text('{"stages": [1]}')
    with pytest.raises(UserError, match=r"reproduce\.json: cannot be read .* delete it"):
        script.Work(tmp_path / "out")


def test_a_command_that_outlives_a_killed_call_keeps_others_out(script, tmp_path):
    sole_user = sys.modules["reproduce_work"].sole_user
    code = (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\n"
        "import reproduce, reproduce_work\nout = Path(sys.argv[2])\n"
        "command = ('python', '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)')\n"
        "with reproduce_work.sole_user(out) as lock:\n"
        "    reproduce.execute(command, out / 'logs' / 'x.log', sys.stdout, lock)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(SCRIPTS), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    left = int(killed.stdout.readline())
    try:
        killed.kill()
        killed.wait()
        with pytest.raises(UserError, match="another call is at work there, or the last command of one"):
            with sole_user(tmp_path):
                pass
    finally:
        os.kill(left, signal.SIGKILL)
        killed.stdout.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            with sole_user(tmp_path):
                return
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_training_that_a_signal_stopped_is_not_done(script, tmp_path):
    stage = sys.modules["reproduce_steps"].Stage
    for name, run, expected in (
        ("stopped", write_run(tmp_path / "stopped", epochs=1, stopping="SIGTERM"), "failed"),
        ("whole", write_run(tmp_path / "whole", epochs=4), "done"),
    ):
        fit = stage(f"fit-{name}", ("qadtrain", "fit"), (run / "config.toml",), trains=run)
        assert script.judged(fit, 0, {})[0] == expected
        assert script.command_of(fit) == ["qadtrain", "fit"]
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "step-1.state.pt").touch()
        assert script.command_of(fit)[-1] == "--resume"


def test_a_signal_ends_the_command_and_is_passed_on(script, tmp_path):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        script.execute(("python", "-c", "import time; time.sleep(60)"), tmp_path / "logs" / "x.log", sys.stderr)
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / "reproduce.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_wrong_use_is_one_line_and_a_dry_run_writes_nothing(tmp_path):
    (tmp_path / "set").mkdir()
    given = ("--shards", str(tmp_path / "set"), "--out", str(tmp_path / "out"))
    wrong = run(*given, "--again", "fit-none")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --again: got 'fit-none', expected some of fit-ce,")
    dry = run(*given, "--dry-run")
    assert dry.returncode == 0 and "# fit-ce\nqadtrain fit" in dry.stdout and not (tmp_path / "out").exists()
    assert run("--out", "x").returncode == 2
    nowhere = run("--shards", str(tmp_path / "set"), "--out", str(Path(__file__) / "out"))
    assert nowhere.returncode == 1 and re.fullmatch(r"error: .*out: Not a directory; .*\n", nowhere.stderr)


@pytest.mark.slow
def test_from_a_dataset_to_the_page_and_again(tmp_path):
    out = tmp_path / "work"
    first = run("--demo", "--out", str(out), "--runs", "ce,qad", "--json")
    assert first.returncode == 0, first.stdout + first.stderr
    stages = {stage["name"]: stage for stage in json.loads(first.stdout)["stages"]}
    assert len(stages) == 16 and {stage["state"] for stage in stages.values()} == {"done"}
    assert all((out / stage["log"]).stat().st_size for stage in stages.values())
    evaluated = json.loads((out / "runs" / "qad" / "eval" / "shards-test" / "report.json").read_text())
    assert evaluated["tuples"] == 48 and evaluated["qualities"] == ["raw", "c23", "c40"]
    for name in (
        "compare/qad-against-ce/compare.csv", "cross/cross.tex", "robustness/robustness.svg", "gradcam/sheet.png",
        "gradcam/consistency.csv", "runs/ce/theorem/shards-test/theorem.csv", "runs/ce/eval/shards-test/report.tex",
    ):  # fmt: skip
        assert (out / name).stat().st_size > 0, name
    page = (out / "report.html").read_text()
    chapters = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert chapters[:8] == [
        "Summary", "Evaluation", "Comparison", "Other shard sets", "Robustness", "Heat maps", "Theorem 1",
        "Hardest tuples",
    ]  # fmt: skip
    auc = evaluated["metrics"]["frame"]["c40"]["average"]["auc"]
    assert f"{100 * auc:.2f} (" in page and "QAD-R" not in page  # the published figures are of another dataset
    assert "Results that cannot be shown" not in page and page.count("data:image/png;base64") >= 2 + 2 + 1 + 2 * 3

    (out / "cross" / "cross.json").unlink()
    again = run("--demo", "--out", str(out), "--runs", "ce,qad", "--json")
    assert again.returncode == 0, again.stderr
    done = [s["name"] for s in json.loads(again.stdout)["stages"] if s["state"] == "done"]
    assert done == ["cross", "report"]
    assert (out / "report.html").read_text() == page
