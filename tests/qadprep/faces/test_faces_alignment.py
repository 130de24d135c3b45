"""Alignment: the affines against scikit-image and against geometry, the warp against plain numpy means."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.data import astronaut
from skimage.transform import SimilarityTransform

from qadprep.faces.alignment import (
    affine_from_face,
    corners_of_crop,
    similarity_from_points,
    warp_face,
)
from qadprep.faces.base import Face

# The published points of ArcFace's 112 x 112 crop.
ARCFACE_XY = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def face_of(box=(100, 60, 180, 170), landmarks=None) -> Face:
    return Face(np.array(box), ARCFACE_XY if landmarks is None else landmarks, 1.0)


def applied(affine, points_xy):
    """Pixel-edge source coordinates to pixel-edge crop coordinates."""
    return (points_xy - 0.5) @ affine[:, :2].T + affine[:, 2] + 0.5


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


points = st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), min_size=5, max_size=5, unique=True).map(
    np.array
)


@settings(max_examples=100, deadline=None)
@given(source=points, target=points)
def test_similarity_solves_the_least_squares_problem(source, target):
    """Against the linear system in the four unknowns a, b, tx, ty."""
    assume(np.ptp(source, axis=0).max() >= 1)
    ours = similarity_from_points(source, target)
    rows = np.zeros((10, 4))
    rows[0::2] = np.column_stack([source[:, 0], -source[:, 1], np.ones(5), np.zeros(5)])
    rows[1::2] = np.column_stack([source[:, 1], source[:, 0], np.zeros(5), np.ones(5)])
    a, b, tx, ty = np.linalg.lstsq(rows, target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(ours, [[a, -b, tx], [b, a, ty]], atol=1e-6 * max(1, abs(target).max()))


@pytest.mark.parametrize("seed", range(20))
def test_similarity_equals_scikit_image_on_faces(seed):
    rng = np.random.default_rng(seed)
    source = ARCFACE_XY * rng.uniform(0.3, 6) + rng.uniform(-50, 900, 2) + rng.normal(0, 4, (5, 2))
    expected = SimilarityTransform.from_estimate(source, ARCFACE_XY)
    np.testing.assert_allclose(similarity_from_points(source, ARCFACE_XY), expected.params[:2], rtol=1e-9, atol=1e-9)


def test_similarity_recovers_a_known_rotation_scale_and_shift():
    angle, scale = np.deg2rad(33), 2.5
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = similarity_from_points(ARCFACE_XY, ARCFACE_XY @ linear.T + [7, -9])
    np.testing.assert_allclose(affine, np.column_stack([linear, [7, -9]]), atol=1e-10)


def test_similarity_does_not_mirror():
    affine = similarity_from_points(ARCFACE_XY, ARCFACE_XY * [-1, 1])
    assert np.linalg.det(affine[:, :2]) > 0


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros((5, 2)), ARCFACE_XY, "all 5 source points lie at"),
        (ARCFACE_XY[:4], ARCFACE_XY, r"got \(4, 2\) and \(5, 2\)"),
        (ARCFACE_XY[:1], ARCFACE_XY[:1], "n >= 2"),
        (ARCFACE_XY.T, ARCFACE_XY.T, "expected two arrays"),
    ],
)
def test_similarity_rejects(source, target, message):
    with pytest.raises(ValueError, match=message):
        similarity_from_points(source, target)


def test_similarity_crop_shows_arcface_points_around_the_face_square():
    """ArcFace's own points in a 112 crop: at margin 112/106 the crop has ArcFace's scale and our centre."""
    face = face_of(landmarks=ARCFACE_XY + 0.5)  # pixel centres to pixel edges
    affine = affine_from_face(face, align="similarity", margin=112 / 106, size_px=112)
    np.testing.assert_allclose(affine, [[1, 0, 0], [0, 1, 56 - 63.5]], atol=1e-4)


def test_similarity_crop_undoes_rotation():
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    upright = face_of(landmarks=ARCFACE_XY * 2)
    turned = face_of(landmarks=(ARCFACE_XY * 2) @ turn.T + [300, 40])
    seen = [
        applied(affine_from_face(face, align="similarity"), face.landmarks_xy.astype(np.float64))
        for face in (upright, turned)
    ]
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-3)


@pytest.mark.parametrize("align", ["similarity", "box"])
def test_margin_scales_the_field_around_one_centre(align):
    face = face_of()
    narrow = corners_of_crop(affine_from_face(face, align=align, margin=1.0), 128)
    wide = corners_of_crop(affine_from_face(face, align=align, margin=1.6), 128)
    np.testing.assert_allclose(wide.mean(axis=0), narrow.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(wide - wide.mean(axis=0), 1.6 * (narrow - narrow.mean(axis=0)), atol=1e-9)


@pytest.mark.parametrize("align", ["similarity", "box"])
def test_size_only_scales(align):
    face = face_of()
    small = corners_of_crop(affine_from_face(face, align=align, size_px=100), 100)
    large = corners_of_crop(affine_from_face(face, align=align, size_px=299), 299)
    np.testing.assert_allclose(small, large, atol=1e-9)


def test_box_crop_is_the_square_of_margin_times_the_longer_side():
    affine = affine_from_face(face_of(box=(100, 60, 180, 170)), align="box", margin=1.3, size_px=128)
    centre, half = np.array([140, 115]), 1.3 * 110 / 2
    expected = centre + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    np.testing.assert_allclose(corners_of_crop(affine, 128), expected, atol=1e-9)


def test_box_crop_at_native_size_is_plain_slicing():
    frame = noise(300, 400)
    face = face_of(box=(50, 70, 178, 198))
    affine = affine_from_face(face, align="box", margin=1.0, size_px=128)
    np.testing.assert_array_equal(warp_face(frame, affine, 128), frame[70:198, 50:178])


def test_both_alignments_show_a_similar_field_of_a_real_face():
    """The astronaut's face as MTCNN sees it: crop sides within 10 % and centres within 10 % of the side."""
    from qadprep.faces.mtcnn import MtcnnDetector

    face = MtcnnDetector().detect([astronaut()])[0][0]
    corners = {align: corners_of_crop(affine_from_face(face, align=align), 128) for align in ("similarity", "box")}
    sides = {align: np.hypot(*(corner[1] - corner[0])) for align, corner in corners.items()}
    assert sides["similarity"] == pytest.approx(sides["box"], rel=0.1)
    shift = corners["similarity"].mean(axis=0) - corners["box"].mean(axis=0)
    assert np.hypot(*shift) < 0.1 * sides["box"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"align": "box", "margin": 0.0}, "margin > 0"),
        ({"align": "box", "margin": float("nan")}, "margin > 0"),
        ({"align": "box", "size_px": 0}, "size_px >= 1"),
        ({"align": "affine"}, "'similarity' or 'box', got 'affine'"),
    ],
)
def test_affine_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        affine_from_face(face_of(), **arguments)


