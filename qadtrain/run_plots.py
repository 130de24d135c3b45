"""Curves of runs as inline SVG, in the style of the other report of the project."""

from collections.abc import Mapping, Sequence

import numpy as np

from qadprep.report_plots import COLOURS, _axes, _figure

_MOST_POINTS = 400
_HEIGHT_IN = 2.6
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))

Curve = tuple[Sequence[float], Sequence[float]]


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
    with _axes(_HEIGHT_IN) as axes:
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
        return _figure(axes, name, alt, caption)


def thinned(curve: Curve, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points: means of as many neighbouring ones each, steps and values float64."""
    steps, values = (np.asarray(part, dtype=np.float64) for part in curve)
    if len(steps) <= most:
        return steps, values
    starts = np.linspace(0, len(steps), most, endpoint=False).astype(np.int64)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts
