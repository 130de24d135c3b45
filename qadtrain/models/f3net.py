"""F3-Net (Qian et al. 2020, ECCV, arXiv 2007.09355): two Xception streams over frequency, mixed by cross-attention.

From the paper: the band decomposition (FAD) and the local statistics (LFS) of ``frequency.py``, an Xception for each,
a MixBlock after blocks 7 and 12, pictures of 299 px. Inferred, because the paper gives no details: how the local
statistics, already at half the size, enter their stream (a first convolution without stride); the formulas inside
the MixBlock; that the head sees the pooled ends of both streams side by side.
"""

import torch
from torch import Tensor, nn

from qadtrain.models.base import check_size
from qadtrain.models.frequency import LOCAL_BANDS, BandDecomposition, LocalFrequencyStatistics

SIZE_PX = 299
TRUNK = "legacy_xception.tf_in1k"
MIXED_AFTER = {7: 728, 12: 1024}  # block -> its channels
BLOCKS = 12
REDUCTION = 8  # inferred: queries and keys have an eighth of the channels
STREAM_CHANNELS = 2048


class MixBlock(nn.Module):
    """Cross-attention between the two streams (section 3.3; the formulas are inferred).

    With queries Q of the first stream and keys K of the second, S = Q'K / sqrt(d) relates every place of the one to
    every place of the other. Each stream gets the other's values, weighted by the softmax of S along the other's
    places, times a factor that starts at zero: training begins with two separate streams.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // REDUCTION
        self.query = nn.Conv2d(channels, narrow, 1)
        self.key = nn.Conv2d(channels, narrow, 1)
        self.first_value = nn.Conv2d(channels, channels, 1)
        self.second_value = nn.Conv2d(channels, channels, 1)
        self.first_gain = nn.Parameter(torch.zeros(1))
        self.second_gain = nn.Parameter(torch.zeros(1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (N, C, h, w) -> the two mixed maps of the same shape."""
        query, key = self.query(first).flatten(2), self.key(second).flatten(2)  # (N, C/8, places)
        scores = (query.transpose(1, 2) @ key).float() / query.shape[1] ** 0.5
        to_first = self.second_value(second).flatten(2) @ scores.softmax(dim=2).transpose(1, 2).to(first.dtype)
        to_second = self.first_value(first).flatten(2) @ scores.softmax(dim=1).to(first.dtype)
        return (
            first + self.first_gain * to_first.view_as(first),
            second + self.second_gain * to_second.view_as(second),
        )


class F3Net(nn.Module):
    """The two streams, with timm's three methods; ``forward_features`` gives both ends side by side.

    Args:
        size_px: side of the pictures; the learnable filters of FAD have this size.
        drop_rate: dropout before the classifier.
        num_classes: outputs.
    """

    def __init__(self, size_px: int = SIZE_PX, drop_rate: float = 0.0, num_classes: int = 2) -> None:
        super().__init__()
        import timm

        self.size_px = size_px
        self.fad = BandDecomposition(size_px)
        self.lfs = LocalFrequencyStatistics()
        name = TRUNK.split(".")[0]
        self.fad_stream = timm.create_model(name, num_classes=0, in_chans=9)
        self.lfs_stream = timm.create_model(name, num_classes=0, in_chans=LOCAL_BANDS)
        # The statistics are already at half the size, so the first convolution has no stride: both streams then meet
        # at the same size. The sizes agree for odd pictures, 299 among them.
        self.lfs_stream.conv1.stride, self.lfs_stream.conv1.padding = (1, 1), (1, 1)
        self.mix = nn.ModuleDict({f"block{block}": MixBlock(channels) for block, channels in MIXED_AFTER.items()})
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(2 * STREAM_CHANNELS, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) normalised RGB -> (N, 4096, h, w). Raises UserError for another size than ``size_px``."""
        check_size(images, self.size_px, "f3net")
        first, second = _entry(self.fad_stream, self.fad(images)), _entry(self.lfs_stream, self.lfs(images))
        for block in range(1, BLOCKS + 1):
            name = f"block{block}"
            first, second = getattr(self.fad_stream, name)(first), getattr(self.lfs_stream, name)(second)
            if block in MIXED_AFTER:
                first, second = self.mix[name](first, second)
        return torch.cat([_exit(self.fad_stream, first), _exit(self.lfs_stream, second)], dim=1)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, 4096, h, w) -> (N, 4096) when ``pre_logits``, else (N, classes)."""
        pooled = self.dropout(maps.mean(dim=(2, 3)))
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def trunk_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of an ImageNet Xception -> those of both streams; what is new here is not among them.

        The first convolution of the FAD stream gets the picture's filters for each band: as the bands add up to the
        picture, the stream begins as the ImageNet network. That of the LFS stream is new.
        """
        own = {f"fad_stream.{name}": value for name, value in state.items()}
        own["fad_stream.conv1.weight"] = state["conv1.weight"].repeat(1, 3, 1, 1)
        return own | {f"lfs_stream.{name}": value for name, value in state.items() if name != "conv1.weight"}


def _entry(stream: nn.Module, maps: Tensor) -> Tensor:
    maps = stream.act1(stream.bn1(stream.conv1(maps)))
    return stream.act2(stream.bn2(stream.conv2(maps)))


def _exit(stream: nn.Module, maps: Tensor) -> Tensor:
    maps = stream.act3(stream.bn3(stream.conv3(maps)))
    return stream.act4(stream.bn4(stream.conv4(maps)))
