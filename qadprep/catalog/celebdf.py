"""Celeb-DF-v2 (yuezunli/celeb-deepfakeforensics; layout in docs/datasets/celebdf.md)."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import child, entries, quality_roots, relative, videos
from qadprep.catalog.splits import load_celebdf_test_list
from qadprep.errors import UserError
from qadprep.sampling import draw

DATASET = "celebdf"
METHOD = "CelebDF"
LIST_NAME = "List_of_testing_videos.txt"
# folder -> (our label, videos of a complete copy, grammar of a stem, the grammar in words)
FOLDERS = {
    "Celeb-real": (0, 590, re.compile(r"(?P<target>id[0-9]+)_[0-9]+"), "id<N>_<recording>"),
    "YouTube-real": (0, 300, re.compile(r"(?P<target>[0-9]{5})"), "five digits"),
    "Celeb-synthesis": (
        1,
        5639,
        re.compile(r"(?P<target>id[0-9]+)_(?P<source>id[0-9]+)_[0-9]+"),
        "id<target>_id<source>_<recording>",
    ),
}
VALIDATION_SHARE = 0.13
# Bounds the search for validation identities: further starts are given up after so many looks at an identity.
_MOST_LOOKS = 500_000
_LARGEST_LIST = 1 << 20  # bytes


@register(DATASET, "Celeb-DF-v2")
def read_celebdf(root: Path) -> Catalog:
    """Find every Celeb-DF-v2 clip under a root: the release's folder, or one that holds it.

    The split is `test` for the official list's clips; the rest is cut by `carve_validation`. A fake's first id is its
    target; it belongs to the group of `Celeb-real/<target>_<recording>`.

    Raises:
        UserError: no Celeb-DF-v2 video below the root.
    """
    ignored: list[tuple[str, str]] = []
    remarks: list[tuple[str, str]] = []
    labels = parse_test_list(load_celebdf_test_list())
    found: dict[tuple[str, str], dict[str, str]] = {}
    refused = set()
    for quality, top in quality_roots(root):
        base = child(top, "Celeb-DF-v2", "Celeb-DF")
        for folder in [top, *([base] if base else [])]:
            remarks += _compare_list(folder, root)
            for kind, stem, path in _videos(folder, root, ignored):
                label = labels.get((kind, stem), FOLDERS[kind][0])
                if label != FOLDERS[kind][0]:
                    refused.add((kind, stem))
                    ignored.append((path, f"the official test list calls it {('real', 'fake')[label]}"))
                elif quality in (here := found.setdefault((kind, stem), {})):
                    ignored.append((path, f"{quality} is already there as {here[quality]}"))
                else:
                    here[quality] = path
    if not found:
        raise UserError(
            f"{root}: no Celeb-DF-v2 video found; expected the folders Celeb-real, YouTube-real and Celeb-synthesis "
            "below it, with files such as Celeb-real/id0_0000.mp4 (is this the folder Celeb-DF-v2 of the release?)"
        )
    gaps = [
        (f"{kind}/{stem}.mp4", "in the official test list, not on disk")
        for kind, stem in labels
        if (kind, stem) not in found and (kind, stem) not in refused
    ]
    rest = [place for place in found if place not in labels]
    splits = carve_validation(
        (stem for kind, stem in rest if FOLDERS[kind][0] == 0),
        (stem for kind, stem in rest if FOLDERS[kind][0] == 1),
    )
    clips = [_clip(kind, stem, splits.get(stem, "test"), paths) for (kind, stem), paths in found.items()]
    remarks += _incomplete(found, rest)
    aside = sum(split == "none" for split in splits.values())
    if aside:
        remark = f"{aside} fakes show a validation recording with a training face: in no split (`none`)"
        remarks.append(("validation split", remark))
    expected = Counter((ORIGINAL if label == 0 else METHOD, "test") for label in labels.values())
    return Catalog(DATASET, root, sort_clips(clips), ignored, gaps, remarks, dict(expected))


def parse_test_list(text: str) -> dict[tuple[str, str], int]:
    """The test list as (folder, stem) -> label in this project's sense, 0 real and 1 fake: the list has it reversed.

    Lines are `<1 real | 0 fake> <folder>/<stem>.mp4`; the folder's name is read in any case. Other lines are left out.
    """
    spelled = {name.lower(): name for name in FOLDERS}
    labels = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([01])\s+([^/\s]+)/(?:videos/)?(\w+)\.mp4\s*", line)
        if match and match[2].lower() in spelled:
            labels[spelled[match[2].lower()], match[3]] = 1 - int(match[1])
    return labels


def carve_validation(
    originals: Iterable[str], fakes: Iterable[str], seed: int = 0, share: float = VALIDATION_SHARE
) -> dict[str, str]:
    """Cut the clips outside the test list into `train` and `val`; Celeb-DF-v2 has no official validation list.

    Identities are kept apart as far as the fakes allow. A set V of identities is grown, from several seeded starts,
    one at a time along the fakes' (target, donor) pairs, each time by the identity that leaves the fewest fakes with
    one foot in V per fake inside V, until V's Celeb-real clips reach `share` of them all; the best start is kept.
    V's originals and the fakes with both identities in V are `val`. A fake of V's recordings with another's face is
    `none`: in either split it would share a recording or a face with the other. Everything else is `train`, also the
    fakes whose donor is in V: those are leaks, which `qadprep.catalog.leaks` lists and can drop. Of the YouTube-real
    clips, whose people are unknown, the same share (rounded up) is drawn by stem.

    The result does not depend on the order of the input, but on which clips there are.

    Args:
        originals: names of the real clips outside the test list: `id<N>_<recording>`, or five digits for YouTube-real.
        fakes: names of the fakes outside the test list: `id<target>_id<source>_<recording>`.
        seed: of the draws.
        share: of the real clips that becomes `val`, 0 to 1.

    Returns:
        Name -> `train`, `val` or `none`, for every name given.

    Raises:
        ValueError: the share is not within 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be within 0 and 1, got {share}")
    originals, fakes = set(originals), set(fakes)
    youtube = sorted(name for name in originals if "_" not in name)
    drawn = set(_drawn(youtube, seed)[: math.ceil(share * len(youtube))])
    recordings = Counter(name.split("_")[0] for name in originals if "_" in name)
    pairs = Counter(tuple(name.split("_")[:2]) for name in fakes)
    chosen = _validation_identities(recordings, pairs, seed, share)

    def split(name: str) -> str:
        people = name.split("_")[:-1]
        if name in drawn or (people and chosen.issuperset(people)):
            return "val"
        return "none" if people and people[0] in chosen else "train"

    return {name: split(name) for name in sorted(originals | fakes)}


