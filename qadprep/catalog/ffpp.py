"""FaceForensics++ as its download script writes it, and as copies of it are packed (docs/datasets/ffpp.md)."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.files import child, entries, relative, videos
from qadprep.catalog.splits import load_ffpp_splits
from qadprep.errors import UserError

DATASET = "ffpp"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
# Where the clips of a method lie below a root: the download script's folder first, then those of other copies.
ORIGINALS = ("original_sequences/youtube", "original_sequences", "youtube", "original")

_NAMELESS = "nothing names the quality"
_QUALITY = re.compile(r"raw|c[0-9]{1,2}", re.IGNORECASE)
_QUALITY_AT_END = re.compile(r"(?:.*[^A-Za-z0-9])?(raw|c[0-9]{1,2})", re.IGNORECASE)
_ORIGINAL_NAME = re.compile(r"[0-9]{3}")
_FAKE_NAME = re.compile(r"([0-9]{3})_([0-9]{3})")


def quality_folder(path: str, quality: str) -> str:
    """Where a made quality of a file lies: the same path with its quality folder replaced.

    A copy without quality folders (`original/000.mp4`) gets the download script's folders.
    """
    *folders, name = path.split("/")
    for place in reversed(range(len(folders))):
        if _QUALITY.fullmatch(folders[place]):
            return "/".join([*folders[:place], quality, *folders[place + 1 :], name])
    if folders and folders[-1].lower() == "videos":
        folders.pop()
    method = folders[-1] if folders else ""
    if method.lower() == "actors":
        return f"original_sequences/actors/{quality}/videos/{name}"
    if any(method.lower() == place.split("/")[-1] for place in ORIGINALS):
        return f"{ORIGINALS[0]}/{quality}/videos/{name}"
    return f"manipulated_sequences/{method}/{quality}/videos/{name}"


def expected_frames(method: str, target_frames: int, source_frames: int) -> int | None:
    """How many frames a fake has, from the lengths of its target and of its source; None where it is not known.

    Deepfakes is as long as the target, Face2Face as the source, FaceSwap and NeuralTextures as the shorter of the two.
    Source: lengths of release files, 10 fakes of each method in 5 reciprocal pairs; for FaceSwap also
    ondyari/FaceForensics, dataset/FaceSwapKowalski/README.md. FaceShifter was not measured.
    """
    shorter = min(target_frames, source_frames)
    known = {
        ORIGINAL: target_frames,
        "Deepfakes": target_frames,
        "Face2Face": source_frames,
        "FaceSwap": shorter,
        "NeuralTextures": shorter,
    }
    return known.get(method)


def target_frame(method: str, index: int, target_frames: int) -> int:
    """The target's frame that a fake's frame was made from, both counted from 0.

    It is the frame of the same number; only Face2Face goes on past the target's N frames, and there runs the target
    backwards: frame 2N - 3 - index. Source: pictures of release files compared, four Face2Face pairs past the end (one
    frame off at most, save one frame of one pair), one pair of each other method; FaceShifter was not measured.

    Raises:
        ValueError: the target gives no frame for this index: below 0, past the end of a method other than Face2Face,
            or past the point where the backward run has come to the target's start.
    """
    if 0 <= index < target_frames:
        return index
    back = 2 * target_frames - 3 - index
    if method != "Face2Face" or index < 0 or back < 0:
        raise ValueError(f"{method}: frame {index} has no counterpart in a target of {target_frames} frames")
    return back


def length_remark(method: str, own_frames: int, target_frames: int) -> str | None:
    """One sentence when a fake's length cannot be right for its target's (see `expected_frames`), else None."""
    if method == "Deepfakes" and own_frames != target_frames:
        return f"a Deepfakes clip has its target's length, {target_frames} frames, but this one has {own_frames}"
    if method in ("FaceSwap", "NeuralTextures") and own_frames > target_frames:
        return f"a {method} clip is never longer than its target, {target_frames} frames, but this one has {own_frames}"
    return None


@register(
    DATASET,
    "FaceForensics++",
    raw_is_lossless=True,
    compressed_path=quality_folder,
    inner_quality=True,
    length_remark=length_remark,
)
def read_ffpp(root: Path) -> Catalog:
    """Find every FF++ clip under a root.

    The first id of a fake is its target (the video whose frames were altered), the second the source of the face;
    a fake belongs to the group of its target.

    Raises:
        UserError: no FF++ video below the root; the message says which folder was expected.
    """
    split_of, official_fakes = _official_ids()
    ignored: list[tuple[str, str]] = []
    clips = [
        Clip(DATASET, ORIGINAL, name, 0, split_of[name], name, name, "", paths)
        for name, paths in _official(root, ORIGINALS, _ORIGINAL_NAME, split_of, ignored).items()
    ]
    for method in METHODS:
        places = method_places(method)
        masks = find_masks(root, places)
        for name, paths in _official(root, places, _FAKE_NAME, official_fakes, ignored).items():
            target, source = name.split("_")
            clips.append(
                Clip(DATASET, method, name, 1, split_of[target], target, target, source, paths, masks.get(name))
            )
    if not clips:
        raise_nothing_found(root, ignored, "FaceForensics++", "original_sequences/youtube/c23/videos/000.mp4")
    return Catalog(DATASET, root, sort_clips(clips), ignored, remarks=_remarks(root), expected=_expected())


def method_places(method: str) -> tuple[str, ...]:
    """Where the fakes of a method lie below a root."""
    return f"manipulated_sequences/{method}", method


def raise_nothing_found(root: Path, ignored: list[tuple[str, str]], title: str, example: str) -> None:
    """Say why a root has no clip of FF++ or of a part of it.

    Raises:
        UserError: always.
    """
    nameless = [path for path, reason in ignored if reason.startswith(_NAMELESS)]
    if nameless:
        raise UserError(
            f"{root}: the quality of the videos in {nameless[0]} cannot be told; rename the folder {_own_name(root)} "
            "so that it ends in its quality, such as _c23"
        )
    raise UserError(
        f"{root}: no {title} video found; expected files such as {example} below it (is this the folder that "
        "download-FaceForensics.py wrote into?)"
    )


def find_videos(root: Path, places: Sequence[str], ignored: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(quality, stem, path relative to root) of every mp4 file of one method, the official places first.

    In each place, `<place>/<quality>/videos` and `<place>/<quality>` are read, `c0` as `raw`; then the files of copies
    without quality folders, `<place>/videos` and `<place>`, whose quality is the end of the root's name, or of the name
    of a child of the root that holds such places (`FaceForensics++_C23`). A folder whose quality cannot be told is
    ignored as one entry.
    """
    for base, quality in _bases(root):
        for place in places:
            folder = _below(base, place)
            if folder is None:
                continue
            for inner in sorted(entries(folder), key=lambda entry: entry.name.lower() == "c0"):
                if _QUALITY.fullmatch(inner.name) and inner.is_dir():
                    for stem, path in _with_videos_folder(Path(inner.path), root, ignored):
                        yield _quality(inner.name), stem, path
            direct = list(_with_videos_folder(folder, root, ignored))
            if quality:
                yield from ((quality, stem, path) for stem, path in direct)
            elif direct:
                ignored.append((relative(folder, root), f"{_NAMELESS} of {len(direct)} videos directly in this folder"))


