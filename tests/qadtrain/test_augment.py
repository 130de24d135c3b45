"""Each augmentation against an independent reference in NumPy and OpenCV, and what the draws depend on."""

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from qadtrain import augment as augment_module
from qadtrain.augment import ERASE_AREA, ERASE_ASPECT, FIELD, augment, draw, is_on, jpeg_round_trip, to_network_input
from qadtrain.config import AugmentConfig

ALL_ON = AugmentConfig(erase_probability=1, blur_probability=1, colour_probability=1, jpeg_probability=1)


def pictures(count: int, height: int = 24, width: int = 24) -> torch.Tensor:
    """float32 (count, 3, height, width) in 0..255."""
    return torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (count, 3, height, width))).float()


def draws(tuples: int, views: int = 1, **fixed: float) -> torch.Tensor:
    """float64 (tuples, views, 14) uniform, with some fields set."""
    values = torch.from_numpy(np.random.default_rng(1).random((tuples, views, len(FIELD))))
    for name, value in fixed.items():
        values[..., FIELD[name]] = value
    return values


def test_nothing_is_drawn_or_changed_by_default():
    assert not is_on(AugmentConfig()) and draw(AugmentConfig(), 0, (0, 0), 3) is None
    images = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    options = {"size_px": 8, "normalization": "imagenet", "device": torch.device("cpu")}
    plain = to_network_input(images, torch.tensor([True, False]), **options)
    config = AugmentConfig()
    assert torch.equal(
        plain, to_network_input(images, torch.tensor([True, False]), **options, draws=None, augment_config=config)
    )
    assert torch.equal(
        plain,
        to_network_input(images, torch.tensor([True, False]), **options, draws=draws(2), augment_config=config),
    )


def test_unit_normalisation_is_the_picture_between_0_and_1():
    images = torch.randint(0, 256, (1, 2, 4, 4, 3), dtype=torch.uint8)
    result = to_network_input(images, None, size_px=4, normalization="unit", device=torch.device("cpu"))
    assert torch.equal(result, images[0].permute(0, 3, 1, 2).float() / 255)


def test_draws_depend_on_seed_epoch_index_and_repeat_alone():
    config = AugmentConfig(blur_probability=0.1)
    one = draw(config, 3, (1, 7), 3)
    assert one.shape == (1, 14) and np.array_equal(one, draw(ALL_ON, 3, (1, 7), 3))  # not on what is on
    for other in ((4, (1, 7)), (3, (2, 7)), (3, (1, 8)), (3, (1, 7, 1))):
        assert not np.array_equal(one, draw(config, *other, 3))
    each = draw(AugmentConfig(blur_probability=0.1, per_quality=True), 3, (1, 7), 3)
    assert each.shape == (3, 14) and len(np.unique(each)) == 42


