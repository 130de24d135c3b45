"""MTCNN: the astronaut's face, equality with facenet-pytorch's own cascade, independence of the batch."""

import os
from pathlib import Path

import av
import cv2
import facenet_pytorch
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from qadprep.faces.mtcnn import MtcnnDetector

# The package counts pixels from 1: its boxes start one higher.
FIRST_PIXEL = np.array([1, 1, 0, 0])
# Where the parts of the astronaut's face lie in the 512 x 512 picture, read off the picture by eye:
# left, top, right, bottom in px.
PARTS_XYXY = {
    "image-left eye": (192, 95, 213, 106),
    "image-right eye": (236, 97, 259, 109),
    "nose tip": (213, 120, 235, 134),
    "image-left mouth corner": (196, 133, 210, 147),
    "image-right mouth corner": (238, 134, 252, 148),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def detector():
    return MtcnnDetector()


@pytest.fixture(scope="module")
def package():
    return facenet_pytorch.MTCNN(keep_all=True, select_largest=False, min_face_size=32)


def resized(width, height):
    return cv2.resize(astronaut(), (width, height), interpolation=cv2.INTER_AREA)


def several_faces():
    """Four astronauts of different sizes in one picture, 640 x 480."""
    canvas = np.full((480, 640, 3), 90, np.uint8)
    face = astronaut()[20:220, 120:320]
    for x, y, side in ((0, 0, 240), (260, 10, 160), (430, 200, 200), (60, 280, 120)):
        canvas[y : y + side, x : x + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return canvas


def numbers(faces):
    return [(face.box_xyxy.tolist(), face.landmarks_xy.tolist(), face.score) for face in faces]


def test_the_astronaut_is_found_and_the_landmarks_are_in_order(detector):
    (faces,) = detector.detect([astronaut()])
    assert len(faces) == 1
    assert faces[0].score > 0.999
    left, top, right, bottom = faces[0].box_xyxy
    assert 165 < left < 190 and 255 < right < 280 and 45 < top < 80 and 160 < bottom < 185
    for (x, y), (part, (x0, y0, x1, y1)) in zip(faces[0].landmarks_xy, PARTS_XYXY.items(), strict=True):
        assert x0 < x < x1 and y0 < y < y1, f"{part} at {x:.0f}, {y:.0f}"


def test_left_and_right_are_the_image_s_own(detector):
    """In the mirrored picture the order of the landmarks follows the image, not the person."""
    (plain,), (mirrored,) = detector.detect([astronaut(), astronaut()[:, ::-1]])
    back = mirrored.landmarks_xy[[1, 0, 2, 4, 3]] * [-1, 1] + [512, 0]
    np.testing.assert_allclose(back, plain.landmarks_xy, atol=4)


@pytest.mark.parametrize("size", [(512, 512), (320, 320), (640, 360), (333, 201), (200, 333)])
def test_equals_the_package_on_one_picture(detector, package, size):
    """Boxes and landmarks to 1e-3 px, scores to 1e-5; the package's boxes start one pixel further in."""
    frame = resized(*size)
    boxes, scores, landmarks = package.detect(frame, landmarks=True)
    (faces,) = detector.detect([frame])
    assert len(faces) == len(boxes) >= 1
    for face, box, score, points in zip(faces, boxes, scores, landmarks, strict=True):
        np.testing.assert_allclose(face.box_xyxy + FIRST_PIXEL, np.array(box, dtype=float), atol=1e-3)
        np.testing.assert_allclose(face.landmarks_xy, np.array(points, dtype=float), atol=1e-3)
        assert face.score == pytest.approx(score, abs=1e-5)


def test_equals_the_package_on_several_faces(detector, package):
    frame = several_faces()
    boxes, _, landmarks = package.detect(frame, landmarks=True)
    (faces,) = detector.detect([frame])
    assert len(faces) == len(boxes) == 4
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)
    order = np.argsort([box[0] for box in boxes])
    ours = sorted(faces, key=lambda face: face.box_xyxy[0])
    for face, index in zip(ours, order, strict=True):
        np.testing.assert_allclose(face.box_xyxy + FIRST_PIXEL, np.array(boxes[index], dtype=float), atol=1e-3)
        np.testing.assert_allclose(face.landmarks_xy, np.array(landmarks[index], dtype=float), atol=1e-3)


def test_a_frame_s_faces_do_not_depend_on_the_others_in_the_call(detector):
    frames = [several_faces(), astronaut(), np.zeros((480, 640, 3), np.uint8), several_faces()[::-1].copy()]
    alone = [numbers(detector.detect([frame])[0]) for frame in frames]
    together = [numbers(faces) for faces in detector.detect(frames)]
    backwards = [numbers(faces) for faces in detector.detect(frames[::-1])][::-1]
    assert alone == together == backwards
    assert len(alone[0]) == 4


def test_the_same_call_gives_the_same_numbers(detector):
    frame = resized(640, 360)
    fresh = MtcnnDetector()
    assert numbers(detector.detect([frame])[0]) == numbers(fresh.detect([frame])[0])


def test_large_frames_are_shrunk_and_faces_scaled_back(detector):
    """The same picture at twice the detector's bound: coordinates double exactly."""
    small = several_faces()
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)  # shrinks back to `small` exactly
    (of_small,), (of_large,) = detector.detect([small]), detector.detect([large])
    assert len(of_large) == 4
    for one, two in zip(of_small, of_large, strict=True):
        np.testing.assert_allclose(two.box_xyxy, one.box_xyxy * 2, rtol=1e-6)
        np.testing.assert_allclose(two.landmarks_xy, one.landmarks_xy * 2, rtol=1e-6)


