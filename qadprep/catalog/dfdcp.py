"""The preview of the Deepfake Detection Challenge, DFDCP (layout in docs/datasets/dfdc.md)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import child, entries, quality_roots, relative, videos
from qadprep.catalog.rows import read_json_entries
from qadprep.errors import UserError

DATASET = "dfdcp"
LIST_NAME = "dataset.json"
# Folder -> method.
FOLDERS = {"original_videos": ORIGINAL, "method_a": "method_A", "method_b": "method_B"}
# Published counts: 1,131 real videos, of them 276 in the test split; of the fakes' test split both methods' shares.
EXPECTED = {(ORIGINAL, "train"): 855, (ORIGINAL, "test"): 276, ("method_A", "test"): 474, ("method_B", "test"): 27}

_QUALITY = re.compile(r"raw|c\d{1,2}")
_GRAMMAR = re.compile(r"[A-Za-z0-9_-]+")
# <swapped>_<target>_<suffix>_<counter>; the rest after the first id is the name of the original.
_FAKE = re.compile(r"([^_]+)_(([^_]+)_[^_]+_.+)")


@dataclass(slots=True)
class _Entry:
    """What dataset.json says of one video; `problem` says why it cannot be used."""

    place: str
    label: str = ""
    split: str = ""
    target: str = ""
    swapped: str = ""
    problem: str = ""


@register(DATASET, "Deepfake Detection Challenge, preview")
def read_dfdcp(root: Path) -> Catalog:
    """Find the videos of the DFDC preview under a root.

    A fake `<swapped>_<target>_<suffix>_<counter>` belongs to the group of the original `<target>_<suffix>_<counter>`.
    Without dataset.json the folders tell real from fake, and every split is `none`.

    Raises:
        UserError: no video below the root; the message says which folders were expected.
    """
    catalog = Catalog(DATASET, root, [], expected=dict(EXPECTED))
    files: dict[str, dict[str, str]] = {}  # path in the official tree -> quality -> path
    listed: dict[str, _Entry] | None = None
    for quality, tree in quality_roots(root):
        for top in _tops(tree):
            listed = _read_list(top, catalog) if listed is None else listed
            for path, official in _find(top, catalog):
                paths = files.setdefault(official, {})
                if quality in paths:
                    catalog.ignored.append((path, f"{quality} is already there as {paths[quality]}"))
                else:
                    paths[quality] = path
    if not files:
        raise UserError(_nothing(root))
    if listed is None:
        reason = "not there or not readable: the folders tell real from fake, and every split is none"
        catalog.gaps.append((LIST_NAME, reason))
    catalog.clips = sort_clips(_clips(files, listed, catalog))
    if not catalog.clips:
        path, reason = catalog.ignored[0]
        raise UserError(f"{root}: videos found, but none that can be used; {path}: {reason}")
    _add_gaps(files, listed or {}, catalog)
    return catalog


def _tops(tree: Path) -> Iterator[Path]:
    """The folders that hold the official tree: a root, or folders in it such as `dfdc_preview_set`."""
    inside = [Path(e.path) for e in entries(tree) if e.is_dir() and not _QUALITY.fullmatch(e.name)]
    for place in [tree] if _is_top(tree) else inside:
        if _is_top(place):
            yield place


def _is_top(folder: Path) -> bool:
    return any(child(folder, name) for name in FOLDERS)


def _find(top: Path, catalog: Catalog) -> Iterator[tuple[str, str]]:
    """(path, path in the official tree) of the videos below a tree's folders, however deep they lie."""
    for name in FOLDERS:
        folder = child(top, name)
        todo = [folder] if folder else []
        while todo:
            place = todo.pop()
            for _, path in videos(place, catalog.root, catalog.ignored):
                yield path, _official(relative(catalog.root / path, top))
            todo += [Path(entry.path) for entry in reversed(entries(place)) if entry.is_dir()]


def _official(path: str) -> str:
    """A path below the tree in the spelling that lists and files are compared by."""
    first, _, rest = path.partition("/")
    return f"{FOLDERS[first.lower()]}/{rest}"


# The list


