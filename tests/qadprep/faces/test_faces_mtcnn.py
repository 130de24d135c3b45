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

from qadprep.errors import UserError
from qadprep.faces.cascade import clipped, enlarged
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


def test_large_frames_are_shrunk_and_faces_scaled_back():
    """The same picture at twice the detector's bound: without a look at the full frame, coordinates double exactly."""
    detector = MtcnnDetector(refine=False)
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
    detector = MtcnnDetector(refine=False)
    of_frame, of_small = detector.detect([frame, small])
    assert len(of_frame) >= 3
    for one, two in zip(of_small, of_frame, strict=True):
        np.testing.assert_allclose(two.landmarks_xy, one.landmarks_xy * [1283 / 640, 719 / 359], rtol=1e-6)


def test_the_last_look_at_the_full_frame_is_that_of_detection_there():
    """A face of which the small picture shows nothing but its place: landmarks come from the full frame."""
    frame = cv2.resize(several_faces(), (1920, 1440), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.resize(
        cv2.resize(frame, (640, 480), interpolation=cv2.INTER_AREA), (1920, 1440), interpolation=cv2.INTER_NEAREST
    )
    refining, plain = MtcnnDetector(), MtcnnDetector(refine=False)
    (at_full,) = MtcnnDetector(long_side_px=1920, min_face_px=96).detect([frame])
    (refined,), (shrunk,) = refining.detect([frame]), plain.detect([frame])
    assert len(at_full) == len(refined) == len(shrunk) == 4

    def distances_px(faces):
        centres = [np.mean([face.landmarks_xy for face in one], axis=1) for one in (at_full, faces)]
        nearest = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2).argmin(axis=1)
        return [
            np.linalg.norm(at_full[i].landmarks_xy - faces[k].landmarks_xy, axis=1).mean()
            for i, k in enumerate(nearest)
        ]

    assert np.mean(distances_px(refined)) < 0.8 * np.mean(distances_px(shrunk))
    # The two stages before see the same in both, and without the option the full frame is not looked at.
    assert np.array_equal(plain.shrink(frame).small_rgb, plain.shrink(blurred).small_rgb)
    assert numbers(plain.detect([blurred])[0]) == numbers(shrunk)
    assert numbers(refining.detect([blurred])[0]) != numbers(refined)


def test_refinement_leaves_frames_alone_that_were_not_shrunk(detector):
    frame = several_faces()
    assert numbers(detector.detect([frame])[0]) == numbers(MtcnnDetector(refine=False).detect([frame])[0])


def test_the_last_look_reaches_the_border_of_the_full_frame():
    """Axes shrunk by different factors, faces cut by all borders: windows are clipped, nothing fails."""
    frame = cv2.resize(astronaut()[40:180, 150:290], (1283, 719), interpolation=cv2.INTER_AREA)
    (faces,) = MtcnnDetector().detect([frame])
    assert all(np.isfinite(face.box_xyxy).all() for face in faces)
    wide = cv2.copyMakeBorder(cv2.resize(astronaut(), (1024, 1024)), 0, 0, 0, 1500, cv2.BORDER_CONSTANT)
    (faces,) = MtcnnDetector().detect([wide[80:400, 330:]])
    assert len(faces) == 1 and faces[0].score > 0.9


@pytest.fixture(scope="module")
def batched():
    """What runs on CUDA, on the CPU: several frames a pass, passes of a fixed size."""
    return MtcnnDetector(batched=True)


def test_batched_equals_one_by_one(detector, batched):
    """Boxes and landmarks to 1e-3 px, scores to 1e-5, over sizes with 0, 1 and 4 faces, shrunk and not."""
    frames = [several_faces(), astronaut(), resized(1000, 900), np.zeros((480, 640, 3), np.uint8), resized(20, 20)]
    frames += [several_faces()[:, ::-1].copy(), resized(1000, 900)[:, ::-1].copy()]
    one, many = detector.detect(frames), batched.detect(frames)
    assert [len(faces) for faces in one] == [len(faces) for faces in many] == [4, 1, 1, 0, 0, 4, 1]
    for a, b in zip((f for fs in one for f in fs), (f for fs in many for f in fs), strict=True):
        np.testing.assert_allclose(a.box_xyxy, b.box_xyxy, rtol=0, atol=1e-3)
        np.testing.assert_allclose(a.landmarks_xy, b.landmarks_xy, rtol=0, atol=1e-3)
        assert a.score == pytest.approx(b.score, abs=1e-5)


