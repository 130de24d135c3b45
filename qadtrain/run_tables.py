"""Tables of runs, and what two or more runs differ in."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from qadprep.errors import UserError
from qadtrain.runs import BROKEN, CHECKS, RunInfo

_MOST_LOSSES = 12
_METRICS = ("auc", "accuracy", "eer", "loss")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; each list has one entry a run, None where a run has no such value.

    Attributes:
        names: of the runs.
        fields: field of the configuration -> its values; those that differ.
        facts: fingerprint of the data, commit, device, parameters -> values, all of them.
        metrics: ``auc/c23`` etc. at the best validation, and epochs, seconds, tuples per second.
        losses: step -> training loss; steps that all runs have logged, about a dozen of them.
    """

    names: list[str]
    fields: dict[str, list[Any]]
    facts: dict[str, list[Any]]
    metrics: dict[str, list[float | None]]
    losses: dict[int, list[float]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def runs_table(runs: Sequence[RunInfo]) -> Table:
    """A row for each run, with its preset or else its model; AUC in percent, of the best validation."""
    qualities = list(dict.fromkeys(quality for run in runs for quality in (run.best_auc or run.last_auc)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    data = {run.fingerprint[:12] for run in runs if run.fingerprint}
    for name in ("run", "model", "state"):
        table.add_column(name, overflow="fold", min_width=5, no_wrap=name == "state")
    # One column of all AUCs: with one each, a terminal of 80 characters would have no room for the names.
    for name in (
        "epochs",
        "steps",
        "best",
        f"AUC {'/'.join(qualities)}",
        "time",
        "age",
        *(["data"] if len(data) > 1 else []),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        auc = run.best_auc or run.last_auc
        cells = (
            *(run.name, run.preset or run.model, run.state),
            *(f"{run.epochs}/{run.epochs_total}", run.steps, "-" if run.best is None else f"{run.best:.4f}"),
            " ".join(f"{100 * auc[quality]:.1f}" if quality in auc else "-" for quality in qualities),
            *(duration(run.seconds), duration(run.age_s)),
            *([run.fingerprint[:6]] if len(data) > 1 else []),
        )
        if run.state == BROKEN:
            cells = (run.name, "", run.state, *[""] * (len(cells) - 3))
        table.add_row(*(Text(str(cell)) for cell in cells))
    measures = {run.best_by: run.name for run in runs if run.best is not None}
    lines = ["data: " + ", ".join(data)] if len(data) == 1 else []
    lines += ["best: " + ", ".join(measures)] if len(measures) == 1 else []
    lines += [f"{run.name}: best is {run.best_by}" for run in runs if run.best is not None and len(measures) > 1]
    lines += [f"{run.name}: {run.fault}" for run in runs if run.fault]
    table.caption = Text("\n".join(lines))
    table.caption_justify = "left"
    return table


def compare_runs(runs: Sequence[RunInfo]) -> Comparison:
    """Differing configuration, metrics, and the loss at equal steps.

    Raises:
        UserError: fewer than two runs, or a broken one.
    """
    if len(runs) < 2:
        raise UserError(f"nothing to compare: got {len(runs)} run, expected two or more")
    for run in runs:
        if run.state == BROKEN:
            raise UserError(f"{run.name}: cannot be compared ({run.fault})")
    flat = [run.config.flat() for run in runs]
    columns = {name: [values[name] for values in flat] for name in flat[0]}
    facts = [_facts(run) for run in runs]
    return Comparison(
        names=unique_names(runs),
        fields={name: values for name, values in columns.items() if any(value != values[0] for value in values)},
        facts={name: [values[name] for values in facts] for name in facts[0]},
        metrics=_metrics(runs),
        losses=_losses(runs),
    )


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """Configuration, facts, metrics and loss: a column for each run."""
    for title, first, rows in (
        ("configuration, what differs", "field", comparison.fields),
        ("facts", "", comparison.facts),
        ("at the best validation", "", comparison.metrics),
        ("training loss", "step", comparison.losses),
    ):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column(first)
        for name in comparison.names:
            table.add_column(Text(name), justify="right", overflow="fold")
        for name, values in rows.items():
            table.add_row(*(Text(cell) for cell in (str(name), *map(shown, values))))
        yield table


def unique_names(runs: Sequence[RunInfo]) -> list[str]:
    """Names of the folders; with as much of the path before them as tells equal ones apart."""
    parts = [run.path.resolve().parts for run in runs]
    depth = 1
    while len({part[-depth:] for part in parts}) < len({tuple(part) for part in parts}):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def shown(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


def duration(seconds: float | None) -> str:
    """``12 s``, ``3.5 min``, ``12 min``, ``2.1 h``, ``4.0 d``."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s"


def _facts(run: RunInfo) -> dict[str, Any]:
    facts = run.facts
    return {
        "data": run.fingerprint[:12],
        "commit": facts.get("git"),
        "device": facts.get("device"),
        "precision": facts.get("precision"),
        "parameters": facts.get("model", {}).get("parameters"),
        "torch": facts.get("versions", {}).get("torch"),
        "state": run.state,
    }


def _metrics(runs: Sequence[RunInfo]) -> dict[str, list[float | None]]:
    best = []
    for run in runs:
        checks = run.records.of(*CHECKS)
        best.append(next((check for check in reversed(checks) if check.get("best")), {}))
    names = [name for name in dict.fromkeys(name for check in best for name in check) if name.split("/")[0] in _METRICS]
    names.sort(key=lambda name: _METRICS.index(name.split("/")[0]))
    rows: dict[str, list[float | None]] = {name: [check.get(name) for check in best] for name in names}
    rows["best epoch, from 0"] = [run.best_epoch for run in runs]
    rows["epochs"] = [run.epochs for run in runs]
    rows["steps"] = [run.steps for run in runs]
    rows["seconds"] = [run.seconds for run in runs]
    rows["tuples/s"] = [run.tuples_per_s for run in runs]
    return rows


def _losses(runs: Sequence[RunInfo]) -> dict[int, list[float]]:
    curves = [dict(zip(*run.records.curve("loss", "train"), strict=True)) for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    if len(common) > _MOST_LOSSES:
        common = [common[round(n * (len(common) - 1) / (_MOST_LOSSES - 1))] for n in range(_MOST_LOSSES)]
    return {step: [curve[step] for curve in curves] for step in common}
