"""The training loop of one run: :meth:`Trainer.run` reads top to bottom. ``fit.py`` prepares the run folder."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.awp import AdversarialWeights, batchnorm_statistics_kept
from qadtrain.checkpoint import has_checkpoints, load_last, random_state, restore_random_state, save_best, save_last
from qadtrain.config import Config
from qadtrain.data import EpochBatches, TupleBatch, make_loader, to_network_input, whole_batches
from qadtrain.device import autocast_to, choose_device, seed_everything
from qadtrain.evaluate import fake_probability, score_split, summarise
from qadtrain.losses import LossTerms, QadLoss, balanced_class_weights
from qadtrain.models import build_model
from qadtrain.optim import make_optimizer
from qadtrain.tracking import Meter, StepProgress, Tracker

BY_AUC, BY_LOSS = "AUC on the validation split, mean over the qualities", "cross-entropy on the train split"


@dataclass
class Position:
    """Where the run is: all that a resume needs besides weights, optimiser and random state.

    ``step`` counts inside the epoch; at ``steps_per_epoch`` only the epoch's validation is left to do.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    ce_sum: float = 0.0  # cross-entropy of the epoch's steps so far
    best_score: float | None = None
    best_epoch: int | None = None


class Trainer:
    """One run on one device.

    Args:
        shards: the train split.
        val_shards: the split that picks the best checkpoint; None = the training cross-entropy picks it.
        config: resolved, so ``data.image_size_px`` is a number of pixels.
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
        load_weights: bool = True,
    ) -> None:
        self.shards, self.val_shards = shards, val_shards
        self.config, self.run_dir, self.console = config, Path(run_dir), console
        self.device = choose_device(config.train.device)
        seed_everything(config.train.seed, deterministic=config.train.deterministic)
        model, self.weights_report = build_model(config.model, load_weights=load_weights)
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=layout)
        class_weights = None
        if config.optim.class_weights == "balanced":
            labels = torch.tensor(shards.table["label"].to_pylist())
            class_weights = balanced_class_weights(labels).to(self.device)
        self.loss = QadLoss(config.hsic, config.model.taps, len(shards.qualities), class_weights)
        self.adversary = AdversarialWeights(self.model, config.awp.gamma)
        self.sampler = EpochBatches(
            len(shards), config.data.batch_tuples, seed=config.train.seed, epochs=config.optim.epochs
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.total_steps = len(self.sampler)
        self.optimizer, self.schedule = make_optimizer(self.model, config.optim, self.total_steps)
        self.best_by = BY_AUC if val_shards is not None else BY_LOSS
        self.position = Position()
        self._ce_sum = torch.zeros((), dtype=torch.float64)
        self._unchecked: tuple[int, Tensor] | None = None

    def run(self, should_stop: Callable[[], str]) -> str:
        """Train to the end, or to the step boundary after ``should_stop`` returns a reason; returns that reason.

        Raises:
            UserError: the loss is not finite (the last checkpoint is kept), or a damaged tuple.
        """
        config, position = self.config, self.position
        self.sampler.start_epoch, self.sampler.start_step = position.epoch, position.step
        with (
            Tracker(self.run_dir, self.console, position.global_step) as tracker,
            StepProgress(self.console, self.total_steps, position.global_step, config.data.batch_tuples) as progress,
        ):
            batches = self._batches()
            while position.epoch < config.optim.epochs:
                self._set_mode()
                meter = Meter()
                while position.step < self.steps_per_epoch:
                    started = time.perf_counter()
                    batch = next(batches)
                    waited_s = time.perf_counter() - started
                    log_now = (position.global_step + 1) % config.train.log_every_steps == 0
                    values = self.train_step(batch, measure=log_now)
                    position.step += 1
                    position.global_step += 1
                    meter.add(values, waited_s, time.perf_counter() - started)
                    progress.advance(f"epoch {position.epoch + 1}/{config.optim.epochs}")
                    if log_now:
                        self._log(meter, tracker, progress)
                    every = config.train.checkpoint_every_steps
                    stop = should_stop()
                    if stop or (every and position.global_step % every == 0):
                        self.save()
                    if stop:
                        return stop
                self._end_epoch(tracker)
                if (stop := should_stop()) and position.epoch < config.optim.epochs:
                    return stop
        return ""

    def train_step(self, batch: TupleBatch, *, measure: bool) -> dict[str, Tensor | float]:
        """One optimiser step; returns detached values for the logs. ``measure``: also where HSIC is off."""
        images = to_network_input(
            batch.images,
            batch.flips,
            size_px=self.config.data.image_size_px,
            normalization=self.config.data.normalization,
            device=self.device,
            channels_last=self.config.model.channels_last,
        )
        labels = batch.labels.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        if self._awp_now():
            terms, values = self._adversarial_backward(images, labels, measure)
        else:
            terms, values = self._terms(images, labels, use_hsic=self._hsic_now(), measure=measure), {}
            terms.total.backward()
        self._raise_if_not_finite()  # of the step before: its loss is on the host without waiting for this one
        self._unchecked = (self.position.global_step + 1, terms.total.detach())
        self._ce_sum += terms.cross_entropy
        self.optimizer.step()
        self.schedule.step()
        values |= {"loss": terms.total.detach(), "ce": terms.cross_entropy}
        if terms.hsic_by_tap:
            values["hsic"] = terms.hsic
            values |= {f"hsic/{tap}": value for tap, value in terms.hsic_by_tap.items()}
            values |= {f"cka/{tap}": value for tap, value in terms.cka_by_tap.items()}
        return values

    def _adversarial_backward(
        self, images: Tensor, labels: Tensor, measure: bool
    ) -> tuple[LossTerms, dict[str, Tensor | float]]:
        """Direction pass at w, gradient pass at w + v; the weights are w again on return."""
        config = self.config.awp
        by_reference = config.batchnorm == "reference"
        part = math.ceil(len(labels) * config.batch_fraction)
        qualities = len(self.shards.qualities)
        with batchnorm_statistics_kept(self.model) if by_reference else nullcontext():
            clean = self._terms(
                images[: part * qualities], labels[:part], use_hsic=config.loss == "ce+hsic" and self._hsic_now()
            )
        perturbation = self.adversary.find(clean.total)
        with self.adversary.applied(perturbation):
            with nullcontext() if by_reference else batchnorm_statistics_kept(self.model):
                terms = self._terms(images, labels, use_hsic=self._hsic_now(), measure=measure)
            terms.total.backward()
        values: dict[str, Tensor | float] = {
            "awp_skipped_tensors": float(perturbation.skipped_tensors),
            "awp_skipped_steps": float(not perturbation.finite),
        }
        if part == len(labels):
            values["awp_ce_rise"] = terms.cross_entropy - clean.cross_entropy
        return terms, values

    def _terms(self, images: Tensor, labels: Tensor, *, use_hsic: bool, measure: bool = False) -> LossTerms:
        with autocast_to(self.config.train.precision, self.device):
            output = self.model(images)
        return self.loss(output, labels, use_hsic=use_hsic, measure=measure)

    def _set_mode(self) -> None:
        self.model.train()
        self.model.train_head_only(self._head_only())

    def _head_only(self) -> bool:
        return self.position.epoch < self.config.optim.head_only_epochs

    def _hsic_now(self) -> bool:
        return not self._head_only()

    def _awp_now(self) -> bool:
        awp, position = self.config.awp, self.position
        started = position.epoch >= awp.start_epoch and not self._head_only()
        return started and awp.gamma > 0 and position.step % awp.every_steps == 0

    def _batches(self) -> Iterator[TupleBatch]:
        loader = make_loader(
            self.shards,
            self.sampler,
            seed=self.config.train.seed,
            flip_probability=self.config.data.flip_probability,
            num_workers=self.config.data.num_workers,
            device=self.device,
        )
        return whole_batches(loader)

    def _raise_if_not_finite(self) -> None:
        if self._unchecked is None:
            return
        step, loss = self._unchecked
        self._unchecked = None
        if not math.isfinite(value := loss.item()):
            kept = f"; the checkpoint before it is kept in {self.run_dir}" if has_checkpoints(self.run_dir) else ""
            raise UserError(
                f"the loss of step {step} is {value}: training stopped{kept}; try a lower optim.learning_rate, "
                "hsic.alpha or awp.gamma"
            )

    def _log(self, meter: Meter, tracker: Tracker, progress: StepProgress) -> None:
        self._raise_if_not_finite()
        position = self.position
        means = meter.take(self.config.data.batch_tuples)
        means["lr"] = self.optimizer.param_groups[0]["lr"]
        tracker.record("train", position.epoch, position.global_step, means)
        shown = "  ".join(f"{name} {means[name]:.4g}" for name in ("loss", "ce", "hsic") if name in means)
        progress.line(f"epoch {position.epoch + 1}/{self.config.optim.epochs}  {shown}")

    def _end_epoch(self, tracker: Tracker) -> None:
        """Validate, keep the best weights, move to the next epoch and save."""
        self._raise_if_not_finite()
        position = self.position
        train_ce = self._ce_sum.item() / self.steps_per_epoch
        values, text = {"train_ce": train_ce}, f"train ce {train_ce:.4f}"
        score = -train_ce
        if self.val_shards is not None:
            by_quality = self.validate()
            score = sum(by_quality.values()) / len(by_quality)
            values |= {f"auc/{quality}": auc for quality, auc in by_quality.items()} | {"auc": score}
            text += "  val AUC " + "  ".join(f"{quality} {100 * auc:.2f}" for quality, auc in by_quality.items())
        is_best = position.best_score is None or score > position.best_score
        if is_best:
            position.best_score, position.best_epoch = score, position.epoch
            save_best(self.run_dir, self.model, {"epoch": position.epoch, "by": self.best_by, "score": abs(score)})
        tracker.record("epoch", position.epoch, position.global_step, values | {"best": is_best})
        tracker.say(
            f"epoch {position.epoch + 1}/{self.config.optim.epochs} done  {text}{'  (best)' if is_best else ''}"
        )
        position.epoch, position.step = position.epoch + 1, 0
        self._ce_sum.zero_()
        self.save()

    def validate(self) -> dict[str, float]:
        """Quality -> AUC over all frames of the validation split."""
        shards = self.val_shards
        logits = score_split(self.model, shards, self.config, self.device, num_workers=self.config.data.num_workers)
        report = summarise(fake_probability(logits), shards.table, shards.qualities)
        return {quality: report.pooled("frame", quality).auc for quality in shards.qualities}

    def save(self) -> None:
        """Write the checkpoint ``last`` at a step boundary."""
        self._raise_if_not_finite()
        self.position.ce_sum = self._ce_sum.item()
        save_last(
            self.run_dir,
            self.model,
            {
                "global_step": self.position.global_step,
                "position": asdict(self.position),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": random_state(),
            },
        )

    def load(self) -> None:
        """Continue from the checkpoint ``last`` of the run folder, to the bit on the CPU in fp32."""
        state = load_last(self.run_dir, self.model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.position = Position(**state["position"])
        self._ce_sum.fill_(self.position.ce_sum)
        restore_random_state(state["random"])
