"""Measures against heads of known pose, boxes of known place, and pictures of known blur."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.faces.base import Face
from qadprep.faces.measures import (
    MEAN_FACE_MM,
    Measures,
    filmed_part,
    inside_share,
    measure,
    pose_of,
    sharpness_of,
)

FOCAL = 1500.0
SIDE_MM = 180.0


def seen_at(yaw: float, pitch: float, roll: float, distance_mm: float = 1800.0, head=MEAN_FACE_MM):
    """Landmarks (5, 2) of a head turned by plain rotations, and the side of its box, through a pinhole camera."""
    y, p, r = math.radians(-yaw), math.radians(-pitch), math.radians(roll)
    tilt = np.array([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    turn = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    nod = np.array([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]])
    points = head @ (tilt @ turn @ nod).T + [0, 0, distance_mm]
    return points[:, :2] / points[:, 2:] * FOCAL + 400, SIDE_MM * FOCAL / distance_mm


@pytest.mark.parametrize("yaw", [-60, -30, -10, 0, 20, 45, 60])
@pytest.mark.parametrize("pitch", [-30, 0, 20])
@pytest.mark.parametrize("roll", [-80, -25, 0, 40])
def test_a_head_of_known_pose(yaw, pitch, roll):
    assert pose_of(*seen_at(yaw, pitch, roll)) == pytest.approx((yaw, pitch, roll), abs=3.2)


@settings(max_examples=150, deadline=None)
@given(
    yaw=st.floats(-60, 60),
    pitch=st.floats(-30, 30),
    roll=st.floats(-90, 90),
    distance=st.floats(900, 8000),
    shift=st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)),
    scale=st.floats(0.05, 8),
)
def test_pose_from_any_distance_place_and_resolution(yaw, pitch, roll, distance, shift, scale):
    points, side = seen_at(yaw, pitch, roll, distance)
    assert pose_of(points * scale + shift, side * scale) == pytest.approx((yaw, pitch, roll), abs=6)


@settings(max_examples=60, deadline=None)
@given(yaw=st.floats(-50, 50), pitch=st.floats(-25, 25), angle=st.floats(-90, 90))
def test_tilting_the_picture_changes_roll_only(yaw, pitch, angle):
    points, side = seen_at(yaw, pitch, 0)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    before, after = pose_of(points, side), pose_of(points @ np.array([[cos, sin], [-sin, cos]]), side)
    assert after == pytest.approx((before[0], before[1], before[2] + angle), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(yaw=st.floats(-50, 50), pitch=st.floats(-25, 25), roll=st.floats(-60, 60))
def test_a_mirrored_picture_mirrors_yaw_and_roll(yaw, pitch, roll):
    points, side = seen_at(yaw, pitch, roll)
    mirrored = (points * [-1, 1])[[1, 0, 2, 4, 3]]
    one, other = pose_of(points, side), pose_of(mirrored, side)
    assert other == pytest.approx((-one[0], one[1], -one[2]), abs=1e-3)


def test_signs_in_plain_words():
    frontal, side = seen_at(0, 0, 0)
    nose_right, nose_up, eye_down = frontal.copy(), frontal.copy(), frontal.copy()
    nose_right[2, 0] += 0.08 * side
    nose_up[2, 1] -= 0.06 * side
    eye_down[1, 1] += 0.05 * side
    assert pose_of(nose_right, side)[0] > 15
    assert pose_of(nose_up, side)[1] > 10
    assert pose_of(eye_down, side)[2] == pytest.approx(math.degrees(math.atan2(0.05 * SIDE_MM, 63)), abs=0.5)


@pytest.mark.parametrize("yaw", [-60, -30, 0, 30, 60])
def test_jittering_landmarks_shift_yaw_by_a_few_degrees(yaw):
    rng = np.random.default_rng(0)
    points, side = seen_at(yaw, 0, 0)
    yaws = [pose_of(points + rng.normal(0, 0.01 * side, points.shape), side)[0] for _ in range(200)]
    assert abs(np.mean(yaws) - yaw) < 3
    assert np.std(yaws) < 5


@pytest.mark.parametrize(
    "points",
    [
        np.full((5, 2), 40.0),
        np.array([[0, 0], [10, 10], [20, 20], [30, 30], [40, 40.0]]),
        np.array([[0, 0], [10, np.nan], [20, 5], [30, 30], [4, 40.0]]),
        np.array([[0, 0], [10, np.inf], [20, 5], [30, 30], [4, 40.0]]),
        np.zeros((4, 2)),
        np.array([[50, 10], [50, 10], [52, 30], [40, 60], [60, 60.0]]),  # both eyes at one point
    ],
)
def test_points_without_a_pose_give_nan(points):
    assert all(math.isnan(angle) for angle in pose_of(points, 50.0))


def test_no_size_no_pose():
    points, side = seen_at(0, 0, 0)
    for wrong in (0.0, -side, math.nan, math.inf):
        assert all(math.isnan(angle) for angle in pose_of(points, wrong))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=5, max_size=5))
def test_any_points_give_finite_angles_or_nan(points):
    yaw, pitch, roll = pose_of(np.array(points), 60.0)
    assert math.isnan(yaw) == math.isnan(pitch) == math.isnan(roll)
    if not math.isnan(yaw):
        assert -90 <= yaw <= 90 and -180 <= pitch <= 180 and -180 <= roll <= 180


LAYOUT = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def face(left, top, side):
    corner = np.array([left, top], float)
    return Face(np.concatenate([corner, corner + side]), corner + LAYOUT * side, 1.0)


@pytest.mark.parametrize(
    ("left", "top", "side", "share"),
    [
        (50, 40, 100, 1.0),
        (0, 0, 100, 1.0),
        (-50, 20, 100, 0.5),
        (250, -25, 100, 0.5 * 0.75),  # 300 wide: half is right of it, a quarter above
        (-100, 20, 100, 0.0),
        (400, 400, 100, 0.0),
        (-50, -50, 400, 300 * 200 / 400**2),  # the frame lies within the crop
        (-90, 180, 100, 0.1 * 0.2),
    ],
)
@pytest.mark.parametrize("size_px", [32, 128])
def test_share_inside_a_frame_of_300_by_200(left, top, side, share, size_px):
    affine = affine_from_face(face(left, top, side), align="box", margin=1.0, size_px=size_px)
    assert inside_share(affine, size_px, (300, 200)) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize(
    ("centre", "share"),
    [
        ((150, 100), 1.0),
        ((0, 100), 0.5),
        ((0, 0), 0.25),
        # A square of side 40 on its corner reaches 28.28 px from its centre; cut 10 px from it, a triangle of height
        # 18.28 and area 18.28^2 is outside.
        ((10, 100), 1 - (20 * math.sqrt(2) - 10) ** 2 / 40**2),
    ],
)
def test_share_inside_of_a_crop_that_stands_on_its_corner(centre, share):
    turn = math.sqrt(0.5) * np.array([[1, 1], [-1, 1]]) * 64 / 40
    affine = np.column_stack([turn, 32 - turn @ np.array(centre, float)])
    affine[:, 2] += affine[:, :2] @ [0.5, 0.5] - 0.5
    assert inside_share(affine, 64, (300, 200)) == pytest.approx(share, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(left=st.integers(-150, 300), top=st.integers(-150, 200), side=st.integers(8, 200))
def test_share_inside_is_the_share_of_pixels_that_are_not_black(left, top, side):
    affine = affine_from_face(face(left, top, side), align="box", margin=1.0, size_px=side)
    crop = warp_face(np.full((200, 300, 3), 255, np.uint8), affine, side)
    assert inside_share(affine, side, (300, 200)) == pytest.approx((crop[..., 0] > 0).mean(), abs=1e-3)


def test_blur_lowers_sharpness_step_by_step():
    crop = data.astronaut()[60:188, 160:288]
    values = [sharpness_of(cv2.GaussianBlur(crop, (0, 0), sigma) if sigma else crop) for sigma in (0, 0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[2] > 100 * values[4]


def test_sharpness_of_a_known_pattern():
    """Columns 0, 100, 0, 100: the Laplacian is +-200 (its border mirrors), the variance 40000."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 100
    assert sharpness_of(stripes) == pytest.approx(40000)
    assert sharpness_of(np.full((128, 128, 3), 90, np.uint8)) == 0


