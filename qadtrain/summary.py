"""From the scores of a split to figures: each quality x method, frame level and video level, with intervals."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import expit, logit

from qadprep.errors import UserError
from qadtrain.intervals import Cell, Samples, interval, resample
from qadtrain.metrics import ALL_METRICS, Scores, average, binary_scores, full_scores

ORIGINAL, AVERAGE, POOLED = "original", "average", "all"
LEVELS = ("frame", "video")
PROBABILITY, LOGIT = "prob", "logit"

Bounds = Mapping[str, tuple[float, float]]  # metric -> ends of its interval, NaN where there is none


@dataclass(frozen=True)
class Report:
    """Scores by level, quality and method, with the averages; ``cells[level][quality][method]``.

    ``intervals`` has the same keys, then a metric and the two ends; it is empty when none were asked for.
    """

    qualities: tuple[str, ...]
    methods: tuple[str, ...]
    cells: dict[str, dict[str, dict[str, Scores]]]
    intervals: dict[str, dict[str, dict[str, Bounds]]] = field(default_factory=dict)

    def pooled(self, level: str, quality: str) -> Scores:
        """Scores of every sample of a quality together."""
        return self.cells[level][quality][POOLED]

    def bounds(self, level: str, quality: str, method: str) -> Bounds:
        """Intervals of one cell; empty when there are none."""
        return self.intervals.get(level, {}).get(quality, {}).get(method, {})

    def as_json(self) -> dict[str, Any]:
        return {
            level: {
                q: {m: s.as_json() | self._intervals_json(level, q, m) for m, s in row.items()}
                for q, row in rows.items()
            }
            for level, rows in self.cells.items()
        }

    def _intervals_json(self, level: str, quality: str, method: str) -> dict[str, Any]:
        bounds = self.bounds(level, quality, method)
        ends = {metric: None if isnan(low) else [low, high] for metric, (low, high) in bounds.items()}
        return {"interval": ends} if ends else {}


class SplitRows:
    """The rows of a split's index, grouped as its figures need them.

    Args:
        index: columns label, dataset, method, video and face; and group, the recording, without which each video is
            taken for one of its own.

    Attributes:
        columns: name -> (dataset, method) of each manipulation.
    """

    def __init__(self, index: pa.Table) -> None:
        self.labels = index["label"].to_numpy().astype(np.int64)
        self.dataset, self.method, video = (
            np.asarray(index[name].to_pylist(), dtype=object) for name in ("dataset", "method", "video")
        )
        face = [str(number) for number in index["face"].to_pylist()]
        self.columns = method_columns(self.dataset, self.method)
        names = np.array(["\0".join(parts) for parts in zip(self.dataset, self.method, video, face, strict=True)])
        _, self.first, self.group = np.unique(names, return_index=True, return_inverse=True)
        # The units of the bootstrap: a video's real faces, or its fake ones.
        clips = zip(self.dataset, self.method, video, self.labels, strict=True)
        _, first, self.unit = np.unique(
            np.array([f"{d}\0{m}\0{v}\0{y}" for d, m, v, y in clips]), return_index=True, return_inverse=True
        )
        kinds = [(self.dataset[i], self.method[i], int(self.labels[i])) for i in first]
        self._strata = sorted(set(kinds))
        number = {kind: n for n, kind in enumerate(self._strata)}
        self._stratum = np.array([number[kind] for kind in kinds], np.int64)
        self._recording = None
        if "group" in index.column_names:
            groups = index["group"].take(pa.array(first)).to_pylist()
            shown = np.array([f"{self.dataset[i]}\0{group}" for i, group in zip(first, groups, strict=True)])
            self._recording = np.unique(shown, return_inverse=True)[1]

    def samples(self, level: str) -> Samples:
        """Labels, units and recordings of the rows (frame level) or of the videos (video level)."""
        rows = np.arange(len(self.labels)) if level == "frame" else self.first
        return Samples(self.labels[rows], self.unit[rows], self._stratum, self._recording)

    def kinds(self, level: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, datasets and methods of the rows or of the videos."""
        rows = np.arange(len(self.labels)) if level == "frame" else self.first
        return self.labels[rows], self.dataset[rows], self.method[rows]

    def cells(self) -> dict[str, Cell]:
        """What is scored against what, for the bootstrap: each manipulation, then all of a quality."""
        cells = {}
        for name, (dataset, method) in self.columns.items():
            real = tuple(n for n, (d, _, y) in enumerate(self._strata) if d == dataset and y == 0)
            fake = tuple(n for n, (d, m, y) in enumerate(self._strata) if (d, m, y) == (dataset, method, 1))
            cells[name] = Cell(real, fake)
        classes = {y: tuple(n for n, kind in enumerate(self._strata) if kind[2] == y) for y in (0, 1)}
        return {**cells, POOLED: Cell(classes[0], classes[1])}

    def of_videos(self, margin: np.ndarray, prob_fake: np.ndarray, aggregate: str) -> np.ndarray:
        """float64 (tuples, qualities) of frames -> (videos, qualities); frames without a score are left out.

        Args:
            margin: fake minus real logit.
            prob_fake: the same as probability.
            aggregate: as :func:`check_aggregate` takes it.
        """
        count, top = len(self.first), check_aggregate(aggregate)
        source = margin if aggregate == LOGIT else prob_fake
        videos = np.full((count, source.shape[1]), np.nan)
        for q in range(source.shape[1]):
            rows = np.flatnonzero(np.isfinite(source[:, q]))
            values, group = source[rows, q], self.group[rows]
            if top:
                order = np.lexsort((-values, group))
                values, group = values[order], group[order]
                starts = np.searchsorted(group, group, side="left")
                kept = np.arange(len(group)) - starts < top
                values, group = values[kept], group[kept]
            frames = np.bincount(group, minlength=count)
            with np.errstate(invalid="ignore"):
                videos[:, q] = np.bincount(group, weights=values, minlength=count) / frames
        return expit(videos) if aggregate == LOGIT else np.clip(videos, 0.0, 1.0)


