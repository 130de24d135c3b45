"""Heat maps of trained detectors, by the library pytorch-grad-cam."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qadprep.errors import UserError
from qadtrain.device import autocast_to
from qadtrain.models import TappedModel, describe

# As the library's own examples call them; those that need one pass over the picture.
METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "gradcamelementwise": "GradCAMElementWise",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}
TARGETS = ("fake", "predicted")
_FAKE = 1
# Where the last stage in the registry's list is not the last convolution that sees the whole face.
_LAYERS = {
    "mat": ("trunk.blocks.6",),
    "mat-no-agda": ("trunk.blocks.6",),
    "f3net": ("fad_stream.act4", "lfs_stream.act4"),
}


class HeatMaps:
    """Heat maps of one model.

    Weights get no gradient, and the passes run in float32 without autocast: gradients begin at the chosen layer.

    Args:
        model: on its device; it is put in evaluation mode and its weights are frozen.
        name: of the model in the configuration.
        sample: float (N, 3, H, W), some network input, for a look at the layers' shapes.
        method: a key of :data:`METHODS`.
        layer: dotted name inside the backbone, or several joined by commas (their maps are averaged); None = the end
            of the last stage, see docs/explanation.md.
        target: ``fake`` = the fake class's logit; ``predicted`` = that of the class the model says.

    Raises:
        UserError: unknown method, target or layer, or a layer whose output is no map or does not reach the logits.
    """

    def __init__(
        self,
        model: TappedModel,
        name: str,
        sample: Tensor,
        *,
        method: str = "gradcam",
        layer: str | None = None,
        target: str = "fake",
    ) -> None:
        check_options(method, target)
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        self.method, self.target = method, target
        self._fake = ClassifierOutputTarget(_FAKE)
        self._logits = _Logits(model).eval().requires_grad_(False)
        modules = dict(model.backbone.named_modules())
        names = [part.strip() for part in layer.split(",")] if layer else default_layers(model, name, sample[:1])
        for each in names:
            if each not in modules or not each:
                near = ", ".join(describe(name).stage_taps[-4:])
                raise UserError(f"--layer: got {each!r}, expected a module of {name}, for example {near}")
        self.layers = tuple(names)
        chosen = [modules[each] for each in names]
        layout = _layout(model.backbone)
        _check_reach(self._logits, dict(zip(names, chosen, strict=True)), sample[:1], layout)
        # Before the library's hooks: what these return is what those see.
        self._hooks = [module.register_forward_hook(_first_gradient) for module in chosen]
        kind = getattr(pytorch_grad_cam, METHODS[method])
        self._cam = kind(model=self._logits, target_layers=chosen, reshape_transform=layout)

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Maps and logits of a batch.

        Args:
            images: float32 (N, 3, H, W), normalised, on the model's device.

        Returns:
            float32 (N, H, W): each map from 0 to 1, its own least and greatest value; all 0 where it is constant or
            not finite. float64 (N, 2): logits of the same pass; [:, 1] is the fake class.
        """
        targets = [self._fake] * len(images) if self.target == "fake" else None
        # On a GPU cuDNN would round to TF32, on the way back as well.
        with torch.enable_grad(), autocast_to("fp32", images.device):
            maps = np.array(self._cam(input_tensor=images, targets=targets), dtype=np.float32)
        logits = self._cam.outputs.detach().double().cpu().numpy()
        self._cam.outputs = None  # it holds the pass's graph
        maps[~np.isfinite(maps).all(axis=(1, 2))] = 0
        return maps, logits

    def close(self) -> None:
        """Take the hooks off the model."""
        self._cam.activations_and_grads.release()
        for hook in self._hooks:
            hook.remove()


def check_options(method: str, target: str) -> None:
    """Raise UserError for a method or target that there is not."""
    if method not in METHODS:
        raise UserError(f"--method: got {method!r}, expected one of {', '.join(METHODS)}")
    if target not in TARGETS:
        raise UserError(f"--target: got {target!r}, expected one of {', '.join(TARGETS)}")


