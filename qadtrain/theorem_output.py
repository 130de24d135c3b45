"""Table, files and figure of the terms of Theorem 1."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qadprep.plot_style import COLOURS, fixed_style, picture_files
from qadtrain.safe_files import write_atomically
from qadtrain.theorem import NOT_ESTIMATED, REMARKS, PairTerms, TheoremTerms, count_term, deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_IN = (4.4, 3.6)


def write_files(terms: TheoremTerms, folder: Path) -> TheoremTerms:
    """Write theorem.json, theorem.csv, theorem.png and theorem.svg; the terms with their names."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "theorem.json": (json.dumps(terms.as_json(), indent=2, allow_nan=False) + "\n").encode(),
        "theorem.csv": as_csv(terms).encode(),
        **{f"theorem.{kind}": data for kind, data in figure(terms).items()},
    }
    for name, data in contents.items():
        write_atomically(folder / name, data)
    return replace(terms, files=tuple(folder / name for name in contents))


def as_csv(terms: TheoremTerms) -> str:
    """A row for each pair and temperature."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("A", "B", "collaboration_term", "collaboration_term_tight", "p_difference", "A+B+C", "A+B+C'")
    writer.writerow(["run", "split", "n", "pair", "for_information", "error", "temperature", *names])
    for pair in terms.pairs:
        columns = (pair.a, [terms.b] * len(pair.a), pair.c, pair.c_tight, pair.p_difference)
        sums = (terms.total(pair), terms.total(pair, tight=True))
        for temperature, *values in zip(terms.temperatures, *columns, *sums, strict=True):
            head = [terms.run, terms.split, terms.n, pair.name, int(pair.for_information), pair.error, temperature]
            writer.writerow([*head, *map(float, values)])
    return buffer.getvalue()


def theorem_tables(terms: TheoremTerms) -> list[Table]:
    """A rich table a pair over the temperatures, and one of what does not depend on them."""
    return [*(_pair_table(terms, pair) for pair in terms.pairs), _rest(terms)]


def theorem_notes() -> list[str]:
    """What the figures are not; lines to print below the tables."""
    return [*(f"{name}: {text}" for name, text in NOT_ESTIMATED.items()), *REMARKS]


def _pair_table(terms: TheoremTerms, pair: PairTerms) -> Table:
    title = f"{escape(terms.run)}, {terms.split}: {pair.name}, wrong at {pair.worse}: {100 * pair.error:.2f} %"
    table = Table(
        title=title + (" (for information)" if pair.for_information else ""),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption="* least on the grid; C: collaboration term, C': its tighter form; "
        f"dp: mean |p_y({pair.better}) - p_y({pair.worse})|",
    )
    for name in ("T", "A", "C", "C'", "dp", "A+B+C", "A+B+C'"):
        table.add_column(name, justify="right")
    sums, tight = terms.total(pair), terms.total(pair, tight=True)
    for number, temperature in enumerate(terms.temperatures):
        figures = (pair.a, pair.c, pair.c_tight, pair.p_difference)
        marked = (f"{total[number]:.4f}{'*' if number == total.argmin() else ' '}" for total in (sums, tight))
        table.add_row(f"{temperature:g}", *(f"{each[number]:.4f}" for each in figures), *marked)
    return table


def _rest(terms: TheoremTerms) -> Table:
    table = Table(title="terms without T", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("sample", "n", "B = 16/n", f"sqrt(ln(2/delta)/2n), delta {terms.delta:g}"):
        table.add_column(name, justify="left" if name == "sample" else "right")
    samples = [(f"this split ({terms.split})", terms.n)]
    samples += [("tuples it was trained on", terms.trained_n)] if terms.trained_n else []
    for name, n in samples:
        table.add_row(name, f"{n:,}", f"{count_term(n):.2e}", f"{deviation(n, terms.delta):.2e}")
    lost = ((terms.left_out, "logits not finite"), (len(terms.damaged), "damaged"))
    table.caption = "; ".join(f"{count} tuples left out: {why}" for count, why in lost if count) or None
    return table


def figure(terms: TheoremTerms) -> dict[str, bytes]:
    """``png`` and ``svg``: the terms over T, a picture for each pair with the best quality."""
    from matplotlib.figure import Figure

    pairs = [pair for pair in terms.pairs if not pair.for_information]
    with fixed_style(axes_grid=False):
        sheet = Figure(figsize=(_PANEL_IN[0] * len(pairs) + 1.6, _PANEL_IN[1]), layout="constrained")
        grid = sheet.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
        for axes, pair in zip(grid, pairs, strict=True):
            _draw(axes, terms, pair)
        grid[0].set_ylabel("term")
        grid[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return picture_files(sheet)


def _draw(axes: "Axes", terms: TheoremTerms, pair: PairTerms) -> None:
    total = terms.total(pair)
    lines = (
        ("A", pair.a, "-"),
        ("C, collaboration term", pair.c, "-"),
        ("C', its tighter form", pair.c_tight, "--"),
        ("A + B + C", total, "-"),
    )
    for number, (name, values, style) in enumerate(lines):
        axes.plot(terms.temperatures, values, style, label=name, color=COLOURS[number], marker="o", markersize=2.5)
    least = int(total.argmin())
    axes.plot(terms.temperatures[least], total[least], "k*", markersize=9, label="least A + B + C on the grid")
    axes.axhline(1, color="#777777", linewidth=0.8, linestyle=":", label="1: from here up it says nothing")
    axes.axhline(pair.error, color="#333333", linewidth=0.8, linestyle="-.", label="share of errors on the split")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    # C grows without end as T falls: the picture is of where the sum is near its least.
    axes.set_ylim(0, max(2.2, 1.3 * float(total[least])))
    axes.set_xlabel("temperature T")
    axes.set_title(f"{pair.better} and {pair.worse}")
