"""``scores.parquet``: every score of an evaluation, a row for each tuple and quality, in index order."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from qadprep.errors import UserError
from qadtrain.safe_files import write_atomically

SCORES_NAME = "scores.parquet"
OK, DAMAGED, NOT_FINITE = "ok", "damaged", "not finite"
_NUMBERS = ("logit_real", "logit_fake", "prob_fake")
_NEEDED = ("label", "dataset", "method", "video", "face")


@dataclass(frozen=True)
class KeptScores:
    """Scores read back.

    Attributes:
        index: a row for each tuple: key, label, dataset, method, video, face and more.
        logits: float64 (tuples, qualities, 2); NaN where there is none.
        status: object (tuples, qualities): ``ok``, ``damaged`` or ``not finite``.
    """

    index: pa.Table
    qualities: tuple[str, ...]
    logits: np.ndarray
    status: np.ndarray


def fake_probability(logits: np.ndarray) -> np.ndarray:
    """float64 (..., 2) -> (...): softmax probability of the fake class; NaN where a logit is not finite.

    In float64: in float32 every confident score becomes exactly 1, and the ties blur AUC and EER.
    """
    probability = torch.sigmoid(torch.from_numpy(fake_margin(logits))).numpy()
    return np.where(np.isfinite(logits).all(axis=-1), probability, np.nan)


def fake_margin(logits: np.ndarray) -> np.ndarray:
    """float64 (..., 2) -> (...): fake minus real logit; NaN where one is not finite."""
    with np.errstate(invalid="ignore"):
        margin = logits[..., 1] - logits[..., 0]
    return np.where(np.isfinite(logits).all(axis=-1), margin, np.nan)


def write_scores(
    path: Path, logits: np.ndarray, index: pa.Table, qualities: tuple[str, ...], damaged: Collection[int] = ()
) -> None:
    """A row for each tuple and quality, in index order, with its logits, probability and status.

    Args:
        damaged: rows of the index that could not be read: their logits are null. Of scores that are not finite the
            logits are kept as they are, and the probability is null.
    """
    tuples = len(index)
    wanted = ("key", "dataset", "method", "video", "group", "frame", "face", "label", "split")
    rows = pa.array(np.repeat(np.arange(tuples), len(qualities)))
    table = index.select([name for name in wanted if name in index.column_names]).take(rows)
    flat = logits.reshape(-1, 2)
    lost = np.isin(np.repeat(np.arange(tuples), len(qualities)), list(damaged))
    status = np.where(lost, DAMAGED, np.where(np.isfinite(flat).all(axis=1), OK, NOT_FINITE))
    table = table.append_column("quality", pa.array(list(qualities) * tuples, pa.string()))
    for name, values, absent in (
        ("logit_real", flat[:, 0], lost),
        ("logit_fake", flat[:, 1], lost),
        ("prob_fake", fake_probability(flat), status != OK),
    ):
        table = table.append_column(name, pa.array(values, pa.float64(), mask=absent))
    table = table.append_column("status", pa.array(status.tolist(), pa.string()))
    whole = pa.BufferOutputStream()
    pq.write_table(table, whole)
    write_atomically(path, whole.getvalue())


def read_scores(path: Path) -> KeptScores:
    """Scores of a file that :func:`write_scores` wrote; of an earlier version without the column status too.

    Raises:
        UserError: not such a file, or not a row for each tuple and quality.
    """
    try:
        table = pq.read_table(path)
        qualities = tuple(dict.fromkeys(table["quality"].to_pylist()))
        numbers = [table[name].to_numpy() for name in _NUMBERS[:2]]
        keys = table.select(["key", *_NEEDED])["key"].to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a file of scores ({reason}); score the run again with `qadtrain eval`") from None
    each = len(qualities)
    logits = np.stack(numbers, axis=-1).astype(np.float64)
    if not each or len(table) % each or table["quality"].to_pylist() != list(qualities) * (len(table) // each):
        raise UserError(f"{path}: expected a row for each tuple and quality; score the run again with `qadtrain eval`")
    first = np.arange(0, len(table), each)
    if any(keys[i] != keys[i + each - 1] for i in first):
        raise UserError(f"{path}: expected a row for each tuple and quality; score the run again with `qadtrain eval`")
    finite = np.isfinite(logits).all(axis=1)
    status = table["status"].to_pylist() if "status" in table.column_names else np.where(finite, OK, NOT_FINITE)
    dropped = {"quality", "status", *_NUMBERS}
    index = table.select([name for name in table.column_names if name not in dropped]).take(pa.array(first))
    shape = (len(first), each)
    return KeptScores(index, qualities, logits.reshape(*shape, 2), np.asarray(status, dtype=object).reshape(shape))
