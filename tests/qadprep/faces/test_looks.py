"""Looks of synthetic people whose faces move, and of photographs under other light."""

from itertools import combinations

import cv2
import numpy as np
import pytest
from skimage import data

from qadprep.demo.identities import make_identity
from qadprep.demo.portrait import Portrait
from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.faces.base import Face
from qadprep.faces.looks import AGREE, LOOK_SIZE, OTHER, SAME, SAME_SCENE, look_of, same_person, same_persons


def astronaut(size_px=128):
    face = Face(
        np.array([181, 61, 267, 172]), np.array([[205, 105], [243, 103], [226, 128], [208, 142], [243, 141]]), 1
    )
    return warp_face(data.astronaut(), affine_from_face(face, align="similarity", size_px=size_px), size_px)


def test_the_same_picture_is_the_same_person():
    look = look_of(astronaut())
    assert look.shape == (LOOK_SIZE,) and look.dtype == np.float32
    assert same_person(look, look) > 0.99
    assert look_of(astronaut()).tobytes() == look.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda crop: np.clip(crop * 0.6, 0, 255),
        lambda crop: np.clip(crop * 1.3 + 10, 0, 255),
        lambda crop: crop * np.linspace(0.6, 1.0, 128)[None, :, None],  # a lamp from the right
        lambda crop: cv2.GaussianBlur(crop, (0, 0), 2),
        lambda crop: np.clip(crop + np.random.default_rng(0).normal(0, 12, crop.shape), 0, 255),
        lambda crop: np.roll(crop, (3, -4), (0, 1)),  # landmarks off
        lambda crop: cv2.resize(cv2.resize(crop, (32, 32), interpolation=cv2.INTER_AREA), (128, 128)),
    ],
    ids=["dark", "bright", "lamp", "blur", "noise", "shift", "small"],
)
def test_light_blur_and_jitter_leave_the_person(change):
    changed = np.round(change(astronaut().astype(np.float32))).astype(np.uint8)
    assert same_person(look_of(astronaut()), look_of(changed)) >= AGREE


def test_the_size_of_the_crop_hardly_matters():
    assert same_person(look_of(astronaut(128)), look_of(astronaut(224))) > 0.98


@pytest.mark.parametrize("other", ["chelsea", "coffee", "rocket"])
def test_what_is_no_such_face_is_another(other):
    picture = cv2.resize(getattr(data, other)()[50:250, 100:300], (128, 128))
    assert same_person(look_of(astronaut()), look_of(picture)) <= OTHER


def sightings(number):
    """Looks of one synthetic person, who sways, turns and speaks."""
    person = Portrait(make_identity(number, 0), (320, 240))
    looks = []
    for index in range(0, 120, 20):
        frame, landmarks = person.frame(index)
        spread = np.ptp(landmarks, axis=0).max()
        middle = landmarks.mean(axis=0)
        face = Face(np.concatenate([middle - spread, middle + spread]), landmarks, 1.0)
        looks.append(look_of(warp_face(frame, affine_from_face(face, align="similarity"), 128)))
    return np.stack(looks)


def test_people_who_move_stay_themselves():
    for number in range(4):
        looks = sightings(number)
        assert same_persons(looks, looks).min() >= AGREE


def test_many_at_once_are_what_pairs_are():
    a, b = sightings(0), sightings(1)[:4]
    table = same_persons(a, b)
    assert table.shape == (6, 4)
    for i, j in ((0, 0), (5, 3), (2, 1)):
        assert table[i, j] == pytest.approx(same_person(a[i], b[j]), abs=1e-12)
        assert same_person(a[i], b[j]) == pytest.approx(same_person(b[j], a[i]), abs=1e-12)
    assert ((table >= 0) & (table <= 1)).all()
    assert same_persons(a[:0], b).shape == (0, 4) and same_persons(a, b[:0]).shape == (6, 0)


def test_thresholds_are_in_order():
    assert 0 < OTHER < 0.5 < AGREE < SAME < SAME_SCENE < 1
    pairs = list(combinations((OTHER, AGREE, SAME, SAME_SCENE), 2))
    assert all(low < high for low, high in pairs)


def test_a_flat_crop_has_a_look():
    look = look_of(np.full((64, 64, 3), 90, np.uint8))
    assert np.isfinite(look).all()
    assert np.isfinite(same_person(look, look_of(astronaut())))


@pytest.mark.parametrize("crop", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_other_crops_are_refused(crop):
    with pytest.raises(ValueError, match="expected a uint8 crop"):
        look_of(crop)


def test_what_is_no_look_is_refused():
    with pytest.raises(ValueError, match=r"expected looks \(n, 288\)"):
        same_person(np.zeros(5), np.zeros(5))
