"""Frequency parts of F3-Net: the picture split into DCT bands, and local DCT statistics.

Qian, Yin, Sheng, Chen, Shao 2020, "Thinking in Frequency", ECCV, arXiv 2007.09355, sections 3.1 and 3.2.
D is the orthonormal DCT-II; sigma(x) = (1 - exp(-x)) / (1 + exp(-x)) = tanh(x / 2) keeps a learnable filter in -1..1.
Both parts run in fp32 with autocast and TF32 off: a band of the DCT is a small difference of large numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qadtrain.hsic import full_precision

WINDOW_PX = 10
STRIDE_PX = 2
PADDING_PX = 4  # inferred: the paper's 149 x 149 positions of a 299 px picture need it
LOCAL_BANDS = 6
FLOOR = 1e-5  # ours: below any trace of one grey level of 255, above the rounding of fp32


def dct_matrix(size: int) -> np.ndarray:
    """float64 (size, size): row k is the k-th orthonormal DCT-II vector, so that its transpose is the inverse."""
    position, frequency = np.arange(size) + 0.5, np.arange(size)[:, None]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * frequency * position / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def band_masks(size: int, edges: Sequence[float]) -> np.ndarray:
    """bool (len(edges) + 1, size, size): each cell (u, v) of a spectrum is in exactly one band.

    Bands follow the diagonals u + v from low to high. ``edges`` are rising numbers; band i has those cells with
    edges[i - 1] <= u + v < edges[i].
    """
    diagonal = np.add.outer(np.arange(size), np.arange(size))
    return np.digitize(diagonal, edges)[None] == np.arange(len(edges) + 1)[:, None, None]


def decomposition_edges(size: int) -> list[float]:
    """Diagonals that enclose 1/16 and 1/8 of the spectrum's area (a triangle below diagonal k has k^2 / 2 cells)."""
    return [size * (2 / 16) ** 0.5, size * (2 / 8) ** 0.5]


def local_edges(size: int, bands: int) -> list[float]:
    """Diagonals that cut u + v = 0 .. 2 size - 2 into ``bands`` equally wide parts."""
    return [(2 * size - 1) * band / bands for band in range(1, bands)]


def squeeze(filters: Tensor) -> Tensor:
    """sigma of the paper's Eq. 1: any real number into -1..1, zero stays zero."""
    return torch.tanh(filters / 2)


class BandDecomposition(nn.Module):
    """FAD: y_i = D^-1 { D(x) * [base_i + sigma(w_i)] }, i = low, middle, high (Eq. 1).

    The base filters are binary and split the spectrum; the learnable ones start at zero, where the three parts add up
    to the picture. One filter serves the three colours (both inferred).
    """

    def __init__(self, size_px: int) -> None:
        super().__init__()
        masks = band_masks(size_px, decomposition_edges(size_px))
        self.register_buffer("dct", torch.tensor(dct_matrix(size_px), dtype=torch.float32), persistent=False)
        self.register_buffer("base", torch.tensor(masks, dtype=torch.float32), persistent=False)
        self.band_weight = nn.Parameter(torch.zeros(len(masks), size_px, size_px))

    def forward(self, images: Tensor) -> Tensor:
        """float (N, 3, S, S) -> fp32 (N, 9, S, S): low RGB, middle RGB, high RGB."""
        with full_precision(images.device):
            spectrum = self.dct @ images.float() @ self.dct.T
            filtered = spectrum[:, None] * (self.base + squeeze(self.band_weight))[:, None]  # (N, bands, 3, S, S)
            return (self.dct.T @ filtered @ self.dct).flatten(1, 2)


class LocalFrequencyStatistics(nn.Module):
    """LFS: q_i = log10 || D(p) * [base_i + sigma(w_i)] ||_1 of each window p, i = 1..6 (Eq. 2).

    The norm runs over the window's frequencies and its three colours (inferred: the paper's result has M channels for
    an RGB picture). Windows of 10 px lie 2 px apart; the picture is padded with zeros.
    """

    def __init__(self, window_px: int = WINDOW_PX, stride_px: int = STRIDE_PX, bands: int = LOCAL_BANDS) -> None:
        super().__init__()
        self.window_px, self.stride_px = window_px, stride_px
        matrix = dct_matrix(window_px)
        waves = np.einsum("ui,vj->uvij", matrix, matrix).reshape(window_px**2, window_px**2)
        masks = band_masks(window_px, local_edges(window_px, bands))
        self.register_buffer("waves", torch.tensor(waves, dtype=torch.float32), persistent=False)
        self.register_buffer("base", torch.tensor(masks, dtype=torch.float32), persistent=False)
        self.band_weight = nn.Parameter(torch.zeros(bands, window_px, window_px))

    def forward(self, images: Tensor) -> Tensor:
        """float (N, 3, H, W) -> fp32 (N, 6, h, w) with h = (H + 8 - 10) // 2 + 1: 149 for 299 px."""
        height, width = ((side + 2 * PADDING_PX - self.window_px) // self.stride_px + 1 for side in images.shape[-2:])
        with full_precision(images.device):
            magnitude = None  # colour by colour: all three at once would need three times the memory
            for colour in images.float().split(1, dim=1):
                # As a matrix product, since cuDNN would round a convolution to TF32.
                windows = functional.unfold(colour, self.window_px, padding=PADDING_PX, stride=self.stride_px)
                spectrum = (self.waves @ windows).abs()  # (N, 100, places)
                magnitude = spectrum if magnitude is None else magnitude + spectrum
            filters = (self.base + squeeze(self.band_weight)).abs().flatten(1)  # |a b| = |a| |b|
            return (filters @ magnitude).add(FLOOR).log10().unflatten(2, (height, width))
