"""The command line: parse, build a configuration, call, print. torch is imported by the commands, not by --help."""

import errno
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qadprep.errors import UserError
from qadtrain import cli_explain, cli_scores, cli_use
from qadtrain.cli_common import EXIT_PARTLY_FAILED, Json, Runs, Shards, Workers, end_with, interruptible, print_json

app = typer.Typer(
    help="Train a quality-agnostic deepfake detector on a tuple shard set, score it, explain it, use it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

EXIT_USER_ERROR = 2


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """--debug is read by main(), which has to know it before parsing has succeeded."""


@app.command("fit")
def fit_command(
    shards: Shards,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder.")],
    preset: Annotated[
        str | None, typer.Option(help="qad-r (ResNet-50; the default), qad-e (EfficientNet-B1), tiny (small CNN, CPU).")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML file, over the preset.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="One field, over everything; repeatable.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Pretrained weights from a file instead of fetching.")] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="N|auto", help="Tuples per step; auto = the most that fits.")
    ] = None,
    skip_bad: Annotated[
        int | None, typer.Option("--skip-bad", min=0, help="Damaged tuples to leave out at most, of train and of val.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with another configuration or other data; it is recorded.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train on the train split; the best checkpoint is picked on the val split.

    Several GPUs: torchrun --nproc-per-node N -m qadtrain fit ...
    """
    from qadtrain.config_io import load_config, read_toml
    from qadtrain.fit import CONFIG_NAME, fit

    fields = list(overrides or [])
    fields += [f"model.weights={json.dumps(str(weights))}"] if weights else []
    fields += [f"train.device={json.dumps(device)}"] if device else []
    fields += [f"data.num_workers={workers}"] if workers is not None else []
    fields += [f"data.batch_tuples={_batch_tuples(batch)}"] if batch is not None else []
    fields += [f"data.skip_bad={skip_bad}"] if skip_bad is not None else []
    if allow_changes and not resume:
        raise UserError("--allow-changes: got it without --resume, expected both")
    saved = out / CONFIG_NAME
    if preset is None and resume and saved.is_file():
        config = load_config(None, config_file, fields, base=read_toml(saved))
    else:
        config = load_config(preset or "qad-r", config_file, fields)
    with interruptible():  # by a second Ctrl-C; the first one saves a checkpoint
        summary = fit(shards, out, config, resume=resume, allow_changes=allow_changes)
    if _rank():
        return  # one of several processes speaks
    if as_json:
        print_json(asdict(summary))
    elif not summary.stopped_by:
        for name, path in summary.checkpoints.items():
            detail = ""
            if summary.best_score is not None:  # None: of a run that ranks by another metric since
                detail = f" (epoch {summary.best_epoch + 1}, {summary.best_by} {summary.best_score:.4f})"
            typer.echo(f"{name}: {path}{detail if name == 'best' else ''}")
    if summary.stopped_by:
        place = f"{shlex.quote(str(shards))} --out {shlex.quote(str(out))}"
        typer.echo(
            f"stopped by {summary.stopped_by} at step {summary.steps}; checkpoint saved. "
            f"Continue with: {_launcher()}qadtrain fit {place} --resume",
            err=True,
        )


@app.command("runs")
def runs_command(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Run folders, or folders of runs; default here.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Side by side: configuration, scores, losses.")] = False,
    as_json: Json = False,
) -> None:
    """List runs with their state and best score, newest first."""
    from rich.console import Console

    from qadtrain.run_tables import compare_runs, comparison_tables, runs_table
    from qadtrain.runs import list_runs

    runs, console = list_runs(folders or [Path()]), Console()
    if compare:
        comparison = compare_runs(runs)
        if as_json:
            print_json(comparison.as_json())
        else:
            for table in comparison_tables(comparison):
                console.print(table)
    elif as_json:
        print_json({"runs": [run.as_json() for run in runs]})
    else:
        console.print(runs_table(runs))


@app.command("report")
def report_command(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page, or its folder; default report.html in the first RUN.")
    ] = None,
    shards: Annotated[
        list[Path] | None, typer.Option("--shards", help="Shard set of an evaluation, for pictures; repeatable.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option("--results", help="Further folder of results to look into; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page: curves, tables, robustness, Grad-CAM, hardest tuples; a running run as far as it is."""
    from qadtrain.run_report import write_run_report

    page = write_run_report(runs, out or runs[0], shards=shards or (), results=results or ())
    if as_json:
        print_json(page)
    else:
        typer.echo(f"written: {page['report']}")
    end_with(page["faults"])


app.add_typer(cli_scores.app)
app.add_typer(cli_explain.app)
app.add_typer(cli_use.app)


def main() -> None:
    """Entry point: a UserError or a full disk is one line and exit code 2; --debug shows its traceback."""
    # OpenMP's threads otherwise spin while they wait: with any other load on the cores that is many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv[1:]
    if debug:  # accepted before and after the command's name
        sys.argv = [sys.argv[0], *(argument for argument in sys.argv[1:] if argument != "--debug")]
    try:
        app(prog_name="qadtrain")
    except UserError as error:
        if debug:
            raise
        _fail(str(error))
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"{place}{os.strerror(error.errno)}; free space, then give the command again (fit with --resume)")
        _fail(f"{place}{error.strerror or error} (--debug shows where)", EXIT_PARTLY_FAILED)
    except Exception as error:
        if debug:
            raise
        _fail(f"internal error, {type(error).__name__}: {error} (--debug shows where)", EXIT_PARTLY_FAILED)


def _fail(message: str, code: int = EXIT_USER_ERROR) -> NoReturn:
    where = f"process {_rank()}: " if _rank() else ""
    typer.echo(f"error: {where}{message}", err=True)
    sys.exit(code)


def _rank() -> int:
    """Which of several processes of torchrun this is; 0 alone."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def _launcher() -> str:
    """How torchrun was called; with several nodes each of them needs its own place to meet added (--rdzv-*)."""
    world, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if not world.isdecimal() or int(world) <= 1:
        return ""
    here = int(local) if local.isdecimal() and int(local) else int(world)
    nodes = f"--nnodes {int(world) // here} " if here < int(world) else ""
    return f"torchrun {nodes}--nproc-per-node {here} -m "


def _batch_tuples(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise UserError(f"--batch: got {text!r}, expected auto or a number of tuples from 1")
    return int(text)


if __name__ == "__main__":
    main()
