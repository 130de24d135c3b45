"""Pictures through a trained network as the evaluation takes them: whoever scores, scores alike."""

import numpy as np
import torch
from torch import Tensor, nn

from qadtrain.augment import to_network_input
from qadtrain.config import Config
from qadtrain.device import autocast_to


def plain_input(images: Tensor, config: Config, size_px: int, device: torch.device) -> Tensor:
    """uint8 (B, M, H, W, 3) RGB -> the network's input float32 (B * M, 3, S, S), without augmentation, tuple by tuple.

    Args:
        size_px: side S where the configuration leaves it open: that of the shard set's crops.
    """
    return to_network_input(
        images,
        None,
        size_px=config.data.image_size_px or size_px,
        normalization=config.data.normalization,
        device=device,
        channels_last=config.model.channels_last,
    )


def batch_logits(model: nn.Module, images: Tensor, config: Config, size_px: int, device: torch.device) -> np.ndarray:
    """uint8 (B, M, H, W, 3) RGB -> float64 (B, M, 2), in the precision of the configuration; [..., 1] is fake.

    The caller has the model in evaluation mode and gradients off.
    """
    pixels = plain_input(images, config, size_px, device)
    with autocast_to(config.train.precision, device):
        output = model(pixels).logits
    return output.double().cpu().view(*images.shape[:2], 2).numpy()
