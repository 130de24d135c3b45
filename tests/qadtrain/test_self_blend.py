"""Self-blended fakes: where they may differ from the picture, by how much, and that one draw serves all qualities."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadtrain.config_io import load_config
from qadtrain.self_blend import (
    BRIGHTNESS,
    CONTRAST,
    DOWNSCALE,
    ELASTIC_SHARE,
    HUE_DEG,
    KERNEL_SHARE,
    MODEL_POINTS,
    RATIOS,
    RGB_SHIFT,
    SATURATION,
    SCALE,
    SHARPEN,
    SHIFT_SHARE,
    VALUE,
    SelfBlend,
    blend_mask,
    change_colours,
    change_frequency,
    draw,
    face_outline,
    source_and_target,
    source_matrix,
)

SIZE = 96
EYES = 26.0  # px between the eyes
LANDMARKS = (MODEL_POINTS * EYES + (47.5, 36)).astype(np.float32)


def drawn(seed: int = 0, **fixed):
    return replace(draw(np.random.default_rng(seed)), **fixed)


STILL = {
    "rgb_shift": np.zeros(3), "hsv_shift": np.zeros(3), "brightness": 0.0, "contrast": 0.0, "scale_xy": np.ones(2),
    "shift_xy": np.zeros(2), "elastic": np.zeros((8, 8, 2), np.float32), "kernel_shares": np.zeros(2), "ratio": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tuple_images() -> np.ndarray:
    """uint8 (3, SIZE, SIZE, 3): one textured picture at three degrees of blur, as compression would leave it."""
    rng = np.random.default_rng(5)
    smooth = cv2.resize(rng.uniform(60, 190, (12, 12, 3)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    best = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255)
    views = [best, *(cv2.GaussianBlur(best, (0, 0), sigma) for sigma in (0.8, 1.6))]
    return np.rint(np.stack(views)).astype(np.uint8)


def test_one_generator_state_gives_the_same_bytes_and_another_one_others(tuple_images):
    make = SelfBlend(SIZE)
    before = tuple_images.copy()
    first, again, other = (make.fake(tuple_images, LANDMARKS, np.random.default_rng(s)) for s in (3, 3, 4))
    assert first.dtype == np.uint8 and first.shape == tuple_images.shape
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(tuple_images, before)


def test_the_fake_of_a_quality_does_not_depend_on_the_other_qualities(tuple_images):
    make = SelfBlend(SIZE)
    together = make.fake(tuple_images, LANDMARKS, np.random.default_rng(8))
    for number in range(3):
        alone = make.fake(tuple_images[number : number + 1], LANDMARKS, np.random.default_rng(8))
        assert np.array_equal(alone[0], together[number])


@pytest.mark.parametrize("seed", range(8))
def test_outside_the_mask_every_quality_is_the_target_and_inside_it_is_not(tuple_images, seed):
    draws = drawn(seed)
    inside = blend_mask(face_outline(LANDMARKS, SIZE), draws, SIZE) > 0
    assert 0.02 < inside.mean() < 0.6
    fake = SelfBlend(SIZE).fake(tuple_images, LANDMARKS, np.random.default_rng(seed))
    for before, after in zip(tuple_images, fake, strict=True):
        _, target = source_and_target(before, draws)
        assert np.array_equal(after[~inside], target[~inside].astype(np.uint8))
        assert np.array_equal(target, before) == draws.change_source
        assert (after != target).any(axis=2)[inside].mean() > 0.5


def test_the_blend_is_linear_in_the_ratio(tuple_images, monkeypatch):
    """At ratio r the fake is r of the way from the target to the fake of ratio 1, but for its rounding."""
    make, fakes = SelfBlend(SIZE), {}
    fixed = drawn(11, kernel_shares=np.array([0.1, 0.1]))
    for ratio in (0.0, 0.25, 0.5, 1.0):
        monkeypatch.setattr("qadtrain.self_blend.draw", lambda rng, ratio=ratio: replace(fixed, ratio=ratio))
        fakes[ratio] = make.fake(tuple_images, LANDMARKS, np.random.default_rng(0)).astype(np.float64)
    assert np.abs(fakes[1.0] - fakes[0.0]).max() > 10
    for ratio in (0.25, 0.5):
        expected = (1 - ratio) * fakes[0.0] + ratio * fakes[1.0]
        assert np.abs(fakes[ratio] - expected).max() <= 1


def test_a_fake_is_the_mask_weighted_mean_of_source_and_target(tuple_images):
    draws = drawn(2)
    weight = (draws.ratio * blend_mask(face_outline(LANDMARKS, SIZE), draws, SIZE).astype(np.float64))[:, :, None]
    fake = SelfBlend(SIZE).fake(tuple_images, LANDMARKS, np.random.default_rng(2))
    for before, after in zip(tuple_images, fake, strict=True):
        source, target = source_and_target(before, draws)
        assert np.abs(after - (source * weight + target * (1 - weight))).max() <= 0.5 + 1e-3


def test_the_paper_s_ratios_come_as_often_as_it_says():
    rng = np.random.default_rng(0)
    ratios = np.array([draw(rng).ratio for _ in range(3000)])
    for ratio in (0.25, 0.5, 0.75, 1.0):
        assert (ratios == ratio).mean() == pytest.approx(RATIOS.count(ratio) / 6, abs=0.03)


def test_every_draw_lies_in_its_range_and_reaches_near_both_ends():
    rng = np.random.default_rng(1)
    many = [draw(rng) for _ in range(800)]
    hsv = np.array([d.hsv_shift for d in many])
    shift = np.array([d.shift_xy for d in many])
    ranges = [
        (np.array([d.rgb_shift for d in many]), -RGB_SHIFT, RGB_SHIFT),
        (hsv[:, 0], -HUE_DEG, HUE_DEG),
        (hsv[:, 1], -SATURATION, SATURATION),
        (hsv[:, 2], -VALUE, VALUE),
        (np.array([d.brightness for d in many]), -BRIGHTNESS, BRIGHTNESS),
        (np.array([d.contrast for d in many]), -CONTRAST, CONTRAST),
        (np.array([d.scale_xy for d in many]), *SCALE),
        (shift[:, 0], -SHIFT_SHARE[0], SHIFT_SHARE[0]),
        (shift[:, 1], -SHIFT_SHARE[1], SHIFT_SHARE[1]),
        (np.array([d.sharpen_weight for d in many]), *SHARPEN),
        (np.array([d.downscale for d in many]), *DOWNSCALE),
        (np.array([d.kernel_shares for d in many]), *KERNEL_SHARE),
        (np.array([d.elastic for d in many]), -1, 1),
    ]
    for values, low, high in ranges:
        assert low <= values.min() < low + 0.03 * (high - low)
        assert high >= values.max() > high - 0.03 * (high - low)
    for name in ("change_source", "sharpen"):
        assert np.mean([getattr(d, name) for d in many]) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("sharpen", [True, False])
@pytest.mark.parametrize("grey", [0.0, 77.0, 255.0])
def test_a_picture_of_one_colour_keeps_its_sharpness(sharpen, grey):
    image = np.full((SIZE, SIZE, 3), grey, np.float32)
    assert np.abs(change_frequency(image, drawn(sharpen=sharpen)) - grey).max() < 1e-3


def test_sharpening_raises_the_detail_and_downscaling_lowers_it(tuple_images):
    image = tuple_images[0].astype(np.float32)

    def detail(picture):
        return float(np.abs(cv2.Laplacian(picture, cv2.CV_32F)).mean())

    assert detail(change_frequency(image, drawn(sharpen=True))) > 1.1 * detail(image)
    assert detail(change_frequency(image, drawn(sharpen=False))) < 0.7 * detail(image)


def test_colour_changes_have_the_drawn_size():
    grey = np.full((4, 4, 3), 100, np.float32)
    shifted = change_colours(grey, drawn(**STILL | {"rgb_shift": np.array([8.0, -5.0, 2.0])}))
    assert shifted[0, 0] == pytest.approx([108, 95, 102], abs=1e-3)
    toned = change_colours(grey, drawn(**STILL | {"brightness": 0.1, "contrast": -0.1}))
    assert toned == pytest.approx(np.full((4, 4, 3), 0.9 * (100 - 127.5) + 127.5 + 25.5), abs=1e-3)
    red = np.zeros((4, 4, 3), np.float32) + np.array([200, 100, 100], np.float32)  # hue 0, saturation 0.5
    turned = change_colours(red, drawn(**STILL | {"hsv_shift": np.array([-6.0, 0.0, 0.0])}))
    assert turned[0, 0] == pytest.approx([200, 100, 110], abs=1e-3)  # a tenth of the way from red to magenta
    fuller = change_colours(red, drawn(**STILL | {"hsv_shift": np.array([0.0, 0.2, -0.1])}))
    assert fuller[0, 0] == pytest.approx([180, 72, 72], abs=1e-3)  # value 0.9 of it, saturation 0.6


def test_colours_stay_in_0_to_255(tuple_images):
    for grey in (0, 255):
        image = np.full((4, 4, 3), grey, np.float32)
        for seed in range(30):
            result = change_colours(image, drawn(seed))
            assert result.min() >= 0 and result.max() <= 255


def test_the_source_is_moved_by_the_drawn_shift_and_size(tuple_images):
    draws = drawn(**STILL | {"change_source": False, "shift_xy": np.array([3 / SIZE, -1 / SIZE])})
    source, _ = source_and_target(tuple_images[0], draws)
    assert np.array_equal(source[:-1, 3:], tuple_images[0][1:, :-3])
    matrix = source_matrix(drawn(**STILL | {"scale_xy": np.array([0.95, 1.05])}), SIZE)
    middle = np.array([(SIZE - 1) / 2] * 2)
    assert matrix[:, :2] @ middle + matrix[:, 2] == pytest.approx(middle)
    assert matrix[:, :2].diagonal() == pytest.approx([0.95, 1.05])


def test_the_outline_surrounds_the_points_and_has_a_face_s_size():
    outline = face_outline(LANDMARKS, SIZE).astype(np.float32)
    assert cv2.isContourConvex(outline)
    for point in LANDMARKS:
        assert cv2.pointPolygonTest(outline, tuple(map(float, point)), True) > 0.3 * EYES
    left, right = outline[:, 0].min(), outline[:, 0].max()
    assert right - left == pytest.approx(2.1 * EYES, rel=0.01) and left + right == pytest.approx(95, abs=0.1)
    assert outline[:, 1].min() == pytest.approx(36 - 0.9 * EYES, rel=0.01)
    assert outline[:, 1].max() == pytest.approx(36 + 1.9 * EYES, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(st.floats(-60, 60), st.floats(0.6, 1.2), st.floats(-8, 8))
def test_the_outline_turns_grows_and_moves_with_the_points(degrees, scale, move):
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    there = (LANDMARKS - 47.5) @ turn.T + 47.5 + move
    expected = (face_outline(LANDMARKS, SIZE) - 47.5) @ turn.T + 47.5 + move
    assert face_outline(there, SIZE) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("first", "second", "wider"), [(1, 1, 0), (9, 3, -3), (3, 9, 3), (5, 5, 0)])
def test_the_larger_kernel_decides_whether_the_mask_is_eroded_or_dilated(first, second, wider):
    """The first kernel takes half of itself off each edge of a square, the second puts half of itself on."""
    square = np.array([(20, 20), (70, 20), (70, 70), (20, 70)], float)
    kernels = (np.array([first, second]) + 0.5) / 50
    mask = blend_mask(square, drawn(**STILL | {"kernel_shares": kernels}), SIZE)
    assert mask.dtype == np.float32 and mask.min() == 0 and mask.max() == pytest.approx(1)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[20 - wider : 71 + wider, 20 - wider : 71 + wider] = True
    assert np.array_equal(mask > 0, expected)


def test_the_mask_follows_the_source_and_its_deformation_is_bounded():
    outline = face_outline(LANDMARKS, SIZE)
    plain = blend_mask(outline, drawn(**STILL), SIZE)
    moved = blend_mask(outline, drawn(**STILL | {"shift_xy": np.array([2 / SIZE, 1 / SIZE])}), SIZE)
    assert np.array_equal(moved[1:, 2:], plain[:-1, :-2])
    bent = blend_mask(outline, drawn(3, **{k: v for k, v in STILL.items() if k != "elastic"}), SIZE)
    most = ELASTIC_SHARE * np.sqrt(plain.sum())
    reach = int(np.ceil(np.sqrt(2) * most)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    grown, shrunk = cv2.dilate(plain, kernel), cv2.erode(plain, kernel)
    assert (bent <= grown).all() and (bent >= shrunk).all() and (bent != plain).mean() > 0.01


def test_a_mask_that_reaches_the_picture_s_edge_is_not_eroded_there():
    low = LANDMARKS + np.array([0, 40], np.float32)  # the chin lies below the picture
    mask = blend_mask(face_outline(low, SIZE), drawn(**STILL | {"kernel_shares": np.array([0.1, 0.1])}), SIZE)
    assert mask[-1, 47] == pytest.approx(1)


BAD = {
    "nan": (np.full((5, 2), np.nan), "five finite points"),
    "four": (LANDMARKS[:4], "five finite points"),
    "line": (np.column_stack([np.linspace(20, 70, 5)] * 2), "not on a line"),
    "point": (np.full((5, 2), 40.0), "not on a line"),
    "mirrored": (LANDMARKS * (-1, 1) + (95, 0), "not mirrored"),
    "outside": (LANDMARKS + 200, "expected 0 to 95"),
}


@pytest.mark.parametrize("name", BAD)
def test_landmarks_that_span_no_face_are_refused(tuple_images, name):
    points, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SelfBlend(SIZE).fake(tuple_images, points, np.random.default_rng(0))


def test_pictures_of_another_size_or_type_are_refused(tuple_images):
    for images in (tuple_images[:, :64, :64], tuple_images.astype(np.float32), tuple_images[0]):
        with pytest.raises(ValueError, match=r"images: got .*, expected uint8 \(M, 96, 96, 3\)"):
            SelfBlend(SIZE).fake(images, LANDMARKS, np.random.default_rng(0))
    with pytest.raises(ValueError, match="size_px: got 8"):
        SelfBlend(8)


def test_the_preset_is_plain_cross_entropy_with_sharpness_aware_steps():
    config = load_config(preset="sbi")
    assert config.data.self_blended and config.data.image_size_px == 380 and config.data.normalization == "unit"
    assert config.data.batch_tuples * len(config.data.qualities) == 32  # pictures of a step, half of them fakes
    assert (config.awp.norm, config.awp.gamma, config.awp.batchnorm, config.awp.start_epoch) == (
        "global",
        0.05,
        "clean",
        0,
    )
    assert config.hsic.alpha == 0 and config.optim.optimizer == "sgd" and config.optim.learning_rate == 1e-3
    assert config.optim.head_only_epochs == 0 and config.optim.epochs == 100
