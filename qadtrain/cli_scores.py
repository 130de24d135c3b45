"""Commands that score runs: eval, compare, cross, robustness."""

from pathlib import Path
from typing import Annotated

import typer

from qadtrain.cli_common import (
    Aggregate,
    BatchTuples,
    Bootstrap,
    Checkpoint,
    Device,
    Json,
    Level,
    Run,
    Runs,
    Seed,
    Shards,
    ShardsOption,
    SkipBad,
    Split,
    Workers,
    console_beside,
    end_with,
    interruptible,
    loader_workers,
    print_json,
    say,
    show,
    words,
    written,
)

app = typer.Typer()


@app.command("eval")
def eval_command(
    run: Run,
    shards: Shards,
    split: Split = "test",
    checkpoint: Checkpoint = "best",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; default RUN/eval/SHARDS-SPLIT.")
    ] = None,
    aggregate: Aggregate = "prob",
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    skip_bad: SkipBad = 0,
    all_metrics: Annotated[
        bool, typer.Option("--all-metrics", help="Print all nine metrics; the files always hold them.")
    ] = False,
    device: Device = "auto",
    workers: Workers = None,
    batch_tuples: BatchTuples = None,
    as_json: Json = False,
) -> None:
    """Figures for each quality x method, frame and video level, with intervals; every score is kept."""
    from qadtrain.evaluate import evaluate, evaluation_lines, report_tables
    from qadtrain.metrics import ALL_METRICS, METRICS

    with interruptible():
        report, contents, folder = evaluate(
            run,
            shards,
            split=split,
            checkpoint=checkpoint,
            out_dir=out,
            device=device,
            num_workers=loader_workers(workers),
            batch_tuples=batch_tuples,
            aggregate=aggregate,
            bootstrap=bootstrap,
            seed=seed,
            skip_bad=skip_bad,
        )
    console = console_beside(as_json)
    show(console, report_tables(report, metrics=ALL_METRICS if all_metrics else METRICS), evaluation_lines(contents))
    written(console, [folder / name for name in ("scores.parquet", "report.json", "report.csv", "report.tex")])
    if as_json:
        print_json({"folder": str(folder)} | contents)


@app.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Run folder.")],
    shards: Annotated[
        Path | None, typer.Option("--shards", metavar="SHARDS", help="Shard set; default the one both were scored on.")
    ] = None,
    split: Split = "test",
    level: Level = "both",
    metrics: Annotated[str, typer.Option(help="Which to compare.")] = "accuracy,auc,eer",
    checkpoint: Checkpoint = "best",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for compare.json and compare.csv.")] = None,
    aggregate: Aggregate = "prob",
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    skip_bad: SkipBad = 0,
    device: Device = "auto",
    workers: Workers = None,
    batch_tuples: BatchTuples = None,
    as_json: Json = False,
) -> None:
    """Two runs on the same tuples: differences with 95 % intervals and p, paired over videos."""
    import json

    from qadtrain.compare import compare_runs_on
    from qadtrain.compare_tables import comparison_csv, comparison_tables
    from qadtrain.safe_files import write_atomically

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is known before the work
    with interruptible():
        comparison = compare_runs_on(
            run_a,
            run_b,
            shards,
            split=split,
            level=level,
            checkpoint=checkpoint,
            metrics=tuple(words([metrics])),
            aggregate=aggregate,
            bootstrap=bootstrap,
            seed=seed,
            say=say,
            device=device,
            num_workers=loader_workers(workers),
            batch_tuples=batch_tuples,
            skip_bad=skip_bad,
        )
    console = console_beside(as_json)
    show(console, comparison_tables(comparison))
    if out is not None:
        contents = json.dumps(comparison.as_json(), indent=2, allow_nan=False) + "\n"
        write_atomically(out / "compare.json", contents.encode())
        write_atomically(out / "compare.csv", comparison_csv(comparison).encode())
        written(console, [out / "compare.json", out / "compare.csv"])
    if as_json:
        print_json(comparison.as_json())


