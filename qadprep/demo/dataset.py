"""Write the demo dataset: originals and stand-in fakes at three qualities in the official FF++ layout."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from qadprep.demo import METHODS
from qadprep.demo.cast import SPLITS, Person, Skipped, cast_clips, cast_portraits, make_slots
from qadprep.demo.fakes import fake_length
from qadprep.demo.files import claim_folder, worker_pool, write_fakes, write_notice, write_original
from qadprep.errors import UserError

DEFAULT_PAIRS: Mapping[str, int] = {"train": 4, "val": 1, "test": 2}
DEFAULT_FRAMES = 32
DEFAULT_SIZE_PX = (272, 208)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoClip:
    """One clip of the dataset, at three qualities.

    Attributes:
        split: `train`, `val` or `test`; method: `original` or a name of `METHODS`; name: file stem.
        target, source: ids; source is None for originals.
        frames: how many frames the file has; fps: its rate (a fake's is its source's, as in FF++).
        origin: what the clip is, such as `portrait 3`, the name of a video, or `stand-in for Deepfakes`.
    """

    split: str
    method: str
    name: str
    target: str
    source: str | None
    frames: int
    fps: Fraction
    origin: str


@dataclass(frozen=True)
class DemoDataset:
    """What `make_dataset` made.

    Attributes:
        root: the FF++ root.
        pairs: split -> unordered pairs of ids, from the official lists.
        clips: every clip, originals first.
        skipped: videos of `clips_dir` that could not be used, with reasons.
        unused: videos that were not needed.
        from_clips: how many originals are the person's own videos; the others are made from the portrait.
        files_made, files_kept: videos written now, and found complete from an earlier run.
        seconds: wall-clock time.
    """

    root: Path
    pairs: dict[str, tuple[tuple[str, str], ...]]
    clips: tuple[DemoClip, ...]
    skipped: tuple[Skipped, ...]
    unused: tuple[Path, ...]
    from_clips: int
    files_made: int
    files_kept: int
    seconds: float


def make_dataset(
    root: Path,
    *,
    clips_dir: Path | None = None,
    frames: int = DEFAULT_FRAMES,
    size_px: tuple[int, int] = DEFAULT_SIZE_PX,
    pairs: Mapping[str, int] = DEFAULT_PAIRS,
    seed: int = 0,
    workers: int = 2,
    detector: str = "mtcnn",
    progress: Progress | None = None,
) -> DemoDataset:
    """Make a small dataset in the official FF++ layout; its fakes are stand-ins made by image operations.

    Args:
        root: folder to write into; files complete there from the same settings are kept.
        clips_dir: folder of face videos for the originals (see `clips.find_people`); without it, and for what it
            cannot fill, originals are synthetic portraits.
        frames: frames of the longest original; the others are up to 3/16 shorter, so that pairs differ in length.
        size_px: (width, height) of the portraits, even, at least 96; videos are cut to the
            surroundings of the face, long side at most 320.
        pairs: split -> number of pairs; each gives 2 originals and 2 fakes a method, each at 3 qualities.
        seed: decides the portraits and the fakes' constants.
        workers: processes. The bytes written do not depend on it.
        detector: finds the landmarks of `clips_dir`'s faces; portraits know theirs.
        progress: called with (stage, done, total); stages `clips`, `originals`, `fakes`.

    Raises:
        UserError: a bad argument, a folder with other settings' files, or no usable video in `clips_dir`.
    """
    begun = time.monotonic()
    _check(frames, size_px, pairs, workers)
    root, tell = Path(root), progress or (lambda stage, done, total: None)
    slots = make_slots(pairs)
    skipped: tuple[Skipped, ...] = ()
    unused: tuple[Path, ...] = ()
    with worker_pool(workers) as pool:
        if clips_dir is None:
            people = cast_portraits(slots, frames, size_px, seed)
        else:
            cast = cast_clips(pool, Path(clips_dir), slots, frames, size_px, seed, detector, tell)
            people, skipped, unused = cast.people, cast.skipped, cast.unused
        claim_folder(root, people, seed)
        made, kept = _finish("originals", [pool.submit(write_original, root, who) for who in people], tell)
        by_id = {who.id: who for who in people}
        orders = [order for group in _pairs(people).values() for a, b in group for order in ((a, b), (b, a))]
        jobs = [pool.submit(write_fakes, root, by_id[target], by_id[source], seed) for target, source in orders]
        made_fakes, kept_fakes = _finish("fakes", jobs, tell)
    write_notice(root, people)
    return DemoDataset(
        root=root,
        pairs=_pairs(people),
        clips=_clips(people),
        skipped=skipped,
        unused=unused,
        from_clips=sum(person.video is not None for person in people),
        files_made=made + made_fakes,
        files_kept=kept + kept_fakes,
        seconds=time.monotonic() - begun,
    )


def _check(frames: int, size_px: tuple[int, int], pairs: Mapping[str, int], workers: int) -> None:
    if not 8 <= frames <= 10_000:
        raise UserError(f"demo: frames must be 8..10000, got {frames}")
    if any(side % 2 or not 96 <= side <= 2000 for side in size_px):
        raise UserError(f"demo: frame sides must be even and 96..2000 px, got {size_px[0]}x{size_px[1]}")
    if set(pairs) - set(SPLITS) or sum(pairs.values()) < 1 or min(pairs.values()) < 0:
        raise UserError(f"demo: pairs must count at least one pair for {', '.join(SPLITS)}, got {dict(pairs)}")
    if workers < 1:
        raise UserError(f"demo: at least 1 worker needed, got {workers}")


def _finish(stage: str, jobs: Sequence[Future[tuple[int, int]]], tell: Progress) -> tuple[int, int]:
    """Wait for the jobs in order; sums of the files made and kept."""
    made = kept = 0
    for done, job in enumerate(jobs, 1):
        made, kept = made + job.result()[0], kept + job.result()[1]
        tell(stage, done, len(jobs))
    return made, kept


def _pairs(people: Sequence[Person]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Split -> its unordered pairs of ids; people come in pairs."""
    couples = list(zip(people[::2], people[1::2], strict=True))
    return {split: tuple((a.id, b.id) for a, b in couples if a.split == split) for split in SPLITS}


def _clips(people: Sequence[Person]) -> tuple[DemoClip, ...]:
    originals = [DemoClip(p.split, "original", p.id, p.id, None, p.frames, p.fps, p.origin) for p in people]
    fakes = [
        DemoClip(
            target.split,
            method,
            f"{target.id}_{source.id}",
            target.id,
            source.id,
            fake_length(method, target.frames, source.frames),
            source.fps,
            f"stand-in for {method}",
        )
        for method in METHODS
        for first, second in zip(people[::2], people[1::2], strict=True)
        for target, source in ((first, second), (second, first))
    ]
    return (*originals, *fakes)
