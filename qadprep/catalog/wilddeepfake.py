"""WildDeepfake: no videos but sequences of cropped faces in plain tars (layout in docs/datasets/wilddeepfake.md)."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import entries, quality_roots, relative, videos, word
from qadprep.catalog.pictures import INSIDE, SUFFIXES, list_tar, split_path
from qadprep.errors import UserError

DATASET = "wilddeepfake"
METHOD = "WildDeepfake"
# Sequences per category as the authors count them; a blog counts 3,097 fake_train.
SEQUENCES = {"real_train": 3409, "real_test": 396, "fake_train": 3099, "fake_test": 410}
TAR_SUFFIXES = (".tar.gz", ".tar")

_SPELLINGS = {
    spelling: category
    for category in SEQUENCES
    for spelling in (category, category.replace("_", " "), category.replace("_", "-"), category.replace("_", ""))
}
_LABELS = ("real", "fake")
_QUALITY = re.compile(r"(raw|c\d{1,2})/")


class _Sequence(NamedTuple):
    """Where a sequence stands in the dataset: the same for its pictures and for videos made of them."""

    category: str
    shard: str
    inside: str  # the folders below the shard, joined by __


def compressed_path(path: str, quality: str) -> str:
    """Where a made quality of a sequence lies: `<quality>/<category>/<shard>/<folders inside>.mp4`.

    The folders inside are joined by `__`, without the shard's name that they begin with:
    `real_train/12.tar.gz::12/real/345` at c23 gives `c23/real_train/12/real__345.mp4`. The path of such a video gives
    that of the same sequence at another quality.
    """
    file, folder = split_path(_QUALITY.sub("", path, count=1) if _QUALITY.match(path) else path)
    parts = file.split("/")
    start = next((i for i, part in enumerate(parts) if part.lower() in _SPELLINGS), None)
    if start is None or len(parts) < start + 2:
        raise ValueError(f"{path}: no category folder such as real_train in it")
    category, name, *rest = parts[start:]
    inside = folder.split("/") if folder else rest
    if path.endswith(".mp4"):
        flat = "__".join([*rest[:-1], rest[-1].removesuffix(".mp4")])
        return f"{quality}/{_SPELLINGS[category.lower()]}/{name}/{flat}.mp4"
    shard = _shard(name)
    return f"{quality}/{_SPELLINGS[category.lower()]}/{shard}/{_flat(shard, inside)}.mp4"


@register(DATASET, "WildDeepfake", compressed_path=compressed_path)
def read_wilddeepfake(root: Path) -> Catalog:
    """Find every sequence of WildDeepfake under a root.

    Whether a sequence is real is told by its category folder (`real_train` and so on); the label in its own path
    disagrees now and then. Each sequence is its own group, since the videos behind them are not published.

    Raises:
        UserError: no sequence below the root; the message says which folders were expected.
    """
    catalog = Catalog(DATASET, root, [])
    found: dict[_Sequence, dict[str, str]] = {}
    there = set()
    for quality, top in quality_roots(root):
        for category, folder in _categories(top):
            if quality == "raw":
                there.add(category)
                shards = _shards(folder, root, category, catalog)
            else:
                shards = _made(folder, root, category, catalog.ignored)
            for sequence, path in shards:
                paths = found.setdefault(sequence, {})
                if quality in paths:
                    catalog.ignored.append((path, f"{quality} is already there as {paths[quality]}"))
                else:
                    paths[quality] = path
    if not found:
        cause = f"; {catalog.ignored[0][0]}: {catalog.ignored[0][1]}" if catalog.ignored else ""
        raise UserError(
            f"{root}: no WildDeepfake sequence found; expected files such as real_train/1.tar.gz below it{cause}"
        )
    if there:
        catalog.gaps += [(category, "no such folder") for category in SEQUENCES if category not in there]
    catalog.clips = sort_clips(_clips(found, catalog))
    catalog.expected = {(_method(category), category.split("_")[1]): number for category, number in SEQUENCES.items()}
    return catalog


def _clips(found: dict[_Sequence, dict[str, str]], catalog: Catalog) -> Iterator[Clip]:
    short = {sequence: _name(sequence, sequence.inside.split("__")[-1]) for sequence in found}
    times = Counter(short.values())
    disagreeing: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for sequence, paths in sorted(found.items()):
        # Two folders of a shard may hold a sequence of one number, such as real/7 and fake/7.
        name = short[sequence] if times[short[sequence]] == 1 else _name(sequence, sequence.inside.replace("__", "-"))
        first = next(iter(paths.values()))
        if name in taken:
            catalog.ignored.append((first, f"its name {name} is that of {taken[name]}"))
            continue
        taken[name] = first
        kind, split = sequence.category.split("_")
        labels = [part.lower() for part in sequence.inside.split("__")[:-1] if part.lower() in _LABELS]
        if labels and labels[-1] != kind:
            disagreeing.setdefault(sequence.category, []).append(first)
        label = int(kind == "fake")
        yield Clip(DATASET, _method(sequence.category), name, label, split, name, name, "", paths)
    for category, paths in disagreeing.items():
        kind = category.split("_")[0]
        catalog.remarks.append(
            (
                category,
                f"{len(paths)} sequences lie in a folder of the other label and are taken as {kind} like their "
                f"category: {', '.join(paths[:5])}{', ...' if len(paths) > 5 else ''}",
            )
        )


def _method(category: str) -> str:
    return ORIGINAL if category.startswith("real") else METHOD


def _name(sequence: _Sequence, last: str) -> str:
    return f"{sequence.category}-{word(sequence.shard)}-{word(last)}"


def _shard(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in TAR_SUFFIXES if name.lower().endswith(suffix)), name)


def _flat(shard: str, inside: list[str]) -> str:
    """The folders inside a shard as one word; they begin with the shard's own name in the release."""
    return "__".join(inside[1:] if len(inside) > 1 and inside[0] == shard else inside)


