"""A report as tables: for the terminal, as LaTeX and as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from math import isnan

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from qadtrain.metrics import ALL_METRICS, METRICS, SHORT, FullScores
from qadtrain.summary import AVERAGE, LEVELS, POOLED, Report

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "[": "{[}", "*": "{*}",  # at the start of a row they would be options of the \\ before it
}  # fmt: skip


def report_tables(report: Report, metrics: Sequence[str] = METRICS) -> Iterator[Table]:
    """Rich tables, frame level then video level; a row for each quality and metric, figures in percent.

    Below a figure stands its 95 % interval where the report has them. The caption says what calling everything fake
    would score, and why figures are missing.

    Args:
        metrics: of ``ALL_METRICS``; others than accuracy, AUC and EER need a full report.
    """
    names = (*report.methods, AVERAGE, POOLED)
    for level in LEVELS:
        table = Table(title=f"{level} level, percent", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("quality")
        table.add_column("")
        for name in names:
            table.add_column(Text(name), justify="right", overflow="fold")
        for quality in (*report.qualities, AVERAGE):
            for metric in metrics:
                figures = (_figure(report, level, quality, name, metric) for name in names)
                last = metric == metrics[-1]
                table.add_row(quality if metric == metrics[0] else "", SHORT[metric], *figures, end_section=last)
        table.caption = Text("\n".join(_remarks(report, level))) if report.qualities else None
        table.caption_justify = "left"
        yield table


def report_csv(report: Report) -> str:
    """A line for each level, quality, method and metric: value, ends of its interval, samples, reason; fractions."""
    header = ("level", "quality", "method", "metric", "value", "low", "high", "real", "fake", "unscored", "reason")
    lines = []
    for level in LEVELS:
        for quality in (*report.qualities, AVERAGE):
            for name, scores in report.cells[level][quality].items():
                for metric in _metrics_of(report):
                    ends = report.bounds(level, quality, name).get(metric, (float("nan"),) * 2)
                    figures = ["" if isnan(value) else f"{value:.6f}" for value in (getattr(scores, metric), *ends)]
                    counts = (scores.real, scores.fake, scores.unscored)
                    lines.append((level, quality, name, metric, *figures, *counts, scores.reason))
    return csv_text(header, lines)


def report_latex(report: Report, level: str, metrics: Sequence[str] = METRICS) -> str:
    """A ``tabular`` of booktabs: a row for each quality and metric, a column for each method; percent."""
    names = (*report.methods, AVERAGE, POOLED)
    blocks = []
    for quality in (*report.qualities, AVERAGE):
        block = []
        for metric in metrics:
            cells = [percent(getattr(report.cells[level][quality][name], metric)) for name in names]
            block.append([quality if metric == metrics[0] else "", SHORT[metric], *cells])
        blocks.append(block)
    comment = f"% {level} level, percent; needs \\usepackage{{booktabs}}\n"
    return comment + latex_table(["quality", "", *names], blocks, left=2)


def latex_table(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], *, left: int = 1) -> str:
    """``tabular`` with rules of booktabs between blocks of rows; every cell is escaped.

    Args:
        left: columns at the left that are set flush left; the others are flush right.
    """
    lines = [rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}", r"\toprule"]
    lines.append(" & ".join(map(latex_text, header)) + r" \\")
    for block in blocks:
        lines.append(r"\midrule")
        lines += [" & ".join(map(latex_text, row)) + r" \\" for row in block]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in str(text))


def csv_text(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """CSV with a header, quoted where needed, lines ended by a newline."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in percent; ``-`` for none."""
    return "-" if value is None or isnan(value) else f"{100 * value:.{digits}f}"


def _figure(report: Report, level: str, quality: str, name: str, metric: str) -> str:
    value = getattr(report.cells[level][quality][name], metric)
    low, high = report.bounds(level, quality, name).get(metric, (float("nan"),) * 2)
    # With spaces: a narrow column breaks there, not within a number.
    ends = "" if isnan(low) or isnan(value) else f"\n{100 * low:.1f} - {100 * high:.1f}"
    return percent(value) + ends


def _remarks(report: Report, level: str) -> list[str]:
    shares: dict[str, list[str]] = {}
    for quality in report.qualities:
        cells = report.cells[level][quality]
        shown = ", ".join(f"{name} {percent(cells[name].always_fake, 1)}" for name in (*report.methods, POOLED))
        shares.setdefault(shown, []).append(quality)
    lines = []
    for shown, those in shares.items():
        at = f" at {', '.join(those)}" if len(shares) > 1 else ""
        lines.append(f"share of fakes, and so the ACC of calling everything fake{at}: {shown}")
    if report.intervals:
        lines.append("below each figure its 95 % interval, by drawing recordings (docs/evaluation.md)")
        if any(_without_interval(report, level, q, name) for q in report.qualities for name in report.cells[level][q]):
            lines.append("no interval where one recording is all there is of a class, and none of its averages")
    places: dict[str, dict[str, list[str]]] = {}
    for quality in (*report.qualities, AVERAGE):
        for name, scores in report.cells[level][quality].items():
            if scores.reason:
                places.setdefault(scores.reason, {}).setdefault(quality, []).append(name)
    for reason, found in sorted(places.items()):
        lines.append(", ".join(f"{quality} ({', '.join(names)})" for quality, names in found.items()) + f": {reason}")
    return lines


def _without_interval(report: Report, level: str, quality: str, name: str) -> bool:
    scores, bounds = report.cells[level][quality][name], report.bounds(level, quality, name)
    return any(not isnan(getattr(scores, metric)) and isnan(bounds[metric][0]) for metric in METRICS)


def _metrics_of(report: Report) -> Sequence[str]:
    pooled = next(iter(report.cells[LEVELS[0]].values()))[POOLED]
    return ALL_METRICS if isinstance(pooled, FullScores) else METRICS
