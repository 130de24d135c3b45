"""Which tuples a picture shows, and which stand for a whole split: always the same ones."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from qadprep.errors import UserError

PICKS = ("disagreement", "wrong-at-worst", "hardest")


@dataclass(frozen=True)
class Rows:
    """What is known of a split's tuples; all of length n, in index order."""

    key: list[str]
    method: list[str]  # dataset/method
    video: list[str]  # dataset/method/video
    recording: list[str]  # dataset/group; the video where the index has no groups
    label: np.ndarray  # int64

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        dataset, method, video = (table[name].to_pylist() for name in ("dataset", "method", "video"))
        group = table["group"].to_pylist() if "group" in table.column_names else video
        parts = list(zip(dataset, method, video, group, strict=True))
        return cls(
            table["key"].to_pylist(),
            [f"{d}/{m}" for d, m, _, _ in parts],
            [f"{d}/{m}/{v}" for d, m, v, _ in parts],
            [f"{d}/{g}" for d, _, _, g in parts],
            table["label"].to_numpy().astype(np.int64),
        )


def check_pick(pick: str, qualities: int) -> None:
    """Raise UserError for a rule that there is not, or for one that compares qualities where there is one."""
    if pick not in PICKS:
        raise UserError(f"--pick: got {pick!r}, expected one of {', '.join(PICKS)}")
    if pick != "hardest" and qualities < 2:
        raise UserError(f"--pick: got {pick}, which compares qualities, but the shard set has one; use hardest")


def pick_scores(prob_fake: np.ndarray, labels: np.ndarray, pick: str) -> np.ndarray:
    """How much a tuple is wanted.

    Args:
        prob_fake: float (R, n, M), runs x tuples x qualities, best quality first; NaN where a tuple cannot be read.
        labels: int (n,), 1 = fake.
        pick: ``disagreement`` = spread of the probability over the qualities, mean over the runs; ``hardest`` = mean
            probability of the wrong class; ``wrong-at-worst`` = right at the best quality and wrong at the worst one:
            number of runs for which that holds, then how far the probability of the right class falls.

    Returns:
        float64 (n,); -inf for a tuple that does not come into question.

    Raises:
        UserError: another name, or a comparison of qualities where there is one.
    """
    check_pick(pick, prob_fake.shape[2])
    if pick == "disagreement":
        scores = (prob_fake.max(axis=2) - prob_fake.min(axis=2)).mean(axis=0)
    else:
        true = np.where(labels[None, :, None] == 1, prob_fake, 1 - prob_fake)
        if pick == "hardest":
            scores = (1 - true).mean(axis=(0, 2))
        else:
            right = (prob_fake > 0.5) == (labels[None, :, None] == 1)  # as accuracy in `eval`
            fallen = right[:, :, 0] & ~right[:, :, -1]
            fall = np.where(fallen, true[:, :, 0] - true[:, :, -1], 0)
            scores = np.where(fallen.any(axis=0), fallen.sum(axis=0) + fall.mean(axis=0), -np.inf)
    return np.where(np.isfinite(prob_fake).all(axis=(0, 2)), scores, -np.inf)


def choose(scores: np.ndarray, rows: Rows, count: int) -> list[int]:
    """The most wanted tuples: methods in turn; in a method first those of the recordings that were shown least.

    Args:
        scores: float (n,); -inf = not this one. Equal ones are ordered by key.
        count: how many at most.

    Returns:
        Positions; the methods in the order of their most wanted tuples.
    """
    queues: dict[str, list[int]] = defaultdict(list)
    for at in sorted(np.flatnonzero(np.isfinite(scores)).tolist(), key=lambda at: (-scores[at], rows.key[at])):
        queues[rows.method[at]].append(at)
    shown: Counter[str] = Counter()
    found: list[int] = []
    while len(found) < count and any(queues.values()):
        for queue in [each for each in queues.values() if each][: count - len(found)]:
            # The first of equals is the most wanted one.
            at = min(queue, key=lambda at: (shown[rows.recording[at]], shown[rows.video[at]]))
            queue.remove(at)
            found.append(at)
            shown.update({rows.recording[at], rows.video[at]})
    return found


def spread(rows: Rows, limit: int) -> list[int]:
    """At most ``limit`` tuples, evenly over methods, in them over videos, in them over the frames.

    Returns:
        Positions, the videos in turn, so that neighbours are of different videos where there are several.
    """
    methods: dict[str, dict[str, list[int]]] = {}
    for at in sorted(range(len(rows.key)), key=rows.key.__getitem__):
        methods.setdefault(rows.method[at], {}).setdefault(rows.video[at], []).append(at)
    found = []
    shares = fair_shares([sum(map(len, videos.values())) for videos in methods.values()], limit)
    for videos, share in zip(methods.values(), shares, strict=True):
        for frames, own in zip(videos.values(), fair_shares(list(map(len, videos.values())), share), strict=True):
            # The middles of equal parts.
            taken = [frames[(2 * turn + 1) * len(frames) // (2 * own)] for turn in range(own)]
            found += [(turn, rows.key[at], at) for turn, at in enumerate(taken)]
    return [at for _, _, at in sorted(found)]


def fair_shares(sizes: Sequence[int], total: int) -> list[int]:
    """Shares as even as can be, none over its size; they add up to ``total`` or to all there is.

    What does not divide evenly goes to places spread over the list.
    """
    shares, left = [0] * len(sizes), min(total, sum(sizes))
    while left:
        unfilled = [number for number, size in enumerate(sizes) if shares[number] < size]
        each = min(left // len(unfilled), min(sizes[number] - shares[number] for number in unfilled))
        if each == 0:
            unfilled, each = [unfilled[turn * len(unfilled) // left] for turn in range(left)], 1
        for number in unfilled:
            shares[number] += each
        left -= each * len(unfilled)
    return shares
