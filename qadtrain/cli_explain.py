"""Commands that look into a detector: gradcam, theorem."""

from pathlib import Path
from typing import Annotated

import typer

from qadtrain.cli_common import (
    BatchTuples,
    Checkpoint,
    Device,
    Json,
    Run,
    Runs,
    Shards,
    ShardsOption,
    Split,
    Workers,
    console_beside,
    end_with,
    interruptible,
    loader_workers,
    print_json,
    show,
    words,
    written,
)

app = typer.Typer()


@app.command("gradcam")
def gradcam_command(
    context: typer.Context,
    runs: Runs,
    shards: ShardsOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the panels, or of the figures.")],
    split: Split = "test",
    key: Annotated[list[str] | None, typer.Option(help="Key of a tuple to show; repeatable.")] = None,
    pick: Annotated[
        str, typer.Option(help="Without --key: disagreement (between qualities), wrong-at-worst, or hardest.")
    ] = "disagreement",
    count: Annotated[int, typer.Option(min=1, help="Tuples to pick.")] = 6,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pick or measure among so many tuples, spread evenly.")
    ] = None,
    consistency: Annotated[
        bool, typer.Option("--consistency", help="Measure how far the maps of two qualities agree, over the split.")
    ] = False,
    method: Annotated[str, typer.Option(help="gradcam, gradcam++, eigencam, ... of pytorch-grad-cam.")] = "gradcam",
    layer: Annotated[str | None, typer.Option(help="Module to look at; default the last stage.")] = None,
    target: Annotated[str, typer.Option(help="Class that is explained: fake or predicted.")] = "fake",
    keep_maps: Annotated[bool, typer.Option("--keep-maps", help="Also write the maps as .npz.")] = False,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    workers: Workers = None,
    batch_tuples: BatchTuples = None,
    as_json: Json = False,
) -> None:
    """Heat maps of tuples at every quality (Figs. 7 and 8), or how consistent they are, as a number."""
    _refuse_unused(context, consistency, bool(key))
    options = {
        "out_dir": out,
        "split": split,
        "method": method,
        "layer": layer,
        "target": target,
        "checkpoint": checkpoint,
        "device": device,
        "num_workers": loader_workers(workers),
        "batch_tuples": batch_tuples,
    }
    with interruptible():
        if consistency:
            from qadtrain.gradcam_consistency import consistency as measure
            from qadtrain.gradcam_consistency import consistency_tables

            contents = measure(runs, shards, **options, **({} if limit is None else {"limit": limit}))
            tables, lines, files = consistency_tables(contents), [], ("consistency.json", "consistency.csv")
        else:
            from qadtrain.gradcam import gradcam, gradcam_keys, gradcam_table

            contents = gradcam(
                runs, shards, keys=key or (), pick=pick, count=count, limit=limit, keep_maps=keep_maps, **options
            )
            tables, lines, files = [gradcam_table(contents)], gradcam_keys(contents), ("sheet.png", "gradcam.json")
    console = console_beside(as_json)
    show(console, tables, lines)
    written(console, [out / name for name in files])
    if as_json:
        print_json(contents)
    end_with(contents["damaged"])


def _refuse_unused(context: typer.Context, consistency: bool, named: bool) -> None:
    """What one of the command's ways does not look at is not taken in silence."""
    from qadprep.errors import UserError

    unused = {"--consistency": ("key", "pick", "count", "keep_maps")} if consistency else {}
    unused |= {"--key": ("pick", "count", "limit")} if named and not consistency else {}
    for way, names in unused.items():
        given = [
            f"--{name.replace('_', '-')}" for name in names if context.get_parameter_source(name).name != "DEFAULT"
        ]
        if given:
            raise UserError(f"{way}: got {', '.join(given)} beside it, which it does not use; leave one of them out")


@app.command("theorem")
def theorem_command(
    run: Run,
    shards: Shards,
    split: Split = "test",
    temperature: Annotated[list[str] | None, typer.Option(help="Temperatures T; default 1/64 to 256.")] = None,
    delta: Annotated[float, typer.Option(help="The theorem holds with probability 1 - delta.")] = 0.05,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the terms; default RUN/theorem/SHARDS-SPLIT[-last].")
    ] = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    workers: Workers = None,
    batch_tuples: BatchTuples = None,
    as_json: Json = False,
) -> None:
    """The terms of Theorem 1 that can be printed: error, count and collaboration term over a grid of T."""
    from qadprep.errors import UserError
    from qadtrain.theorem import TEMPERATURES, theorem_terms
    from qadtrain.theorem_output import theorem_notes, theorem_tables

    try:
        grid = tuple(map(float, words(temperature))) if temperature else TEMPERATURES
    except ValueError:
        raise UserError(f"--temperature: got {','.join(temperature or ())}, expected numbers above 0") from None
    with interruptible():
        terms = theorem_terms(
            run,
            shards,
            split=split,
            temperatures=grid,
            delta=delta,
            checkpoint=checkpoint,
            out_dir=out,
            device=device,
            num_workers=loader_workers(workers),
            batch_tuples=batch_tuples,
        )
    console = console_beside(as_json)
    show(console, theorem_tables(terms), theorem_notes())
    written(console, terms.files)
    if as_json:
        print_json(terms.as_json())
    end_with(terms.damaged)
