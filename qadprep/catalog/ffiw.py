"""FFIW-10K (tfzhou/FFIW; layout in docs/datasets/ffiw.md). Its folder `source` is real, `target` is fake."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import child, quality_roots, videos
from qadprep.errors import UserError

DATASET = "ffiw"
METHOD = "FFIW"
METHOD_OF = {"source": ORIGINAL, "target": METHOD}
MASKS = "target_mask"
RELEASES = ("FFIW10K-v1-release", "FFIW10K-v1-release-test")
# Clips of each class; the test split is an archive of its own.
COUNTS = {"train": 8000, "val": 250, "test": 1738}

_STEM = re.compile(r"(train|val|test)_[0-9]{8}")
_NAMED = 5  # names a remark shows


@register(DATASET, "FFIW-10K")
def read_ffiw(root: Path) -> Catalog:
    """Find every FFIW-10K clip under a root: one of the two archives' folders, or the folder that holds them.

    The same stem in `source` and `target` is one video before and after. Every face of a clip is taken (`faces` is
    `all`): which faces of a fake are fake is told by its mask alone.

    Raises:
        UserError: no FFIW-10K video below the root.
    """
    ignored: list[tuple[str, str]] = []
    found: dict[tuple[str, str], dict[str, str]] = {}
    masks: dict[str, str] = {}
    for quality, top in quality_roots(root):
        for base in (top, *(folder for name in RELEASES if (folder := child(top, name)))):
            for kind, method in METHOD_OF.items():
                for stem, path in _videos(base, kind, root, "", ignored):
                    here = found.setdefault((method, stem), {})
                    if quality in here:
                        ignored.append((path, f"{quality} is already there as {here[quality]}"))
                    else:
                        here[quality] = path
            for stem, path in _videos(base, MASKS, root, "_mask", ignored):
                if stem in masks:
                    ignored.append((path, f"the mask is already there as {masks[stem]}"))
                else:
                    masks[stem] = path
    if not found:
        raise UserError(
            f"{root}: no FFIW-10K video found; expected files such as source/val/val_00000000.mp4 below it or below "
            f"its folders {' and '.join(RELEASES)}"
        )
    clips = []
    gaps = []
    for (method, stem), paths in found.items():
        mask = masks.pop(stem, None) if method == METHOD else None
        clips.append(
            Clip(
                DATASET,
                method,
                stem,
                int(method == METHOD),
                stem.split("_")[0],
                stem,
                stem,
                "",
                paths,
                mask,
                faces="all",
            )
        )
        if method == METHOD and mask is None:
            gaps.append((_mask_path(next(iter(paths.values()))), "a fake video without its mask: no face label"))
    ignored += [(path, "a mask without its target video") for path in masks.values()]
    expected = {(method, split): number for method in METHOD_OF.values() for split, number in COUNTS.items()}
    return Catalog(DATASET, root, sort_clips(clips), ignored, gaps, _remarks(found), expected)


def _videos(
    base: Path, kind: str, root: Path, suffix: str, ignored: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """(video's stem, path relative to root) of the files in `<kind>/<split>` and `<kind>/<split>/videos`.

    Args:
        suffix: what follows the video's stem in the file's stem: `_mask` for masks.
    """
    kinds = child(base, kind)
    if kinds is None:
        return
    for split in COUNTS:
        folder = child(kinds, split)
        if folder is None:
            continue
        nested = child(folder, "videos")
        for place in (folder, *([nested] if nested else [])):
            for stem, path in videos(place, root, ignored):
                name = stem.removesuffix(suffix)
                match = _STEM.fullmatch(name)
                if not match or stem != name + suffix:
                    ignored.append((path, f"name does not match {split}_<8 digits>{suffix}.mp4"))
                elif match[1] != split:
                    ignored.append((path, f"named {match[1]}, but it lies in {split}"))
                else:
                    yield name, path


def _mask_path(target: str) -> str:
    """Where the mask of a fake is expected: the same tree below `target_mask`."""
    folders, _, name = target.rpartition("/")
    parts = folders.split("/")
    place = max(index for index, part in enumerate(parts) if part.lower() == "target")
    parts[place] = MASKS
    return "/".join([*parts, f"{name[: -len('.mp4')]}_mask.mp4"])


def _remarks(found: dict[tuple[str, str], dict[str, str]]) -> list[tuple[str, str]]:
    remarks = []
    if not any(stem.startswith("test_") for _, stem in found):
        remarks.append(
            (
                "test",
                f"no test video: the test split is a separate archive ({RELEASES[1]}); numbers on val and on test are "
                "different things, so say which one they are",
            )
        )
    shared = Counter(number for _, number in {tuple(stem.split("_")) for _, stem in found})
    several = sum(count > 1 for count in shared.values())
    if several:
        remarks.append(
            (
                "stems",
                f"{several} numbers occur in more than one split; nothing published says that equal numbers are one "
                "recording, so they are not counted as leaks",
            )
        )
    alone = sorted(stem for method, stem in found if method == METHOD and (ORIGINAL, stem) not in found)
    if alone:
        shown = ", ".join(alone[:_NAMED]) + (", ..." if len(alone) > _NAMED else "")
        remarks.append(("target", f"{len(alone)} fake videos have no source video: {shown}"))
    return remarks
