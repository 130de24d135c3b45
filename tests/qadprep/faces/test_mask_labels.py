import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.faces.mask_labels import FAKE_VOTE, MIN_COVERED, REAL_VOTE, covered_share, vote


def test_share_of_a_box_under_the_mask() -> None:
    mask = np.zeros((40, 60, 3), np.uint8)
    mask[10:30, 20:40] = 255
    assert covered_share(mask, np.array([20, 10, 40, 30])) == 1
    assert covered_share(mask, np.array([10, 10, 30, 30])) == 0.5
    assert covered_share(mask, np.array([10, 0, 30, 20])) == 0.25
    assert covered_share(mask, np.array([0, 0, 20, 10])) == 0
    # Only the part inside the picture counts; a box outside has none.
    assert covered_share(mask, np.array([20, -50, 40, 30])) == pytest.approx(20 / 30)
    assert covered_share(mask, np.array([70, 50, 90, 70])) == 0
    assert covered_share(mask, np.array([-9, -9, -1, -1])) == 0


def test_grey_of_a_lossy_mask_counts_above_the_middle_only() -> None:
    mask = np.full((10, 10, 3), 127, np.uint8)
    assert covered_share(mask, np.array([0, 0, 10, 10])) == 0
    assert covered_share(mask + 1, np.array([0, 0, 10, 10])) == 1


def test_a_coloured_mask_counts_as_a_white_one() -> None:
    for channel in range(3):
        mask = np.zeros((10, 10, 3), np.uint8)
        mask[:, :5, channel] = 255
        assert covered_share(mask, np.array([0, 0, 10, 10])) == 0.5


def test_a_face_is_what_most_of_its_frames_say() -> None:
    covered = {(frame, 0): 0.6 for frame in range(10)}  # fake
    covered |= {(frame, 1): 0.05 for frame in range(10)}  # real
    covered |= {(frame, 2): 0.6 if frame < 5 else 0.0 for frame in range(10)}  # nobody knows
    covered[9, 0], covered[9, 1] = 0.0, 0.9
    labels = vote(covered)
    assert labels.label == {0: 1, 1: 0, 2: None}
    assert labels.votes == {0: 0.9, 1: 0.1, 2: 0.5}
    assert labels.status == {(9, 0): "mask_disagrees", (9, 1): "mask_disagrees"} | {
        (frame, 2): "label_doubtful" for frame in range(10)
    }


@given(st.dictionaries(st.tuples(st.integers(0, 50), st.integers(0, 3)), st.floats(0, 1)))
def test_every_frame_agrees_with_its_label_or_has_a_reason(covered: dict[tuple[int, int], float]) -> None:
    labels = vote(covered)
    for (frame, face), share in covered.items():
        label = labels.label[face]
        if label is None:
            assert labels.status[frame, face] == "label_doubtful" and REAL_VOTE < labels.votes[face] < FAKE_VOTE
        elif (share >= MIN_COVERED) == bool(label):
            assert (frame, face) not in labels.status
        else:
            assert labels.status[frame, face] == "mask_disagrees"
    assert set(labels.label) == {face for _, face in covered}
