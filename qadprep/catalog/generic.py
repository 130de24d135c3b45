"""Any collection of videos, described by a table of paths and labels (columns in docs/datasets/generic.md)."""

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import quality_roots, word
from qadprep.catalog.pictures import INSIDE, SUFFIXES, is_pictures, list_tar, split_path
from qadprep.catalog.rows import TableRow, read_rows
from qadprep.errors import UserError

DATASET = "generic"
REQUIRED = ("path", "label")
OPTIONAL = ("split", "group", "method", "quality", "name", "source", "mask", "faces")
SPLITS = ("train", "val", "test", "none")

_LABELS = {"0": 0, "0.0": 0, "real": 0, "1": 1, "1.0": 1, "fake": 1}
_GRAMMAR = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_QUALITY = re.compile(r"[a-z][a-z0-9]{0,15}")


class _BadRowError(Exception):
    """This row cannot be taken; the message says why."""


@dataclass(slots=True)
class _Row:
    """A checked row. `words` are the parts of its path that can make its name, the last one first."""

    place: str
    path: str
    label: int
    split: str
    group: str
    method: str
    quality: str
    name: str
    source: str
    mask: str | None
    faces: str
    words: tuple[str, ...]
    depth: int = 1

    def own_name(self) -> str:
        return self.name or "-".join(reversed(self.words[: self.depth]))


def compressed_path(path: str, quality: str) -> str:
    """Where a made quality lies: the same path below `<quality>/`, as an mp4; pictures get a file for their folder.

    `a/x.mp4` gives `c23/a/x.mp4`, `a/x.avi` gives `c23/a/x.avi.mp4`, `a/x/` gives `c23/a/x/pictures.mp4` and
    `a.tar::b/x` gives `c23/a.tar/b/x/pictures.mp4`: two files never meet in one place.
    """
    if is_pictures(path):
        path = "/".join([*(part for part in split_path(path) if part), "pictures.mp4"])
    return f"{quality}/{path}" if path.lower().endswith(".mp4") else f"{quality}/{path}.mp4"


@register(DATASET, "a table of your own", compressed_path=compressed_path)
def read_generic(root: Path) -> Catalog:
    """Read the clips that a CSV or parquet file lists.

    Args:
        root: the file; its columns are `path`, `label` and, if wanted, `split`, `group`, `method`, `quality`, `name`,
            `source`, `mask`, `faces`. Paths are relative to its folder, which becomes the catalog's root.

    Raises:
        UserError: the file cannot be read as such a table, or not a single row of it can be taken.
    """
    file = Path(root)
    if file.is_dir():
        raise UserError(f"{file}: is a folder; expected a CSV or parquet file with the columns {', '.join(REQUIRED)}")
    columns, table = read_rows(file, REQUIRED)
    catalog = Catalog(DATASET, file.parent, [])
    rest = [name for name in columns if name not in REQUIRED + OPTIONAL]
    if rest:
        catalog.remarks.append((file.name, f"columns not used: {', '.join(rest)}"))
    rows = _name_rows(_without_repeats(_checked(table, catalog), catalog))
    catalog.clips = sort_clips(_clips(rows, catalog))
    if not catalog.clips:
        cause = f"; {catalog.ignored[0][0]}: {catalog.ignored[0][1]}" if catalog.ignored else ": it has no rows"
        raise UserError(f"{file}: no row could be taken{cause}")
    _add_made(catalog)
    return catalog


# Rows


def _checked(table: Sequence[TableRow], catalog: Catalog) -> list[_Row]:
    rows, tars = [], {}
    for place, cells, problem in table:
        entry = f"{place}: {cells.get('path', '')}".rstrip(": ")
        try:
            if problem:
                raise _BadRowError(problem)
            rows.append(_check(place, cells, catalog, tars))
        except _BadRowError as error:
            catalog.ignored.append((entry, str(error)))
    return rows


