"""The command line: parse, build a config, call, print. Heavy imports wait for the command that needs them."""

import signal
import sys
from typing import Annotated, Any

import typer

from qadprep import cli_dataset, cli_sets, cli_shards, cli_tools

app = typer.Typer(
    name="qadprep",
    help="From deepfake videos to tuples of one face at every quality, in WebDataset shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """From deepfake videos to tuples of one face at every quality, in WebDataset shards."""


app.add_typer(cli_dataset.app)
app.add_typer(cli_shards.app)
app.add_typer(cli_sets.app)
app.add_typer(cli_tools.app)


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
