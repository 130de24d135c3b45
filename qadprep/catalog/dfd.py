"""DeepFakeDetection, which lies in FaceForensics++'s folders but is no part of it (docs/datasets/dfd.md)."""

import re
from pathlib import Path

from qadprep.catalog import ffpp
from qadprep.catalog.base import ORIGINAL, Catalog, Clip, register, sort_clips

DATASET = "dfd"
METHOD = "DeepFakeDetection"
ORIGINALS = ("original_sequences/actors", "actors")

_SCENE = r"[A-Za-z0-9_-]+"
_ORIGINAL_NAME = re.compile(rf"(?P<target>[0-9]{{2}})__(?P<scene>{_SCENE})")
_FAKE_NAME = re.compile(rf"(?P<target>[0-9]{{2}})_(?P<source>[0-9]{{2}})__(?P<scene>{_SCENE})__[A-Za-z0-9]{{8}}")


@register(DATASET, METHOD, raw_is_lossless=True, compressed_path=ffpp.quality_folder, inner_quality=True)
def read_dfd(root: Path) -> Catalog:
    """Find every DeepFakeDetection clip below a root of FaceForensics++ (same folders, same qualities).

    The first actor of a fake is its target, the second the source of the face; a fake belongs to the group of the
    target actor's video of the same scene. There is no official split: it is `none` everywhere.

    Raises:
        UserError: no DeepFakeDetection video below the root.
    """
    ignored: list[tuple[str, str]] = []
    clips = []
    for method, places, pattern, words in (
        (ORIGINAL, ORIGINALS, _ORIGINAL_NAME, "<actor>__<scene>"),
        (METHOD, ffpp.method_places(METHOD), _FAKE_NAME, "<target>_<source>__<scene>__<8 characters>"),
    ):
        found: dict[str, dict[str, str]] = {}
        for quality, stem, path in ffpp.find_videos(root, places, ignored):
            if not pattern.fullmatch(stem):
                ignored.append((path, f"name does not match {words}.mp4"))
            elif quality in found.setdefault(stem, {}):
                ignored.append((path, f"{quality} is already there as {found[stem][quality]}"))
            else:
                found[stem][quality] = path
        masks = ffpp.find_masks(root, places) if method == METHOD else {}
        for stem, paths in found.items():
            parts = pattern.fullmatch(stem).groupdict()
            target = parts["target"]
            group = f"{target}__{parts['scene']}"
            source = parts.get("source", "")
            label = int(method == METHOD)
            clips.append(Clip(DATASET, method, stem, label, "none", group, target, source, paths, masks.get(stem)))
    if not clips:
        ffpp.raise_nothing_found(root, ignored, METHOD, "original_sequences/actors/c23/videos/01__exit_phone_room.mp4")
    return Catalog(DATASET, root, sort_clips(clips), ignored)
