"""The configuration of a training run: pydantic models, presets, TOML files and ``--set`` overrides."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qadprep.errors import UserError

PRESETS = ("qad-r", "qad-e", "tiny")

# What a resumed run may set differently: nothing in it changes the weights.
CHANGEABLE_ON_RESUME = frozenset(
    {"data.num_workers", "train.device", "train.log_every_steps", "train.checkpoint_every_steps"}
)

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    image_size_px: int = Field(0, ge=0, description="side of the network's input in px; 0 = the shards' size")
    normalization: Literal["imagenet", "half"] = Field(
        "imagenet", description="imagenet = ImageNet mean and std; half = mean and std 0.5"
    )
    batch_tuples: int = Field(64, ge=1, description="tuples per step; images per step = this x qualities")
    flip_probability: Fraction = Field(0.5, description="horizontal flip, one draw shared by the tuple")
    train_split: str = Field("train", description="split that is trained on")
    val_split: str = Field("val", description="split that picks the best checkpoint; may be absent")
    num_workers: int = Field(
        -1, ge=-1, description="loader processes; -1 = on a GPU one per core, at most 8; on the CPU half of them"
    )


class ModelConfig(Section):
    name: str = Field("resnet50", description="tiny, or any timm model name")
    pretrained: bool = Field(True, description="start from timm's pretrained weights")
    weights: str = Field("", description="file of pretrained weights, instead of fetching them")
    taps: list[str] = Field(
        ["layer1", "layer2", "layer3"], description="modules whose outputs HSIC compares; also pooled, logits"
    )
    drop_rate: Fraction = Field(0.0, description="dropout before the classifier")
    drop_path_rate: Fraction = Field(0.0, description="stochastic depth")
    channels_last: bool = Field(True, description="NHWC memory layout; speed only")


class HsicConfig(Section):
    alpha: float = Field(0.003, ge=0, description="weight of the HSIC term; 0 = off")
    weights: list[float] = Field([0.1, 0.25, 0.5], description="one weight per tap, same order as model.taps")
    estimator: Literal["cka_unbiased", "unbiased", "biased", "nhsic_cca"] = Field(
        "cka_unbiased", description="see docs/method.md for which to use when"
    )
    kernel: Literal["gaussian", "linear"] = Field("gaussian", description="kernel on the flattened features")
    bandwidth: Literal["fixed", "median"] = Field(
        "median", description="fixed = sigma * sqrt(d); median = 2 * bandwidth^2 is the median squared distance"
    )
    sigma: float = Field(6.0, gt=0, description="bandwidth per sqrt(d), with bandwidth = fixed")
    epsilon: float = Field(1e-5, gt=0, description="regularisation of nhsic_cca")
    pairs: Literal["reference", "all"] = Field(
        "reference", description="reference = best quality against each other one; all = every pair"
    )


class AwpConfig(Section):
    gamma: float = Field(0.002, ge=0, description="size of the perturbation relative to each weight tensor; 0 = off")
    start_epoch: int = Field(3, ge=0, description="first epoch (from 0) with AWP")
    loss: Literal["ce", "ce+hsic"] = Field("ce", description="what the perturbation raises")
    batchnorm: Literal["reference", "clean"] = Field(
        "reference",
        description="pass that updates BatchNorm statistics: reference = the perturbed one; clean = the first one",
    )
    batch_fraction: float = Field(1.0, gt=0, le=1, description="part of the batch the direction is found on")
    every_steps: int = Field(1, ge=1, description="perturb every n-th step")


class OptimConfig(Section):
    epochs: int = Field(32, ge=1, description="passes over the train split")
    learning_rate: float = Field(2e-4, gt=0, description="peak of the one-cycle schedule")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Adam; the first is overridden when cycle_momentum is on"
    )
    weight_decay: float = Field(0.0, ge=0, description="L2 term of Adam")
    pct_start: float = Field(0.05, gt=0, lt=1, description="part of the schedule in which the rate rises")
    cycle_momentum: bool = Field(True, description="one-cycle also moves Adam's first beta between 0.95 and 0.85")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced = real and fake weigh the same in the cross-entropy, however many there are"
    )
    head_only_epochs: int = Field(3, ge=0, description="first epochs that train the classifier alone")


class TrainConfig(Section):
    seed: int = Field(41, ge=0, description="weights, order, flips and dropout follow from it")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto = bf16 autocast on CUDA where supported, fp32 elsewhere"
    )
    deterministic: bool = Field(False, description="torch.use_deterministic_algorithms")
    log_every_steps: int = Field(20, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_every_steps: int = Field(0, ge=0, description="extra checkpoints inside an epoch; 0 = at its end")


class Config(Section):
    """Everything that decides a run. Saved as ``config.toml`` in the run folder, loadable again."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    hsic: HsicConfig = Field(default_factory=HsicConfig)
    awp: AwpConfig = Field(default_factory=AwpConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    @model_validator(mode="after")
    def _sections_fit_together(self) -> "Config":
        if len(self.hsic.weights) != len(self.model.taps):
            raise ValueError(
                f"hsic.weights: got {len(self.hsic.weights)} weights, "
                f"expected one for each of the {len(self.model.taps)} taps in model.taps"
            )
        if len(set(self.model.taps)) != len(self.model.taps):
            raise ValueError(f"model.taps: got {self.model.taps}, expected each tap once")
        if self.hsic.alpha > 0 and self.data.batch_tuples < 4:
            raise ValueError(
                f"data.batch_tuples: got {self.data.batch_tuples}, expected at least 4 "
                "(HSIC is estimated over the batch; or turn it off with hsic.alpha=0)"
            )
        if self.optim.head_only_epochs >= self.optim.epochs:
            raise ValueError(
                f"optim.head_only_epochs: got {self.optim.head_only_epochs}, "
                f"expected fewer than optim.epochs = {self.optim.epochs}"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """``{"awp.gamma": 0.002, ...}``, in the order of the fields."""
        sections = self.model_dump()
        return {f"{name}.{key}": value for name, fields in sections.items() for key, value in fields.items()}


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    base: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Build the configuration: the preset (or ``base``), then a TOML file, then ``a.b=c`` overrides.

    Args:
        preset: one of :data:`PRESETS`; ``None`` means ``base``.
        file: TOML file with any of the sections ``[data] [model] [hsic] [awp] [optim] [train]``.
        overrides: strings like ``awp.gamma=0.004``; the value is read as TOML, else as text.
        base: nested values to start from when there is no preset.

    Raises:
        UserError: unknown preset, unreadable file, unknown field or a value out of range.
    """
    merged: dict[str, Any] = {}
    source_of: dict[str, str] = {}
    if preset is not None:
        _merge(merged, read_preset(preset), f"preset {preset}", source_of)
    elif base is not None:
        _merge(merged, base, "the run's config.toml", source_of)
    if file is not None:
        _merge(merged, read_toml(file), str(file), source_of)
    for override in overrides:
        section, key, value = _parse_override(override)
        _merge(merged, {section: {key: value}}, f"--set {override}", source_of)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item, source_of) for item in error.errors())) from None


def read_preset(name: str) -> dict[str, Any]:
    """Values of a packaged preset. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"--preset: got {name}, expected one of {', '.join(PRESETS)}")
    return tomllib.loads(resources.files("qadtrain").joinpath("presets", f"{name}.toml").read_text("utf-8"))


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises UserError naming the file when it is missing or malformed."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML, each field under its description; :func:`read_toml` reads it back."""
    lines: list[str] = []
    for name in Config.model_fields:
        section: Section = getattr(config, name)
        lines.append(f"[{name}]")
        for key, field in type(section).model_fields.items():
            lines += [f"# {field.description}", f"{key} = {_toml_value(getattr(section, key))}"]
        lines.append("")
    return "\n".join(lines)


def differences(saved: Config, wanted: Config) -> list[str]:
    """Fields that forbid a resume, as ``awp.gamma: got 0.004, expected 0.002``."""
    old, new = saved.flat(), wanted.flat()
    return [
        f"{name}: got {_toml_value(new[name])}, expected {_toml_value(old[name])}"
        for name in old
        if name not in CHANGEABLE_ON_RESUME and old[name] != new[name]
    ]


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value)
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key or "." in key:
        raise UserError(f"--set: got {text!r}, expected section.field=value, for example awp.gamma=0.004")
    try:
        return section, key, tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, value.strip()


def _merge(target: dict[str, Any], update: Mapping[str, Any], source: str, source_of: dict[str, str]) -> None:
    for section, fields in update.items():
        if not isinstance(fields, Mapping):
            raise UserError(f"{section}: got a single value, expected a section [{section}] (in {source})")
        target.setdefault(section, {}).update(fields)
        source_of[section] = source
        source_of.update({f"{section}.{key}": source for key in fields})


def _explain(item: Mapping[str, Any], source_of: Mapping[str, str]) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(location[:2])
    source = f" (in {source_of[name]})" if name in source_of else ""
    if item["type"] == "extra_forbidden":
        fields = Config.model_fields
        if len(location) > 1:
            fields = Config.model_fields[location[0]].annotation.model_fields
        return f"{name}: no such field, expected one of {', '.join(fields)}{source}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    expected = item["msg"].replace("Input should be", "expected", 1)
    return f"{'.'.join(location)}: got {item['input']!r}, {expected}{source}"
