"""`qadprep plan`: a protocol in numbers, what the dataset on disk gives of it, what it takes in disk and time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qadprep.catalog.base import ORIGINAL, Clip, read_dataset
from qadprep.errors import UserError
from qadprep.machine import available_cores
from qadprep.plan_trial import Trial, run_trial
from qadprep.protocols import Protocol, select
from qadprep.video.encode import crf_of

# Mean size of a stored crop (PNG, level 3) of 128 px, align box, margin 1.3, in bytes a pixel: 6 crops of each of 26
# talking-head videos (256 to 1920 px wide, most of them H.264 to begin with) that count as raw; single videos lie
# between 1.1 and 1.9. Printed by scripts/measure_crop_bytes.py.
BYTES_PER_PIXEL = {"raw": 1.55, "c23": 1.55, "c40": 1.44}
# A tar's header and the filling of its last block.
BYTES_PER_CROP = 768
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitPlan:
    """The arithmetic of a split; None where it is taken whole and so has no number.

    Attributes:
        videos: per class.
        printed: images that the publication prints.
    """

    split: str
    videos: int | None
    tuples: int | None
    images: int | None
    printed: int | None


@dataclass(frozen=True)
class ClassPlan:
    """One (method, split) on disk.

    Attributes:
        there: videos on disk.
        wanted: videos the protocol wants; None for all.
        taken: videos it gets.
        tuples: taken x frames: frames without a face and short videos come off it; where every face is taken, more
            than one face a frame adds to it.
    """

    method: str
    split: str
    there: int
    wanted: int | None
    taken: int
    tuples: int


@dataclass(frozen=True)
class Plan:
    """What `plan` found out.

    Attributes:
        bytes: forecast for the face packs by `BYTES_PER_PIXEL`; with a root for what it can give. None without numbers.
        root: the dataset's root; what follows needs it.
        classes: per method and split.
        lacking: quality -> clips of the protocol that have no file of it.
        every_face: whether a clip gives tuples of all its faces.
        without_original: fakes of the protocol whose original it does not take: they are cut by their own geometry.
        trial: None when it was not asked for or came to nothing.
    """

    protocol: Protocol
    splits: list[SplitPlan]
    bytes: int | None
    notes: list[str]
    root: Path | None = None
    classes: list[ClassPlan] = field(default_factory=list)
    lacking: dict[str, int] = field(default_factory=dict)
    without_original: int = 0
    every_face: bool = False
    trial: Trial | None = None

    def reachable(self, split: str) -> int:
        """Images that the videos on disk can give of a split at one face a frame, at most."""
        return sum(c.tuples for c in self.classes if c.split == split) * len(self.protocol.qualities)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "protocol": self.protocol.model_dump(mode="json"),
            "splits": [
                asdict(split)
                | {
                    "difference": split.images - split.printed if split.images and split.printed else None,
                    "reachable": self.reachable(split.split) if self.root else None,
                }
                for split in self.splits
            ],
            "bytes": self.bytes,
            "notes": self.notes,
            "root": str(self.root) if self.root else None,
            "classes": [asdict(entry) for entry in self.classes],
            "lacking": self.lacking,
            "without_original": self.without_original,
            "every_face": self.every_face,
            "trial": asdict(self.trial) if self.trial else None,
        }

    def lines(self) -> list[str]:
        """For people."""
        from qadprep.plan_text import plan_lines

        return plan_lines(self)


def plan(
    protocol: Protocol,
    root: Path | None = None,
    measure_groups: int = 2,
    seed: int = 0,
    *,
    workers: int = 0,
    detector: str = "auto",
    weights: Path | None = None,
    device: str = "cpu",
) -> Plan:
    """A protocol's arithmetic; with a root also what the dataset there can give, and a forecast from a trial.

    Args:
        root: the dataset's root folder.
        measure_groups: groups that are really extracted, into a temporary folder; 0 measures none.
        seed: decides which videos the protocol takes, and which groups are measured.
        workers: processes the time is forecast for; 0 takes one per core.
        detector, weights, device: of the trial, as for `extract`.

    Raises:
        UserError: no dataset at the root, or no video in it that the protocol wants.
    """
    splits = [
        SplitPlan(
            split,
            protocol.videos_per_class.get(split),
            protocol.tuples(split),
            protocol.images(split),
            protocol.printed.get(split),
        )
        for split in SPLITS
    ]
    notes = [*_against_lists(protocol), *protocol.notes]
    tuples = None if any(split.tuples is None for split in splits) else sum(split.tuples for split in splits)
    if root is None:
        return Plan(protocol, splits, tuples and packs_bytes(protocol, tuples), notes)
    catalog = read_dataset(protocol.dataset, root)
    selection = select(catalog.clips, protocol, seed)
    clips = selection.clips
    if not clips:
        raise UserError(f"{root}: no video that protocol {protocol.name!r} wants")
    classes = _classes(catalog.clips, clips, protocol)
    lacking = {q: n for q in protocol.qualities if (n := sum(q not in clip.paths for clip in clips))}
    groups = {clip.group for clip in clips if clip.method == ORIGINAL}
    notes += _missing_qualities(lacking, len(clips))
    trial = None
    if measure_groups:
        trial, remark = run_trial(
            clips, catalog.root, protocol, measure_groups, seed, workers or available_cores(), detector, weights, device
        )
        notes += [remark] if remark else []
    return Plan(
        protocol,
        splits,
        packs_bytes(protocol, sum(entry.tuples for entry in classes)),
        notes,
        catalog.root,
        classes,
        lacking,
        sum(clip.label == 1 and clip.group not in groups for clip in clips),
        any(clip.faces == "all" for clip in clips),
        trial,
    )


def packs_bytes(protocol: Protocol, tuples: int) -> int:
    """Forecast of the face packs' size; a quality without a measured constant counts as the largest one."""
    most = max(BYTES_PER_PIXEL.values())
    pixels = sum(BYTES_PER_PIXEL.get(quality, most) for quality in protocol.qualities) * protocol.size_px**2
    return round(tuples * (pixels + BYTES_PER_CROP * len(protocol.qualities)))


