"""Balanced sampling against its definition, and the order of an epoch."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.config import DataConfig
from qadtrain.sampling import EpochBatches, EpochOrder, classes_of, epoch_order, sampled_rows


def test_shuffle_is_a_permutation_cut_to_the_draws():
    order = EpochOrder(103, seed=1, draws=100)
    rows, repeats = order.epoch(3)
    assert np.array_equal(rows, epoch_order(1, 3, 103)[:100]) and not repeats.any()
    some = np.array([5, 9, 11, 40])
    assert sorted(EpochOrder(some, seed=1, draws=4).epoch(0)[0]) == some.tolist()


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=6), draws=st.integers(1, 80), seed=st.integers(0, 5))
def test_balanced_epochs_draw_classes_equally_and_exhaust_a_class_before_repeating(sizes, draws, seed):
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = EpochOrder(len(classes), seed=seed, draws=draws, classes=classes)
    drawn: list[int] = []
    for epoch in range(4):
        rows, repeats = order.epoch(epoch)
        assert len(rows) == draws
        counts = np.bincount(classes[rows], minlength=len(sizes))
        assert counts.max() - counts.min() <= 1
        assert len({*zip(rows.tolist(), repeats.tolist(), strict=True)}) == draws  # each draw has a key of its own
        drawn += rows.tolist()
        again, _ = EpochOrder(len(classes), seed=seed, draws=draws, classes=classes).epoch(epoch)
        assert np.array_equal(rows, again)
    total = np.bincount(classes[drawn], minlength=len(sizes))
    assert total.max() - total.min() <= 1  # the odd draws go round
    for number, size in enumerate(sizes):
        of_class = [row for row in drawn if classes[row] == number]
        for first in range(0, len(of_class), size):  # pass after pass over the class, also across epochs
            piece = of_class[first : first + size]
            assert len(set(piece)) == len(piece)


def test_balanced_order_is_mixed_and_differs_by_epoch_and_seed():
    classes = np.repeat([0, 1], 500)
    rows, _ = EpochOrder(1000, seed=0, draws=1000, classes=classes).epoch(0)
    halves = classes[rows].reshape(10, 100).mean(axis=1)
    assert (np.abs(halves - 0.5) < 0.2).all()  # no stretch of one class alone
    assert not np.array_equal(rows, EpochOrder(1000, seed=0, draws=1000, classes=classes).epoch(1)[0])
    assert not np.array_equal(rows, EpochOrder(1000, seed=1, draws=1000, classes=classes).epoch(0)[0])


def table(*rows: tuple[str, str, int]) -> pa.Table:
    """Index of (dataset, method, label) rows, in two chunks as a set of two shards has it."""
    columns = {
        "dataset": pa.array([row[0] for row in rows]),
        "method": pa.array([row[1] for row in rows]),
        "label": pa.array([row[2] for row in rows], pa.int8()),
    }
    whole = pa.table(columns)
    return pa.concat_tables([whole.slice(0, 2), whole.slice(2)])


def test_classes_are_labels_or_methods_with_the_originals_as_one():
    one = table(("ffpp", "original", 0), ("ffpp", "DF", 1), ("ffpp", "NT", 1), ("ffpp", "actors", 0), ("ffpp", "DF", 0))
    assert classes_of(one, "shuffle") is None
    assert classes_of(one, "label").numbers.tolist() == [0, 1, 1, 0, 0]
    methods = classes_of(one, "method")
    assert [methods.names[number] for number in methods.numbers] == ["original", "DF", "NT", "original", "original"]
    two = table(("ffpp", "original", 0), ("ffpp", "DF", 1), ("celeb", "DF", 1), ("celeb", "YouTube", 0))
    methods = classes_of(two, "method")
    named = [methods.names[number] for number in methods.numbers]
    assert named == ["ffpp/original", "ffpp/DF", "celeb/DF", "celeb/original"]


def test_batches_of_balanced_sampling_resume_and_are_shared_by_ranks():
    classes = np.repeat([0, 1, 2], [40, 4, 8])
    options = {"seed": 2, "epochs": 3, "classes": classes}
    whole = list(EpochBatches(52, 8, **options))
    assert len(whole) == 18 and any(len(request) == 3 for batch in whole for request in batch)
    assert list(EpochBatches(52, 8, **options, start_epoch=1, start_step=4)) == whole[10:]
    parts = [list(EpochBatches(52, 8, **options, rank=rank, ranks=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_pairs_count_both_tuples_and_an_odd_share_is_refused():
    sampler = EpochBatches(np.arange(0, 40, 2), 8, seed=0, epochs=1, tuples_per_request=2)
    assert sampler.steps_per_epoch == 5 and {len(batch) for batch in sampler} == {4}
    assert sorted(index for batch in sampler for _, index in batch) == list(range(0, 40, 2))
    with pytest.raises(UserError, match=r"got 8, expected a multiple of the 3 processes times 2, as each request"):
        EpochBatches(20, 8, seed=0, epochs=1, tuples_per_request=2, ranks=3)
    with pytest.raises(UserError, match="expected at most 40"):
        EpochBatches(20, 42, seed=0, epochs=1, tuples_per_request=2)


def test_sampled_rows_of_a_shard_set(shards_dir, make_shards, tmp_path):
    with ShardSet(shards_dir, "train") as shards:
        assert sampled_rows(shards, DataConfig()) == (96, None)
        rows, classes = sampled_rows(shards, DataConfig(sampling="method"))
        assert rows == 96 and sorted(np.bincount(classes)) == [24, 24, 48]
        rows, classes = sampled_rows(shards, DataConfig(self_blended=True))
        assert classes is None and rows.tolist() == list(range(0, 96, 2))
    real, fake = (make_shards(tmp_path / str(label), {"train": 8}, labels=(label,)) for label in (0, 1))
    with ShardSet(real, "train") as shards, pytest.raises(UserError, match=r"data.sampling: got 'label'.*real alone"):
        sampled_rows(shards, DataConfig(sampling="label"))
    with ShardSet(fake, "train") as shards, pytest.raises(UserError, match="expected real tuples, got none"):
        sampled_rows(shards, DataConfig(self_blended=True))
