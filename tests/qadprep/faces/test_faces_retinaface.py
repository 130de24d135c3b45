"""RetinaFace: equality with retinaface-pytorch's own one-picture path on the same random weights, and
weights.

The package's `predict_single` imports albumentations, which is not installed; the three names that it uses
are written here from the description of albumentations 1.0.0, so that the package's own code can judge ours.
"""

import hashlib
import importlib
import sys
import types
import warnings
import zipfile

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from skimage.data import astronaut, coffee

from qadprep.errors import UserError
from qadprep.faces.base import Face
from qadprep.faces.closeup import SIDE_PX, closeups
from qadprep.faces.retinaface import RetinaFaceDetector, anchors_for, build_network, load_weights

LONG_SIDE_PX = 192


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return {"image": image}


class LongestMaxSize:
    def __init__(self, max_size, p):
        assert p == 1
        self.max_size = max_size

    def __call__(self, image):
        height, width = image.shape[:2]
        scale = self.max_size / float(max(height, width))
        if scale == 1.0:
            return image
        size = [self.rounded(side * scale) for side in (width, height)]
        return cv2.resize(image, dsize=size, interpolation=cv2.INTER_LINEAR)

    @staticmethod
    def rounded(number):
        """Halves to even."""
        if abs(round(number) - number) == 0.5:
            return int(2.0 * round(number / 2.0))
        return round(number)


class Normalize:
    def __init__(self, p):
        assert p == 1

    def __call__(self, image):
        mean = np.array((0.485, 0.456, 0.406), dtype=np.float32) * 255.0
        std = np.array((0.229, 0.224, 0.225), dtype=np.float32) * 255.0
        image = image.astype(np.float32)
        image -= mean
        image *= np.reciprocal(std, dtype=np.float32)
        return image


@pytest.fixture(scope="module")
def predict_single():
    """The package's own module, with unrounded results."""
    stand_in = types.ModuleType("albumentations")
    stand_in.Compose, stand_in.LongestMaxSize, stand_in.Normalize = Compose, LongestMaxSize, Normalize
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "albumentations", stand_in)
        patch.delitem(sys.modules, "retinaface.predict_single", raising=False)
        module = importlib.import_module("retinaface.predict_single")
        patch.setattr(module, "ROUNDING_DIGITS", 6)
        yield module
        sys.modules.pop("retinaface.predict_single", None)


@pytest.fixture(scope="module")
def state_dict():
    """Random weights; each head scaled to outputs of unit spread, 1 anchor in 60 above a score of 0.7."""
    torch.manual_seed(7)
    network = build_network().eval()
    outputs = {}
    for heads in (network.BboxHead, network.ClassHead, network.LandmarkHead):
        for head in heads:
            head.conv1x1.bias.data.zero_()
            head.register_forward_hook(lambda head, _, output: outputs.update({head: output}))
    picture = cv2.resize(astronaut(), (LONG_SIDE_PX, LONG_SIDE_PX)).astype(np.float32)
    with torch.no_grad():
        network(torch.from_numpy((picture - 120) / 58).permute(2, 0, 1)[None])
        for head, output in outputs.items():
            spread = output.std()
            head.conv1x1.weight /= spread
            if head in set(network.ClassHead):
                margin = (output[..., 1] - output[..., 0]) / spread
                head.conv1x1.bias.view(-1, 2)[:, 1] = np.log(0.7 / 0.3) - torch.quantile(margin, 1 - 1 / 60)
    return network.state_dict()


@pytest.fixture(scope="module")
def weights_pth(state_dict, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state_dict, path)
    return path


@pytest.fixture(scope="module")
def detector(weights_pth):
    return RetinaFaceDetector(weights_pth, long_side_px=LONG_SIDE_PX, refine=False)


