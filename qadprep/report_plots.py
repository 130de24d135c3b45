"""Figures of the report as inline SVG: drawn by matplotlib with fixed settings, the same bytes from run to run."""

import contextlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.plot_style import COLOURS, fixed_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Shares that a box tells of: whiskers, box and the line in it.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 40
_WIDTH_IN = 8.6
# Two lines that lie on each other are both seen, also without colours.
_LINES = ("-", (0, (4, 2)))


def boxes(
    name: str, rows: Mapping[str, Mapping[str, np.ndarray]], label: str, alt: str, caption: str, *, most: float = np.inf
) -> str:
    """Quantiles of several series per class, lying boxes: whiskers from 5 to 95 %, box from 25 to 75 %, median.

    Args:
        name: of the figure; ids inside it begin with it.
        rows: class -> series -> values; classes from top to bottom. Values that are not finite are left out.
        label: of the axis, with the unit.
        alt: what the figure shows.
        most: end of the axis, where values cannot be greater.

    Returns:
        A figure element.
    """
    series = list(dict.fromkeys(key for values in rows.values() for key in values))
    high = 0.8 / max(1, len(series))
    with new_axes(0.9 + 0.32 * len(rows) * max(1.0, 0.62 * len(series))) as axes:
        for line, values in enumerate(rows.values()):
            for number, key in enumerate(series):
                found = values.get(key, np.zeros(0))
                found = found[np.isfinite(found)]
                if not len(found):
                    continue
                low, left, middle, right, top = np.quantile(found, QUANTILES).tolist()
                at, colour = line + (number - (len(series) - 1) / 2) * high, COLOURS[number % len(COLOURS)]
                axes.hlines(at, low, top, color="#555555", linewidth=1, zorder=1.5)
                edge = {"edgecolor": "#333333", "linewidth": 0.6}
                axes.barh(at, right - left, 0.75 * high, left, color=colour, zorder=2, **edge)
                axes.vlines(middle, at - 0.375 * high, at + 0.375 * high, color="#000000", linewidth=1.4, zorder=3)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        if np.isfinite(most):
            axes.set_xlim(right=most)
        _finish(axes, label, "", series)
        return figure_element(axes, name, alt, caption)


def histogram(
    name: str,
    series: Mapping[str, np.ndarray],
    label: str,
    alt: str,
    caption: str,
    *,
    logarithmic: bool = False,
    step: float = 0.0,
    side: str = "% of tuples",
) -> str:
    """How values spread: a line for each series, in per cent of that series.

    Values outside the middle 99.8 % count in the bins at the ends.

    Args:
        name, label, alt, caption: as of `boxes`.
        series: name -> values, finite ones.
        logarithmic: bins grow with the value; values must be over 0.
        step: values are multiples of it; bins are as well, or some would hold more of them than others.
        side: label of the upright axis.
    """
    whole = np.concatenate(list(series.values()))
    edges = _edges(whole, logarithmic, step)
    with new_axes(2.5) as axes:
        for number, values in enumerate(series.values()):
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            share = 100 * counts / max(1, len(values))
            axes.stairs(share, edges, color=COLOURS[number % len(COLOURS)], linestyle=_LINES[number % 2], linewidth=1.6)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}" if edges[-1] < 10 * edges[0] else "")
        elif step == 1 and len(edges) <= _BINS // 2:
            axes.set_xticks(edges[:-1] + 0.5)
        axes.set_ylim(bottom=0)
        _finish(axes, label, side, list(series), lines=True)
        return figure_element(axes, name, alt, caption)


