"""The terms of Theorem 1 of QAD (supplementary, Eq. 24 and 25) that data can give, for a trained run.

    P(error on x_c) <= A + B + C + D + E

with A = 2 mean(1 - s_T(f(x_c))_y), B = 16/n, C = (8/T) mean |f(x_r) - f(x_c)|, D = 4 times a Rademacher complexity and
E = O(sqrt(ln(2/delta) / 2n)); s_T is the softmax of f/T, |.| the L2 norm, x_r the picture at the best quality and x_c
the same at another one. C is the collaboration term. D and the constant of E cannot be estimated, so no sum here
bounds anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from qadprep.errors import UserError
from qadtrain.checkpoint import read_run_json
from qadtrain.data import open_split
from qadtrain.device import choose_device
from qadtrain.evaluate import load_run, score_split

TEMPERATURES = tuple(2.0**power for power in range(-6, 9))
_LEAST_T, _MOST_T = 1e-9, 1e9  # beyond them f/T overflows, or every p is 1/2 to the last digit
NOT_ESTIMATED = {
    "D": "4 x the Rademacher complexity of the raw-image loss class: omitted, it cannot be estimated from a split",
    "E": "O(sqrt(ln(2/delta)/2n)): the root is given without its constant, which the proof hides",
}
REMARKS = (
    "means over n tuples stand where the theorem has expectations and its own training sample",
    "the grid's least sum is searched on the same tuples",
    "two classes: 4/T instead of 8/T would do, so C' is at most C/2",
    "as T grows A tends to 1 and C to 0: a sum of 1 or more says nothing about the error",
    "as T falls A tends to twice the errors, C grows without end, C' tends to 8 sqrt(2) x the share of changed answers",
)


@dataclass(frozen=True)
class PairTerms:
    """Terms of one quality against a better one; the arrays are float64 over the temperatures.

    Attributes:
        better, worse: the qualities, x_r and x_c.
        for_information: whether ``better`` is not the best quality, which the theorem speaks of.
        error: share of tuples that are wrong at ``worse`` (argmax; a tie says real), 0..1.
        logit_distance: mean L2 norm of the difference of the logits.
        a: 2 mean(1 - p_y) at ``worse``.
        c: collaboration term (8/T) mean |f_r - f_c| (Eq. 25).
        c_tight: C' = 8 mean |s_T(f_r) - s_T(f_c)|, the tighter form (Eq. 24); at most c.
        p_difference: mean |p_y(x_r) - p_y(x_c)|, which is what Eq. 15 needs.
    """

    better: str
    worse: str
    for_information: bool
    error: float
    logit_distance: float
    a: np.ndarray
    c: np.ndarray
    c_tight: np.ndarray
    p_difference: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.better}-{self.worse}"


@dataclass(frozen=True)
class TheoremTerms:
    """What :func:`theorem_terms` found.

    Attributes:
        n: tuples; ``b`` is 16/n and ``root`` is sqrt(ln(2/delta)/2n).
        left_out: tuples whose logits were not finite.
        damaged: a message for each tuple that could not be read; it is in no figure.
        trained_n: tuples of the train split of the run's own shard set; 0 = not known.
        files: what was written.
    """

    run: str
    split: str
    checkpoint: dict[str, str]
    same_as_trained: bool
    n: int
    left_out: int
    trained_n: int
    delta: float
    temperatures: tuple[float, ...]
    pairs: tuple[PairTerms, ...]
    damaged: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default=())

    @property
    def b(self) -> float:
        return count_term(self.n)

    @property
    def root(self) -> float:
        return deviation(self.n, self.delta)

    def total(self, pair: PairTerms, *, tight: bool = False) -> np.ndarray:
        """A + B + C, or with C' for C: float64 over the temperatures."""
        return pair.a + self.b + (pair.c_tight if tight else pair.c)

    def as_json(self) -> dict[str, Any]:
        trained = {"n": self.trained_n, "B": count_term(self.trained_n), "root": deviation(self.trained_n, self.delta)}
        return {
            "run": self.run,
            "split": self.split,
            "checkpoint": self.checkpoint,
            "same_as_trained": self.same_as_trained,
            "n": self.n,
            "left_out": self.left_out,
            "damaged": list(self.damaged),
            "delta": self.delta,
            "B": self.b,
            "root": self.root,
            "trained": trained if self.trained_n else None,
            "temperatures": list(self.temperatures),
            "pairs": {pair.name: self._pair_json(pair) for pair in self.pairs},
            "not_estimated": NOT_ESTIMATED,
            "remarks": list(REMARKS),
        }

    def _pair_json(self, pair: PairTerms) -> dict[str, Any]:
        least = {}
        for name, tight in (("A+B+C", False), ("A+B+C'", True)):
            sums = self.total(pair, tight=tight)
            at = int(sums.argmin())
            least[name] = {
                "value": float(sums[at]),
                "temperature": self.temperatures[at],
                "at_end_of_grid": at in (0, len(sums) - 1),
            }
        return {
            "for_information": pair.for_information,
            "error": pair.error,
            "mean_logit_distance": pair.logit_distance,
            "A": pair.a.tolist(),
            "collaboration_term": pair.c.tolist(),
            "collaboration_term_tight": pair.c_tight.tolist(),
            "p_difference": pair.p_difference.tolist(),
            "least_sum": least,
        }


def count_term(n: int) -> float:
    """B = 16/n."""
    return 16 / n if n else math.inf


def deviation(n: int, delta: float) -> float:
    """sqrt(ln(2/delta) / 2n), the root in E."""
    return math.sqrt(math.log(2 / delta) / (2 * n)) if n else math.inf


