"""`qadprep doctor`: on this machine as it is, and with one thing broken at a time."""

import collections
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qadprep import doctor as doctor_module
from qadprep import doctor_machine as machine
from qadprep import doctor_video as video
from qadprep.doctor import Check, check, check_opencv, check_optional, check_packages, check_python, doctor
from qadprep.faces.weights import RETINAFACE, cached_weights
from qadprep.video import ffmpeg

LISTED = " V....D libx264  H.264\n V....D libx264rgb  H.264 RGB\n"


@pytest.fixture(autouse=True)
def forget_ffmpeg() -> Iterator[None]:
    """Which ffmpeg runs is remembered; not from test to test."""
    ffmpeg.ffmpeg_exe.cache_clear()
    yield
    ffmpeg.ffmpeg_exe.cache_clear()


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QADPREP_CACHE", str(tmp_path / "cache"))
    return cached_weights()


def program(folder: Path, script: str, name: str = "ffmpeg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def lying_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, encoders: str, then: str) -> Path:
    """A script that answers -version and -encoders as it is told."""
    path = program(
        folder,
        f'case "$*" in\n-version) echo "{version}";;\n*-encoders) echo "{encoders}";;\n*) {then};;\nesac',
    )
    monkeypatch.setenv("QADPREP_FFMPEG", str(path))
    ffmpeg.ffmpeg_exe.cache_clear()
    return path


def distribution(folder: Path, name: str, version: str) -> None:
    """An installed distribution as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_this_machine_is_fit(tmp_path: Path, no_weights: Path) -> None:
    result = doctor(tmp_path / "not" / "there" / "yet")
    # How full the machine is, is not for the test to say.
    assert {entry.name for entry in result.checks if entry.state == "fail"} <= {"disk", "memory"}, result.as_dict()
    names = [entry.name for entry in result.checks]
    assert len(set(names)) == len(names) == 19
    by = {entry.name: entry for entry in result.checks}
    assert by["Python"].found.startswith("3.") and "torch 2." in by["packages"].found
    assert "encoding" in by and by["encoding"].state == "ok"
    assert "libavcodec" in by["decoding 4:4:4"].found and "facenet-pytorch 2.5.3" in by["MTCNN"].found
    assert by["NVDEC"].state == "ok" and "4:4:4" in by["NVDEC"].found
    assert all(entry.mend for entry in result.checks if entry.state != "ok")
    assert list(tmp_path.iterdir()) == []  # looked at, and left as it was


def test_the_command(tmp_path: Path) -> None:
    environment = os.environ | {"QADPREP_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "qadprep", "doctor", "--out", str(tmp_path)]
    fine = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    facts = json.loads(fine.stdout)
    assert fine.returncode == (facts["fail"] > 0), fine.stderr
    assert facts["ok"] + facts["warn"] + facts["fail"] == len(facts["checks"]) == 19
    environment["QADPREP_FFMPEG"] = str(tmp_path / "nothing")
    broken = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert broken.returncode == 1 and "failed" in broken.stderr
    shown = " ".join(broken.stdout.replace("│", " ").split())
    assert "ffmpeg fail QADPREP_FFMPEG names" in shown and "apt install ffmpeg" in shown


def test_it_runs_where_nothing_else_does(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'torch', 'torchvision', 'cv2', 'av', 'pyarrow', 'facenet_pytorch', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from qadprep.cli import main\n"
        f"main(['doctor', '--json', '--out', {str(tmp_path)!r}])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    failed = {c["name"]: c for c in json.loads(result.stdout)["checks"] if c["state"] == "fail"}
    assert set(failed) >= {"OpenCV", "encoding", "decoding 4:4:4", "MTCNN", "CUDA"}
    assert failed["MTCNN"]["mend"] == "pip install --force-reinstall --no-deps facenet-pytorch==2.5.3"
    assert "Traceback" not in result.stderr


def test_a_check_never_raises() -> None:
    @check("odd", "turn it off and on again")
    def odd() -> tuple[str, ...]:
        raise RuntimeError("a line\nand another")

    @check("silent", "x")
    def silent() -> tuple[str, ...]:
        raise RuntimeError

    assert odd() == Check("odd", "fail", "RuntimeError: a line and another", "turn it off and on again")
    assert silent().found == "RuntimeError"


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module.sys, "version_info", (3, 10, 4, "final", 0))
    assert check_python() == Check("Python", "fail", "3.10.4", "install Python 3.11 or newer")


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"av": "13.1.0", "facenet-pytorch": "2.5.3", "numpy": "2.1", "pyarrow": "17.0.0", "torch": None}
    monkeypatch.setattr(doctor_module, "_version", versions.get)
    result = check_packages()
    assert result.state == "fail" and "av 13.1.0" in result.found and "torch missing" in result.found
    assert result.mend == "pip install 'av>=18' 'torch>=2.4'"


def test_version_numbers() -> None:
    assert doctor_module._numbers("2.15.0+cu130") == (2, 15, 0)
    assert doctor_module._numbers("2.6.0a0") == (2, 6, 0)
    assert doctor_module._numbers("3.0.dev1") == (3, 0)
    assert (2, 10) > (2, 4) and doctor_module._numbers("2.10") > (2, 4)


def test_two_opencv_distributions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, "opencv-python", "4.10.0.84")
    result = check_opencv()
    assert result.state == "fail"
    assert "opencv-python 4.10.0.84 and opencv-python-headless" in result.found and "overwrite" in result.found
    assert result.mend == (
        "pip uninstall -y opencv-python opencv-python-headless, then pip install opencv-python-headless"
    )


def test_no_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_version", lambda name: None)
    assert check_opencv().state == "fail" and check_opencv().mend == "pip install opencv-python-headless"


def test_optional_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = check_optional("s3", "stores", ("qadprep-nothing", "numpy"), "s3://...", "s3")
    assert (absent.state, absent.found) == ("ok", "qadprep-nothing not installed")
    assert absent.mend == "only for s3://...: pip install 'qadprep[s3]'"
    there = check_optional("x", "x", ("numpy",), "x", "x")
    assert there.state == "ok" and there.found.startswith("numpy ") and not there.mend
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, "qadprep-hollow", "1.0")
    hollow = check_optional("x", "x", ("qadprep-hollow",), "x", "x")
    assert (hollow.state, hollow.mend) == ("warn", "pip install --force-reinstall qadprep-hollow")


def test_no_ffmpeg_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QADPREP_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    result = video.check_ffmpeg()
    assert result.state == "fail" and "no ffmpeg found" in result.found
    assert result.mend.startswith("apt install ffmpeg, or pip install imageio-ffmpeg")
    assert video.check_encoders().state == video.check_encoding().state == "fail"


def test_an_ffmpeg_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lying_ffmpeg(tmp_path, monkeypatch, "ffmpeg version 4.4.2-0ubuntu0 Copyright", LISTED, "exit 0")
    result = video.check_ffmpeg()
    assert result.state == "fail" and "older than 5.1" in result.found and "5.1 or newer" in result.mend


def test_a_program_that_is_no_ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lying_ffmpeg(tmp_path, monkeypatch, "gimp 3.0", LISTED, "exit 0")
    result = video.check_ffmpeg()
    assert result.state == "fail" and "does not tell its version ('gimp 3.0')" in result.found
    path = tmp_path / "noexec"
    path.write_bytes(b"\x7fELF not really")
    path.chmod(0o755)
    monkeypatch.setenv("QADPREP_FFMPEG", str(path))
    ffmpeg.ffmpeg_exe.cache_clear()
    assert video.check_ffmpeg().state == "fail" and "QADPREP_FFMPEG" in video.check_ffmpeg().mend


def test_an_ffmpeg_without_x264(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lying_ffmpeg(tmp_path, monkeypatch, "ffmpeg version 7.1", " V....D libx264  H.264\n V....D mpeg4 x\n", "exit 0")
    result = video.check_encoders()
    assert result.state == "fail" and result.found.endswith("has no encoder libx264rgb")
    assert result.mend == "set QADPREP_FFMPEG to a build with libx264, or unset it and pip install imageio-ffmpeg"


@pytest.mark.parametrize("then", ["exit 0", 'echo "[libx264 @ 0x5] broken" >&2; echo "no such codec" >&2; exit 1'])
def test_an_ffmpeg_that_lists_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, then: str
) -> None:  # fmt: skip
    lying_ffmpeg(tmp_path, monkeypatch, "ffmpeg version 7.1", LISTED, then)
    assert video.check_ffmpeg().state == video.check_encoders().state == "ok"
    result = video.check_encoding()
    assert result.state == "fail" and result.mend.startswith("set QADPREP_FFMPEG to a build with libx264")
    assert then == "exit 0" or "no such codec" in result.found


def test_a_decoder_that_gives_other_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert video.check_decoding().state == "ok"
    monkeypatch.setattr(video, "_SAMPLE_RGB", (32, 192, 64))
    result = video.check_decoding()
    assert result.state == "fail" and result.mend == "pip install --force-reinstall 'av>=18'"
    monkeypatch.setattr(video, "_SAMPLE_444", "AAAAAQ==")
    assert video.check_decoding().state == "fail"


def test_mtcnn_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import facenet_pytorch.models.mtcnn

    assert video.check_mtcnn().state == "ok"
    monkeypatch.setattr(facenet_pytorch.models.mtcnn, "__file__", str(tmp_path / "models" / "mtcnn.py"))
    result = video.check_mtcnn()
    assert result.state == "fail" and "pnet.pt" in result.found
    assert result.mend == "pip install --force-reinstall --no-deps facenet-pytorch==2.5.3"


def test_retinaface_without_weights_or_with_wrong_ones(no_weights: Path) -> None:
    missing = video.check_retinaface()
    assert missing.state == "warn" and str(no_weights) in missing.found and RETINAFACE.url in missing.mend
    no_weights.parent.mkdir()
    no_weights.write_bytes(b"half a download")
    wrong = video.check_retinaface()
    assert wrong.state == "fail" and "expected f168fae3c..., got" in wrong.found
    assert wrong.mend == f"delete {no_weights}; `extract --detector retinaface` downloads it again"


def test_retinaface_with_its_weights(monkeypatch: pytest.MonkeyPatch, no_weights: Path) -> None:
    no_weights.parent.mkdir()
    no_weights.write_bytes(b"weights")
    from qadprep.faces import weights

    digest = weights.sha256_of(no_weights)
    monkeypatch.setattr(weights, "RETINAFACE", weights.Published(**{
        **vars(RETINAFACE), "sha256_prefix": digest[:9],
    }))  # fmt: skip
    result = video.check_retinaface()
    assert result.state == "ok" and digest[:9] in result.found


def test_retinaface_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise video.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(video, "metadata", SimpleNamespace(
        version=version, PackageNotFoundError=video.metadata.PackageNotFoundError,
    ))  # fmt: skip
    result = video.check_retinaface()
    assert (result.state, result.mend) == ("warn", "pip install --no-deps retinaface-pytorch==0.0.8")


def test_cuda_in_its_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(video, "_NVIDIA_DEVICE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (video.check_cuda().state, video.check_cuda().found) == ("ok", "cpu only: no NVIDIA GPU here")
    program(tmp_path, "echo 550.54.15", "nvidia-smi")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(torch.version, "cuda", None)
    without = video.check_cuda()
    assert without.state == "warn" and "driver 550.54.15 is here" in without.found and "pytorch.org" in without.mend
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    unfit = video.check_cuda()
    assert unfit.state == "warn" and "cannot use the GPU" in unfit.found and "older CUDA than 13.0" in unfit.mend
    program(tmp_path, "exit 9", "nvidia-smi")
    assert video.check_cuda().found == "cpu only: no NVIDIA GPU here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name="Toy"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (3 * 2**30, 8 * 2**30))
    monkeypatch.setattr(video, "_cuda_fault", lambda number: "no kernel image is available")
    strange = video.check_cuda()
    assert strange.state == "warn" and strange.found.endswith("cannot compute on it: no kernel image is available")
    assert strange.mend.endswith("--device cpu")
    monkeypatch.setattr(video, "_cuda_fault", lambda number: None)
    assert video.check_cuda().found == "cuda:0 Toy, 3.0 of 8.0 GiB free; driver unknown, CUDA 13.0"


def disk_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 10**12 - free, free))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = machine.check_disk(tmp_path / "file" / "out")
    assert below.state == "fail" and below.found == f"{tmp_path / 'file'} is a file" and "--out" in below.mend
    result = machine.check_disk(Path("/proc/self"))
    assert result.state == "fail" and result.mend


def test_a_folder_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(folder: Path) -> float:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    disk_with(monkeypatch, 10**12)
    monkeypatch.setattr(machine, "_write_speed", refuse)
    result = machine.check_disk(tmp_path)
    assert result.state == "fail" and "cannot be written to (Permission denied)" in result.found
    assert result.mend == f"chown or chmod {tmp_path}, or another --out"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk_with(monkeypatch, 10**6)
    result = machine.check_disk(tmp_path)
    assert (result.state, result.found) == ("fail", f"{tmp_path}: 0.0 GB free")
    assert result.mend == "free some space, or choose another --out"
    disk_with(monkeypatch, 10**12)  # what is free may still be kept for others, or be above a quota

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(machine.os, "fsync", full)
    result = machine.check_disk(tmp_path)
    assert result.state == "fail" and "full while 64 MiB were written" in result.found and "quota" in result.mend
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_small_slow_or_out_of_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_write_speed", lambda folder: 300e6)
    disk_with(monkeypatch, 5 * 10**9)
    small = machine.check_disk(tmp_path)
    assert small.state == "warn" and "5.0 GB free, 300 MB/s" in small.found and "--dry-run" in small.mend
    disk_with(monkeypatch, 10**12)
    assert machine.check_disk(tmp_path).state == "ok"
    monkeypatch.setattr(machine, "_write_speed", lambda folder: 9e6)
    assert machine.check_disk(tmp_path).state == "warn" and "local disk" in machine.check_disk(tmp_path).mend
    monkeypatch.setattr(machine.os, "statvfs", lambda place: SimpleNamespace(f_files=9, f_favail=3))
    nodes = machine.check_disk(tmp_path)
    assert nodes.state == "fail" and "3 inodes left" in nodes.found and "inodes run out" in nodes.mend


def test_a_store_is_not_a_folder() -> None:
    assert "not a local folder" in machine.check_disk(Path("s3://bucket/faces")).found


def test_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.check_temporary().state in ("ok", "warn")
    monkeypatch.setattr(machine.tempfile, "tempdir", str(tmp_path / "gone"))
    gone = machine.check_temporary()
    assert gone.state == "fail" and gone.mend.startswith("set TMPDIR to a folder")
    monkeypatch.setattr(machine.tempfile, "tempdir", str(tmp_path))
    disk_with(monkeypatch, 10**6)
    assert machine.check_temporary().state == "warn"


@pytest.mark.parametrize(
    ("free", "state", "mend"),
    [(None, "ok", ""), (2**30, "fail", "raise the container's limit"), (5 * 2**30, "warn", "--workers 3"),
     (8 * 2**30, "ok", "")],
)  # fmt: skip
def test_memory_for_workers(monkeypatch: pytest.MonkeyPatch, free: int | None, state: str, mend: str) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: free)
    monkeypatch.setattr(machine, "available_cores", lambda: 4)
    result = machine.check_memory()
    assert result.state == state and mend in result.mend
    assert machine.check_cores().found == f"4 of {os.cpu_count()}"


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = machine.resource.RLIM_INFINITY
    for limits, found, mend in (
        ((256, limit), "256 (at most unlimited)", "ulimit -n 1024"),
        ((256, 2048), "256 (at most 2048)", "ulimit -n 2048"),
    ):
        monkeypatch.setattr(machine.resource, "getrlimit", lambda which, limits=limits: limits)
        assert machine.check_open_files() == Check("open files", "warn", found, mend)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (limit, limit))
    assert machine.check_open_files() == Check("open files", "ok", "unlimited")


def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "none").state == "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=64 * 2**20))
    small = machine.check_shared_memory(tmp_path)
    assert small.found.endswith("64 MiB") and "--shm-size" in small.mend
