"""Trained runs side by side, and the tuples that are shown to them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.checkpoint import read_run_json
from qadtrain.config import Config
from qadtrain.data import TupleBatch, TupleDataset, collate, make_loader
from qadtrain.evaluate import load_run
from qadtrain.forward import plain_input
from qadtrain.gradcam_maps import HeatMaps
from qadtrain.models import TappedModel
from qadtrain.workers import WorkerBatches

_BATCH_TUPLES = 16


@dataclass(frozen=True)
class Detector:
    """A run, loaded."""

    name: str
    path: Path
    config: Config
    model: TappedModel
    note: dict[str, str]
    trained_on: str  # fingerprint of its shard set

    def size_px(self, shards: ShardSet) -> int:
        """Side of the network's input, px."""
        return self.config.data.image_size_px or shards.size_px

    def network_input(self, images: Tensor, shards: ShardSet, device: torch.device) -> Tensor:
        """uint8 (B, M, H, W, 3) RGB -> float32 (B * M, 3, S, S), normalised, tuple by tuple."""
        return plain_input(images, self.config, shards.size_px, device)


def load_detectors(runs: Sequence[Path], checkpoint: str, device: torch.device) -> list[Detector]:
    """The runs' models in evaluation mode, with names that tell them apart.

    Raises:
        UserError: none given, one twice, not a run, or no such checkpoint.
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    places = [Path(run).resolve() for run in runs]
    if not places or len(set(places)) < len(places):
        raise UserError(f"RUN: got {', '.join(map(str, runs)) or 'none'}, expected run folders, each once")
    depth = 1
    while len({_tail(place, depth) for place in places}) < len(places):
        depth += 1
    found = []
    for run, place in zip(runs, places, strict=True):
        config, model, note = load_run(Path(run), checkpoint)
        fingerprint = read_run_json(Path(run)).get("shards", {}).get("fingerprint", "")
        found.append(Detector(_tail(place, depth), Path(run), config, model.to(device).eval(), note, fingerprint))
    return found


def check_layers(
    detectors: Sequence[Detector], shards: ShardSet, device: torch.device, options: Mapping[str, Any]
) -> None:
    """Raise UserError where a run's heat maps cannot be made: said of every run before the first one is scored.

    Args:
        options: method, layer and target of :class:`HeatMaps`.
    """
    black = torch.zeros(1, 1, shards.size_px, shards.size_px, 3, dtype=torch.uint8)
    for detector in detectors:
        sample = detector.network_input(black, shards, device)
        HeatMaps(detector.model, detector.config.model.name, sample, **options).close()


def read_tuples(
    shards: ShardSet,
    rows: Sequence[int],
    *,
    batch_tuples: int,
    device: torch.device,
    num_workers: int,
    damaged: dict[int, str],
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Tuples of a split in batches, without augmentation.

    Args:
        rows: of the split's index, in the order wanted.
        damaged: gets row -> message of each tuple that cannot be read; it is left out.
        advance: told how many tuples are done.

    Yields:
        Rows int64 (B,), images uint8 (B, M, H, W, 3) RGB.
    """
    requests = [[(0, int(row)) for row in rows[at : at + batch_tuples]] for at in range(0, len(rows), batch_tuples)]
    loader = make_loader(shards, requests, seed=0, flip_probability=0.0, num_workers=num_workers, device=device)
    batches = WorkerBatches(loader)
    try:
        for request, batch in zip(requests, batches, strict=True):
            whole = _whole(loader.dataset, request, damaged) if batch.damage else batch
            if whole is not None:
                yield whole.indices.numpy(), whole.images
            advance(len(request))
    finally:
        batches.close()


def tuples_per_pass(detector: Detector, wanted: int | None) -> int:
    """Tuples per pass: the wanted number, or that of training where it is small."""
    return wanted or min(detector.config.data.batch_tuples or _BATCH_TUPLES, _BATCH_TUPLES)


def _tail(path: Path, parts: int) -> str:
    return "/".join(path.parts[-parts:])


def _whole(dataset: TupleDataset, request: list[tuple[int, int]], damaged: dict[int, str]) -> TupleBatch | None:
    """The readable tuples of a batch in which some are not; None when there is none."""
    items = []
    for key in request:
        item = dataset[key]
        if isinstance(item, str):
            damaged[key[1]] = item
        else:
            items.append(item)
    return collate(items) if items else None
