"""The model card of a detector: README.md with the front matter that the Hugging Face hub reads."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from qadtrain.augment import MEAN_STD
from qadtrain.config import Config
from qadtrain.metrics import SHORT
from qadtrain.model_card_text import limit_lines, load_lines, plain, term_lines, use_lines
from qadtrain.runs import is_number

LEVELS = ("frame", "video")
AVERAGE, POOLED = "average", "all"
_SHOWN = ("auc", "accuracy", "eer")
_HUB_METRICS = {"auc": "roc_auc", "accuracy": "accuracy", "eer": "eer"}


@dataclass(frozen=True)
class Evaluation:
    """One report.json of this checkpoint.

    Attributes:
        name: of its folder below ``RUN/eval``.
        same_as_trained: whether the shard set is the one that was trained on; None where the report does not say.
        cells: level -> quality -> ``average`` or ``all`` -> the report's numbers.
        fault: why there are none.
    """

    name: str
    split: str = ""
    same_as_trained: bool | None = None
    precision: str = ""
    cells: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]] = field(default_factory=dict)
    fault: str = ""


def evaluations(run_dir: Path, checkpoint: str, weights_sha256: str | None) -> list[Evaluation]:
    """The reports of `qadtrain eval` on these very weights; those of other weights are named with that fault."""
    found = []
    for path in sorted((Path(run_dir) / "eval").glob("*/report.json")):
        try:
            found.append(_evaluation(path, checkpoint, weights_sha256))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            found.append(Evaluation(path.parent.name, fault="its report.json cannot be read"))
    return found


def card_text(
    *,
    name: str,
    config: Config,
    facts: Mapping[str, Any],
    origin: Mapping[str, Any],
    reports: Sequence[Evaluation],
    timm_name: str = "",
    with_onnx: bool = False,
) -> str:
    """The card.

    Args:
        name: of the model.
        config: of the run.
        facts: of run.json, without paths.
        origin: of :func:`qadtrain.export_facts.origin_facts`.
        reports: of :func:`evaluations`.
        timm_name: timm's name of the network, where it is timm's.
        with_onnx: whether ``onnx/`` is in the folder.
    """
    shards = facts.get("shards") or {}
    qualities = _words(shards.get("qualities"))
    parts = [
        front_matter(name, facts, reports, timm_name),
        f"# {plain(name)}\n",
        f"A deepfake detector: {plain(config.model.name)} at {config.data.image_size_px} px, trained with `qadtrain` "
        f"([QAD](https://arxiv.org/abs/2309.05911) and its peers) on face crops at the video qualities {qualities}. It "
        "gives one aligned face crop a probability of being fake. No figure of a paper is claimed to be reproduced.\n",
        _section("What it is for, and what it is not for", use_lines()),
        _section("Limits and dangers", limit_lines(qualities)),
        _section("Figures", _figures(reports)),
        _section("Input", _input(config, shards)),
        _section("Load", load_lines(config, timm_name, with_onnx)),
        _section("Training", _training(config, facts, origin)),
        _section("Licences and terms", term_lines(shards, facts)),
    ]
    return "\n".join(parts)


def front_matter(name: str, facts: Mapping[str, Any], reports: Sequence[Evaluation], timm_name: str) -> str:
    """The YAML block on top of the card, with the figures as the hub's ``model-index``."""
    base = re.search(r"timm pretrained: ([\w.-]+/[\w.-]+)$", str((facts.get("model") or {}).get("origin", "")))
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="deepfake detection, one face crop",
            dataset_type="shard-set",
            dataset_name=report.name,
            dataset_config=quality,
            dataset_split=report.split or None,
            metric_type=_HUB_METRICS[metric],
            metric_name=f"{SHORT[metric]}, frame level, mean over the methods",
            metric_value=round(float(cells[AVERAGE][metric]), 4),
        )
        for report in reports
        for quality, cells in report.cells.get(LEVELS[0], {}).items()
        for metric in _SHOWN
        if is_number(cells.get(AVERAGE, {}).get(metric))
    ]
    data = ModelCardData(
        model_name=name,
        base_model=base[1] if base else None,
        eval_results=results or None,
        library_name="timm" if timm_name else "qadtrain",
        license="other",
        license_name="terms-of-the-source-datasets",
        metrics=[_HUB_METRICS[metric] for metric in _SHOWN],
        pipeline_tag="image-classification",
        tags=["deepfake-detection", "face-forgery-detection", "video-compression", "qadtrain"],
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def _evaluation(path: Path, checkpoint: str, weights_sha256: str | None) -> Evaluation:
    report = json.loads(path.read_text("utf-8"))
    name, made_with = path.parent.name, report["checkpoint"]
    known = made_with.get("weights_sha256")
    # Reports of earlier versions name the checkpoint only.
    if (known != weights_sha256) if known else (made_with.get("name") != checkpoint):
        return Evaluation(name, fault="made with other weights than these")
    cells = {
        level: {quality: {kind: row[kind] for kind in (AVERAGE, POOLED)} for quality, row in rows.items()}
        for level, rows in report["metrics"].items()
        if level in LEVELS
    }
    shards = report.get("shards") or {}
    return Evaluation(
        name, str(report.get("split", "")), shards.get("same_as_trained"), str(report.get("precision", "")), cells
    )


def _figures(reports: Sequence[Evaluation]) -> list[str]:
    shown = [report for report in reports if report.cells]
    lines: list[str] = []
    for report in shown:
        same = {True: "the shard set it was trained on", False: "another shard set than it was trained on"}
        where = same.get(report.same_as_trained, "a shard set; whether it was trained on it is not recorded")
        precision = f", network in {report.precision}" if report.precision else ""
        lines += [f"**{plain(report.name)}**: split `{report.split}` of {where}{precision}.", ""]
        heads = ["level", "quality", "over", *(SHORT[metric] for metric in _SHOWN), "real", "fake"]
        rows = [
            (level, quality, words, *(_value(cells[kind], metric) for metric in _SHOWN), *_counts(cells[kind]))
            for level, by_quality in report.cells.items()
            for quality, cells in by_quality.items()
            for kind, words in ((AVERAGE, "mean of the methods"), (POOLED, "all samples"))
        ]
        lines += [*_table(heads, rows), ""]
    if shown:
        lines += [
            "Fractions from 0 to 1; a dash where a figure is not defined; in brackets the bootstrap's 95 % interval. "
            "Accuracy is at probability 0.5 and depends on the share of fakes. Each method is scored against "
            "the originals of its dataset.",
        ]
    else:
        lines.append("**Not evaluated.** `qadtrain eval RUN SHARDS` was not run on these weights.")
    faults = [f"Left out: {plain(report.name)}: {report.fault}." for report in reports if report.fault]
    return [*lines, *([""] if faults else []), *faults]


def _input(config: Config, shards: Mapping[str, Any]) -> list[str]:
    mean, std = MEAN_STD[config.data.normalization]
    crop, side = shards.get("crop") or {}, config.data.image_size_px
    known = [f"{words} {plain(crop[key])}" for key, words in _CROP.items() if crop.get(key) is not None]
    return [
        f"- one face, RGB, cut to {shards.get('size_px') or 'unknown'} px as `qadprep extract` does: "
        + (", ".join(known) if known else "how, the run does not say (its defaults are `similarity` and margin 1.3)"),
        f"- then the whole crop resized to {side} x {side} px, bilinear, antialiased when it shrinks",
        f"- (value / 255 - mean) / std, mean {list(mean)}, std {list(std)}",
        "- outputs: two logits, real and fake; the fake probability is their softmax",
    ]


_CROP = {"align": "aligned by", "margin": "margin", "detector": "faces found by"}


def _training(config: Config, facts: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    shards, model = facts.get("shards") or {}, facts.get("model") or {}
    splits = ", ".join(f"{name} {count}" for name, count in (shards.get("splits") or {}).items())
    note, trained = origin["checkpoint"], origin["trained_by"]
    versions = ", ".join(f"{package} {number}" for package, number in trained["versions"].items())
    position = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in note.items() if key != "name")
    hsic = f"HSIC ({config.hsic.estimator}, alpha {config.hsic.alpha:g})" if config.hsic.alpha else "no HSIC"
    awp = f"AWP (gamma {config.awp.gamma:g})" if config.awp.gamma else "no AWP"
    rows = [
        ("shard set", f"fingerprint `{shards.get('fingerprint', 'unknown')}`"),
        ("datasets", _words(shards.get("datasets"))),
        ("tuples", plain(splits) or "unknown"),
        ("qualities", _words(shards.get("qualities"))),
        ("first weights", plain(model.get("origin", "unknown"))),
        ("loss", f"cross-entropy, {hsic}, {awp}"),
        ("optimiser", f"{config.optim.optimizer}, learning rate {config.optim.learning_rate:g}, "
                      f"{config.optim.epochs} epochs, {config.data.batch_tuples} tuples a step"),
        ("checkpoint", plain(f"{note['name']}{f' ({position})' if position else ''}")),
        ("picked by", plain(facts.get("best_by", "unknown"))),
        ("device, precision", plain(f"{facts.get('device', 'unknown')}, {facts.get('precision', 'unknown')}")),
        ("code", plain(f"{trained.get('git') or 'unknown'}; {versions}")),
        ("run", f"configuration `{origin['config_hash']}`, weights `{origin['weights_sha256']}`"),
    ]  # fmt: skip
    return [*_table(["what", "value"], rows), "", "Every field of the configuration is in `config.toml`."]


def _words(names: Any) -> str:
    return ", ".join(plain(name) for name in names) if names else "unknown"


def _value(cell: Mapping[str, Any], metric: str) -> str:
    value = cell.get(metric)
    if not is_number(value):
        return "-"
    ends = (cell.get("interval") or {}).get(metric)
    return f"{value:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")


def _counts(cell: Mapping[str, Any]) -> tuple[Any, Any]:
    return cell.get("real", "-"), cell.get("fake", "-")


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
