"""Corruptions against OpenCV and NumPy, from the formulas of DeeperForensics-1.0."""

import hashlib
import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from qadprep.errors import UserError
from qadtrain.corruption_codecs import jpeg, require_encoder, video
from qadtrain.corruption_filters import gaussian_weights, resized
from qadtrain.corruptions import (
    CORRUPTIONS,
    FIGURE_6,
    SEVERITIES,
    block_corners,
    block_rule,
    chosen_corruptions,
    corrupt,
    level,
    normals,
    picture_seed,
)

SEEDS = (7, 4_000_000_123)


def pictures(size_px: int) -> np.ndarray:
    """uint8 (2, size_px, size_px, 3) RGB: white noise over the whole range, and a smooth picture with edges."""
    rng = np.random.default_rng(size_px)
    rough = rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    smooth = cv2.resize(rng.uniform(0, 255, (5, 5, 3)), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    smooth[: size_px // 4] = 0
    smooth[-size_px // 4 :, : size_px // 2] = 255
    return np.stack([rough, np.clip(smooth, 0, 255).astype(np.uint8)])


def corrupted(images: np.ndarray, name: str, severity: int, **options) -> np.ndarray:
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return corrupt(batch, name, severity, torch.tensor(SEEDS[: len(images)]), **options).permute(0, 2, 3, 1).numpy()


def hash_numbers(values: np.ndarray, seed: int) -> np.ndarray:
    """The hash written anew in uint32: lowbias32 of (lowbias32 of the place, xor the seed)."""

    def lowbias32(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    return lowbias32(lowbias32(values.astype(np.uint32)) ^ np.uint32(seed))


def normal_numbers(seed: int, height: int, width: int) -> np.ndarray:
    """float64 (H, W, 3): Box-Muller of the hash."""
    places = np.arange(3 * height * width).reshape(3, height, width)
    first, second = (hash_numbers(2 * places + half, seed) >> np.uint32(8) for half in (0, 1))
    radius = np.sqrt(-2 * np.log((first.astype(np.float64) + 1) / 2**24))
    return (radius * np.cos(2 * np.pi * second / 2**24)).transpose(1, 2, 0)


def ycbcr(image: np.ndarray) -> np.ndarray:
    """uint8 RGB -> float32 (H, W, 3) Y, Cb, Cr with OpenCV, luma and chroma scaled to 16..235 and 16..240."""
    y, red, blue = cv2.split(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2YCrCb))
    return np.stack([(y * 219 + 16) / 255, (blue * 224 + 16) / 255, (red * 224 + 16) / 255], axis=2)


def from_ycbcr(values: np.ndarray) -> np.ndarray:
    """Back to float32 RGB with OpenCV."""
    y, blue, red = ((values[..., n] * 255 - 16) / scale for n, scale in enumerate((219, 224, 224)))
    return cv2.cvtColor(np.stack([y, red, blue], axis=2).astype(np.float32), cv2.COLOR_YCrCb2RGB)


def by_hand(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """One picture corrupted with NumPy and OpenCV."""
    value = level(name, severity)
    height, width = image.shape[:2]
    if name == "saturation":
        values = ycbcr(image)
        values[..., 1:] = 0.5 + (values[..., 1:] - 0.5) * value
        return from_ycbcr(values).clip(0, 255).astype(np.uint8)
    if name == "contrast":
        return (image.astype(np.float32) * np.float32(value)).astype(np.uint8)
    if name == "noise":
        values = ycbcr(image) / 255 + math.sqrt(value) * normal_numbers(seed, height, width)
        return from_ycbcr((values * 255).astype(np.float32)).clip(0, 255).astype(np.uint8)
    if name == "blur":
        return cv2.GaussianBlur(image, (int(value), int(value)), value / 6)
    if name == "pixelation":
        small = cv2.resize(image, (width // int(value), height // int(value)))
        return cv2.resize(small, (width, height))
    assert name == "blocks"
    image = image.copy()
    for number in range(min(height, width) // 256 * int(value)):
        row, column = (int(hash_numbers(np.array([2 * number + part]), seed)[0]) for part in (0, 1))
        row, column = row % (height - 8), column % (width - 8)
        image[row : row + 8, column : column + 8] = 128
    return image


def test_levels_are_those_of_the_original_from_weak_to_strong():
    assert {corruption.code: corruption.levels for corruption in CORRUPTIONS.values()} == {
        # perturbation/add_distortion_to_video.py of DeeperForensics-1.0; there PX is called JPEG
        "CS": (0.4, 0.3, 0.2, 0.1, 0.0),
        "CC": (0.85, 0.725, 0.6, 0.475, 0.35),
        "BW": (16, 32, 48, 64, 80),
        "GNC": (0.001, 0.002, 0.005, 0.01, 0.05),
        "GB": (7, 9, 13, 17, 21),
        "PX": (2, 3, 4, 5, 6),
        "VC": (30, 32, 35, 38, 40),
        "JPEG": (90, 70, 50, 30, 10),  # ours
    }
    assert [level("blur", severity) for severity in SEVERITIES] == [7, 9, 13, 17, 21]


@pytest.mark.parametrize("name", ["contrast", "blur", "pixelation", "blocks"])
@pytest.mark.parametrize("size_px", [45, 128, 256])
def test_whole_number_corruptions_equal_opencv_to_the_bit(name, size_px):
    images = pictures(size_px)
    for severity in SEVERITIES:
        got = corrupted(images, name, severity, blocks="original")
        assert got.dtype == np.uint8
        for picture, image, seed in zip(got, images, SEEDS, strict=True):
            np.testing.assert_array_equal(picture, by_hand(image, name, severity, seed))


@pytest.mark.parametrize("name", ["saturation", "noise"])
def test_colour_space_corruptions_differ_by_one_level_at_most_and_hardly_ever(name):
    images = pictures(160)
    for severity in SEVERITIES:
        got = corrupted(images, name, severity)
        by_opencv = np.stack([by_hand(image, name, severity, seed) for image, seed in zip(images, SEEDS, strict=True)])
        off = np.abs(got.astype(int) - by_opencv)
        # float32 sums in another order fall on the other side of a whole number, where both truncate.
        assert off.max() <= 1
        assert (off > 0).mean() < 5e-4


def test_saturation_is_luma_plus_a_part_of_the_colour_and_grey_may_lose_one_level():
    image = pictures(64)[0]
    luma = image @ np.array([0.299, 0.587, 0.114])
    for severity, factor in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.0), strict=True):
        wanted = luma[..., None] + factor * (image - luma[..., None])
        # 0.03 of the formulas, below 1 of the truncation.
        off = corrupted(image[None], "saturation", severity)[0] - wanted
        assert off.min() > -1.05 and off.max() < 0.05
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    loss = grey.astype(int) - corrupted(grey[None], "saturation", 5)[0]
    assert set(np.unique(loss)) == {0, 1}


def test_contrast_darkens_and_does_not_keep_the_mean():
    image = pictures(64)[:1]
    for severity, factor in zip(SEVERITIES, (0.85, 0.725, 0.6, 0.475, 0.35), strict=True):
        got = corrupted(image, "contrast", severity)
        assert got.mean() == pytest.approx(factor * image.mean() - 0.45, abs=0.1)  # what truncation takes


def test_noise_has_the_std_of_the_original_in_luma_and_chroma():
    grey = np.full((1, 256, 256, 3), 128, np.uint8)
    stds = {1: (18.8, 11.9, 16.0), 2: (26.6, 16.8, 22.6)}  # blue, green, red; no pixel is clipped
    for severity, expected in stds.items():
        got = corrupted(grey, "noise", severity)[0].astype(np.float64)
        assert got[..., ::-1].std(axis=(0, 1)) == pytest.approx(expected, rel=0.02)
        luma = got @ np.array([0.299, 0.587, 0.114])
        root = math.sqrt(level("noise", severity))
        assert luma.std() == pytest.approx(297 * root, rel=0.02)
        assert ((got[..., 2] - luma) * 0.564).std() == pytest.approx(290 * root, rel=0.02)
        assert ((got[..., 0] - luma) * 0.713).std() == pytest.approx(290 * root, rel=0.02)
        assert got.mean() == pytest.approx(127.5, abs=0.3)  # truncation takes half a level
    unclipped = normals(torch.tensor([1]), 256, 256).double()
    assert unclipped.mean().item() == pytest.approx(0, abs=0.01)
    assert (unclipped**2).mean().item() == pytest.approx(1, abs=0.01)
    assert (unclipped**4).mean().item() == pytest.approx(3, abs=0.06)
    correlation = np.corrcoef(unclipped[0].flatten(1).numpy())[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 0.015
    neighbours = (unclipped[..., 1:] * unclipped[..., :-1]).mean().item()
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize(("size_px", "blocks", "side"), [(128, 16, 4), (224, 16, 7), (240, 16, 8), (32, 16, 1)])
def test_small_pictures_get_no_blocks_in_the_original_and_smaller_ones_when_scaled(size_px, blocks, side):
    images = pictures(size_px)
    np.testing.assert_array_equal(corrupted(images, "blocks", 5, blocks="original"), images)
    assert block_rule(size_px, size_px, 16, "original")[0] == 0
    assert block_rule(size_px, size_px, 16, "scaled") == (blocks, side)
    got = corrupted(np.full_like(images, 255), "blocks", 1, blocks="scaled")
    for picture, seed in zip(got, SEEDS, strict=True):
        expected = np.full((size_px, size_px, 3), 255, np.uint8)
        for number in range(blocks):
            row, column = (int(hash_numbers(np.array([2 * number + part]), seed)[0]) for part in (0, 1))
            row, column = row % (size_px - side), column % (size_px - side)
            expected[row : row + side, column : column + side] = 128
        np.testing.assert_array_equal(picture, expected)


def test_from_256_px_on_both_rules_are_the_original():
    for shape, count in (((256, 256), 16), ((300, 511), 16), ((512, 600), 32), ((1080, 1920), 64)):
        for rule in ("original", "scaled"):
            assert block_rule(*shape, 16, rule) == (count, 8)
    corners = block_corners(torch.arange(2000), 16, 256, 300, 8)
    assert corners.amin((0, 1)).tolist() == [0, 0] and corners.amax((0, 1)).tolist() == [247, 291]
    covered = (corrupted(np.full((1, 256, 256, 3), 255, np.uint8), "blocks", 1)[0, ..., 0] == 128).mean()
    assert 0.012 < covered <= 16 * 64 / 256**2
    with pytest.raises(ValueError, match="got 'none', expected original or scaled"):
        block_rule(128, 128, 16, "none")


def test_every_corruption_grows_with_its_severity():
    smooth = pictures(96)[1:]
    clip = np.repeat(smooth, 4, axis=0)
    for name, corruption in CORRUPTIONS.items():
        error = []
        for severity in SEVERITIES:
            if corruption.on_device:
                got = corrupted(smooth, name, severity)[0]
            else:
                value = int(level(name, severity))
                got = jpeg(smooth[0], value) if name == "jpeg" else video(clip, value)[0]
            assert got.shape == smooth[0].shape and got.dtype == np.uint8
            error.append(np.abs(got.astype(int) - smooth[0]).mean())
        assert error == sorted(error) and len(set(error)) == 5, (name, error)


def test_a_picture_depends_on_its_seed_alone_and_not_on_its_batch():
    images = np.repeat(pictures(64)[:1], 2, axis=0)
    before = images.copy()
    for name in ("noise", "blocks"):
        both = corrupted(images, name, 3)
        np.testing.assert_array_equal(corrupted(images[:1], name, 3), both[:1])
        assert (both[0] != both[1]).any()
        np.testing.assert_array_equal(images, before)
    seeds = {picture_seed(seed, name, key) for seed in (0, 1) for name in ("noise", "blocks") for key in ("a/0", "a/1")}
    assert len(seeds) == 8


def test_the_seed_of_a_picture_is_the_head_of_a_sha256():
    digest = hashlib.sha256(b"5/blocks/ffpp/x").digest()
    assert picture_seed(5, "blocks", "ffpp/x") == sum(digest[n] << 8 * n for n in range(4))


def test_blocks_of_a_lower_severity_are_among_those_of_a_higher_one():
    white = np.full((2, 128, 128, 3), 255, np.uint8)
    masks = [corrupted(white, "blocks", severity) == 128 for severity in SEVERITIES]
    for lower, higher in pairwise(masks):
        assert (lower <= higher).all() and (lower < higher).any()


def test_gaussian_weights_are_close_to_the_gaussian_and_add_up():
    for size in (7, 9, 13, 17, 21):
        weights = np.array(gaussian_weights(size))
        exact = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 6) ** 2))
        assert weights.sum() == 256 and np.abs(weights / 256 - exact / exact.sum()).max() < 1 / 256
    # A kernel of 21 px mirrors twice over a picture of 6 px.
    tiny = pictures(64)[:, :6, :6].copy()
    np.testing.assert_array_equal(corrupted(tiny, "blur", 5)[0], cv2.GaussianBlur(tiny[0], (21, 21), 3.5))


def test_pixelation_at_level_one_of_a_known_picture():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[:, :2, :2] = 200
    got = corrupted(image, "pixelation", 1)[0, :, 0, 0]
    # Down to [200, 0], up with weights 1, 3/4, 1/4, 0.
    assert got.tolist() == [200, 150, 50, 0]


def test_jpeg_and_video_leave_traces_and_shapes():
    images = pictures(64)
    smooth = images[1]
    assert jpeg(smooth, 90).shape == smooth.shape
    assert np.abs(jpeg(smooth, 90).astype(int) - smooth).mean() < 3
    # Red and blue are not swapped on the way.
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    for picture in (jpeg(red, 90), video(red[None], 30)[0]):
        assert np.abs(picture.astype(int).mean((0, 1)) - [200, 0, 0]).max() < 6
    frames = np.stack([np.roll(smooth, n, axis=1) for n in range(5)])[:, :37, :51]  # odd sides
    got = video(frames, 30)
    assert got.shape == frames.shape
    error = [[np.abs(a.astype(int) - b).mean() for b in frames] for a in got]
    assert np.argmin(error, axis=1).tolist() == [0, 1, 2, 3, 4]  # frames come back in their order
    np.testing.assert_array_equal(got, video(frames, 30))


def test_a_missing_encoder_is_said_in_one_line(monkeypatch):
    require_encoder()
    monkeypatch.setattr("qadtrain.corruption_codecs.ENCODER", "libx999")
    with pytest.raises(UserError, match=r"got video, but PyAV \S+ has no libx999"):
        require_encoder()


def test_resizing_gives_uint8_rounded():
    batch = torch.from_numpy(pictures(64)).permute(0, 3, 1, 2)
    assert resized(batch, 64) is batch
    half = resized(batch, 32).permute(0, 2, 3, 1).numpy()
    exact = torch.nn.functional.interpolate(batch.double(), (32, 32), mode="bilinear", antialias=True)
    assert np.abs(half - exact.permute(0, 2, 3, 1).numpy()).max() <= 0.501
    assert half.dtype == np.uint8


def test_names_codes_and_sets():
    assert chosen_corruptions(["GNC", " blur ", "cs"]) == ("saturation", "noise", "blur")
    assert chosen_corruptions(["figure6"]) == FIGURE_6
    assert [CORRUPTIONS[name].code for name in FIGURE_6] == ["CS", "CC", "BW", "GNC", "GB"]
    assert chosen_corruptions(["all"]) == tuple(CORRUPTIONS)
    with pytest.raises(UserError, match=r"--corruptions: got 'fog', expected all, figure6 or some of saturation, "):
        chosen_corruptions(["blur", "fog"])
    with pytest.raises(UserError, match="--corruptions: got none"):
        chosen_corruptions([])


def test_wrong_pictures_and_levels_are_refused():
    good = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"got torch\.float32 \(1, 3, 8, 8\), expected torch\.uint8"):
        corrupt(good.float(), "contrast", 1)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        corrupt(good.permute(0, 2, 3, 1), "contrast", 1)
    for name, severity in (("contrast", 0), ("contrast", 6), ("fog", 1)):
        with pytest.raises(ValueError, match="expected a known one and 1 to 5"):
            corrupt(good, name, severity)
    with pytest.raises(ValueError, match=r"seeds: got None, expected \(1,\)"):
        corrupt(good, "noise", 1)
    with pytest.raises(ValueError, match="corruption: got 'jpeg'"):
        corrupt(good, "jpeg", 1)
