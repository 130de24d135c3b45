"""Curves of runs as inline SVG, in the style of the other report of the project."""

from collections.abc import Mapping, Sequence

import numpy as np

from qadprep.plot_style import COLOURS
from qadprep.report_plots import figure_element, new_axes

_MOST_POINTS = 400
_MOST_LETTERS = 41  # of a name in a legend, which stands beside the axes and takes their room
_HEIGHT_IN = 2.6
_MARKS = "osD^vPX"
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))

Curve = tuple[Sequence[float], Sequence[float]]
Point = tuple[float, float, float]  # value, and the ends of its interval


def curves(
    name: str,
    series: Mapping[str, Curve],
    side: str,
    alt: str,
    caption: str,
    *,
    label: str = "step",
    scale: str = "linear",
    marks: bool = False,
) -> str:
    """Lines over the steps.

    Args:
        name: of the figure; ids inside it begin with it.
        series: name in the legend -> (steps, values). More than 400 points are averaged in as many bins.
        side: label of the upright axis, with the unit.
        alt: what the figure shows, for readers who do not see it.
        caption: line below it.
        label: of the lying axis.
        scale: linear, or log where all values are above 0 and spread over two decades or more.
        marks: a dot at each value, as for validations.

    Returns:
        A figure element; empty without a value.
    """
    from matplotlib.ticker import MaxNLocator

    filled = {key: curve for key, curve in series.items() if len(curve[0])}
    if not filled:
        return ""
    with new_axes(_HEIGHT_IN) as axes:
        for number, (key, curve) in enumerate(series.items()):
            if key not in filled:
                continue  # its colour stays its own, as in the other figures
            steps, values = thinned(curve, _MOST_POINTS)
            lonely = marks or len(steps) == 1
            axes.plot(
                steps,
                values,
                label=_shown(key),
                color=COLOURS[number % len(COLOURS)],
                linestyle=_DASHES[number % len(_DASHES)],  # of lines that lie on each other both are seen
                linewidth=1.4,
                marker="o" if lonely else "",
                markersize=3.5,
            )
        low, high = (end(end(values) for _, values in filled.values()) for end in (min, max))
        # Over less than two decades a log scale would have one number at its side, or none.
        if scale == "log" and low > 0 and high >= 100 * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the usual one writes formulas, which the settings keep as text
            axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        first, last = (end(end(steps) for steps, _ in filled.values()) for end in (min, max))
        if first == last:
            axes.set_xlim(first - 1, first + 1)  # or the ticks would be fractions of a step
        axes.set_xlabel(label)
        axes.set_ylabel(side)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure_element(axes, name, alt, caption)


def _shown(name: str) -> str:
    """A name in a legend: a long one without its middle; matplotlib leaves out those with an underscore in front."""
    half = _MOST_LETTERS // 2
    name = f"{name[:half]}…{name[-half:]}" if len(name) > _MOST_LETTERS else name
    return f" {name}" if name.startswith("_") else name


def thinned(curve: Curve, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points: means of as many neighbouring ones each, steps and values float64."""
    steps, values = (np.asarray(part, dtype=np.float64) for part in curve)
    if len(steps) <= most:
        return steps, values
    starts = np.linspace(0, len(steps), most, endpoint=False).astype(np.int64)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def points(
    name: str,
    series: Mapping[str, Mapping[str, Point]],
    classes: Sequence[str],
    side: str,
    alt: str,
    caption: str,
    *,
    at: float | None = None,
) -> str:
    """Values with intervals, a group of points for each class.

    Args:
        name, side, alt, caption: as of :func:`curves`.
        series: name in the legend -> class -> (value, low, high).
        classes: in their order from the left.
        at: a dashed line across, such as chance.

    Returns:
        A figure element; empty without a value.
    """
    if not any(series.values()):
        return ""
    with new_axes(_HEIGHT_IN) as axes:
        for number, (key, found) in enumerate(series.items()):
            if not found:
                continue  # its colour stays its own
            shift = (number - (len(series) - 1) / 2) * min(0.16, 0.7 / len(series))
            places = [place for place, one in enumerate(classes) if one in found]
            values = np.array([found[classes[place]] for place in places], dtype=np.float64).reshape(-1, 3)
            reach = np.clip([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0, None)
            axes.errorbar(
                np.array(places) + shift,
                values[:, 0],
                yerr=reach,
                label=_shown(key),
                color=COLOURS[number % len(COLOURS)],
                fmt=_MARKS[number % len(_MARKS)],
                markersize=5,
                capsize=3,
                linewidth=1.2,
            )
        if at is not None:
            axes.axhline(at, color="#888888", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
        axes.set_xticks(range(len(classes)), list(classes))
        axes.set_xlim(-0.5, len(classes) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(side)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure_element(axes, name, alt, caption)
