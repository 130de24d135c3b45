"""metrics.jsonl, the meter and plain progress lines."""

import io
import json

import pytest
import torch
from rich.console import Console

from qadtrain import tracking


def test_records_are_lines_and_a_restart_drops_what_came_after(tmp_path):
    console = Console(file=io.StringIO())
    with tracking.Tracker(tmp_path, console) as tracker:
        for step in (5, 10, 15):
            tracker.record("train", 0, step, {"loss": 1.0 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "tra')  # killed while writing
    with tracking.Tracker(tmp_path, console, global_step=10) as tracker:
        tracker.record("train", 0, 12, {"loss": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["global_step"] for line in lines] == [5, 10, 12]
    assert lines[0] == {"kind": "train", "epoch": 0, "global_step": 5, "loss": 0.2}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_meter_means_and_rates():
    meter = tracking.Meter()
    meter.add({"loss": torch.tensor(1.0), "sometimes": 4.0}, waited_s=0.1, total_s=0.5)
    meter.add({"loss": torch.tensor(2.0), "odd": float("nan")}, waited_s=0.2, total_s=0.5)
    means = meter.take(tuples_per_step=8)
    assert means == pytest.approx({"loss": 1.5, "sometimes": 4.0, "tuples_per_s": 16.0, "data_wait": 0.3})
    meter.add({"loss": 3.0}, waited_s=0.0, total_s=1.0)
    assert meter.take(8)["loss"] == 3.0


def test_plain_lines_are_not_too_many_and_have_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: now[0])
    out = io.StringIO()
    with tracking.StepProgress(Console(file=out), total_steps=100, done_steps=10, tuples_per_step=4) as progress:
        for _ in range(12):
            now[0] += 1.0
            progress.advance("epoch 1/2")
            progress.line("epoch 1/2  loss 0.5")
    lines = out.getvalue().splitlines()
    assert lines == [
        "epoch 1/2  loss 0.5  step 15/100  4 tuples/s  85 s left",
        "epoch 1/2  loss 0.5  step 20/100  4 tuples/s  80 s left",
    ]


def test_a_terminal_gets_a_bar_instead():
    out = io.StringIO()
    with tracking.StepProgress(Console(file=out, force_terminal=True), 2, 0, 4) as progress:
        progress.advance("epoch 1/2")
        progress.line("not shown")
    assert "epoch 1/2" in out.getvalue() and "1/2" in out.getvalue() and "not shown" not in out.getvalue()
