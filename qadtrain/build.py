"""The parts of a run that follow from its configuration: the network on its device and the objective."""

from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.awp import batchnorm_statistics_kept
from qadtrain.config import Config
from qadtrain.distributed import Ranks
from qadtrain.losses import QadLoss, balanced_class_weights
from qadtrain.models import build_model
from qadtrain.models.weights import LoadReport
from qadtrain.sampling import classes_of

# Buffers are made rank 0's where they are needed (validation, checkpoints) and not at every step.
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_BUFFERS_STAY = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


def make_model(
    config: Config, device: torch.device, ranks: Ranks, *, load_weights: bool = True
) -> tuple[nn.Module, LoadReport]:
    """The network, fp32 on the device, and where its weights come from.

    Raises:
        UserError: ``train.sync_batchnorm`` on the CPU, or what :func:`qadtrain.models.build_model` raises.
    """
    if config.train.sync_batchnorm and device.type != "cuda":
        raise UserError(
            f"train.sync_batchnorm: got true on {device.type}, expected false (torch synchronises it on GPUs only)"
        )
    model, report = build_model(config.model, load_weights=load_weights)
    if config.train.sync_batchnorm and ranks.world > 1:
        from timm.layers import convert_sync_batchnorm  # knows timm's own norm layers too

        model = convert_sync_batchnorm(model)
    layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout), report


def make_loss(config: Config, shards: ShardSet, device: torch.device, ranks: Ranks) -> QadLoss:
    """The objective, with the class weights that ``optim.class_weights`` asks for."""
    weights = class_weights(config, shards)
    return QadLoss(
        config.hsic,
        config.model.taps,
        len(shards.qualities),
        None if weights is None else weights.to(device),
        label_smoothing=config.optim.label_smoothing,
        ranks=ranks,
    )


def class_weights(config: Config, shards: ShardSet) -> Tensor | None:
    """float (2,) of real and fake with mean 1 over what is drawn, or None.

    Balanced sampling changes what is drawn, so the weights follow from it and not from the split alone.
    """
    if config.optim.class_weights == "none" or config.data.self_blended:
        return None  # self-blended training shows each real face beside one fake
    labels = torch.from_numpy(shards.table["label"].to_numpy().astype("int64"))
    classes = classes_of(shards.table, config.data.sampling)
    if classes is not None:
        numbers = torch.from_numpy(classes.numbers.astype("int64"))
        there = torch.unique(numbers)
        labels = torch.stack([labels[numbers == number][0] for number in there])  # each class is drawn equally often
    return balanced_class_weights(labels)


def distributed(
    forward: nn.Module, model: nn.Module, config: Config, *, qualities: int, device: torch.device
) -> DistributedDataParallel:
    """The network with its gradient averaged over the processes; all must call this together.

    Args:
        forward: the network or its compiled form.
        model: the bare network; what is trainable now is what is averaged.
    """
    return DistributedDataParallel(
        forward,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=_has_idle_parameters(model, config, qualities, device),
        **_BUFFERS_STAY,
    )


def _has_idle_parameters(model: nn.Module, config: Config, qualities: int, device: torch.device) -> bool:
    """Whether some parameter gets no gradient from the loss; DDP must then look for those at every step."""
    side = config.data.image_size_px
    images = torch.zeros(2 * qualities, 3, side, side, device=device)
    with batchnorm_statistics_kept(model):
        output = model(images, torch.tensor([0, 1], device=device))
    total = output.logits.sum() + sum(feature.sum() for feature in output.features.values())
    if output.extra_loss is not None:
        total = total + output.extra_loss
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return any(gradient is None for gradient in torch.autograd.grad(total, parameters, allow_unused=True))
