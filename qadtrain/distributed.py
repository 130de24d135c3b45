"""The processes of one run: which one this is, and the few exchanges the trainer needs.

``torchrun`` starts one process per device and says which is which in the environment. Without it every exchange
below is the identity, so the trainer has one code path. Two back ends are open on a GPU: NCCL moves tensors, Gloo
moves flags and Python objects, so that asking "shall we stop?" does not wait for the device.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from qadprep.errors import UserError
from qadtrain.device import choose_device

BUCKET_BYTES = 64 << 20  # few large messages; a bucket is a copy, so it also bounds the extra memory
TIMEOUT = timedelta(minutes=30)  # one process validates or writes while the others wait
PLACE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
MEETING_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. Every method must be called by all of them, in the same order."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among the processes of this machine

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    @torch.no_grad()
    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Average floating-point tensors over the processes, in place; afterwards equal to the bit everywhere.

        Half-precision tensors are added in float32. inf or NaN in one process becomes inf or NaN in all.
        """
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            summed = _flat(bucket)
            summed = summed.float() if summed.dtype in (torch.float16, torch.bfloat16) else summed
            dist.all_reduce(summed)
            _put_back(summed.div_(self.world), bucket)

    @torch.no_grad()
    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, without gradient; ``tensor`` itself when there is one process."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """(n, ...) of each process -> (world * n, ...) in order of the ranks, with gradient.

        The backward pass adds the gradients of all processes for the rows of this one. A loss that is computed
        alike from the gathered rows in every process then has, after DDP's averaging, the gradient that one
        process with the whole batch has. ``n`` must be the same everywhere.
        """
        return tensor if self.world == 1 else _Gather.apply(tensor, self.rank, self.world)

    def gather_objects(self, value: T) -> list[T]:
        """The objects of all processes in order of the ranks, in every process. Pickled: between own processes."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Rank 0's object, in every process."""
        if self.world == 1:
            return value
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    @torch.no_grad()
    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors of any type with rank 0's, bit for bit."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            sent = _flat(bucket)
            dist.broadcast(sent.view(torch.uint8), src=0)  # as bytes: not every back end knows every type
            _put_back(sent, bucket)

    def any(self, flag: bool) -> bool:
        """True everywhere when it is true somewhere. Through the host: the device is not waited for."""
        if self.world == 1:
            return bool(flag)
        raised = torch.tensor([int(flag)], dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def barrier(self) -> None:
        """Return when every process has arrived. Work queued on a device may still be running."""
        self.any(False)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, world: int) -> Tensor:
        ctx.rank, ctx.rows = rank, len(tensor)
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        total = gradient.float() if half else gradient.clone(memory_format=torch.contiguous_format)
        total = total.contiguous()
        dist.all_reduce(total)
        return total[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows].to(gradient.dtype), None, None


@contextmanager
def open_ranks(device_name: str) -> Iterator[tuple[Ranks, torch.device]]:
    """This process's place and device, from the variables that ``torchrun`` sets; one process without them.

    Args:
        device_name: ``train.device``. With several processes ``auto``, ``cuda`` or ``cpu``; each process takes
            the GPU of its ``LOCAL_RANK``.

    Raises:
        UserError: variables that are half set or do not fit together, or a device that the processes cannot share.
    """
    ranks = _ranks_from_environment()
    if ranks.world == 1:
        device = choose_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # streams, events and bare "cuda" mean this one, also for cuda:1
        yield ranks, device
        return
    device = _own_device(device_name, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL, and every bare "cuda" in a library, mean this one
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    failed = True
    try:
        yield ranks, device
        failed = False
    finally:
        _close(device, failed)


def _close(device: torch.device, failed: bool) -> None:
    """Leave the group. NCCL's orderly end waits for the other processes, who do not come when this one failed."""
    if failed and device.type == "cuda":
        abort: Callable[[], None] | None = getattr(dist.distributed_c10d, "_abort_process_group", None)
        if abort is None:
            return  # older torch: the process ends with its group open, and torchrun ends the others
        abort()
    else:
        dist.destroy_process_group()


def _ranks_from_environment() -> Ranks:
    given = {name: os.environ[name] for name in PLACE_VARIABLES if os.environ.get(name)}
    if not given:
        return Ranks()
    if missing := [name for name in PLACE_VARIABLES if name not in given]:
        raise UserError(
            f"environment: got {_listed(given)} without {', '.join(missing)}, expected all of "
            f"{', '.join(PLACE_VARIABLES)} or none; start with `torchrun --nproc-per-node N -m qadtrain fit ...`, "
            f"or unset {', '.join(given)} for one process"
        )
    values = {}
    for name, text in given.items():
        if not text.isdecimal():
            raise UserError(f"environment: got {name}={text!r}, expected a whole number from 0")
        values[name] = int(text)
    ranks = Ranks(values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"])
    if not (ranks.rank < ranks.world and ranks.local_rank <= ranks.rank):
        raise UserError(
            f"environment: got {_listed(given)}, expected RANK below WORLD_SIZE and LOCAL_RANK at most RANK; "
            "start with `torchrun --nproc-per-node N -m qadtrain fit ...`"
        )
    if ranks.world > 1 and (missing := [name for name in MEETING_VARIABLES if not os.environ.get(name)]):
        raise UserError(
            f"environment: got {_listed(given)} without {', '.join(missing)}, where the processes meet; "
            "start with `torchrun --nproc-per-node N -m qadtrain fit ...`"
        )
    return ranks


def _own_device(name: str, ranks: Ranks) -> torch.device:
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"train.device: got {name!r} with {ranks.world} processes, expected auto, cuda or cpu "
            "(each process takes the GPU of its LOCAL_RANK)"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    here = torch.cuda.device_count()
    if ranks.local_rank >= here:
        raise UserError(
            f"train.device: got {here} GPUs for the process with LOCAL_RANK={ranks.local_rank}, expected one for "
            "each process of this machine; lower --nproc-per-node"
        )
    return choose_device(f"cuda:{ranks.local_rank}")


def _listed(variables: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items())


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one device and type, up to BUCKET_BYTES (or one larger tensor); alike in every process."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for group in kinds.values():
        bucket, size = [], 0
        for tensor in group:
            if bucket and size + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


def _flat(bucket: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in bucket])


def _put_back(flat: Tensor, bucket: list[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in bucket])
    torch._foreach_copy_(bucket, [part.view(tensor.shape) for part, tensor in zip(parts, bucket, strict=True)])
