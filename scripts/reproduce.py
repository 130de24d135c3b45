"""From a dataset to every table and figure with one command: scan, extract, shard, fit, eval, compare, cross,
robustness, gradcam, theorem, report.

    uv run python scripts/reproduce.py /data/FF++ --out work --protocol qad-ffpp-all --runs ce,qad
    uv run python scripts/reproduce.py --shards shards --out work --runs ce,qad,qad-e --cross Celeb-DF-v2=celebdf
    uv run python scripts/reproduce.py --demo --out work --runs ce,qad      # minutes on a CPU, no dataset needed
    uv run python scripts/reproduce.py --clips VIDEOS --out work            # the same, originals from face videos

A run is a preset (`ce` and `qad` are ce-r and qad-r, in the demonstration both tiny), or NAME=PRESET, or
NAME=PRESET:FIELD=VALUE[:FIELD=VALUE...]. The first one is what the others are compared with.

Each stage is a command of qadprep or qadtrain, printed before it runs, with its output in OUT/logs. A second call goes
on where the first stopped: OUT/reproduce.json holds, for each stage that is done, a digest of its command, of what it
was made from and of what it left; a stage whose digests have changed is done again, and those after it. Where a stage
fails, those that need it are left out and the others go on. docs/reproduce.md tells more.

Exit code 0: everything done; 1: a stage failed or could not use everything; 2: wrong use; 130: interrupted.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from reproduce_steps import Settings, Stage, check, demonstration, parse_runs, plan
from reproduce_work import Work, sole_user

from qadprep.errors import UserError

DATASET_SCRIPT = Path(__file__).with_name("reproduce_dataset.py")
DONE, PARTLY, KEPT, FAILED, LEFT_OUT = "done", "partly", "kept", "failed", "left out"
EXIT_PARTLY, EXIT_USE, EXIT_INTERRUPTED = 1, 2, 130
_MODULES = {"qadprep": ["-m", "qadprep"], "qadtrain": ["-m", "qadtrain"], "torchrun": ["-m", "torch.distributed.run"]}
_LEAST_WIDTH = 120


@dataclass
class Outcome:
    """What became of a stage."""

    name: str
    state: str
    seconds: float
    command: str
    log: str = ""
    detail: str = ""


def command_of(stage: Stage) -> list[str]:
    """Its words; a run that has begun is gone on with."""
    begun = stage.trains is not None and any((stage.trains / "checkpoints").glob("*.state.pt"))
    return [*stage.command, *(["--resume"] if begun else [])]


def run_all(stages: Sequence[Stage], work: Work, screen: TextIO, lock: int | None = None) -> list[Outcome]:
    """Run what is not done; what needs a stage that failed is left out.

    Args:
        lock: file descriptor that each command inherits.
    """
    outcomes: list[Outcome] = []
    bad: set[str] = set()
    for number, stage in enumerate(stages, start=1):
        head = f"[{number}/{len(stages)}] {stage.name}"
        words = command_of(stage)
        typed = shlex.join(words)
        missing = [need for need in stage.needs if need in bad]
        if missing:
            bad.add(stage.name)
            outcomes.append(Outcome(stage.name, LEFT_OUT, 0.0, typed, detail=f"needs {', '.join(missing)}"))
            print(f"{head}: left out, it needs {', '.join(missing)}", file=screen, flush=True)
            continue
        if work.is_done(stage):
            state = work.stages[stage.name]["state"]
            outcomes.append(Outcome(stage.name, KEPT, 0.0, typed, detail="partly" if state == PARTLY else ""))
            print(f"{head}: done already", file=screen, flush=True)
            continue
        log = work.out / "logs" / f"{stage.name}.log"
        print(f"{head}\n$ {typed}", file=screen, flush=True)
        # The page takes what it finds: of the tables and figures that could not be made, no earlier ones either.
        work.discard([stage, *(other for other in stages if stage.always and other.name in bad)])
        before = written_at(stage)
        started = time.monotonic()
        code = execute(words, log, screen, lock)
        seconds = time.monotonic() - started
        state, detail = judged(stage, code, before)
        if state == FAILED:
            bad.add(stage.name)
            work.forget([stage.name])
            detail += f"; its output is in {log.relative_to(work.out)}"
        else:
            work.note(stage, state, seconds)
        outcomes.append(Outcome(stage.name, state, seconds, typed, str(log.relative_to(work.out)), detail))
        print(f"{stage.name}: {state} in {seconds:.0f} s{f' ({detail})' if detail else ''}", file=screen, flush=True)
    return outcomes


def written_at(stage: Stage) -> dict[Path, int]:
    """File that a stage leaves -> when it was written, ns; those that are there."""
    return {path: path.stat().st_mtime_ns for path in stage.outputs if path.is_file()}


def judged(stage: Stage, code: int, before: Mapping[Path, int]) -> tuple[str, str]:
    """State of a stage that ended with an exit code, and why.

    Args:
        before: as of :func:`written_at` before it ran.
    """
    if code != 0 and not (stage.soft and code == EXIT_PARTLY):
        return FAILED, f"exit code {code}"
    absent = [path.name for path in stage.outputs if not path.is_file()]
    if absent:
        return FAILED, f"exit code {code}, but it left no {', '.join(absent)}"
    now = written_at(stage)
    # 1 is also the exit code of a crash, after which files of an earlier call say nothing.
    if code and (old := [path.name for path in stage.outputs if now[path] == before.get(path)]):
        return FAILED, f"exit code {code}, and {', '.join(old)} is of an earlier call"
    if stage.trains is not None:
        from qadtrain.runs import FINISHED, read_run

        # A signal ends training with a checkpoint and exit code 0, which is not the end of the run.
        state = read_run(stage.trains).state
        if state != FINISHED:
            return FAILED, f"training is {state}; the same command goes on"
    return (PARTLY, "not everything could be used") if code else (DONE, "")


def execute(words: Sequence[str], log: Path, screen: TextIO, lock: int | None = None) -> int:
    """Run a command; what it says goes to the screen and is added to the log.

    Args:
        lock: file descriptor that the command inherits.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the command was given the time to end.
    """
    program, *rest = words
    argv = [sys.executable, *_MODULES.get(program, []), *rest]
    log.parent.mkdir(parents=True, exist_ok=True)
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    environment = os.environ | {"COLUMNS": str(width), "PYTHONUNBUFFERED": "1"}
    with log.open("a", encoding="utf-8") as kept:
        kept.write(f"$ {shlex.join(words)}\n")
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            pass_fds=() if lock is None else (lock,),
        ) as process:
            interrupted = False

            def stop(number: int, frame: Any) -> None:
                nonlocal interrupted
                interrupted = True
                if number == signal.SIGTERM:  # Ctrl-C reaches the command by itself
                    process.terminate()

            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                for line in process.stdout:
                    kept.write(line)
                    screen.write(line)
                    screen.flush()
                code = process.wait()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
    if interrupted:
        raise KeyboardInterrupt
    return code


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("root", type=Path, nargs="?", help="root folder of the dataset")
    add("--out", type=Path, required=True, help="work folder: faces, shards, runs, tables, figures, logs")
    add(
        "--runs", nargs="+", default=["ce,qad"], metavar="RUN", help="runs to train; the first is the baseline (ce,qad)"
    )
    add("--shards", type=Path, help="begin with this shard set instead of a dataset")
    add("--demo", action="store_true", help="a small dataset made on the spot, and small numbers")
    add("--clips", type=Path, help="--demo with the originals from this folder of face videos")
    add("--dataset", default="", help="layout, as for `qadprep scan` (the protocol's, or ffpp)")
    add("--protocol", default="", help="clips and settings of a protocol; `qadprep plan` lists them")
    add("--frames", type=int, help="tuples wanted per clip (the protocol's, or 64)")
    add("--size", dest="size_px", type=int, help="side of the crops, px (the protocol's, or 128)")
    add("--make-qualities", action="store_true", help="encode missing qualities from raw")
    add("--detector", default="", help="auto, retinaface or mtcnn (auto)")
    add("--split", default="test", help="split of all tables and figures (test)")
    add("--cross", action="append", default=[], metavar="NAME=SHARDS", help="another shard set; repeatable")
    add("--corruptions", default="", help="figure6, all, or names and codes (figure6)")
    add("--severities", default="", help="some of 1,2,3,4,5 (all)")
    add("--limit", type=int, help="tuples that robustness scores and gradcam picks among (all)")
    add("--count", type=int, help="tuples whose heat maps are drawn (6)")
    add("--consistency", type=int, help="tuples whose heat maps are compared (200)")
    add("--bootstrap", type=int, help="draws of the intervals, 100 or more (1000)")
    add(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="a field of every run; repeatable"
    )
    add("--seed", type=int, default=0, help="of frames, order and videos; training's is --set train.seed=N (0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    add("--gpus", type=int, default=1, help="GPUs of this machine that train together, by torchrun (1)")
    add("--workers", default="", help="processes of scan and extract (auto)")
    add("--loaders", type=int, help="loader processes of training and scoring (one a core)")
    add("--again", default="", metavar="STAGE,...", help="do these stages again; what a command keeps it takes over")
    add("--dry-run", action="store_true", help="print the commands and what is done already; run nothing")
    add("--json", action="store_true", help="print a machine-readable summary on stdout")
    given = parser.parse_args(arguments)
    demo = given.demo or given.clips is not None
    if sum((given.root is not None, given.shards is not None, demo)) != 1:
        parser.error("expected one of a dataset's root, --shards, and --demo or --clips")
    for name in ("frames", "size_px", "limit", "count", "consistency", "gpus"):
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name.removesuffix('_px')}: got {value}, expected at least 1")
    values = {one.name: getattr(given, one.name) for one in fields(Settings) if hasattr(given, one.name)}
    values |= {"demo": demo, "runs": parse_runs(given.runs, demo=demo), "overrides": tuple(given.overrides)}
    values |= {"cross": tuple(given.cross)}
    if demo:
        # What is asked for comes after the small numbers, and wins.
        values["overrides"] = (*demonstration({})["overrides"], *values["overrides"])
        values = demonstration(values)
    defaults = {"count": 6, "consistency": 200, "corruptions": "figure6", "detector": "auto"}
    values |= {name: value for name, value in defaults.items() if not values[name]}
    if not values["dataset"] and given.root is not None:
        from qadprep.protocols import load_protocol

        values["dataset"] = load_protocol(given.protocol).dataset if given.protocol else "ffpp"
    return given, Settings(**values)


def main() -> int:
    try:
        given, settings = parse()
        check(settings)
        stages = plan(settings, DATASET_SCRIPT)
        again = [name for name in given.again.split(",") if name]
        if unknown := set(again) - {stage.name for stage in stages}:
            names = ", ".join(stage.name for stage in stages)
            raise UserError(f"--again: got {sorted(unknown)[0]!r}, expected some of {names}")
        if given.dry_run:
            work = Work(settings.out)
            for stage in stages:
                done = stage.name not in again and work.is_done(stage)
                print(f"# {stage.name}{': done already' if done else ''}\n{shlex.join(command_of(stage))}")
            return 0
        screen = sys.stderr if given.json else sys.stdout
        with sole_user(settings.out) as lock:
            work = Work(settings.out)
            work.forget(again)
            outcomes = run_all(stages, work, screen, lock)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; mend it, and the same command goes on", file=sys.stderr)
        return EXIT_PARTLY
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    ok = all(one.state in {KEPT, DONE} and not one.detail for one in outcomes)
    width = max(len(one.name) for one in outcomes)
    for one in outcomes:
        print(f"{one.name:{width}}  {one.state:8}  {one.seconds:7.1f} s  {one.detail}".rstrip(), file=screen)
    if outcomes[-1].state in {DONE, PARTLY}:
        print(f"the page: {settings.out / 'report.html'}", file=screen)
    if given.json:
        summary = {"ok": ok, "out": str(settings.out), "stages": [asdict(one) for one in outcomes]}
        print(json.dumps(summary, indent=2))
    return 0 if ok else EXIT_PARTLY


if __name__ == "__main__":
    sys.exit(main())
