"""Facts of a run that its configuration does not say: code, versions, data, command. No host names, no full paths."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadtrain.config import CHANGEABLE_ON_RESUME, Config
from qadtrain.predict_setup import crop_facts

if TYPE_CHECKING:
    from qadprep.shardset import ShardSet

PACKAGES = ("qadprep", "torch", "torchvision", "timm", "torchmetrics", "safetensors", "numpy")
_GIT_TIMEOUT_S = 10


def code_facts(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``{"git": "1a2b3c4d5e6f-dirty", "versions": {...}, "command": "qadtrain fit ..."}`` for run.json.

    Args:
        argv: command line, the program first; default ``sys.argv``.
    """
    return {"git": git_hash(), "versions": versions(), "command": command_line(sys.argv if argv is None else argv)}


def git_hash(folder: Path | None = None) -> str | None:
    """The commit that the code runs from, 12 digits, with ``-dirty`` where tracked files differ from it.

    Args:
        folder: of the code; default that of this package.

    Returns:
        None where the code is not in a git working tree, as when it was installed, or where there is no git.
    """
    folder = folder or Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S).stdout

    try:
        # An installed copy may lie inside of somebody else's repository, which says nothing about it.
        if not git("ls-files", "--", ".").strip():
            return None
        commit = git("rev-parse", "--short=12", "HEAD").strip()
        dirty = git("status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if dirty else commit


def versions() -> dict[str, str]:
    """Package -> version, with Python, CUDA and cuDNN as torch was built for them."""
    import torch

    found = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    if torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def command_line(argv: Sequence[str]) -> str:
    """The command as it could be typed, with absolute paths cut to their last part."""
    program = Path(argv[0]).name if argv else ""
    program = "qadtrain" if program in ("__main__.py", "-m", "-c", "") else program
    return shlex.join([program, *map(_without_folders, argv[1:])])


def data_facts(shards: "ShardSet") -> dict[str, Any]:
    """What identifies the data: the value of ``shards`` in run.json."""
    return {
        "fingerprint": shards.fingerprint,
        "qualities": list(shards.qualities),
        "size_px": shards.size_px,
        "splits": shards.splits,
        "crop": crop_facts(shards.info),
        "datasets": sorted(shards.table["dataset"].unique().to_pylist()),
    }


def config_hash(config: Config) -> str:
    """12 hexadecimal digits over all that changes the weights; equal for runs that may resume each other."""
    deciding = {name: value for name, value in config.flat().items() if name not in CHANGEABLE_ON_RESUME}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={_without_folders(value)}"
    return Path(word).name if word.startswith("/") and len(word) > 1 else word


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
