"""Adversarial weight perturbation (Wu, Xia, Wang 2020) in its exact in-place form, and two other sizes of the step.

The reference copies the model into a proxy, takes one SGD step that raises the loss and scales the change of
each tensor to gamma times the norm of its weights. The proxy's learning rate cancels, so per tensor

    v = gamma * ||w|| / ||g|| * g,      g = gradient of the loss that is raised,

which needs no proxy and loses no digits to (w_new - w_old). The loss is then taken and differentiated at w + v,
the weights come back **from a copy** (subtracting v would drift), and only then the optimiser steps at w.
That order differs from the reference, which steps at w + v and subtracts v after: the two differ only by
lr * weight_decay * v, nothing at the presets' weight decay of 0.

``norm`` chooses what gamma is relative to:

- ``tensor``: the above (AWP).
- ``filter``: v_o = gamma * ||w_o|| / ||g_o|| * g_o for each output channel o, that is, over dim 0.
- ``global``: v = gamma * g / ||g|| over all trainable parameters, biases and norms too (SAM, Foret et al. 2021,
  equation 2 with p = 2; gamma is SAM's rho).

All three have the size of v free of the size of g, so an fp16 loss scale on the raised loss cancels. Nothing here
waits for the device: norms, scales and the check for inf and NaN stay on it, and so do the counts for the log.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from qadtrain.distributed import Ranks

Norm = Literal["tensor", "filter", "global"]


@dataclass(frozen=True)
class Perturbation:
    """``parameters[i]`` moves by ``values[i]``. The counts are scalars on the device; reading them waits for it.

    Attributes:
        values: float32, shaped like the parameters. All zeros where a tensor or filter has no direction.
        skipped_tensors: float32 scalar, tensors that do not move: zero gradient or zero weights, or not ``finite``.
        finite: bool scalar. False: a gradient had inf or NaN, and nothing moves.
    """

    parameters: list[nn.Parameter]
    values: list[Tensor]
    skipped_tensors: Tensor
    finite: Tensor

    @property
    def skipped_steps(self) -> Tensor:
        """float32 scalar: 1 when nothing moves because of an inf or NaN, else 0."""
        return (~self.finite).float()


def perturbable_parameters(model: nn.Module, norm: Norm = "tensor") -> dict[str, nn.Parameter]:
    """The tensors that move, by name: trainable, two or more dimensions, "weight" in the name.

    Biases and norm layers stay, as in AWP's reference. With ``norm="global"`` every trainable tensor moves, as in SAM.
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (norm == "global" or (parameter.ndim > 1 and "weight" in name))
    }


@torch.no_grad()
def direction(
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
    gamma: float,
    norm: Norm = "tensor",
    *,
    ranks: Ranks | None = None,
) -> Perturbation:
    """v for each pair of a parameter and the gradient of the loss that is raised.

    One inf or NaN among the gradients or weights gives v = 0 everywhere: scaling by its norm would write NaN into
    every weight of the layer.

    Args:
        parameters: w.
        gradients: g, in any floating-point type; ``None`` counts as zero.
        gamma: relative size of v, or its absolute size with ``norm="global"``.
        norm: see the head of this module.
        ranks: processes whose gradients differ: an inf or NaN in one gives v = 0 in all.
    """
    used = [(w, g) for w, g in zip(parameters, gradients, strict=True) if g is not None]
    if not used:
        device = parameters[0].device if parameters else torch.device("cpu")
        skipped = torch.full((), float(len(parameters)), device=device)
        return Perturbation([], [], skipped, torch.ones((), dtype=torch.bool, device=device))
    weights, grads = [w for w, _ in used], [g.float() for _, g in used]
    if norm == "filter":
        weight_norms, grad_norms = [_filter_norms(w) for w in weights], [_filter_norms(g) for g in grads]
    else:
        weight_norms, grad_norms = torch._foreach_norm(weights), torch._foreach_norm(grads)
    all_weight_norms, all_grad_norms = _flat(weight_norms), _flat(grad_norms)
    not_finite = ~(all_weight_norms.isfinite().all() & all_grad_norms.isfinite().all())
    if ranks is not None:
        not_finite = ranks.sum(not_finite.float()) > 0
    if norm == "global":
        total = torch.linalg.vector_norm(all_grad_norms)
        values = torch._foreach_mul(grads, _ratio(torch.full_like(total, gamma), total))
        moving = all_grad_norms > 0
    else:
        parts = _ratio(gamma * all_weight_norms, all_grad_norms).split([one.numel() for one in grad_norms])
        scales = [part.view(one.shape) for part, one in zip(parts, grad_norms, strict=True)]
        values = torch._foreach_mul(grads, scales)
        moving = torch.stack(torch._foreach_norm(scales, float("inf"))) > 0
    for value in values:
        value.masked_fill_(not_finite, 0.0)  # a scale of zero would not do: 0 * NaN is NaN
    unused = len(parameters) - len(used)
    skipped = (~moving | not_finite).sum(dtype=torch.float32) + unused
    return Perturbation(weights, list(values), skipped, ~not_finite)


