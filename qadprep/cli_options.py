"""Options that several commands of the command line share."""

from pathlib import Path
from typing import Annotated

import typer


def workers_option(text: str) -> int:
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
        parser=workers_option,
        metavar="auto|N",
        show_default="auto",
        help="Processes; auto or 0 fits the machine. Does not change the output.",
    ),
]


def words(text: str) -> tuple[str, ...]:
    """The comma-separated words of an option."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