def test_batched_is_bit_identical_for_any_composition_of_the_call(batched):
    """More frames than a pass takes, so that each is looked at in other places beside other frames."""
    shifted = [np.roll(several_faces(), shift, axis=1) for shift in (0, 11, 23, 40)]
    frames = [*shifted, np.zeros((480, 640, 3), np.uint8), resized(640, 480), *(f[::-1].copy() for f in shifted)]
    alone = [numbers(batched.detect([frame])[0]) for frame in frames]
    assert sum(map(len, alone)) >= 15
    assert [numbers(faces) for faces in batched.detect(frames)] == alone
    assert [numbers(faces) for faces in batched.detect(frames[::-1])][::-1] == alone
    rng = np.random.default_rng(3)
    order = rng.permutation(len(frames))[:7]
    assert [numbers(faces) for faces in batched.detect([frames[i] for i in order])] == [alone[i] for i in order]


def test_more_proposals_than_a_pass_takes(monkeypatch, detector):
    """Passes of 5 crops: parts are put together in order, and the last one's filling is cut off."""
    from qadprep.faces import mtcnn

    monkeypatch.setattr(mtcnn, "_PADDED_CROPS_24", 5)
    monkeypatch.setattr(mtcnn, "_PADDED_CROPS_48", 3)
    (faces,), (expected,) = MtcnnDetector(batched=True).detect([several_faces()]), detector.detect([several_faces()])
    assert len(faces) == 4
    for a, b in zip(faces, expected, strict=True):
        np.testing.assert_allclose(a.landmarks_xy, b.landmarks_xy, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_for_cuda(precision):
    with pytest.raises(UserError, match=f"precision {precision} needs a CUDA device, got cpu: use --precision fp32"):
        MtcnnDetector(precision=precision)
    with pytest.raises(UserError, match="unknown precision 'int8': expected one of fp32, fp16, bf16"):
        MtcnnDetector(precision="int8")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_finds_the_same_face(monkeypatch, precision):
    """As on CUDA: the networks under autocast, everything else in float32. Landmarks within 2 px of a 90 px face."""
    from qadprep.faces import passes

    detector = MtcnnDetector()
    (expected,) = detector.detect([astronaut()])
    dtypes = []
    monkeypatch.setattr(detector._passes, "_half", {"fp16": torch.float16, "bf16": torch.bfloat16}[precision])
    detector._onet.conv1.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    (faces,) = detector.detect([astronaut()])
    assert dtypes == [detector._passes._half] and precision in passes.PRECISIONS
    assert len(faces) == 1
    np.testing.assert_allclose(faces[0].landmarks_xy, expected[0].landmarks_xy, atol=2)


def test_precision_is_part_of_the_identity_unless_it_is_full(detector):
    other = MtcnnDetector()
    other._precision = "fp16"
    assert "precision" not in detector.identity()
    assert other.identity() == {**detector.identity(), "precision": "fp16"}


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


def test_a_proposal_outside_of_the_frame_is_dropped():
    """The package's cascade loses step between boxes and crops here."""
    boxes = torch.tensor([[70.0, 10, 90, 30], [5, 5, 25, 25], [10, -40, 30, -5], [-8, -8, 12, 12]])
    kept, windows = clipped(boxes, (60, 50))
    assert kept.tolist() == [[5, 5, 25, 25], [-8, -8, 12, 12]]
    assert windows.tolist() == [[4, 4, 25, 25], [0, 0, 12, 12]]
    kept, windows = clipped(boxes[:1], (60, 50))
    assert kept.shape == windows.shape == (0, 4)


def test_boxes_are_enlarged_by_their_edges():
    """Pixels count from 1: the first pixel of the small picture becomes the first two of the full one."""
    assert enlarged(torch.tensor([[1.0, 1, 1, 1], [3, 5, 10, 12]]), (2.0, 3.0)).tolist() == [
        [1, 1, 2, 3],
        [5, 13, 20, 36],
    ]


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
        MtcnnDetector(refine=False),
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