def _validation_identities(
    recordings: Counter[str], pairs: Counter[tuple[str, ...]], seed: int, share: float
) -> frozenset[str]:
    """The identities of the validation split; see `carve_validation`.

    Args:
        recordings: identity -> its Celeb-real clips outside the test list.
        pairs: (target, donor) -> fakes.
    """
    wanted = share * recordings.total()
    own: Counter[str] = Counter()  # fakes of a person with themselves
    between: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (target, donor), number in pairs.items():
        if target == donor:
            own[target] += number
        else:
            between[target][donor] += number
            between[donor][target] += number
    degree = {name: between[name].total() for name in recordings}
    order = _drawn(sorted(recordings), seed)
    best: tuple[tuple[float, int], frozenset[str]] | None = None
    looks = 0
    for start in order:
        if best and looks > _MOST_LOOKS:
            break
        inside, mixed, clips = 0, 0, 0
        members: set[str] = set()
        links: Counter[str] = Counter()  # identity outside V -> its fakes with V
        added: str | None = start
        while clips < wanted and added is not None:
            members.add(added)
            inside += links[added] + own[added]
            mixed += degree[added] - 2 * links.pop(added, 0)
            clips += recordings[added]
            for other, number in between[added].items():
                if other in recordings and other not in members:
                    links[other] += number
            near = [name for name in order if name in links]
            looks += len(order)
            added = min(
                near,
                key=lambda name: _cost(inside + links[name] + own[name], mixed + degree[name] - 2 * links[name]),
                default=next((name for name in order if name not in members), None),
            )
        cost = _cost(inside, mixed)
        if best is None or cost < best[0]:
            best = cost, frozenset(members)
    return best[1] if best else frozenset()


def _drawn(names: list[str], seed: int) -> list[str]:
    """Sorted names in an order that hangs on the seed and on nothing else."""
    return sorted(names, key=lambda name: draw(seed, DATASET, name))


def _cost(inside: int, mixed: int) -> tuple[float, int]:
    """How much a set of identities leaks: fakes with one foot in it per fake inside it; then their number."""
    return (mixed / inside if inside else math.inf if mixed else 0.0), mixed


def _videos(base: Path, root: Path, ignored: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(folder's official name, stem, path relative to root) of the well-named videos in and below the three folders."""
    for kind, (_, _, grammar, words) in FOLDERS.items():
        for entry in entries(base):
            if entry.name.lower() != kind.lower() or not entry.is_dir():
                continue
            folder = Path(entry.path)
            nested = child(folder, "videos")
            for place in [folder, *([nested] if nested else [])]:
                for stem, path in videos(place, root, ignored):
                    if grammar.fullmatch(stem):
                        yield kind, stem, path
                    else:
                        ignored.append((path, f"name does not match {words}.mp4"))


def _clip(kind: str, stem: str, split: str, paths: dict[str, str]) -> Clip:
    label, _, grammar, _ = FOLDERS[kind]
    match = grammar.fullmatch(stem)
    target, source = match["target"], match["source"] if label else ""
    group = f"{target}_{stem.rsplit('_', 1)[1]}" if label else stem
    return Clip(DATASET, METHOD if label else ORIGINAL, stem, label, split, group, target, source, paths)


def _compare_list(folder: Path, root: Path) -> list[tuple[str, str]]:
    """A remark when the copy has a test list of its own that differs from the official one that is used."""
    remarks = []
    for entry in entries(folder):
        if entry.name.lower() != LIST_NAME.lower() or not entry.is_file():
            continue
        try:
            with Path(entry.path).open("rb") as file:
                own = file.read(_LARGEST_LIST).decode("utf-8", "replace")
        except OSError as error:
            own = f"cannot be read ({error.strerror})"
        if own.splitlines() != load_celebdf_test_list().splitlines():
            remark = "differs from the official test list; the official one, which comes with qadprep, is used"
            remarks.append((relative(entry.path, root), remark))
    return remarks


def _incomplete(found: Iterable[tuple[str, str]], rest: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A remark when the copy has not as many videos as the release."""
    have = Counter(kind for kind, _ in found)
    if all(have[kind] == number for kind, (_, number, _, _) in FOLDERS.items()):
        return []
    counts = ", ".join(f"{have[kind]} of {number} {kind}" for kind, (_, number, _, _) in FOLDERS.items())
    labels = Counter(FOLDERS[kind][0] for kind, _ in rest)
    return [
        (
            "videos",
            f"{counts}; outside the test list {labels[0]} of 712 real and {labels[1]} of 5299 fake: the validation "
            "split is drawn from the files present, so it is not that of a complete copy",
        )
    ]