def _against_lists(protocol: Protocol) -> list[str]:
    """By how much a split taken whole from the dataset's own lists would miss the protocol's number."""
    notes = []
    for split, official in protocol.official.items():
        wanted = protocol.videos_per_class.get(split)
        if wanted is None or all(number == wanted for number in official.values()):
            continue
        whole = sum(official.values()) * protocol.frames * len(protocol.qualities)
        words = " + ".join(f"{number:,} {method}" for method, number in official.items())
        notes.append(
            f"{split}: the dataset's own split has {words} videos, {whole:,} images at {protocol.frames} frames, "
            f"{whole - protocol.images(split):+,} against this protocol's {protocol.images(split):,}: the paper's "
            f"{split} split is not the whole of it; {wanted} videos of each class are drawn"
        )
    return notes


def _classes(there: Sequence[Clip], taken: Sequence[Clip], protocol: Protocol) -> list[ClassPlan]:
    on_disk = Counter((clip.method, clip.split) for clip in there)
    got = Counter((clip.method, clip.split) for clip in taken)
    named = [*SPLITS, *sorted({split for _, split in got} - set(SPLITS))]
    return [
        ClassPlan(
            method,
            split,
            on_disk[method, split],
            protocol.videos_per_class.get(split),
            got[method, split],
            got[method, split] * protocol.frames,
        )
        for split in named
        for method in protocol.classes
        if got[method, split] or split in protocol.videos_per_class
    ]


def _missing_qualities(lacking: dict[str, int], clips: int) -> list[str]:
    notes = []
    for quality, number in lacking.items():
        which = "no video is" if number == clips else f"{number:,} of {clips:,} videos are not"
        how = "`qadprep compress` or `extract --make-qualities` makes it" if crf_of(quality) else "it must be fetched"
        notes.append(f"{which} on disk at {quality}: {how}")
    return notes
