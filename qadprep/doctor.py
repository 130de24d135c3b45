"""`qadprep doctor`: is everything there that an extraction needs, and how to mend what is not.

It must run where nothing else does: what may be missing or broken is imported inside the checks.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from qadprep.terminal import print_table, say

OK, WARN, FAIL = "ok", "warn", "fail"
PYTHON_LEAST = (3, 11)
# What `extract` cannot do without; versions as in pyproject.toml.
PACKAGES_LEAST = {"av": (18,), "facenet-pytorch": (2, 5, 3), "numpy": (1, 26), "pyarrow": (17,), "torch": (2, 4)}
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: `ok`, `warn` (something works worse, or not for everybody), or `fail` (extraction will not work).
        found: what is there.
        mend: what to do about it; empty when nothing is to be done.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks of a machine, in the order in which they are printed."""

    checks: list[Check]

    @property
    def failed(self) -> bool:
        """Whether extraction will not work as things are."""
        return any(check.state == FAIL for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        counts = {state: sum(check.state == state for check in self.checks) for state in (OK, WARN, FAIL)}
        return {"checks": [asdict(check) for check in self.checks], **counts}

    def show(self) -> None:
        """Print the checks, and what to do."""
        rows = [(check.name, check.state, check.found, check.mend) for check in self.checks]
        print_table("qadprep doctor", ["check", "state", "found", "how to mend"], rows)
        counts = self.as_dict()
        say(f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed")


Probe = Callable[..., Check]


def check(name: str, mend: str) -> Callable[[Callable[..., tuple[str, ...]]], Probe]:
    """Make a check of a function that returns (state, found) or (state, found, how to mend it).

    A check never raises: what it runs into is what it has found.

    Args:
        mend: what to do when the function itself fails.
    """

    def decorate(function: Callable[..., tuple[str, ...]]) -> Probe:
        @functools.wraps(function)
        def guarded(*args: Any) -> Check:
            try:
                return Check(name, *function(*args))
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                return Check(name, FAIL, f"{type(error).__name__}: {text}" if text else type(error).__name__, mend)

        return guarded

    return decorate


def doctor(out: Path) -> Diagnosis:
    """Check this machine.

    Args:
        out: folder that an extraction would write into, or one that will be made; it is written to and left as it was.
    """
    from qadprep import doctor_machine, doctor_video

    return Diagnosis(
        [
            check_python(),
            check_packages(),
            check_opencv(),
            *doctor_video.checks(),
            check_optional("ray", "Ray", ("ray",), "--engine ray", "ray"),
            check_optional("s3", "fsspec and s3fs", ("fsspec", "s3fs"), "an --out of the kind s3://...", "s3"),
            *doctor_machine.checks(out),
        ]
    )


@check("Python", "install Python 3.11 or newer")
def check_python() -> tuple[str, ...]:
    """The interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if tuple(sys.version_info[:2]) < PYTHON_LEAST:
        return FAIL, found, "install Python {}.{} or newer".format(*PYTHON_LEAST)
    return OK, found


@check("packages", "install qadprep again: uv sync, or pip install --force-reinstall qadprep")
def check_packages() -> tuple[str, ...]:
    """Versions of the packages that extraction cannot do without."""
    found, wrong = [], []
    for package, least in PACKAGES_LEAST.items():
        version = _version(package)
        found.append(f"{package} {version or 'missing'}")
        if version is None or _numbers(version) < least:
            wrong.append(f"{package}>={'.'.join(map(str, least))}")
    if wrong:
        return FAIL, ", ".join(found), f"pip install {' '.join(repr(entry) for entry in wrong)}"
    return OK, ", ".join(found)


@check("OpenCV", "pip install --force-reinstall opencv-python-headless")
def check_opencv() -> tuple[str, ...]:
    """Exactly one of OpenCV's distributions: they install the same files, and two overwrite each other."""
    there = sorted(f"{name} {version}" for name in OPENCV if (version := _version(name)))
    if not there:
        return FAIL, "no OpenCV distribution is installed", "pip install opencv-python-headless"
    if len(there) > 1:
        names = " ".join(entry.split()[0] for entry in there)
        mend = f"pip uninstall -y {names}, then pip install opencv-python-headless"
        return FAIL, f"{' and '.join(there)} overwrite each other", mend
    import cv2

    return OK, f"{there[0]}, cv2 {cv2.__version__}"


def check_optional(extra: str, title: str, packages: tuple[str, ...], what_for: str, extra_name: str) -> Check:
    """Packages that only some uses need; that they are absent is no fault."""

    @check(title, f"pip install --force-reinstall {' '.join(packages)}")
    def look() -> tuple[str, ...]:
        versions = {package: _version(package) for package in packages}
        there = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        if not all(versions.values()):
            absent = " and ".join(package for package, version in versions.items() if not version)
            return OK, f"{absent} not installed", f"only for {what_for}: pip install 'qadprep[{extra_name}]'"
        broken = [package for package in packages if util.find_spec(package.replace("-", "_")) is None]
        if broken:
            mend = f"pip install --force-reinstall {' '.join(broken)}"
            return WARN, f"{there}, but {broken[0]} cannot be imported", mend
        return OK, there

    return look()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """`2.15.0+cu130` -> (2, 15, 0)."""
    digits = []
    for part in version.split("+")[0].split("."):
        number = "".join(character for character in part if character.isdecimal())
        if not part[:1].isdecimal():
            break
        digits.append(int(number))
    return tuple(digits)
