"""Multi-attentional deepfake detection (Zhao et al. 2021, CVPR, arXiv 2103.02406), "MAT".

From the paper: EfficientNet-B4 at 380 px; M = 4 attention maps from its fifth stage; textural features of its second
stage, enhanced; normalised bilinear attention pooling; the region independence loss; attention-guided augmentation
(AGDA). Inferred, because the paper is silent: the widths of the dense block, the size of a patch of the local average,
the layers of the classifier, and how the degraded pictures of AGDA enter the loss. docs/models.md lists them.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qadtrain.models.mat_regions import RegionCentres, attention_pool, degrade

TRUNK = "tf_efficientnet_b4.aa_in1k"
TEXTURE_STAGE, ATTENTION_STAGE = 1, 4  # SL_t = L2, SL_a = L5 of the paper, counted from 0
REGIONS = 4
GROWTH = 32  # inferred
TEXTURE_CHANNELS = 64  # inferred
HIDDEN = 256  # the authors' later configuration


class MatMaps(NamedTuple):
    """What ``forward_features`` gives, for 380 px."""

    texture: Tensor  # (N, 64, 95, 95) enhanced textural features F
    pooled: Tensor  # (N, 32, 24, 24) local averages D of the shallow features
    deep: Tensor  # (N, 1792, 12, 12) end of the trunk
    attention: Tensor  # (N, 4, 24, 24) attention maps A, >= 0


class TextureEnhancement(nn.Module):
    """T = f - D, where D is the average of each patch of f; then a dense block of three convolutions on T (Eq. 2).

    A patch is 4 x 4 places (inferred: D then has the attention maps' size, which Eq. 4 needs).
    """

    PATCH = 4

    def __init__(self, channels: int, outputs: int = TEXTURE_CHANNELS) -> None:
        super().__init__()
        # Patches cut by the border are averaged over the places they have.
        self.average = nn.AvgPool2d(self.PATCH, ceil_mode=True, count_include_pad=False)
        self.layers = nn.ModuleList(_conv(channels + layer * GROWTH, GROWTH, 3) for layer in range(3))
        self.fuse = _conv(channels + 3 * GROWTH, outputs, 1)

    def residual(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> T of the same shape, whose mean over each patch is zero, and D (N, C, h/4, w/4)."""
        pooled = self.average(maps)
        spread = pooled.repeat_interleave(self.PATCH, dim=2).repeat_interleave(self.PATCH, dim=3)
        return maps - spread[:, :, : maps.shape[2], : maps.shape[3]], pooled

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> textural features (N, outputs, h, w) and the local averages (N, C, h/4, w/4)."""
        residual, pooled = self.residual(maps)
        grown = [residual]
        for layer in self.layers:
            grown.append(layer(torch.cat(grown, dim=1)))
        return self.fuse(torch.cat(grown, dim=1)), pooled


class Mat(nn.Module):
    """The network, with timm's three methods, and its part of the training loss.

    Args:
        drop_rate: dropout before the last layer.
        drop_path_rate: stochastic depth of the trunk.
        augment: AGDA: in training, each picture is seen again with one attended region blurred.
        num_classes: outputs.
    """

    def __init__(
        self, drop_rate: float = 0.0, drop_path_rate: float = 0.0, augment: bool = True, num_classes: int = 2
    ) -> None:
        super().__init__()
        import timm

        self.augment = augment
        self.trunk = timm.create_model(TRUNK.split(".")[0], num_classes=0, drop_path_rate=drop_path_rate)
        channels = {info["module"]: info["num_chs"] for info in self.trunk.feature_info}
        shallow = channels[f"blocks.{TEXTURE_STAGE}"]
        self.texture = TextureEnhancement(shallow)
        self.attention = _conv(channels[f"blocks.{ATTENTION_STAGE}"], REGIONS, 1)
        self.centres = RegionCentres(REGIONS, shallow)
        self.texture_hidden = nn.Linear(REGIONS * TEXTURE_CHANNELS, HIDDEN)
        self.deep_hidden = nn.Linear(self.trunk.num_features, HIDDEN)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(2 * HIDDEN, num_classes)

    def forward_features(self, images: Tensor) -> MatMaps:
        """(N, 3, H, W) normalised RGB -> the maps that the head pools; 380 px in the paper, 64 px and more here."""
        maps = self.trunk.bn1(self.trunk.conv_stem(images))
        texture = pooled = attention = None
        for number, stage in enumerate(self.trunk.blocks):
            maps = stage(maps)
            if number == TEXTURE_STAGE:
                texture, pooled = self.texture(maps)
            elif number == ATTENTION_STAGE:
                attention = self.attention(maps)
        return MatMaps(texture, pooled, self.trunk.bn2(self.trunk.conv_head(maps)), attention)

    def forward_head(self, maps: MatMaps, pre_logits: bool = False) -> Tensor:
        """The maps -> (N, 512) when ``pre_logits``, else (N, classes).

        The textural matrix P has a pooled vector for each region, the deep vector G is pooled by the sum of the maps.
        """
        matrix = attention_pool(maps.texture, maps.attention).flatten(1)
        vector = attention_pool(maps.deep, maps.attention.sum(dim=1, keepdim=True)).flatten(1)
        hidden = torch.cat([self.texture_hidden(matrix), self.deep_hidden(vector)], dim=1)
        pooled = self.dropout(torch.relu(hidden))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def extra_loss(self, maps: MatMaps, images: Tensor, labels: Tensor) -> Tensor:
        """Region independence loss, and with AGDA the cross-entropy of the degraded pictures; each has weight 1.

        Args:
            maps: what ``forward_features`` gave for the images.
            images: float (N, 3, H, W), normalised RGB.
            labels: int64 (N,), 1 = fake.
        """
        vectors = attention_pool(maps.pooled, maps.attention)
        loss = self.centres(vectors, labels, update=self._statistics_move())
        if self.augment:
            region = torch.randint(REGIONS, (len(images),), device=images.device)
            chosen = maps.attention.detach()[torch.arange(len(images), device=images.device), region]
            loss = loss + functional.cross_entropy(self(degrade(images, chosen)).float(), labels)
        return loss

    def observe(self, maps: MatMaps) -> None:
        """Move the centres in a training pass whose extra loss nobody asks for.

        With ``awp.batchnorm`` = clean that is the pass in which the statistics move; in the other one they rest.
        """
        if self._statistics_move():
            self.centres.update(attention_pool(maps.pooled.detach(), maps.attention.detach()))

    def _statistics_move(self) -> bool:
        """The centres are statistics of the batch like those of the norms, so they rest when those rest."""
        return self.attention[1].track_running_stats

    def set_epoch(self, epoch: int) -> None:
        """Slow the centres down, epoch by epoch (from 0)."""
        self.centres.set_epoch(epoch)

    def trunk_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of an ImageNet EfficientNet-B4 -> those of the trunk; all others are new."""
        return {f"trunk.{name}": value for name, value in state.items()}


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
