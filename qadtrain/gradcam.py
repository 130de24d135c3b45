"""Grad-CAM panels: where detectors look at the same face at each quality (QAD supplementary, Figs. 7 and 8)."""

import difflib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qadprep.errors import UserError
from qadprep.progress import progress_bar
from qadprep.shardset import ShardSet
from qadtrain.data import open_split
from qadtrain.device import choose_device
from qadtrain.evaluate import fake_probability
from qadtrain.forward import batch_logits
from qadtrain.gradcam_facts import gradcam_keys, gradcam_table, run_facts, tuple_facts
from qadtrain.gradcam_maps import HeatMaps, check_options
from qadtrain.gradcam_panels import Cell, panel, png, sheet_of
from qadtrain.gradcam_pick import PICKS, Rows, check_pick, choose, pick_scores, spread
from qadtrain.gradcam_runs import Detector, check_layers, load_detectors, read_tuples, tuples_per_pass
from qadtrain.safe_files import write_atomically

__all__ = ["gradcam", "gradcam_keys", "gradcam_table"]

FOOTER = "each map has its own scale: colours do not compare"


def gradcam(
    runs: Sequence[Path],
    shards_path: Path,
    *,
    out_dir: Path,
    split: str = "test",
    keys: Sequence[str] = (),
    pick: str = "disagreement",
    count: int = 6,
    limit: int | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    target: str = "fake",
    checkpoint: str = "best",
    keep_maps: bool = False,
    device: str = "auto",
    num_workers: int = -1,
    batch_tuples: int | None = None,
) -> dict[str, Any]:
    """Draw the heat maps of runs for chosen tuples: ``NN-<key>.png`` each, ``sheet.png`` and ``gradcam.json``.

    Args:
        runs: folders written by :func:`qadtrain.fit.fit`; their inputs may have different sizes.
        shards_path: any shard set.
        out_dir: folder of the results; files of the same names are replaced.
        split: its split.
        keys: tuples to show; empty = pick them.
        pick: a rule of :func:`qadtrain.gradcam_pick.pick_scores`, applied to all runs together.
        count: tuples to pick at most, spread over methods and videos.
        limit: pick among so many tuples, spread evenly; None = all of the split.
        method, layer, target: as of :class:`qadtrain.gradcam_maps.HeatMaps`.
        checkpoint: ``best`` or ``last``.
        keep_maps: also write the maps, ``NN-<key>.npz`` with an array float32 (S, S) for each ``<run>/<quality>``.
        batch_tuples: tuples per pass.

    Returns:
        The contents of gradcam.json; ``damaged`` names tuples that could not be read, and shown ones without a finite
        score.

    Raises:
        UserError: wrong use, an unknown key, or no tuple that the rule applies to.
    """
    check_options(method, target)
    if pick not in PICKS:
        raise UserError(f"--pick: got {pick!r}, expected one of {', '.join(PICKS)}")
    for name, number in (("--count", count), ("--limit", limit)):
        if number is not None and number < 1:
            raise UserError(f"{name}: got {number}, expected tuples from 1")
    where = choose_device(device)
    detectors = load_detectors(runs, checkpoint, where)
    damaged: dict[int, str] = {}
    reading = {"num_workers": num_workers, "damaged": damaged}
    options = {"method": method, "layer": layer, "target": target}
    with open_split(shards_path, split) as shards:
        if not keys:
            check_pick(pick, len(shards.qualities))
        check_layers(detectors, shards, where, options)
        rows = Rows.of(shards.table)
        scores: np.ndarray | None = None
        considered = None
        if keys:
            chosen = _positions(shards, keys)
        else:
            among = spread(rows, limit) if limit and limit < len(shards) else list(range(len(shards)))
            considered = len(among)
            scores = _scores(detectors, shards, rows, among, where, pick, batch_tuples, reading)
            chosen = choose(scores, rows, count)
            if not chosen:
                raise UserError(_nothing(pick, considered, shards, damaged))
        images = _pictures(shards, chosen, where, damaged)
        found = {each.name: _maps(each, shards, images, where, options, batch_tuples) for each in detectors if images}
        damaged |= _not_finite(shards, images, found)
        chosen = [at for at in chosen if at not in damaged]
        if not chosen:
            raise UserError(f"{shards_path}: none of the chosen tuples can be shown: {next(iter(damaged.values()))}")
        out_dir = Path(out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        tuples, panels = [], []
        for number, at in enumerate(chosen, start=1):
            name = f"{number:02d}-{re.sub('[^A-Za-z0-9_]+', '-', rows.key[at])}"
            entry = tuple_facts(shards, rows, at, {run: maps[at] for run, (_, maps) in found.items()}, target)
            if scores is not None:
                entry["pick_score"] = float(scores[at])
            pictures = dict(zip(shards.qualities, images[at], strict=True))
            panels.append(_panel(entry, pictures, {run: (layers, maps[at]) for run, (layers, maps) in found.items()}))
            write_atomically(out_dir / f"{name}.png", png(panels[-1]))
            files = {"picture": f"{name}.png"}
            if keep_maps:
                files["maps"] = f"{name}.npz"
                write_atomically(out_dir / files["maps"], _npz(shards, {r: m[at][0] for r, (_, m) in found.items()}))
            tuples.append(entry | files)
        contents = {
            "split": split,
            "method": method,
            "target": target,
            "pick": None if keys else pick,
            "picked_among": considered,
            "wanted": len(set(keys)) or count,
            "qualities": list(shards.qualities),
            "shards": {"fingerprint": shards.fingerprint},
            "runs": [run_facts(each, shards, found[each.name][0]) for each in detectors],
            "tuples": tuples,
            "sheet": "sheet.png",
            "damaged": [damaged[at] for at in sorted(damaged)],
        }
    write_atomically(out_dir / "sheet.png", png(sheet_of(panels)))
    write_atomically(out_dir / "gradcam.json", (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())
    return contents


def _positions(shards: ShardSet, keys: Sequence[str]) -> list[int]:
    """Positions of the keys, each once, in their order."""
    found = []
    for key in dict.fromkeys(keys):
        if key not in shards:
            near = difflib.get_close_matches(key, shards.table["key"].to_pylist(), n=1, cutoff=0.0)
            raise UserError(
                f"--key: got {key!r}, which is not in split {shards.split!r} of {shards.path}; near it: {near[0]}"
            )
        found.append(shards.position_of(key))
    return found


def _scores(
    detectors: Sequence[Detector],
    shards: ShardSet,
    rows: Rows,
    among: Sequence[int],
    device: torch.device,
    pick: str,
    batch_tuples: int | None,
    reading: Mapping[str, Any],
) -> np.ndarray:
    """How much each tuple of the split is wanted; -inf outside ``among`` and for damaged ones."""
    prob = np.full((len(detectors), len(shards), len(shards.qualities)), np.nan)
    for number, detector in enumerate(detectors):
        with progress_bar(f"scores of {detector.name}", len(among), "tuples") as advance, torch.inference_mode():
            for places, images in read_tuples(
                shards,
                among,
                batch_tuples=tuples_per_pass(detector, batch_tuples),
                device=device,
                advance=lambda done, say=advance: say(done, ""),
                **reading,
            ):
                logits = batch_logits(detector.model, images, detector.config, shards.size_px, device)
                prob[number, places] = fake_probability(logits)
    return pick_scores(prob, rows.label, pick)


def _nothing(pick: str, considered: int, shards: ShardSet, damaged: Mapping[int, str]) -> str:
    if len(damaged) == considered:
        return f"{shards.path}: none of the {considered} tuples can be read: {next(iter(damaged.values()))}"
    if pick != "wrong-at-worst":
        return f"--pick: got {pick}, but the networks' scores are not finite for any of {considered} tuples"
    rule = f"right at {shards.qualities[0]} and wrong at {shards.qualities[-1]}"
    return f"--pick: got {pick}, but none of {considered} tuples is {rule}; use --pick disagreement or --pick hardest"


def _pictures(
    shards: ShardSet, chosen: Sequence[int], device: torch.device, damaged: dict[int, str]
) -> dict[int, np.ndarray]:
    """Position -> uint8 (M, H, W, 3) RGB, of the readable ones."""
    found = {}
    for places, images in read_tuples(
        shards, chosen, batch_tuples=len(chosen), device=device, num_workers=0, damaged=damaged
    ):
        found |= dict(zip(places.tolist(), images.numpy(), strict=True))
    return found


def _not_finite(shards: ShardSet, places: Iterable[int], found: Mapping[str, Any]) -> dict[int, str]:
    """Position -> message of the tuples to which a run gives no score: they are neither right nor wrong."""
    lost = {}
    for at in places:
        runs = [run for run, (_, maps) in found.items() if not np.isfinite(maps[at][1]).all()]
        if runs:
            lost[at] = f"{shards.where(at)}: the logits of {', '.join(runs)} are not finite"
    return lost


def _maps(
    detector: Detector,
    shards: ShardSet,
    images: Mapping[int, np.ndarray],
    device: torch.device,
    options: Mapping[str, Any],
    batch_tuples: int | None,
) -> tuple[list[str], dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Layers, and position -> maps float32 (M, S, S) and logits float64 (M, 2)."""
    size, places = tuples_per_pass(detector, batch_tuples), list(images)
    heat: HeatMaps | None = None
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    try:
        with progress_bar(f"heat maps of {detector.name}", len(places), "tuples") as advance:
            for first in range(0, len(places), size):
                part = places[first : first + size]
                pictures = torch.from_numpy(np.stack([images[at] for at in part]))
                inputs = detector.network_input(pictures, shards, device)
                heat = heat or HeatMaps(detector.model, detector.config.model.name, inputs, **options)
                maps, logits = heat(inputs)
                maps, logits = maps.reshape(len(part), -1, *maps.shape[1:]), logits.reshape(len(part), -1, 2)
                found |= {at: (maps[number], logits[number]) for number, at in enumerate(part)}
                advance(len(part), "")
    finally:
        if heat is not None:
            heat.close()
    return list(heat.layers), found


def _panel(entry: Mapping[str, Any], pictures: Mapping[str, np.ndarray], answers: Mapping[str, Any]) -> Image.Image:
    rows = {}
    for run, (layers, (maps, _)) in answers.items():
        cells = {}
        for quality, heat in zip(pictures, maps, strict=True):
            facts = entry["runs"][run]["qualities"][quality]
            text = f"{facts['prob_fake']:.3f}{'' if facts['right'] else ', wrong'}"
            if facts["constant_map"]:
                # Without "fake": the next column begins where the picture ends.
                cells[quality] = Cell(None, f"{text}, no map", not facts["right"])
            else:
                cells[quality] = Cell(heat, f"fake {text}", not facts["right"])
        rows[f"{run} ({', '.join(layers)})"] = cells
    return panel((entry["key"], f"{entry['method']}, {entry['label']}"), pictures, rows, FOOTER)


def _npz(shards: ShardSet, maps: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    arrays = {
        f"{run}/{quality}": own[number] for run, own in maps.items() for number, quality in enumerate(shards.qualities)
    }
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