@app.command("cross")
def cross_command(
    runs: Runs,
    sets: Annotated[
        list[str], typer.Option("--on", "--set", metavar="[NAME=]SHARDS", help="A shard set to score; repeatable.")
    ],
    split: Split = "test",
    level: Annotated[str, typer.Option(help="frame or video.")] = "frame",
    checkpoint: Checkpoint = "best",
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the table as CSV, LaTeX and JSON.")] = None,
    published: Annotated[bool, typer.Option(help="Print the rows of the supplementary's Table 6 beside ours.")] = True,
    aggregate: Aggregate = "prob",
    bootstrap: Bootstrap = 1000,
    seed: Seed = 0,
    skip_bad: SkipBad = 0,
    device: Device = "auto",
    workers: Workers = None,
    batch_tuples: BatchTuples = None,
    as_json: Json = False,
) -> None:
    """Runs on any shard sets, in the layout of the supplementary's Table 6."""
    from qadtrain.cross import cross
    from qadtrain.cross_tables import cross_text

    with interruptible():
        table = cross(
            runs,
            sets,
            split=split,
            level=level,
            checkpoint=checkpoint,
            aggregate=aggregate,
            bootstrap=bootstrap,
            seed=seed,
            published=published,
            out_dir=out,
            say=say,
            device=device,
            num_workers=loader_workers(workers),
            batch_tuples=batch_tuples,
            skip_bad=skip_bad,
        )
    console = console_beside(as_json)
    show(console, [cross_text(table)])
    if out is not None:
        written(console, sorted(out.glob("cross.*")))
    if as_json:
        print_json(table.as_json())
    end_with(table.failures)


@app.command("robustness")
def robustness_command(
    runs: Runs,
    shards: ShardsOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the figure, the tables and the scored cells.")],
    split: Split = "test",
    corruptions: Annotated[
        list[str] | None, typer.Option(help="Names or codes (CS CC BW GNC GB PX JPEG VC), figure6, or all.")
    ] = None,
    severities: Annotated[list[str] | None, typer.Option(help="Some of 1,2,3,4,5; default all.")] = None,
    qualities: Annotated[list[str] | None, typer.Option(help="Some of the shard set's; default all.")] = None,
    at: Annotated[str, typer.Option(help="Resolution of the corruption: crop, input, or 256.")] = "crop",
    blocks: Annotated[str, typer.Option(help="original (none below 256 px) or scaled.")] = "scaled",
    limit: Annotated[int | None, typer.Option(min=1, help="Tuples to score, evenly over the videos.")] = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    workers: Workers = None,
    batch_tuples: BatchTuples = None,
    as_json: Json = False,
) -> None:
    """Runs under unseen corruptions at five severities (Fig. 6): tables, curves; goes on where it stopped."""
    from qadprep.errors import UserError
    from qadtrain.robustness import evaluate_robustness, robustness_tables

    levels = words(severities or ["1,2,3,4,5"])
    if not all(level.isdecimal() for level in levels):
        raise UserError(f"--severities: got {','.join(levels)}, expected some of 1,2,3,4,5")
    with interruptible():
        report = evaluate_robustness(
            runs,
            shards,
            out_dir=out,
            split=split,
            corruptions=words(corruptions or ["figure6"]),
            severities=[int(level) for level in levels],
            qualities=words(qualities) if qualities else None,
            at=at,
            blocks=blocks,
            checkpoint=checkpoint,
            limit=limit,
            seed=seed,
            device=device,
            num_workers=loader_workers(workers),
            batch_tuples=batch_tuples,
        )
    console = console_beside(as_json)
    show(console, robustness_tables(report), [f"{report.scored} cells scored, {report.reused} taken over"])
    written(console, report.files)
    if as_json:
        print_json(report.as_json())
    end_with(f"left out: {key}: {message}" for key, message in report.damaged)
