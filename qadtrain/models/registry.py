"""Model names to models: our own by registration, everything else by timm."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

from qadprep.errors import UserError
from qadtrain.config import ModelConfig
from qadtrain.models.base import CLASSES, TappedModel
from qadtrain.models.fetch import quiet_hub
from qadtrain.models.tiny import TinyCnn
from qadtrain.models.weights import LoadReport, load_pretrained_file

Builder = Callable[[ModelConfig], nn.Module]

_BUILDERS: dict[str, Builder] = {}


def register(name: str, builder: Builder) -> None:
    """Add a model of our own under a name that ``--set model.name=`` accepts; it takes precedence over timm."""
    _BUILDERS[name] = builder


register("tiny", lambda config: TinyCnn(CLASSES, drop_rate=config.drop_rate))


def build_model(config: ModelConfig, *, load_weights: bool = True) -> tuple[TappedModel, LoadReport]:
    """The model of a configuration, in fp32 on the CPU.

    Args:
        config: name, taps and where pretrained weights come from.
        load_weights: False builds it with random weights (a checkpoint is loaded next).

    Returns:
        The model and a report of what was loaded into it.

    Raises:
        UserError: unknown name or tap, weights that cannot be fetched or do not fit.
    """
    fetch = load_weights and config.pretrained and not config.weights
    if config.name in _BUILDERS:
        if fetch:
            raise UserError(
                f"model.pretrained: there are no pretrained weights for {config.name!r}; "
                "use --set model.pretrained=false or --weights FILE"
            )
        backbone, origin, choices = _BUILDERS[config.name](config), "random", ()
    else:
        backbone, origin = _timm_backbone(config, fetch)
        choices = tuple(info["module"] for info in getattr(backbone, "feature_info", ()))
    model = TappedModel(backbone, config.taps, choices or tuple(name for name, _ in backbone.named_children()))
    report = LoadReport(origin)
    if load_weights and config.weights:
        report = load_pretrained_file(model, config.weights)
    return model, report


def _timm_backbone(config: ModelConfig, fetch: bool) -> tuple[nn.Module, str]:
    import timm

    if not timm.is_model(config.name.split(".")[0]):
        near = ", ".join(timm.list_models(f"{config.name[:6]}*")[:4])
        hint = f" (near it: {near})" if near else ""
        raise UserError(f"model.name: got {config.name!r}, expected tiny or a model name of timm{hint}")
    options: dict[str, Any] = {"num_classes": CLASSES, "drop_rate": config.drop_rate}
    if config.drop_path_rate:
        options["drop_path_rate"] = config.drop_path_rate
    try:
        with quiet_hub() if fetch else nullcontext():
            backbone = timm.create_model(config.name, pretrained=fetch, **options)
    except Exception as error:
        if not fetch:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"model.name: timm cannot build {config.name!r} ({reason})") from error
        # Whatever went wrong on the way (no network, no cache, a changed file), the remedy is the same.
        raise UserError(
            f"the pretrained weights of {config.name} could not be fetched ({type(error).__name__}); give a "
            "downloaded file with --weights FILE, or train from scratch with --set model.pretrained=false"
        ) from error
    if not fetch:
        return backbone, "random"
    source = backbone.pretrained_cfg.get("hf_hub_id") or backbone.pretrained_cfg.get("url") or "timm"
    return backbone, f"timm pretrained: {source}"
