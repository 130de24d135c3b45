"""The files of the demo dataset: where they lie, and the jobs that write them. A file that exists is complete."""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np

from qadprep.demo import METHODS, METHODS_WITH_MASKS, RECIPES, STAND_IN_NOTE
from qadprep.demo.cast import Person
from qadprep.errors import UserError

QUALITIES = ("raw", "c23", "c40")
NOTICE_NAME = "STAND-INS.txt"
_SETTINGS = Path(".demo", "settings.json")
_LAYOUT_VERSION = 1


def video_path(root: Path, method: str, kind: str, name: str) -> Path:
    """Path of a clip; `method` is `original` or a manipulation, `kind` a quality or `masks`."""
    top = Path("original_sequences", "youtube") if method == "original" else Path("manipulated_sequences", method)
    return root / top / kind / "videos" / f"{name}.mp4"


def claim_folder(root: Path, people: Sequence[Person], seed: int) -> None:
    """Make sure that what lies under `root` is nothing, or an earlier run with the same people and seed.

    Raises:
        UserError: other videos are there.
    """
    settings = json.dumps(
        {
            "version": _LAYOUT_VERSION,
            "seed": seed,
            "people": [
                [
                    who.id,
                    who.split,
                    who.frames,
                    str(who.fps),
                    *who.size_px,
                    who.origin,
                    who.video_sha256,
                    who.window_xyxy,
                ]
                for who in people
            ],
        },
        indent=1,
    )
    file = root / _SETTINGS
    if file.exists():
        if file.read_text("utf-8") != settings:
            raise UserError(f"{root} holds a demo dataset of other settings or clips; name an empty folder")
    elif (root / "original_sequences").exists() or (root / "manipulated_sequences").exists():
        raise UserError(f"{root} holds videos that this command did not make; name an empty folder")
    else:
        _write_text(file, settings)
    # Halves left by a killed run; the encoder renames a file only when it is whole.
    for top in ("original_sequences", "manipulated_sequences"):
        for half in (root / top).rglob(".*.mp4.tmp"):
            half.unlink()


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(text, "utf-8")
    temporary.replace(file)


def write_notice(root: Path, people: Sequence[Person]) -> None:
    """Write STAND-INS.txt: what the fakes are, method by method, and what each original shows."""
    lines = [STAND_IN_NOTE, "", "How each folder's stand-ins were made:"]
    lines += [f"  {method}: {RECIPES[method]}." for method in METHODS]
    lines += ["", "What the originals are (the ids and splits are FaceForensics++'s, the people are not):"]
    lines += [f"  {who.id} ({who.split}): {who.origin}, {who.frames} frames" for who in people]
    if any(who.portrait for who in people):
        lines += [
            "",
            "A portrait is NASA's photograph of the astronaut Eileen Collins (public domain, one of scikit-image's",
            "bundled pictures), reshaped, recoloured and moved by warps into people who do not exist.",
        ]
    _write_text(root / NOTICE_NAME, "\n".join(lines) + "\n")


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for the jobs below. Always processes, also for one worker: the same single-threaded numerics."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    # Before torch is loaded: threads that outnumber the cores slow the detector down, and may change its last bits.
    os.environ["OMP_NUM_THREADS"] = "1"
    import cv2

    cv2.setNumThreads(1)


def write_original(root: Path, person: Person) -> tuple[int, int]:
    """Write one original at every quality; returns how many files were made and how many were there."""
    wanted = {quality: video_path(root, "original", quality, person.id) for quality in QUALITIES}
    if all(path.exists() for path in wanted.values()):
        return 0, len(wanted)
    frames = _pictures(person)
    return _write_missing(wanted, frames, person.fps)


def _pictures(person: Person) -> list[np.ndarray]:
    if person.video is None:
        from qadprep.demo.identities import make_identity
        from qadprep.demo.portrait import Portrait

        return [rgb for rgb, _ in Portrait(make_identity(*person.portrait), person.size_px).clip(person.frames)]
    from qadprep.demo.clips import read_frames

    frames = list(read_frames(person.video, person.frames, person.window_xyxy))
    if len(frames) != person.frames:
        raise UserError(f"{person.video}: {len(frames)} frames, {person.frames} a moment ago; was the file changed?")
    return frames


def _landmarks(person: Person) -> np.ndarray:
    if person.landmarks_xy is not None:
        return person.landmarks_xy
    from qadprep.demo.identities import make_identity
    from qadprep.demo.portrait import Portrait

    portrait = Portrait(make_identity(*person.portrait), person.size_px)
    return np.stack([portrait.landmarks(index) for index in range(person.frames)])


def write_fakes(root: Path, target: Person, source: Person, seed: int) -> tuple[int, int]:
    """Write the fakes of every method for one (target, source), with their masks; needs both originals' raw files.

    Returns:
        How many files were made and how many were there.
    """
    name = f"{target.id}_{source.id}"
    wanted = {
        method: {
            kind: video_path(root, method, kind, name)
            for kind in (*QUALITIES, *(["masks"] if method in METHODS_WITH_MASKS else []))
        }
        for method in METHODS
    }
    made = kept = 0
    clips = None
    for number, (method, paths) in enumerate(wanted.items()):
        if all(path.exists() for path in paths.values()):
            kept += len(paths)
            continue
        from qadprep.demo.fakes import make_fake

        clips = clips or (_read_original(root, target), _read_original(root, source))
        frames, masks = zip(*make_fake(method, *clips, (seed, number, int(target.id), int(source.id))), strict=True)
        # FF++'s fakes carry the frame rate of the source, although their frames are the target's.
        counts = _write_missing(paths, frames, source.fps, masks)
        made, kept = made + counts[0], kept + counts[1]
    return made, kept


def _read_original(root: Path, person: Person) -> object:
    """The original as the fakes' maker gets it: read back from the lossless raw file."""
    from qadprep.demo.fakes import Clip
    from qadprep.video.decode import decode_at
    from qadprep.video.probe import probe

    path = video_path(root, "original", "raw", person.id)
    info = probe(path)
    return Clip(decode_at(path, info, range(info.frames)), _landmarks(person))


def _write_missing(
    wanted: dict[str, Path], frames: Sequence[np.ndarray], fps: Fraction, masks: Sequence[np.ndarray] = ()
) -> tuple[int, int]:
    """Write the files of one clip that are not there yet, all from the same RGB frames as FF++ did."""
    from qadprep.video.encode import write_compressed, write_raw

    made = 0
    for kind, path in wanted.items():
        if path.exists():
            continue
        made += 1
        if kind == "raw":
            write_raw(frames, path, fps)
        elif kind == "masks":
            write_raw((np.repeat(mask[..., None], 3, axis=2) * np.uint8(255) for mask in masks), path, fps)
        else:
            write_compressed(frames, path, fps, int(kind.removeprefix("c")))
    return made, len(wanted) - made
