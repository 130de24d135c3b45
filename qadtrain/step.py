"""One optimiser step: accumulation, AWP's two passes, precision, clipping, and what is done about an inf or NaN.

    parts of the batch -> [direction pass at w -> v] -> forward and backward at w + v -> w again -> clip -> step

The direction pass runs on the bare network: AWP reduces its gradient over the processes itself. The second pass runs
through DistributedDataParallel where there are several. Clipping, the norm in the logs and the moving average see the
second pass's gradient and the restored weights.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from qadtrain.awp import AdversarialWeights, Perturbation, batchnorm_of_pass
from qadtrain.build import distributed
from qadtrain.config import Config
from qadtrain.device import autocast_to, resolved_precision
from qadtrain.distributed import Ranks
from qadtrain.ema import WeightAverage
from qadtrain.guard import FiniteGuard, Verdict
from qadtrain.losses import LossTerms, QadLoss
from qadtrain.models import ModelOutput
from qadtrain.optim import advance, clip_gradients, continue_changed, gradient_norm

# torch's default. It needs a C compiler on the CPU; tests put a quicker one here.
COMPILE_BACKEND = "inductor"
# Static shapes: a step has one batch size, or two with awp.batch_fraction, and a graph for each is the fastest.
COMPILE_OPTIONS = {"dynamic": False}
LEAST_LOSS_SCALE = 1.0


@dataclass
class StepResult:
    """Detached values of a step, on the device; ``fault`` says why the optimiser did not step."""

    values: dict[str, Tensor | float]
    cross_entropy: Tensor
    fault: str = ""

    @property
    def left_out(self) -> bool:
        """Whether the optimiser did not step, for that or because the fp16 gradient overflowed."""
        return bool(self.fault or self.values.get("fp16_skipped_steps"))


@dataclass
class _Sums:
    """Means over the parts of a batch, built up part by part."""

    parts: int
    weight_sum: Tensor | None = None  # of the cross-entropy, for each part
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: LossTerms, total: Tensor, extra: Tensor | None) -> None:
        seen = {"loss": total, "ce": terms.cross_entropy}
        if extra is not None:
            seen["extra"] = extra
        if terms.hsic_by_tap:
            seen["hsic"] = terms.hsic
            seen |= {f"hsic/{tap}": value for tap, value in terms.hsic_by_tap.items()}
            seen |= {f"cka/{tap}": value for tap, value in terms.cka_by_tap.items()}
        for name, value in seen.items():
            part = value.detach() / self.parts
            self.values[name] = self.values[name] + part if name in self.values else part


class TrainStep:
    """Runs optimiser steps on one network; holds no position and no data.

    Args:
        model: the bare :class:`~qadtrain.models.TappedModel` on its device, in fp32. Its parameters are changed in
            place and never replaced.
        loss: the objective.
        optimizer, schedule: over the model's parameters; the schedule moves on at every step, also one left out.
        config: of the run.
        qualities: M; a batch holds M images for each label.
        ranks: the processes that train together.
        guard: told of every step's loss and gradient norm.
        average: updated after each step; None = none.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: QadLoss,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        config: Config,
        *,
        qualities: int,
        device: torch.device,
        ranks: Ranks,
        guard: FiniteGuard,
        average: WeightAverage | None = None,
    ) -> None:
        self.model, self.loss, self.config = model, loss, config
        self.optimizer, self.schedule = optimizer, schedule
        self.qualities, self.device, self.ranks = qualities, device, ranks
        self.guard, self.average = guard, average
        self.precision = resolved_precision(config.train.precision, device)
        self.scaler = torch.amp.GradScaler(device.type) if self.precision == "fp16" else None
        self.adversary = AdversarialWeights(
            model, config.awp.gamma, norm=config.awp.norm, ranks=ranks, direction=config.awp.direction
        )
        self.forward: Callable[..., ModelOutput] = model
        if config.train.compile:
            self.forward = torch.compile(model, backend=COMPILE_BACKEND, **COMPILE_OPTIONS)
        self._through: Callable[..., ModelOutput] = self.forward
        self._head_only: bool | None = None
        self.learning_rate = 0.0  # of the newest step

    def start_phase(self, *, head_only: bool) -> None:
        """Training mode, with all parameters or the classifier alone; call it after anything that changed the mode."""
        self.model.train()
        self.model.train_head_only(head_only)
        if self.ranks.world > 1 and head_only != self._head_only:
            # DDP reduces the parameters that were trainable when it was made, so each phase has its own. The old one
            # must be gone first, or its hooks would reduce too.
            self._through = self.forward
            gc.collect()
            self._through = distributed(
                self.forward, self.model, self.config, qualities=self.qualities, device=self.device
            )
        self._head_only = head_only

    def __call__(
        self, images: Tensor, labels: Tensor, *, step: int, use_hsic: bool, use_awp: bool, measure: bool
    ) -> StepResult:
        """One step on this process's share of the batch.

        Args:
            images: float32 (b * M, 3, S, S), normalised, tuple by tuple.
            labels: int64 (b,), 1 = fake.
            step: its number from 1, for messages.
            use_hsic, use_awp: what of the method is on.
            measure: HSIC and CKA also where they are not in the loss.

        Raises:
            UserError: the loss or gradient of a step is not finite and ``train.skip_nonfinite`` is 0.
        """
        parts = list(self._parts(images, labels))
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        # A forward pass with an inf in it leaves its mark in BatchNorm's running statistics.
        kept = [b.detach().clone() for b in self.model.buffers()] if self.config.train.skip_nonfinite else []
        policy = self.config.awp.batchnorm
        values: dict[str, Tensor | float] = {}
        with ExitStack() as stack:
            clean_ce = None
            if use_awp:
                with batchnorm_of_pass(self.model, policy, perturbed=False):
                    perturbation, clean_ce = self._direction(parts, use_hsic)
                values["awp_skipped_tensors"] = perturbation.skipped_tensors
                values["awp_skipped_steps"] = perturbation.skipped_steps
                stack.enter_context(self.adversary.applied(perturbation))
                stack.enter_context(batchnorm_of_pass(self.model, policy, perturbed=True))
            sums = _Sums(len(parts), self.loss.part_weight(labels, len(parts)))
            for number, part in enumerate(parts):
                with self._gradients_kept_local(number < len(parts) - 1):
                    self._backward(part, sums, use_hsic, measure)
        values |= sums.values
        if clean_ce is not None:
            values["awp_ce_rise"] = sums.values["ce"] - clean_ce
        result = self._update(values, step)
        if result.fault:
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
        return result

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = len(labels) // self.config.optim.accumulate_steps
        for first in range(0, size * self.config.optim.accumulate_steps, size):
            last = first + size
            yield images[first * self.qualities : last * self.qualities], labels[first:last]

    def _direction(self, parts: list[tuple[Tensor, Tensor]], use_hsic: bool) -> tuple[Perturbation, Tensor | None]:
        """v of the whole batch, and the cross-entropy at w where it is that of the same tuples as the second pass."""
        awp = self.config.awp
        parameters = self.adversary.parameters()
        gradients: list[Tensor | None] = [None] * len(parameters)
        ce = torch.zeros((), device=self.device)
        tuples = len(parts[0][1])
        chosen = direction_tuples(self.config, tuples)
        whole = chosen == tuples
        weight_sum = self.loss.part_weight(torch.cat([labels[:chosen] for _, labels in parts]), len(parts))
        for images, labels in parts:
            images, labels = images[: chosen * self.qualities], labels[:chosen]
            with autocast_to(self.precision, self.device):
                output = self.forward(images, extra_loss=False) if self.model.has_extra_loss else self.forward(images)
            raised = self.loss.adversarial(output, labels, awp.loss, awp.temperature, use_hsic, weight_sum) / len(parts)
            if self.scaler is not None:
                # Small fp16 gradients would vanish. Where the scale makes them overflow, AWP is left out of the step.
                raised = self.scaler.scale(raised)
            if whole:
                with torch.no_grad():
                    ce = ce + self.loss.cross_entropy(output.logits, labels, weight_sum) / len(parts)
            found = torch.autograd.grad(raised, parameters, allow_unused=True)
            gradients = [_added(old, new) for old, new in zip(gradients, found, strict=True)]
        return self.adversary.find_from(gradients), ce if whole else None

    def _backward(self, part: tuple[Tensor, Tensor], sums: _Sums, use_hsic: bool, measure: bool) -> None:
        images, labels = part
        with autocast_to(self.precision, self.device):
            output = self._through(images, labels) if self.model.has_extra_loss else self._through(images)
        terms = self.loss(output, labels, use_hsic=use_hsic, measure=measure, weight_sum=sums.weight_sum)
        total = terms.total
        if output.extra_loss is not None:
            total = total + output.extra_loss
        sums.add(terms, total, output.extra_loss)
        share = total / sums.parts
        (share if self.scaler is None else self.scaler.scale(share)).backward()

    def _update(self, values: dict[str, Tensor | float], step: int) -> StepResult:
        """Clip and step, or leave the step out."""
        loss, clip = values["loss"], self.config.optim.clip_norm
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters())
        values["grad_norm"] = norm
        # An fp16 gradient that overflows is daily business: the scaler leaves the step out and lowers its scale.
        judged = torch.zeros_like(norm) if self.scaler is not None and self._scale_may_fall() else norm
        fault = ""
        if self.config.train.skip_nonfinite:
            verdict: Verdict = self.guard.judge(step, loss, judged)
            fault = "" if verdict.finite else verdict.fault()
        else:
            self.guard.add(step, loss, judged)
        if clip:
            clip_gradients(self.model.parameters(), norm, clip)
        if self.scaler is not None:
            before = self.scaler.get_scale()
            if not fault:
                self.scaler.step(self.optimizer)
            self.scaler.update()
            values["fp16_skipped_steps"] = float(self.scaler.get_scale() < before and not fault)
        elif not fault:
            self.optimizer.step()
        result = StepResult(values, values["ce"], fault)
        if self.average is not None and not result.left_out:
            self.average.update()
        advance(self.schedule, stepped=not result.left_out)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and average: plain values and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any], *, changed_at: int | None = None) -> None:
        """Continue from a checkpoint's state.

        Args:
            state: with :meth:`state_dict`'s entries and, where there was one, ``ema``.
            changed_at: under another configuration, the step of its schedule to go on at; None = the same one.
        """
        if changed_at is None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        else:
            continue_changed(self.optimizer, self.schedule, state["optimizer"], changed_at)
        if self.average is not None:
            self.average.load_state_dict(state.get("ema", self.model.state_dict()))
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])

    def _scale_may_fall(self) -> bool:
        return self.scaler.get_scale() > LEAST_LOSS_SCALE

    def _gradients_kept_local(self, local: bool) -> AbstractContextManager:
        """DDP reduces at the last part of a step alone; the ones before only add up."""
        if local and isinstance(self._through, DistributedDataParallel):
            return self._through.no_sync()
        return nullcontext()


def direction_tuples(config: Config, tuples: int) -> int:
    """How many of a part's ``tuples`` AWP's direction is found on; whole groups where HSIC is raised too."""
    awp, group = config.awp, config.hsic.group_tuples
    chosen = math.ceil(tuples * awp.batch_fraction)
    return min(tuples, math.ceil(chosen / group) * group) if group and awp.loss == "ce+hsic" else chosen


def _added(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
