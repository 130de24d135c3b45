"""Trains a network without BatchNorm; the tests start it alone and under torchrun.

    python fit_group_norm.py SHARDS RUN [--resume] [--stop-after N] [--notes FILE] [--wait-for-signals]
        [section.field=value ...]

BatchNorm's statistics are those of a process's own pictures; without it one process and several compute the same.
"""

import argparse
import io
import json
import os
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from qadtrain.config_io import load_config
from qadtrain.fit import fit
from qadtrain.models import register
from qadtrain.trainer import Trainer


class GroupNormCnn(nn.Module):
    """Two convolutions with GroupNorm, with timm's three methods."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(2, 12), nn.ReLU())
        self.classifier = nn.Linear(12, 2)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stage2(self.stage1(images))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = maps.mean(dim=(2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier


def main() -> None:
    """Run fit() with every batch's indices and loss noted, by process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--wait-for-signals", action="store_true")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    register("group_norm", lambda _config: GroupNormCnn())
    notes: list[dict] = []
    train_step = Trainer.train_step

    def noting(self, batch, *, measure):
        values = train_step(self, batch, measure=measure)
        loss = sum(self.ranks.gather_objects(float(values["loss"]))) / self.ranks.world
        order = [index for part in self.ranks.gather_objects(batch.indices.tolist()) for index in part]
        notes.append({"step": self.position.global_step, "loss": loss, "order": order})
        return values

    Trainer.train_step = noting
    left = given.stop_after

    def should_stop() -> str:
        nonlocal left
        left -= 1
        return "SIGTERM" if left == 0 else ""

    base = ["model.name=group_norm", 'model.taps=["stage1","stage2"]', "hsic.weights=[0.5,0.5]", "optim.epochs=2"]
    base += ["awp.start_epoch=1", "awp.gamma=0.05", "data.num_workers=0", "train.device=cpu"]
    config = load_config("tiny", overrides=[*base, *given.overrides])
    if given.wait_for_signals:
        given.run.mkdir(exist_ok=True)
        with (given.run / "pids.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
    summary = fit(
        given.shards,
        given.run,
        config,
        resume=given.resume,
        console=Console(file=io.StringIO()),
        should_stop=None if given.wait_for_signals else should_stop,
    )
    if summary.stopped_by:
        print(f"stopped by {summary.stopped_by}")
    if given.notes and os.environ.get("RANK", "0") == "0":
        given.notes.write_text(json.dumps(notes))


if __name__ == "__main__":
    main()
