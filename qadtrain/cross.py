"""Runs on any number of shard sets, laid out as Table 6 of the QAD supplementary, with its rows beside ours."""

import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadtrain.checkpoint import read_run_json
from qadtrain.cross_tables import (
    OURS,
    PUBLISHED,
    SHOWN,
    CrossCell,
    CrossRow,
    CrossTable,
    cross_csv,
    cross_latex,
    cross_text,
    write_cross,
)
from qadtrain.kept import Scored, kept_or_made
from qadtrain.score_files import fake_margin, fake_probability
from qadtrain.summary import AVERAGE, LEVELS, POOLED, PROBABILITY, check_aggregate, check_draws, summarise
from qadtrain.tables import percent

__all__ = ["CrossCell", "CrossRow", "CrossTable", "cross", "cross_csv", "cross_latex", "cross_text", "load_published"]

KEPT = ("accuracy", "balanced_accuracy", "auc", "eer")
_TITLES = {
    "ffpp": "FF++",
    "dfd": "DFD",
    "celebdf": "Celeb-DF-v2",
    "ffiw": "FFIW-10K",
    "dfdc": "DFDC",
    "dfdcp": "DFDC preview",
    "wilddeepfake": "WildDeepfake",
}


def cross(
    runs: Sequence[Path],
    sets: Sequence[str],
    *,
    split: str = "test",
    level: str = "frame",
    checkpoint: str = "best",
    aggregate: str = PROBABILITY,
    bootstrap: int = 1000,
    seed: int = 0,
    published: bool = True,
    out_dir: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> CrossTable:
    """Score runs on shard sets; a figure is the mean over the qualities of a set, all its samples of each pooled.

    What cannot be scored is a line of ``failures``, and the rest goes on.

    Args:
        runs: run folders, a row each.
        sets: shard sets, a column each: ``PATH``, named after the datasets in it, or ``NAME=PATH``.
        level: ``frame`` or ``video``.
        published: put the published rows before ours.
        out_dir: takes cross.txt, cross.tex, cross.csv and cross.json; None writes nothing.
        say: takes a line that says where scores are from.
        options: of :func:`qadtrain.evaluate.evaluate`: device, num_workers, batch_tuples, skip_bad, progress.

    Raises:
        UserError: no run or no set, an unknown level or aggregate, one name for two sets, or nothing at all that could
            be scored.
    """
    if level not in LEVELS:
        raise UserError(f"--level: got {level!r}, expected frame or video")
    if not runs or not sets:
        raise UserError(f"got {len(runs)} runs and {len(sets)} shard sets, expected one of each or more")
    check_aggregate(aggregate)
    check_draws(bootstrap)
    places = [_named(text) for text in sets]
    if out_dir is not None:
        Path(out_dir).mkdir(parents=True, exist_ok=True)  # a place that cannot be written is known before the work
    scored: dict[int, list[tuple[int, Scored]]] = {column: [] for column in range(len(places))}
    failures: list[str] = []
    how = {"split": split, "checkpoint": checkpoint, "say": say, "aggregate": aggregate, **options}
    for number, run in enumerate(runs):
        for column, (_, path) in enumerate(places):
            try:
                scored[column].append((number, kept_or_made(Path(run), path, **how)))
            except UserError as error:
                failures.append(f"{run} on {path}: {error}")
    if not any(scored.values()):
        raise UserError(f"nothing could be scored: {'; '.join(failures)}")
    names = _column_names(places, scored)
    cells: list[dict[str, CrossCell]] = [{} for _ in runs]
    for column, found in scored.items():
        for number, each in found:
            cells[number][names[column]] = _cell(Path(runs[number]), each, level, aggregate, bootstrap, seed)
    rows = [CrossRow(name, OURS, its) for name, its in zip(_run_names(runs), cells, strict=True)]
    source, notes = "", _notes(rows, level, bootstrap)
    if published:
        printed = load_published()
        datasets = {names[column]: _datasets(found) for column, found in scored.items()}
        ahead = _published_rows(printed, datasets)
        if ahead:
            rows, source = [*ahead, *rows], printed["source"]
            notes += [f"published: {note}" for note in printed["notes"]]
    order = tuple(names[column] for column in range(len(places)))
    table = CrossTable(order, tuple(rows), level, split, aggregate, bootstrap, source, tuple(notes), tuple(failures))
    if out_dir is not None:
        write_cross(table, Path(out_dir))
    return table


def load_published() -> dict[str, Any]:
    """The published table: source, notes, sets (dataset -> title), and rows with ACC and AUC in percent."""
    return tomllib.loads(files("qadtrain").joinpath("published", "table6.toml").read_text("utf-8"))


def _named(text: str) -> tuple[str, str]:
    """Name (empty = after its datasets) and path."""
    name, sign, path = str(text).partition("=")
    if not sign or "/" in name or Path(text).exists():
        return "", str(text)
    if not name or not path:
        raise UserError(f"got {text!r}, expected the path of a shard set, or NAME=PATH")
    return name, path


def _datasets(found: Sequence[tuple[int, Scored]]) -> tuple[str, ...]:
    return tuple(sorted({name for _, each in found[:1] for name in each.scores.index["dataset"].unique().to_pylist()}))


def _column_names(places: Sequence[tuple[str, str]], scored: dict[int, list[tuple[int, Scored]]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for column, (name, path) in enumerate(places):
        datasets = _datasets(scored[column])
        folder = path.rstrip("/").rpartition("/")[2] or path
        names[column] = name or "+".join(_TITLES.get(each, each) for each in datasets) or folder
    given = [name for name, _ in places if name]
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise UserError(f"got the name {twice!r} for two shard sets, expected different ones: NAME=PATH")
    # Sets of the same datasets, such as two sizes of crops: the paths tell them apart.
    several = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {
        c: f"{name} ({places[c][1]})" if name in several and not places[c][0] else name for c, name in names.items()
    }


def _run_names(runs: Sequence[Path]) -> list[str]:
    names = [Path(run).resolve().name for run in runs]
    return [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def _cell(run: Path, scored: Scored, level: str, aggregate: str, bootstrap: int, seed: int) -> CrossCell:
    scores = scored.scores
    report = summarise(
        fake_probability(scores.logits),
        scores.index,
        scores.qualities,
        margin=fake_margin(scores.logits),
        aggregate=aggregate,
        full=True,
        bootstrap=bootstrap,
        seed=seed,
    )
    mean = report.cells[level][AVERAGE][POOLED]
    bounds = report.bounds(level, AVERAGE, POOLED)
    reasons = [f"{q}: {cell.reason}" for q in scores.qualities if (cell := report.pooled(level, q)).reason]
    return CrossCell(
        {metric: getattr(mean, metric) for metric in KEPT},
        {metric: bounds[metric] for metric in KEPT if metric in bounds},
        scores.qualities,
        mean.real,
        mean.fake,
        mean.unscored,
        scored.fingerprint == read_run_json(run)["shards"]["fingerprint"],
        "; ".join(reasons),
    )


def _published_rows(printed: dict[str, Any], datasets: dict[str, tuple[str, ...]]) -> list[CrossRow]:
    """Rows of the publication, in the columns that hold one of its datasets, or bear its name."""
    titles = printed["sets"]
    columns: dict[str, str] = {}
    for name, inside in datasets.items():
        named = [key for key, title in titles.items() if name.casefold() == title.casefold()]
        match = named or [key for key in titles if inside == (key,)]
        columns |= {name: match[0]} if match else {}
    if not columns:
        return []
    return [
        CrossRow(
            row["name"],
            PUBLISHED,
            {
                name: CrossCell(dict(zip(SHOWN, (value / 100 for value in row[key]), strict=True)))
                for name, key in columns.items()
                if key in row
            },
        )
        for row in printed["rows"]
    ]


def _notes(rows: Sequence[CrossRow], level: str, bootstrap: int) -> list[str]:
    """Of our rows: what is averaged, qualities of each set, what makes a figure doubtful."""
    notes = [f"ours: {level} level; mean over the qualities of a set, all samples of a quality pooled"]
    if bootstrap:
        notes.append(f"below ours: 95 % interval, {bootstrap} draws of recordings")
    seen: dict[str, CrossCell] = {}
    for row in rows:
        for name, cell in row.cells.items():
            seen.setdefault(name, cell)
            if cell.trained_on:
                notes.append(f"{row.name} was trained on the shard set of {name}")
            if cell.reason:
                notes.append(f"{row.name} on {name}: {cell.reason}")
    for name, cell in seen.items():
        share = percent(cell.fake / (cell.real + cell.fake), 1) if cell.real + cell.fake else "-"
        only = " only" if len(cell.qualities) == 1 else ""
        notes.append(f"{name}: {', '.join(cell.qualities)}{only}; share of fakes {share} %, the ACC of always-fake")
    return notes
