"""Commands about the installation: doctor, demo."""

from pathlib import Path
from typing import Annotated

import typer

from qadprep.cli_options import Json, Workers

app = typer.Typer()


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(help="Folder that an extraction would write into.")] = Path(),
    json: Json = False,
) -> None:
    """Check ffmpeg, detectors, weights, CUDA, Ray, disk and memory, and say how to mend what is wrong.

    Exit code 1 when something is missing without which extraction will not work.
    """
    from qadprep.doctor import doctor as run
    from qadprep.terminal import finish

    result = run(out)
    finish(result.as_dict(), json, result.show)
    raise typer.Exit(1 if result.failed else 0)


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