def check_aggregate(aggregate: str) -> int:
    """How the frames of a video become one score: the K of ``topK``, 0 for ``prob`` and ``logit``.

    ``prob`` is the mean of the fake probabilities, ``logit`` the probability of the mean margin, ``topK`` the mean of
    the K highest fake probabilities (of all where a video has fewer).

    Raises:
        UserError: another name.
    """
    top = re.fullmatch(r"top([1-9]\d{0,5})", aggregate)
    if top is None and aggregate not in (PROBABILITY, LOGIT):
        raise UserError(f"--aggregate: got {aggregate!r}, expected prob, logit, or top and a number such as top5")
    return int(top[1]) if top else 0


def check_draws(draws: int, *, least: int = 0) -> None:
    """Refuse a number of draws whose tails would be no interval: 0 (none) or 100 and more.

    Raises:
        UserError: another number, or fewer than ``least``.
    """
    if draws < max(least, 100) and (draws or least):
        none = "0 for no intervals, or " if not least else ""
        raise UserError(f"--bootstrap: got {draws}, expected {none}{max(least, 100)} draws or more")


def summarise(
    prob_fake: np.ndarray,
    index: pa.Table,
    qualities: tuple[str, ...],
    *,
    margin: np.ndarray | None = None,
    aggregate: str = PROBABILITY,
    full: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
) -> Report:
    """Metrics per level, quality and method.

    Each manipulation is scored against the originals of its own dataset in the same split; ``all`` pools every
    sample of a quality; ``average`` is the plain mean over the methods (in a row) and over the qualities (of a column),
    and its counts are sums over them, so that originals count for each method. Video level takes one score of the
    frames of a video, or of one face where a video has several with labels of their own.

    Args:
        prob_fake: float (tuples, qualities), rows in index order; NaN = without a score: left out and counted.
        index: columns label, dataset, method, video, face and group, see :class:`SplitRows`.
        qualities: names of the columns of ``prob_fake``.
        margin: fake minus real logit, of the same shape; only for ``aggregate="logit"``, where the probability's
            would be coarse near 1.
        aggregate: one score of a video's frames, see :func:`check_aggregate`.
        full: all metrics, not only accuracy, AUC and EER.
        bootstrap: draws of recordings for the intervals; 0 = no intervals.
        seed: of the draws.

    Raises:
        UserError: an unknown ``aggregate``.
    """
    rows = SplitRows(index)
    if margin is None:
        # A probability of 1 or 0 has no finite margin, and would pass for a missing score.
        margin = logit(np.clip(prob_fake, 1e-300, 1 - 2**-53)) if aggregate == LOGIT else prob_fake
    scores = {"frame": prob_fake, "video": rows.of_videos(margin, prob_fake, aggregate)}
    names = [*rows.columns, POOLED, AVERAGE]
    cells: dict[str, dict[str, dict[str, Scores]]] = {level: {} for level in LEVELS}
    intervals: dict[str, dict[str, dict[str, Bounds]]] = {}
    for level, prob in scores.items():
        kinds = rows.kinds(level)
        for number, quality in enumerate(qualities):
            cells[level][quality] = _row(prob[:, number], *kinds, rows.columns, full)
        cells[level][AVERAGE] = {n: average([cells[level][q][n] for q in qualities], full=full) for n in names}
        if bootstrap:
            drawn = resample(prob, rows.samples(level), rows.cells(), draws=bootstrap, seed=seed)
            intervals[level] = _bounds(with_averages(drawn), qualities)
    return Report(tuple(qualities), tuple(rows.columns), cells, intervals)


