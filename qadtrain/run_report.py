"""One self-contained HTML page about one run or several: results, curves, configuration, facts, events, throughput."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from qadprep.errors import UserError
from qadprep.report_page import page
from qadprep.report_section import Number, Section
from qadtrain.config import Config
from qadtrain.run_plots import curves
from qadtrain.run_report_hardest import hardest_chapter
from qadtrain.run_report_looks import gradcam_chapter, robustness_chapter, theorem_chapter
from qadtrain.run_report_results import comparison_chapter, cross_chapter, evaluation_chapter
from qadtrain.run_results import Results, find_results
from qadtrain.run_tables import duration, shown, unique_names
from qadtrain.runs import BROKEN, CHECKS, RunInfo, is_number, read_run, scores_of
from qadtrain.safe_files import write_atomically
from qadtrain.tracking import EVENT

_METRICS = {
    "auc": "ROC-AUC",
    "accuracy": "Accuracy",
    "eer": "Equal error rate",
    "loss": "Cross-entropy",
}
_IN_EVENTS = ("kind", "epoch", "global_step", "seconds", "event")
_COUNTS = "skipped_"


def write_run_report(
    runs: Sequence[Path], out: Path, *, shards: Sequence[Path] = (), results: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write the page; the same files give the same bytes.

    What `eval`, `compare`, `cross`, `robustness`, `gradcam` and `theorem` wrote is taken from folders ``eval``,
    ``compare``, ``cross``, ``robustness``, ``gradcam`` and ``theorem``: of each run, of the page's folder, and of
    ``results``. In the latter two only what names one of the runs is taken.

    Args:
        runs: run folders, in the order of the colours; a running one is shown as far as it is.
        out: the page; a folder, or a name without an ending, gets ``report.html`` inside of it.
        shards: shard sets: the hardest tuples of an evaluation on one of them are shown as pictures.
        results: further folders to look into.

    Returns:
        ``{"report": path, "runs": [names], "figures": count, "results": {kind: count}, "faults": [lines]}``. Faults are
        results that could not be shown; the page names them too.

    Raises:
        UserError: no run folder, a broken one, one that has not logged a step yet, or no such folder of results.
    """
    if not runs:
        raise UserError("no run given; expected one or more run folders")
    infos = [read_run(path) for path in runs]
    for info in infos:
        if info.state == BROKEN:
            raise UserError(info.fault)
        if not info.records.lines:
            raise UserError(f"{info.path}: no records in metrics.jsonl yet; it has its first one after some steps")
    for place in results:
        if not Path(place).is_dir():
            raise UserError(f"--results: {place} is not a folder")
    named = dict(zip(unique_names(infos), infos, strict=True))
    is_folder = Path(out).is_dir() or not Path(out).suffix  # a run may be called gamma0.002
    file = Path(out) / "report.html" if is_folder else Path(out)
    found = find_results(named, [file.parent, *results])
    after = list(_results(found, named, shards))
    sections = [*_summary(named), *_faults(found.faults), *after]
    sections += [*_training(named), *_validation(named), *_throughput(named), *_about(named)]
    title = f"Training run {next(iter(named))}" if len(named) == 1 else f"{len(named)} training runs"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, page(title, "", sections).encode())
    return {
        "report": str(file),
        "runs": list(named),
        "figures": sum(section.html.count("<svg") for section in sections),
        "results": dict(Counter(one.kind for one in found.found)),
        "faults": found.faults,
    }


def _results(found: Results, runs: dict[str, RunInfo], shards: Sequence[Path]) -> Iterator[Section]:
    """Chapters of what came after training; none where there is nothing."""
    yield from evaluation_chapter(found, runs)
    yield from comparison_chapter(found)
    yield from cross_chapter(found)
    yield from robustness_chapter(found, runs)
    yield from gradcam_chapter(found)
    yield from theorem_chapter(found)
    yield from hardest_chapter(found, runs, shards)


def _faults(faults: Sequence[str]) -> list[Section]:
    rows = [(line,) for line in faults]
    return [Section("Results that cannot be shown", "", ("what is wrong",), rows, anchor="faults")] if faults else []


