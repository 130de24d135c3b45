"""The configuration of a training run: one pydantic model a section. ``config_io.py`` reads and writes it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What a resumed run may set differently: it does not change the weights, or only lets a run go on that had stopped.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "data.num_workers",
        "data.skip_bad",
        "train.device",
        "train.skip_nonfinite",
        "train.log_every_steps",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.wandb",
    }
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    image_size_px: int = Field(0, ge=0, description="side of the network's input in px; 0 = the shards' size")
    normalization: Literal["imagenet", "half", "unit"] = Field(
        "imagenet", description="imagenet = ImageNet mean and std; half = mean and std 0.5; unit = 0..1 as it is"
    )
    batch_tuples: int = Field(
        64, ge=0, description="tuples per step over all processes; images = this x qualities; 0 = the most that fits"
    )
    qualities: list[str] = Field([], description="qualities to train on, best first; empty = all of the shard set")
    sampling: Literal["shuffle", "label", "method"] = Field(
        "shuffle",
        description="shuffle = each tuple once an epoch; label, method = as often real as fake, each method as often",
    )
    self_blended: bool = Field(False, description="real tuples only, each beside a self-blended fake made of it (SBI)")
    flip_probability: Fraction = Field(0.5, description="horizontal flip, one draw shared by the tuple")
    train_split: str = Field("train", description="split that is trained on")
    val_split: str = Field("val", description="split that picks the best checkpoint; may be absent")
    num_workers: int = Field(
        -1, ge=-1, description="loader processes; -1 = on a GPU one per core, at most 8; on the CPU half of them"
    )
    skip_bad: int = Field(
        0, ge=0, description="damaged tuples a run may leave out of train, and of val, before it stops"
    )


class AugmentConfig(Section):
    """Augmentation on the device, beside the flip; all off by default."""

    erase_probability: Fraction = Field(0.0, description="a rectangle of 2 to 20 % of the picture set to noise")
    blur_probability: Fraction = Field(0.0, description="Gaussian blur")
    blur_sigma_px: tuple[float, float] = Field((0.3, 2.0), description="range of its sigma, in px of the input")
    colour_probability: Fraction = Field(0.0, description="brightness, contrast and saturation")
    colour_strength: Fraction = Field(0.2, description="each factor lies in 1 - this .. 1 + this")
    jpeg_probability: Fraction = Field(0.0, description="a JPEG round trip; it writes over compression traces")
    jpeg_quality: tuple[int, int] = Field((60, 95), description="range of its quality")
    per_quality: bool = Field(False, description="a draw for each quality of a tuple instead of one for all")


class ModelConfig(Section):
    name: str = Field("resnet50", description="tiny, a published detector (docs/models.md), or any timm model name")
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
    kernel: Literal["gaussian", "imq", "linear"] = Field(
        "gaussian", description="kernel on the flattened features; imq = inverse multiquadric"
    )
    bandwidth: Literal["fixed", "median"] = Field(
        "median", description="fixed = sigma * sqrt(d); median = 2 * bandwidth^2 is the median squared distance"
    )
    sigma: float = Field(6.0, gt=0, description="bandwidth per sqrt(d), with bandwidth = fixed")
    epsilon: float = Field(1e-5, gt=0, description="regularisation of nhsic_cca")
    pairs: Literal["reference", "all"] = Field(
        "reference", description="reference = best quality against each other one; all = every pair"
    )
    given_label: bool = Field(
        False, description="HSIC inside each class, weighted by its tuples: class structure does not count as alignment"
    )
    scope: Literal["local", "gathered"] = Field(
        "local", description="several processes: each one's own tuples, or all of them gathered with the gradient"
    )
    group_tuples: int = Field(
        0, ge=0, description="HSIC is the mean over groups of so many tuples; 0 = one group. Fixes it for any batch"
    )


class AwpConfig(Section):
    gamma: float = Field(0.002, ge=0, description="size of the perturbation relative to the weights; 0 = off")
    start_epoch: int = Field(3, ge=0, description="first epoch (from 0) with AWP")
    loss: Literal["ce", "ce+hsic", "kl"] = Field(
        "ce", description="what the perturbation raises; kl = CE + KL of the softened outputs, best quality to others"
    )
    temperature: float = Field(4.0, gt=0, description="softens both outputs of kl; times its square in the loss")
    norm: Literal["tensor", "filter", "global"] = Field(
        "tensor", description="gamma is relative to each tensor (AWP), each output filter; global = gamma * g/|g| (SAM)"
    )
    direction: Literal["synchronised", "local"] = Field(
        "synchronised", description="several processes: of the global batch's gradient, or of each one's own"
    )
    batchnorm: Literal["reference", "clean"] = Field(
        "reference",
        description="pass that updates BatchNorm statistics: reference = the perturbed one; clean = the first one",
    )
    batch_fraction: float = Field(1.0, gt=0, le=1, description="part of the batch the direction is found on")
    every_steps: int = Field(1, ge=1, description="perturb every n-th step")


class OptimConfig(Section):
    epochs: int = Field(32, ge=1, description="passes over the train split")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd has Nesterov-free momentum")
    learning_rate: float = Field(2e-4, gt=0, description="peak of the schedule")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="Adam; the first is overridden when cycle_momentum is on"
    )
    momentum: Beta = Field(0.9, description="sgd only")
    weight_decay: float = Field(0.0, ge=0, description="L2 term of adam and sgd; decoupled in adamw")
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = Field(
        "one_cycle", description="learning rate over the steps; cosine and linear fall to final_rate"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear rise before cosine, linear or constant")
    final_rate: Fraction = Field(0.0, description="last learning rate of cosine and linear, relative to the peak")
    pct_start: float = Field(0.05, gt=0, lt=1, description="part of one_cycle in which the rate rises")
    cycle_momentum: bool = Field(True, description="one_cycle also moves momentum or Adam's first beta, 0.95 to 0.85")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced = real and fake weigh the same in the cross-entropy, however many there are"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of the cross-entropy")
    head_only_epochs: int = Field(3, ge=0, description="first epochs that train the classifier alone")
    accumulate_steps: int = Field(1, ge=1, description="parts a step's batch is run in; HSIC is per part")
    clip_norm: float = Field(0.0, ge=0, description="most gradient norm over all weights; 0 = no clipping")
    ema_decay: Beta = Field(0.0, description="moving average of the weights, validated and saved as best; 0 = off")
    early_stop_checks: int = Field(0, ge=0, description="validations without a better one that end the run; 0 = off")


class TrainConfig(Section):
    seed: int = Field(41, ge=0, description="weights, order, flips and dropout follow from it")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto = bf16 autocast on CUDA where supported, fp32 elsewhere; weights are always fp32"
    )
    compile: bool = Field(False, description="torch.compile of the network")
    deterministic: bool = Field(False, description="torch.use_deterministic_algorithms")
    sync_batchnorm: bool = Field(False, description="BatchNorm over the batches of all processes")
    skip_nonfinite: int = Field(0, ge=0, description="steps with an inf or NaN loss or gradient a run may leave out")
    log_every_steps: int = Field(20, ge=1, description="steps between two lines of metrics.jsonl")
    validate_every_steps: int = Field(0, ge=0, description="validations inside an epoch; 0 = at its end only")
    checkpoint_every_steps: int = Field(0, ge=0, description="extra checkpoints inside an epoch; 0 = at its end")
    keep_checkpoints: int = Field(1, ge=1, description="newest checkpoints kept beside the best one")
    best_metric: str = Field(
        "auc/average", description="auc, accuracy, eer or loss of the val split, / a quality or average"
    )
    wandb: Literal["off", "offline", "online"] = Field("off", description="Weights & Biases beside TensorBoard")


class Config(Section):
    """Everything that decides a run. Saved as ``config.toml`` in the run folder, loadable again."""

    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
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
        batch = self.data.batch_tuples
        if self.hsic.alpha > 0 and 0 < batch < 4:
            raise ValueError(
                f"data.batch_tuples: got {batch}, expected at least 4 "
                "(HSIC is estimated over the batch; or turn it off with hsic.alpha=0)"
            )
        if batch and batch % self.optim.accumulate_steps:
            raise ValueError(
                f"data.batch_tuples: got {batch}, expected a multiple of "
                f"optim.accumulate_steps = {self.optim.accumulate_steps}"
            )
        if self.optim.head_only_epochs >= self.optim.epochs:
            raise ValueError(
                f"optim.head_only_epochs: got {self.optim.head_only_epochs}, "
                f"expected fewer than optim.epochs = {self.optim.epochs}"
            )
        for name in ("blur_sigma_px", "jpeg_quality"):
            low, high = getattr(self.augment, name)
            if not 0 < low <= high or (name == "jpeg_quality" and high > 100):
                raise ValueError(f"augment.{name}: got [{low}, {high}], expected two rising values above 0")
        return self

    def flat(self) -> dict[str, Any]:
        """``{"awp.gamma": 0.002, ...}``, in the order of the fields."""
        sections = self.model_dump()
        return {f"{name}.{key}": value for name, fields in sections.items() for key, value in fields.items()}