@pytest.fixture(scope="module")
def package(predict_single, state_dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = predict_single.Model(max_size=LONG_SIDE_PX)
    model.load_state_dict(state_dict)
    model.eval()
    return model


def pictures():
    """Sizes that shrink, grow, stay, and round: 512 x 172 becomes 192 x 64.5, which goes to the even 64."""
    face = astronaut()[20:220, 120:320]
    return [
        astronaut(),
        cv2.resize(astronaut(), (512, 172), interpolation=cv2.INTER_AREA),
        astronaut()[::-1].copy(),
        coffee(),
        cv2.resize(face, (LONG_SIDE_PX, LONG_SIDE_PX)),
        cv2.resize(face, (97, 150)),
        cv2.resize(face, (97, 150))[:, ::-1].copy(),
    ]


@pytest.fixture(scope="module")
def expected(package):
    return [package.predict_jsons(frame) for frame in pictures()]


def assert_equal_faces(faces, annotations, tolerance_px):
    annotations = [annotation for annotation in annotations if annotation["bbox"]]
    assert len(faces) == len(annotations)
    for face, annotation in zip(faces, annotations, strict=True):
        np.testing.assert_allclose(face.box_xyxy, annotation["bbox"], rtol=0, atol=tolerance_px)
        np.testing.assert_allclose(face.landmarks_xy, annotation["landmarks"], rtol=0, atol=tolerance_px)
        assert face.score == pytest.approx(annotation["score"], abs=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_package_s_own_path(expected, weights_pth, batch):
    """Several sizes in one call, alone or in batches, to 1e-3 px."""
    detector = RetinaFaceDetector(weights_pth, long_side_px=LONG_SIDE_PX, refine=False, batch=batch)
    found = detector.detect(pictures())
    counts = [len(faces) for faces in found]
    assert sum(counts) >= 40 and max(counts) < 200, counts
    for faces, annotations in zip(found, expected, strict=True):
        assert_equal_faces(faces, annotations, 1e-3)


def test_equals_the_package_at_another_threshold(package, weights_pth):
    detector = RetinaFaceDetector(weights_pth, long_side_px=LONG_SIDE_PX, refine=False, score_least=0.6, nms_iou=0.2)
    (faces,) = detector.detect([astronaut()])
    expected = package.predict_jsons(astronaut(), confidence_threshold=0.6, nms_threshold=0.2)
    assert len(faces) > 10
    assert_equal_faces(faces, expected, 1e-3)


def test_boxes_beyond_the_frame_are_treated_as_the_package_does(package, detector):
    """Offsets of three sizes throw one anchor of each pair left and up, the other right and down: those that
    end left of or above the frame stay, those that begin right of or below it go."""
    thrown = torch.tensor([-30.0, -30, 0, 0, 30, 30, 0, 0])
    heads = [head.conv1x1.bias for net in (package.model, detector._network) for head in net.BboxHead]
    try:
        for bias in heads:
            bias.data += thrown
        (faces,) = detector.detect([astronaut()])
        expected = package.predict_jsons(astronaut())
    finally:
        for bias in heads:
            bias.data.zero_()
    assert any(face.box_xyxy[2] < 0 or face.box_xyxy[3] < 0 for face in faces)
    assert all(face.box_xyxy[0] < 511 and face.box_xyxy[1] < 511 for face in faces)
    assert_equal_faces(faces, expected, 1e-3)


class Bright(torch.nn.Module):
    """A network whose one face is the bright rectangle of the picture: as precise as the pixels it is given."""

    def forward(self, inputs):
        boxes, logits, landmarks = [], [], []
        for picture in inputs:
            height, width = picture.shape[1:]
            anchors = anchors_for(height, width)
            # How much of each row and column is bright tells the edges to a part of a pixel.
            share = ((picture.mean(dim=0) - picture.mean(dim=0).min()) / 4.0).clamp(0, 1)
            rows, columns = share.amax(dim=1), share.amax(dim=0)
            top, left = int((rows > 0.05).nonzero()[0]), int((columns > 0.05).nonzero()[0])
            bottom, right = int((rows > 0.05).nonzero()[-1]) + 1, int((columns > 0.05).nonzero()[-1]) + 1
            box = torch.tensor([left / width, top / height, right / width, bottom / height])
            centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            best = int(((anchors[:, :2] - centre).abs().sum(dim=1) + (anchors[:, 2:] - size).abs().sum(dim=1)).argmin())
            anchor = anchors[best]
            offsets = torch.zeros(len(anchors), 4)
            offsets[best] = torch.cat([(centre - anchor[:2]) / (0.1 * anchor[2:]), torch.log(size / anchor[2:]) / 0.2])
            points = torch.stack([box[:2], box[[2, 1]], centre, box[[0, 3]], box[2:]])
            marks = torch.zeros(len(anchors), 10)
            marks[best] = ((points - anchor[:2]) / (0.1 * anchor[2:])).reshape(10)
            scores = torch.full((len(anchors), 2), 0.0)
            scores[:, 0], scores[best] = 9.0, torch.tensor([0.0, 9.0])
            boxes.append(offsets), logits.append(scores), landmarks.append(marks)
        return torch.stack(boxes), torch.stack(logits), torch.stack(landmarks)


@pytest.mark.parametrize("corner_xy", [(1003, 401), (3, 5), (3710, 1990)])
def test_the_second_look_is_as_fine_as_the_full_frame(weights_pth, monkeypatch, corner_xy):
    """A rectangle in a 4K frame: the first look sees a sixth of the pixels, the second nearly all of them."""
    frame = np.zeros((2160, 3840, 3), np.uint8)
    left, top = corner_xy
    expected = np.array([left, top, left + 121, top + 161], float)
    frame[top : top + 161, left : left + 121] = 250
    found = {}
    for refine in (False, True):
        detector = RetinaFaceDetector(weights_pth, refine=refine)
        monkeypatch.setattr(detector, "_network", Bright())
        (faces,) = detector.detect([frame])
        assert len(faces) == 1
        found[refine] = faces[0]
    off = {refine: np.abs(face.box_xyxy - expected).max() for refine, face in found.items()}
    assert off[True] <= 1.3 < off[False], off
    x0, y0, x1, y1 = expected
    corners = [(x0, y0), (x1, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x0, y1), (x1, y1)]
    np.testing.assert_allclose(found[True].landmarks_xy, corners, atol=1.3)
    assert found[True].score == found[False].score > 0.99


def test_what_the_second_look_leaves_alone(detector):
    frame = np.zeros((1080, 1920, 3), np.uint8)
    points = np.zeros((5, 2))

    def face(side, left=900.0):
        return Face(np.array([left, 300, left + side, 300 + side]), points, 0.9)

    # Of a face that fills the closeup with fewer pixels than the first look had, nothing more is to be seen.
    assert list(closeups(frame, [face(380), face(390)], 1 / 3)) == [0]
    # The largest of a crowd.
    crowd = [face(40 + number) for number in range(20)]
    assert sorted(closeups(frame, crowd, 1 / 3)) == list(range(12, 20))
    # Beyond the frame, or another face than expected: the first look's stays.
    assert closeups(frame, [face(50, left=5000.0)], 1 / 3) == {}
    one = closeups(frame, [face(100)], 1 / 3)[0]
    assert one.rgb.shape == (SIDE_PX, SIDE_PX, 3) and one.scale == SIDE_PX / 200
    assert one.refined([]) is one.face
    assert one.refined([Face(np.array([0, 0, 50, 50]), points, 0.99)]) is one.face


def test_a_frame_s_faces_do_not_depend_on_the_others_in_the_call(detector):
    frames = pictures()

    def numbers(faces):
        return [(face.box_xyxy.tolist(), face.landmarks_xy.tolist(), face.score) for face in faces]

    together = [numbers(faces) for faces in detector.detect(frames)]
    alone = [numbers(detector.detect([frame])[0]) for frame in frames]
    assert together == alone


def test_batches_of_a_fixed_size_are_bit_identical_for_any_composition(weights_pth):
    """As on CUDA: the last batch is filled up, so a frame's place and neighbours do not matter."""
    detector = RetinaFaceDetector(weights_pth, long_side_px=LONG_SIDE_PX, refine=False, batch=3)
    frames = [np.roll(astronaut(), 40 * shift, axis=1) for shift in range(5)]

    def numbers(faces):
        return [(face.box_xyxy.tolist(), face.landmarks_xy.tolist(), face.score) for face in faces]

    alone = [numbers(detector.detect([frame])[0]) for frame in frames]
    assert min(map(len, alone)) > 5
    assert [numbers(faces) for faces in detector.detect(frames)] == alone
    assert [numbers(faces) for faces in detector.detect(frames[::-1])][::-1] == alone


def test_half_precision(weights_pth, detector, monkeypatch):
    """Refused on the CPU; under autocast, as on CUDA, most faces are the same to a pixel."""
    with pytest.raises(UserError, match="precision bf16 needs a CUDA device, got cpu"):
        RetinaFaceDetector(weights_pth, precision="bf16")
    with pytest.raises(UserError, match="unknown precision 'half'"):
        RetinaFaceDetector(weights_pth, precision="half")
    (expected,) = detector.detect([astronaut()])
    half = RetinaFaceDetector(weights_pth, long_side_px=LONG_SIDE_PX, refine=False)
    monkeypatch.setattr(half._passes, "_half", torch.float16)
    half._precision = "fp16"
    assert half.identity() == {**detector.identity(), "precision": "fp16"}
    (found,) = half.detect([astronaut()])
    apart = [min(np.abs(face.box_xyxy - other.box_xyxy).max() for other in found) for face in expected]
    assert 0 < np.median(apart) < 1


def test_best_score_first(detector):
    (faces,) = detector.detect([astronaut()])
    scores = [face.score for face in faces]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0.7


def test_no_frames_thin_frames_and_wrong_frames(detector):
    assert detector.detect([]) == []
    assert detector.detect([np.zeros((1, 2000, 3), np.uint8)]) == [[]]
    with pytest.raises(ValueError, match=r"frame 1: .* got float64 \(5, 5, 3\)"):
        detector.detect([np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5, 3))])


