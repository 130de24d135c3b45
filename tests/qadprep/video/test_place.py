import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.shifting import CRFS, HEIGHT, WIDTH, moved, talking_head, write_and_read
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.faces.alignment import warp_face
from qadprep.video.place import EQUAL, Place, find_place, guess_place, place_thumbnail

AT = (12, 40, 77)


@pytest.fixture(scope="module")
def lumas(portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    return write_and_read(talking_head(portrait), tmp_path_factory.mktemp("place"))


def _found(lumas: dict[int, np.ndarray], make, crf: int = 40, late: int = 0, of: int = 0) -> Place:
    return find_place([(lumas[of][i], np.ascontiguousarray(make(lumas[crf][i + late])), None) for i in AT])


@pytest.mark.parametrize("late", [0, 1, 3])
@pytest.mark.parametrize("crf", CRFS)
def test_the_same_picture_is_equal(lumas: dict[int, np.ndarray], crf: int, late: int) -> None:
    place = _found(lumas, lambda luma: luma, crf, late)
    assert place.is_equal and (place.left_px, place.top_px, place.scale_x, place.scale_y) == (0, 0, 1, 1)
    assert place.margin > (0.9 if crf == late == 0 else 0.1)
    assert place.residual == 0 if crf == late == 0 else place.residual > 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    left=st.integers(0, 30), right=st.integers(0, 30), top=st.integers(0, 20), bottom=st.integers(0, 20),
    crf=st.sampled_from(CRFS), of=st.sampled_from(CRFS), late=st.integers(0, 3),
)  # fmt: skip
def test_any_crop_is_found_to_the_px(lumas, left, right, top, bottom, crf, of, late) -> None:
    place = _found(lumas, lambda luma: luma[top : HEIGHT - bottom, left : WIDTH - right], crf, late, of)
    assert (place.left_px, place.top_px, place.scale_x, place.scale_y) == (left, top, 1, 1)
    if not any((left, right, top, bottom)):
        assert place.is_equal
    elif left == top == 0:
        assert place.relation == "left_aligned"
    elif abs(left - right) <= 1 and abs(top - bottom) <= 1:
        assert place.relation == "centre_crop"
    else:
        assert place.relation == "crop"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(left=st.integers(-16, 16), top=st.integers(-16, 16), crf=st.sampled_from(CRFS), late=st.integers(0, 3))
def test_moved_content_is_found_to_the_px(lumas, left, top, crf, late) -> None:
    place = _found(lumas, lambda luma: moved(luma, left, top), crf, late)
    assert (place.left_px, place.top_px) == (left, top)
    assert place.relation == ("equal" if left == top == 0 else "shifted")


@pytest.mark.parametrize("crf", CRFS)
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 1.5])
def test_resized(lumas: dict[int, np.ndarray], factor: float, crf: int) -> None:
    size = round(WIDTH * factor), round(HEIGHT * factor)
    place = _found(lumas, lambda luma: cv2.resize(luma, size, interpolation=cv2.INTER_AREA), crf)
    assert place.relation == "resized"
    assert (place.scale_x, place.scale_y) == (WIDTH / size[0], HEIGHT / size[1])
    assert (place.left_px, place.top_px) == (0, 0)


@pytest.mark.parametrize("crf", CRFS)
def test_padded_and_wider_pictures(lumas: dict[int, np.ndarray], crf: int) -> None:
    place = _found(lumas, lambda luma: np.pad(luma, ((4, 4), (8, 8))), crf)
    assert (place.relation, place.left_px, place.top_px) == ("padded", -8, -4)
    # Celeb-DF: two columns more on the right.
    place = _found(lumas, lambda luma: np.pad(luma, ((0, 0), (0, 2)), mode="edge"), crf)
    assert (place.relation, place.left_px, place.top_px) == ("left_aligned", 0, 0)
    # FF++: 854 -> 832 px in proportion, and the reverse.
    place = find_place([(lumas[crf][i][:, 6:-6], lumas[40][i], None) for i in AT])
    assert (place.relation, place.left_px, place.top_px) == ("padded", -6, 0)


