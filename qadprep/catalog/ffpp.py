"""FaceForensics++ as its download script writes it (ondyari/FaceForensics; layout in docs/datasets/ffpp.md)."""

import re
from pathlib import Path

from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips
from qadprep.catalog.splits import load_ffpp_splits
from qadprep.errors import UserError

DATASET = "ffpp"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
# The download script calls the lossless quality `raw`, the repository's own scripts `c0`: they are the same.
QUALITY_FOLDERS = {"raw": ("raw", "c0"), "c23": ("c23",), "c40": ("c40",)}

_ORIGINAL_NAME = re.compile(r"\d{3}")
_FAKE_NAME = re.compile(r"(\d{3})_(\d{3})")


@register(DATASET)
def read_ffpp(root: Path) -> Catalog:
    """Find every FF++ clip under a root.

    The first id of a fake is its target (the video whose frames were altered), the second the source of the face;
    a fake belongs to the group of its target.

    Raises:
        UserError: no FF++ video below the root; the message says which folder was expected.
    """
    split_of, official_fakes = _official_ids()
    ignored: list[tuple[str, str]] = []
    folder = root / "original_sequences" / "youtube"
    clips = [
        Clip(DATASET, ORIGINAL, name, 0, split_of[name], name, name, "", paths)
        for name, paths in _videos(root, folder, _ORIGINAL_NAME, split_of, ignored).items()
    ]
    for method in METHODS:
        folder = root / "manipulated_sequences" / method
        masks = folder / "masks" / "videos"
        mask_names = {file.stem for file in masks.glob("*.mp4")} if masks.is_dir() else set()
        for name, paths in _videos(root, folder, _FAKE_NAME, official_fakes, ignored).items():
            target, source = name.split("_")
            mask = str((masks / f"{name}.mp4").relative_to(root)) if name in mask_names else None
            clips.append(Clip(DATASET, method, name, 1, split_of[target], target, target, source, paths, mask))
    if not clips:
        raise UserError(
            f"{root}: no FaceForensics++ video found; expected files such as "
            "original_sequences/youtube/c23/videos/000.mp4 below it (is this the folder that download-FaceForensics.py "
            "wrote into?)"
        )
    return Catalog(DATASET, root, sort_clips(clips), ignored, _expected())


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


def _videos(
    root: Path,
    folder: Path,
    pattern: re.Pattern[str],
    official: dict[str, str],
    ignored: list[tuple[str, str]],
) -> dict[str, dict[str, str]]:
    """name -> {quality: relative path} of the videos below `<folder>/<quality>/videos`."""
    found: dict[str, dict[str, str]] = {}
    for quality, aliases in QUALITY_FOLDERS.items():
        for alias in aliases:
            videos = folder / alias / "videos"
            if not videos.is_dir():
                continue
            for file in sorted(videos.iterdir()):
                relative = str(file.relative_to(root))
                if file.name.startswith("."):
                    continue  # a downloader's or file manager's own hidden files
                if file.suffix.lower() != ".mp4":
                    ignored.append((relative, "not an mp4 file"))
                elif not pattern.fullmatch(file.stem):
                    ignored.append((relative, f"name does not match {pattern.pattern}.mp4"))
                elif file.stem not in official:
                    ignored.append((relative, "not in the official split lists"))
                elif quality in found.setdefault(file.stem, {}):
                    ignored.append((relative, f"{quality} is already there as {found[file.stem][quality]}"))
                else:
                    found[file.stem][quality] = relative
    return found
