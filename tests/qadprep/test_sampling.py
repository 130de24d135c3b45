import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.sampling import draw, sample_indices


@given(st.integers(1, 900), st.integers(1, 100), st.integers(0, 5))
def test_frames_are_spread_and_spares_are_the_rest(length: int, count: int, seed: int) -> None:
    chosen, spares = sample_indices(length, count, seed, "g")
    assert chosen == sorted(set(chosen)) and len(chosen) == min(length, count)
    assert sorted(chosen + spares) == list(range(length))
    if length > count:
        for part, index in enumerate(chosen):
            assert part * length // count <= index < (part + 1) * length // count


def test_choices_never_change() -> None:
    """Frozen: a release that draws other frames makes other datasets from the same seed."""
    assert sample_indices(300, 5, 0, "ffpp/000")[0] == [48, 84, 162, 181, 282]
    assert draw(0, "a", 1) == 0x699F66CEB18A8CE7


def test_seed_and_group_matter() -> None:
    first = sample_indices(300, 20, 0, "a")
    assert first != sample_indices(300, 20, 1, "a")
    assert first != sample_indices(300, 20, 0, "b")


def test_draws_are_even() -> None:
    values = [draw(0, index) / 2**64 for index in range(4000)]
    for tenth in range(10):
        assert 330 < sum(tenth / 10 <= value < (tenth + 1) / 10 for value in values) < 470


@pytest.mark.parametrize(("length", "count"), [(0, 5), (5, 0)])
def test_nothing_to_sample(length: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sample_indices(length, count, 0, "a")
