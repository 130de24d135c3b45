"""How sure a figure is: bootstrap over recordings for every metric, and DeLong's test for AUC.

The frames of a video are no independent samples, nor are an original and its manipulations: they show one recording.
So recordings are drawn, not frames. A draw gives each video a weight (how often its recording was drawn), and what a
metric needs is linear in the weights: a histogram of the scores per video, and sums per video. All draws of a cell are
therefore a few products of matrices; no score is copied or sorted again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from qadtrain.metrics import ALL_METRICS, ECE_BINS, EER_TIE, PARTIAL_FPR, TPR_AT_FPR

CONFIDENCE = 0.95
MOST_THRESHOLDS = 1024
_DRAWS_AT_ONCE = 64  # histograms of so many draws stay in the processor's cache
# Columns of the sums of a video: samples, correct ones, squared error, then samples and probability of each bin of the
# calibration error. torchmetrics gives the probability 1 a bin of its own.
_BINS = ECE_BINS + 1
_SAMPLES, _CORRECT, _SQUARES = 0, 1, 2


@dataclass(frozen=True)
class Samples:
    """What is scored at one level: a row for each frame, or for each video.

    Attributes:
        labels: int64 (n,), 1 = fake.
        units: int64 (n,), number of the video (of one class) of each.
        strata: int64 (units,), number of the stratum of each unit: those of one dataset, method and class.
        recordings: int64 (units,), number of the recording of each unit, what is drawn; None: each unit is its own.
    """

    labels: np.ndarray
    units: np.ndarray
    strata: np.ndarray
    recordings: np.ndarray | None = None


@dataclass(frozen=True)
class Cell:
    """Strata of a cell's real and fake videos."""

    real: tuple[int, ...]
    fake: tuple[int, ...]


def resample(
    prob: np.ndarray, samples: Samples, cells: Mapping[str, Cell], *, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Every metric of every cell in every draw of recordings.

    The draws depend on the seed and on which recording has what, not on scores: two detectors scored on the same
    samples see the same draws, so that differences of their results are paired ones.

    Args:
        prob: float64 (n, Q), fake probabilities at Q qualities; NaN = no score, left out.
        samples: of the n rows.
        cells: name -> strata that are scored together.
        draws: number of draws.
        seed: of the draws.

    Returns:
        name -> float64 (Q, draws, metrics of ``ALL_METRICS``); NaN where a draw has one class alone. All are
        NaN where a class of the cell would be the same in every draw: it is of one recording. Up to 1,024
        distinct scores the metrics of a draw are exact; beyond, the curves have 1,024 thresholds at quantiles of the
        real and of the fake scores.
    """
    recordings, kinds = drawn_together(samples)
    members = {int(s): np.flatnonzero(samples.strata == s) for s in np.unique(samples.strata)}
    qualities = [_Counts(prob[:, q], samples, members) for q in range(prob.shape[1])]
    moving = np.bincount(kinds)[kinds[recordings]] > 1
    varied = {
        name: cell
        for name, cell in cells.items()
        if all(moving[np.isin(samples.strata, strata)].any() for strata in (cell.real, cell.fake) if strata)
    }
    results = {name: np.full((len(qualities), draws, len(ALL_METRICS)), np.nan) for name in cells}
    for first, times in video_weights(kinds, draws, seed):
        weights = {s: times[:, recordings[those]] for s, those in members.items()}
        rows = slice(first, first + len(times))
        for q, counts in enumerate(qualities):
            drawn = counts.drawn(weights)
            for name, cell in varied.items():
                results[name][q, rows] = _metrics(*drawn.of(cell.real), *drawn.of(cell.fake))
    return results


def drawn_together(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn, and out of what: the recording of each unit, and of each recording the number of its kind.

    Recordings with units in the same strata are of one kind. Of each kind as many are drawn as there are, so that a
    draw has both classes and every method keeps its share. Those that are alone of their kind are drawn as one more.
    """
    if samples.recordings is None or not len(samples.strata):
        return np.arange(len(samples.strata)), samples.strata
    has = np.zeros((samples.recordings.max() + 1, samples.strata.max() + 1), bool)
    has[samples.recordings, samples.strata] = True
    _, kinds, sizes = np.unique(has, axis=0, return_inverse=True, return_counts=True)
    kinds = kinds.reshape(-1)
    return samples.recordings, np.where(sizes[kinds] > 1, kinds, len(sizes))


def video_weights(strata: np.ndarray, draws: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Draws with replacement, as many in each stratum as it has.

    Yields:
        Number of the first draw, and float64 (draws at once, n): how often each of the n is in.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == number) for number in np.unique(strata)]
    for first in range(0, draws, _DRAWS_AT_ONCE):
        times = np.zeros((min(_DRAWS_AT_ONCE, draws - first), len(strata)))
        for those in members:
            times[:, those] = rng.multinomial(len(those), np.full(len(those), 1 / len(those)), size=len(times))
        yield first, times


