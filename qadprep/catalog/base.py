"""The records every dataset reader produces, and the registry of readers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qadprep.errors import UserError

ORIGINAL = "original"


@dataclass(frozen=True)
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
        paths: quality -> path relative to the dataset's root.
        mask: path of the mask video relative to the root, or None.
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
        ignored: files inside the known folders that are no clip of the dataset: (relative path, reason).
        expected: (method, split) -> number of clips the official lists promise; empty without such lists.
    """

    dataset: str
    root: Path
    clips: list[Clip]
    ignored: list[tuple[str, str]] = field(default_factory=list)
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
_READERS: dict[str, Reader] = {}


def register(name: str) -> Callable[[Reader], Reader]:
    """Decorator: make a dataset reader known under a name."""

    def add(reader: Reader) -> Reader:
        _READERS[name] = reader
        return reader

    return add


def read_dataset(name: str, root: Path) -> Catalog:
    """Read a dataset from disk.

    Raises:
        UserError: an unknown dataset, a root that is no folder, or a root without a single clip.
    """
    from qadprep.catalog import ffpp  # noqa: F401  (registers itself)

    if name not in _READERS:
        raise UserError(f"unknown dataset {name!r}; known: {', '.join(sorted(_READERS))}")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; expected the root of the {name} dataset")
    return _READERS[name](root)
