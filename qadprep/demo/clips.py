"""Originals from a folder of somebody's own face videos: which can be used, why others cannot, and their landmarks."""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from qadprep.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm")
# Enough for a face of 128 px, and small enough that lossless files of it are made in seconds.
LONG_SIDE_PX = 384
# Every second frame is looked at; the landmarks of the others lie between.
_DETECT_EVERY = 2
_MIN_FACE_SHARE = 0.7
_MIN_EYES_PX = 16.0
_MIN_SHORT_SIDE_PX = 96
_MIN_FRAMES = 8


class ClipRejected(Exception):
    """A video that cannot be an original of the demo; the message is the reason in a few words."""


@dataclass(frozen=True)
class UsableClip:
    """A video that can be an original.

    Attributes:
        path: the video; sha256: of its bytes, to notice the same file under two names.
        fps: its frame rate.
        landmarks_xy: float32 (n, 5, 2) for its first n frames, in px of the frames that `read_frames` gives.
    """

    path: Path
    sha256: str
    fps: Fraction
    landmarks_xy: np.ndarray


def find_people(folder: Path) -> list[tuple[Path, ...]]:
    """The videos of a folder, one entry a person, sorted by name.

    Each video lying in the folder is taken for another person; the videos of a sub-folder all show one person.

    Raises:
        UserError: no such folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--clips: {folder} is not a folder; name a folder of face videos")
    people: list[tuple[Path, ...]] = []
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            videos = tuple(sorted(path for path in entry.rglob("*") if _is_video(path)))
            if videos:
                people.append(videos)
        elif _is_video(entry):
            people.append((entry,))
    if not people:
        raise UserError(f"--clips: no video in {folder}; expected files ending in {', '.join(VIDEO_SUFFIXES)}")
    return people


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def assess(path: Path, frames: int, detector: str) -> UsableClip:
    """Read the first `frames` frames of a video and follow the largest face through them.

    Args:
        detector: name for `qadprep.faces.make_detector`.

    Raises:
        ClipRejected: unreadable, too short, too small, or no face that is large enough and there most of the time.
    """
    from qadprep.faces.tracking import largest_track
    from qadprep.video.probe import ProbeError, probe

    try:
        fps = probe(path).fps
        pictures = list(read_frames(path, frames))
    except ProbeError as error:
        raise ClipRejected(f"cannot be read ({error.reason})") from error
    if len(pictures) < _MIN_FRAMES:
        raise ClipRejected(f"too short: {len(pictures)} frames, at least {_MIN_FRAMES} needed")
    height, width = pictures[0].shape[:2]
    if min(height, width) < _MIN_SHORT_SIDE_PX:
        raise ClipRejected(f"too small: {width}x{height}, at least {_MIN_SHORT_SIDE_PX} px a side needed")
    looked_at = range(0, len(pictures), _DETECT_EVERY)
    found = _detector(detector).detect([pictures[index] for index in looked_at])
    track = largest_track(dict(zip(looked_at, found, strict=True)))
    seen = len(track.faces) if track else 0
    if seen < _MIN_FACE_SHARE * len(looked_at):
        raise ClipRejected(f"no face to follow: one in {seen} of the {len(looked_at)} frames looked at")
    landmarks = smooth_landmarks({i: face.landmarks_xy for i, face in track.faces.items()}, len(pictures))
    eyes_px = float(np.median(np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=1)))
    if eyes_px < _MIN_EYES_PX:
        raise ClipRejected(
            f"face too small: eyes {eyes_px:.0f} px apart at {width}x{height}, {_MIN_EYES_PX:.0f} needed"
        )
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return UsableClip(path, sha256, fps, landmarks)


def read_frames(path: Path, frames: int, long_side_px: int = LONG_SIDE_PX) -> Iterator[np.ndarray]:
    """The first `frames` frames (fewer where the video ends), RGB uint8 with even sides, long side bounded.

    Raises:
        qadprep.video.probe.ProbeError: not a readable video.
    """
    import cv2

    from qadprep.video.decode import iter_frames
    from qadprep.video.probe import probe

    info = probe(path)
    factor = min(1.0, long_side_px / max(info.width, info.height))
    # Even sides, so that the same pictures could also be stored as 4:2:0.
    width, height = (max(2, 2 * round(side * factor / 2)) for side in (info.width, info.height))
    every = iter_frames(path, info)
    try:
        for frame in itertools.islice(every, frames):
            same = frame.shape[:2] == (height, width)
            yield frame if same else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    finally:
        every.close()


def smooth_landmarks(found: dict[int, np.ndarray], frames: int) -> np.ndarray:
    """Landmarks for every frame from those of some: linear in between, held at the ends, then smoothed over time.

    Args:
        found: frame index -> (5, 2), not empty.

    Returns:
        float32 (frames, 5, 2). The smoothing is a symmetric kernel over 5 frames, so a steady motion is kept as it is.
    """
    known = np.array(sorted(found))
    values = np.stack([np.asarray(found[index], np.float64).reshape(10) for index in known])
    dense = np.stack([np.interp(np.arange(frames), known, column) for column in values.T], axis=1)
    kernel = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    # Mirrored through the end points: repeating them would drag a moving face behind at both ends.
    head, tail = 2 * dense[0] - dense[2:0:-1], 2 * dense[-1] - dense[-2:-4:-1]
    padded = np.concatenate([head, dense, tail])
    smooth = sum(weight * padded[k : k + frames] for k, weight in enumerate(kernel))
    return smooth.reshape(frames, 5, 2).astype(np.float32)


def assess_person(
    videos: Sequence[Path], frames: int, detector: str
) -> tuple[UsableClip | None, list[tuple[Path, str]]]:
    """The first usable video of one person (None without one), and the videos passed over with their reasons."""
    passed: list[tuple[Path, str]] = []
    for path in videos:
        try:
            return assess(path, frames, detector), passed
        except ClipRejected as reason:
            passed.append((path, str(reason)))
    return None, passed


@functools.cache
def _detector(name: str) -> object:
    """One detector a process: its weights take seconds to load."""
    from qadprep.faces import make_detector

    return make_detector(name)
