"""Do the heat maps of a tuple's qualities agree? As figures with intervals over a split."""

import csv
import io
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qadprep.errors import UserError
from qadprep.progress import progress_bar
from qadprep.shardset import ShardSet
from qadtrain.data import open_split
from qadtrain.device import choose_device
from qadtrain.gradcam_maps import HeatMaps, check_options, is_constant
from qadtrain.gradcam_pick import Rows, spread
from qadtrain.gradcam_runs import Detector, check_layers, load_detectors, read_tuples, tuples_per_pass
from qadtrain.safe_files import write_atomically

AREA = 0.2
MEASURES = ("correlation", "iou")
CONTROL = "control"
ALL = "all"
_RESAMPLES, _TOGETHER, _SEED, _CONFIDENCE = 2000, 100, 0, 0.95
_RECENT = 8  # maps kept to find one of another recording


def agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Pearson correlation, and intersection over union of the top areas, of two maps.

    Args:
        first, second: float (H, W), of one size.

    Returns:
        Correlation -1..1 and IoU 0..1; both NaN where a map is constant.
    """
    maps = np.stack([first, second]).astype(np.float64)
    if is_constant(maps).any():
        return math.nan, math.nan
    areas = [top_area(each) for each in maps]
    union = np.logical_or(*areas).sum()
    return float(np.corrcoef(maps.reshape(2, -1))[0, 1]), float(np.logical_and(*areas).sum() / union)


def top_area(heat: np.ndarray) -> np.ndarray:
    """float (H, W) -> bool (H, W): the top 20 % of the pixels, those equal to the last of them too.

    Only what is above the map's least value: where fewer pixels are warm, they are the area.
    """
    count = max(1, round(AREA * heat.size))
    least = np.partition(heat.ravel(), -count)[-count]
    return (heat >= least) & (heat > heat.min())


def interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean, whole clusters drawn with replacement.

    Args:
        values: float (n,).
        clusters: int (n,), the video of each value.

    Returns:
        Low and high; NaN with fewer than two videos.
    """
    _, place = np.unique(clusters, return_inverse=True)
    counts = np.bincount(place) if len(place) else np.zeros(0)
    if len(counts) < 2:
        return math.nan, math.nan
    sums = np.bincount(place, weights=values)
    rng = np.random.default_rng(_SEED)
    means = []
    for _ in range(_RESAMPLES // _TOGETHER):
        drawn = rng.integers(len(counts), size=(_TOGETHER, len(counts)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def pair_names(qualities: Sequence[str]) -> list[tuple[str, str]]:
    """Every two qualities, the better one first."""
    return list(combinations(qualities, 2))


def summary(values: np.ndarray, rows: Rows, taken: np.ndarray) -> dict[str, dict[str, Any]]:
    """Means with intervals: of all, per label, per method.

    Args:
        values: float (n, 2), correlation and IoU of the tuples; NaN where a map was constant.
        rows: the split.
        taken: int (n,), the tuples' positions in it.

    Returns:
        group -> tuples (compared), left_out (a constant map), videos, and per measure mean, low and high; None where
        there is nothing to take them of.
    """
    labels = rows.label[taken]
    methods = np.array([rows.method[at] for at in taken], dtype=object)
    videos = np.unique([rows.video[at] for at in taken], return_inverse=True)[1] if len(taken) else taken
    several = len({name.partition("/")[0] for name in methods}) > 1
    groups = {ALL: np.ones(len(taken), bool), "all real": labels == 0, "all fake": labels == 1}
    groups |= {name if several else name.partition("/")[2]: methods == name for name in sorted(set(methods))}
    known = np.isfinite(values).all(axis=1)
    cells = {}
    for name, chosen in groups.items():
        used = chosen & known
        cell: dict[str, Any] = {
            "tuples": int(used.sum()),
            "left_out": int((chosen & ~known).sum()),
            "videos": len(np.unique(videos[used])),
        }
        for number, measure in enumerate(MEASURES):
            mean = values[used, number].mean() if used.any() else math.nan
            figures = (mean, *interval(values[used, number], videos[used]))
            cell[measure] = {
                key: float(figure) if math.isfinite(figure) else None
                for key, figure in zip(("mean", "low", "high"), figures, strict=True)
            }
        cells[name] = cell
    return cells


def consistency(
    runs: Sequence[Path],
    shards_path: Path,
    *,
    out_dir: Path,
    split: str = "test",
    limit: int = 200,
    method: str = "gradcam",
    layer: str | None = None,
    target: str = "fake",
    checkpoint: str = "best",
    device: str = "auto",
    num_workers: int = -1,
    batch_tuples: int | None = None,
) -> dict[str, Any]:
    """Measure how far heat maps stay where they are from one quality to the next; writes consistency.json and .csv.

    Every two qualities of a tuple are compared: Pearson correlation of the maps, and intersection over union of their
    top 20 % areas. ``control`` compares a tuple's worst quality with the best quality of another recording's tuple:
    what any two faces share, since crops are aligned.

    Args:
        runs: folders written by :func:`qadtrain.fit.fit`.
        shards_path: any shard set with two qualities or more.
        out_dir: folder of the results.
        split: its split.
        limit: tuples at most, evenly over methods, videos and frames.
        method, layer, target: as of :class:`qadtrain.gradcam_maps.HeatMaps`.
        checkpoint: ``best`` or ``last``.
        batch_tuples: tuples per pass.

    Returns:
        The contents of consistency.json; ``damaged`` names tuples that could not be read.

    Raises:
        UserError: wrong use: see the messages.
    """
    check_options(method, target)
    if limit < 1:
        raise UserError(f"--limit: got {limit}, expected tuples from 1")
    where = choose_device(device)
    detectors = load_detectors(runs, checkpoint, where)
    damaged: dict[int, str] = {}
    with open_split(shards_path, split) as shards:
        if len(shards.qualities) < 2:
            raise UserError(f"{shards_path}: got one quality, {shards.qualities[0]}; consistency compares two or more")
        options = {"method": method, "layer": layer, "target": target}
        check_layers(detectors, shards, where, options)
        rows = Rows.of(shards.table)
        taken = spread(rows, limit)
        found, layers = {}, {}
        for detector in detectors:
            passes = {"batch": tuples_per_pass(detector, batch_tuples), "num_workers": num_workers}
            values, layers[detector.name] = _measure(detector, shards, rows, taken, where, damaged, options, passes)
            found[detector.name] = {
                name: summary(np.array(list(pair.values())).reshape(-1, 2), rows, np.array(list(pair), np.int64))
                for name, pair in values.items()
            }
        contents = {
            "split": split,
            "method": method,
            "target": target,
            "layers": layers,
            "area": AREA,
            "confidence": _CONFIDENCE,
            "shards": {"fingerprint": shards.fingerprint},
            "tuples": len(taken) - len(damaged),
            "of_tuples": len(shards),
            "qualities": list(shards.qualities),
            "control": f"{shards.qualities[0]} of another recording - {shards.qualities[-1]}",
            "runs": found,
            "damaged": list(damaged.values()),
        }
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    write_atomically(
        Path(out_dir) / "consistency.json", (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode()
    )
    write_atomically(Path(out_dir) / "consistency.csv", _csv(found).encode())
    return contents


def _measure(
    detector: Detector,
    shards: ShardSet,
    rows: Rows,
    taken: Sequence[int],
    device: Any,
    damaged: dict[int, str],
    options: dict[str, Any],
    passes: dict[str, int],
) -> tuple[dict[str, dict[int, tuple[float, float]]], list[str]]:
    """Pair of qualities -> row -> correlation and IoU; and the layers looked at."""
    pairs = pair_names(shards.qualities)
    values: dict[str, dict[int, tuple[float, float]]] = {f"{a}-{b}": {} for a, b in pairs} | {CONTROL: {}}
    recent: deque[tuple[str, np.ndarray]] = deque(maxlen=_RECENT)
    heat: HeatMaps | None = None
    wanted = [at for at in taken if at not in damaged]
    try:
        with progress_bar(f"heat maps of {detector.name}", len(wanted), "tuples") as advance:
            batches = read_tuples(
                shards,
                wanted,
                batch_tuples=passes["batch"],
                device=device,
                num_workers=passes["num_workers"],
                damaged=damaged,
                advance=lambda count: advance(count, ""),
            )
            for places, images in batches:
                inputs = detector.network_input(images, shards, device)
                heat = heat or HeatMaps(detector.model, detector.config.model.name, inputs, **options)
                maps = heat(inputs)[0].reshape(len(places), len(shards.qualities), *inputs.shape[2:])
                for row, own in zip(places.tolist(), maps, strict=True):
                    by_quality = dict(zip(shards.qualities, own, strict=True))
                    for a, b in pairs:
                        values[f"{a}-{b}"][row] = agreement(by_quality[a], by_quality[b])
                    other = next((best for name, best in reversed(recent) if name != rows.recording[row]), None)
                    if other is not None:
                        values[CONTROL][row] = agreement(other, own[-1])
                    recent.append((rows.recording[row], own[0]))
    finally:
        if heat is not None:
            heat.close()
    if heat is None:
        raise UserError(f"{shards.path}: none of the {len(taken)} tuples can be read: {next(iter(damaged.values()))}")
    return values, list(heat.layers)


def consistency_tables(contents: Mapping[str, Any]) -> list[Table]:
    """A rich table a run: a row a pair and group, means with their intervals."""
    tables = []
    for run, pairs in contents["runs"].items():
        layers = ", ".join(contents["layers"][run])
        table = Table(
            title=f"{escape(run)}: heat maps between qualities ({contents['method']}, {layers})",
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            caption=f"95 % intervals over videos; control = {contents['control']}; left out: a constant map",
        )
        for name in ("pair", "", "correlation", "IoU of top 20 %"):
            table.add_column(name, overflow="fold")
        for name in ("tuples", "videos", "left out"):
            table.add_column(name, justify="right")
        for pair, groups in pairs.items():
            for number, (group, cell) in enumerate(groups.items()):
                figures = (_text(cell[measure]) for measure in MEASURES)
                counts = (str(cell[name]) for name in ("tuples", "videos", "left_out"))
                table.add_row("" if number else pair, group, *figures, *counts, end_section=number == len(groups) - 1)
        tables.append(table)
    return tables


def _text(figure: Mapping[str, float | None]) -> str:
    if figure["mean"] is None:
        return "-"
    ends = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['mean']:.3f}{ends}"


def _csv(runs: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ends = [f"{measure}_{end}" for measure in MEASURES for end in ("mean", "low", "high")]
    writer.writerow(["run", "pair", "group", "tuples", "videos", "left_out", *ends])
    for run, pairs in runs.items():
        for pair, groups in pairs.items():
            for group, cell in groups.items():
                figures = ["" if v is None else v for measure in MEASURES for v in cell[measure].values()]
                writer.writerow([run, pair, group, cell["tuples"], cell["videos"], cell["left_out"], *figures])
    return buffer.getvalue()
