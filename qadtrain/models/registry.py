"""Model names to models: our own by registration, everything else by timm."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from qadprep.errors import UserError
from qadtrain.config import ModelConfig
from qadtrain.models import f3net, mat, meso
from qadtrain.models.base import CLASSES, TappedModel
from qadtrain.models.fetch import quiet_hub
from qadtrain.models.tiny import TinyCnn
from qadtrain.models.weights import LoadReport, load_pretrained_file, load_trunk

Builder = Callable[[ModelConfig], nn.Module]

_STATISTICS = {  # mean and std of timm's configurations -> our name
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "imagenet",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "half",
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)): "unit",
}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is and what it expects."""

    name: str
    paper: str  # authors, year, title; "" when the model has none of its own
    input_size_px: int  # side of the input; 0 = any
    normalization: str  # imagenet, half or unit as in data.normalization; "" = none of them
    stage_taps: tuple[str, ...]  # modules at the ends of the stages, for model.taps
    parameters: int  # with two classes
    pretrained: str  # what --set model.pretrained=true loads; "" = nothing is published


@dataclass(frozen=True)
class _Entry:
    """A registered model: either a builder of our own, or another name for a network of timm."""

    builder: Builder | None = None
    timm_name: str = ""
    trunk: str = ""  # timm name of the ImageNet network that the builder's model is built on
    paper: str = ""
    input_size_px: int = 0
    normalization: str = "imagenet"
    stage_taps: tuple[str, ...] = ()


_ENTRIES: dict[str, _Entry] = {}


def register(name: str, builder: Builder, **card: Any) -> None:
    """Add a model of our own under a name that ``--set model.name=`` accepts; it takes precedence over timm.

    Args:
        name: the new name.
        builder: gives the network, with random weights, for a configuration.
        card: of ``paper``, ``input_size_px``, ``normalization``, ``stage_taps`` as in :class:`ModelCard`, and
            ``trunk``, timm's name of the pretrained network that its ``trunk_state`` takes over.
    """
    _ENTRIES[name] = _Entry(builder, **card)


_MESO = "Afchar et al. 2018, MesoNet: a Compact Facial Video Forgery Detection Network"
_MAT = "Zhao et al. 2021, Multi-attentional Deepfake Detection"
_BLOCKS = ("block1", "block2", "block3", "block4")
register(
    "tiny",
    lambda config: TinyCnn(CLASSES, drop_rate=config.drop_rate),
    normalization="half",
    stage_taps=("stem", "stage1", "stage2", "stage3"),
)
for _name, _network in (("meso4", meso.meso4), ("mesoinception4", meso.mesoinception4)):
    register(
        _name,
        lambda config, network=_network: network(config.drop_rate, CLASSES),
        paper=_MESO,
        input_size_px=meso.SIZE_PX,
        normalization="unit",
        stage_taps=_BLOCKS,
    )
_ENTRIES["xception"] = _Entry(
    timm_name=f3net.TRUNK,
    paper="Chollet 2017, Xception; Roessler et al. 2019, FaceForensics++: Learning to Detect Manipulated Facial Images",
    input_size_px=299,
    normalization="half",
    stage_taps=("block1", "block2", "block11", "block12", "act4"),
)
register(
    "f3net",
    lambda config: f3net.F3Net(drop_rate=config.drop_rate, num_classes=CLASSES),
    trunk=f3net.TRUNK,
    paper="Qian et al. 2020, Thinking in Frequency: Face Forgery Detection by Mining Frequency-aware Clues",
    input_size_px=f3net.SIZE_PX,
    normalization="half",
    stage_taps=tuple(
        f"{stream}_stream.{block}" for stream in ("fad", "lfs") for block in ("block1", "block2", "block11", "act4")
    ),
)
for _name, _augment in (("mat", True), ("mat-no-agda", False)):
    register(
        _name,
        lambda config, augment=_augment: mat.Mat(config.drop_rate, config.drop_path_rate, augment, CLASSES),
        trunk=mat.TRUNK,
        paper=_MAT,
        input_size_px=380,
        normalization="half",
        stage_taps=(
            "trunk.blocks.1",
            "trunk.blocks.2",
            "trunk.blocks.4",
            "trunk.blocks.6",
            "attention",
            "texture.fuse",
        ),
    )


def names() -> list[str]:
    """The registered names, in alphabetical order; every model name of timm is accepted beside them."""
    return sorted(_ENTRIES)