def _check(place: str, cells: dict[str, str], catalog: Catalog, tars: dict[str, tuple[set[str], str | None]]) -> _Row:
    label = _LABELS.get(cells["label"].lower())
    if label is None:
        raise _BadRowError(f"label {cells['label']!r}; expected 0, 1, real or fake")
    split = cells.get("split", "").lower()
    if split and split not in SPLITS:
        raise _BadRowError(f"split {cells['split']!r}; expected {', '.join(SPLITS)}")
    method = cells.get("method") or ("fake" if label else ORIGINAL)
    if (method == ORIGINAL) != (label == 0):
        raise _BadRowError(f"label {label} with method {method!r}; {ORIGINAL} is the method of label 0 and only of it")
    quality = cells.get("quality") or "raw"
    quality = "raw" if quality == "c0" else quality
    if not _QUALITY.fullmatch(quality):
        raise _BadRowError(f"quality {quality!r}; expected a word such as raw, c23 or c40")
    for column, text in (("method", method), ("name", cells.get("name")), ("group", cells.get("group"))):
        if text and not _GRAMMAR.fullmatch(text):
            raise _BadRowError(f"{column} {text!r}; expected letters, digits, _ and - only")
    path = _inside(cells["path"])
    _check_there(path, catalog.root, tars)
    mask = _inside(cells["mask"]) if cells.get("mask") else None
    if mask and not os.path.isfile(catalog.root / mask):  # noqa: PTH113
        catalog.gaps.append((f"{place}: {mask}", "the mask is not there; the clip is taken without it"))
        mask = None
    faces = cells.get("faces", "").lower()
    if faces not in ("", "largest", "all"):
        raise _BadRowError(f"faces {cells['faces']!r}; expected largest or all")
    words = _words(path, quality)
    if not words:
        raise _BadRowError("its path gives no name; add the column name")
    source = cells.get("source", "") if label else ""
    return _Row(
        place, path, label, split, cells.get("group", ""), method, quality, cells.get("name", ""), source, mask, faces,
        words,
    )  # fmt: skip


def _inside(path: str) -> str:
    """A path below the table's folder, without detours; a slash at its end is kept."""
    file, mark, folder = path.rpartition(INSIDE)
    plain = posixpath.normpath(file if mark else path)
    if not path:
        raise _BadRowError("no path")
    if _CONTROL.search(path):
        raise _BadRowError("a path with control characters")
    if path.startswith("/") or f"{INSIDE}/" in path or re.match(r"[A-Za-z]:[\\/]", path):
        raise _BadRowError("an absolute path; expected one relative to the table's folder")
    if plain.split("/")[0] == ".." or ".." in folder.split("/"):
        raise _BadRowError("a path that leaves the table's folder")
    if mark:
        return f"{plain}{INSIDE}{folder.strip('/')}"
    return plain + "/" * path.endswith("/")


def _check_there(path: str, root: Path, tars: dict[str, tuple[set[str], str | None]]) -> None:
    file, folder = split_path(path) if is_pictures(path) else (path, None)
    place = os.path.join(root, file)  # noqa: PTH118  (pathlib is ten times slower here)
    if not os.path.exists(place):  # noqa: PTH110
        hint = "; expected / between folders" if "\\" in path else ""
        raise _BadRowError(f"no such file{hint}")
    if folder is not None:
        if file not in tars:
            listing = list_tar(place)
            tars[file] = set(listing.folders), listing.error
        folders, error = tars[file]
        if folder not in folders:
            raise _BadRowError("the tar has no such folder of pictures" + (f" ({error})" if error else ""))
    elif os.path.isdir(place) != path.endswith("/"):  # noqa: PTH112
        raise _BadRowError(
            "not a folder; leave the slash at its end out"
            if path.endswith("/")
            else "a folder; write a slash at its end if it holds one sequence of pictures"
        )
    elif path.lower().endswith(SUFFIXES):
        raise _BadRowError("a single picture; expected a video, or a folder of pictures with a slash at its end")


def _words(path: str, quality: str) -> tuple[str, ...]:
    """Parts of a path for a name, last first: without the file's suffix and without folders named by the quality."""
    if is_pictures(path):
        file, folder = split_path(path)
        parts = [*file.split("/"), *(folder or "").split("/")]
        parts = [part.removesuffix(".gz").removesuffix(".tar") for part in parts]
        last = [parts.pop()] if parts[-1] else [parts.pop(-2)] if parts[-2:-1] else []
    else:
        *parts, file = path.split("/")
        last = [posixpath.splitext(file)[0]]
    folders = [part for part in parts if part not in (quality, "c0" if quality == "raw" else quality)]
    return tuple(text for part in reversed(folders + last) if (text := word(part)))


def _without_repeats(rows: Sequence[_Row], catalog: Catalog) -> list[_Row]:
    """One row a file. A file listed with both labels is not taken at all: nobody knows which is right."""
    by_path: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_path[row.path].append(row)
    kept = []
    for first, *others in by_path.values():
        labels = {row.label for row in (first, *others)}
        for row in (first, *others) if len(labels) > 1 else others:
            where = f"on {(others[0] if row is first else first).place}"
            why = "listed with the other label too, " if len(labels) > 1 else "already listed "
            catalog.ignored.append((f"{row.place}: {row.path}", why + where))
        if len(labels) == 1:
            kept.append(first)
    return kept


