"""Logits of finished cells of a robustness evaluation, kept for a later call."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from qadtrain.config import Config
from qadtrain.corruptions import CORRUPTIONS
from qadtrain.device import resolved_precision
from qadtrain.robustness_pictures import CLEAN, View
from qadtrain.safe_files import write_atomically

# Scores of cells that an earlier version of the corruptions made are not taken over.
METHOD = 1


@dataclass(frozen=True)
class RunFacts:
    """A run to score: its name in the report, its folder and configuration, and the SHA-256 of its weights."""

    name: str
    folder: Path
    config: Config
    weights_sha256: str


class Cell:
    """The kept logits of one run on one view: ``cells/<run>-<corruption>-<severity>-<hash of the settings>.parquet``.

    Columns: row of the split's index, and ``<quality>_real`` and ``<quality>_fake``, its two logits.
    """

    def __init__(
        self, out_dir: Path, run: RunFacts, view: View, settings: dict[str, Any], device: torch.device
    ) -> None:
        facts = {
            **settings,
            "method": METHOD,
            "weights": run.weights_sha256,
            "model": run.config.model.model_dump(),
            "image_size_px": run.config.data.image_size_px,
            "normalization": run.config.data.normalization,
            # A GPU adds in another order than the CPU.
            "device": device.type,
            "precision": resolved_precision(run.config.train.precision, device),
            **asdict(view),
        }
        if view.corruption != "blocks":
            facts["blocks"] = None
        if view.corruption == CLEAN or not CORRUPTIONS[view.corruption].random:
            facts["seed"] = None
        self.facts = json.dumps(facts, sort_keys=True)
        mark = hashlib.sha256(self.facts.encode()).hexdigest()[:16]
        self.path = out_dir / "cells" / f"{run.folder.resolve().name}-{view.corruption}-{view.severity}-{mark}.parquet"
        self.names = [f"{quality}_{side}" for quality in settings["qualities"] for side in ("real", "fake")]

    def read(self, tuples: int, qualities: int) -> tuple[np.ndarray, dict[int, str]] | None:
        """Logits (tuples, qualities, 2) and damage; None where there is no such file, or another one."""
        try:
            table = pq.read_table(self.path)
            metadata = table.schema.metadata or {}
            if metadata.get(b"settings") != self.facts.encode() or len(table) != tuples:
                return None
            damaged = {int(row): message for row, message in json.loads(metadata[b"damaged"]).items()}
            columns = [table[name].to_numpy() for name in self.names]
        except (OSError, KeyError, ValueError, pa.ArrowException):
            return None
        return np.stack(columns, axis=1).reshape(tuples, qualities, 2), damaged

    def write(self, logits: np.ndarray, damaged: dict[int, str]) -> None:
        """Keep logits (tuples, qualities, 2) and row -> message of the damaged tuples."""
        columns = logits.reshape(len(logits), -1).T
        table = pa.table(dict(zip(self.names, (pa.array(column) for column in columns), strict=True)))
        metadata = {"settings": self.facts, "damaged": json.dumps(damaged)}
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer)
        write_atomically(self.path, buffer.getvalue())