def _categories(top: Path) -> Iterator[tuple[str, Path]]:
    """(category, folder) below a root, or, where it has none, below its folders."""
    found = _categories_in(top)
    if not found:
        for entry in entries(top):
            if entry.is_dir() and not _QUALITY.match(entry.name + "/"):
                found += _categories_in(Path(entry.path))
    yield from sorted(found)


def _categories_in(folder: Path) -> list[tuple[str, Path]]:
    return [
        (_SPELLINGS[entry.name.lower()], Path(entry.path))
        for entry in entries(folder)
        if entry.is_dir() and entry.name.lower() in _SPELLINGS
    ]


def _shards(folder: Path, root: Path, category: str, catalog: Catalog) -> Iterator[tuple[_Sequence, str]]:
    """(sequence, path) of everything in a category folder: first the tars, then folders that were unpacked."""
    unpacked = []
    for entry in entries(folder):
        path = relative(entry.path, root)
        if entry.is_dir():
            unpacked.append((entry.name, path))
        elif not entry.name.lower().endswith(TAR_SUFFIXES):
            catalog.ignored.append((path, "not a tar"))
        else:
            yield from _in_tar(path, root, category, _shard(entry.name), catalog)
    for shard, path in unpacked:
        yield from _in_folder(Path(root, path), root, category, _shard(shard), [], catalog)


def _in_tar(path: str, root: Path, category: str, shard: str, catalog: Catalog) -> Iterator[tuple[_Sequence, str]]:
    listing = list_tar(root / path)
    catalog.ignored += [(f"{path}: {member}", reason) for member, reason in listing.refused]
    if listing.error and listing.folders:
        catalog.remarks.append((path, f"{listing.error}; what lies before was taken"))
    elif listing.error:
        catalog.ignored.append((path, listing.error))
    elif not listing.folders:
        catalog.ignored.append((path, "holds no picture"))
    for inside in sorted(listing.folders):
        yield from _sequence(category, shard, inside.split("/"), f"{path}{INSIDE}{inside}", catalog)


def _in_folder(
    folder: Path, root: Path, category: str, shard: str, inside: list[str], catalog: Catalog
) -> Iterator[tuple[_Sequence, str]]:
    pictures = False
    for entry in entries(folder):
        if entry.is_dir():
            yield from _in_folder(Path(entry.path), root, category, shard, [*inside, entry.name], catalog)
        elif entry.name.lower().endswith(SUFFIXES):
            pictures = True
        else:
            catalog.ignored.append((relative(entry.path, root), "not a picture (png, jpg)"))
    if pictures:
        yield from _sequence(category, shard, inside, relative(folder, root) + "/", catalog)


def _sequence(
    category: str, shard: str, inside: list[str], path: str, catalog: Catalog
) -> Iterator[tuple[_Sequence, str]]:
    flat = _flat(shard, inside)
    last = flat.rpartition("__")[2]
    if not word(last) or last.lower() in _LABELS or inside == [shard]:
        catalog.ignored.append((path, "pictures outside a sequence; expected <shard>/<label>/<sequence>/<frame>.png"))
    else:
        yield _Sequence(category, shard, flat), path


def _made(folder: Path, root: Path, category: str, ignored: list[tuple[str, str]]) -> Iterator[tuple[_Sequence, str]]:
    """(sequence, path) of the videos that `qadprep compress` made of a category's sequences."""
    for entry in entries(folder):
        if entry.is_dir():
            for stem, path in videos(Path(entry.path), root, ignored):
                yield _Sequence(category, entry.name, stem), path
        else:
            ignored.append((relative(entry.path, root), f"expected {os.path.splitext(entry.name)[0]}/<sequence>.mp4"))  # noqa: PTH122
