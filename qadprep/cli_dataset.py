"""Commands from the videos to face packs: scan, plan, compress, extract."""

from pathlib import Path
from typing import Annotated

import typer

from qadprep.cli_options import (
    DatasetName,
    DetectorDevice,
    DetectorName,
    DetectorWeights,
    Json,
    Overwrite,
    Workers,
    words,
)

app = typer.Typer()


@app.command()
def scan(
    root: Annotated[Path, typer.Argument(help="Root folder of the dataset; for generic the list itself.")],
    dataset: DatasetName = "ffpp",
    out: Annotated[Path | None, typer.Option(help="Manifest to write (parquet).")] = None,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave training clips out that share a recording with val or test.")
    ] = False,
    check_quality: Annotated[
        bool, typer.Option("--check-quality", help="Compare the CRF in every stream with its folder's name.")
    ] = False,
    protocol: Annotated[str | None, typer.Option(help="Keep only the clips of a protocol; `plan` lists them.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which videos a protocol takes.")] = 0,
    workers: Workers = 0,
    json: Json = False,
) -> None:
    """List what a dataset on disk holds, per method, quality and split, what is missing, and what crosses splits.

    Exit code 1 when --check-quality finds a file whose stream contradicts its folder.
    """
    from qadprep import tables
    from qadprep.protocols import load_protocol
    from qadprep.scan import scan as run

    report = run(
        root,
        dataset,
        out,
        drop_leaks=drop_leaks,
        check_quality=check_quality,
        protocol=load_protocol(protocol) if protocol else None,
        seed=seed,
        workers=tables.count(workers, "--workers"),
    )
    tables.finish(report.as_dict() | {"manifest": str(out) if out else None}, json, lambda: tables.scan(report, out))
    raise typer.Exit(1 if report.quality and (report.quality.mismatched or report.quality.unreadable) else 0)


@app.command()
def plan(
    root: Annotated[Path | None, typer.Argument(help="Root folder of the dataset: adds what it can give.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Name of a protocol, or a TOML file of your own.")] = None,
    measure: Annotated[int, typer.Option(help="Groups to extract as a trial for the forecast; 0 measures none.")] = 2,
    detector: DetectorName = "auto",
    weights: DetectorWeights = None,
    device: DetectorDevice = "auto",
    workers: Workers = 0,
    seed: Annotated[int, typer.Option(help="Decides which videos a protocol takes.")] = 0,
    json: Json = False,
) -> None:
    """Print a protocol's arithmetic, what the dataset on disk can give of it, and a forecast of disk and time."""
    from qadprep import tables
    from qadprep.errors import UserError
    from qadprep.plan import plan as run
    from qadprep.protocols import load_protocol, protocol_names

    if protocol is None:
        if root is not None:
            raise UserError(f"plan {root}: --protocol NAME is needed; `qadprep plan` alone lists the names")
        tables.finish({"protocols": protocol_names()}, json, lambda: tables.protocols())
        return
    result = run(
        load_protocol(protocol),
        root,
        measure_groups=tables.count(measure, "--measure"),
        seed=seed,
        workers=tables.count(workers, "--workers"),
        detector=detector,
        weights=weights,
        device=device,
    )
    tables.finish(result.as_dict(), json, lambda: tables.plan(result))


