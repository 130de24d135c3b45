"""Whether an exported file gives the scores of the evaluation: on made pictures, at several batch sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from qadprep.errors import UserError
from qadtrain.config import Config
from qadtrain.forward import plain_input
from qadtrain.score_files import fake_probability

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)
# uint8 (N, S, S, 3) RGB -> logits float (N, 2) and fake probability float (N,)
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Sample = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Check:
    """How far an exported file is from the network.

    Attributes:
        logits: greatest difference of a logit; absolute where the logit is below 1 in size, else relative to it.
        probability: greatest absolute difference of the fake probability.
        pictures: compared, over all batches.
        batches: sizes that were run.
        tolerance: what both differences must not exceed.
    """

    logits: float
    probability: float
    pictures: int
    batches: tuple[int, ...] = BATCHES
    tolerance: float = TOLERANCE

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"batches": list(self.batches)}


def reference_samples(model: nn.Module, config: Config) -> list[Sample]:
    """Made pictures and what the network says to them behind the evaluation's own preprocessing, in fp32 on the CPU.

    Args:
        model: the network, in evaluation mode on the CPU.

    Returns:
        A pair for each batch: uint8 (N, S, S, 3) RGB and logits, float64 (N, 2).

    Raises:
        UserError: a network that gives inf or NaN.
    """
    samples = [(images, reference_logits(model, config, images)) for images in made_batches(config.data.image_size_px)]
    if not all(np.isfinite(logits).all() for _, logits in samples):
        raise UserError("the network itself gives inf or NaN on made pictures, expected numbers")
    return samples


def check_runner(run: Runner, samples: Sequence[Sample]) -> Check:
    """Compare an exported file with the network.

    Args:
        run: runs the file.
        samples: of :func:`reference_samples`.

    Raises:
        UserError: other shapes, or a difference above :data:`TOLERANCE`.
    """
    logits = probability = 0.0
    for images, expected in samples:
        got, fake = run(images)
        if got.shape != expected.shape or fake.shape != expected.shape[:1]:
            raise UserError(
                f"a batch of {len(images)} gives logits {got.shape} and probabilities {fake.shape}, expected "
                f"{expected.shape} and {expected.shape[:1]}"
            )
        logits = _worst(logits, np.abs(got - expected) / np.maximum(1.0, np.abs(expected)))
        probability = _worst(probability, np.abs(fake - fake_probability(expected)))
    if not (logits <= TOLERANCE and probability <= TOLERANCE):  # NaN is no better
        raise UserError(
            f"its scores differ from the network's: logits by {logits:.1e}, probabilities by {probability:.1e}, "
            f"expected at most {TOLERANCE:.0e}"
        )
    return Check(logits, probability, sum(len(images) for images, _ in samples))


@torch.inference_mode()
def reference_logits(model: nn.Module, config: Config, images: np.ndarray) -> np.ndarray:
    """float64 (N, 2) of uint8 (N, S, S, 3) RGB, as the evaluation computes them in fp32."""
    pixels = plain_input(torch.from_numpy(images)[:, None], config, images.shape[1], torch.device("cpu"))
    return model(pixels).logits.double().numpy()


def made_batches(size_px: int) -> Iterator[np.ndarray]:
    """uint8 (N, S, S, 3) RGB for each size of :data:`BATCHES`: noise, and smooth pictures with an oval like a face."""
    rng = np.random.default_rng(0)
    for count in BATCHES:
        yield rng.integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
        yield np.stack([_picture(rng, size_px, number) for number in range(count)])


def _picture(rng: np.random.Generator, size_px: int, number: int) -> np.ndarray:
    image = cv2.resize(rng.uniform(40, 200, (4, 4, 3)), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    centre, axes = (size_px // 2, size_px // 2), (int(0.32 * size_px), int(0.42 * size_px))
    cv2.ellipse(image, centre, axes, 0, 0, 360, rng.uniform(60, 220, 3).tolist(), -1, cv2.LINE_AA)
    light = (1.0, 0.15, 2.0)[number % 3]  # as it is, dark, blown out
    noise = rng.normal(0, 3, image.shape)
    return np.clip(np.rint((cv2.GaussianBlur(image, (0, 0), size_px / 64) + noise) * light), 0, 255).astype(np.uint8)


def _worst(before: float, differences: np.ndarray) -> float:
    return float(np.max([before, differences.max()]))  # np.max keeps NaN, max() may lose it