def test_identity_returns_the_pixels():
    frame = noise(128, 128)
    np.testing.assert_array_equal(warp_face(frame, np.eye(2, 3), 128), frame)


@pytest.mark.parametrize(("dx", "dy"), [(-17, -5), (0, -31), (-1, 0)])
def test_whole_pixel_shifts_are_exact(dx, dy):
    frame = noise(200, 240)
    crop = warp_face(frame, np.array([[1, 0, dx], [0, 1, dy]]), 96)
    np.testing.assert_array_equal(crop, frame[-dy : 96 - dy, -dx : 96 - dx])


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_shrinking_by_a_whole_number_is_the_area_mean(factor):
    frame = noise(64 * factor, 64 * factor)
    affine = np.array([[1 / factor, 0, 0], [0, 1 / factor, 0]])
    affine[:, 2] = 0.5 / factor - 0.5  # edges on edges
    expected = frame.reshape(64, factor, 64, factor, 3).astype(np.float64).mean(axis=(1, 3))
    crop = warp_face(frame, affine, 64)
    assert abs(crop - expected).max() <= 0.5 + 1e-6


def test_shrinking_does_not_alias():
    """Lines one pixel wide, 400 px to 128: plain bilinear sampling beats, the area mean stays near grey."""
    frame = np.zeros((400, 400, 3), dtype=np.uint8)
    frame[:, ::2] = 255
    affine = affine_from_face(face_of(box=(0, 0, 400, 400)), align="box", margin=1.0, size_px=128)
    crop = warp_face(frame, affine, 128).astype(float)
    assert abs(crop - 127.5).max() < 45
    assert crop.std() < 20  # bilinear alone: about 74


