"""AUC over severity as one figure: a panel for each quality and corruption, a line for each run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from qadprep.plot_style import COLOURS, fixed_style, picture_files
from qadtrain.corruptions import CORRUPTIONS
from qadtrain.summary import AVERAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qadtrain.robustness_report import RobustnessReport

_PANEL_IN, _GAP_IN = (1.5, 1.2), 0.22
# Room for the labels at the left and below, at the right, and for titles and legend above.
_LEFT_IN, _BELOW_IN, _RIGHT_IN, _ABOVE_IN, _LEGEND_LINE_IN = 0.75, 0.5, 0.1, 0.35, 0.2
_SIDE = "AUC, percent"
_NOTE_IN = -0.08  # of the note, from the lower edge: below the names of the axes
_MARKS = "osD^vPX"


def figure(report: "RobustnessReport", level: str = "frame") -> dict[str, bytes]:
    """The curves of all runs.

    Rows of panels are the qualities and their mean; columns the corruptions and their mean; a curve begins with the
    clean pictures, severity 0. A value that is not defined (one class alone) leaves a gap.

    Args:
        level: ``frame`` or ``video``.

    Returns:
        ``{"png": ..., "svg": ...}``: files of the same bytes for the same report, without a date.
    """
    qualities = (*report.qualities, AVERAGE) if len(report.qualities) > 1 else report.qualities
    columns = (*report.corruptions, AVERAGE) if len(report.corruptions) > 1 else report.corruptions
    severities = (0, *report.severities)
    curves = {
        (run, quality, name): np.array([[100 * report.row(run, name, s, quality, level).auc for s in severities]])
        for run in report.runs
        for quality in qualities
        for name in report.corruptions
    }
    for run in report.runs:
        for quality in qualities:
            every = np.concatenate([curves[run, quality, name] for name in report.corruptions])
            curves[run, quality, AVERAGE] = every.mean(axis=0, keepdims=True)
    low, high = _limits(np.concatenate(list(curves.values())))
    with _grid(len(qualities), len(columns), len(report.runs), report.corrupted_at) as (grid, save):
        for line, quality in enumerate(qualities):
            for place, name in enumerate(columns):
                axes = grid[line][place]
                for number, run in enumerate(report.runs):
                    axes.plot(
                        severities,
                        curves[run, quality, name][0],
                        label=run,
                        color=COLOURS[number % len(COLOURS)],
                        marker=_MARKS[number % len(_MARKS)],
                        markersize=3,
                        linewidth=1.2,
                        clip_on=False,
                    )
                axes.axhline(50, color="#888888", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
                axes.set_xticks(severities)
                axes.set_ylim(low, high)
                if line == 0:
                    axes.set_title(
                        f"{name} ({CORRUPTIONS[name].code})" if name in CORRUPTIONS else "mean of corruptions"
                    )
                if line == len(qualities) - 1:
                    axes.set_xlabel("severity")
                if place == 0:
                    axes.set_ylabel(f"{'mean of qualities' if quality == AVERAGE else quality}\n{_SIDE}")
        return save()


@contextmanager
def _grid(
    rows: int, columns: int, runs: int, note: str
) -> "Iterator[tuple[list[list[Axes]], Callable[[], dict[str, bytes]]]]":
    """Panels with shared axes, and a function that saves them with one legend above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with fixed_style(font_size=8, axes_titlesize=8, legend_fontsize=8):
        names_a_line = max(1, columns // 2)
        above = _ABOVE_IN + _LEGEND_LINE_IN * -(-runs // names_a_line)
        panels = [_PANEL_IN[n] * count + _GAP_IN * (count - 1) for n, count in enumerate((columns, rows))]
        width, height = _LEFT_IN + panels[0] + _RIGHT_IN, _BELOW_IN + panels[1] + above
        drawn = Figure(figsize=(width, height))
        FigureCanvasAgg(drawn)
        # Computed instead of matplotlib's own layout, which draws everything several times.
        place = {
            "left": _LEFT_IN / width,
            "right": 1 - _RIGHT_IN / width,
            "bottom": _BELOW_IN / height,
            "top": 1 - above / height,
            "wspace": _GAP_IN / _PANEL_IN[0],
            "hspace": _GAP_IN / _PANEL_IN[1],
        }
        grid = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, gridspec_kw=place)

        def save() -> dict[str, bytes]:
            lines, names = grid[0][0].get_legend_handles_labels()
            at = {"loc": "upper center", "bbox_to_anchor": (0.5, 1.0), "ncols": names_a_line}
            drawn.legend(lines, names, **at)
            drawn.text(_LEFT_IN / width, _NOTE_IN / height, note, fontsize=7, color="#555555", va="bottom")
            return picture_files(drawn, bbox_inches="tight")  # long names of runs may reach beyond the panels

        yield grid, save


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Percent: from a multiple of 10 below the least value, and at most 50, to 100."""
    least = min((value for value in values.ravel().tolist() if isfinite(value)), default=50.0)
    return min(50.0, 10 * np.floor(least / 10)), 100.0
