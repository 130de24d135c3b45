"""Synthetic people: found by MTCNN where they should be, different from each other, always moving."""

import cv2
import numpy as np
import pytest

from qadprep.demo.identities import PHOTO_LANDMARKS_XY, make_identity, recolour
from qadprep.demo.portrait import Portrait
from qadprep.faces import make_detector

SIZE_PX = (272, 208)


def quarter_luma(rgb: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.resize(grey, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def test_mtcnn_finds_the_face_where_the_warps_put_it() -> None:
    detector = make_detector("mtcnn")
    seen = total = 0
    for number in (0, 3, 4):
        clip = [Portrait(make_identity(number, 0), SIZE_PX).frame(index) for index in range(0, 40, 5)]
        for (_, points), faces in zip(clip, detector.detect([rgb for rgb, _ in clip]), strict=True):
            total += 1
            if not faces:
                continue
            seen += 1
            eyes_px = np.linalg.norm(points[1] - points[0])
            off = np.linalg.norm(faces[0].landmarks_xy - points, axis=1) / eyes_px
            # Smiles with changed mouths cost the detector accuracy, not the warps: those are tested exactly below.
            assert np.median(off) < 0.15
            assert off.max() < 0.40
    assert total == 24
    assert seen >= 0.9 * total


@pytest.mark.parametrize("number", range(4))
def test_landmarks_are_where_the_photo_s_landmarks_come_to_lie(number: int) -> None:
    person = Portrait(make_identity(number, 7), SIZE_PX)
    base = PHOTO_LANDMARKS_XY
    if number % 2:
        base = np.column_stack([511 - base[:, 0], base[:, 1]])[[1, 0, 2, 4, 3]]
    for index in (0, 9, 31):
        points = person.landmarks(index)
        assert np.array_equal(points, person.frame(index)[1])
        x, y = person._lookup(points[:, 0], points[:, 1], person._pose(index), person._motion(index))
        assert np.abs(np.column_stack([x, y]) - base).max() < 0.05
        assert points[0, 0] < points[1, 0] and points[3, 0] < points[4, 0]


def test_two_people_differ_in_shape_and_colour() -> None:
    people = [Portrait(make_identity(number, 0), SIZE_PX) for number in range(6)]
    shapes, skins = [], []
    for person in people:
        rgb, points = person.frame(0)
        eyes_px = np.linalg.norm(points[1] - points[0])
        shapes.append([(points[2, 1] - points[:2, 1].mean()) / eyes_px, (points[4, 0] - points[3, 0]) / eyes_px])
        x, y = (points[[0, 3]].mean(axis=0)).astype(int)
        skins.append(rgb[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(axis=0))
    for a in range(6):
        for b in range(a):
            shape = np.abs(np.subtract(shapes[a], shapes[b])).max()
            assert shape > 0.04 or np.abs(skins[a] - skins[b]).max() > 15, (a, b)
    assert np.std(np.array(shapes), axis=0).min() > 0.03
    assert np.std(np.array(skins), axis=0).min() > 8


def test_every_frame_differs_from_its_neighbours_more_than_noise_does() -> None:
    for number in (1, 2):
        person = Portrait(make_identity(number, 0), SIZE_PX)
        small = [quarter_luma(rgb) for rgb, _ in person.clip(30)]
        steps = [np.abs(a - b).mean() for a, b in zip(small[1:], small, strict=False)]
        # Noise of sigma 0.8 averaged over 4x4 px differs by 0.23 between two frames.
        assert min(steps) > 0.9


def test_a_frame_is_a_pure_function_of_its_index() -> None:
    first, second = (Portrait(make_identity(4, 1), (160, 128)) for _ in range(2))
    second.frame(9)
    assert np.array_equal(first.frame(3)[0], second.frame(3)[0])
    assert not np.array_equal(first.frame(3)[0], first.frame(4)[0])
    other = Portrait(make_identity(4, 2), (160, 128))
    assert np.abs(first.frame(3)[0].astype(int) - other.frame(3)[0]).mean() > 10


def test_recolouring_keeps_the_range_and_mirrors_everything_together() -> None:
    identity = make_identity(3, 0)
    assert identity.mirrored
    rgb, opacity, points = recolour(identity)
    assert rgb.shape == (512, 512, 3) and rgb.dtype == np.float32 and rgb.min() >= 0 and rgb.max() <= 255
    assert opacity.shape == (512, 512) and opacity.min() >= 0 and opacity.max() <= 1
    # The person is opaque at every landmark, the studio's corners are clear.
    assert all(opacity[round(y), round(x)] > 0.99 for x, y in points)
    assert opacity[5, 5] == opacity[5, 506] == 0
    assert np.allclose(points[0], (511 - 246.7, 103.2))
