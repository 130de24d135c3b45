"""Which detector runs, and why; and that asking costs no heavy import."""

import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch

import qadprep.faces as faces
from qadprep.errors import UserError
from qadprep.faces import choose_detector, make_detector
from qadprep.faces.base import Face
from qadprep.faces.weights import RETINAFACE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("QADPREP_CACHE", str(folder))
    return folder


@pytest.fixture
def without_package(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(faces.metadata, "version", version)


def test_auto_without_weights_is_mtcnn_and_says_where_they_belong(cache):
    name, why = choose_detector()
    assert name == "mtcnn"
    assert str(cache / RETINAFACE.file_name) in why and "using MTCNN" in why and "--weights FILE" in why


def test_auto_with_cached_weights_is_retinaface(cache):
    (cache / RETINAFACE.file_name).touch()
    name, why = choose_detector("auto")
    assert name == "retinaface" and str(cache / RETINAFACE.file_name) in why


def test_auto_with_given_weights_is_retinaface(tmp_path):
    weights = tmp_path / "mine.pth"
    weights.touch()
    name, why = choose_detector("auto", weights)
    assert name == "retinaface" and str(weights) in why


def test_auto_without_the_package_is_mtcnn(without_package, tmp_path):
    (tmp_path / "w.pth").touch()
    for weights in (None, tmp_path / "w.pth"):
        name, why = choose_detector("auto", weights)
        assert name == "mtcnn"
        assert "pip install --no-deps retinaface-pytorch==0.0.8" in why


def test_names_given_are_taken(cache):
    assert choose_detector("mtcnn") == ("mtcnn", "using MTCNN, as asked")
    name, why = choose_detector("retinaface")
    assert name == "retinaface" and "downloaded to" in why


def test_retinaface_without_the_package_names_the_command(without_package):
    for ask in (choose_detector, make_detector):
        with pytest.raises(UserError, match=r"pip install --no-deps retinaface-pytorch==0\.0\.8"):
            ask("retinaface")


def test_wrong_choices_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"unknown detector 'dlib': expected one of auto, mtcnn, retinaface"):
        choose_detector("dlib")
    with pytest.raises(UserError, match=r"--weights .*none\.pth: no such file"):
        choose_detector("retinaface", tmp_path / "none.pth")
    (tmp_path / "w.pth").touch()
    with pytest.raises(UserError, match="mtcnn, which brings its own"):
        choose_detector("mtcnn", tmp_path / "w.pth")


def test_make_detector_makes_what_was_chosen(cache):
    assert make_detector("auto").name == "mtcnn"
    assert make_detector("mtcnn", device="cpu").detect([np.zeros((40, 40, 3), np.uint8)]) == [[]]


def test_make_retinaface_from_given_weights(tmp_path):
    from qadprep.faces.retinaface import build_network

    torch.save(build_network().state_dict(), tmp_path / "w.pth")
    assert make_detector("auto", tmp_path / "w.pth").name == "retinaface"


def test_make_retinaface_tries_the_download(monkeypatch, cache):
    import dataclasses

    unreachable = dataclasses.replace(RETINAFACE, url="http://127.0.0.1:9/x.zip")
    monkeypatch.setattr(faces, "RETINAFACE", unreachable)
    with pytest.raises(UserError, match=r"cannot download RetinaFace weights from http://127\.0\.0\.1:9/x\.zip"):
        make_detector("retinaface")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu0", "cuda:99", ""])
def test_wrong_devices_are_one_line(device):
    with pytest.raises(UserError, match="device"):
        make_detector("mtcnn", device=device)


def test_choosing_loads_neither_torch_nor_opencv():
    code = (
        "import sys; from qadprep.faces import choose_detector; choose_detector(); "
        "print(sorted({'torch', 'cv2', 'facenet_pytorch', 'torchvision', 'safetensors'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("box", "landmarks", "message"),
    [
        ([1, 2, 3], np.zeros((5, 2)), r"box \(4,\) and landmarks \(5, 2\), got \(3,\) and \(5, 2\)"),
        ([1, 2, 3, 4], np.zeros((2, 5)), r"got \(4,\) and \(2, 5\)"),
        ([1, 2, np.nan, 4], np.zeros((5, 2)), "finite"),
        ([5, 2, 5, 4], np.zeros((5, 2)), "with an area"),
    ],
)
def test_a_face_checks_itself(box, landmarks, message):
    with pytest.raises(ValueError, match=message):
        Face(box, landmarks, 0.5)


def test_a_face_holds_float32_and_is_itself_only():
    one, two = (Face([0, 0, 3, 12], [[0, 1]] * 5, 1) for _ in range(2))
    assert one.box_xyxy.dtype == one.landmarks_xy.dtype == np.float32
    assert one.side_px == 6
    assert one == one and one != two and len({one, two}) == 2