def test_zoomed_content_has_no_place(lumas: dict[int, np.ndarray]) -> None:
    def zoom(luma: np.ndarray) -> np.ndarray:
        return cv2.resize(luma[6:-6, 10:-10], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)

    for crf in CRFS:
        assert _found(lumas, zoom, crf).relation == "unknown"


def test_other_content_has_no_place(lumas: dict[int, np.ndarray]) -> None:
    assert _found(lumas, lambda luma: luma[::-1]).relation == "unknown"
    assert _found(lumas, lambda luma: luma[::-1, 4:]).relation == "unknown"


def test_flat_pictures_tell_nothing() -> None:
    flat = np.full((96, 160), 90, np.uint8)
    assert guess_place(flat, flat) == Place("equal", 0, 0, 1, 1, 0.0, 0.0)
    assert guess_place(flat, flat[:, :150]).relation == "unknown"
    assert guess_place(flat, cv2.resize(flat, (80, 48))).relation == "unknown"


def test_brightness_decides_nothing(lumas: dict[int, np.ndarray]) -> None:
    place = _found(lumas, lambda luma: cv2.add(luma[:, 9:], 14.0))
    assert (place.relation, place.left_px) == ("crop", 9)
    assert place.residual < _found(lumas, lambda luma: luma[:, 9:]).residual + 1


def test_what_is_not_kept_does_not_count(lumas: dict[int, np.ndarray]) -> None:
    keep = np.ones((HEIGHT, WIDTH), bool)
    keep[20:116, 60:180] = False
    pairs = []
    for i in AT:
        other = lumas[40][i].copy()
        other[20:116, 60:180] = lumas[40][i][26:122, 52:172]  # only the face region moved, as a bad fake's may
        pairs.append((lumas[0][i], other, keep))
    with_keep = find_place(pairs)
    assert with_keep.is_equal
    assert with_keep.residual == pytest.approx(_found_outside(lumas, keep), abs=0.3)
    assert find_place([(a, b, None) for a, b, _ in pairs]).residual > with_keep.residual + 2


def _found_outside(lumas: dict[int, np.ndarray], keep: np.ndarray) -> float:
    return float(np.mean([np.abs(lumas[0][i].astype(int) - lumas[40][i])[keep].mean() for i in AT]))


