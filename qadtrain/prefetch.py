"""The batches of a run, ready on the device: the loader, the copy beside the running step, and damaged tuples."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qadprep.errors import UserError
from qadprep.shardset import ShardError, ShardSet
from qadtrain.augment import is_on
from qadtrain.config import Config
from qadtrain.data import TupleBatch, TupleDataset, chosen_qualities, make_loader, to_network_input
from qadtrain.sampling import EpochBatches, sampled_rows
from qadtrain.workers import WorkerBatches, dead_worker

if TYPE_CHECKING:
    from qadtrain.distributed import Ranks


@dataclass(frozen=True)
class DeviceBatch:
    """One process's part of a global batch.

    Attributes:
        images: float32 (b * M, 3, S, S) on the device, normalised, tuple by tuple, qualities best first.
        labels: int64 (b,) on the device, 1 = fake.
        indices: int64 (b,) on the CPU, rows of the split's index; a self-blended fake has its real tuple's.
        skipped: damaged tuples met in this batch for the first time, others stand in for them.
        waited_s: how long the host waited for the loader since the batch before.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    skipped: int
    waited_s: float


class TrainBatches:
    """Batches from (epoch, step) to the end of the last epoch; iterable once, and a context manager.

    One loader runs for the whole run, its workers read over the ends of the epochs. On CUDA the next batch is copied
    from pinned memory and transformed on a stream of its own while the current one computes. Leaving the context ends
    the workers, and turns the death of one of them, which torch may report at any time in the loop, into one line.

    Args:
        shards: the train split.
        config: resolved: ``data.batch_tuples`` and ``data.image_size_px`` are numbers above 0.
        device: where the batches go.
        ranks: this process among others; None = alone.
        epoch, step: where to begin.
        on_skip: called with one line for each damaged tuple that is left out.
        skipped: ``.skipped`` of the checkpoint that is resumed from.

    Attributes:
        qualities: the M qualities of a tuple, best first.
        steps_per_epoch: the same on every rank.

    Raises:
        UserError: fewer tuples than a batch, an uneven share, an unknown quality, one class alone to balance, no
            landmarks for self-blending. While iterating: a damaged tuple and ``data.skip_bad`` used up, a dead worker.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: Config,
        *,
        device: torch.device,
        ranks: "Ranks | None" = None,
        epoch: int = 0,
        step: int = 0,
        on_skip: Callable[[str], None] | None = None,
        skipped: Sequence[int] = (),
    ) -> None:
        data = config.data
        self.config, self.device, self.ranks, self.on_skip = config, device, ranks, on_skip
        self.qualities = chosen_qualities(shards, data.qualities)
        self._left_out = set(skipped)
        self._waited_s = 0.0
        rows, classes = sampled_rows(shards, data)
        self.sampler = EpochBatches(
            rows,
            data.batch_tuples,
            seed=config.train.seed,
            epochs=config.optim.epochs,
            start_epoch=epoch,
            start_step=step,
            rank=ranks.rank if ranks else 0,
            ranks=ranks.world if ranks else 1,
            classes=classes,
            tuples_per_request=2 if data.self_blended else 1,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.loader = make_loader(
            shards,
            self.sampler,
            seed=config.train.seed,
            flip_probability=data.flip_probability,
            num_workers=data.num_workers,
            device=device,
            qualities=self.qualities,
            augment=config.augment if is_on(config.augment) else None,
            self_blended=data.self_blended,
            replace=data.skip_bad > 0,
        )
        if data.self_blended:
            _check_landmarks(self.loader.dataset, rows)
        self._running: Iterator[DeviceBatch] | None = None

    def __len__(self) -> int:
        """Batches from the start to the end of the run."""
        return len(self.sampler)

    @property
    def skipped(self) -> list[int]:
        """Rows of the index left out so far as damaged, rising; for the checkpoint.

        A tuple that is met again in a later epoch counts once. With several processes each knows its own and, after
        :meth:`share_skipped`, those of all.
        """
        return sorted(self._left_out)

    def share_skipped(self) -> list[int]:
        """Collective: gather what every rank left out. Call on all ranks, at the end of an epoch and before a save.

        Between two calls each rank holds its own tuples against the budget, so that ranks never wait for each other
        in a step: all of them together may leave out more than ``data.skip_bad`` until the next call.

        Raises:
            UserError: more than ``data.skip_bad`` on all ranks together; on every rank.
        """
        if self.ranks and self.ranks.world > 1:
            self._left_out = set().union(*self.ranks.gather_objects(self.skipped))
            if len(self._left_out) > self.config.data.skip_bad:
                raise self._over_budget("the processes together met more")
        return self.skipped

    def __iter__(self) -> Iterator[DeviceBatch]:
        self.close()
        self._running = self._overlapped() if self.device.type == "cuda" else self._plain()
        return self._running

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except RuntimeError as late:
            if dead_worker(late) is None:
                raise
        if known := dead_worker(error):
            raise known from None

    def close(self) -> None:
        """End the workers. Called on leaving the context."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _plain(self) -> Iterator[DeviceBatch]:
        for host in self._host_batches():
            yield self._given_out(host, *self._moved(host))

    def _overlapped(self) -> Iterator[DeviceBatch]:
        side = torch.cuda.Stream(self.device)
        source = self._host_batches()
        ahead = self._copied(source, side)
        while ahead is not None:
            host, tensors, copied = ahead
            current = torch.cuda.current_stream(self.device)
            # An event of this batch's copy, not the stream: the next batch's copy must not be waited for.
            current.wait_event(copied)
            for tensor in tensors:
                # Allocated for the side stream: without this its memory could be given to a later copy while the
                # step's kernels still read it.
                tensor.record_stream(current)
            yield self._given_out(host, *tensors)
            del host, tensors
            # Asked for after the step's kernels were queued: the device works while the host waits for the loader.
            ahead = self._copied(source, side)

    def _copied(
        self, source: Iterator[TupleBatch], side: "torch.cuda.Stream"
    ) -> tuple[TupleBatch, tuple[Tensor, ...], "torch.cuda.Event | None"] | None:
        """The next batch, its copy and transform queued on the side stream; None at the end."""
        host = next(source, None)
        if host is None:
            return None
        with torch.cuda.stream(side):
            tensors = self._moved(host)
            return host, tensors, side.record_event()

    @torch.no_grad()
    def _moved(self, host: TupleBatch) -> tuple[Tensor, ...]:
        """(images, labels) on the device; nothing for a damaged batch, whose turn to be reported comes later."""
        if host.damage:
            return ()
        images = to_network_input(
            host.images,
            host.flips,
            size_px=self.config.data.image_size_px or self.loader.dataset.shards.size_px,
            normalization=self.config.data.normalization,
            device=self.device,
            channels_last=self.config.model.channels_last,
            draws=host.draws,
            augment_config=self.config.augment,
        )
        return images, host.labels.to(self.device, non_blocking=True)

    def _given_out(self, host: TupleBatch, *tensors: Tensor) -> DeviceBatch:
        """Count and report here, not when the batch was loaded: a checkpoint must not know of batches to come."""
        new = {}
        for index, message in [*host.left_out]:
            if index not in self._left_out:
                new[index] = message
        budget = self.config.data.skip_bad
        for index, message in new.items():
            self._left_out.add(index)
            if len(self._left_out) > budget:
                raise self._over_budget(message)
            if self.on_skip:
                self.on_skip(f"left out, {len(self._left_out)} of at most {budget}: {message}")
        if host.damage:
            raise UserError(f"{host.damage}, or leave damaged tuples out with --skip-bad N, a resume may raise it")
        waited_s, self._waited_s = self._waited_s, 0.0
        return DeviceBatch(*tensors, indices=host.indices, skipped=len(new), waited_s=waited_s)

    def _over_budget(self, message: str) -> UserError:
        budget = self.config.data.skip_bad
        return UserError(
            f"data.skip_bad: got {len(self._left_out)} damaged tuples, expected at most {budget} (a resume may raise "
            f"it): {message}"
        )

    def _host_batches(self) -> Iterator[TupleBatch]:
        batches = WorkerBatches(self.loader)
        try:
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self._waited_s += time.perf_counter() - started
                if batch is None:
                    return
                yield batch
                del batch
        finally:
            batches.close()


def _check_landmarks(dataset: TupleDataset, rows: int | np.ndarray) -> None:
    """Read the first sampled tuple's landmarks, so that a set without any is refused before the run."""
    first = int(rows[0]) if isinstance(rows, np.ndarray) else 0
    try:
        dataset.landmarks_xy(first)
    except ShardError as error:
        raise UserError(
            f"data.self_blended: {error}; make the shard set again with `qadprep shard` of this version, "
            "from packs with landmarks"
        ) from None