@lru_cache(maxsize=32)
def describe(name: str) -> ModelCard:
    """Facts of a registered model or one of timm, without its weights.

    Raises:
        UserError: unknown name.
    """
    config = ModelConfig(name=name, pretrained=False)
    entry = _ENTRIES.get(name)
    with torch.device("meta"):
        backbone = _random_backbone(config)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    if entry is not None:
        return ModelCard(
            name=name,
            paper=entry.paper,
            input_size_px=entry.input_size_px,
            normalization=entry.normalization,
            stage_taps=entry.stage_taps or _children(backbone),
            parameters=parameters,
            pretrained=entry.timm_name or entry.trunk,
        )
    facts = backbone.pretrained_cfg
    statistics = (tuple(facts.get("mean", ())), tuple(facts.get("std", ())))
    return ModelCard(
        name=name,
        paper="",
        input_size_px=facts.get("input_size", (3, 0, 0))[-1],
        normalization=_STATISTICS.get(statistics, ""),
        stage_taps=_stages_of(backbone) or _children(backbone),
        parameters=parameters,
        pretrained=facts.get("hf_hub_id") or facts.get("url") or "",
    )


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
    entry = _ENTRIES.get(config.name)
    fetch = load_weights and config.pretrained and not config.weights
    if entry is None or entry.timm_name:
        backbone, origin = _timm_backbone(config, entry.timm_name if entry else config.name, fetch)
    elif fetch and not entry.trunk:
        raise UserError(
            f"model.pretrained: there are no pretrained weights for {config.name!r}; "
            "use --set model.pretrained=false or --weights FILE"
        )
    else:
        backbone, origin = entry.builder(config), "random"
    stages = entry.stage_taps if entry else _stages_of(backbone)
    model = TappedModel(backbone, config.taps, stages or _children(backbone))
    report = LoadReport(origin)
    if load_weights and config.weights:
        report = load_pretrained_file(model, config.weights, _trunk_of(entry))
    elif fetch and entry is not None and entry.trunk:
        trunk, origin = _timm_backbone(ModelConfig(name=entry.trunk), entry.trunk, fetch, num_classes=0)
        report = load_trunk(model, trunk.state_dict(), origin)
    return model, report


def _random_backbone(config: ModelConfig) -> nn.Module:
    entry = _ENTRIES.get(config.name)
    if entry is not None and entry.builder is not None:
        return entry.builder(config)
    return _timm_backbone(config, entry.timm_name if entry else config.name, fetch=False)[0]


def _trunk_of(entry: _Entry | None) -> nn.Module | None:
    if entry is None or not entry.trunk:
        return None
    with torch.device("meta"):
        return _timm_backbone(ModelConfig(name=entry.trunk), entry.trunk, fetch=False, num_classes=1000)[0]


def _stages_of(backbone: nn.Module) -> tuple[str, ...]:
    modules = dict(backbone.named_modules())
    return tuple(info["module"] for info in getattr(backbone, "feature_info", ()) if info["module"] in modules)


def _children(backbone: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in backbone.named_children())


def _timm_backbone(
    config: ModelConfig, timm_name: str, fetch: bool, num_classes: int = CLASSES
) -> tuple[nn.Module, str]:
    import timm

    if not timm.is_model(timm_name.split(".")[0]):
        near = ", ".join(timm.list_models(f"{config.name[:6]}*")[:4])
        hint = f" (near it: {near})" if near else ""
        raise UserError(
            f"model.name: got {config.name!r}, expected one of {', '.join(names())} or a model name of timm{hint}"
        )
    options: dict[str, Any] = {"num_classes": num_classes, "drop_rate": config.drop_rate}
    if config.drop_path_rate:
        options["drop_path_rate"] = config.drop_path_rate
    try:
        with quiet_hub() if fetch else nullcontext():
            backbone = timm.create_model(timm_name, pretrained=fetch, **options)
    except Exception as error:
        if not fetch:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"model.name: timm cannot build {config.name!r} ({reason})") from error
        # Whatever went wrong on the way (no network, no cache, a changed file), the remedy is the same.
        raise UserError(
            f"the pretrained weights of {timm_name} could not be fetched ({type(error).__name__}); give a "
            "downloaded file with --weights FILE, or train from scratch with --set model.pretrained=false"
        ) from error
    if not fetch:
        return backbone, "random"
    source = backbone.pretrained_cfg.get("hf_hub_id") or backbone.pretrained_cfg.get("url") or "timm"
    return backbone, f"timm pretrained: {source}"
