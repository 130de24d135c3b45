"""Checks of `qadprep doctor`: ffmpeg, PyAV, detectors and their weights, CUDA."""

import base64
import io
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from qadprep.doctor import FAIL, OK, WARN, Check, check
from qadprep.errors import UserError
from qadprep.video.ffmpeg import FfmpegError, ffmpeg_exe, too_old, version_line

_FFMPEG = "apt install ffmpeg, or pip install imageio-ffmpeg, or set QADPREP_FFMPEG to a build of 5.1 or newer"
_X264 = "set QADPREP_FFMPEG to a build with libx264, or unset it and pip install imageio-ffmpeg"
_MTCNN = "pip install --force-reinstall --no-deps facenet-pytorch==2.5.3"
_RETINAFACE = "pip install --no-deps retinaface-pytorch==0.0.8"
_NVIDIA_DEVICE = Path("/dev/nvidiactl")
# One picture of 16x16 px in the colour below, H.264 High 4:4:4 Predictive, yuv444p.
_SAMPLE_444 = "AAAAAWf0AAqRmyvYCIAAAAMAgAAAGQeJEssAAAABaOvgZxEhEAAAAWWIhAH//vfA/wKbVLwfgUuVYPwKbXR4oQ=="
_SAMPLE_RGB = (192, 32, 64)


def checks() -> list[Check]:
    """All checks of this module."""
    return [
        check_ffmpeg(),
        check_encoders(),
        check_encoding(),
        check_decoding(),
        check_mtcnn(),
        check_retinaface(),
        check_cuda(),
        check_nvdec(),
    ]


@check("ffmpeg", _FFMPEG)
def check_ffmpeg() -> tuple[str, ...]:
    """The program that runs, and its version."""
    try:
        program = ffmpeg_exe()
    except UserError as error:
        return FAIL, str(error), _FFMPEG
    line = version_line(program)
    if not line.startswith("ffmpeg version "):
        return FAIL, f"{program} does not tell its version ({line!r}): it is not ffmpeg", _FFMPEG
    if too_old(line):
        return FAIL, f"{program}: {line.split(' Copyright')[0]} is older than 5.1", _FFMPEG
    return OK, f"{program}, {line.removeprefix('ffmpeg ').split(' Copyright')[0]}"


@check("x264 in ffmpeg", _X264)
def check_encoders() -> tuple[str, ...]:
    """The two encoders that make qualities: libx264 for c23 and c40, libx264rgb for a lossless raw."""
    command = [ffmpeg_exe(), "-hide_banner", "-encoders"]
    listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    names = {words[1] for line in listed.stdout.splitlines() if len(words := line.split()) > 1}
    missing = [name for name in ("libx264", "libx264rgb") if name not in names]
    if missing:
        return FAIL, f"{command[0]} has no encoder {' and no '.join(missing)}", _X264
    return OK, "libx264, libx264rgb"


@check("encoding", _X264)
def check_encoding() -> tuple[str, ...]:
    """Two frames through each encoder, and back: a build may list what it cannot do."""
    import av
    import numpy as np

    from qadprep.video.encode import write_compressed, write_raw

    frames = [np.full((32, 48, 3), value, np.uint8) for value in (60, 180)]
    with tempfile.TemporaryDirectory(prefix="qadprep-doctor-") as folder:
        raw, c40 = Path(folder) / "raw.mp4", Path(folder) / "c40.mp4"
        try:
            write_raw(frames, raw, 25)
            write_compressed(frames, c40, 25, 40)
        except FfmpegError as error:
            return FAIL, f"{ffmpeg_exe()}: {str(error).replace(folder, '')}", _X264
        for path in (raw, c40):
            with av.open(str(path)) as container:
                back = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            if len(back) != 2:
                return FAIL, f"{ffmpeg_exe()} made {len(back)} frames of 2", _X264
            if path == raw and not all(np.array_equal(a, b) for a, b in zip(back, frames, strict=True)):
                return FAIL, f"{ffmpeg_exe()}: lossless encoding gives other pixels back", _X264
    return OK, "two frames each with libx264rgb and libx264"


