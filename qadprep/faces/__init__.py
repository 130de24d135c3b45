"""Finding, following and cutting faces.

This module decides which detector runs; it loads torch only when a detector is made.
"""

from importlib import metadata, util
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadprep.faces.base import Detector, Face
from qadprep.faces.weights import RETINAFACE, cached_weights

__all__ = ["DETECTORS", "Detector", "Face", "choose_detector", "make_detector", "settle_device"]

DETECTORS = ("auto", "mtcnn", "retinaface")

_INSTALL = "pip install --no-deps retinaface-pytorch==0.0.8"


def choose_detector(name: str = "auto", weights: Path | None = None) -> tuple[str, str]:
    """Settle which detector runs, without loading or downloading anything.

    name: "mtcnn", "retinaface", or "auto": RetinaFace where its package is installed and its weights are at
        hand (`weights`, or the cache folder), MTCNN otherwise.
    weights: a file with RetinaFace weights.

    Returns ("mtcnn" or "retinaface", a sentence that says which and why). Raises UserError for an unknown
    name, a weights file that does not exist or is given to MTCNN, and for "retinaface" without its package.
    """
    if name not in DETECTORS:
        raise UserError(f"unknown detector {name!r}: expected one of {', '.join(DETECTORS)}")
    if weights is not None and name == "mtcnn":
        raise UserError(
            f"--weights {weights} is for RetinaFace, but the detector is mtcnn, which brings its own weights"
        )
    if weights is not None and not weights.is_file():
        raise UserError(f"--weights {weights}: no such file; expected RetinaFace weights (.zip, .pth or .safetensors)")
    if name == "mtcnn":
        return "mtcnn", "using MTCNN, as asked"
    installed = _retinaface_installed()
    found = weights or (cached_weights() if cached_weights().is_file() else None)
    if name == "retinaface":
        if not installed:
            raise UserError(f"the detector retinaface needs a package that is not installed: {_INSTALL}")
        source = f"weights {found}" if found else f"weights to be downloaded to {cached_weights()}"
        return "retinaface", f"using RetinaFace, as asked ({source})"
    if not installed:
        return "mtcnn", f"the package retinaface-pytorch is not installed ({_INSTALL}); using MTCNN"
    if found is None:
        return "mtcnn", (
            f"RetinaFace weights not found at {cached_weights()}; using MTCNN "
            "(--detector retinaface downloads them, --weights FILE takes your own)"
        )
    return "retinaface", f"using RetinaFace, weights found: {found}"


def settle_device(device: str) -> str:
    """What `auto` stands for: `cuda` where torch sees a GPU, else `cpu`; other names pass through."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make_detector(
    name: str, weights: Path | None = None, device: str = "cpu", *, precision: str = "fp32", **options: Any
) -> Detector:
    """Load the detector that `choose_detector` settles on; downloads RetinaFace's weights where they are
    missing.

    device: "cpu", "cuda" or "cuda:<n>". precision: "fp32", or on CUDA also "fp16" and "bf16", which then are part
    of the identity: fp32 is the default everywhere, so that the same settings give the same faces on any device.
    options: further arguments of the detector's class. Raises UserError as `choose_detector` does, for a device that
    is not there or cannot do the precision, and for weights that cannot be had or do not fit.
    """
    chosen, _ = choose_detector(name, weights)
    _check_device(device)
    if chosen == "mtcnn":
        from qadprep.faces.mtcnn import MtcnnDetector

        return MtcnnDetector(device, precision=precision, **options)
    from qadprep.faces.retinaface import RetinaFaceDetector
    from qadprep.faces.weights import fetch

    return RetinaFaceDetector(weights or fetch(RETINAFACE), device, precision=precision, **options)


def _retinaface_installed() -> bool:
    # Another distribution ("retina-face") has a module of the same name, so the name of this one is asked
    # for.
    try:
        metadata.version("retinaface-pytorch")
    except metadata.PackageNotFoundError:
        return False
    return util.find_spec("retinaface") is not None


def _check_device(device: str) -> None:
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UserError(f"unknown device {device!r}: expected auto, cpu, cuda or cuda:<number>")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
