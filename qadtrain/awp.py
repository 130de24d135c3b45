"""Adversarial weight perturbation (Wu, Xia, Wang 2020) in its exact in-place form.

The reference copies the model into a proxy, takes one SGD step that raises the loss and scales the change of
each tensor to gamma times the norm of its weights. The proxy's learning rate cancels, so per tensor

    v = gamma * ||w|| / ||g|| * g,      g = gradient of the loss that is raised,

which needs no proxy and loses no digits to (w_new - w_old). The loss is then taken and differentiated at w + v,
the weights come back **from a copy** (subtracting v would drift), and only then the optimiser steps at w.
That order differs from the reference, which steps at w + v and subtracts v after: the two differ only by
lr * weight_decay * v, nothing at the presets' weight decay of 0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@dataclass(frozen=True)
class Perturbation:
    """``parameters[i]`` moves by ``values[i]``; tensors with a zero gradient are left out and counted."""

    parameters: list[nn.Parameter]
    values: list[Tensor]
    skipped_tensors: int  # zero gradient or zero weights: no direction
    finite: bool  # False: a gradient had inf or NaN, nothing is perturbed


def perturbable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors AWP moves: trainable, two or more dimensions, "weight" in the name. Biases and norms stay."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and "weight" in name
    }


@torch.no_grad()
def direction(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], gamma: float) -> Perturbation:
    """v = gamma * ||w|| / ||g|| * g for each pair; a ``None`` gradient counts as zero.

    One inf or NaN among the gradients gives an empty perturbation: scaling by its norm would write NaN into
    every weight of the layer.
    """
    used = [(w, g) for w, g in zip(parameters, gradients, strict=True) if g is not None]
    unused = len(parameters) - len(used)
    if not used:
        return Perturbation([], [], skipped_tensors=unused, finite=True)
    weights, grads = [w for w, _ in used], [g.float() for _, g in used]
    norms = torch.stack([torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(grads))])
    weight_norms, grad_norms = norms.double().cpu().tolist()  # one wait for the device, not one per tensor
    if not all(map(_is_finite, weight_norms + grad_norms)):
        return Perturbation([], [], skipped_tensors=len(parameters), finite=False)
    moved = [i for i in range(len(weights)) if grad_norms[i] > 0 and weight_norms[i] > 0]
    scales = [gamma * weight_norms[i] / grad_norms[i] for i in moved]
    values = torch._foreach_mul([grads[i] for i in moved], scales) if moved else []
    skipped = unused + len(weights) - len(moved)
    return Perturbation([weights[i] for i in moved], list(values), skipped, finite=True)


class AdversarialWeights:
    """Holds the copy the weights are restored from, so that it is allocated once."""

    def __init__(self, model: nn.Module, gamma: float) -> None:
        self.model, self.gamma = model, gamma
        self._copies: dict[int, Tensor] = {}

    def find(self, loss: Tensor) -> Perturbation:
        """The perturbation that raises ``loss``, a scalar computed from the model's present weights."""
        parameters = list(perturbable_parameters(self.model).values())
        return direction(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), self.gamma)

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
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, copies)

    def _copy_for(self, parameter: nn.Parameter) -> Tensor:
        if id(parameter) not in self._copies:
            self._copies[id(parameter)] = torch.empty_like(parameter, requires_grad=False)
        return self._copies[id(parameter)]


@contextmanager
def batchnorm_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Training-mode norms still normalise by the batch, but leave running mean, variance and counter alone.

    With ``track_running_stats`` off for the moment, PyTorch's norm layers (and timm's, which share the code
    path) neither read nor write their buffers in training mode.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _is_finite(value: float) -> bool:
    return value - value == 0
