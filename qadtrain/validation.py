"""Scores of the validation split while a run goes on, and which of them picks the best checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import nn

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.config import Config
from qadtrain.distributed import Ranks
from qadtrain.ema import WeightAverage
from qadtrain.evaluate import AVERAGE, SHORT, fake_probability, score_split
from qadtrain.metrics import METRICS, binary_scores

LOSS = "loss"
LOWER_IS_BETTER = ("eer", LOSS, "train_ce")
NEEDS_BOTH_CLASSES = ("auc", "eer")
# In the record of a validation that met them: tuples left out as damaged, and scores with an inf or NaN.
SKIPPED, NOT_FINITE = "skipped_val_tuples", "not_finite_scores"


@dataclass(frozen=True)
class BestBy:
    """What ``train.best_metric`` asks for: a metric and a quality, or their average."""

    metric: str
    quality: str

    @property
    def name(self) -> str:
        return f"{self.metric}/{self.quality}" if self.quality else self.metric

    @property
    def short(self) -> str:
        return SHORT.get(self.metric, self.metric)

    @property
    def text(self) -> str:
        """For people."""
        if self == TRAIN_LOSS:
            return "cross-entropy on the train split"
        over = "mean over the qualities" if self.quality == AVERAGE else self.quality
        return f"{self.short} on the validation split, {over}"

    def is_better(self, new: float, old: float | None) -> bool:
        """Whether a value beats the best one so far; equal ones do not, nor does NaN."""
        if not isfinite(new):
            return False
        if old is None:
            return True
        return new < old if self.metric in LOWER_IS_BETTER else new > old


# Where there is no validation split that can rank checkpoints.
TRAIN_LOSS = BestBy("train_ce", "")


def best_by(name: str, qualities: tuple[str, ...]) -> BestBy:
    """Read ``train.best_metric``.

    Raises:
        UserError: another metric, or a quality that the run does not train on.
    """
    metric, _, quality = name.partition("/")
    metrics, places = (*METRICS, LOSS), (*qualities, AVERAGE)
    if metric not in metrics or quality not in places:
        raise UserError(
            f"train.best_metric: got {name!r}, expected one of {', '.join(metrics)}, then / and one of "
            f"{', '.join(places)}"
        )
    return BestBy(metric, quality)


@contextmanager
def weights_to_score(model: nn.Module, average: WeightAverage | None, ranks: Ranks) -> Iterator[None]:
    """Inside, the model holds what is validated and kept: the moving average where there is one."""
    # Only rank 0's BatchNorm statistics are in checkpoints, so all processes score with them.
    ranks.broadcast_(list(model.buffers()))
    if average is None:
        yield
        return
    ranks.broadcast_(list(average.state_dict().values()))
    with average.applied():
        yield


def validate(
    model: nn.Module,
    shards: ShardSet,
    config: Config,
    device: torch.device,
    ranks: Ranks | None = None,
    damaged: dict[int, str] | None = None,
) -> dict[str, float]:
    """Frame-level scores over all tuples of a split, the same on every process.

    Args:
        damaged: takes row of the index -> message of each tuple that could not be read, up to ``data.skip_bad`` of
            them; they have no part in any score.

    Returns:
        ``<metric>/<quality>`` and ``<metric>/average`` for accuracy, auc and eer (0..1) and loss (plain cross-entropy,
        without class weights); NaN where a class is missing. Only where there were any: :data:`SKIPPED` damaged
        tuples, :data:`NOT_FINITE` other scores with an inf or NaN, which are left out of accuracy, auc and eer.

    Raises:
        UserError: more damaged tuples than ``data.skip_bad``; on every process.
    """
    found: dict[int, str] = {}
    budget, workers = config.data.skip_bad, config.data.num_workers
    logits = score_split(
        model, shards, config, device, num_workers=workers, ranks=ranks, skip_bad=budget, damaged=found
    )
    if len(found) > budget:  # of several processes together
        raise UserError(
            f"data.skip_bad: got {len(found)} damaged tuples in the split {shards.split!r}, expected at most {budget}: "
            f"{next(iter(found.values()))}"
        )
    if damaged is not None:
        damaged |= found
    kept = np.setdiff1d(np.arange(len(shards)), list(found))
    logits = logits[kept]
    labels = shards.table["label"].to_numpy().astype(np.int64)[kept]
    probabilities = fake_probability(logits)
    losses = torch.from_numpy(logits).log_softmax(dim=-1).numpy()
    values: dict[str, float] = {}
    for number, quality in enumerate(shards.qualities):
        scores = binary_scores(probabilities[:, number], labels)
        values |= {f"{metric}/{quality}": getattr(scores, metric) for metric in METRICS}
        values[f"{LOSS}/{quality}"] = float(-losses[np.arange(len(labels)), number, labels].mean())
    for metric in (*METRICS, LOSS):
        values[f"{metric}/{AVERAGE}"] = float(np.mean([values[f"{metric}/{quality}"] for quality in shards.qualities]))
    not_finite = int((~np.isfinite(logits).all(axis=2)).sum())
    return values | ({SKIPPED: len(found)} if found else {}) | ({NOT_FINITE: not_finite} if not_finite else {})


def in_words(values: Mapping[str, float], best_by: BestBy) -> str:
    """One line of a validation: the training loss and, per quality, the metric that picks the best."""
    text = f"train ce {values['train_ce']:.4f}" if "train_ce" in values else ""
    shown = {name.partition("/")[2]: value for name, value in values.items() if name.startswith(f"{best_by.metric}/")}
    if not shown:
        return text
    percent = best_by.metric != "loss"
    figures = "  ".join(
        f"{quality} {100 * value:.2f}" if percent else f"{quality} {value:.4f}" for quality, value in shown.items()
    )
    return f"{text}  val {best_by.short} {figures}".strip()
