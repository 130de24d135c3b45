"""The training loop of one run: :meth:`Trainer.run` reads top to bottom. ``fit.py`` prepares the run folder."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.build import make_loss, make_model
from qadtrain.checkpoint import has_checkpoints, load_last, save_last
from qadtrain.checks import check
from qadtrain.config import Config
from qadtrain.device import memory_gb, seed_everything, seed_step
from qadtrain.distributed import Ranks
from qadtrain.ema import WeightAverage
from qadtrain.guard import FiniteGuard, StopRequest, mean_over, mean_values, on_main, together
from qadtrain.live import LiveTable
from qadtrain.logs import open_logs, say_from_anywhere
from qadtrain.optim import make_optimizer
from qadtrain.position import Position
from qadtrain.prefetch import DeviceBatch, TrainBatches
from qadtrain.step import TrainStep
from qadtrain.tracking import Meter, Stopwatch, Tracker
from qadtrain.validation import TRAIN_LOSS, BestBy, best_by

EARLY = "no better validation in optim.early_stop_checks"


class Trainer:
    """One run, on one device in each of its processes.

    Args:
        shards: the train split.
        val_shards: the split that picks the best checkpoint; None = the training cross-entropy picks it.
        config: resolved, so ``data.image_size_px`` and ``data.batch_tuples`` are numbers.
        run_dir: only the main process writes there.
        console: human output of the main process.
        ranks, device: from :func:`qadtrain.distributed.open_ranks`.
        load_weights: False where a checkpoint is loaded next.
    """

    def __init__(
        self,
        shards: ShardSet,
        val_shards: ShardSet | None,
        config: Config,
        run_dir: Path,
        console: Console,
        *,
        device: torch.device,
        ranks: Ranks | None = None,
        load_weights: bool = True,
    ) -> None:
        self.shards, self.val_shards = shards, val_shards
        self.config, self.run_dir, self.console = config, Path(run_dir), console
        self.ranks, self.device = ranks or Ranks(), device
        seed_everything(config.train.seed, deterministic=config.train.deterministic)
        self.model, self.weights_report = make_model(config, device, self.ranks, load_weights=load_weights)
        self.batches = TrainBatches(shards, config, device=device, ranks=self.ranks)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * config.optim.epochs
        optimizer, schedule = make_optimizer(self.model, config.optim, self.total_steps)
        self.average = WeightAverage(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        self.guard = FiniteGuard(self.ranks, device, self._explained)
        self.step = TrainStep(
            self.model,
            make_loss(config, shards, device, self.ranks),
            optimizer,
            schedule,
            config,
            qualities=len(shards.qualities),
            device=device,
            ranks=self.ranks,
            guard=self.guard,
            average=self.average,
        )
        self.best_by: BestBy = TRAIN_LOSS
        if val_shards is not None:
            self.best_by = best_by(config.train.best_metric, val_shards.qualities)
        self.position = Position()
        self.events: list[tuple[str, dict[str, Any]]] = []  # what the log should say before the first step
        self._tracker: Tracker | None = None
        self._skipped: list[int] = []  # rows of the index left out as damaged
        self.val_skipped: dict[int, str] = {}  # those of the validation split, with what is wrong with them
        self.watch = Stopwatch()
        self._ce_sum = torch.zeros((), dtype=torch.float64, device=device)

    def run(self, should_stop: Callable[[], str]) -> str:
        """Train to the end, or to a step boundary after ``should_stop`` returns a reason; returns that reason.

        Raises:
            UserError: a loss or gradient is not finite, or a damaged tuple (the last checkpoint is kept).
        """
        config, position = self.config, self.position
        stop = StopRequest(should_stop, self.ranks)
        with ExitStack() as stack:
            done = self._steps_done
            places = (position, self.best_by.name, self.steps_per_epoch, done)
            tracker, live = together(
                self.ranks, lambda: open_logs(self.run_dir, self.console, config, self.ranks, *places)
            )
            self._tracker = stack.enter_context(tracker)
            stack.enter_context(live)
            for name, values in self.events:
                tracker.event(name, position.epoch, position.global_step, **values)
            batches = iter(stack.enter_context(self._batches()))
            while position.epoch < config.optim.epochs and not self.stopped_early:
                self._start_phase()
                meter, self.watch = Meter(), Stopwatch()
                while position.step < self.steps_per_epoch:
                    batch = together(self.ranks, partial(next, batches))
                    log_now = (position.global_step + 1) % config.train.log_every_steps == 0
                    values = self.train_step(batch, measure=log_now)
                    meter.add(values, batch.waited_s)
                    live.advance()
                    if log_now:
                        self._log(meter, tracker, live)
                    if self._validation_is_due():
                        check(self, tracker, live, "validation", {})
                        self._start_phase()
                    inside = position.step < self.steps_per_epoch  # the end of the epoch saves by itself
                    reason = stop.agreed(position.global_step, now=not inside)
                    due = inside and self._is_due(config.train.checkpoint_every_steps)
                    if reason or self.stopped_early or due:
                        self.save()
                    if reason or self.stopped_early:
                        tracker.stopping(reason or EARLY)
                        return reason
                self._end_epoch(tracker, live)
                if (reason := stop.agreed(position.global_step, now=True)) and position.epoch < config.optim.epochs:
                    tracker.stopping(reason)
                    return reason
            if self.stopped_early:
                tracker.stopping(EARLY)
        return ""

    def train_step(self, batch: DeviceBatch, *, measure: bool) -> dict[str, Tensor | float]:
        """One optimiser step and the next position; returns detached values for the logs."""
        position = self.position
        seed_step(self.config.train.seed, position.global_step, self.ranks.rank)
        result = self.step(
            batch.images,
            batch.labels,
            step=position.global_step + 1,
            use_hsic=not self.head_only,
            use_awp=self._awp_now(),
            measure=measure,
        )
        if result.fault:
            self._leave_out(result.fault)
        else:
            self._ce_sum += result.cross_entropy
            position.ce_steps += 1
        position.step += 1
        position.global_step += 1
        return {} if result.fault else result.values

    @property
    def head_only(self) -> bool:
        """Whether the classifier alone is trained in this epoch."""
        return self.position.epoch < self.config.optim.head_only_epochs

    @property
    def stopped_early(self) -> bool:
        """Whether ``optim.early_stop_checks`` validations in a row have not been better than the best."""
        most = self.config.optim.early_stop_checks
        return bool(most) and self.position.checks_since_best >= most

    def save(self) -> None:
        """Write a checkpoint at a step boundary."""
        self.guard.settle()
        with self.watch.paused():
            self._save()

    def _save(self) -> None:
        self.position.ce_sum = mean_over(self.ranks, self._ce_sum.item())
        state = {
            "global_step": self.position.global_step,
            "position": asdict(self.position),
            "best_by": self.best_by.name,
            "skipped": self.batches.share_skipped(),
            "processes": self.ranks.world,
            "batch_tuples": self.config.data.batch_tuples,
            "steps_per_epoch": self.steps_per_epoch,
            **self.step.state_dict(),
        }
        keep, average = self.config.train.keep_checkpoints, self.average.state_dict() if self.average else None
        on_main(self.ranks, lambda: save_last(self.run_dir, self.model, state, keep, average))

    def load(self, *, changed: bool = False) -> None:
        """Continue from the newest checkpoint of the run folder, to the bit on the CPU in fp32.

        Args:
            changed: the configuration is another one than that of the checkpoint; the schedule is then the new one's
                at the same place.
        """
        if not self.ranks.is_main:
            self.ranks.barrier()  # reading may finish the renames of a process that died
        state = load_last(self.run_dir, self.model, self.say)
        if self.ranks.is_main:
            self.ranks.barrier()
        self.position = Position.read(state["position"])
        if line := self.position.keep_place(state, self.steps_per_epoch, self.config.data.batch_tuples):
            self.say(line)
        if state.get("best_by", self.best_by.name) != self.best_by.name:
            self.position.forget_best()
        self.step.load_state_dict(state, changed_at=self._steps_done if changed else None)
        self._skipped = list(state.get("skipped", []))
        self._ce_sum.fill_(self.position.ce_sum)

    def say(self, text: str) -> None:
        """A line for the reader; of the main process alone."""
        if self.ranks.is_main:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def _steps_done(self) -> int:
        return min(self.position.epoch * self.steps_per_epoch + self.position.step, self.total_steps)

    def _batches(self) -> TrainBatches:
        self.batches = TrainBatches(
            self.shards,
            self.config,
            device=self.device,
            ranks=self.ranks,
            epoch=self.position.epoch,
            step=self.position.step,
            on_skip=partial(say_from_anywhere, self.console, self.ranks),
            skipped=self._skipped,
        )
        return self.batches

    def _start_phase(self) -> None:
        self.model.set_epoch(self.position.epoch)
        self.step.start_phase(head_only=self.head_only)

    def _awp_now(self) -> bool:
        awp, position = self.config.awp, self.position
        started = position.epoch >= awp.start_epoch and not self.head_only
        return started and awp.gamma > 0 and position.step % awp.every_steps == 0

    def _is_due(self, every_steps: int) -> bool:
        return bool(every_steps) and self.position.global_step % every_steps == 0

    def _validation_is_due(self) -> bool:
        inside = self.position.step < self.steps_per_epoch  # the end of the epoch has its own
        return inside and self.val_shards is not None and self._is_due(self.config.train.validate_every_steps)

    def _log(self, meter: Meter, tracker: Tracker, live: LiveTable) -> None:
        self.guard.settle()
        position = self.position
        means = meter.take(self.config.data.batch_tuples, self.watch.lap())
        means["memory_gb"] = memory_gb(self.device)
        means = mean_values(self.ranks, means)
        means["lr"] = self.step.learning_rate
        means |= {"skipped_steps": position.skipped_steps, "skipped_tuples": len(self.batches.share_skipped())}
        on_main(self.ranks, lambda: tracker.record("train", position.epoch, position.global_step, means))
        live.show(means)

    def _leave_out(self, fault: str) -> None:
        """Count a step that the optimiser did not take; all processes come here alike."""
        self.position.skipped_steps += 1
        budget = self.config.train.skip_nonfinite
        if self.position.skipped_steps > budget:
            raise self._explained(
                f"{fault}, after {budget} steps left out (train.skip_nonfinite, a resume may raise it)"
            )
        if self._tracker is not None:
            self._tracker.event("skipped_step", self.position.epoch, self.position.global_step + 1, reason=fault)
        self.say(f"{fault}: step left out, {self.position.skipped_steps} of at most {budget}")

    def _explained(self, fault: str) -> UserError:
        kept = f"; the checkpoint before it is kept in {self.run_dir}" if has_checkpoints(self.run_dir) else ""
        return UserError(f"{fault}: training stopped{kept}; try a lower optim.learning_rate, hsic.alpha or awp.gamma")

    def _end_epoch(self, tracker: Tracker, live: LiveTable) -> None:
        """Save, validate, keep the best weights, move to the next epoch and save."""
        self.save()  # whatever happens to the validation, the epoch is not lost
        steps = self.position.ce_steps
        train_ce = self.position.ce_sum / steps if steps else float("nan")
        check(self, tracker, live, "epoch", {"train_ce": train_ce})
        self.position.next_epoch()
        self._ce_sum.zero_()
        self.save()