@pytest.mark.parametrize("size_px", [160, 224, 256, 299])
def test_sharpness_hardly_depends_on_the_size_of_the_crop(size_px):
    subject = face(180, 60, 260)
    values = [
        sharpness_of(warp_face(data.astronaut(), affine_from_face(subject, align="box", size_px=size), size))
        for size in (128, size_px)
    ]
    assert values[1] == pytest.approx(values[0], rel=0.4)


def test_an_enlarged_face_is_not_sharp():
    small = cv2.resize(data.astronaut(), (64, 64), interpolation=cv2.INTER_AREA)
    sharp, enlarged = (
        sharpness_of(warp_face(picture, affine_from_face(face(*box), align="box", size_px=128), 128))
        for picture, box in ((data.astronaut(), (160, 40, 140)), (small, (20, 5, 17.5)))
    )
    assert enlarged < 0.1 * sharp


def test_only_the_pixels_that_count_are_measured():
    crop = np.full((128, 128, 3), 90, np.uint8)
    crop[:, 100:] = np.random.default_rng(0).integers(0, 256, (128, 28, 3))
    part = np.zeros((128, 128), bool)
    part[:, :96] = True
    assert sharpness_of(crop, part) == 0 < sharpness_of(crop)
    assert math.isnan(sharpness_of(crop, np.zeros((128, 128), bool)))