@app.command()
def compress(
    root: Annotated[Path, typer.Argument(help="Root folder of the dataset.")],
    out: Annotated[Path, typer.Option(help="Root of the multi-quality copy; its originals are links.")],
    dataset: DatasetName = "ffpp",
    crf: Annotated[str, typer.Option(help="x264 CRF values, comma-separated.")] = "23,40",
    pix_fmt: Annotated[str, typer.Option(help="yuv444p as in FF++'s files, or yuv420p.")] = "yuv444p",
    methods: Annotated[str, typer.Option(help="Only clips of these methods, comma-separated; all by default.")] = "",
    workers: Workers = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make c23 and c40 for a dataset that has one quality, the way FF++ made its own; goes on where it stopped.

    Exit code 1 when a video could not be made (the table says which and why), 2 for wrong use.
    """
    from qadprep import tables
    from qadprep.compress import CompressConfig, compress_dataset

    config = CompressConfig.checked(dataset=dataset, crf=words(crf), pix_fmt=pix_fmt, methods=words(methods))
    summary = compress_dataset(root, out, config, workers=tables.count(workers, "--workers"), overwrite=overwrite)
    tables.finish(summary.as_dict(), json, lambda: tables.compress(summary, out))
    raise typer.Exit(1 if summary.failures else 0)


@app.command()
def extract(
    root: Annotated[Path, typer.Argument(help="Root folder of the dataset; for generic the list itself.")],
    out: Annotated[str, typer.Option(help="Folder for the face packs, or a URL such as s3://bucket/prefix.")],
    dataset: Annotated[str | None, typer.Option(help="Layout of the dataset, as for `scan`; ffpp by default.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Take clips and settings from a protocol; options given here win.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Read the clips from a manifest of `scan` instead.")] = None,
    qualities: Annotated[str | None, typer.Option(help="Qualities of a tuple; raw,c23,c40 by default.")] = None,
    make_qualities: Annotated[
        bool, typer.Option("--make-qualities", help="Encode missing qualities from raw, group by group; keeps none.")
    ] = False,
    pix_fmt: Annotated[str, typer.Option(help="Pixel format of made qualities: yuv444p or yuv420p.")] = "yuv444p",
    accept_mislabelled: Annotated[
        bool, typer.Option("--accept-mislabelled", help="Use files whose stream has another CRF than their folder.")
    ] = False,
    frames: Annotated[int | None, typer.Option(help="Tuples wanted per clip; 64 by default.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the crops in pixels; 128 by default.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Side of the crop's field of view over the side of the face; 1.3 by default.")
    ] = None,
    align: Annotated[
        str | None, typer.Option(help="similarity (five landmarks, the default) or box (upright square).")
    ] = None,
    faces: Annotated[
        str | None, typer.Option(help="Faces that become tuples: largest, all, or auto (as the dataset needs it).")
    ] = None,
    min_face: Annotated[
        float | None, typer.Option(help="Leave out faces smaller than this, side of the box in pixels; 0 by default.")
    ] = None,
    max_yaw: Annotated[
        float | None, typer.Option(help="Leave out faces turned further than this from the front, degrees; off.")
    ] = None,
    drop_unaltered: Annotated[
        bool, typer.Option("--drop-unaltered", help="Leave out manipulated frames that equal the original's.")
    ] = False,
    realign: Annotated[
        bool, typer.Option("--realign", help="Detect and align in pre-cropped pictures instead of only resizing them.")
    ] = False,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave training clips out that share a recording with val or test.")
    ] = False,
    detector: DetectorName = "auto",
    weights: DetectorWeights = None,
    device: DetectorDevice = "auto",
    precision: Annotated[str, typer.Option(help="Of the detector: fp32; on CUDA also fp16 or bf16.")] = "fp32",
    workers: Workers = 0,
    engine: Annotated[str, typer.Option(help="local (processes of this machine) or ray; the same bytes.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join: auto, host:port or ray://host:port; else one is started.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares of the groups, for job arrays.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which frames are taken, and which videos of a protocol.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do everything again, over earlier output.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do groups again in which something could not be used.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; forecast tuples, disk and time from a sample of groups.")
    ] = False,
    measure: Annotated[
        int | None, typer.Option(help="Groups in the sample of --dry-run, 2 by default; 0 measures none.")
    ] = None,
    json: Json = False,
) -> None:
    """Cut the same face at the same instants from every quality of every clip; goes on where it stopped.

    Exit code 1 when a file or clip could not be used (the table says which and why), 2 for wrong use.
    """
    from qadprep import extract_tables, tables
    from qadprep.config import ExtractConfig
    from qadprep.errors import UserError
    from qadprep.extract_dataset import extract as run
    from qadprep.parts import Part
    from qadprep.protocols import load_protocol

    chosen = load_protocol(protocol) if protocol else None
    given = {
        "dataset": dataset,
        "qualities": words(qualities) if qualities is not None else None,
        "frames": frames,
        "size_px": size,
        "margin": margin,
        "align": align,
        "faces": faces,
        "min_face_px": min_face,
        "max_yaw_deg": max_yaw,
    }
    settings = {"dataset": "ffpp"} | (chosen.extract_settings() if chosen else {})
    settings |= {name: value for name, value in given.items() if value is not None}
    config = ExtractConfig.checked(
        **settings,
        seed=seed,
        realign=realign,
        drop_unaltered=drop_unaltered,
        make_qualities=make_qualities,
        pix_fmt=pix_fmt,
        accept_mislabelled=accept_mislabelled,
    )
    if measure is not None and not dry_run:
        raise UserError(f"--measure {measure} is for --dry-run, which is not given")
    if dry_run:
        from qadprep.engines import check_engine
        from qadprep.forecast import forecast

        check_engine(engine, address)

        expected = forecast(
            root,
            config,
            count=2 if measure is None else tables.count(measure, "--measure"),
            detector=detector,
            weights=weights,
            device=device,
            precision=precision,
            workers=tables.count(workers, "--workers"),
            manifest=manifest,
            protocol=chosen,
            drop_leaks=drop_leaks,
            part=Part.parse(part) if part else None,
            say=tables.say,
        )
        tables.finish(expected.as_dict(), json, lambda: extract_tables.forecast(expected))
        return
    summary = run(
        root,
        out,
        config,
        detector=detector,
        weights=weights,
        device=device,
        precision=precision,
        workers=tables.count(workers, "--workers"),
        overwrite=overwrite,
        retry_failed=retry_failed,
        manifest=manifest,
        protocol=chosen,
        drop_leaks=drop_leaks,
        engine=engine,
        address=address,
        part=Part.parse(part) if part else None,
        say=tables.say,
    )
    tables.finish(summary.as_dict(), json, lambda: extract_tables.summary(summary, out))
    raise typer.Exit(1 if summary.failed else 0)
