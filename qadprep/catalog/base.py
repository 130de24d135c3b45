"""The records every dataset reader produces, and the registry of readers."""

import importlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qadprep.catalog.files import collect_troubles, relative
from qadprep.errors import UserError

ORIGINAL = "original"
# A member of a shard is `<id>/<frame>_<face>.<quality>.png`, and USTAR has 155 characters for all before the last `/`.
MAX_NAME = 150
_WORD = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Clip:
    """One logical video of a dataset at one or more qualities.

    Attributes:
        dataset: registry name, such as `ffpp`.
        method: manipulation, or `original` for real clips.
        name: unique within the method, such as `000_003`; matches [A-Za-z0-9_-]+.
        label: 0 real, 1 fake.
        split: `train`, `val`, `test`, or `none`.
        group: name of the group; clips of a group show the same recording.
        target, source: ids of the altered video and of the donor; source is empty for real clips.
        paths: quality -> path relative to the dataset's root. Pictures instead of a video: `<tar>::<folder inside>`, or
            a folder's path with a slash at its end.
        mask: path of the mask video relative to the root, or None.
        faces: `largest`: one face is followed and carries the clip's label; `all`: every face is its own, and in a
            fake clip the mask says which of them are fake.
    """

    dataset: str
    method: str
    name: str
    label: int
    split: str
    group: str
    target: str
    source: str
    paths: dict[str, str] = field(default_factory=dict)
    mask: str | None = None
    faces: str = "largest"

    @property
    def id(self) -> str:
        """`<dataset>/<method>/<name>`."""
        return f"{self.dataset}/{self.method}/{self.name}"


@dataclass(frozen=True)
class Group:
    """The clips that show one recording: the unit of work, of resume and of distribution."""

    dataset: str
    name: str
    clips: tuple[Clip, ...]

    @property
    def original(self) -> Clip | None:
        """The real clip of the group, or None where the dataset lacks it."""
        return next((clip for clip in self.clips if clip.method == ORIGINAL), None)


@dataclass
class Catalog:
    """What a reader found.

    Attributes:
        clips: sorted by group, originals first, then method and name.
        ignored: files inside the known folders that were not taken: (relative path, reason).
        gaps: entries of the dataset's own lists that the disk lacks, and lists that are missing: (entry, reason).
        remarks: what was taken but the user should know: (what, remark).
        expected: (method, split) -> number of clips the official lists promise; empty without such lists.
    """

    dataset: str
    root: Path
    clips: list[Clip]
    ignored: list[tuple[str, str]] = field(default_factory=list)
    gaps: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    expected: dict[tuple[str, str], int] = field(default_factory=dict)

    def groups(self) -> list[Group]:
        """The clips gathered by group, in order of the group's name."""
        return group_clips(self.clips)


def sort_clips(clips: Iterable[Clip]) -> list[Clip]:
    """Clips in the order used everywhere: by group, the original first, then by method and name."""
    return sorted(clips, key=lambda c: (c.dataset, c.group, c.method != ORIGINAL, c.method, c.name))


def group_clips(clips: Iterable[Clip]) -> list[Group]:
    """Gather clips into groups, in order of (dataset, group)."""
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in sort_clips(clips):
        groups.setdefault((clip.dataset, clip.group), []).append(clip)
    return [Group(dataset, name, tuple(members)) for (dataset, name), members in groups.items()]


Reader = Callable[[Path], Catalog]


@dataclass(frozen=True)
class Dataset:
    """Registry entry of a dataset.

    Attributes:
        read: root folder -> catalog.
        title: the dataset's full name.
        raw_is_lossless: whether `raw` promises a lossless file; else `raw` is the file as its authors released it,
            whatever its compression.
        compressed_path: (path of a clip's best file, quality) -> where a made quality of it lies below a root.
        inner_quality: whether the quality is a folder inside the official tree; else `<root>/<quality>` holds a tree.
        length_remark: (method, frames of a fake, frames of its original) -> what is wrong with the length, or None.
    """

    name: str
    read: Reader
    title: str
    raw_is_lossless: bool
    compressed_path: Callable[[str, str], str]
    inner_quality: bool = False
    length_remark: Callable[[str, int, int], str | None] | None = None


_DATASETS: dict[str, Dataset] = {}
# One module a dataset; each registers itself. More can be installed as entry points of the group `qadprep.datasets`.
_MODULES = ("ffpp", "dfd", "celebdf", "ffiw", "dfdc", "dfdcp", "wilddeepfake", "generic")


def _below_quality(path: str, quality: str) -> str:
    """The place of a made quality for datasets that have one quality: the same tree below `<quality>/`."""
    return f"{quality}/{path.removeprefix('raw/')}"


def register(
    name: str,
    title: str,
    *,
    raw_is_lossless: bool = False,
    compressed_path: Callable[[str, str], str] = _below_quality,
    inner_quality: bool = False,
    length_remark: Callable[[str, int, int], str | None] | None = None,
) -> Callable[[Reader], Reader]:
    """Decorator: make a dataset's reader known under a name."""

    def add(reader: Reader) -> Reader:
        _DATASETS[name] = Dataset(name, reader, title, raw_is_lossless, compressed_path, inner_quality, length_remark)
        return reader

    return add


def datasets() -> dict[str, Dataset]:
    """All known datasets by name."""
    for module in _MODULES:
        importlib.import_module(f"qadprep.catalog.{module}")
    for plugin in importlib.metadata.entry_points(group="qadprep.datasets"):
        plugin.load()
    return _DATASETS


def find_dataset(name: str) -> Dataset:
    """The registry entry of a dataset.

    Raises:
        UserError: unknown name.
    """
    known = datasets()
    if name not in known:
        raise UserError(f"unknown dataset {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def read_dataset(name: str, root: Path) -> Catalog:
    """Read a dataset from disk.

    Raises:
        UserError: an unknown dataset, a root that does not exist, or a root without a single clip.
    """
    entry = find_dataset(name)
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root}: not there; expected the root of the {name} dataset")
    if not root.is_dir() and name != "generic":
        raise UserError(f"{root}: not a folder; expected the root of the {name} dataset")
    with collect_troubles() as troubles:
        try:
            catalog = entry.read(root)
        except UserError as error:
            for path, reason in troubles.items():
                raise UserError(f"{error}; {path}: {reason}") from error
            raise
    catalog.ignored += [(relative(path, catalog.root), reason) for path, reason in troubles.items()]
    faults = {clip.id: fault for clip in catalog.clips if (fault := clip_fault(clip))}
    if faults:
        catalog.ignored += [(next(iter(c.paths.values()), c.id), faults[c.id]) for c in catalog.clips if c.id in faults]
        catalog.clips = [clip for clip in catalog.clips if clip.id not in faults]
    if not catalog.clips:
        path, reason = catalog.ignored[0] if catalog.ignored else (name, "nothing there")
        raise UserError(f"{root}: no clip of the {name} dataset can be used; {path}: {reason}")
    return catalog


def clip_fault(clip: Clip) -> str | None:
    """Why a clip's words cannot become file names and keys, or None."""
    for column in ("dataset", "method", "name", "group", "split"):
        value = getattr(clip, column)
        if not _WORD.fullmatch(value):
            return f"{column} {value!r}; expected letters, digits, _ and - only"
    for what, text in (("its id", clip.id), ("its group", clip.group)):
        if len(text) > MAX_NAME:
            return f"{what} has {len(text)} characters, at most {MAX_NAME} fit into the names of the archives"
    return None