def pair_terms(
    better: np.ndarray, worse: np.ndarray, labels: np.ndarray, temperatures: Sequence[float]
) -> dict[str, Any]:
    """The figures of a :class:`PairTerms`, by name.

    Args:
        better, worse: float64 (n, 2), logits of the same tuples at two qualities; [:, 1] is the fake class.
        labels: int (n,), 1 = fake.
        temperatures: T, above 0.
    """
    rows = np.arange(len(labels))
    distance = float(np.linalg.norm(better - worse, axis=1).mean())
    terms: dict[str, list[float]] = {name: [] for name in ("a", "c", "c_tight", "p_difference")}
    for temperature in temperatures:
        p_better, p_worse = softmax(better / temperature, axis=1), softmax(worse / temperature, axis=1)
        # Of two classes 1 - p_y is the other one's, which keeps its digits where p_y is near 1.
        terms["a"].append(2 * p_worse[rows, 1 - labels].mean())
        terms["c"].append(8 / temperature * distance)
        terms["c_tight"].append(8 * np.linalg.norm(p_better - p_worse, axis=1).mean())
        terms["p_difference"].append(np.abs(p_better[rows, labels] - p_worse[rows, labels]).mean())
    return {
        "error": float(((worse[:, 1] > worse[:, 0]) != (labels == 1)).mean()),
        "logit_distance": distance,
        **{name: np.array(values, dtype=np.float64) for name, values in terms.items()},
    }


def all_pairs(
    logits: np.ndarray, labels: np.ndarray, qualities: Sequence[str], temperatures: Sequence[float]
) -> tuple[PairTerms, ...]:
    """Every two qualities, those with the best one first.

    Args:
        logits: float64 (n, M, 2), finite, aligned: one row is one tuple.
        labels: int (n,).
        qualities: M names, best first.
    """
    return tuple(
        PairTerms(qualities[a], qualities[b], a > 0, **pair_terms(logits[:, a], logits[:, b], labels, temperatures))
        for a, b in combinations(range(len(qualities)), 2)
    )


def theorem_terms(
    run: Path,
    shards_path: Path,
    *,
    split: str = "test",
    temperatures: Sequence[float] = TEMPERATURES,
    delta: float = 0.05,
    checkpoint: str = "best",
    out_dir: Path | None = None,
    device: str = "auto",
    num_workers: int = -1,
    batch_tuples: int | None = None,
) -> TheoremTerms:
    """Compute the terms and write theorem.json, theorem.csv, theorem.png and theorem.svg.

    Args:
        run: folder written by :func:`qadtrain.fit.fit`.
        shards_path: a shard set with two qualities or more.
        split: the tuples the means are over. On the train split they are those of the theorem's own sample.
        temperatures: T, 1e-9 to 1e9.
        delta: the theorem holds with probability 1 - delta.
        checkpoint: ``best`` or ``last``.
        out_dir: default ``RUN/theorem/<shard set>-<split>``, with ``-last`` for that checkpoint.
        batch_tuples: tuples per forward pass; default that of training.

    Raises:
        UserError: wrong use, no tuple that can be read, or a network without finite logits.
    """
    from qadtrain.theorem_output import write_files

    if not 0 < delta < 1:
        raise UserError(f"--delta: got {delta}, expected a probability between 0 and 1")
    grid = tuple(sorted({float(value) for value in temperatures}))
    if not grid or not all(_LEAST_T <= value <= _MOST_T for value in grid):
        raise UserError(f"--temperature: got {list(temperatures)}, expected numbers above 0, from 1e-9 to 1e9")
    if checkpoint not in ("best", "last"):
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    config, model, note = load_run(Path(run), checkpoint)
    where = choose_device(device)
    with open_split(shards_path, split) as shards:
        if len(shards.qualities) < 2:
            raise UserError(f"{shards_path}: got one quality, {shards.qualities[0]}; the theorem compares two or more")
        damaged: dict[int, str] = {}
        logits = score_split(
            model.to(where),
            shards,
            config,
            where,
            num_workers=num_workers,
            batch_tuples=batch_tuples,
            skip_bad=len(shards),
            damaged=damaged,
            title="score",
        )
        labels = shards.table["label"].to_numpy().astype(np.int64)
        qualities, fingerprint = shards.qualities, shards.fingerprint
    finite = np.isfinite(logits).all(axis=(1, 2))
    if len(damaged) == len(finite):
        raise UserError(f"{shards_path}: none of {len(finite)} tuples can be read: {next(iter(damaged.values()))}")
    if not finite.any():
        raise UserError(f"{run}: the network's logits are not finite for any tuple; its weights are of no use")
    trained = read_run_json(Path(run)).get("shards", {})
    terms = TheoremTerms(
        run=Path(run).resolve().name,
        split=split,
        checkpoint={"name": checkpoint, **note},
        same_as_trained=fingerprint == trained.get("fingerprint"),
        n=int(finite.sum()),
        left_out=int((~finite).sum()) - len(damaged),
        damaged=tuple(message for _, message in sorted(damaged.items())),
        trained_n=int(trained.get("splits", {}).get(config.data.train_split, 0)),
        delta=delta,
        temperatures=grid,
        pairs=all_pairs(logits[finite], labels[finite], qualities, grid),
    )
    name = f"{Path(shards_path).resolve().name}-{split}{'-last' if checkpoint == 'last' else ''}"
    return write_files(terms, Path(out_dir or Path(run) / "theorem" / name))