def test_axes_are_scaled_separately_where_the_bound_rounds():
    """640x359 of 1283x719: width and height shrink by slightly different factors."""
    frame = cv2.resize(several_faces(), (1283, 719), interpolation=cv2.INTER_AREA)
    small = cv2.resize(frame, (640, 359), interpolation=cv2.INTER_AREA)
    detector = MtcnnDetector()
    of_frame, of_small = detector.detect([frame, small])
    assert len(of_frame) >= 3
    for one, two in zip(of_small, of_frame, strict=True):
        np.testing.assert_allclose(two.landmarks_xy, one.landmarks_xy * [1283 / 640, 719 / 359], rtol=1e-6)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_picture_has_no_face(detector, value):
    assert detector.detect([np.full((240, 320, 3), value, np.uint8)]) == [[]]


@pytest.mark.parametrize("shape", [(1, 1), (10, 10), (31, 400), (400, 31), (1, 640), (32, 32), (33, 2000)])
def test_tiny_and_thin_pictures_have_no_face_and_do_not_fail(detector, shape):
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detector.detect([frame]) == [[]]


def test_the_package_itself_fails_on_tiny_pictures(package):
    """Why the cascade is ours; should this ever pass, the reason is gone."""
    with pytest.raises((RuntimeError, ValueError), match="non-empty"):
        package.detect(np.zeros((10, 10, 3), np.uint8))


def test_a_proposal_outside_of_the_frame_is_dropped(detector):
    """The package's cascade loses step between boxes and crops here."""
    from qadprep.faces.mtcnn import _cropped

    image = torch.rand(1, 3, 50, 60) * 255
    boxes = torch.tensor([[70.0, 10, 90, 30], [5, 5, 25, 25], [10, -40, 30, -5], [-8, -8, 12, 12]])
    kept, crops = _cropped(image, boxes, 24)
    assert kept.tolist() == [[5, 5, 25, 25], [-8, -8, 12, 12]]
    expected = torch.nn.functional.interpolate(image[:, :, 4:25, 4:25], size=(24, 24), mode="area")
    torch.testing.assert_close(crops[:1], (expected - 127.5) / 128)
    kept, crops = _cropped(image, boxes[:1], 24)
    assert len(kept) == 0 and crops.shape == (0, 3, 24, 24)


def test_mixed_sizes_and_no_frames(detector):
    assert detector.detect([]) == []
    lengths = [len(faces) for faces in detector.detect([astronaut(), resized(200, 200), several_faces()])]
    assert lengths == [1, 1, 4]


def test_a_face_cut_by_the_border_may_reach_over_it(detector):
    (faces,) = detector.detect([astronaut()[:, 205:]])
    assert faces == [] or faces[0].box_xyxy[0] < 10


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((64, 64), np.uint8), r"frame 0: expected uint8 \(height, width, 3\) RGB, got uint8 \(64, 64\)"),
        (np.zeros((64, 64, 3), np.float32), r"got float32 \(64, 64, 3\)"),
        (np.zeros((64, 64, 4), np.uint8), r"got uint8 \(64, 64, 4\)"),
        (np.zeros((0, 64, 3), np.uint8), r"got uint8 \(0, 64, 3\)"),
        ([[1, 2, 3]], "got list"),
    ],
)
def test_other_input_is_refused(detector, frame, message):
    with pytest.raises(ValueError, match=message):
        detector.detect([frame])


def test_identity_names_all_that_decides(detector):
    identity = detector.identity()
    assert identity["name"] == "mtcnn"
    assert identity["package"] == "facenet-pytorch 2.5.3"
    assert len(identity["weights_sha256"]) == 64
    assert identity == MtcnnDetector().identity()
    for changed in (
        MtcnnDetector(min_face_px=40),
        MtcnnDetector(long_side_px=800),
        MtcnnDetector(thresholds=(0.7, 0.7, 0.7)),
        MtcnnDetector(factor=0.8),
    ):
        assert changed.identity() != identity
    assert all(isinstance(value, str | float | int) for value in identity.values())


@pytest.mark.parametrize("wrong", [{"min_face_px": 5}, {"long_side_px": 4}, {"factor": 1.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        MtcnnDetector(**wrong)


def test_min_face_px_is_respected():
    frame = resized(300, 300)  # a face of about 65 px
    assert len(MtcnnDetector(min_face_px=40).detect([frame])[0]) == 1
    assert MtcnnDetector(min_face_px=240).detect([frame]) == [[]]


def pictures():
    """The astronaut, and the first frames of the real clips that QAD_REAL_CLIPS may name."""
    frames = [astronaut()]
    for clip in sorted(Path(os.environ.get("QAD_REAL_CLIPS", os.devnull)).glob("*.mp4"))[:6]:
        with av.open(str(clip)) as container:
            frames.append(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    return frames


def test_landmarks_are_arranged_as_in_a_face(detector):
    for faces in detector.detect(pictures()):
        assert faces
        left_eye, right_eye, nose, left_mouth, right_mouth = faces[0].landmarks_xy
        assert left_eye[1] < left_mouth[1] and right_eye[1] < right_mouth[1]
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert faces[0].box_xyxy[0] < nose[0] < faces[0].box_xyxy[2]