def find_masks(root: Path, places: Sequence[str]) -> dict[str, str]:
    """Stem -> path relative to root of a method's mask videos, one set for all qualities; FaceShifter has none."""
    found: dict[str, str] = {}
    for base, _ in _bases(root):
        for place in places:
            folder = _below(base, f"{place}/masks")
            if folder is not None:
                for stem, path in _with_videos_folder(folder, root, []):
                    found.setdefault(stem, path)
    return found


def _bases(root: Path) -> list[tuple[Path, str]]:
    """(folder, quality its name ends in or "") of the root and of its children that are named by a quality."""
    bases = [(root, _quality_at_end(_own_name(root)) or _quality_at_end(root.resolve().name))]
    for entry in entries(root):
        if entry.is_dir() and (quality := _quality_at_end(entry.name)):
            bases.append((Path(entry.path), quality))
    return bases


def _below(base: Path, place: str) -> Path | None:
    """The folder `place` (`a/b`, in any case) below a base."""
    folder: Path | None = base
    for name in place.split("/"):
        folder = folder and child(folder, name)
    return folder


def _own_name(root: Path) -> str:
    return Path(os.path.abspath(root)).name  # noqa: PTH100  (a link's own name, not its aim's)


def _quality_at_end(name: str) -> str:
    match = _QUALITY_AT_END.fullmatch(name)
    return _quality(match[1]) if match else ""


def _quality(name: str) -> str:
    """The download script calls the lossless quality `raw`, the repository's own scripts `c0`: they are the same."""
    return "raw" if name.lower() == "c0" else name.lower()


def _with_videos_folder(folder: Path, root: Path, ignored: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    nested = child(folder, "videos")
    for place in (*([nested] if nested else []), folder):
        yield from videos(place, root, ignored)


def _official(
    root: Path,
    places: Sequence[str],
    pattern: re.Pattern[str],
    official: dict[str, str],
    ignored: list[tuple[str, str]],
) -> dict[str, dict[str, str]]:
    """name -> {quality: relative path} of the videos in the official lists."""
    found: dict[str, dict[str, str]] = {}
    for quality, stem, path in find_videos(root, places, ignored):
        if not pattern.fullmatch(stem):
            ignored.append((path, f"name does not match {pattern.pattern}.mp4"))
        elif stem not in official:
            ignored.append((path, "not in the official split lists"))
        elif quality in found.setdefault(stem, {}):
            ignored.append((path, f"{quality} is already there as {found[stem][quality]}"))
        else:
            found[stem][quality] = path
    return found


def _official_ids() -> tuple[dict[str, str], dict[str, str]]:
    """id -> split for the originals, `target_source` -> split for the fakes (both orders of every pair)."""
    originals, fakes = {}, {}
    for split, pairs in load_ffpp_splits().items():
        for a, b in pairs:
            originals[a] = originals[b] = split
            fakes[f"{a}_{b}"] = fakes[f"{b}_{a}"] = split
    return originals, fakes


def _expected() -> dict[tuple[str, str], int]:
    return {
        (method, split): 2 * len(pairs)
        for method in (ORIGINAL, *METHODS)
        for split, pairs in load_ffpp_splits().items()
    }


def _remarks(root: Path) -> list[tuple[str, str]]:
    """The root may hold DeepFakeDetection too, which the download script fetches into the same folders."""
    remarks = []
    for base, _ in _bases(root):
        for place in ("original_sequences/actors", "actors", *method_places("DeepFakeDetection")):
            folder = _below(base, place)
            if folder is not None:
                remarks.append((relative(folder, root), "belongs to DeepFakeDetection: read it with --dataset dfd"))
    return remarks
