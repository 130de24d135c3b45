"""Commands on whole shard sets: merge, split, diff, stats, cat."""

from pathlib import Path
from typing import Annotated

import typer

from qadprep.cli_options import Json, Overwrite

app = typer.Typer()

Place = Annotated[str, typer.Argument(help="Folder or URL of the shard set.")]


@app.command()
def merge(
    shards: Annotated[list[str], typer.Argument(help="Folders or URLs of two or more shard sets.")],
    out: Annotated[str, typer.Option(help="Folder or URL for the merged set.")],
    skip_duplicates: Annotated[
        bool, typer.Option("--skip-duplicates", help="Take a key that is in several sets from the first of them.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links instead of copies of whole shards, where that is possible.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write one shard set out of several with the same qualities, codec and size. Nothing is coded again."""
    from qadprep import set_tables, terminal
    from qadprep.merge import merge as run

    result = run(shards, out, skip_duplicates=skip_duplicates, link=link, overwrite=overwrite)
    terminal.finish(result, json, lambda: set_tables.merge(result))


@app.command()
def split(
    shards: Place,
    out: Annotated[str, typer.Option(help="Folder or URL: a set for each value or fold below it, or one for --where.")],
    by: Annotated[
        str | None, typer.Option(help="Column of the index, such as method, dataset, label, split: a set a value.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Condition over the index's columns, in SQL: one set.")] = None,
    folds: Annotated[int | None, typer.Option(help="So many sets; no recording is in two of them.")] = None,
    tuples_per_shard: Annotated[int, typer.Option(help="Tuples in one tar.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of --folds.")] = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write parts of a shard set as sets of their own. Nothing is coded again."""
    from qadprep import set_tables, terminal
    from qadprep.split_set import split as run

    result = run(
        shards, out, by=by, where=where, folds=folds, tuples_per_shard=tuples_per_shard, seed=seed, overwrite=overwrite
    )
    terminal.finish(result, json, lambda: set_tables.split(result))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder or URL of a shard set.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder or URL of another one.")],
    show: Annotated[int, typer.Option(help="Most tuples to say of how far their pixels differ, and most keys.")] = 10,
    ignore_order: Annotated[bool, typer.Option("--ignore-order", help="The order may differ.")] = False,
    json: Json = False,
) -> None:
    """Compare two shard sets tuple by tuple: pixels, facts, order. Exit code 1 when they differ.

    The codec and the cut into shards may differ.
    """
    from qadprep import set_tables, terminal
    from qadprep.diff import diff as run

    report = run(a, b, show=show, ignore_order=ignore_order)
    terminal.finish(report.as_dict(), json, lambda: set_tables.diff(report))
    raise typer.Exit(0 if report.equal else 1)


@app.command()
def stats(
    shards: Place,
    sample: Annotated[int, typer.Option(help="Tuples to decode for SSIM and sharpness; 0 for none.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    html: Annotated[Path | None, typer.Option(help="File for the same tables as a self-contained page.")] = None,
    json: Json = False,
) -> None:
    """Counts, balance, bytes, PSNR, SSIM, sharpness and face sizes of a shard set.

    Exit code 1 when a tuple of the sample cannot be read.
    """
    from qadprep import stats_tables, terminal
    from qadprep.stats import stats as run

    numbers = run(shards, sample=sample, seed=seed)
    if html:
        stats_tables.write_page(numbers, html)
    terminal.finish(numbers, json, lambda: stats_tables.show(numbers, html))
    raise typer.Exit(1 if numbers["sample"]["faults"] else 0)


# A position may be negative, and is no option.
@app.command(context_settings={"ignore_unknown_options": True})
def cat(
    shards: Place,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the tuple, or its position in the set.")],
    out: Annotated[
        Path | None, typer.Option(help="PNG file: the qualities side by side, below what each has lost.")
    ] = None,
    scale: Annotated[int, typer.Option(help="Every pixel as a square of this many px.")] = 1,
    json: Json = False,
) -> None:
    """Show one tuple: its facts, and with --out a picture of it."""
    from qadprep import set_tables, terminal
    from qadprep.cat import cat as run

    result = run(shards, key, out=out, scale=scale)
    terminal.finish(result, json, lambda: set_tables.cat(result))
