"""The Deepfake Detection Challenge: train parts and the test folder (layout in docs/datasets/dfdc.md)."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import VIDEO_SUFFIX, child, entries, quality_roots, relative, videos
from qadprep.catalog.rows import read_json_entries, read_rows
from qadprep.errors import UserError

DATASET = "dfdc"
METHOD = "DFDC"
PARTS = 50
# There is no official validation split. Whole parts, so that no recording lies on both sides.
VAL_PARTS = range(45, 50)
LABELS_NAME, METADATA_NAME = "labels.csv", "metadata.json"

_TEST = 10_000  # stands where the number of a train part stands
_PART = re.compile(r"dfdc_train_part_0*(\d{1,3})(?:\.zip)?", re.IGNORECASE)
_GRAMMAR = re.compile(r"[A-Za-z0-9_-]+")
_QUALITY = re.compile(r"raw|c\d{1,2}")
LABELS = {"0": 0, "0.0": 0, "false": 0, "real": 0, "1": 1, "1.0": 1, "true": 1, "fake": 1}


@dataclass(slots=True)
class _Entry:
    """What a list says of one video; `problem` says why it cannot be used."""

    label: int = 0
    original: str = ""
    problem: str = ""
    place: str = ""  # `<list>: <file name>`


@dataclass
class _Place:
    """A train part or the test videos: its lists, and its files by stem and quality."""

    lists: dict[str, Path] = field(default_factory=dict)  # by their place in the official tree
    problems: list[tuple[str, str]] = field(default_factory=list)  # (list, why it cannot be read)
    entries: dict[str, _Entry] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))


@register(DATASET, "Deepfake Detection Challenge")
def read_dfdc(root: Path) -> Catalog:
    """Find the videos of the train parts and of the test folder under a root.

    A fake belongs to the group of the original that metadata.json names. Parts 45 to 49 are our `val`.

    Raises:
        UserError: no video below the root, or none that a list labels; the message says what was expected.
    """
    catalog = Catalog(DATASET, root, [])
    places: dict[int, _Place] = defaultdict(_Place)
    for quality, top in quality_roots(root):
        for number, folder in _folders(top):
            _read_list(places[number], number, folder, top, catalog)
            _add_files(places[number], folder, top, quality, catalog)
    catalog.clips = sort_clips(_clips(places, catalog))
    if not catalog.clips:
        raise UserError(_nothing(root, places, catalog))
    for place in places.values():
        catalog.gaps += place.problems
    parts = {number for number in places if number != _TEST}
    missing = [number for number in range(PARTS) if number not in parts]
    if parts and missing:
        names = ", ".join(map(str, missing))
        catalog.gaps.append(("dfdc_train_part_*", f"{len(missing)} of {PARTS} parts are not there: {names}"))
    return catalog


# Folders and files


def _folders(top: Path) -> Iterator[tuple[int, Path]]:
    """(part, folder) of the train parts, then (_TEST, folder) of the folders with test videos."""
    parts = list(_parts(top, 2))
    yield from sorted(parts, key=lambda item: (item[0], str(item[1])))
    wrappers = [
        Path(entry.path)
        for entry in entries(top)
        if entry.is_dir() and not (_PART.fullmatch(entry.name) or _QUALITY.fullmatch(entry.name))
    ]
    for place in (top, *(wrapper for wrapper in wrappers if wrapper.name.lower() not in ("test", "videos"))):
        test = child(place, "test")
        for folder in (test, test and child(test, "videos"), child(place, "videos")):
            if folder and _holds_videos(folder):
                yield _TEST, folder
    if top not in (folder for _, folder in parts) and _holds_videos(top):
        yield _TEST, top


def _parts(folder: Path, depth: int) -> Iterator[tuple[int, Path]]:
    """Train parts below a folder; a part may lie in a folder of its own name, as its zip unpacks."""
    match = _PART.fullmatch(folder.name)
    inner = [
        Path(entry.path)
        for entry in entries(folder)
        if entry.is_dir() and (not match or _PART.fullmatch(entry.name)) and not _QUALITY.fullmatch(entry.name)
    ]
    if match and not inner:
        yield int(match.group(1)), folder
    elif depth > 0 or match:
        for place in inner:
            yield from _parts(place, depth - 1)


def _holds_videos(folder: Path) -> bool:
    return any(entry.name.lower().endswith(VIDEO_SUFFIX) for entry in entries(folder))


def _add_files(place: _Place, folder: Path, top: Path, quality: str, catalog: Catalog) -> None:
    strange: list[tuple[str, str]] = []
    for stem, path in videos(folder, catalog.root, strange):
        if quality in place.files[stem]:
            catalog.ignored.append((path, f"{quality} is already there as {place.files[stem][quality]}"))
        else:
            place.files[stem][quality] = path
    lists = (LABELS_NAME, METADATA_NAME)
    if folder != top:  # beside the datasets' folders anything may lie
        catalog.ignored += [line for line in strange if line[0].rpartition("/")[2].lower() not in lists]


# Lists


def _read_list(place: _Place, number: int, folder: Path, top: Path, catalog: Catalog) -> None:
    """Read the list of a folder into its place; the same list in the tree of another quality is passed over."""
    file = _find_list(number, folder, top)
    if file is None:
        if not place.lists:
            missing = folder / (LABELS_NAME if number == _TEST else METADATA_NAME)
            place.problems = [(relative(missing, catalog.root), "not there; it labels the videos of this folder")]
        return
    name = relative(file, catalog.root)
    if not place.lists:
        place.problems = []
    if place.lists.setdefault(relative(file, top), file) is not file:
        return
    try:
        if file.name.lower() == LABELS_NAME:
            rows = read_rows(file, ("filename", "label"))[1]
            found = [(cells.get("filename", ""), None if problem else cells) for _, cells, problem in rows]
        else:
            found = read_json_entries(file)
    except UserError as error:
        place.problems.append((name, str(error).removeprefix(f"{file}: ")))
        return
    here = set()
    for key, values in found:
        stem = key.rpartition("/")[2]
        stem = stem[: -len(VIDEO_SUFFIX)] if stem.lower().endswith(VIDEO_SUFFIX) else stem
        entry = _entry(stem, values)
        old, entry.place = place.entries.setdefault(stem, entry), f"{name}: {key}"
        if (old.label, old.original, old.problem) != (entry.label, entry.original, entry.problem):
            place.entries[stem] = _Entry(problem="listed twice, with different labels", place=old.place)
        elif stem in here:
            catalog.remarks.append((entry.place, "listed twice, with the same label"))
        here.add(stem)


def _find_list(number: int, folder: Path, top: Path) -> Path | None:
    # A train part is labelled by its own metadata.json alone.
    names = (LABELS_NAME, METADATA_NAME) if number == _TEST else (METADATA_NAME,)
    for place in (folder, *folder.parents):
        there = {entry.name.lower(): entry for entry in entries(place) if entry.name.lower() in names}
        found = next((Path(there[name].path) for name in names if name in there and there[name].is_file()), None)
        if found or place == top or number != _TEST:
            return found
    return None


def _entry(stem: str, values: dict[str, object] | None) -> _Entry:
    if values is None:
        return _Entry(problem="its entry in the list is broken")
    if not _GRAMMAR.fullmatch(stem):
        return _Entry(problem="its name is not of letters, digits, _ and - only")
    told = [values[key] for key in ("label", "is_fake") if values.get(key) is not None]
    labels = {LABELS.get(str(value).strip().lower()) for value in told}
    if not told or None in labels:
        shown = str(told[0])[:40] if told else "nothing"
        return _Entry(problem=f"its label is {shown!r}; expected REAL or FAKE, or 0 or 1")
    if len(labels) > 1:
        return _Entry(problem="its label and is_fake contradict each other")
    label, original = labels.pop(), values.get("original")
    if not label or not isinstance(original, str) or not original:
        return _Entry(label)
    original = original[: -len(VIDEO_SUFFIX)] if original.lower().endswith(VIDEO_SUFFIX) else original
    if not _GRAMMAR.fullmatch(original):
        return _Entry(problem=f"its original is {original[:40]!r}; expected a file's name")
    if original == stem:
        return _Entry(problem="its original is itself")
    return _Entry(label, original)


# Clips


def _clips(places: dict[int, _Place], catalog: Catalog) -> Iterator[Clip]:
    listed = {}
    for number in sorted(places, reverse=True):
        listed |= {stem: (number, entry) for stem, entry in places[number].entries.items()}
    for place in places.values():
        for entry in place.entries.values():
            if entry.original in listed and listed[entry.original][1].label:
                entry.problem = f"its original {entry.original}{VIDEO_SUFFIX} is labelled FAKE"
    homes = _homes(places, listed)
    expected: Counter[tuple[str, str]] = Counter()
    taken: dict[str, str] = {}
    moved = 0
    for number, place in sorted(places.items()):
        for stem, entry in place.entries.items():
            if not entry.problem and listed[stem][0] == number:
                expected[_method(entry), _split(number, homes[entry.original or stem])] += 1
            if stem not in place.files:
                lines, reason = (catalog.ignored, entry.problem) if entry.problem else (catalog.gaps, "no such file")
                lines.append((entry.place, reason))
        for stem, paths in place.files.items():
            entry = place.entries.get(stem)
            problem = entry.problem if entry else _unlisted(place, catalog.root)
            if not problem and stem in taken:
                problem = f"already there as {taken[stem]}"
            if problem:
                catalog.ignored += [(path, problem) for path in paths.values()]
                continue
            taken[stem] = next(iter(paths.values()))
            group = entry.original or stem
            split = _split(number, homes[group])
            moved += split != _split(number, number)
            yield Clip(DATASET, _method(entry), stem, entry.label, split, group, group, "", dict(paths))
    if moved:
        remark = f"{moved} fakes lie in another part than their original and are in its split"
        catalog.remarks.append(("train parts", remark))
    catalog.expected = dict(expected)


def _unlisted(place: _Place, root: Path) -> str:
    if place.problems:
        name, reason = place.problems[-1]
        return f"no label; {name}: {reason.split(';')[0]}"
    return f"no entry in {', '.join(relative(file, root) for file in place.lists.values())}"


def _homes(places: dict[int, _Place], listed: dict[str, tuple[int, _Entry]]) -> dict[str, int]:
    """Group -> the part that decides its split: that of its original, else the first that has a clip of it."""
    homes: dict[str, int] = {}
    for number, place in sorted(places.items()):
        for stem, entry in place.entries.items():
            homes.setdefault(entry.original or stem, number)
    return homes | {group: listed[group][0] for group in homes if group in listed}


def _method(entry: _Entry) -> str:
    return METHOD if entry.label else ORIGINAL


def _split(number: int, home: int) -> str:
    if _TEST in (number, home):
        return "test" if number == _TEST else _split(number, number)
    return "val" if home in VAL_PARTS else "train"


def _nothing(root: Path, places: dict[int, _Place], catalog: Catalog) -> str:
    """What to say of a root that gives no clip."""
    if child(root, "original_videos") or child(root, "method_A"):
        return f"{root}: this is the preview of DFDC: --dataset dfdcp"
    if any(place.files for place in places.values()):
        path, reason = catalog.ignored[0]
        return f"{root}: videos found, but none that can be used; {path}: {reason}"
    return (
        f"{root}: no DFDC video found; expected folders such as dfdc_train_part_0 with {METADATA_NAME} in it, or test "
        f"with {LABELS_NAME} in it or beside it"
    )
