"""Who plays in the demo: official FF++ ids, each given to a synthetic portrait or to a video of the user's own."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from qadprep.catalog.splits import load_ffpp_splits
from qadprep.demo.clips import UsableClip, assess_person, find_people
from qadprep.errors import UserError

SPLITS = ("train", "val", "test")
# A few own videos go to the test set first: there the score table shows them.
_FILL_ORDER = ("test", "train", "val")


@dataclass(frozen=True)
class Slot:
    """A place for one person: an official id and its split. Slots 2k and 2k+1 are a pair."""

    id: str
    split: str


@dataclass(frozen=True)
class Person:
    """One original.

    Attributes:
        id, split: its place in FF++.
        frames: length of the clip; fps: its rate.
        size_px: (width, height) of a portrait; (0, 0) for a video, whose own shape decides.
        portrait: (number, seed) for `make_identity`, or None.
        video: the user's video, or None; video_sha256 of its bytes; window_xyxy the part of it that is used, in px.
        landmarks_xy: float32 (frames, 5, 2) for a video; None for a portrait, which works its own out.
    """

    id: str
    split: str
    frames: int
    fps: Fraction
    size_px: tuple[int, int]
    portrait: tuple[int, int] | None = None
    video: Path | None = None
    video_sha256: str = ""
    window_xyxy: tuple[int, int, int, int] | None = None
    landmarks_xy: np.ndarray | None = None

    @property
    def origin(self) -> str:
        """What the original shows, in words without a folder."""
        return self.video.name if self.video else f"portrait {self.portrait[0]}"


@dataclass(frozen=True)
class Skipped:
    """A video that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Cast:
    """The people in slot order, the videos that could not be used, and those that were not needed."""

    people: list[Person]
    skipped: tuple[Skipped, ...]
    unused: tuple[Path, ...]


def make_slots(pairs: Mapping[str, int]) -> list[Slot]:
    """The first pairs of the official lists, `pairs[split]` of each, in the order in which people fill them.

    Raises:
        UserError: more pairs than the official list has.
    """
    official = load_ffpp_splits()
    for split, count in pairs.items():
        if count > len(official[split]):
            raise UserError(f"demo: {count} {split} pairs asked for, FF++'s list has {len(official[split])}")
    return [
        Slot(id_, split)
        for turn in range(max(pairs.values()))
        for split in _FILL_ORDER
        if turn < pairs.get(split, 0)
        for id_ in official[split][turn]
    ]


def cast_portraits(slots: Sequence[Slot], frames: int, size_px: tuple[int, int], seed: int) -> list[Person]:
    """A synthetic person for every slot."""
    return [_portrait(slot, k, frames, size_px, seed) for k, slot in enumerate(slots)]


def _portrait(slot: Slot, k: int, frames: int, size_px: tuple[int, int], seed: int) -> Person:
    # 25 and 30 fps within each pair: a fake carries its source's rate, as in FF++, and pairs by index all the same.
    return Person(slot.id, slot.split, _length(k, frames), Fraction((25, 30)[k % 2]), size_px, portrait=(k, seed))


def _length(k: int, frames: int) -> int:
    """Lengths differ within a pair, so that FF++'s rules about the length of a fake show."""
    return frames - (0, 3, 1, 2)[k % 4] * max(1, frames // 16)


def cast_clips(
    pool: Executor,
    folder: Path,
    slots: Sequence[Slot],
    frames: int,
    size_px: tuple[int, int],
    seed: int,
    detector: str,
    tell: Callable[[str, int, int], None],
) -> Cast:
    """Give the slots to the videos of a folder, by name; portraits take the slots left over.

    Every slot gets another person, so nobody is in two splits. The choice depends on the videos alone, not on which
    worker is first: as many are looked at as there are places left, then the next as many.

    Raises:
        UserError: no usable video; the message says why the first few were not.
    """
    waiting = find_people(folder)
    usable: list[UsableClip] = []
    skipped: list[Skipped] = []
    looked_at = 0
    while waiting and len(usable) < len(slots):
        batch, waiting = waiting[: len(slots) - len(usable)], waiting[len(slots) - len(usable) :]
        jobs = [pool.submit(assess_person, videos, frames, detector) for videos in batch]
        for job in jobs:
            clip, passed = job.result()
            skipped += [Skipped(path, reason) for path, reason in passed]
            twin = next((known for known in usable if clip and known.sha256 == clip.sha256), None)
            if twin:
                skipped.append(Skipped(clip.path, f"the same file as {twin.path.name}"))
            elif clip:
                usable.append(clip)
            looked_at += 1
            tell("clips", looked_at, looked_at + len(waiting) if len(usable) < len(slots) else looked_at)
    if not usable:
        reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in skipped[:3])
        raise UserError(f"--clips: none of the {len(skipped)} videos in {folder} can be used ({reasons})")
    people = []
    for k, slot in enumerate(slots):
        if k >= len(usable):
            people.append(_portrait(slot, k, frames, size_px, seed))
            continue
        clip = usable[k]
        count = min(_length(k, frames), len(clip.landmarks_xy))
        person = Person(
            slot.id,
            slot.split,
            count,
            clip.fps,
            (0, 0),
            video=clip.path,
            video_sha256=clip.sha256,
            window_xyxy=clip.window_xyxy,
            landmarks_xy=clip.landmarks_xy[:count],
        )
        people.append(person)
    return Cast(people, tuple(skipped), tuple(path for videos in waiting for path in videos))