@check("decoding 4:4:4", "pip install --force-reinstall --only-binary av av")
def check_decoding() -> tuple[str, ...]:
    """PyAV on a picture of the kind that FF++'s c23 and c40 files hold."""
    import av
    import numpy as np

    with av.open(io.BytesIO(base64.b64decode(_SAMPLE_444)), format="h264") as container:
        pictures = [(frame.format.name, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    libraries = ".".join(map(str, av.library_versions["libavcodec"]))
    found = f"PyAV {av.__version__}, libavcodec {libraries}"
    right = len(pictures) == 1 and pictures[0][0] == "yuv444p" and pictures[0][1].shape == (16, 16, 3)
    if not right or np.abs(pictures[0][1].astype(int) - _SAMPLE_RGB).max() > 4:
        return FAIL, f"{found}: an H.264 4:4:4 picture comes out wrong", "pip install --force-reinstall 'av>=18'"
    return OK, found


@check("MTCNN", _MTCNN)
def check_mtcnn() -> tuple[str, ...]:
    """Its weights lie in facenet-pytorch's wheel; they are loaded and run once."""
    import numpy as np

    from qadprep.faces import make_detector

    detector = make_detector("mtcnn")
    detector.detect([np.zeros((96, 96, 3), np.uint8)])
    identity = detector.identity()
    return OK, f"{identity['package']}, weights {str(identity['weights_sha256'])[:9]}..."


@check("RetinaFace", _RETINAFACE)
def check_retinaface() -> tuple[str, ...]:
    """Its package, and its weights in the cache; without them MTCNN is used."""
    from qadprep.faces import weights

    try:
        package = f"retinaface-pytorch {metadata.version('retinaface-pytorch')}"
    except metadata.PackageNotFoundError:
        return WARN, "retinaface-pytorch is not installed: MTCNN is used", _RETINAFACE
    path = weights.cached_weights()
    if not path.is_file():
        mend = f"`extract --detector retinaface` downloads them, or put {weights.RETINAFACE.url} there yourself"
        return WARN, f"{package}; no weights at {path}: MTCNN is used", mend
    try:
        weights.fetch(weights.RETINAFACE)
    except UserError as error:
        return FAIL, str(error), f"delete {path}; `extract --detector retinaface` downloads it again"
    return OK, f"{package}, weights {weights.RETINAFACE.sha256_prefix}... at {path}"


@check("CUDA", "install the NVIDIA driver and a CUDA build of torch, or stay with --device cpu")
def check_cuda() -> tuple[str, ...]:
    """Graphics processors that detectors may run on; a machine without one is whole."""
    import torch

    driver = _driver()
    if torch.cuda.is_available():
        cards = []
        for number in range(torch.cuda.device_count()):
            if fault := _cuda_fault(number):
                mend = "install a torch whose CUDA knows this card (pytorch.org, Get Started), or --device cpu"
                return (
                    WARN,
                    f"cuda:{number} is there, but torch {torch.__version__} cannot compute on it: {fault}",
                    mend,
                )
            facts = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            cards.append(f"cuda:{number} {facts.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
        return OK, f"{'; '.join(cards)}; driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    if driver is None and not _NVIDIA_DEVICE.exists():
        return OK, "cpu only: no NVIDIA GPU here"
    if torch.version.cuda is None:
        mend = "pip install torch from the CUDA index that fits the driver (pytorch.org, Get Started), or --device cpu"
        return WARN, f"cpu only: driver {driver or 'unknown'} is here, but torch {torch.__version__} has no CUDA", mend
    mend = f"update the driver, or install a torch for an older CUDA than {torch.version.cuda}; look at nvidia-smi"
    return WARN, f"driver {driver or 'unknown'}, but torch {torch.__version__} cannot use the GPU", mend


@check("NVDEC", "nothing to do: it is not used")
def check_nvdec() -> tuple[str, ...]:
    """Said once, since it is often looked for."""
    return OK, "not used: it does not decode the 4:4:4 H.264 of FF++'s files; the processor's cores do"


def _cuda_fault(number: int) -> str | None:
    """Why torch cannot compute on a card it sees, such as one that is newer than its kernels; None when it can."""
    import torch

    try:
        right = float((torch.ones(4, device=f"cuda:{number}") * 2).sum()) == 8
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None if right else "4 x 2 is not 8 there"


def _driver() -> str | None:
    """Version of the NVIDIA driver as nvidia-smi tells it, or None."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else None