def _summary(runs: dict[str, RunInfo]) -> list[Section]:
    qualities = list(dict.fromkeys(quality for run in runs.values() for quality in run.best_auc))
    rows = [
        (
            *(name, run.state, run.model, run.preset or "-"),
            *(Number(f"{run.epochs}/{run.epochs_total}"), run.steps, duration(run.seconds)),
            *(run.best_by or "-", Number("-" if run.best is None else f"{run.best:.4f}")),
            Number("-" if run.best_epoch is None else run.best_epoch + 1),
            *(Number(f"{100 * run.best_auc[q]:.2f}" if q in run.best_auc else "-") for q in qualities),
        )
        for name, run in runs.items()
    ]
    columns = ("run", "state", "model", "preset", "epochs", "steps", "time", "best by", "best", "in epoch")
    remarks = [f"{name}: {run.fault}." for name, run in runs.items() if run.fault]
    lost = {name: run.records.unreadable for name, run in runs.items()}
    remarks += [
        f"{name}: lines of metrics.jsonl that cannot be read: {count}." for name, count in lost.items() if count
    ]
    return [
        Section("Summary", anchor="summary", chapter=True),
        Section(
            "Best validation",
            " ".join(["AUC in percent, frame level.", *remarks]),
            (*columns, *(f"AUC {quality}" for quality in qualities)),
            rows,
        ),
    ]


def _training(runs: dict[str, RunInfo]) -> Iterator[Section]:
    """Figures of what each log line says. One run: quantities of a kind in one figure; several: a figure for each."""
    yield Section("Training", "Means over the steps between two log lines.", anchor="training", chapter=True)
    names = list(dict.fromkeys(name for run in runs.values() for name in run.records.names("train")))
    groups = {
        "Loss": ([name for name in ("loss", "ce", "extra_loss") if name in names], "loss"),
        "HSIC": ([name for name in names if name.startswith("hsic")], "HSIC, mean over the pairs"),
        "Unbiased CKA": ([name for name in names if name.startswith("cka/")], "CKA: 1 = equal, 0 = independent"),
        "Loss rise by AWP": ([name for name in names if name == "awp_ce_rise"], "cross-entropy at w + v minus at w"),
        "Learning rate": ([name for name in names if name == "lr"], "learning rate"),
        "Gradient norm": ([name for name in names if name == "grad_norm"], "norm over all weights"),
    }
    for title, (members, side) in groups.items():
        yield _figures(runs, title, members, side, ("train",), scale="log" if title == "Gradient norm" else "linear")


def _validation(runs: dict[str, RunInfo]) -> Iterator[Section]:
    yield Section("Validation", anchor="validation", chapter=True)
    names = list(dict.fromkeys(name for run in runs.values() for name in run.records.names(*CHECKS)))
    for metric, title in _METRICS.items():
        members = [name for name in names if name.startswith(f"{metric}/")]
        yield _figures(runs, title, members, title, CHECKS, marks=True)
    yield _figures(runs, "Training loss of the epochs", ["train_ce"], "cross-entropy", CHECKS, marks=True)
    for run_name, run in runs.items():
        qualities = list(dict.fromkeys(q for check in run.records.of(*CHECKS) for q in scores_of(check, "auc")))
        rows = [
            (
                check["epoch"] + 1,
                check["global_step"],
                *(_number(check.get(f"auc/{quality}"), 100, 2) for quality in qualities),
                _number(check.get("train_ce"), 1, 4),
                bool(check.get("best")),
            )
            for check in run.records.of(*CHECKS)
        ]
        columns = ("epoch", "step", *(f"AUC {quality}" for quality in qualities), "train loss", "best so far")
        yield Section(f"All validations of {run_name}", "", columns, rows, folded=True)


def _throughput(runs: dict[str, RunInfo]) -> Iterator[Section]:
    yield Section("Throughput", anchor="throughput", chapter=True)
    rows = []
    for name, run in runs.items():
        cells = [name]
        for quantity, form in (("tuples_per_s", "{:,.1f}"), ("data_wait", "{:.1%}"), ("memory_gb", "{:.2f}")):
            values = run.records.curve(quantity, "train")[1]
            cells.append(Number(form.format(median(values)) if values else "-"))
        cells.append(Number(_counted(run)))
        rows.append((*cells, duration(run.seconds)))
    columns = ("run", "tuples/s", "data wait", "memory, GB", "skipped", "time")
    text = "Medians over the log lines. Data wait: part of the time in which the step waited for its batch."
    yield Section("Rates", text, columns, rows)
    yield _figures(runs, "Tuples per second", ["tuples_per_s"], "tuples/s", ("train",))
    yield _figures(runs, "Data wait", ["data_wait"], "part of the time, 0 to 1", ("train",))


