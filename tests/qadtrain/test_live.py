"""The live table on a terminal, and plain lines elsewhere."""

import io
from itertools import pairwise

import pytest
from rich.console import Console

from qadtrain import live

VALUES = {
    "loss": 0.5, "ce": 0.6, "hsic": 0.25, "hsic/layer1": 0.125, "cka/layer1": 0.75, "cka/layer2[0]": 0.5,
    "awp_ce_rise": 0.0625, "lr": 2e-4, "grad_norm": 1.5, "tuples_per_s": 40.0, "data_wait": 0.25, "memory_gb": 3.25,
    "skipped_steps": 0, "skipped_tuples": 2,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    return now


def table(console: Console, **more) -> live.LiveTable:
    sizes = {"total_steps": 100, "done_steps": 10, "steps_per_epoch": 50, "epochs": 2, "tuples_per_step": 4}
    return live.LiveTable(console, **sizes, **more)


def test_plain_lines_are_not_too_many_and_have_rate_and_time_left(clock):
    out = io.StringIO()
    with table(Console(file=out)) as shown:
        for _ in range(12):
            clock[0] += 1.0
            shown.advance()
            shown.show(VALUES)
    said = "loss 0.5  ce 0.6  hsic 0.25  awp_ce_rise 0.0625  lr 0.0002  cka 0.75/0.50  4 tuples/s  data wait 25 %"
    assert out.getvalue().splitlines() == [
        f"epoch 1/2  step 15/50  {said}  85 s left".replace("85 s", "1 min"),
        f"epoch 1/2  step 20/50  {said}  80 s left".replace("80 s", "1 min"),
    ]


def test_a_terminal_shows_every_part_and_markup_in_names_is_text(clock):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40, color_system=None)
    with table(console, best="auc/average 0.9000 (epoch 1)") as shown:
        clock[0] += 10
        shown.advance()
        shown.show(VALUES)
        console.print("epoch 1 done", markup=False)  # a line above the table, which is drawn again under it
        shown.status("validating")
    frames = out.getvalue()
    assert "epoch 1 done" in frames
    assert "best: auc/average 0.9000 (epoch 1)" in frames
    last = frames[frames.rindex("epoch 1/2") :]
    for text in (
        "11/50",
        "11/100",
        "validating",
        "cross-entropy",
        "0.6",
        "AWP rise",
        "0.0625",
        "learning rate",
        "0.0002",
    ):
        assert text in last, text
    for text in ("gradient norm", "1.5", "tuples/s", "data wait", "25 %", "memory", "3.2 GB", "skipped tuples", "2"):
        assert text in last, text
    assert "skipped steps" not in last and "[dim]" not in frames
    rows = [line.split() for line in last.splitlines()]
    assert ["layer1", "0.125", "0.75"] in rows and ["layer2[0]", "-", "0.5"] in rows
    assert "cka" not in last  # no plain line beside the table


def test_the_table_is_drawn_four_times_a_second_at_most(clock, monkeypatch):
    drawn = []
    with table(Console(file=io.StringIO(), force_terminal=True)) as shown:
        refresh = shown._live.refresh
        monkeypatch.setattr(shown._live, "refresh", lambda: (drawn.append(clock[0]), refresh()))
        for _ in range(1000):
            clock[0] += 0.01
            shown.advance()
            shown.show(VALUES)
    assert 38 <= len(drawn) <= 41  # ten seconds, and one at the end
    gaps = [after - before for before, after in pairwise(drawn[:-1])]
    assert min(gaps) >= live.REFRESH_EVERY_S - 1e-9


def test_time_left_follows_the_rate_of_this_attempt(clock):
    with table(Console(file=io.StringIO())) as shown:
        assert shown.left_s == 0.0
        clock[0] += 20.0
        for _ in range(40):
            shown.advance()
        assert shown.tuples_per_s == 8.0 and shown.left_s == 25.0
        assert shown._place() == (1, 50)  # full, not the next one empty
        shown.advance()
        assert shown._place() == (2, 1)
    assert live._duration(59) == "59 s" and live._duration(600) == "10 min" and live._duration(7500) == "2 h 05 min"


def test_the_other_processes_are_silent(clock):
    out = io.StringIO()
    with table(Console(file=out, force_terminal=True), enabled=False) as shown:
        clock[0] += 10
        shown.advance()
        shown.show(VALUES)
        shown.best("better")
    assert out.getvalue() == ""
