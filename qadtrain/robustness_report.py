"""Results of a robustness evaluation: rows, tables, CSV and JSON."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qadtrain.corruptions import level
from qadtrain.robustness_pictures import CLEAN, View
from qadtrain.robustness_plots import figure
from qadtrain.safe_files import write_atomically
from qadtrain.score_files import fake_probability
from qadtrain.summary import AVERAGE, LEVELS, POOLED, summarise

NAME = "robustness"


@dataclass(frozen=True)
class Row:
    """Scores of one run on one view of the split, at one quality; AUC and accuracy are 0..1, NaN with a reason.

    Attributes:
        corruption, severity, parameter: ``clean``, 0 and None for the untouched pictures.
        level: ``frame`` or ``video``.
        quality: a quality, or ``average``: the plain mean over the qualities.
    """

    run: str
    corruption: str
    severity: int
    parameter: float | None
    level: str
    quality: str
    auc: float
    accuracy: float
    real: int
    fake: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {key: None if isinstance(v, float) and isnan(v) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class RobustnessReport:
    """All rows, in the order run, corruption (clean first), severity, level, quality.

    Attributes:
        tuples: how many were scored.
        damaged: key and message of those that could not be read, left out of every figure.
        reused, scored: cells taken over from an earlier call, and those of this one.
        settings: what the figures depend on beside the runs.
    """

    runs: tuple[str, ...]
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    qualities: tuple[str, ...]
    rows: tuple[Row, ...]
    tuples: int
    damaged: tuple[tuple[str, str], ...]
    reused: int
    scored: int
    settings: dict[str, Any]
    folder: Path
    files: tuple[Path, ...] = field(default=())

    def row(self, run: str, corruption: str, severity: int, quality: str = AVERAGE, level: str = "frame") -> Row:
        """One row; severity 0 is the clean one of every corruption.

        Raises:
            KeyError: there is none such.
        """
        wanted = (run, CLEAN if severity == 0 else corruption, severity, quality, level)
        for row in self.rows:
            if (row.run, row.corruption, row.severity, row.quality, row.level) == wanted:
                return row
        raise KeyError(wanted)

    @property
    def corrupted_at(self) -> str:
        """At which resolution, and by which rule of the blocks: every figure depends on them."""
        sides = " and ".join(map(str, sorted(set(self.settings["side_px"].values()))))
        return f"corrupted at {sides} px (--at {self.settings['at']}), blocks: {self.settings['blocks']}"

    def as_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        return {
            "runs": list(self.runs),
            "corruptions": list(self.corruptions),
            "severities": list(self.severities),
            "qualities": list(self.qualities),
            "tuples": self.tuples,
            "damaged": [{"key": key, "message": message} for key, message in self.damaged],
            "settings": self.settings,
            "rows": [row.as_json() for row in self.rows],
        }


def rows_of(run: str, view: View, logits: np.ndarray, index: pa.Table, qualities: Sequence[str]) -> list[Row]:
    report = summarise(fake_probability(logits), index, tuple(qualities))
    value = level(view.corruption, view.severity) if view.severity else None
    rows = []
    for its_level in LEVELS:
        for quality in (*qualities, AVERAGE):
            scores = report.cells[its_level][quality][POOLED]
            figures = (scores.auc, scores.accuracy, scores.real, scores.fake, scores.reason)
            rows.append(Row(run, view.corruption, view.severity, value, its_level, quality, *figures))
    return rows


def write_report(report: RobustnessReport) -> RobustnessReport:
    """Write ``robustness.csv``, ``.json``, ``.png`` and ``.svg``, the same bytes for the same results.

    Returns:
        The report with ``files`` filled in.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if v is None else v for key, v in row.as_json().items()} for row in report.rows)
    contents = {
        "csv": text.getvalue().encode(),
        "json": (json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n").encode(),
        **figure(report),
    }
    files = []
    for suffix, data in contents.items():
        files.append(report.folder / f"{NAME}.{suffix}")
        write_atomically(files[-1], data)
    return replace(report, files=tuple(files))


def robustness_tables(report: RobustnessReport) -> Iterator[Table]:
    """Rich tables, one for each run and level: a row for each corruption and metric, in percent."""
    for run in report.runs:
        for its_level in LEVELS:
            title = f"{escape(run)}: {its_level} level, mean over the qualities, percent"
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            table.add_column("corruption")
            table.add_column("")
            for name in (CLEAN, *map(str, report.severities)):
                table.add_column(name, justify="right")
            reasons = set()
            for corruption in report.corruptions:
                found = [report.row(run, corruption, severity, level=its_level) for severity in (0, *report.severities)]
                reasons |= {row.reason for row in found if row.reason}
                for short, metric in (("AUC", "auc"), ("ACC", "accuracy")):
                    figures = (_percent(getattr(row, metric)) for row in found)
                    table.add_row(corruption if short == "AUC" else "", short, *figures, end_section=short == "ACC")
            table.caption = "; ".join([report.corrupted_at, *sorted(reasons)])
            yield table


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.2f}"