def test_tiny_frames_do_not_fail(detector):
    assert len(detector.detect([np.zeros((1, 1, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)])) == 2


@pytest.mark.parametrize("size", [(192, 192), (171, 256), (256, 9), (33, 250), (640, 360)])
def test_anchors_are_bit_equal_to_the_package_s(size):
    from retinaface.prior_box import priorbox

    expected = priorbox(min_sizes=[[16, 32], [64, 128], [256, 512]], steps=[8, 16, 32], clip=False, image_size=size)
    assert torch.equal(anchors_for(*size), expected)


def test_the_network_is_built_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_network()


def test_identity(detector, weights_pth):
    identity = detector.identity()
    assert identity["name"] == "retinaface"
    assert identity["package"] == "retinaface-pytorch 0.0.8"
    assert identity["weights_sha256"] == hashlib.sha256(weights_pth.read_bytes()).hexdigest()
    assert RetinaFaceDetector(weights_pth).identity() != identity


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_weights_load_from_the_other_forms_too(form, state_dict, weights_pth, tmp_path):
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        safetensors.torch.save_file(state_dict, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(weights_pth, "retinaface_resnet50.pth")
    network = build_network()
    load_weights(network, path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state_dict[name]), name


def test_wrong_names_are_one_clear_line(state_dict, tmp_path):
    path = tmp_path / "other.pth"
    renamed = {f"module.{name}" if name.startswith("fpn") else name: t for name, t in state_dict.items()}
    torch.save(renamed, path)
    with pytest.raises(UserError) as error:
        load_weights(build_network(), path)
    fpn = sum(name.startswith("fpn") for name in state_dict)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert f"{fpn} missing (fpn.merge1.0.weight, " in message
    assert f"{fpn} unexpected (module.fpn.merge1.0.weight, " in message


def test_wrong_shapes_are_one_clear_line(state_dict, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({**state_dict, "ClassHead.0.conv1x1.bias": torch.zeros(6)}, path)
    with pytest.raises(UserError, match=r"1 tensors .* ClassHead.0.conv1x1.bias: expected \(4,\), got \(6,\)"):
        load_weights(build_network(), path)
