"""Matplotlib under fixed settings: figures that do not depend on the user's own, the same bytes from run to run."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac", "#eeca3b", "#d67195")
_DPI = 150
_SETTINGS = {
    "text.parse_math": False,  # names may hold a dollar
    "svg.fonttype": "none",  # text stays text: small, found by a search, read aloud
    "svg.hashsalt": "qadprep",  # ids in the file do not change from run to run
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextlib.contextmanager
def fixed_style(**more: Any) -> Iterator[None]:
    """The settings inside, and ``more`` with ``_`` for the dots of their names."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS | {name.replace("_", "."): value for name, value in more.items()})
        yield


def picture_files(figure: "Figure", **options: Any) -> dict[str, bytes]:
    """``{"png": ..., "svg": ...}`` of a figure, without a date or matplotlib's version in them.

    Args:
        options: of ``Figure.savefig``.
    """
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata, **options)
        files[kind] = buffer.getvalue()
    return files
