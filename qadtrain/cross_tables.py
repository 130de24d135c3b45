"""The table of runs x shard sets as it is kept, and as text, LaTeX and CSV."""

import io
import json
from dataclasses import asdict, dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qadtrain.metrics import SHORT
from qadtrain.safe_files import write_atomically
from qadtrain.tables import csv_text, latex_table, percent

SHOWN = ("accuracy", "auc")
OURS, PUBLISHED = "this run", "published"


@dataclass(frozen=True)
class CrossCell:
    """One run on one set.

    Attributes:
        values: metric -> fraction; NaN where it is not defined.
        intervals: metric -> ends of the 95 % interval.
        qualities: those averaged over; empty in published cells, where they are not stated.
        real, fake, unscored: samples over all qualities.
        trained_on: the run was trained on this very shard set.
        reason: why figures are missing or doubtful.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    qualities: tuple[str, ...] = ()
    real: int = 0
    fake: int = 0
    unscored: int = 0
    trained_on: bool = False
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        ends = {name: None if isnan(low) else [low, high] for name, (low, high) in self.intervals.items()}
        values = {name: None if isnan(value) else value for name, value in self.values.items()}
        return asdict(self) | {"values": values, "intervals": ends}


@dataclass(frozen=True)
class CrossRow:
    """A detector: a run, or a row of the publication; ``cells`` lacks the sets that it has no figure for."""

    name: str
    source: str  # OURS or PUBLISHED
    cells: dict[str, CrossCell]


@dataclass(frozen=True)
class CrossTable:
    """Detectors x shard sets.

    Attributes:
        sets: names of the columns.
        rows: published ones first.
        level, split, draws: how ours were made.
        source: of the published rows; empty without any.
        notes: what a reader must know.
        failures: a line for each run on a set that could not be scored, and for each set or run that could not be read.
    """

    sets: tuple[str, ...]
    rows: tuple[CrossRow, ...]
    level: str
    split: str
    aggregate: str
    draws: int
    source: str
    notes: tuple[str, ...]
    failures: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        rows = [
            {
                "name": row.name,
                "source": row.source,
                "cells": {name: cell.as_json() for name, cell in row.cells.items()},
            }
            for row in self.rows
        ]
        return asdict(self) | {"rows": rows}


def cross_text(table: CrossTable) -> Table:
    """Rich table: ACC and AUC of each set, in percent; below ours the 95 % interval."""
    title = Text(f"{table.level} level, split {table.split}, percent")
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("detector", overflow="fold")
    shown.add_column("source", no_wrap=True)
    for name in table.sets:
        for metric in SHOWN:
            shown.add_column(Text(f"{name}\n{SHORT[metric]}"), justify="right", overflow="fold")
    for number, row in enumerate(table.rows):
        figures = [_figure(row.cells.get(name), metric, "\n{}") for name in table.sets for metric in SHOWN]
        last = number + 1 < len(table.rows) and table.rows[number + 1].source != row.source
        shown.add_row(Text(row.name), Text(row.source), *figures, end_section=last)
    lines = [f"published rows: {table.source}"] if table.source else []
    shown.caption = Text("\n".join([*lines, *table.notes, *(f"failed: {line}" for line in table.failures)]))
    shown.caption_justify = "left"
    return shown


def cross_latex(table: CrossTable) -> str:
    """``tabular`` of booktabs, published rows above a rule; the source and the notes are comments."""
    header = ["detector", *(f"{name} {SHORT[metric]}" for name in table.sets for metric in SHOWN)]
    blocks = []
    for source in (PUBLISHED, OURS):
        block = [
            [
                row.name + (" (published)" if source == PUBLISHED else ""),
                *(_figure(row.cells.get(name), metric, "") for name in table.sets for metric in SHOWN),
            ]
            for row in table.rows
            if row.source == source
        ]
        blocks += [block] if block else []
    lines = [f"{table.level} level, split {table.split}, percent; needs \\usepackage{{booktabs}}"]
    lines += [f"published rows: {table.source}"] if table.source else []
    return "\n".join(f"% {line}" for line in [*lines, *table.notes]) + "\n" + latex_table(header, blocks)


def cross_csv(table: CrossTable) -> str:
    """A line for each detector, set and metric; fractions. Published lines carry their source."""
    header = (
        *("detector", "source", "set", "metric", "value", "low", "high"),
        *("qualities", "real", "fake", "unscored", "trained_on", "reason"),
    )
    lines = []
    for row in table.rows:
        for name, cell in row.cells.items():
            for metric, value in cell.values.items():
                figures = ["" if isnan(v) else f"{v:.6f}" for v in (value, *cell.intervals.get(metric, (nan, nan)))]
                source = f"published ({table.source})" if row.source == PUBLISHED else row.source
                facts = (" ".join(cell.qualities), cell.real, cell.fake, cell.unscored, cell.trained_on, cell.reason)
                facts = ("",) * len(facts) if row.source == PUBLISHED else facts
                lines.append((row.name, source, name, metric, *figures, *facts))
    return csv_text(header, lines)


def write_cross(table: CrossTable, folder: Path) -> None:
    """cross.txt, cross.tex, cross.csv and cross.json."""
    plain = Console(file=io.StringIO(), width=40 + 24 * len(table.sets), color_system=None)
    plain.print(cross_text(table))
    for name, text in (
        ("cross.txt", plain.file.getvalue()),
        ("cross.tex", cross_latex(table)),
        ("cross.csv", cross_csv(table)),
        ("cross.json", json.dumps(table.as_json(), indent=2, allow_nan=False) + "\n"),
    ):
        write_atomically(folder / name, text.encode())


def _figure(cell: CrossCell | None, metric: str, ends: str) -> str:
    if cell is None:
        return "-"
    low, high = cell.intervals.get(metric, (nan, nan))
    value = cell.values.get(metric, nan)
    digits = 2 if cell.qualities else 1  # as printed
    if isnan(low) or isnan(value):
        return percent(value, digits)
    return percent(value, digits) + ends.format(f"{100 * low:.1f} - {100 * high:.1f}")
