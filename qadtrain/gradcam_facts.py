"""What gradcam.json says of runs and tuples, and its table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qadprep.shardset import ShardSet
from qadtrain.evaluate import fake_probability
from qadtrain.gradcam_consistency import agreement, pair_names
from qadtrain.gradcam_maps import is_constant
from qadtrain.gradcam_pick import Rows
from qadtrain.gradcam_runs import Detector


def tuple_facts(
    shards: ShardSet, rows: Rows, at: int, answers: Mapping[str, tuple[np.ndarray, np.ndarray]], target: str
) -> dict[str, Any]:
    """What gradcam.json says of a tuple.

    Args:
        at: its position in the split.
        answers: run -> maps float32 (M, S, S) and logits float64 (M, 2).
        target: ``fake`` or ``predicted``.
    """
    label, qualities = int(rows.label[at]), shards.qualities
    runs = {}
    for run, (maps, logits) in answers.items():
        prob = fake_probability(logits)
        said = (prob > 0.5).astype(int)
        constant = is_constant(maps)
        by_quality = {
            quality: {
                "prob_fake": float(prob[number]),
                "right": bool(said[number] == label),
                "target": "fake" if target == "fake" or said[number] else "real",
                "constant_map": bool(constant[number]),
            }
            for number, quality in enumerate(qualities)
        }
        place = {quality: number for number, quality in enumerate(qualities)}
        pairs = {}
        for a, b in pair_names(qualities):
            figures = agreement(maps[place[a]], maps[place[b]])
            correlation, iou = (None if np.isnan(figure) else figure for figure in figures)
            pairs[f"{a}-{b}"] = {"correlation": correlation, "iou": iou}
        runs[run] = {"qualities": by_quality, "pairs": pairs}
    dataset, method = rows.method[at].split("/", 1)
    video = rows.video[at].removeprefix(f"{rows.method[at]}/")
    return {
        "key": rows.key[at],
        "label": "fake" if label else "real",
        "dataset": dataset,
        "method": method,
        "video": video,
        "frame": shards.table["frame"][at].as_py(),
        "runs": runs,
    }


def run_facts(detector: Detector, shards: ShardSet, layers: list[str]) -> dict[str, Any]:
    """What gradcam.json says of a run."""
    return {
        "name": detector.name,
        "path": str(detector.path),
        "model": detector.config.model.name,
        "checkpoint": dict(detector.note),
        "layers": layers,
        "input_px": detector.size_px(shards),
        "same_as_trained": detector.trained_on == shards.fingerprint,
    }


def gradcam_table(contents: Mapping[str, Any]) -> Table:
    """A row a tuple and run: the probability of fake at each quality, and how far the maps agree.

    The tuples are numbers here: with their keys the table would not fit 80 columns. :func:`gradcam_keys` tells them.
    """
    pairs = [f"{a}-{b}" for a, b in pair_names(contents["qualities"])]
    title = "probability of fake, IoU of the maps' top 20 %"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "method", "run"):
        table.add_column(name, overflow="fold")
    for name in (*contents["qualities"], *pairs):
        table.add_column(name, justify="right")
    for number, entry in enumerate(contents["tuples"], start=1):
        for place, (run, answer) in enumerate(entry["runs"].items()):
            prob = (f"{one['prob_fake']:.3f}{'' if one['right'] else ' x'}" for one in answer["qualities"].values())
            iou = ("-" if answer["pairs"][p]["iou"] is None else f"{answer['pairs'][p]['iou']:.2f}" for p in pairs)
            head = (str(number), entry["method"]) if place == 0 else ("", "")
            table.add_row(*head, escape(run), *prob, *iou)
    fewer = len(contents["tuples"]) < contents["wanted"]
    table.caption = "x: wrong; -: a constant map" + (
        f"; {len(contents['tuples'])} of {contents['wanted']} wanted were found" if fewer else ""
    )
    return table


def gradcam_keys(contents: Mapping[str, Any]) -> list[str]:
    """Number, key and label of each tuple of the table."""
    return [f"{number}: {entry['key']}, {entry['label']}" for number, entry in enumerate(contents["tuples"], start=1)]
