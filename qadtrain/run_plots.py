"""Curves of runs as inline SVG, in the style of the other report of the project."""

from collections.abc import Mapping, Sequence

import numpy as np

from qadprep.plot_style import COLOURS
from qadprep.report_plots import figure_element, new_axes

_MOST_POINTS = 400
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
        scale: linear, or log where all values are above 0.
        marks: a dot at each value, as for validations.

    Returns:
        A figure element; empty without a value.
    """
    from matplotlib.ticker import MaxNLocator

    filled = {key: curve for key, curve in series.items() if len(curve[0])}
    if not filled:
        return ""
    with new_axes(_HEIGHT_IN) as axes:
        for number, (key, curve) in enumerate(filled.items()):
            steps, values = thinned(curve, _MOST_POINTS)
            lonely = marks or len(steps) == 1
            axes.plot(
                steps,
                values,
                label=key,
                color=COLOURS[number % len(COLOURS)],
                linestyle=_DASHES[number // len(COLOURS) % len(_DASHES)],
                linewidth=1.4,
                marker="o" if lonely else "",
                markersize=3.5,
            )
        positive = all(min(values) > 0 for _, values in filled.values())
        if scale == "log" and positive:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the usual one writes formulas, which the settings keep as text
            axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        axes.set_xlabel(label)
        axes.set_ylabel(side)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure_element(axes, name, alt, caption)


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
            shift = (number - (len(series) - 1) / 2) * min(0.16, 0.7 / len(series))
            places = [place for place, one in enumerate(classes) if one in found]
            values = np.array([found[classes[place]] for place in places], dtype=np.float64).reshape(-1, 3)
            reach = np.clip([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0, None)
            axes.errorbar(
                np.array(places) + shift,
                values[:, 0],
                yerr=reach,
                label=key,
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