def is_constant(maps: np.ndarray) -> np.ndarray:
    """float (..., H, W) -> bool (...): maps that show no place: no gradient, or nothing that speaks for the class."""
    return maps.max(axis=(-2, -1)) == maps.min(axis=(-2, -1))


def default_layers(model: TappedModel, name: str, image: Tensor) -> list[str]:
    """The end of the last stage that still has places: timm's feature_info or the registry's stages.

    Vision transformers: the first norm of the last block, since with a class token the block's own output has no
    gradient at the other tokens. Without stages: the last convolution.
    """
    backbone = model.backbone
    modules = dict(backbone.named_modules())
    if name in _LAYERS:
        return list(_LAYERS[name])
    if getattr(backbone, "num_prefix_tokens", None) is not None and hasattr(backbone, "blocks"):
        return [f"blocks.{len(backbone.blocks) - 1}.norm1"]
    stages = [tap for tap in describe(name).stage_taps if tap in modules]
    convolutions = [each for each, module in modules.items() if isinstance(module, nn.Conv2d)]
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(tap: str) -> Callable:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes[tap] = tuple(output.shape) if torch.is_tensor(output) else ()

        return hook

    hooks = [modules[tap].register_forward_hook(remember(tap)) for tap in {*stages, *convolutions}]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    for tap in (*reversed(stages), *reversed(convolutions)):
        shape = shapes.get(tap, ())
        # More than one place, whichever side the channels are on.
        if len(shape) == 4 and math.prod(shape[1:]) > max(shape[1], shape[3]):
            return [tap]
    raise UserError(f"--layer: {name} has no stage whose output is a map; name a layer")


class _Logits(nn.Module):
    """The library takes a network whose output is a tensor."""

    def __init__(self, model: TappedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _first_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Gradients begin here. A copy, since an activation that follows may work in place."""
    return output.clone() if output.requires_grad else output.detach().requires_grad_(True).clone()


def _layout(backbone: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module's output or its gradient as (N, C, h, w), in memory of its own."""
    last = getattr(backbone, "output_fmt", None) == "NHWC"
    prefix = int(getattr(backbone, "num_prefix_tokens", 0) or 0)

    def reshape(tensor: Tensor) -> Tensor:
        if tensor.ndim == 3:
            places = tensor[:, prefix:]
            side = math.isqrt(places.shape[1])
            if side * side != places.shape[1]:
                raise UserError(f"--layer: got a layer of {tensor.shape[1]} tokens, expected those of a square picture")
            return places.transpose(1, 2).reshape(len(tensor), -1, side, side).clone()
        if tensor.ndim != 4:
            raise UserError(f"--layer: got a layer whose output has shape {tuple(tensor.shape)}, expected maps")
        return (tensor.permute(0, 3, 1, 2) if last else tensor).clone()

    return reshape


def _check_reach(
    network: nn.Module, chosen: dict[str, nn.Module], image: Tensor, layout: Callable[[Tensor], Tensor]
) -> None:
    """One pass: each layer runs once, gives a map, and the logits depend on it."""
    seen: dict[str, list[Any]] = {name: [] for name in chosen}

    def remember(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if torch.is_tensor(output):
                output = _first_gradient(module, inputs, output)
                seen[name].append(output)
                return output.clone()
            seen[name].append(output)
            return None

        return hook

    hooks = [module.register_forward_hook(remember(name)) for name, module in chosen.items()]
    try:
        with torch.enable_grad():
            logits = network(image)
        for name, outputs in seen.items():
            if len(outputs) != 1:
                raise UserError(f"--layer: got {name!r}, which runs {len(outputs)} times in a pass, expected once")
            if not torch.is_tensor(outputs[0]):
                raise UserError(f"--layer: got {name!r}, whose output is a {type(outputs[0]).__name__}, expected maps")
            layout(outputs[0])
            gradient = None
            with suppress(RuntimeError):  # nothing after the layer has a gradient
                gradient = torch.autograd.grad(logits.sum(), outputs[0], allow_unused=True, retain_graph=True)[0]
            if gradient is None:
                raise UserError(f"--layer: got {name!r}, on which the logits do not depend")
    finally:
        for hook in hooks:
            hook.remove()
