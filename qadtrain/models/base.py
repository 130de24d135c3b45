"""What every detector gives to the trainer: logits, and features at the tapped modules."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qadprep.errors import UserError

CLASSES = 2  # 0 = real, 1 = fake


class ModelOutput(NamedTuple):
    logits: Tensor  # (N, 2), class 1 = fake
    features: dict[str, Tensor]  # tap -> (N, ...), as the module returned it


class TappedModel(nn.Module):
    """A backbone with timm's three methods, read out at named modules.

    Args:
        backbone: has ``forward_features(x)``, ``forward_head(x, pre_logits=True)`` and ``get_classifier()``.
        taps: dotted module names inside the backbone, or ``pooled`` (input of the classifier) or ``logits``.
        choices: names offered in the message for an unknown tap.

    Raises:
        UserError: a tap that the backbone does not have, or a backbone without a single classifier.
    """

    def __init__(self, backbone: nn.Module, taps: Iterable[str], choices: Iterable[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps = tuple(taps)
        self._seen: dict[str, Tensor] = {}
        if not isinstance(self.head, nn.Linear):
            raise UserError(
                f"model.name: got a model whose classifier is a {type(self.head).__name__}, expected Linear"
            )
        modules = dict(backbone.named_modules())
        for tap in self.taps:
            if tap in ("pooled", "logits"):
                continue
            if tap not in modules or not tap:
                options = ", ".join((*choices, "pooled", "logits"))
                raise UserError(f"model.taps: got {tap!r}, expected modules of the model, for example {options}")
            modules[tap].register_forward_hook(self._remember(tap))

    @property
    def head(self) -> nn.Module:
        """The classifier: all that the head-only epochs train."""
        return self.backbone.get_classifier()

    def forward(self, images: Tensor) -> ModelOutput:
        """Images float (N, 3, H, W), normalised RGB -> logits and tapped features."""
        self._seen.clear()
        pooled = self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)
        logits = self.head(pooled)
        self._seen.update(pooled=pooled, logits=logits)
        features = {tap: self._seen[tap] for tap in self.taps}
        self._seen.clear()  # keeps no graph alive past the caller's use
        return ModelOutput(logits, features)

    def train_head_only(self, head_only: bool) -> None:
        """Freeze all but the classifier (and hold its norms in evaluation mode), or free everything again.

        Call it in training mode, after ``model.train()``.
        """
        head = {id(parameter) for parameter in self.head.parameters()}
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(not head_only or id(parameter) in head)
        if head_only:
            # Frozen filters with drifting BatchNorm statistics would not be frozen features.
            self.backbone.eval()
            self.head.train()

    def _remember(self, tap: str):  # noqa: ANN202 (a torch hook)
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not torch.is_tensor(output):
                raise UserError(
                    f"model.taps: got {tap!r}, whose output is a {type(output).__name__}, expected a tensor"
                )
            self._seen[tap] = output

        return hook
