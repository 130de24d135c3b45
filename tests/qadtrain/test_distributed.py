"""Exchanges between two real processes, and the environment that says there are several.

The processes run :func:`in_each_process` of this file, write what they got, and the tests compare that with what one
process computes.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from qadprep.errors import UserError
from qadtrain import distributed
from qadtrain.awp import AdversarialWeights
from qadtrain.distributed import Ranks, open_ranks

VARIABLES = (*distributed.PLACE_VARIABLES, *distributed.MEETING_VARIABLES)


def network() -> nn.Module:
    """No BatchNorm, so that two halves of a batch make the whole one."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def global_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 2


def global_features() -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(4))


def statistic(features: torch.Tensor) -> torch.Tensor:
    """A loss that mixes all rows, as HSIC does."""
    return (features @ features.T).tanh().square().mean()


def perturbed(ranks: Ranks, how: str, poison: bool = False) -> dict:
    images, labels = global_batch()
    mine = slice(ranks.rank * 8 // ranks.world, (ranks.rank + 1) * 8 // ranks.world)
    model = network()
    adversary = AdversarialWeights(model, 0.05, ranks=ranks, direction=how)
    loss = functional.cross_entropy(model(images[mine]), labels[mine])
    perturbation = adversary.find(loss * torch.nan if poison else loss)
    with adversary.applied(perturbation):
        inside = [w.detach().clone() for w in adversary.parameters()]
    after = [w.detach().clone() for w in adversary.parameters()]
    return {"values": perturbation.values, "finite": perturbation.finite, "inside": inside, "after": after}


def exchanges(ranks: Ranks) -> dict:
    """Every method of Ranks once; with one process, what two together must come to."""
    mine = slice(ranks.rank * 8 // ranks.world, (ranks.rank + 1) * 8 // ranks.world)
    out = {"ranks": (ranks.rank, ranks.world, ranks.local_rank, ranks.is_main)}

    distributed.BUCKET_BYTES = 64  # several buckets, and a tensor larger than one
    mean = [torch.full((30,), 1.0 + ranks.rank), torch.full((2, 3, 2, 2), 3.0 * ranks.rank), torch.tensor(2.0)]
    mean[1] = mean[1].contiguous(memory_format=torch.channels_last)
    mean += [torch.tensor([60000.0, 1.0 + 2 * ranks.rank], dtype=torch.float16), torch.tensor([1.0, 1.0])]
    mean[4][ranks.rank] = torch.nan
    mean += [torch.full((2,), 2.0**-200, dtype=torch.float64) * (1 + ranks.rank)]
    ranks.mean_(mean)
    out["mean"] = mean

    own = torch.tensor([ranks.rank + 1, 10], dtype=torch.int64)
    out["sum"], out["own"] = ranks.sum(own), own

    weights = torch.eye(5).requires_grad_()
    local = global_features()[mine] @ weights
    gathered = ranks.gather(local)
    statistic(gathered).backward()
    ranks.mean_([weights.grad])
    out["gathered"], out["gather_grad"] = gathered.detach(), weights.grad

    half = global_features()[mine].bfloat16().requires_grad_()
    both = ranks.gather(half)
    (both.float() * (ranks.rank + 1)).sum().backward()
    out["half"], out["half_grad"] = both.detach(), half.grad

    sent = [torch.full((3,), float(ranks.rank)), torch.tensor(ranks.rank == 0), torch.tensor([7 + ranks.rank])]
    sent += [torch.full((1, 2, 2, 2), ranks.rank - 0.0).to(memory_format=torch.channels_last)]
    ranks.broadcast_(sent)
    out["broadcast"] = sent

    out["any"] = [ranks.any(False), ranks.any(ranks.rank == 1), ranks.any(True)]
    out["objects"] = ranks.gather_objects({"rank": ranks.rank, "skipped": [1] * ranks.rank})
    out["object"] = ranks.broadcast_object(f"from {ranks.rank}")
    ranks.barrier()

    out["synchronised"], out["local"] = perturbed(ranks, "synchronised"), perturbed(ranks, "local")
    for how in ("synchronised", "local"):
        out[f"poisoned {how}"] = perturbed(ranks, how, poison=ranks.rank == 1)
    return out


def in_each_process(folder: Path) -> None:
    torch.set_num_threads(1)
    with open_ranks("cpu") as (ranks, device):
        out = exchanges(ranks) | {"device": str(device)}
    out["closed"] = not torch.distributed.is_initialized()
    torch.save(out, folder / f"{ranks.rank}.pt")


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | variables


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What each of two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_two_processes_exchange_what_they_should(results):
    first, second = results
    assert first["ranks"] == (0, 2, 0, True) and second["ranks"] == (1, 2, 1, False)
    for out in results:
        assert out["device"] == "cpu" and out["closed"]

        vector, picture, scalar, half, poisoned, small = out["mean"]
        assert torch.equal(vector, torch.full((30,), 1.5))
        assert torch.equal(picture, torch.full((2, 3, 2, 2), 1.5)) and scalar == 2
        assert picture.is_contiguous(memory_format=torch.channels_last)
        assert half.dtype == torch.float16 and half.tolist() == [60000, 2]  # their sum in float16 would be inf
        assert poisoned.isnan().all()  # each process had one of the two
        assert small.dtype == torch.float64 and small.tolist() == [1.5 * 2.0**-200] * 2

        assert out["sum"].tolist() == [3, 20] and out["sum"].dtype == torch.int64
        assert out["any"] == [False, True, True]
        assert out["objects"] == [{"rank": 0, "skipped": []}, {"rank": 1, "skipped": [1]}]
        assert out["object"] == "from 0"
        floats, flag, number, picture = out["broadcast"]
        assert floats.tolist() == [0, 0, 0] and flag.item() is True and number.tolist() == [7]
        assert not picture.any() and picture.is_contiguous(memory_format=torch.channels_last)

        assert torch.equal(out["half"], global_features().bfloat16())
        assert torch.equal(out["half_grad"], torch.full((4, 5), 3.0, dtype=torch.bfloat16))  # 1 of rank 0 + 2 of rank 1
    assert first["own"].tolist() == [1, 10] and second["own"].tolist() == [2, 10]  # sum left its argument alone


@pytest.mark.slow
def test_gather_gives_the_gradient_of_one_process_with_the_whole_batch(results):
    alone = exchanges(Ranks())
    for out in results:
        assert torch.equal(out["gathered"], alone["gathered"])
        assert alone["gather_grad"].norm() > 0.01
        assert torch.allclose(out["gather_grad"], alone["gather_grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_synchronised_direction_is_that_of_the_global_batch_and_equal_to_the_bit(results):
    first, second = (out["synchronised"] for out in results)
    assert_same_bits(first["values"], second["values"])
    assert_same_bits(first["inside"], second["inside"])
    alone = perturbed(Ranks(), "synchronised")
    for v, expected in zip(first["values"], alone["values"], strict=True):
        assert (v - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
def test_local_directions_differ_and_the_weights_come_back_to_the_same_bits(results):
    first, second = (out["local"] for out in results)
    start = [w.detach() for w in AdversarialWeights(network(), 0.05).parameters()]
    for v, other, w in zip(first["values"], second["values"], start, strict=True):
        assert (v - other).norm() > 0.1 * v.norm()
        assert v.norm().item() == pytest.approx(0.05 * w.norm().item(), rel=1e-5)
    assert_same_bits(first["after"], start)
    assert_same_bits(second["after"], start)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["synchronised", "local"])
def test_a_gradient_that_is_not_finite_in_one_process_moves_nothing_in_both(results, how):
    for out in results:
        assert not out[f"poisoned {how}"]["finite"]
        assert not any(v.any() for v in out[f"poisoned {how}"]["values"])


def test_one_process_exchanges_nothing():
    ranks, tensor = Ranks(), torch.ones(2, requires_grad=True)
    assert ranks.is_main and ranks.sum(tensor) is tensor and ranks.gather(tensor) is tensor
    ranks.mean_([tensor])
    ranks.broadcast_([tensor])
    ranks.barrier()
    assert tensor.tolist() == [1, 1]
    assert ranks.gather_objects("a") == ["a"] and ranks.broadcast_object("a") == "a"
    assert ranks.any(True) is True and ranks.any(False) is False


@pytest.mark.parametrize("variables", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_without_other_processes_nothing_is_opened(monkeypatch, variables):
    set_only(monkeypatch, variables)
    with open_ranks("cpu") as (ranks, device):
        assert ranks == Ranks() and device == torch.device("cpu")
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, r"got RANK=0 without WORLD_SIZE, LOCAL_RANK, expected all of .*torchrun .* unset RANK"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, r"got WORLD_SIZE=2 LOCAL_RANK=1 without RANK"),
        ({"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"got RANK='one', expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"got RANK='-1', expected a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"got RANK=2 .*expected RANK below WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, r"expected RANK below WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, r"LOCAL_RANK at most RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, r"without MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_half_set_or_wrong_variables_are_refused(monkeypatch, variables, message):
    set_only(monkeypatch, variables)
    with pytest.raises(UserError, match=message), open_ranks("cpu"):
        pass


@pytest.mark.parametrize("name", ["cuda:1", "cuda:0", "mps"])
def test_several_processes_do_not_share_one_named_device(monkeypatch, name):
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    set_only(monkeypatch, place)
    with pytest.raises(UserError, match=f"got '{name}' with 2 processes, expected auto, cuda or cpu"):
        with open_ranks(name):
            pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    place = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    set_only(monkeypatch, place)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="got 2 GPUs for the process with LOCAL_RANK=3"), open_ranks("cuda"):
        pass


def set_only(monkeypatch, variables: dict[str, str]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_torchrun_sets_what_is_needed(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, __file__, str(tmp_path)], env=environment(), check=True, timeout=180)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert first["ranks"] == (0, 2, 0, True) and second["ranks"] == (1, 2, 1, False)
    assert second["object"] == "from 0"


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))


def test_one_process_on_a_named_gpu_makes_it_the_current_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    chosen = []
    monkeypatch.setattr("qadtrain.distributed.choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with open_ranks("cuda:1") as (ranks, device):
        assert ranks.world == 1 and device == torch.device("cuda:1") and chosen == [device]
    with open_ranks("cpu"):
        assert len(chosen) == 1
