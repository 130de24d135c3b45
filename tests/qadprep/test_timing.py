import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from qadprep.timing import StageTimer, peak_rss_mib


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    result = Clock()
    monkeypatch.setattr("qadprep.timing.time", SimpleNamespace(perf_counter=result))
    return result


def test_a_stage_inside_another_counts_once(clock: Clock) -> None:
    timer = StageTimer()
    with timer.stage("write"):
        clock.pass_by(1)
        with timer.stage("encode"):
            clock.pass_by(4)
            with timer.stage("warp"):
                clock.pass_by(16)
        with timer.stage("encode"):
            clock.pass_by(2)
        clock.pass_by(8)
    with timer.stage("write"):
        clock.pass_by(32)
    assert timer.seconds == {"write": 41, "encode": 6, "warp": 16}


def test_what_is_outside_all_stages_is_others(clock: Clock) -> None:
    timer = StageTimer()
    with timer.stage("probe"):
        clock.pass_by(3)
    clock.pass_by(5)
    assert timer.with_others() == {"probe": 3, "others": 5}
    assert timer.seconds == {"probe": 3}  # asking changes nothing


def test_only_waiting_for_items_is_timed(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            clock.pass_by(1)
            yield number

    timer = StageTimer()
    for number in timer.each("decode", slow()):
        with timer.stage("warp"):
            clock.pass_by(10 * number)
        clock.pass_by(100)
    assert timer.seconds == {"decode": 3, "warp": 30} and timer.with_others()["others"] == 300


def test_a_stage_that_fails_is_timed_and_fails(clock: Clock) -> None:
    timer = StageTimer()
    with pytest.raises(KeyError), timer.stage("probe"):
        clock.pass_by(2)
        raise KeyError
    with timer.stage("write"):
        clock.pass_by(1)
    assert timer.seconds == {"probe": 2, "write": 1}


def test_threads_nest_by_themselves(clock: Clock) -> None:
    timer = StageTimer()

    def other() -> None:
        with timer.stage("detect"):
            clock.pass_by(3)

    with timer.stage("decode"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    # The other thread's stage takes nothing off this one's, and together they are no less than what has passed.
    assert timer.seconds == {"detect": 3, "decode": 3} and timer.with_others()["others"] == 0


def test_peak_memory_is_in_mebibytes() -> None:
    before = peak_rss_mib()
    block = np.ones(int((before + 200) * 2**17), np.float64)
    assert before + 200 <= peak_rss_mib() < 2 * before + 1000
    assert block.sum() > 0
