"""Which tuples are shown, on made probabilities."""

import numpy as np
import pyarrow as pa
import pytest

from qadprep.errors import UserError
from qadtrain.gradcam_pick import Rows, choose, fair_shares, pick_scores, spread

LABELS = np.array([1, 1, 0, 0])
# One run; raw, c23, c40.
PROB = np.array([[[0.9, 0.8, 0.3], [0.6, 0.6, 0.6], [0.2, 0.5, 0.6], [0.1, 0.1, 0.4]]])


def rows(places: list[tuple[str, str, int]], recordings: list[str] | None = None) -> Rows:
    """(method, video, frame) of a dataset ``d``."""
    table = pa.table(
        {
            "key": [f"d/{m}/{v}/{f:06d}_0" for m, v, f in places],
            "dataset": ["d"] * len(places),
            "method": [m for m, _, _ in places],
            "video": [v for _, v, _ in places],
            "label": [int(m != "original") for m, _, _ in places],
        }
    )
    return Rows.of(table.append_column("group", pa.array(recordings)) if recordings else table)


def test_scores_of_each_rule():
    assert pick_scores(PROB, LABELS, "disagreement") == pytest.approx([0.6, 0.0, 0.4, 0.3])
    wrong = [(0.1 + 0.2 + 0.7) / 3, 0.4, (0.2 + 0.5 + 0.6) / 3, 0.2]
    assert pick_scores(PROB, LABELS, "hardest") == pytest.approx(wrong)
    # Right at raw and wrong at c40: the first (falls by .6) and the third (by .4).
    fallen = pick_scores(PROB, LABELS, "wrong-at-worst")
    assert fallen[[0, 2]] == pytest.approx([1.6, 1.4]) and np.isneginf(fallen[[1, 3]]).all()


def test_scores_over_several_runs():
    second = np.array([[[0.9, 0.9, 0.9], [0.7, 0.4, 0.4], [0.2, 0.2, 0.9], [0.6, 0.6, 0.6]]])
    both = np.concatenate([PROB, second])
    assert pick_scores(both, LABELS, "disagreement") == pytest.approx([0.3, 0.15, 0.55, 0.15])
    # Runs that fall: 1, 1, 2, 0; the number of runs comes first, then the mean fall.
    assert pick_scores(both, LABELS, "wrong-at-worst")[:3] == pytest.approx([1 + 0.3, 1 + 0.15, 2 + 0.55])
    both[1, 0, 1] = np.nan  # cannot be read
    assert np.isneginf(pick_scores(both, LABELS, "hardest")).tolist() == [True, False, False, False]


def test_probability_one_half_says_real():
    prob = np.array([[[0.6, 0.5], [0.5, 0.6]]])
    scores = pick_scores(prob, np.array([1, 0]), "wrong-at-worst")
    assert scores == pytest.approx([1.1, 1.1])


def test_scores_refuse_what_they_cannot_do():
    with pytest.raises(UserError, match="--pick: got 'best', expected one of"):
        pick_scores(PROB, LABELS, "best")
    with pytest.raises(UserError, match="has one; use hardest"):
        pick_scores(PROB[:, :, :1], LABELS, "disagreement")
    assert pick_scores(PROB[:, :, :1], LABELS, "hardest") == pytest.approx([0.1, 0.4, 0.2, 0.1])


def test_choice_takes_methods_in_turn_and_recordings_shown_least():
    places = [("A", "1", 0), ("A", "1", 1), ("A", "2", 0), ("B", "1", 0), ("B", "2", 0), ("original", "3", 0)]
    found = rows(places, ["r1", "r1", "r2", "r1", "r2", "r3"])
    scores = np.array([0.9, 0.8, 0.1, 0.7, 0.2, -np.inf])
    # A's best, then B's best of the recording not shown yet, then A's other video, then what is left.
    assert choose(scores, found, 4) == [0, 4, 2, 3]
    assert choose(scores, found, 2) == [0, 4]
    assert choose(scores, found, 99) == [0, 4, 2, 3, 1]
    assert choose(np.full(6, -np.inf), found, 3) == []


def test_choice_orders_equals_by_key():
    found = rows([("A", "2", 0), ("A", "1", 0), ("A", "1", 7)])
    assert choose(np.array([0.5, 0.5, 0.5]), found, 3) == [1, 0, 2]


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([10, 10, 10], 6, [2, 2, 2]),
        ([1, 10, 10], 9, [1, 4, 4]),
        ([2, 2], 99, [2, 2]),
        ([5, 5, 5, 5], 2, [1, 0, 1, 0]),
        ([0, 3], 2, [0, 2]),
        ([], 4, []),
        ([10, 10, 10], 7, [3, 2, 2]),
    ],
)
def test_fair_shares(sizes, total, shares):
    assert fair_shares(sizes, total) == shares


def test_spread_is_even_over_methods_videos_and_frames():
    places = [("A", "1", f) for f in range(9)] + [("A", "2", f) for f in range(9)]
    places += [("original", "3", f) for f in range(3)]
    found = rows(places)
    taken = spread(found, 7)  # four of A, two a video; three of the originals
    # Two of nine frames: the middles of its halves, then the originals' own three.
    assert sorted(taken) == [2, 6, 11, 15, 18, 19, 20]
    assert taken == [2, 11, 18, 6, 15, 19, 20]  # the videos in turn
    assert sorted(spread(found, 999)) == list(range(21))