class AdversarialWeights:
    """Finds and applies perturbations; holds the copy the weights are restored from, so that it is allocated once.

    Args:
        model: the bare network, not its DDP or compiled wrapper: its parameters are changed in place and keep their
            addresses, which compiled code and CUDA graphs rely on. Perturb outside of the compiled call.
        gamma: see :func:`direction`.
        norm: see the head of this module.
        ranks: the processes that train together.
        direction: with several processes, ``synchronised`` averages the gradients first, so that v is that of the
            global batch; ``local`` gives each process the v of its own batch.
    """

    def __init__(
        self,
        model: nn.Module,
        gamma: float,
        *,
        norm: Norm = "tensor",
        ranks: Ranks | None = None,
        direction: Literal["synchronised", "local"] = "synchronised",
    ) -> None:
        self.model, self.gamma, self.norm = model, gamma, norm
        self.ranks, self.synchronised = ranks or Ranks(), direction == "synchronised"
        self._copies: dict[nn.Parameter, Tensor] = {}

    def parameters(self) -> list[nn.Parameter]:
        """What :meth:`find_from` expects the gradients of; depends on what is frozen now."""
        return list(perturbable_parameters(self.model, self.norm).values())

    def find(self, loss: Tensor) -> Perturbation:
        """The perturbation that raises ``loss``, a scalar computed from the bare model's present weights.

        The gradient goes to no ``.grad`` and passes DDP by. Under fp16 pass the scaled loss
        (``scaler.scale(loss)``), so that small gradients do not vanish: the scale cancels, and one that overflows
        gives an empty perturbation. ``scaler.update()`` belongs to the second pass alone.
        """
        parameters = self.parameters()
        return self.find_from(torch.autograd.grad(loss, parameters, allow_unused=True) if parameters else [])

    def find_from(self, gradients: Sequence[Tensor | None]) -> Perturbation:
        """As :meth:`find`, from gradients (or their sum over parts of the batch) of :meth:`parameters`.

        With several processes and a synchronised direction the tensors are overwritten by their average.
        """
        parameters = self.parameters()
        if self.ranks.world == 1:
            return direction(parameters, gradients, self.gamma, self.norm)
        # A tensor without gradient in one process may have one in another, and all must exchange the same.
        whole = [torch.zeros_like(w) if g is None else g for w, g in zip(parameters, gradients, strict=True)]
        if not self.synchronised:
            return direction(parameters, whole, self.gamma, self.norm, ranks=self.ranks)
        self.ranks.mean_(whole)  # spreads an inf or NaN too, so the processes agree without asking
        return direction(parameters, whole, self.gamma, self.norm)

    @contextmanager
    def applied(self, perturbation: Perturbation) -> Iterator[None]:
        """Weights are w + v inside and bit for bit w after, also when an exception passes through.

        Run forward **and** backward inside: the backward pass needs the weights the forward pass used.
        """
        parameters = perturbation.parameters
        if not parameters:
            yield
            return
        copies = [self._copy_for(parameter) for parameter in parameters]
        with torch.no_grad():
            torch._foreach_copy_(copies, parameters)
        try:
            with torch.no_grad():
                torch._foreach_add_(parameters, perturbation.values)
            # Inside one autocast region the bf16 casts of w are kept, and would be used for w + v.
            torch.clear_autocast_cache()
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, copies)
            torch.clear_autocast_cache()

    def _copy_for(self, parameter: nn.Parameter) -> Tensor:
        copy = self._copies.get(parameter)
        if copy is None or (copy.dtype, copy.device) != (parameter.dtype, parameter.device):
            copy = self._copies[parameter] = torch.empty_like(parameter, requires_grad=False)
        return copy


@contextmanager
def batchnorm_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Training-mode norms still normalise by the batch, but leave running mean, variance and counter alone.

    With ``track_running_stats`` off for the moment, PyTorch's norm layers (SyncBatchNorm too, and timm's, which share
    the code path) neither read nor write their buffers in training mode. A compiled model has a graph for each of the
    two states, and switches between them without compiling again.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def batchnorm_of_pass(
    model: nn.Module, policy: Literal["reference", "clean"], *, perturbed: bool
) -> AbstractContextManager[None]:
    """For a pass of AWP: exactly one of the two updates the running statistics.

    ``reference``: the perturbed pass, as in AWP's code, whose proxy never reaches the model's statistics.
    ``clean``: the first one, as in Google's SAM.
    """
    updates = perturbed == (policy == "reference")
    return nullcontext() if updates else batchnorm_statistics_kept(model)


def _flat(norms: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.reshape(-1).float() for one in norms])


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 0 where ``below`` is 0."""
    return torch.where(below > 0, above / below, 0.0)


def _filter_norms(tensor: Tensor) -> Tensor:
    """(O, ...) -> (O, 1, ...), without a copy in either memory layout."""
    if tensor.ndim < 2:
        return tensor.abs()
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
