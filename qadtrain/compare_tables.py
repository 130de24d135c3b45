"""The comparison of two runs as it is kept, and as text and CSV."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from qadtrain.metrics import SHORT
from qadtrain.tables import csv_text, percent


@dataclass(frozen=True)
class Difference:
    """One metric of one cell, run B minus run A; NaN where it is not defined.

    Attributes:
        a, b: the metric of each run, on the samples that both have scored.
        low, high: ends of the 95 % interval of b - a, paired draws of recordings.
        p: two-sided, of the same draws.
        p_delong: two-sided, DeLong's test; AUC at video level only, and not for averages.
    """

    level: str
    quality: str
    method: str
    metric: str
    a: float
    b: float
    low: float
    high: float
    p: float
    p_delong: float = nan

    @property
    def difference(self) -> float:
        return self.b - self.a

    def as_json(self) -> dict[str, Any]:
        values = asdict(self) | {"difference": self.difference}
        return {k: None if isinstance(v, float) and isnan(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class Comparison:
    """Run A and run B on one split.

    Attributes:
        run_a, run_b: names for people.
        fingerprint, split: of the shard set.
        compared: scores (tuple x quality) that both runs have.
        only_a, only_b: scores that only one of them has; they are in no figure.
        neither: scores that both lack.
        rows: level, then quality, method and metric.
        notes: what a reader must know.
    """

    run_a: str
    run_b: str
    fingerprint: str
    split: str
    aggregate: str
    draws: int
    seed: int
    compared: int
    only_a: int
    only_b: int
    neither: int
    rows: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    def get(self, level: str, quality: str, method: str, metric: str = "auc") -> Difference:
        """One row. Raises KeyError when there is none."""
        for row in self.rows:
            if (row.level, row.quality, row.method, row.metric) == (level, quality, method, metric):
                return row
        raise KeyError((level, quality, method, metric))

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [row.as_json() for row in self.rows], "notes": list(self.notes)}


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """A table for each level: a row for each quality, method and metric; percent, and p."""
    for level in dict.fromkeys(row.level for row in comparison.rows):
        rows = [row for row in comparison.rows if row.level == level]
        title = Text(f"{level} level, percent: A = {comparison.run_a}, B = {comparison.run_b}")
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("quality", "method", ""):
            table.add_column(name, overflow="fold", no_wrap=name != "method")
        exact = any(not isnan(row.p_delong) for row in rows)
        for name in ("A", "B", "B - A", "95 % interval", "p", *(["p DeLong"] if exact else [])):
            table.add_column(name, justify="right", no_wrap=True)
        for number, row in enumerate(rows):
            last = number + 1 == len(rows) or rows[number + 1].quality != row.quality
            ends = "-" if isnan(row.low) else f"{100 * row.low:+.2f} to {100 * row.high:+.2f}"
            change = "-" if isnan(row.difference) else f"{100 * row.difference:+.2f}"
            figures = [percent(row.a), percent(row.b), change, ends, p_text(row.p)]
            labels = (Text(row.quality), Text(row.method), SHORT[row.metric])
            table.add_row(*labels, *figures, *([p_text(row.p_delong)] if exact else []), end_section=last)
        how = f"intervals and p by {comparison.draws} paired draws of recordings"
        lines = [f"{comparison.compared} scores compared; {how}"]
        table.caption, table.caption_justify = Text("\n".join([*lines, *comparison.notes])), "left"
        yield table


def comparison_csv(comparison: Comparison) -> str:
    """A line for each row; fractions."""
    header = ("level", "quality", "method", "metric", "a", "b", "difference", "low", "high", "p", "p_delong")
    lines = []
    for row in comparison.rows:
        figures = (row.a, row.b, row.difference, row.low, row.high, row.p, row.p_delong)
        shown = ["" if isnan(value) else f"{value:.6f}" for value in figures]
        lines.append((row.level, row.quality, row.method, row.metric, *shown))
    return csv_text(header, lines)


def p_text(p: float) -> str:
    """Three digits; ``< 0.001`` below, ``-`` for none."""
    if isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
