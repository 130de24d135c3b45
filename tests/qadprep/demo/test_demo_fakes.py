"""The recipes' rules and image operations, against the published rules and independent arithmetic."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from qadprep.demo import METHODS
from qadprep.demo.blending import (
    Region,
    blend,
    bottleneck,
    carry_over,
    face_region,
    match_colours,
    mouth_region,
)
from qadprep.demo.fakes import Clip, fake_length, make_fake, source_index, target_index
from qadprep.demo.identities import make_identity
from qadprep.demo.portrait import Portrait

POINTS = np.float32([(60, 50), (100, 51), (80, 73), (63, 87), (97, 88)])


@pytest.fixture(scope="module")
def pair() -> tuple[Clip, Clip]:
    clips = []
    for number, frames in ((0, 4), (1, 6)):
        rgb, points = zip(*Portrait(make_identity(number, 0), (160, 128)).clip(frames), strict=True)
        clips.append(Clip(np.stack(rgb), np.stack(points)))
    return clips[0], clips[1]


def smooth_picture(height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = [120 + 60 * np.sin(x / 9), 100 + 50 * np.cos(y / 8), 90 + 0.4 * x + 0.3 * y]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("method", "longer_target", "longer_source"),
    [
        ("Deepfakes", 50, 40),
        ("Face2Face", 40, 50),
        ("FaceSwap", 40, 40),
        ("NeuralTextures", 40, 40),
        ("FaceShifter", 50, 40),
    ],
)
def test_length_of_a_fake(method: str, longer_target: int, longer_source: int) -> None:
    assert fake_length(method, 50, 40) == longer_target
    assert fake_length(method, 40, 50) == longer_source


def test_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="FaceDancer"):
        fake_length("FaceDancer", 5, 5)


def test_target_plays_backwards_past_its_end() -> None:
    # N = 5: 2N - 3 - i gives 2, 1, 0 for i = 5, 6, 7; then it turns round.
    assert [target_index(i, 5) for i in range(12)] == [0, 1, 2, 3, 4, 2, 1, 0, 1, 2, 3, 4]
    assert all(target_index(i, 50) == 97 - i for i in range(50, 98))
    assert all(0 <= target_index(i, n) < n for n in (1, 2, 3, 4) for i in range(40))


def test_source_goes_to_and_fro() -> None:
    assert [source_index(i, 4) for i in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert source_index(17, 1) == 0


@pytest.mark.parametrize("method", METHODS)
def test_fake_changes_only_its_mask(pair: tuple[Clip, Clip], method: str) -> None:
    target, source = pair
    made = list(make_fake(method, target, source, (0, 1)))
    assert len(made) == fake_length(method, 4, 6)
    for index, (picture, mask) in enumerate(made):
        shown = target.frames_rgb[target_index(index, 4)]
        assert picture.dtype == np.uint8 and mask.dtype == bool and mask.shape == picture.shape[:2]
        assert np.array_equal(picture[~mask], shown[~mask])
        assert (picture[mask] != shown[mask]).any(axis=1).mean() > 0.5
    again = list(make_fake(method, target, source, (0, 1)))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(made, again, strict=True))


def test_mouth_recipes_leave_the_eyes_alone(pair: tuple[Clip, Clip]) -> None:
    target, source = pair
    areas = {}
    for method in METHODS:
        _, mask = next(make_fake(method, target, source, (0, 1)))
        areas[method] = mask.sum()
        for x, y in target.landmarks_xy[0, :2]:
            assert mask[round(float(y)), round(float(x))] == (method not in ("Face2Face", "NeuralTextures"))
        for x, y in target.landmarks_xy[0, 3:]:
            assert mask[round(float(y)), round(float(x))]
    assert areas["NeuralTextures"] < areas["Face2Face"] < areas["Deepfakes"]


def test_swapped_face_carries_the_source_s_features(pair: tuple[Clip, Clip]) -> None:
    """Inside, a Deepfakes stand-in is the source's face: far nearer to it than the target's own pixels are."""
    target, source = pair
    picture, _ = next(make_fake("Deepfakes", target, source, (0, 1)))
    region = face_region(target.landmarks_xy[0], picture.shape, feather=0.22)
    carried = carry_over(source.frames_rgb[0], source.landmarks_xy[0], target.landmarks_xy[0], region)
    sure = region.opacity > 0.99

    def pattern(patch: np.ndarray) -> np.ndarray:
        grey = patch[sure].astype(np.float64).mean(axis=1)
        return (grey - grey.mean()) / grey.std()

    to_source = (pattern(picture[region.slices]) * pattern(carried)).mean()
    to_target = (pattern(picture[region.slices]) * pattern(target.frames_rgb[0][region.slices])).mean()
    assert to_source > 0.95
    assert to_source > to_target + 0.05


def test_carrying_onto_itself_changes_nothing() -> None:
    picture = smooth_picture()
    region = face_region(POINTS, picture.shape, feather=0.1)
    carried = carry_over(picture, POINTS, POINTS, region)
    assert np.abs(carried - picture[region.slices]).max() < 0.05


def test_carrying_a_shift_scale_and_turn_lands_where_it_should() -> None:
    """The picture is analytic, so the right answer is known without any resampling."""
    height, width = 120, 160
    y, x = np.mgrid[:height, :width].astype(np.float64)

    def shade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 128 + 50 * np.sin(x / 11) + 50 * np.cos(y / 13)

    picture = np.repeat(shade(x, y).round().astype(np.uint8)[..., None], 3, axis=2)
    angle, scale, shift = np.deg2rad(12), 0.8, np.array([9.0, -6.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = POINTS.mean(axis=0)
    moved = ((POINTS - centre) @ turn.T + centre + shift).astype(np.float32)
    region = face_region(moved, picture.shape, feather=0.1)
    carried = carry_over(picture, POINTS, moved, region)
    rows, columns = np.nonzero(region.opacity > 0)
    places = np.column_stack([columns + region.x0, rows + region.y0])
    back = (places - centre - shift) @ np.linalg.inv(turn).T + centre
    assert np.abs(carried[rows, columns, 0] - shade(back[:, 0], back[:, 1])).max() < 2.0


def test_region_is_zero_at_its_rim_and_full_inside() -> None:
    region = face_region(POINTS, (120, 160), feather=0.2)
    assert region.opacity.dtype == np.float32
    border = np.concatenate([region.opacity[[0, -1]].ravel(), region.opacity[:, [0, -1]].ravel()])
    assert border.max() == 0
    nose = (round(float(POINTS[2, 1])) - region.y0, round(float(POINTS[2, 0])) - region.x0)
    assert region.opacity[nose] == 1
    mouth = mouth_region(POINTS, (120, 160), feather=0.1)
    assert (mouth.opacity > 0).sum() < 0.25 * (region.opacity > 0).sum()


def test_region_outside_the_frame_changes_nothing() -> None:
    picture = smooth_picture()
    region = face_region(POINTS + np.float32([500, 0]), picture.shape, feather=0.2)
    out, mask = blend(picture, np.full((*region.opacity.shape, 3), 255.0), region)
    assert not mask.any()
    assert np.array_equal(out, picture)


def test_region_is_cut_at_the_frame_s_edge() -> None:
    region = face_region(POINTS - np.float32([70, 0]), (120, 160), feather=0.2)
    assert region.x0 == 0
    assert region.opacity.shape[1] < face_region(POINTS, (120, 160), feather=0.2).opacity.shape[1]


def test_colours_match_in_mean_and_spread() -> None:
    rng = np.random.default_rng(3)
    frame = np.clip(rng.normal((150, 120, 100), (22, 18, 15), (120, 160, 3)), 0, 255).astype(np.uint8)
    region = face_region(POINTS, frame.shape, feather=0.1)
    shape = (*region.opacity.shape, 3)
    patch = np.clip(rng.normal((90, 95, 110), (15, 16, 14), shape), 0, 255).astype(np.float32)
    inside = region.opacity > 0.5
    goal = rgb2lab(frame[region.slices].astype(np.float64) / 255)[inside]
    matched = rgb2lab(match_colours(patch, frame, region, spread=True).astype(np.float64) / 255)[inside]
    assert np.abs(matched.mean(axis=0) - goal.mean(axis=0)).max() < 0.5
    assert np.abs(matched.std(axis=0) / goal.std(axis=0) - 1).max() < 0.1
    tinted = match_colours(patch, frame, region, spread=True, contrast=1.2, tint_lab=(5, -3, 4))
    tinted = rgb2lab(tinted.astype(np.float64) / 255)[inside]
    assert np.abs(tinted.mean(axis=0) - goal.mean(axis=0) - (5, -3, 4)).max() < 0.8


def test_blend_is_the_weighted_mean_and_copies_where_opacity_is_zero() -> None:
    frame = smooth_picture(10, 12)
    opacity = np.float32([[0, 0.25], [0.5, 1]])
    patch = np.full((2, 2, 3), 200, np.float32)
    out, mask = blend(frame, patch, Region(3, 4, opacity))
    expected = frame.astype(np.float64)
    for (row, column), weight in np.ndenumerate(opacity):
        at = (4 + row, 3 + column)
        expected[at] = np.rint(expected[at] * (1 - weight) + 200 * weight)
    assert np.array_equal(out, expected.astype(np.uint8))
    assert np.array_equal(np.argwhere(mask), [(4, 4), (5, 3), (5, 4)])


def test_bottleneck_takes_detail_and_keeps_the_mean() -> None:
    rng = np.random.default_rng(0)
    patch = rng.normal(128, 20, (60, 48, 3)).clip(0, 255).astype(np.float32)
    out = bottleneck(patch, 0.45)
    assert out.shape == patch.shape
    assert abs(out.mean() - patch.mean()) < 0.5
    assert np.diff(out, axis=1).std() < 0.5 * np.diff(patch, axis=1).std()


def test_clip_refuses_frames_without_landmarks() -> None:
    with pytest.raises(ValueError, match="2 frames but 1"):
        Clip(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((1, 5, 2), np.float32))