def test_shrinking_beyond_the_bound_still_works():
    crop = warp_face(np.full((400, 400, 3), 77, np.uint8), np.array([[0.01, 0, 0], [0, 0.01, 0]]), 4)
    np.testing.assert_array_equal(crop[1:-1, 1:-1], 77)


def test_bilinear_against_numpy():
    """A rotated, enlarged crop against bilinear interpolation in float64; OpenCV counts in 1/32 px steps."""
    frame = np.repeat(np.repeat(noise(12, 12, 3), 10, axis=0), 10, axis=1)  # slopes of at most 255 a pixel
    face = face_of(landmarks=ARCFACE_XY * 0.3 + [20, 25])
    face = Face(face.box_xyxy, face.landmarks_xy @ np.array([[0.9, 0.3], [-0.3, 0.9]]) + 10, 1.0)
    affine = affine_from_face(face, align="similarity", size_px=96)
    crop = warp_face(frame, affine, 96)
    back = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    source = np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)]))
    padded = np.zeros((frame.shape[0] + 400, frame.shape[1] + 400, 3))
    padded[200:-200, 200:-200] = frame
    left, top = np.floor(source[0]).astype(int), np.floor(source[1]).astype(int)
    fx, fy = (source[0] - left)[..., None], (source[1] - top)[..., None]
    left, top = left + 200, top + 200
    expected = (
        padded[top, left] * (1 - fx) * (1 - fy)
        + padded[top, left + 1] * fx * (1 - fy)
        + padded[top + 1, left] * (1 - fx) * fy
        + padded[top + 1, left + 1] * fx * fy
    )
    assert abs(crop - expected).max() <= 255 / 32 + 1
    assert abs(crop - expected).mean() < 0.6


def test_outside_of_the_frame_is_black_and_the_face_stays_put():
    frame = np.full((100, 100, 3), 200, np.uint8)
    affine = affine_from_face(face_of(box=(-50, 20, 50, 120)), align="box", margin=1.0, size_px=100)
    crop = warp_face(frame, affine, 100)
    assert (crop[:, :50] == 0).all() and (crop[80:] == 0).all()
    assert (crop[:80, 50:] == 200).all()


def test_the_same_call_gives_the_same_bytes():
    frame = astronaut()
    affine = affine_from_face(face_of(box=(181, 61, 267, 172)), align="box", size_px=64)
    assert len({warp_face(frame, affine, 64).tobytes() for _ in range(5)}) == 1


def test_warp_leaves_its_arguments_alone():
    frame, affine = noise(90, 90), np.array([[0.3, 0, 1], [0, 0.3, 2]])
    before = frame.copy(), affine.copy()
    warp_face(frame, affine, 32)
    np.testing.assert_array_equal(frame, before[0])
    np.testing.assert_array_equal(affine, before[1])


def test_corners_of_crop_map_back_to_the_corners():
    affine = affine_from_face(face_of(), align="similarity", size_px=50)
    back = applied(affine, corners_of_crop(affine, 50))
    np.testing.assert_allclose(back, [[0, 0], [50, 0], [50, 50], [0, 50]], atol=1e-9)


@pytest.mark.parametrize(
    ("frame", "affine", "size_px", "message"),
    [
        (np.zeros((9, 9), np.uint8), np.eye(2, 3), 4, r"got uint8 \(9, 9\)"),
        (np.zeros((9, 9, 3)), np.eye(2, 3), 4, r"got float64"),
        (np.zeros((0, 9, 3), np.uint8), np.eye(2, 3), 4, r"\(0, 9, 3\)"),
        (np.zeros((9, 9, 3), np.uint8), np.eye(3), 4, "shape"),
        (np.zeros((9, 9, 3), np.uint8), np.zeros((2, 3)), 4, "invertible"),
        (np.zeros((9, 9, 3), np.uint8), np.full((2, 3), np.nan), 4, "finite"),
        (np.zeros((9, 9, 3), np.uint8), np.eye(2, 3), 0, "size_px >= 1"),
    ],
)
def test_warp_rejects(frame, affine, size_px, message):
    with pytest.raises(ValueError, match=message):
        warp_face(frame, affine, size_px)
