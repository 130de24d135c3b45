"""Chapters of the page about runs: scores per quality and method, paired comparisons, and other shard sets."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qadprep.report_section import Number, Section
from qadtrain.run_plots import Point, points
from qadtrain.run_results import COMPARE, CROSS, EVAL, Found, Results, remarks_on_weights
from qadtrain.runs import RunInfo

AVERAGE, POOLED = "average", "all"
LEVELS = ("frame", "video")
SHORT = {"auc": "AUC", "accuracy": "ACC", "eer": "EER"}
_MORE = {
    "balanced_accuracy": "balanced ACC",
    "partial_auc": "pAUC, FPR up to 0.1",
    "average_precision": "AP",
    "tpr_at_fpr": "TPR at 1 % FPR",
    "ece": "ECE",
    "brier": "Brier",
}
_OF_A_VIDEO = {"prob": "mean of its frames' probabilities", "logit": "mean of its frames' logit differences"}


def evaluation_chapter(results: Results, runs: Mapping[str, RunInfo]) -> Iterator[Section]:
    """A table for each set, level and metric: a row for each quality and run, a column for each method."""
    groups: dict[tuple[str | int, ...], list[Found]] = {}
    times: Counter[tuple[str, ...]] = Counter()
    for one in results.of(EVAL):
        contents = one.contents
        key = results.careful(one, lambda c=contents: _same_tuples(c), None)
        if key is not None:
            # A run that was scored twice in the same way stands in two tables: in one its rows would be alike.
            groups.setdefault((*key, times[one.run, *key]), []).append(one)
            times[one.run, *key] += 1
    if not groups:
        return
    yield Section(
        "Evaluation",
        "Figures in percent. In brackets: 95 % interval. average: mean over the methods, in the last rows over the "
        "qualities; all: all samples of a quality together.",
        anchor="evaluation",
        chapter=True,
    )
    for number, members in enumerate(groups.values()):
        made = [results.careful(one, lambda one=one: _checked(one), None) for one in members]
        shown = [one for one in made if one is not None]
        if shown:
            suffix = f" on {shown[0].folder.name}" if len(groups) > 1 else ""
            yield from results.careful(
                shown[0], lambda s=shown, n=number, x=suffix: list(_evaluation(s, runs, n, x)), []
            )


def _same_tuples(contents: Mapping[str, Any]) -> tuple[str, ...]:
    """What evaluations in one table have in common: tuples, checkpoint, and how a video gets its score."""
    names = (contents["shards"]["fingerprint"], contents["split"], contents["checkpoint"]["name"])
    return (*names, contents.get("aggregate", "prob"))


def _checked(one: Found) -> Found:
    """The evaluation itself, once every cell that is shown has been looked up in it."""
    for level in LEVELS:
        for quality in (*one.contents["qualities"], AVERAGE):
            for method in (*one.contents["methods"], AVERAGE, POOLED):
                for metric in SHORT:
                    _cell(one.contents["metrics"][level][quality][method], metric)
    return one


def _evaluation(members: Sequence[Found], runs: Mapping[str, RunInfo], number: int, suffix: str) -> Iterator[Section]:
    name, first = members[0].folder.name, members[0].contents
    qualities = list(dict.fromkeys(q for one in members for q in one.contents["qualities"]))
    methods = list(dict.fromkeys(m for one in members for m in one.contents["methods"]))
    drawn = [_auc_points(level, members, runs, qualities, f"auc-{number}-{level}") for level in LEVELS]
    yield Section(f"Scores on {name}", " ".join(_remarks(members, runs)), html="".join(drawn))
    columns = ("quality", "run", *methods, AVERAGE, POOLED)
    for level in LEVELS:
        for metric, short in SHORT.items():
            rows = [
                (quality, one.run, *(_at(one.contents, level, quality, m, metric) for m in (*methods, AVERAGE, POOLED)))
                for quality in (*qualities, AVERAGE)
                for one in members
            ]
            title = f"{short}, {level} level{suffix}"
            yield Section(title, "", columns, rows, folded=metric == "eer")
        more = [name for name in _MORE if name in first["metrics"][level][AVERAGE][POOLED]]
        rows = [
            (quality, one.run, *(_at(one.contents, level, quality, AVERAGE, metric) for metric in more))
            for quality in (*qualities, AVERAGE)
            for one in members
        ]
        title = f"Further metrics, {level} level, mean over the methods{suffix}"
        yield Section(title, "", ("quality", "run", *(_MORE[m] for m in more)), rows if more else [], folded=True)


def _auc_points(level: str, members: Sequence[Found], runs: Iterable[str], qualities: Sequence[str], name: str) -> str:
    """AUC of the average over the methods, a group for each quality."""
    series: dict[str, dict[str, Point]] = {name: {} for name in runs}
    for one in members:
        for quality in (*qualities, AVERAGE):
            scores = one.contents["metrics"][level].get(quality, {}).get(AVERAGE, {})
            if scores.get("auc") is not None:
                low, high = (scores.get("interval") or {}).get("auc") or (scores["auc"], scores["auc"])
                series[one.run][quality] = (100 * scores["auc"], 100 * low, 100 * high)
    caption = f"{level} level, mean over the methods; bars: 95 % interval; dashed: chance"
    return points(
        name, series, (*qualities, AVERAGE), "AUC, percent", f"AUC per quality, {level} level", caption, at=50
    )


def _remarks(members: Sequence[Found], runs: Mapping[str, RunInfo]) -> Iterator[str]:
    first = members[0].contents
    yield f"Split {first['split']}, {first['tuples']:,} tuples at {', '.join(first['qualities'])}."
    yield f"Checkpoint {first['checkpoint']['name']}, shard set {first['shards']['fingerprint'][:12]}."
    how = first.get("aggregate", "prob")
    top = f"mean of its {how.removeprefix('top')} highest probabilities"
    yield f"Score of a video: {_OF_A_VIDEO.get(how, top)}."
    drawn = first.get("bootstrap", {})
    if drawn.get("draws"):
        yield f"Intervals by {drawn['draws']:,} draws of {drawn.get('drawn', 'videos')}."
    scores = first["metrics"]["frame"][first["qualities"][0]][POOLED]
    if scores.get("always_fake") is not None:
        yield f"A detector that calls everything fake has ACC {100 * scores['always_fake']:.1f} over all samples."
    for one in members:
        lost = one.contents.get("not_scored", {})
        if lost.get("damaged") or lost.get("not_finite"):
            yield f"{one.run}: {lost['damaged']} damaged tuples and {lost['not_finite']} scores not finite, left out."
        reasons = {
            cell["reason"]
            for quality in one.contents["qualities"]
            for cell in one.contents["metrics"]["frame"][quality].values()
            if cell.get("reason")
        }
        yield from (f"{one.run}: {reason}." for reason in sorted(reasons))
        if not one.contents["shards"].get("same_as_trained"):
            yield f"{one.run} was trained on another shard set."
        yield from remarks_on_weights(one, runs)


def _at(contents: Mapping[str, Any], level: str, quality: str, method: str, metric: str) -> Number:
    """A cell; a dash where a run has no such quality or method."""
    scores = contents["metrics"][level].get(quality, {}).get(method)
    return Number("-") if scores is None else _cell(scores, metric)


def _cell(scores: Mapping[str, Any], metric: str) -> Number:
    value, ends = scores[metric], (scores.get("interval") or {}).get(metric)
    return figure(value, ends[0] if ends else None, ends[1] if ends else None)


def figure(value: float | None, low: float | None = None, high: float | None = None, *, signed: bool = False) -> Number:
    """A fraction in percent, with the ends of its interval in brackets."""
    if value is None:
        return Number("-")
    sign = "+" if signed else ""
    ends = "" if low is None or high is None else f" ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
    return Number(f"{100 * value:{sign}.2f}{ends}")


def comparison_chapter(results: Results) -> Iterator[Section]:
    """Differences of two runs on the same tuples: the averages open, every cell folded."""
    found = results.of(COMPARE)
    if not found:
        return
    yield Section(
        "Comparison",
        "Differences on the same tuples. Intervals and p by paired draws, not corrected for their number; "
        "p DeLong, among all cells: of the AUC at video level.",
        anchor="comparison",
        chapter=True,
    )
    for one in found:
        yield from results.careful(one, lambda one=one: list(_comparison(one.contents)), [])


def _comparison(contents: Mapping[str, Any]) -> Iterator[Section]:
    first, second = contents["run_a"], contents["run_b"]
    columns = ("level", "quality", "method", "metric", first, second, "difference (95 % interval)", "p", "p DeLong")

    def line(row: Mapping[str, Any]) -> tuple[Any, ...]:
        change = figure(row["difference"], row["low"], row["high"], signed=True)
        chances = (_chance(row[name]) for name in ("p", "p_delong"))
        names = (row["level"], row["quality"], row["method"], SHORT.get(row["metric"], row["metric"]))
        return (*names, figure(row["a"]), figure(row["b"]), change, *chances)

    every = [line(row) for row in contents["rows"]]
    # No test of DeLong is of a mean.
    mean = [line(row)[:-1] for row in contents["rows"] if row["method"] == AVERAGE and row["metric"] in SHORT]
    notes = [f"{contents['compared']:,} scores of split {contents['split']}, {contents['draws']:,} draws."]
    notes += _notes(contents.get("notes", ()))
    title = f"{second} minus {first}"
    yield Section(title, " ".join(notes), columns[:-1], mean, caption="Mean over the methods, percent")
    yield Section(f"{title}, all cells", "", columns, every, folded=True)


def _notes(notes: Sequence[str]) -> list[str]:
    return [f"Notes: {'; '.join(notes)}."] if notes else []


def _chance(value: float | None) -> Number:
    if value is None:
        return Number("-")
    return Number("< 0.001" if value < 0.001 else f"{value:.3f}")


def cross_chapter(results: Results) -> Iterator[Section]:
    """Detectors on several shard sets: published rows first."""
    found = results.of(CROSS)
    if not found:
        return
    yield Section("Other shard sets", anchor="cross", chapter=True)
    for one in found:
        yield from results.careful(one, lambda one=one: [_cross(one)], [])


def _cross(one: Found) -> Section:
    contents = one.contents
    rows = []
    for row in contents["rows"]:
        cells = [
            _cross_cell(row["cells"].get(name), metric) for name in contents["sets"] for metric in ("accuracy", "auc")
        ]
        rows.append((row["name"], row["source"], *cells))
    columns = ("detector", "source", *(f"{name} {SHORT[m]}" for name in contents["sets"] for m in ("accuracy", "auc")))
    text = [f"{contents['level']} level, split {contents['split']}, percent.".capitalize()]
    if contents.get("source"):
        text.append(f"Published rows: {contents['source']}.")
    text += _notes(contents.get("notes", ()))
    text += [f"Failed: {line}." for line in contents.get("failures", ())]
    return Section(f"Detectors on {', '.join(contents['sets'])}", " ".join(text), columns, rows)


def _cross_cell(cell: Mapping[str, Any] | None, metric: str) -> Number:
    if cell is None or cell["values"].get(metric) is None:
        return Number("-")
    ends = cell.get("intervals", {}).get(metric) or (None, None)
    # Published figures are printed with one digit; more would be invented.
    if not cell.get("qualities"):
        return Number(f"{100 * cell['values'][metric]:.1f}")
    return figure(cell["values"][metric], *ends)