def _about(runs: dict[str, RunInfo]) -> Iterator[Section]:
    """Configuration, facts and events."""
    yield Section("Configuration and facts", anchor="about", chapter=True)
    flat = {name: run.config.flat() for name, run in runs.items()}
    fields = list(next(iter(flat.values())))
    defaults = Config().flat()
    several = len(runs) > 1
    against = next(iter(flat.values())) if several else defaults
    differing = [name for name in fields if any(values[name] != against[name] for values in flat.values())]
    heads = ("field", *runs) if several else ("field", "value", "default")

    def row(name: str) -> tuple[str, ...]:
        values = tuple(shown(values[name]) for values in flat.values())
        return (name, *values) if several else (name, *values, shown(defaults[name]))

    title = "What the runs differ in" if several else "What differs from the defaults"
    text = "" if differing else "Nothing."
    yield Section(title, text, heads, [row(name) for name in differing], anchor="differences")
    yield Section("The whole configuration", "", heads, [row(name) for name in fields], folded=True)
    facts = [_facts(run) for run in runs.values()]
    names = list(dict.fromkeys(name for one in facts for name in one))
    yield Section("Facts", "", ("what", *runs), [(name, *(one.get(name, "-") for one in facts)) for name in names])
    rows = []
    for run_name, run in runs.items():
        for record in run.records.of(EVENT):
            rest = {name: value for name, value in record.items() if name not in _IN_EVENTS and value not in (None, "")}
            said = ", ".join(f"{name} {shown(value)}" for name, value in rest.items())
            when = duration(record.get("seconds"))
            rows.append((run_name, record["global_step"], when, str(record.get("event")), said))
    yield Section("Events", "" if rows else "None.", ("run", "step", "time", "event", "detail"), rows)


def _figures(
    runs: dict[str, RunInfo],
    title: str,
    members: Sequence[str],
    side: str,
    kinds: tuple[str, ...],
    *,
    scale: str = "linear",
    marks: bool = False,
) -> Section:
    anchor = title.lower().replace(" ", "-")
    if len(runs) == 1:
        run = next(iter(runs.values()))
        parts = [(anchor, title, {_short(name): run.records.curve(name, *kinds) for name in members})]
    else:
        parts = [
            (f"{anchor}-{number}", name, {key: run.records.curve(name, *kinds) for key, run in runs.items()})
            for number, name in enumerate(members)
        ]
    drawn = [
        curves(
            name,
            series,
            side if len(parts) == 1 else what,
            f"{what} over the steps: {', '.join(series)}",
            what if len(parts) > 1 else "",
            scale=scale,
            marks=marks,
        )
        for name, what, series in parts
    ]
    return Section(title, html="".join(drawn), anchor=anchor)


def _facts(run: RunInfo) -> dict[str, str]:
    facts, shards = run.facts, run.facts["shards"]
    model = facts.get("model", {})
    found = {
        "data, fingerprint": run.fingerprint[:16],
        "data, qualities": ", ".join(shards.get("qualities", ())),
        "data, splits": ", ".join(f"{name} {count}" for name, count in shards.get("splits", {}).items()),
        "data, crop": f"{shards.get('size_px', '-')} px",
        "parameters": f"{model['parameters']:,}" if is_number(model.get("parameters")) else "-",
        "start weights": str(model.get("origin") or "-"),
        "device": str(facts.get("device", "-")),
        "precision": str(facts.get("precision", "-")),
        "commit": str(facts.get("git") or "-"),
        "command": str(facts.get("command") or "-"),
    }
    return found | {f"version, {name}": str(value) for name, value in facts.get("versions", {}).items()}


def _counted(run: RunInfo) -> str:
    """Steps and tuples that were left out, as the last log line counts them."""
    last = next(iter(reversed(run.records.of("train"))), {})
    counts = {name.removeprefix(_COUNTS): value for name, value in last.items() if name.startswith(_COUNTS)}
    return ", ".join(f"{value:g} {name}" for name, value in counts.items() if value) or "0"


def _short(name: str) -> str:
    return name.partition("/")[2] or name


def _number(value: Any, factor: float, digits: int) -> Number:
    return Number(f"{factor * value:.{digits}f}" if is_number(value) else "-")
