"""The command line: parse, build a config, call, print. Heavy imports wait for the command that needs them."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="qadprep",
    help="From deepfake videos to tuples of one face at every quality, in WebDataset shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output made with other settings.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 takes one per core. Does not change the output.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """From deepfake videos to tuples of one face at every quality, in WebDataset shards."""


@app.command()
def scan(
    root: Annotated[Path, typer.Argument(help="Root folder of the dataset.")],
    dataset: Annotated[str, typer.Option(help="Layout of the dataset: ffpp.")] = "ffpp",
    out: Annotated[Path | None, typer.Option(help="Manifest to write (parquet).")] = None,
    json: Json = False,
) -> None:
    """List what a dataset on disk holds, per method, quality and split, and what is missing."""
    from qadprep import tables
    from qadprep.scan import scan as run

    report = run(root, dataset, out)
    tables.finish(report.as_dict() | {"manifest": str(out) if out else None}, json, lambda: tables.scan(report, out))


@app.command()
def extract(
    root: Annotated[Path, typer.Argument(help="Root folder of the dataset.")],
    out: Annotated[Path, typer.Option(help="Folder for the face packs.")],
    dataset: Annotated[str, typer.Option(help="Layout of the dataset: ffpp.")] = "ffpp",
    manifest: Annotated[Path | None, typer.Option(help="Read the clips from a manifest of `scan` instead.")] = None,
    qualities: Annotated[str, typer.Option(help="Qualities of a tuple, comma-separated.")] = "raw,c23,c40",
    frames: Annotated[int, typer.Option(help="Tuples wanted per clip.")] = 64,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 128,
    margin: Annotated[float, typer.Option(help="Side of the crop's field of view over the side of the face.")] = 1.3,
    align: Annotated[str, typer.Option(help="similarity (five landmarks) or box (upright square).")] = "similarity",
    detector: Annotated[str, typer.Option(help="auto, retinaface or mtcnn.")] = "auto",
    weights: Annotated[Path | None, typer.Option(help="File with RetinaFace weights.")] = None,
    device: Annotated[str, typer.Option(help="Where the detector runs: cpu, cuda, cuda:1, ...")] = "cpu",
    workers: Workers = 0,
    seed: Annotated[int, typer.Option(help="Decides which frames are taken.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do everything again, over earlier output.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do groups again in which something could not be used.")
    ] = False,
    json: Json = False,
) -> None:
    """Cut the same face at the same instants from every quality of every clip; goes on where it stopped.

    Exit code 1 when a file or clip could not be used (the table says which and why), 2 for wrong use.
    """
    from qadprep import tables
    from qadprep.config import ExtractConfig
    from qadprep.extract_dataset import extract as run

    config = ExtractConfig.checked(
        dataset=dataset,
        qualities=tuple(word.strip() for word in qualities.split(",") if word.strip()),
        frames=frames,
        size_px=size,
        margin=margin,
        align=align,
        seed=seed,
    )
    summary = run(
        root,
        out,
        config,
        detector=detector,
        weights=weights,
        device=device,
        workers=tables.count(workers, "--workers"),
        overwrite=overwrite,
        retry_failed=retry_failed,
        manifest=manifest,
        say=tables.say,
    )
    tables.finish(summary.as_dict(), json, lambda: tables.extract(summary, out))
    raise typer.Exit(1 if summary.failed else 0)


@app.command()
def shard(
    faces: Annotated[Path, typer.Argument(help="Folder that `extract` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the shard set.")],
    tuples_per_shard: Annotated[int, typer.Option(help="Tuples in one tar.")] = 1000,
    seed: Annotated[int, typer.Option(help="Decides the order of the tuples.")] = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write the complete tuples of the face packs as shuffled WebDataset shards with an index."""
    from qadprep import tables
    from qadprep.config import ShardConfig
    from qadprep.shard import shard as run

    config = ShardConfig.checked(tuples_per_shard=tuples_per_shard, seed=seed)
    summary = run(faces, out, config, overwrite=overwrite)
    tables.finish(summary.as_dict(), json, lambda: tables.shard(summary, out))


@app.command()
def verify(
    shards: Annotated[Path, typer.Argument(help="Folder of the shard set.")],
    workers: Workers = 0,
    json: Json = False,
) -> None:
    """Re-hash, count and decode a shard set. Exit code 1 and the shard's and key's name when one byte is wrong."""
    from qadprep import tables
    from qadprep.verify import verify as run

    report = run(shards, workers=tables.count(workers, "--workers"))
    tables.finish(report.as_dict(), json, lambda: tables.verify(report, shards))
    raise typer.Exit(1 if report.faults else 0)


@app.command()
def report(
    shards: Annotated[Path, typer.Argument(help="Folder of the shard set.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and the contact sheets.")],
    faces: Annotated[
        Path | None, typer.Option(help="Face packs of the shards: adds failures and sync evidence.")
    ] = None,
    json: Json = False,
) -> None:
    """Write contact sheets (one tuple a row) and a self-contained HTML page."""
    from qadprep import tables
    from qadprep.report import write_report

    result = write_report(shards, out, faces=faces)
    tables.finish(
        result, json, lambda: tables.say(f"{result['report']}: {len(result['contact_sheets'])} contact sheets")
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for everything the demonstration makes.")],
    clips: Annotated[Path | None, typer.Option(help="Folder with your own face videos.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the whole demonstration.")] = 0,
    workers: Workers = 0,
    json: Json = False,
) -> None:
    """Make a small dataset in FF++'s layout and run everything on it: tuples, shards, a trained detector, a table.

    The fakes in it are stand-ins made by image operations; the scores say that the chain works, nothing about
    deepfakes.
    """
    from qadprep import tables
    from qadprep.demo.run import run_demo

    result = run_demo(out, clips=clips, seed=seed, workers=tables.count(workers, "--workers"), say=tables.say)
    tables.finish(result, json, lambda: tables.demo(result))
    raise typer.Exit(0 if result["ok"] else 1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: `UserError` becomes one line and exit code 2, Ctrl-C a hint and exit code 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # --debug is accepted before and after the command.
    rest = [word for word in arguments if word != "--debug"]
    from qadprep.errors import UserError

    # Typer would turn KeyboardInterrupt into a bare exit.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app(args=rest, prog_name="qadprep")
    except UserError as error:
        if debug:
            raise
        _fail(f"qadprep: {error}", 2)
    except _Interrupted:
        _fail("qadprep: interrupted; run the same command again to go on", 130)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"qadprep: {place}{error.strerror or error} (--debug shows where)", 1)
    except Exception as error:
        if debug:
            raise
        _fail(f"qadprep: internal error, {type(error).__name__}: {error} (--debug shows where)", 1)


class _Interrupted(BaseException):
    """Ctrl-C."""


def _interrupt(number: int, frame: object) -> None:
    raise _Interrupted


def _fail(message: str, code: int) -> Any:
    print(message, file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
