"""Commands from face packs to shard sets, and on shard sets: shard, verify, report."""

from pathlib import Path
from typing import Annotated

import typer

from qadprep.cli_options import Json, Overwrite, Workers, words, workers_option

app = typer.Typer()

Checkers = Annotated[
    int,
    typer.Option(
        parser=workers_option,
        metavar="auto|N",
        show_default="auto",
        help="Threads; processes where over four are to decode. auto or 0 fits the machine.",
    ),
]


@app.command()
def shard(
    faces: Annotated[str, typer.Argument(help="Folder or URL that `extract` wrote.")],
    out: Annotated[str, typer.Option(help="Folder or URL for the shard set.")],
    tuples_per_shard: Annotated[int, typer.Option(help="Most tuples in one tar.")] = 1000,
    shard_size: Annotated[str | None, typer.Option(help="Most bytes of tuples in one tar: 500MB, 1GiB, ...")] = None,
    balance: Annotated[
        str,
        typer.Option(
            help="Order in a split: natural, a shuffle; even, every stretch with the split's mix of methods; equal, "
            "that with as many real as fake tuples."
        ),
    ] = "natural",
    codec: Annotated[str, typer.Option(help="Lossless files of the crops: png, webp or raw (NumPy arrays).")] = "png",
    qualities: Annotated[str | None, typer.Option(help="Only these, such as raw,c40.")] = None,
    splits: Annotated[str | None, typer.Option(help="Only these, such as train,val.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these, such as original,Deepfakes.")] = None,
    min_face: Annotated[float, typer.Option(help="Leave out faces smaller than this, px.")] = 0,
    drop_unaltered: Annotated[
        bool, typer.Option("--drop-unaltered", help="Leave out manipulated frames that equal the original's.")
    ] = False,
    max_frames: Annotated[
        int | None, typer.Option(help="Most instants of a clip; the same of an original and its manipulations.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help='Only tuples for which this holds, in SQL over the packs\' columns: "yaw_deg < 30".'),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the order of the tuples.")] = 0,
    workers: Workers = 0,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; nothing is written.")] = False,
    json: Json = False,
) -> None:
    """Write the complete tuples of the face packs as shuffled WebDataset shards with an index.

    The same command goes on where a stopped one ended. Exit code 1 when a pack is damaged.
    """
    from qadprep import tables
    from qadprep.config import ShardConfig
    from qadprep.shard import shard as run
    from qadprep.units import parse_bytes

    config = ShardConfig.checked(
        tuples_per_shard=tuples_per_shard,
        shard_bytes=None if shard_size is None else parse_bytes(shard_size, "--shard-size"),
        balance=balance,
        codec=codec,
        qualities=None if qualities is None else words(qualities),
        splits=None if splits is None else words(splits),
        methods=None if methods is None else words(methods),
        min_face_px=min_face,
        drop_unaltered=drop_unaltered,
        max_frames=max_frames,
        where=where,
        seed=seed,
    )
    count = tables.count(workers, "--workers")
    summary = run(faces, out, config, workers=count, overwrite=overwrite, dry_run=dry_run, say=tables.say)
    tables.finish(summary.as_dict(), json, lambda: tables.shard(summary, faces, out))
    raise typer.Exit(1 if summary.failed else 0)


@app.command()
def verify(
    shards: Annotated[str, typer.Argument(help="Folder or URL of the shard set.")],
    quick: Annotated[bool, typer.Option("--quick", help="Only sizes and tar headers against the index.")] = False,
    no_decode: Annotated[bool, typer.Option("--no-decode", help="Every byte's hash, but no crop decoded.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Write damaged shards again from --faces.")] = False,
    faces: Annotated[str | None, typer.Option(help="With --repair: face packs of the shards, folder or URL.")] = None,
    workers: Checkers = 0,
    json: Json = False,
) -> None:
    """Re-hash, count and decode a shard set. Exit code 1 and shard, key and byte when anything is wrong."""
    from qadprep import tables
    from qadprep.errors import UserError
    from qadprep.repair import repair as run_repair
    from qadprep.verify import verify as run

    if quick and no_decode:
        raise UserError("--quick and --no-decode: choose one; --quick reads less")
    if repair != (faces is not None):
        raise UserError("--repair and --faces belong together: the packs are what damaged shards are written from")
    level, count = "quick" if quick else "hashes" if no_decode else "full", tables.count(workers, "--workers")
    if repair:
        mended = run_repair(shards, faces, level=level, workers=count)
        result, left = mended.as_dict(), mended.left
    else:
        mended, left = None, run(shards, level=level, workers=count)
        result = left.as_dict()
    tables.finish(result, json, lambda: tables.verify(left, shards, mended))
    raise typer.Exit(1 if left.fault_count else 0)


@app.command()
def report(
    shards: Annotated[str, typer.Argument(help="Folder or URL of the shard set.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and the contact sheets.")],
    faces: Annotated[
        str | None, typer.Option(help="Face packs of the shards, folder or URL: adds failures and sync evidence.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=200, help="Tuples per split in the contact sheets.")] = 12,
    sample: Annotated[int, typer.Option(min=0, max=100_000, help="Tuples decoded to measure SSIM, 0 for none.")] = 200,
    json: Json = False,
) -> None:
    """Write contact sheets and one self-contained HTML page. Exit code 1 when a shown tuple is damaged."""
    from qadprep import tables
    from qadprep.report import write_report

    result = write_report(shards, out, faces=faces, rows=rows, sample=sample)
    tables.finish(result, json, lambda: tables.report(result))
    raise typer.Exit(1 if result["damaged"] else 0)
