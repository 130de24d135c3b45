"""Meso-4 and MesoInception-4 (Afchar, Nozick, Yamagishi, Echizen 2018, "MesoNet", WIFS, arXiv 1809.00888).

Two networks of about 28 thousand weights for pictures of 256 px in the range 0..1. The paper ends in one sigmoid
output; here the last layer has an output for each class, which adds 16 + 1 weights: 27,994 for Meso-4 (27,977 in the
paper) and 28,632 for MesoInception-4 (28,615). The paper gives layers, dropout and counts; the order convolution, ReLU,
BatchNorm and the constants of the norm are those of the framework the authors published with.
"""

import torch
from torch import Tensor, nn

from qadtrain.models.base import check_size

SIZE_PX = 256
POOLED_PX = 8  # 256 halved three times and then quartered
HIDDEN = 16
LEAK = 0.1


class _ConvBlock(nn.Module):
    """Convolution, ReLU, BatchNorm, max pooling; the norm is after the ReLU."""

    def __init__(self, convolution: nn.Module, channels: int, pool: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
        self.pool = nn.MaxPool2d(pool)

    def forward(self, maps: Tensor) -> Tensor:
        return self.pool(self.norm(torch.relu(self.convolution(maps))))


class _Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3; the same with dilation 2; the same with dilation 3.

    Args:
        inputs: channels that come in.
        widths: channels of the four branches; their sum comes out.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, *others = widths
        self.narrow = nn.Conv2d(inputs, first, 1)
        self.wide = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, width, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            )
            for dilation, width in enumerate(others, start=1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([self.narrow(maps), *(branch(maps) for branch in self.wide)], dim=1)


class MesoNet(nn.Module):
    """Four blocks and two dense layers, with timm's three methods.

    Args:
        first, second: convolutions of the first two blocks.
        widths: channels after each of the two.
        drop_rate: dropout before both dense layers (0.5 in the paper).
        num_classes: outputs; the paper has one.
    """

    def __init__(
        self, first: nn.Module, second: nn.Module, widths: tuple[int, int], drop_rate: float, num_classes: int = 2
    ) -> None:
        super().__init__()
        self.block1 = _ConvBlock(first, widths[0], pool=2)
        self.block2 = _ConvBlock(second, widths[1], pool=2)
        self.block3 = _ConvBlock(nn.Conv2d(widths[1], 16, 5, padding=2), 16, pool=2)
        self.block4 = _ConvBlock(nn.Conv2d(16, 16, 5, padding=2), 16, pool=4)
        self.dropout = nn.Dropout(drop_rate)
        self.hidden = nn.Linear(16 * POOLED_PX**2, HIDDEN)
        self.leaky = nn.LeakyReLU(LEAK)
        self.classifier = nn.Linear(HIDDEN, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, 256, 256) RGB in 0..1 -> (N, 16, 8, 8). Raises UserError for another size."""
        check_size(images, SIZE_PX, "meso4 or mesoinception4")
        return self.block4(self.block3(self.block2(self.block1(images))))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 16, 8, 8) -> (N, 16) when ``pre_logits``, else (N, classes)."""
        pooled = self.dropout(self.leaky(self.hidden(self.dropout(maps.flatten(1)))))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def meso4(drop_rate: float = 0.5, num_classes: int = 2) -> MesoNet:
    """Meso-4: convolutions of 8 (3x3), 8, 16 and 16 (5x5) channels."""
    return MesoNet(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2), (8, 8), drop_rate, num_classes)


def mesoinception4(drop_rate: float = 0.5, num_classes: int = 2) -> MesoNet:
    """MesoInception-4: the first two convolutions are inception modules of 11 and 12 channels.

    The branches' widths (1, 4, 4, 2) and (2, 4, 4, 2) give the paper's 28,615 weights.
    """
    first, second = (1, 4, 4, 2), (2, 4, 4, 2)
    widths = (sum(first), sum(second))
    return MesoNet(_Inception(3, first), _Inception(widths[0], second), widths, drop_rate, num_classes)
