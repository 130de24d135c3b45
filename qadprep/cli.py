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


def _workers(text: str) -> int:
    """`auto` is 0, as which the commands know it."""
    if str(text) == "auto":
        return 0
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"got {text!r}; expected auto or a number") from None


Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output made with other settings.")]
DatasetName = Annotated[
    str, typer.Option(help="Layout: ffpp, dfd, celebdf, ffiw, dfdc, dfdcp, wilddeepfake or generic (a CSV or parquet).")
]
DetectorName = Annotated[str, typer.Option("--detector", help="auto, retinaface or mtcnn.")]
DetectorWeights = Annotated[Path | None, typer.Option("--weights", help="File with RetinaFace weights.")]
DetectorDevice = Annotated[
    str, typer.Option("--device", help="Where the detector runs: auto (CUDA where it is there), cpu, cuda, cuda:1, ...")
]
Workers = Annotated[
    int,
    typer.Option(
        parser=_workers,
        metavar="auto|N",
        show_default="auto",
        help="Processes; auto or 0 fits the machine. Does not change the output.",
    ),
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """From deepfake videos to tuples of one face at every quality, in WebDataset shards."""


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

    config = CompressConfig.checked(dataset=dataset, crf=_words(crf), pix_fmt=pix_fmt, methods=_words(methods))
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
        "qualities": _words(qualities) if qualities is not None else None,
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


@app.command()
def shard(
    faces: Annotated[str, typer.Argument(help="Folder or URL that `extract` wrote.")],
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
        str | None, typer.Option(help="Face packs of the shards, folder or URL: adds failures and sync evidence.")
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


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