def test_the_black_outside_of_the_frame_makes_no_face_sharper():
    frame = np.full((200, 300, 3), 220, np.uint8)
    subject = face(-30, 40, 100)
    affine = affine_from_face(subject, align="box", size_px=128)
    crop = warp_face(frame, affine, 128)
    measured = measure(subject, crop, affine, (300, 200))
    assert sharpness_of(crop) > 100
    assert measured.sharpness == 0
    assert (
        measured.inside_share == pytest.approx(85 / 130, abs=1e-4)  # 1.3 x 100 wide, from x = -45
    )


def test_filmed_part_leaves_a_rim_of_two_pixels_at_the_border_only():
    shifted = np.array([[1, 0, 10.0], [0, 1, 0]])  # the frame begins at column 10 of the crop
    part = filmed_part(shifted, (200, 200), 64)
    assert not part[:, :12].any() and part[:, 12:].all()
    assert filmed_part(np.array([[1, 0, -10.0], [0, 1, -10]]), (200, 200), 64).all()


def test_measures_of_a_whole_face():
    points, side = seen_at(20, -5, 12)
    corner = points.mean(axis=0) - side / 2
    subject = Face(np.concatenate([corner, corner + side]), points, 0.9)
    frame = cv2.resize(data.astronaut(), (800, 800))
    affine = affine_from_face(subject, align="similarity", size_px=128)
    measured = measure(subject, warp_face(frame, affine, 128), affine, (800, 800))
    assert isinstance(measured, Measures)
    assert measured.side_px == pytest.approx(side, abs=1e-3)
    assert (measured.yaw_deg, measured.pitch_deg, measured.roll_deg) == pytest.approx((20, -5, 12), abs=2)
    assert measured.inside_share == 1 and measured.sharpness > 0
    assert measured == measure(subject, warp_face(frame, affine, 128), affine, (800, 800))


@pytest.mark.parametrize("crop", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 9, 3), np.uint8)])
def test_other_crops_are_refused(crop):
    with pytest.raises(ValueError, match="crop"):
        measure(face(0, 0, 10), crop, np.eye(2, 3), (100, 100))