def _read_list(top: Path, catalog: Catalog) -> dict[str, _Entry] | None:
    file = next((Path(entry.path) for entry in entries(top) if entry.name.lower() == LIST_NAME), None)
    if file is None:
        return None
    name = relative(file, catalog.root)
    try:
        pairs = read_json_entries(file)
    except UserError as error:
        catalog.gaps.append((name, str(error).removeprefix(f"{file}: ")))
        return None
    listed: dict[str, _Entry] = {}
    for key, values in pairs:
        entry = _entry(f"{name}: {key}", values)
        parts = key.replace("\\", "/").split("/")
        start = next((i for i, part in enumerate(parts[:-1]) if part.lower() in FOLDERS), None)
        if start is None:
            catalog.ignored.append((entry.place, f"lies in none of the folders {', '.join(FOLDERS)}"))
            continue
        old = listed.setdefault(_official("/".join(parts[start:])), entry)
        if (old.label, old.split) != (entry.label, entry.split):
            old.problem = "listed twice, with different labels or sets"
        elif old is not entry:
            catalog.remarks.append((entry.place, "listed twice, with the same label"))
    return listed


def _entry(place: str, values: dict[str, object] | None) -> _Entry:
    if values is None:
        return _Entry(place, problem=f"its entry in {LIST_NAME} is broken")
    label, split = (str(values.get(key, "")).strip().lower() for key in ("label", "set"))
    target, swapped = (str(values.get(key) or "") for key in ("target_id", "swapped_id"))
    entry = _Entry(place, label, split, target, swapped)
    if label not in ("real", "fake"):
        entry.problem = f"its label is {label[:40]!r}; expected real or fake"
    elif split not in ("train", "test"):
        entry.problem = f"its set is {split[:40]!r}; expected train or test"
    return entry


# Clips


def _clips(files: dict[str, dict[str, str]], listed: dict[str, _Entry] | None, catalog: Catalog) -> Iterator[Clip]:
    taken: dict[tuple[str, str], str] = {}
    nameless, doubtful = [], []
    for official, paths in sorted(files.items()):
        method = official.partition("/")[0]
        stem = official.rpartition("/")[2].rpartition(".")[0]
        entry = (listed or {}).get(official)
        problem = _problem(method, stem, entry, listed is None)
        if not problem and (method, stem) in taken:
            problem = f"already there as {taken[method, stem]}"
        if problem:
            catalog.ignored += [(path, problem) for path in paths.values()]
            continue
        first = taken[method, stem] = next(iter(paths.values()))
        split = entry.split if entry else "none"
        if method == ORIGINAL:
            yield Clip(DATASET, ORIGINAL, stem, 0, split, stem, stem.partition("_")[0], "", paths)
            continue
        match = _FAKE.fullmatch(stem)
        if not match:
            nameless.append(first)
            yield Clip(DATASET, method, stem, 1, split, f"{method}-{stem}", "", "", paths)
            continue
        swapped, group, target = match.groups()
        if entry and ((entry.target or target) != target or (entry.swapped or swapped) != swapped):
            doubtful.append(first)
        yield Clip(DATASET, method, stem, 1, split, group, target, swapped, paths)
    for found, remark in (
        (nameless, "have a name that tells no original and are groups of their own"),
        (doubtful, f"have other ids in {LIST_NAME} than in their name; the name is believed"),
    ):
        if found:
            catalog.remarks.append(("fakes", f"{len(found)} {remark}, such as {found[0]}"))


def _problem(method: str, stem: str, entry: _Entry | None, no_list: bool) -> str | None:
    """Why a file cannot be taken, or None."""
    if not _GRAMMAR.fullmatch(stem):
        return "its name is not of letters, digits, _ and - only"
    if no_list:
        return None
    if entry is None:
        return f"no entry in {LIST_NAME}"
    if entry.problem:
        return entry.problem
    if (entry.label == "real") != (method == ORIGINAL):
        return f"{LIST_NAME} calls it {entry.label}, its folder says {method}"
    return None


def _add_gaps(files: dict[str, dict[str, str]], listed: dict[str, _Entry], catalog: Catalog) -> None:
    """One line a method: a common copy lacks method_B altogether."""
    total = Counter(official.partition("/")[0] for official in listed)
    absent = [official for official in listed if official not in files]
    for method, count in sorted(Counter(official.partition("/")[0] for official in absent).items()):
        first = next(official for official in sorted(absent) if official.startswith(f"{method}/"))
        catalog.gaps.append((method, f"{count} of {total[method]} listed videos are not there, such as {first}"))


def _nothing(root: Path) -> str:
    names = [entry.name.lower() for entry in entries(root)]
    if any(name.startswith("dfdc_train_part_") for name in names):
        return f"{root}: this is the full DFDC: --dataset dfdc"
    return (
        f"{root}: no video of the DFDC preview found; expected {LIST_NAME} and the folders original_videos, method_A "
        "and method_B below it"
    )