def interval(values: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the central 95 % of draws along an axis; NaN where a draw in twenty or more has no value."""
    tail = 100 * (1 - CONFIDENCE) / 2
    missing = np.isnan(values).mean(axis=axis) > 1 - CONFIDENCE
    filled = np.where(np.expand_dims(missing, axis), 0.0, values)
    low, high = np.nanpercentile(filled, [tail, 100 - tail], axis=axis) if filled.size else (missing * np.nan,) * 2
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of paired draws against no difference: twice the share on the smaller side of zero.

    One is added to both counts, so that it is never 0: with B draws the least is 2 / (B + 1). NaN draws are left out.
    """
    found = differences[~np.isnan(differences)]
    if not len(found):
        return float("nan")
    side = min((found <= 0).sum(), (found >= 0).sum())
    return float(min(1.0, 2 * (side + 1) / (len(found) + 1)))


@dataclass(frozen=True)
class DeLong:
    """Two detectors on the same samples: AUCs, standard error of their difference, z and two-sided p."""

    auc_a: float
    auc_b: float
    error: float
    z: float
    p: float


def delong(scores_a: np.ndarray, scores_b: np.ndarray, labels: np.ndarray) -> DeLong:
    """DeLong's test of two correlated AUCs, by midranks in O(n log n).

    DeLong, DeLong & Clarke-Pearson 1988; the ranks are those of Sun & Xu, "Fast Implementation of DeLong's Algorithm",
    IEEE Signal Processing Letters 2014. It holds for independent samples: videos, not frames.

    Args:
        scores_a, scores_b: float64 (n,), higher = more fake.
        labels: int (n,), 1 = fake.

    Returns:
        p is 1 where both rank the classes alike. It is NaN with fewer than two samples of a class, and where the AUCs
        differ but no variance can be seen (a perfect ranking against a constant score): there is no test of that.
    """
    fake = labels == 1
    m, n = int(fake.sum()), int((~fake).sum())
    if m < 2 or n < 2:
        return DeLong(*[float("nan")] * 5)
    both = [_placements(np.asarray(scores, np.float64), fake) for scores in (scores_a, scores_b)]
    auc_a, auc_b = (float(of_fakes.mean()) for of_fakes, _ in both)
    of_fakes, of_reals = both[0][0] - both[1][0], both[0][1] - both[1][1]
    error = float(np.sqrt(of_fakes.var(ddof=1) / m + of_reals.var(ddof=1) / n))
    difference = auc_a - auc_b
    if error == 0:
        z, p = (0.0, 1.0) if abs(difference) < 1e-12 else (float("nan"),) * 2
        return DeLong(auc_a, auc_b, 0.0, z, p)
    z = difference / error
    return DeLong(auc_a, auc_b, error, z, float(2 * stats.norm.sf(abs(z))))


def _placements(scores: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each fake the share of reals below it, of each real the share of fakes above it; a tie counts one half."""
    among_all = stats.rankdata(scores)
    reals_below = among_all[fake] - stats.rankdata(scores[fake])
    fakes_below = among_all[~fake] - stats.rankdata(scores[~fake])
    return reals_below / (~fake).sum(), 1 - fakes_below / fake.sum()


@dataclass(frozen=True)
class _Drawn:
    """What the draws give of each stratum: histograms (thresholds, b), highest score first, and sums (b, columns)."""

    histograms: dict[int, np.ndarray]
    sums: dict[int, np.ndarray]

    def of(self, strata: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Cumulated histogram and sums of several strata together."""
        if not strata:
            return np.zeros((0, 0)), np.zeros((0, 0))
        return sum(self.histograms[s] for s in strata), sum(self.sums[s] for s in strata)


class _Counts:
    """Of one quality: the scores of each video as a histogram, and its sums."""

    def __init__(self, prob: np.ndarray, samples: Samples, members: Mapping[int, np.ndarray]) -> None:
        scored = np.isfinite(prob)
        prob, labels, units = prob[scored], samples.labels[scored], samples.units[scored]
        edges = thresholds(prob, labels)
        # Highest first, so that a running sum counts what lies at or above a threshold.
        bins = len(edges) - np.searchsorted(edges, prob, side="right")
        calibration = np.searchsorted(np.linspace(0, 1, ECE_BINS + 1), prob, side="right") - 1
        sums = np.zeros((len(samples.strata), 3 + 2 * _BINS))
        for column, values in (
            (_SAMPLES, np.ones(len(prob))),
            (_CORRECT, ((prob > 0.5) == labels).astype(float)),
            (_SQUARES, (prob - labels) ** 2),
        ):
            sums[:, column] = np.bincount(units, weights=values, minlength=len(samples.strata))
        np.add.at(sums, (units, 3 + calibration), 1)
        np.add.at(sums, (units, 3 + _BINS + calibration), prob)
        histogram = sparse.csc_matrix(
            (np.ones(len(prob)), (bins, units)), shape=(max(1, len(edges)), len(samples.strata))
        )
        self._histograms = {s: histogram[:, those].tocsr() for s, those in members.items()}
        self._sums = {s: sums[those] for s, those in members.items()}

    def drawn(self, weights: dict[int, np.ndarray]) -> _Drawn:
        return _Drawn(
            {s: np.cumsum(table @ weights[s].T, axis=0) for s, table in self._histograms.items()},
            {s: weights[s] @ table for s, table in self._sums.items()},
        )


def thresholds(prob: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rising values that part the scores: each distinct one, or 1,024 at most, half of them quantiles of each class."""
    distinct = np.unique(prob)
    if len(distinct) <= MOST_THRESHOLDS:
        return distinct
    classes = [prob[labels == label] for label in (0, 1)]
    classes = [values for values in classes if len(values)]
    each = np.linspace(0, 1, MOST_THRESHOLDS // len(classes))
    # The least score begins the lowest part, so every score has one.
    cuts = [np.quantile(values, each, method="nearest") for values in classes]
    return np.unique(np.concatenate([distinct[:1], *cuts]))


def _metrics(real: np.ndarray, real_sums: np.ndarray, fake: np.ndarray, fake_sums: np.ndarray) -> np.ndarray:
    """(b, metrics) of cumulated histograms (thresholds, b) and sums (b, columns) of each class."""
    there = [sums for sums in (real_sums, fake_sums) if sums.size]
    if not there:
        return np.full(len(ALL_METRICS), np.nan)
    both = sum(there)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {"accuracy": both[:, _CORRECT] / both[:, _SAMPLES], "brier": both[:, _SQUARES] / both[:, _SAMPLES]}
        fakes = fake_sums[:, 3 : 3 + _BINS] if fake_sums.size else 0.0
        # A bin's share times |share of fakes - mean probability|: its count cancels.
        gaps = np.abs(fakes - both[:, 3 + _BINS :])
        values["ece"] = gaps.sum(axis=1) / both[:, _SAMPLES]
        if len(there) == 2:
            each = [sums[:, _CORRECT] / sums[:, _SAMPLES] for sums in there]
            values["balanced_accuracy"] = (each[0] + each[1]) / 2
            values |= _curve_metrics(real, fake)
    undefined = np.full(len(both), np.nan)
    return np.stack([values.get(name, undefined) for name in ALL_METRICS], axis=1)


def _curve_metrics(false_positives: np.ndarray, true_positives: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of ROC curves, one a column; the definitions are those of scikit-learn and torchmetrics."""
    start = np.zeros((1, true_positives.shape[1]))
    fpr = np.concatenate([start, false_positives / false_positives[-1]])
    tpr = np.concatenate([start, true_positives / true_positives[-1]])
    gained = np.diff(tpr, axis=0)
    middle = tpr[1:] - gained / 2
    draw = np.arange(fpr.shape[1])
    crossing = np.minimum((fpr <= PARTIAL_FPR).sum(axis=0), len(fpr) - 1)
    f0, f1, t0, t1 = fpr[crossing - 1, draw], fpr[crossing, draw], tpr[crossing - 1, draw], tpr[crossing, draw]
    area = (np.diff(np.minimum(fpr, PARTIAL_FPR), axis=0) * middle).sum(axis=0)
    # The part in which the rate passes 0.1 ends there, at the height of the straight line.
    at_limit = t0 + (t1 - t0) * (PARTIAL_FPR - f0) / (f1 - f0)
    area -= (PARTIAL_FPR - f0) * (t1 - at_limit) / 2
    least = PARTIAL_FPR**2 / 2
    gaps = np.abs(fpr + tpr - 1)
    nearest = (gaps <= gaps.min(axis=0) + EER_TIE).argmax(axis=0)
    precision = true_positives / np.maximum(true_positives + false_positives, 1e-300)
    values = {
        "auc": (np.diff(fpr, axis=0) * middle).sum(axis=0),
        "partial_auc": (1 + (area - least) / (PARTIAL_FPR - least)) / 2,
        "eer": (fpr[nearest, draw] + 1 - tpr[nearest, draw]) / 2,
        "average_precision": (gained * precision).sum(axis=0),
        "tpr_at_fpr": tpr[(fpr <= TPR_AT_FPR).sum(axis=0) - 1, draw],
    }
    undefined = ~(np.isfinite(fpr[-1]) & np.isfinite(tpr[-1]))
    return {name: np.where(undefined, np.nan, value) for name, value in values.items()}
