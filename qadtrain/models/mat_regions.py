"""The regions of MAT: pooling by attention, the loss that keeps them apart, the blur that hides one.

Zhao et al. 2021, arXiv 2103.02406: equations 3 to 5 and 7. All of it runs in fp32 outside autocast.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from qadtrain.distributed import Ranks

RATE, RATE_DECAY = 0.05, 0.9  # alpha of Eq. 5, and its factor after each epoch
BETWEEN_MARGIN = 0.2  # m_out
WITHIN_MARGINS = (0.05, 0.1)  # m_in of real and of fake
RESIZE = 0.3  # AGDA: factor of the size, and sigma of the blur
BLUR_SIGMA_PX = 7.0
EPSILON = 1e-6  # a map that is zero everywhere pools to zero instead of NaN


def attention_pool(maps: Tensor, attention: Tensor) -> Tensor:
    """Normalised bilinear attention pooling (Eq. 3): v_k = s_k / |s_k|, s_k = sum over places of maps * A_k.

    Args:
        maps: (N, C, h, w).
        attention: (N, K, h', w'), >= 0; brought to the maps' size bilinearly.

    Returns:
        fp32 (N, K, C), each vector of length 1, or zero where the attention is zero.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps, attention = maps.float(), attention.float()
        if attention.shape[-2:] != maps.shape[-2:]:
            attention = functional.interpolate(attention, maps.shape[-2:], mode="bilinear", align_corners=False)
        sums = torch.einsum("nchw,nkhw->nkc", maps, attention)
        return functional.normalize(sums, dim=2, eps=EPSILON)


class RegionCentres(nn.Module):
    """Region independence loss (Eq. 4) and the moving centres of the regions' features (Eq. 5).

        c_t = c_(t-1) - alpha (c_(t-1) - mean_i V^i)
        loss = mean_i sum_j max(|V_j^i - c_j|^2 - m_in(y_i), 0) + sum_(i != j) max(m_out - |c_i - c_j|^2, 0)

    The first part is a mean over the batch where the paper has a sum, so that its weight does not follow the batch
    size (ours). Its gradient reaches V also through c_t: without that the second part would move nothing (inferred).
    Centres start at zero (inferred). Several processes average the mean over their batches, so that all hold the
    centres that one process with the whole batch has, and a resumed run goes on with every rank's own.
    """

    def __init__(self, regions: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(regions, channels))
        # A tensor: for each new Python number torch.compile would compile the network again.
        self.register_buffer("rate", torch.tensor(RATE), persistent=False)
        self.ranks = Ranks()

    def set_epoch(self, epoch: int) -> None:
        """The rate of an epoch (from 0); collective from here on, where there is a process group.

        A network that is never told an epoch exchanges nothing: each process tries batch sizes on its own.
        """
        self.rate.fill_(RATE * RATE_DECAY**epoch)
        if distributed.is_available() and distributed.is_initialized():
            self.ranks = Ranks(distributed.get_rank(), distributed.get_world_size())

    def moved(self, vectors: Tensor) -> Tensor:
        """c_t (M, C), with gradient, of vectors fp32 (N, M, C); the buffer stays."""
        mean = vectors.mean(dim=0)
        if self.ranks.world > 1:
            mean = _mean_of_all(mean, self.ranks)
        return self.centres + self.rate * (mean - self.centres)

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Move the centres without asking for the loss."""
        self.centres.copy_(self.moved(vectors))

    def forward(self, vectors: Tensor, labels: Tensor, update: bool = True) -> Tensor:
        """Vectors fp32 (N, M, C) and labels int64 (N,), 1 = fake -> scalar; ``update`` moves the centres."""
        centres = self.moved(vectors)
        if update:
            with torch.no_grad():
                self.centres.copy_(centres)
        within = (vectors - centres).square().sum(dim=2)  # (N, M)
        margins = within.new_tensor(WITHIN_MARGINS)[labels]
        between = (centres[:, None] - centres[None]).square().sum(dim=2)
        apart = functional.relu(BETWEEN_MARGIN - between)
        apart = apart.sum() - apart.diagonal().sum()
        return functional.relu(within - margins[:, None]).sum(dim=1).mean() + apart


@torch.compiler.disable
def _mean_of_all(mean: Tensor, ranks: Ranks) -> Tensor:
    return ranks.gather(mean[None]).mean(dim=0)


def degrade(images: Tensor, attention: Tensor) -> Tensor:
    """AGDA (Eq. 7): I' = I (1 - A*) + I_d A*, where I_d is the picture resized by 0.3 and back, and blurred.

    Args:
        images: (N, 3, H, W).
        attention: (N, h, w), >= 0: the map of the region to hide. A* is it at the pictures' size, divided by its
            largest value (inferred: the paper says normalised).

    Returns:
        fp32 (N, 3, H, W), without a graph.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        images = images.float()
        size = images.shape[-2:]
        weight = functional.interpolate(attention.float()[:, None], size, mode="bilinear", align_corners=False)
        weight = weight / weight.amax(dim=(2, 3), keepdim=True).clamp(min=EPSILON)
        small = functional.interpolate(
            images,
            [max(1, round(side * RESIZE)) for side in size],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        blurred = gaussian_blur(functional.interpolate(small, size, mode="bilinear", align_corners=False))
        return torch.lerp(images, blurred, weight.expand_as(images))


def gaussian_blur(images: Tensor, sigma_px: float = BLUR_SIGMA_PX) -> Tensor:
    """(N, C, H, W) blurred, three sigma to each side, the border repeated."""
    radius = round(3 * sigma_px)
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = functional.conv2d(padded, kernel, groups=images.shape[1])
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])