def stacks(name: str, rows: Mapping[str, Mapping[str, float]], label: str, alt: str, caption: str) -> str:
    """Parts that add up, a lying bar for each class.

    Args:
        name, label, alt, caption: as of `boxes`.
        rows: class -> part -> size.
    """
    parts = list(dict.fromkeys(key for values in rows.values() for key in values))
    with new_axes(0.9 + 0.3 * len(rows)) as axes:
        left = np.zeros(len(rows))
        for number, part in enumerate(parts):
            sizes = np.array([values.get(part, 0.0) for values in rows.values()])
            axes.barh(
                range(len(rows)),
                sizes,
                0.7,
                left,
                color=COLOURS[number % len(COLOURS)],
                edgecolor="white",
                linewidth=0.5,
            )
            left += sizes
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        _finish(axes, label, "", parts)
        return figure_element(axes, name, alt, caption)


def share_bar(parts: Mapping[str, float], unit: str, digits: int = 0) -> str:
    """Parts of a whole as one horizontal bar with a legend: plain SVG.

    Args:
        parts: name -> size, in the order from the left.
        unit: of the sizes.
        digits: after the decimal point.

    Returns:
        Markup; empty where the sizes sum to nothing.
    """
    total = sum(parts.values())
    if total <= 0:
        return ""
    rectangles, legend, left = [], [], 0.0
    for number, (name, value) in enumerate(parts.items()):
        colour, width = COLOURS[number % len(COLOURS)], 1000 * value / total
        label = f"{html.escape(name)}: {value:,.{digits}f} {html.escape(unit)}, {100 * value / total:.0f} %"
        rectangles.append(
            f"<rect x='{left:.2f}' y='0' width='{width:.2f}' height='28' fill='{colour}'><title>{label}</title></rect>"
        )
        legend.append(f"<span><i style='background:{colour}'></i>{label}</span>")
        left += width
    # The legend below says the same to a reader who does not see the bar.
    opening = "<svg class='bar' viewBox='0 0 1000 28' preserveAspectRatio='none' aria-hidden='true'>"
    return f"{opening}{''.join(rectangles)}</svg><p class='legend'>{' '.join(legend)}</p>"


def _edges(values: np.ndarray, logarithmic: bool, step: float) -> np.ndarray:
    """Edges of at most `_BINS` bins or so."""
    low, high = np.quantile(values, (0.001, 0.999)).tolist() if len(values) else (0.0, 1.0)
    if logarithmic:
        return np.geomspace(low, max(high, low * 1.01), _BINS + 1)
    if step:
        low, high = step * round(low / step), step * round(high / step)
        width = step * max(1, -(-round((high - low) / step) // _BINS))
        return low - step / 2 + width * np.arange(int((high - low) / width + 1.5) + 1)
    return np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])


@contextlib.contextmanager
def new_axes(height_in: float) -> "Iterator[Axes]":
    """Axes of a new figure, under settings that do not depend on the user's own."""
    from matplotlib.figure import Figure

    with fixed_style():
        yield Figure(figsize=(_WIDTH_IN, height_in), layout="constrained").add_subplot()


def _finish(axes: "Axes", label: str, side: str, series: Sequence[str], lines: bool = False) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.set_xlabel(label)
    axes.set_ylabel(side)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(series))]
    if lines:
        handles = [Line2D([], [], color=c, linestyle=_LINES[n % 2], linewidth=1.6) for n, c in enumerate(colours)]
    else:
        handles = [Patch(facecolor=colour) for colour in colours]
    axes.legend(handles, series, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def figure_element(axes: "Axes", name: str, alt: str, caption: str) -> str:
    """The figure of some axes as a part of a page; ids inside it begin with ``name``."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        axes.figure.savefig(buffer, format="svg", metadata=nothing)
    words = html.escape(caption)
    return f"<figure>{_embedded(buffer.getvalue(), name, alt)}<figcaption>{words}</figcaption></figure>"


def _embedded(svg: str, name: str, alt: str) -> str:
    """A whole SVG file as an element of a page: ids that are unique there, and only those that are needed."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r"href=\"#([^\"]+)\"", svg))
    svg = re.sub(r" id=\"([^\"]+)\"", lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r" xmlns(:\w+)?=\"[^\"]*\"", "", svg)
    return svg.replace("<svg", f"<svg role='img' aria-label='{html.escape(alt)}'", 1)
