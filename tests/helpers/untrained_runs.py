"""Run folders with random weights: what evaluation reads of a run, without the time of training one."""

from pathlib import Path

import torch

from helpers.run_folders import FACTS
from qadprep.shardset import ShardSet
from qadtrain.checkpoint import save_best, write_run_json
from qadtrain.config_io import load_config, to_toml
from qadtrain.models import build_model


def untrained_run(folder: Path, shards: Path, seed: int = 0, *, bias: tuple[float, float] = (0.0, 0.0)) -> Path:
    """A run of the preset tiny at 32 px that has a checkpoint ``best``.

    Args:
        shards: the set that it claims to be trained on.
        bias: added to the two logits.
    """
    folder.mkdir(parents=True)
    overrides = ["data.image_size_px=32", "train.device=cpu", "data.num_workers=0", "data.batch_tuples=16"]
    config = load_config("tiny", None, overrides)
    (folder / "config.toml").write_text(to_toml(config))
    with ShardSet(shards) as opened:
        write_run_json(folder, FACTS | {"shards": FACTS["shards"] | {"fingerprint": opened.fingerprint}})
    torch.manual_seed(seed)
    model, _ = build_model(config.model, load_weights=False)
    model.eval()
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(30)  # logits of some size
        last.bias.add_(torch.tensor(bias))
    save_best(folder, model, {"epoch": 0, "global_step": 1})
    return folder