# Clips


def _name_rows(rows: list[_Row]) -> list[_Row]:
    """Lengthen names by parent folders until no two files of one quality share one."""
    while True:
        named: dict[tuple[str, str], list[_Row]] = defaultdict(list)
        for row in rows:
            named[row.method, row.own_name()].append(row)
        changed = False
        for same in named.values():
            if len({row.quality for row in same}) < len(same):
                # The other qualities get the longer name too, so that they still meet.
                for row in same:
                    if not row.name and row.depth < len(row.words):
                        row.depth, changed = row.depth + 1, True
        if not changed:
            return rows


def _clips(rows: Sequence[_Row], catalog: Catalog) -> Iterator[Clip]:
    # Here, since it brings pyarrow with it and every command imports this module.
    from qadprep.catalog.manifest import quality_rank

    taken: dict[tuple[str, str], dict[str, _Row]] = {}
    for row in rows:
        same = taken.setdefault((row.method, row.own_name()), {})
        problem = _conflict(row, same)
        if problem:
            catalog.ignored.append((f"{row.place}: {row.path}", problem))
        else:
            same[row.quality] = row
    groups = _groups(taken, catalog)
    for (method, name), group in groups.items():
        by_quality = taken[method, name]
        paths = {quality: by_quality[quality].path for quality in sorted(by_quality, key=quality_rank)}
        label, split = int(method != ORIGINAL), _told(by_quality, "split") or "none"
        mask = _told(by_quality, "mask") or None
        source, faces = _told(by_quality, "source"), _told(by_quality, "faces") or "largest"
        yield Clip(DATASET, method, name, label, split, group, group, source, paths, mask, faces)


def _told(by_quality: dict[str, _Row], column: str) -> str:
    """What the rows of a clip say in a column: the first of them that says something."""
    return next((text for row in by_quality.values() if (text := getattr(row, column))), "")


def _conflict(row: _Row, same: dict[str, _Row]) -> str | None:
    """Why a row cannot join the rows of its clip, or None."""
    if row.quality in same:
        return f"{row.method}/{row.own_name()} at {row.quality} is already there, on {same[row.quality].place}"
    for column in ("split", "group", "source", "faces"):
        for other in same.values():
            mine, theirs = getattr(row, column), getattr(other, column)
            if mine and theirs and mine != theirs:
                return f"{column} {mine!r}, but {theirs!r} on {other.place} for the same clip"
    return None


def _groups(taken: dict[tuple[str, str], dict[str, _Row]], catalog: Catalog) -> dict[tuple[str, str], str]:
    """(method, name) -> group of each clip that is taken.

    Without one in the table a clip is alone. Fakes that share their name with another clip are kept out of its group
    by their method: an equal file name does not say that two videos show the same recording.
    """
    told = {key: _told(by_quality, "group") for key, by_quality in taken.items() if by_quality}
    groups, originals = {}, {}
    for (method, name), group in told.items():
        if method != ORIGINAL:
            continue
        group = group or name
        if group in originals:
            first = next(iter(taken[method, name].values()))
            problem = f"group {group} already has the original {originals[group]}; a group shows one recording"
            catalog.ignored.append((f"{first.place}: {first.path}", problem))
        else:
            groups[method, name], originals[group] = group, name
    used = {*groups.values(), *told.values()}
    names = Counter(name for method, name in told if method != ORIGINAL)
    for (method, name), group in told.items():
        if method != ORIGINAL:
            alone = f"{method}-{name}" if name in used or names[name] > 1 else name
            while not group and alone in used:
                alone += "-"
            groups[method, name] = group or alone
            used.add(groups[method, name])
    return groups


def _add_made(catalog: Catalog) -> None:
    """Qualities that `qadprep compress` made below the table's folder and that the table does not list."""
    qualities = [quality for quality, folder in quality_roots(catalog.root) if folder != catalog.root]
    found = 0
    for clip in catalog.clips:
        best = next(iter(clip.paths.values()))
        for quality in qualities:
            path = compressed_path(best, quality)
            if quality not in clip.paths and os.path.isfile(os.path.join(catalog.root, path)):  # noqa: PTH113, PTH118
                clip.paths[quality] = path
                found += 1
    if found:
        catalog.remarks.append((", ".join(qualities), f"{found} made files found that the table does not list"))
