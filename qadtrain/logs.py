"""What a run opens to write and show: the records of :mod:`qadtrain.tracking` and the table of :mod:`qadtrain.live`."""

import sys
from pathlib import Path

from rich.console import Console

from qadtrain.config import Config
from qadtrain.distributed import Ranks
from qadtrain.live import LiveTable
from qadtrain.position import Position
from qadtrain.tracking import Tracker


def open_logs(
    run_dir: Path,
    console: Console,
    config: Config,
    ranks: Ranks,
    position: Position,
    best_by: str,
    steps_per_epoch: int,
    done_steps: int,
) -> tuple[Tracker, LiveTable]:
    """Both, to be entered as context managers; silent on every process but the main one."""
    tracker = Tracker(
        run_dir,
        console,
        position.global_step,
        wandb=config.train.wandb,
        config=config,
        enabled=ranks.is_main,
    )
    live = LiveTable(
        console,
        total_steps=steps_per_epoch * config.optim.epochs,
        done_steps=done_steps,
        steps_per_epoch=steps_per_epoch,
        epochs=config.optim.epochs,
        tuples_per_step=config.data.batch_tuples,
        best=position.best_text(best_by),
        enabled=ranks.is_main,
    )
    return tracker, live


def say_from_anywhere(console: Console, ranks: Ranks, text: str) -> None:
    """A line that only this process knows, such as a damaged tuple in its share of a batch."""
    if ranks.is_main:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(f"process {ranks.rank}: {text}", file=sys.stderr)
