"""What must be known beside the weights to use a detector: input, preprocessing, crop, classes, origin."""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qadtrain.augment import MEAN_STD
from qadtrain.checkpoint import checkpoint_path, read_run_json
from qadtrain.config import Config
from qadtrain.facts import config_hash, versions
from qadtrain.safe_files import sha256_of

CLASSES = ("real", "fake")
EXPORTERS = ("onnx", "onnxruntime", "onnxscript")  # the extra `export`
ONNX_NAME, TORCH_NAME, EXAMPLE_NAME, FACTS_NAME = "model.onnx", "model.pt2", "example.py", "export.json"
EXPORTED = (ONNX_NAME, TORCH_NAME, EXAMPLE_NAME, FACTS_NAME)
INPUT, OUTPUTS = "images", ("logits", "fake_probability")
_NOTES = (
    "epoch",
    "step",
    "global_step",
    "by",
    "score",
    "best_score",
)  # of a checkpoint's header, as far as they are there


def network_facts(config: Config) -> dict[str, Any]:
    """How pictures become the network's input, and what the classes are.

    Args:
        config: of a run: ``data.image_size_px`` is set.
    """
    mean, std = MEAN_STD[config.data.normalization]
    return {
        "input_size_px": config.data.image_size_px,
        "colour": "RGB",
        "range": [0, 255],
        "normalisation": {
            "name": config.data.normalization,
            "formula": "(value / 255 - mean) / std",
            "mean": list(mean),
            "std": list(std),
        },
        "resize": {
            "rule": "the whole crop to input_size_px x input_size_px, bilinear, antialiased when it shrinks",
            "pillow": "Image.Resampling.BILINEAR",
            "torch": 'interpolate(mode="bilinear", antialias=True)',
        },
        "classes": list(CLASSES),
    }


def crop_facts_of(run_facts: Mapping[str, Any]) -> dict[str, Any]:
    """How the training set's faces were cut; None for what run.json does not say.

    Returns:
        ``align`` (similarity or box), ``margin`` (side of the crop over the side of the face), ``detector``, and
        ``size_px``, the side of the stored crops. They are resized to the network's input after that.
    """
    shards = run_facts.get("shards") or {}
    crop = shards.get("crop") or {}
    return {name: crop.get(name) for name in ("align", "margin", "detector")} | {"size_px": shards.get("size_px")}


def origin_facts(run_dir: Path, config: Config, checkpoint: str, note: Mapping[str, str]) -> dict[str, Any]:
    """Which run, data and weights a file was made of. No paths, host names or commands.

    Args:
        checkpoint: ``best`` or ``last``.
        note: of the checkpoint's header.
    """
    facts = read_run_json(run_dir)
    shards = facts.get("shards") or {}
    return {
        "model": config.model.name,
        "config_hash": str(facts.get("config_hash") or config_hash(config)),
        "shards_fingerprint": shards.get("fingerprint"),
        "qualities": shards.get("qualities"),
        "checkpoint": {"name": checkpoint} | {name: note[name] for name in _NOTES if name in note},
        "weights_sha256": sha256_of(checkpoint_path(run_dir, checkpoint)),
        "trained_by": {"git": facts.get("git"), "versions": facts.get("versions") or {}},
        "written_by": {"versions": versions() | _versions_of(EXPORTERS)},
    }


def _versions_of(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
