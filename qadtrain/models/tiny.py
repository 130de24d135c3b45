"""A small CNN of our own, for training on a CPU in seconds."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class TinyCnn(nn.Module):
    """Four halving stages with BatchNorm, about 50 thousand weights, for inputs of 32 px and more.

    It has timm's three methods (``forward_features``, ``forward_head``, ``get_classifier``). Beside the picture it
    sees the picture minus its 3 x 3 mean: from scratch and on a few hundred tuples the filters would not get away
    from the picture's content. The head sees the mean and the maximum of every channel: the traces of a
    manipulation may fill the crop or sit in one place.
    """

    WIDTHS = (16, 32, 48, 64)
    GAIN = 4.0  # brings the residual's spread near that of the picture

    def __init__(self, num_classes: int = 2, drop_rate: float = 0.0) -> None:
        super().__init__()
        first, *others = self.WIDTHS
        high_pass = torch.full((3, 1, 3, 3), -self.GAIN / 9)
        high_pass[:, :, 1, 1] += self.GAIN
        self.register_buffer("high_pass", high_pass, persistent=False)
        self.stem = _block(6, first)
        self.stage1 = _block(first, others[0])
        self.stage2 = _block(others[0], others[1])
        self.stage3 = _block(others[1], others[2])
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(2 * others[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised RGB -> (N, 64, H/16, W/16)."""
        residual = functional.conv2d(images, self.high_pass, groups=3)
        residual = functional.pad(residual, (1, 1, 1, 1))  # zero at the border, where a padded mean would flare up
        seen = torch.cat([images, residual], dim=1)
        return self.stage3(self.stage2(self.stage1(self.stem(seen))))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 64, h, w) -> (N, 128) when ``pre_logits``, else (N, classes)."""
        pooled = self.dropout(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