def with_averages(drawn: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws of the cells -> with ``average`` over the methods, and a last quality that is the mean over the others.

    Args:
        drawn: name, ``all`` among them -> (qualities, draws, metrics).

    Returns:
        name -> (qualities + 1, draws, metrics).
    """
    shape = next(iter(drawn.values())).shape
    methods = [values for name, values in drawn.items() if name != POOLED]
    several = {**drawn, AVERAGE: _mean(np.stack(methods)) if methods else np.full(shape, np.nan)}
    return {name: np.concatenate([values, _mean(values)[None]]) for name, values in several.items()}


def method_columns(dataset: np.ndarray, method: np.ndarray) -> dict[str, tuple[str, str]]:
    """Column name -> (dataset, method) of each manipulation; names carry the dataset when there are several."""
    several = len(set(dataset)) > 1
    pairs = sorted({(d, m) for d, m in zip(dataset, method, strict=True) if m != ORIGINAL})
    return {f"{d}/{m}" if several else m: (d, m) for d, m in pairs}


def _mean(values: np.ndarray) -> np.ndarray:
    """(cells, ..., metrics) -> (..., metrics): mean over the cells in which a metric exists.

    Without even an accuracy a cell could not be drawn, and neither can the mean.
    """
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, values, 0.0).sum(axis=0) / there.sum(axis=0)
    drawn = there[..., ALL_METRICS.index("accuracy")].all(axis=0)
    return np.where(drawn[..., None], mean, np.nan)


def _bounds(drawn: Mapping[str, np.ndarray], qualities: tuple[str, ...]) -> dict[str, dict[str, Bounds]]:
    ends = {name: interval(values, axis=1) for name, values in drawn.items()}
    return {
        quality: {
            name: {metric: (float(low[number, m]), float(high[number, m])) for m, metric in enumerate(ALL_METRICS)}
            for name, (low, high) in ends.items()
        }
        for number, quality in enumerate((*qualities, AVERAGE))
    }


def _row(
    prob: np.ndarray,
    labels: np.ndarray,
    dataset: np.ndarray,
    method: np.ndarray,
    columns: Mapping[str, tuple[str, str]],
    full: bool,
) -> dict[str, Scores]:
    scored, row = full_scores if full else binary_scores, {}
    for name, (its_dataset, its_method) in columns.items():
        chosen = (dataset == its_dataset) & ((method == its_method) | (labels == 0))
        row[name] = scored(prob[chosen], labels[chosen])
    return {**row, POOLED: scored(prob, labels), AVERAGE: average(list(row.values()), full=full)}
