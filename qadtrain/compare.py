"""Two detectors on the same tuples: differences, their intervals, and whether chance explains them."""

from collections.abc import Callable, Iterator, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qadprep.errors import UserError
from qadtrain.compare_tables import Comparison, Difference, comparison_csv, comparison_tables
from qadtrain.intervals import bootstrap_p, delong, interval, resample
from qadtrain.kept import Scored, common_scores, kept_or_made
from qadtrain.metrics import ALL_METRICS, METRICS
from qadtrain.score_files import fake_margin, fake_probability
from qadtrain.summary import (
    AVERAGE,
    LEVELS,
    PROBABILITY,
    Report,
    SplitRows,
    check_aggregate,
    check_draws,
    summarise,
    with_averages,
)

__all__ = ["Comparison", "Difference", "compare_runs_on", "compare_scores", "comparison_csv", "comparison_tables"]


def compare_runs_on(
    run_a: Path,
    run_b: Path,
    shards_path: Path | str | None = None,
    *,
    split: str = "test",
    level: str = "both",
    checkpoint: str = "best",
    metrics: Sequence[str] = METRICS,
    aggregate: str = PROBABILITY,
    bootstrap: int = 1000,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Comparison:
    """Paired comparison of two runs on the same split of the same shard set.

    Args:
        run_a, run_b: run folders.
        shards_path: the set; scores that a run lacks are made now. None: the one set that both are scored on already.
        level: ``frame``, ``video`` or ``both``.
        metrics: of ``ALL_METRICS``.
        aggregate: how a video's frames become one score.
        bootstrap: paired draws of recordings, at least 100.
        seed: of the draws.
        say: takes a line that says where the scores are from.
        options: of :func:`qadtrain.evaluate.evaluate`: device, num_workers, batch_tuples, skip_bad, progress.

    Raises:
        UserError: no run, no common set, sets or splits that differ, too few draws, unknown level or metric.
    """
    if level not in (*LEVELS, "both"):
        raise UserError(f"--level: got {level!r}, expected frame, video or both")
    if unknown := [name for name in metrics or [""] if name not in ALL_METRICS]:
        raise UserError(f"--metrics: got {unknown[0]!r}, expected some of {', '.join(ALL_METRICS)}")
    check_draws(bootstrap, least=100)
    check_aggregate(aggregate)
    if shards_path is None:
        a, b = common_scores([run_a, run_b], split, checkpoint)
    else:
        how = {"split": split, "checkpoint": checkpoint, "say": say, "aggregate": aggregate, **options}
        a, b = (kept_or_made(run, shards_path, **how) for run in (run_a, run_b))
    names = _names(run_a, run_b)
    return compare_scores(
        a,
        b,
        names=names,
        levels=LEVELS if level == "both" else (level,),
        metrics=metrics,
        aggregate=aggregate,
        bootstrap=bootstrap,
        seed=seed,
    )


def compare_scores(
    a: Scored,
    b: Scored,
    *,
    names: tuple[str, str],
    levels: Sequence[str] = LEVELS,
    metrics: Sequence[str] = METRICS,
    aggregate: str = PROBABILITY,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """As :func:`compare_runs_on`, of scores already read.

    Raises:
        UserError: another shard set or split, or no score in common.
    """
    for what, of_a, of_b in (
        ("shard set", a.fingerprint[:12], b.fingerprint[:12]),
        ("split", a.contents["split"], b.contents["split"]),
    ):
        if of_a != of_b:
            raise UserError(
                f"cannot compare: {names[0]} was scored on {what} {of_a}, {names[1]} on {of_b}; score both on one"
            )
    index, qualities, logits, counts = _joined(a, b)
    compared, only_a, only_b, neither = counts
    if not compared:
        raise UserError(f"cannot compare: {names[0]} and {names[1]} have no score of the same tuple and quality")
    rows, full = SplitRows(index), not set(metrics) <= set(METRICS)
    reports = [
        summarise(fake_probability(each), index, qualities, margin=fake_margin(each), aggregate=aggregate, full=full)
        for each in logits
    ]
    found: list[Difference] = []
    for level in levels:
        probs = [fake_probability(each) for each in logits]
        if level == "video":
            probs = [rows.of_videos(fake_margin(each), p, aggregate) for each, p in zip(logits, probs, strict=True)]
        found += _differences(level, rows, reports, probs, qualities, metrics, bootstrap, seed)
    notes = [f"p values are not corrected for the {len(found)} comparisons made"]
    if only_a or only_b:
        notes.append(f"scored by one run only, and left out: {only_a} of {names[0]}, {only_b} of {names[1]}")
    if neither:
        notes.append(f"{neither} scores are missing in both runs")
    for field in ("device", "precision"):
        values = a.contents.get(field), b.contents.get(field)
        if values[0] != values[1]:
            notes.append(f"scored with different {field}: {values[0]} and {values[1]}")
    return Comparison(
        *names, a.fingerprint, a.contents["split"], aggregate, bootstrap, seed, *counts, tuple(found), tuple(notes)
    )


def _joined(
    a: Scored, b: Scored
) -> tuple[pa.Table, tuple[str, ...], tuple[np.ndarray, np.ndarray], tuple[int, int, int, int]]:
    """Index, qualities and logits of the tuples that both hold, and how many scores both, A, B or none has.

    Joined by key and quality. A score that only one run has is NaN for both, so that every figure is paired.
    """
    keys = [np.array(each.scores.index["key"].to_pylist(), dtype=object).astype(str) for each in (a, b)]
    for each, its in zip((a, b), keys, strict=True):
        if len(np.unique(its)) < len(its):
            raise UserError(f"{each.folder}: a key stands twice in its scores; check the set with `qadprep verify`")
    _, in_a, in_b = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    order = np.argsort(in_a)
    in_a, in_b = in_a[order], in_b[order]
    qualities = tuple(quality for quality in a.scores.qualities if quality in b.scores.qualities)
    columns = [[each.scores.qualities.index(quality) for quality in qualities] for each in (a, b)]
    has = [np.isfinite(each.scores.logits).all(axis=2) for each in (a, b)]
    both_a, both_b = has[0][in_a][:, columns[0]], has[1][in_b][:, columns[1]]
    both = both_a & both_b
    logits = []
    for each, rows, chosen in ((a, in_a, columns[0]), (b, in_b, columns[1])):
        values = each.scores.logits[rows][:, chosen].copy()
        values[~both] = np.nan
        logits.append(values)
    counts = int(both.sum()), int(has[0].sum() - both.sum()), int(has[1].sum() - both.sum())
    neither = int((~both_a & ~both_b).sum())
    return a.scores.index.take(pa.array(in_a)), qualities, (logits[0], logits[1]), (*counts, neither)


def _differences(
    level: str,
    rows: SplitRows,
    reports: Sequence[Report],
    probs: Sequence[np.ndarray],
    qualities: tuple[str, ...],
    metrics: Sequence[str],
    draws: int,
    seed: int,
) -> Iterator[Difference]:
    samples, cells = rows.samples(level), rows.cells()
    # The same seed and strata: draw number n holds the same videos for both.
    drawn = [with_averages(resample(prob, samples, cells, draws=draws, seed=seed)) for prob in probs]
    for number, quality in enumerate((*qualities, AVERAGE)):
        for name in reports[0].cells[level][quality]:
            for metric in metrics:
                a, b = (getattr(report.cells[level][quality][name], metric) for report in reports)
                column = ALL_METRICS.index(metric)
                moved = drawn[1][name][number][:, column] - drawn[0][name][number][:, column]
                low, high = (float(end) for end in interval(moved))
                exact = nan
                if level == "video" and metric == "auc" and quality != AVERAGE and name in cells:
                    members = np.isin(samples.strata[samples.units], [*cells[name].real, *cells[name].fake])
                    members &= np.isfinite(probs[0][:, number])
                    exact = delong(*(prob[members, number] for prob in probs), samples.labels[members]).p
                p = nan if isnan(a) or isnan(b) else bootstrap_p(moved)
                yield Difference(level, quality, name, metric, a, b, low, high, p, exact)


def _names(run_a: Path, run_b: Path) -> tuple[str, str]:
    """Names of the folders; whole paths where those are the same."""
    names = Path(run_a).resolve().name, Path(run_b).resolve().name
    return names if names[0] != names[1] else (str(run_a), str(run_b))
