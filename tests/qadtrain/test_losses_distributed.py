"""The loss under DDP in two real processes against one process on the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qadtrain.config import HsicConfig
from qadtrain.distributed import Ranks
from qadtrain.losses import QadLoss
from qadtrain.models import ModelOutput

B, M, WORLD = 12, 3, 2
CASES = {
    "gathered": {"scope": "gathered"},
    "gathered, inside classes": {"scope": "gathered", "given_label": True, "estimator": "nhsic_cca"},
    "groups across the processes": {"scope": "gathered", "group_tuples": 12, "kernel": "imq"},
    "groups inside the processes": {"scope": "gathered", "group_tuples": 6},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(4 * 4, 2)

    def forward(self, images: torch.Tensor) -> ModelOutput:
        features = self.first(images).tanh()
        return ModelOutput(self.second(features.flatten(1)), {"first": features})


def gradients(ranks: Ranks, case: dict) -> dict[str, torch.Tensor]:
    """Of this process's part of one fixed batch, averaged by DDP where there are two."""
    torch.manual_seed(0)
    net = Net()
    images = torch.randn(B * M, 3, 4, 4)
    labels = torch.tensor([1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0])
    own = B // ranks.world
    part = slice(ranks.rank * own, (ranks.rank + 1) * own)
    config = HsicConfig(alpha=0.5, weights=[1.0], **case)
    loss = QadLoss(config, ["first"], M, torch.tensor([1.5, 0.75]), label_smoothing=0.1, ranks=ranks)
    wrapped = DistributedDataParallel(net) if ranks.world > 1 else net
    output = wrapped(images[part.start * M : part.stop * M])
    loss(output, labels[part]).total.backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    results = {name: gradients(Ranks(rank, WORLD, rank), case) for name, case in CASES.items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_gradient_is_that_of_one_process_on_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    for rank in range(WORLD):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, case in CASES.items():
            for parameter, expected in gradients(Ranks(), case).items():
                got = results[name][parameter]
                assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6), (name, parameter)
                assert expected.abs().sum() > 0
