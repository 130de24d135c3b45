"""Options and helpers that the command modules share."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EXIT_PARTLY_FAILED, EXIT_INTERRUPTED = 1, 130

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder written by `qadtrain fit`.")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders written by `qadtrain fit`.")]
Shards = Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by `qadprep shard`.")]
ShardsOption = Annotated[Path, typer.Option("--shards", metavar="SHARDS", help="Folder written by `qadprep shard`.")]
Split = Annotated[str, typer.Option(help="Split to score.")]
Checkpoint = Annotated[str, typer.Option(help="best or last.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Workers = Annotated[int | None, typer.Option(help="Loader processes; -1 = one per core, at most 8.")]
BatchTuples = Annotated[int | None, typer.Option(min=1, help="Tuples per pass; default that of training.")]
Bootstrap = Annotated[int, typer.Option(min=0, help="Draws of the 95 % intervals; 0 = none.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is drawn.")]
SkipBad = Annotated[int, typer.Option("--skip-bad", min=0, help="Damaged tuples to leave out at most.")]
Aggregate = Annotated[
    str, typer.Option(help="A video's score: prob or logit (means over its frames), or top10 (of the highest ten).")
]
Level = Annotated[str, typer.Option(help="frame, video or both.")]
Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on stdout.")]


def words(texts: Iterable[str]) -> list[str]:
    """The words of a repeatable, comma-separated option."""
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


def loader_workers(workers: int | None) -> int:
    return -1 if workers is None else workers


def console_beside(as_json: bool) -> "Console":
    """For people: on stdout, or on stderr when stdout is for JSON."""
    from rich.console import Console

    return Console(stderr=as_json)


def show(console: "Console", tables: "Iterable[RenderableType]", lines: Iterable[str] = ()) -> None:
    """Tables, then plain lines."""
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def written(console: "Console", files: Iterable[Path | str]) -> None:
    show(console, (), [f"written: {', '.join(map(str, files))}"])


def say(text: str) -> None:
    """A line on stderr."""
    typer.echo(text, err=True)


def print_json(contents: Any) -> None:
    typer.echo(json.dumps(contents, indent=2, allow_nan=False))


def end_with(failures: Iterable[str]) -> None:
    """Exit code 1 and a line for each failure, where there are any."""
    failures = list(failures)
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        raise typer.Exit(EXIT_PARTLY_FAILED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is exit code 130 and one word; left to itself, Typer's answer to it differs between versions."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
