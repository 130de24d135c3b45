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
    extra_loss: Tensor | None = None  # scalar that a model adds to its training loss (mat); None for all others


class TappedModel(nn.Module):
    """A backbone with timm's three methods, read out at named modules.

    A backbone may have four more methods: ``extra_loss(maps, images, labels)``, a scalar that belongs to its training
    loss, where ``maps`` is what ``forward_features`` gave; ``observe(maps)``, called instead of it in training passes
    that leave the extra loss out; ``set_epoch(epoch)``; and ``trunk_state(state)``, which turns the weights of the
    ImageNet network it is built on into weights of its own.

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

    def forward(self, images: Tensor, labels: Tensor | None = None, *, extra_loss: bool = True) -> ModelOutput:
        """Logits, tapped features and, for a model that has one, the extra training loss.

        Args:
            images: float (N, 3, H, W), normalised RGB.
            labels: int64 (B,) with N = B x qualities, tuple by tuple, 1 = fake. Only a model with an extra loss needs
                them, in training mode.
            extra_loss: False leaves the extra loss out, for passes that do not train (the one AWP finds its
                direction with).

        Raises:
            UserError: a model with an extra loss in training mode, without labels.
        """
        self._seen.clear()
        maps = self.backbone.forward_features(images)
        pooled = self.backbone.forward_head(maps, pre_logits=True)
        logits = self.head(pooled)
        self._seen.update(pooled=pooled, logits=logits)
        features = {tap: self._seen[tap] for tap in self.taps}
        extra = None
        # In the head-only epochs the backbone is in evaluation mode: then the cross-entropy alone trains.
        if self.has_extra_loss and self.backbone.training:
            if not extra_loss:
                if hasattr(self.backbone, "observe"):
                    self.backbone.observe(maps)
            elif labels is None:
                raise UserError("this model's training loss needs the labels, expected model(images, labels)")
            else:
                extra = self.backbone.extra_loss(maps, images, labels.repeat_interleave(len(images) // len(labels)))
        self._seen.clear()  # keeps no graph alive past the caller's use
        return ModelOutput(logits, features, extra)

    @property
    def has_extra_loss(self) -> bool:
        """Whether the training loss has a part of the model's own, for which ``forward`` needs the labels."""
        return hasattr(self.backbone, "extra_loss")

    def set_epoch(self, epoch: int) -> None:
        """Tell the model which epoch (from 0) begins; a model that changes nothing over the epochs ignores it.

        All processes that train together call it: a model may exchange statistics of its own from then on.
        """
        if hasattr(self.backbone, "set_epoch"):
            self.backbone.set_epoch(epoch)

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


def check_size(images: Tensor, size_px: int, name: str) -> None:
    """Raise UserError unless the images are (N, 3, size_px, size_px): the published network takes no other size."""
    if images.shape[1:] != (3, size_px, size_px):
        got = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"data.image_size_px: model {name} got images of {got}, expected 3x{size_px}x{size_px}; "
            f"use --set data.image_size_px={size_px}"
        )
