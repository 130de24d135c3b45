"""``--batch auto``: the search, the line of the CPU, the GPU's limit, and a run that takes what was found."""

import io
import mmap
import time

import pytest
import torch
from helpers.training import CPU, quiet_fit, tiny
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain import autobatch
from qadtrain.autobatch import Trial, choose_batch, largest_on_line, largest_that_fits
from qadtrain.config_io import load_config, read_toml
from qadtrain.distributed import Ranks
from qadtrain.fit import resolve


@given(limit=st.integers(0, 5000), unit=st.sampled_from([4, 8, 12]), times=st.integers(1, 3), most=st.integers(1, 400))
def test_search_ends_near_the_limit_and_never_above(limit, unit, times, most):
    smallest, most, tried = unit * times, unit * max(times, most), []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found = largest_that_fits(fits, smallest, most, unit)
    assert all(size % unit == 0 and smallest <= size <= most for size in tried)
    if limit < smallest:
        assert found == 0 and tried == [smallest]
        return
    best = min(limit // unit * unit, most)
    assert found in tried and found <= best
    assert best - found <= max(unit, found * autobatch.RESOLUTION)
    assert len(tried) < 20


def test_line_through_two_measurements():
    # 1000 bytes and 100 for each tuple: 4 need 1400, 8 need 1800; the second over 8 is 225 a tuple, the steeper line.
    assert largest_on_line(4, [1400, 1800], 10_000, 1000, 4) == 44  # 8 + 8200 / 225
    assert largest_on_line(4, [1400, 1800], 10_000, 32, 4) == 32
    # Each tuple needs more than the one before: the slope between the two counts.
    assert largest_on_line(4, [400, 4400], 10_000, 1000, 4) == 12  # 8 + 5600 / 1000
    assert largest_on_line(4, [400, 800], 350, 1000, 4) == 0
    assert largest_on_line(4, [0, 0], 1000, 16, 4) == 16


def chosen(shards_dir, *overrides, ranks: Ranks | None = None, monkeypatch=None) -> int:
    with ShardSet(shards_dir, "train") as shards:
        config = resolve(tiny("data.batch_tuples=0", *overrides), shards)
        if ranks:
            monkeypatch.setattr(Ranks, "gather_objects", lambda _self, value: [value, value])
        return choose_batch(config, shards, ranks or Ranks(), CPU, Console(file=io.StringIO()))


def test_cpu_takes_its_most_where_memory_allows_and_less_where_not(shards_dir, monkeypatch):
    assert chosen(shards_dir) == 64
    monkeypatch.setattr(autobatch, "resident_bytes", lambda: 0)
    monkeypatch.setattr(autobatch, "available_bytes", lambda: 10_000)
    needed = iter([2000, 4000])  # 500 bytes a tuple

    class Measured:
        def __enter__(self):
            self.bytes = next(needed)
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(autobatch, "PeakMemory", Measured)
    assert chosen(shards_dir) == 16  # 0.9 * 10000 / 500 = 18
    needed = iter([20_000, 40_000])
    with pytest.raises(UserError, match=r"data.batch_tuples: not even 4 tuples fit the memory of cpu"):
        chosen(shards_dir)


def test_multiple_of_four_of_parts_of_processes_and_of_groups(shards_dir, make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(autobatch, "MOST_TUPLES_ON_CPU", 40)
    monkeypatch.setattr(Trial, "run", lambda _self, _size: None)
    assert chosen(shards_dir, "optim.accumulate_steps=3") == 36
    assert chosen(shards_dir, "optim.accumulate_steps=3", ranks=Ranks(0, 2), monkeypatch=monkeypatch) == 36
    assert chosen(shards_dir, "hsic.group_tuples=5") == 40
    few = make_shards(tmp_path / "few", {"train": 6})
    assert chosen(few) == 4
    with pytest.raises(UserError, match="an automatic batch needs at least 8 tuples in the train split, got 6"):
        chosen(few, "optim.accumulate_steps=2")


def test_self_blended_batches_are_pairs_of_real_tuples(shards_dir, make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Trial, "run", lambda _self, _size: None)
    few = make_shards(tmp_path / "few", {"train": 40}, labels=(0, 1, 1, 1))  # 10 real tuples, so 20 of an epoch
    assert chosen(few, "data.self_blended=true") == 20
    monkeypatch.setattr(autobatch, "MOST_TUPLES_ON_CPU", 40)
    assert chosen(shards_dir, "data.self_blended=true", "optim.accumulate_steps=3") == 36
    with pytest.raises(UserError, match="an automatic batch needs at least 24 tuples in the train split, got 20"):
        chosen(few, "data.self_blended=true", "optim.accumulate_steps=6")


def test_peak_memory_sees_what_is_given_back():
    with autobatch.PeakMemory() as peak:
        before = autobatch.resident_bytes()
        with mmap.mmap(-1, 50_000_000) as block:  # pages of its own: malloc may have room that was touched before
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            deadline = time.monotonic() + 20
            while peak.bytes - before < 40e6 and time.monotonic() < deadline:  # the watcher too must get a turn
                time.sleep(0.001)
    assert 40e6 < peak.bytes - before < 400e6


class FakeGpu:
    """What Trial asks of torch.cuda, for a GPU of 1000 bytes of which 100 are another program's."""

    def __init__(self, monkeypatch):
        self.reserved, self.calls = 50, []
        for name, answer in {
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda _d: None,
            "synchronize": lambda _d: None,
            "mem_get_info": lambda _d: (1000 - 100 - 50, 1000),
            "memory_reserved": lambda _d: 50,
            "max_memory_reserved": lambda _d: self.reserved,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    def run(self, size: int) -> None:
        self.calls.append(size)
        self.reserved = 50 + 10 * size
        if self.reserved > 900:
            raise torch.cuda.OutOfMemoryError("no memory")


def test_a_gpu_keeps_a_tenth_free(shards_dir, monkeypatch):
    with ShardSet(shards_dir, "train") as shards:
        config = resolve(tiny("data.batch_tuples=0"), shards)
        trial = Trial(config, shards, CPU, 1)
    gpu = FakeGpu(monkeypatch)
    trial.run, trial.device = gpu.run, torch.device("cuda:0")
    monkeypatch.setattr(autobatch.gc, "collect", lambda: None)  # slow, and nothing is to be given back
    # 100 of others + 50 + 10 a tuple: 72 tuples use 870 of 1000, 76 would use 910, and 88 do not fit at all.
    assert [trial.fits_gpu(size) for size in (72, 76, 88)] == [True, False, False]
    assert largest_that_fits(trial.fits_gpu, 4, 400, 4) == 72


def test_a_run_takes_the_batch_that_was_found_and_resumes_with_it(shards_dir, tmp_path):
    config = load_config("tiny", overrides=["data.batch_tuples=0", "optim.epochs=2", "train.device=cpu"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 0})})
    summary = quiet_fit(shards_dir, tmp_path / "run", config)
    assert summary.batch_tuples == 64 and summary.steps == 2
    assert read_toml(tmp_path / "run" / "config.toml")["data"]["batch_tuples"] == 64
    assert quiet_fit(shards_dir, tmp_path / "run", config, resume=True).batch_tuples == 64