@pytest.mark.parametrize("sigma_range", [(0.3, 2.0), (1.5, 1.5), (0.5, 20.0)])
def test_blur_is_opencvs(sigma_range):
    config = AugmentConfig(blur_probability=1, blur_sigma_px=sigma_range)
    before, values = pictures(4), draws(4)
    after = augment(before.clone(), values, config)
    side = 2 * min(int(np.ceil(3 * sigma_range[1])), 23) + 1
    for number in range(4):
        sigma = sigma_range[0] + values[number, 0, FIELD["sigma"]].item() * (sigma_range[1] - sigma_range[0])
        picture = before[number].permute(1, 2, 0).numpy().astype(np.float64)
        expected = cv2.GaussianBlur(picture, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(after[number].permute(1, 2, 0).numpy() - expected).max() < 1e-3
        assert expected.std() < 0.99 * picture.std()


def test_blur_of_a_picture_does_not_depend_on_its_neighbours():
    config = AugmentConfig(blur_probability=0.5)
    before, values = pictures(6), draws(6)
    together = augment(before.clone(), values, config)
    alone = torch.cat([augment(before[i : i + 1].clone(), values[i : i + 1], config) for i in range(6)])
    assert torch.equal(together, alone)
    touched = values[:, 0, FIELD["blur"]] < 0.5
    assert 0 < touched.sum() < 6
    assert torch.equal((together != before).flatten(1).any(1), touched)


def test_colour_is_brightness_then_contrast_then_saturation():
    config = AugmentConfig(colour_probability=1, colour_strength=0.6)
    before, values = pictures(5), draws(5)
    after = augment(before.clone(), values, config)
    for number in range(5):
        factors = [0.4 + 1.2 * values[number, 0, FIELD[n]].item() for n in ("brightness", "contrast", "saturation")]
        x = np.clip(before[number].numpy().astype(np.float64) * factors[0], 0, 255)
        grey = np.tensordot([0.299, 0.587, 0.114], x, 1)
        x = np.clip(factors[1] * x + (1 - factors[1]) * grey.mean(), 0, 255)
        grey = np.tensordot([0.299, 0.587, 0.114], x, 1)
        x = np.clip(factors[2] * x + (1 - factors[2]) * grey, 0, 255)
        assert np.abs(after[number].numpy() - x).max() < 1e-3
    assert torch.allclose(
        augment(before.clone(), draws(5, brightness=0.5, contrast=0.5, saturation=0.5), config), before, atol=1e-3
    )


def test_erased_is_one_rectangle_of_uniform_noise():
    config = AugmentConfig(erase_probability=1)
    count, height, width = 200, 40, 60
    before = torch.full((count, 3, height, width), 300.0)  # outside of what noise can be
    after = augment(before, draws(count), config)
    shares, noise = [], []
    for number in range(count):
        inside = (after[number] != 300).numpy()
        assert (inside == inside[0]).all()
        ys, xs = np.nonzero(inside[0])
        h, w = np.ptp(ys) + 1, np.ptp(xs) + 1
        assert h * w == inside[0].sum()  # a full rectangle
        assert ERASE_ASPECT[0] * 0.8 < h / w < ERASE_ASPECT[1] * 1.25
        shares.append(h * w / (height * width))
        noise.append(after[number][:, ys, xs].numpy().ravel())
    assert ERASE_AREA[0] * 0.8 < min(shares) < 0.05 and 0.17 < max(shares) < ERASE_AREA[1] * 1.1
    values = np.concatenate(noise)
    assert values.min() == 0 and values.max() == 255 and np.array_equal(values, np.rint(values))
    assert abs(values.mean() - 127.5) < 1 and abs(values.std() - 73.9) < 1
    histogram = np.bincount(values.astype(int), minlength=256) / len(values) * 256
    assert histogram.min() > 0.85 and histogram.max() < 1.15
    tops = [np.nonzero((after[i, 0] != 300).any(1).numpy())[0][0] for i in range(count)]
    assert min(tops) == 0 and max(tops) > height / 2


def test_erase_noise_has_no_structure():
    """Channels, neighbours and pictures are uncorrelated: 0.5 / sqrt(n) is far below the bound."""
    after = augment(torch.zeros(2, 3, 128, 128), draws(2, area=1.0, aspect=0.5, top=0.5, left=0.5), ALL_ON.model_copy(
        update={"blur_probability": 0, "colour_probability": 0}))  # fmt: skip
    rows = torch.nonzero(after[0, 0].any(1)).flatten()
    columns = torch.nonzero(after[0, 0].any(0)).flatten()
    block = after[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].double().numpy() - 127.5
    assert block[0, 0].size > 2500
    pairs = [
        (block[0, 0], block[0, 1]),
        (block[0, 1], block[0, 2]),
        (block[0, 0][:, 1:], block[0, 0][:, :-1]),
        (block[0, 0][1:], block[0, 0][:-1]),
    ]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.08


def test_one_draw_holds_for_all_qualities_unless_per_quality():
    before = pictures(1).expand(6, -1, -1, -1)
    shared = augment(before.clone(), draws(2), ALL_ON).view(2, 3, -1)
    assert torch.equal(shared[:, 0], shared[:, 1]) and torch.equal(shared[:, 0], shared[:, 2])
    assert not torch.equal(shared[0], shared[1])
    each = augment(before.clone(), draws(2, views=3), ALL_ON).view(6, -1)
    assert len({tuple(row.tolist()) for row in each}) == 6


def test_colour_comes_before_blur_and_blur_before_erase():
    before, values = pictures(3), draws(3)
    together = augment(before.clone(), values, ALL_ON)
    steps = before.clone()
    for name in ("colour_probability", "blur_probability", "erase_probability"):
        steps = augment(steps, values, AugmentConfig(**{name: 1}))
    assert torch.equal(together, steps)


def test_jpeg_is_a_file_of_the_drawn_quality():
    config = AugmentConfig(jpeg_probability=0.5, jpeg_quality=(30, 33))
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)[0], (32, 32))
    images = np.stack([smooth, smooth[::-1], smooth[:, ::-1]])
    kept = images.copy()
    assert jpeg_round_trip(images, draws(1, jpeg=0.6)[0].numpy(), config) is images
    seen = set()
    for fraction, quality in ((0.0, 30), (0.3, 31), (0.99, 33)):
        result = jpeg_round_trip(images, draws(1, jpeg=0.4, jpeg_quality=fraction)[0].numpy(), config)
        assert np.array_equal(images, kept) and result.dtype == np.uint8
        for number in range(3):
            difference = result[number].astype(int) - by_pillow(images[number], quality)
            assert np.abs(difference).max() <= 4 and np.abs(difference).mean() < 0.5
        seen.add(result.tobytes())
    assert len(seen) == 3
    each = draws(1, views=3, jpeg=0.6)[0].numpy()
    each[1, FIELD["jpeg"]] = 0.0
    result = jpeg_round_trip(images, each, config)
    assert [np.array_equal(a, b) for a, b in zip(result, images, strict=True)] == [True, False, True]