def test_bad_pictures_are_refused() -> None:
    picture = np.zeros((48, 64), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        find_place([])
    with pytest.raises(ValueError, match="one size"):
        find_place([(picture, picture, None), (picture, picture[:, :60], None)])
    with pytest.raises(ValueError, match="uint8"):
        guess_place(picture.astype(float), picture)
    with pytest.raises(ValueError, match="keep mask"):
        guess_place(picture, picture, np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="uint8"):
        place_thumbnail(picture.astype(float), EQUAL, (64, 48))


def test_a_large_picture_costs_little() -> None:
    picture = cv2.resize(np.random.default_rng(1).integers(0, 255, (135, 240), np.uint8), (1920, 1080))
    other = np.ascontiguousarray(picture[:, 11:-11])
    began = time.process_time()
    place = guess_place(picture, other)
    assert (place.relation, place.left_px) == ("centre_crop", 11)
    assert time.process_time() - began < 0.5  # 0.1 s on the machine it was written on


AFFINE = np.array([[0.61, 0.12, -41.3], [-0.12, 0.61, -9.8]])


def test_an_affine_moves_with_the_crop(portrait: np.ndarray) -> None:
    full = cv2.resize(portrait, (WIDTH, HEIGHT))
    place = Place("crop", 7, 5)
    other = np.ascontiguousarray(full[5:-3, 7:-11])
    identity = np.array([[1.0, 0, -40], [0, 1.0, -30]])
    np.testing.assert_array_equal(warp_face(full, identity, 64), warp_face(other, place.affine_for_other(identity), 64))
    a, b = warp_face(full, AFFINE, 40), warp_face(other, place.affine_for_other(AFFINE), 40)
    assert np.abs(a.astype(int) - b).max() <= 1
    np.testing.assert_allclose(EQUAL.affine_for_other(AFFINE), AFFINE, rtol=0, atol=0)


@given(
    left=st.floats(-20, 20), top=st.floats(-20, 20), sx=st.floats(0.5, 2), sy=st.floats(0.5, 2),
    x=st.floats(-5, 300), y=st.floats(-5, 300),
)  # fmt: skip
def test_an_affine_leads_to_the_same_point(left, top, sx, sy, x, y) -> None:
    """A point of the other's picture, px at centres: through the moved affine, and by way of the reference."""
    place = Place("resized", left, top, sx, sy)
    in_reference = np.array([sx * (x + 0.5) + left - 0.5, sy * (y + 0.5) + top - 0.5, 1])
    np.testing.assert_allclose(place.affine_for_other(AFFINE) @ [x, y, 1], AFFINE @ in_reference, atol=1e-8)


def test_an_affine_cannot_move_to_an_unknown_place() -> None:
    with pytest.raises(ValueError, match="unknown"):
        Place("unknown").affine_for_other(AFFINE)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        EQUAL.affine_for_other(np.eye(3))


def test_thumbnails_in_the_references_coordinates(portrait: np.ndarray) -> None:
    full = cv2.cvtColor(cv2.resize(portrait, (480, 270), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    truth, everywhere = place_thumbnail(full, EQUAL, (480, 270))
    assert truth.shape == (90, 160) and everywhere.all()
    np.testing.assert_array_equal(truth, cv2.resize(full, (160, 90), interpolation=cv2.INTER_AREA))
    cropped = np.ascontiguousarray(full[9:, 30:-30])
    shown, valid = place_thumbnail(cropped, Place("crop", 30, 9), (480, 270))
    np.testing.assert_array_equal(valid[3:, 10:-10], True)
    assert not valid[:3].any() and not valid[:, :10].any() and not valid[:, -10:].any()
    np.testing.assert_array_equal(shown[valid], truth[valid])
    small = cv2.resize(full, (320, 180), interpolation=cv2.INTER_AREA)
    shown, valid = place_thumbnail(small, Place("resized", 0, 0, 1.5, 1.5), (480, 270))
    assert valid.all() and np.abs(shown.astype(int) - truth).mean() < 2
    # From a thumbnail of the other's whole picture: nearly the same, without decoding again.
    reduced = cv2.resize(cropped, (160, 90), interpolation=cv2.INTER_AREA)
    shown, valid = place_thumbnail(reduced, Place("crop", 30, 9), (480, 270), (420, 261))
    assert 0.75 < valid.mean() < 0.9
    unplaced = np.abs(reduced.astype(int) - truth)[valid].mean()
    assert np.abs(shown.astype(int) - truth)[valid].mean() < min(4, unplaced / 4)


def test_places_on_real_clips(real_clips: list[Path], tmp_path: Path) -> None:
    """Where clips are at hand: CRF 40 of a part of the picture is found at its place."""
    from helpers.shifting import luma_of

    from qadprep.video.encode import write_compressed

    for clip in real_clips[::7]:
        truth = luma_of(clip, most=45, longest=480)
        write_compressed([np.dstack([luma] * 3) for luma in truth], tmp_path / "c40.mp4", 25, 40)
        other = luma_of(tmp_path / "c40.mp4")
        for left, right in ((0, 0), (11, 11), (0, 2), (5, 9)):
            cut = [np.ascontiguousarray(luma[:, left : luma.shape[1] - right]) for luma in other]
            place = find_place([(truth[i], cut[i], None) for i in (5, 20, 40)])
            assert (place.left_px, place.top_px, place.scale_x) == (left, 0, 1), (clip.name, place)
            assert place.relation == {0: "equal", 22: "centre_crop", 2: "left_aligned", 14: "crop"}[left + right]