def by_pillow(rgb: np.ndarray, quality: int) -> np.ndarray:
    """One picture through a JPEG file of another writer and reader, 4:2:0."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))


def test_blur_and_erase_are_of_the_resized_picture_and_the_flip_comes_first():
    images = torch.randint(0, 256, (1, 1, 16, 16, 3), dtype=torch.uint8)
    config = AugmentConfig(erase_probability=1, blur_probability=1)
    options = {"size_px": 32, "normalization": "unit", "device": torch.device("cpu")}
    whole = to_network_input(images, torch.tensor([True]), **options, draws=draws(1), augment_config=config)
    plain = to_network_input(images, torch.tensor([True]), **options)
    expected = augment(plain * 255, draws(1), config) / 255
    assert torch.allclose(whole, expected, atol=1e-6)


def test_everything_goes_to_a_gpu_from_pinned_memory(monkeypatch):
    """A copy from pageable memory would hold the host up until the stream is idle."""
    pinned, sent, real = [], [], torch.Tensor.to
    gpu = SimpleNamespace(type="cuda")

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def to(tensor, *where, **how):
        if where != (gpu,):
            return real(tensor, *where, **how)
        sent.append((tensor is pinned[-1], how))
        return tensor

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", pin)
        patch.setattr(torch.Tensor, "to", to)
        assert torch.equal(augment_module._sent(torch.arange(3), gpu), torch.arange(3))
    assert sent == [(True, {"non_blocking": True})]

    monkeypatch.setattr(augment_module, "_sent", lambda values, device: sent.append(device) or values)
    augment(pictures(4), draws(2), ALL_ON)
    # Rows of three augmentations, three factors of colour, the blur's weights, four edges and the noise's seed.
    assert sent[1:] == [torch.device("cpu")] * (3 + 3 + 1 + 4 + 1)
