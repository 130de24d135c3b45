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
# A face fills about a third of an original cut from a video: enough for crops of 128 px, and small enough that
# lossless files of it are made in seconds.
LONG_SIDE_PX = 320
_DETECT_LONG_SIDE_PX = 640
# Space kept around all places of the face, in faces.
_SPACE = 1.0
# Every second frame is looked at; the landmarks of the others lie between.
_DETECT_EVERY = 2
_MIN_FACE_SHARE = 0.9
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
        window_xyxy: the part of its pictures around the face that is used, in px of the video; fixed over time.
        landmarks_xy: float32 (n, 5, 2) for its first n frames, in px of what `read_frames` gives for that window.
    """

    path: Path
    sha256: str
    fps: Fraction
    window_xyxy: tuple[int, int, int, int]
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
        info = probe(path)
        pictures = list(read_frames(path, frames, long_side_px=_DETECT_LONG_SIDE_PX))
    except ProbeError as error:
        raise ClipRejected(f"cannot be read ({error.reason})") from error
    if len(pictures) < _MIN_FRAMES:
        raise ClipRejected(f"too short: {len(pictures)} frames, at least {_MIN_FRAMES} needed")
    if min(info.width, info.height) < _MIN_SHORT_SIDE_PX:
        raise ClipRejected(f"too small: {info.width}x{info.height}, at least {_MIN_SHORT_SIDE_PX} px a side needed")
    looked_at = range(0, len(pictures), _DETECT_EVERY)
    found = _detector(detector).detect([pictures[index] for index in looked_at])
    track = largest_track(dict(zip(looked_at, found, strict=True)))
    seen = len(track.faces) if track else 0
    if seen < _MIN_FACE_SHARE * len(looked_at):
        raise ClipRejected(f"no face to follow: one in {seen} of the {len(looked_at)} frames looked at")
    full_size = np.array([info.width, info.height])
    enlarge = full_size / pictures[0].shape[1::-1]
    window = _window(np.stack([face.box_xyxy for face in track.faces.values()]) * np.tile(enlarge, 2), full_size)
    corner, size = np.array(window[:2]), np.array(window[2:]) - window[:2]
    shrink = _fitted(*size, LONG_SIDE_PX) / size
    # Pixel centres: the middle of pixel i lies at i + 0.5 on every scale.
    found_at = {i: ((face.landmarks_xy + 0.5) * enlarge - corner) * shrink - 0.5 for i, face in track.faces.items()}
    landmarks = smooth_landmarks(found_at, len(pictures))
    eyes_px = float(np.median(np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=1)))
    if eyes_px < _MIN_EYES_PX:
        raise ClipRejected(f"face too small: eyes {eyes_px:.0f} px apart, {_MIN_EYES_PX:.0f} needed")
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return UsableClip(path, sha256, info.fps, window, landmarks)


def _window(boxes_xyxy: np.ndarray, full_size: np.ndarray) -> tuple[int, int, int, int]:
    """The part of the picture that holds every place of the face (n, 4) and some space, px of the video."""
    space = _SPACE * np.median((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1))
    low = np.clip(boxes_xyxy[:, :2].min(axis=0) - space, 0, full_size)
    high = np.clip(boxes_xyxy[:, 2:].max(axis=0) + space, 0, full_size)
    return (*np.floor(low).astype(int).tolist(), *np.ceil(high).astype(int).tolist())


def _fitted(width: int, height: int, long_side_px: int) -> np.ndarray:
    """(width, height) shrunk to a long side, never enlarged; even, so that 4:2:0 could store the pictures as well."""
    factor = min(1.0, long_side_px / max(width, height))
    return np.array([max(2, 2 * round(side * factor / 2)) for side in (width, height)])


def read_frames(
    path: Path,
    frames: int,
    window_xyxy: tuple[int, int, int, int] | None = None,
    long_side_px: int = LONG_SIDE_PX,
) -> Iterator[np.ndarray]:
    """The first `frames` frames (fewer where the video ends), RGB uint8 with even sides, long side bounded.

    Args:
        window_xyxy: the part of the pictures to cut out first, px of the video; None takes all.

    Raises:
        qadprep.video.probe.ProbeError: not a readable video.
    """
    import cv2

    from qadprep.video.decode import iter_frames
    from qadprep.video.probe import probe

    info = probe(path)
    x0, y0, x1, y1 = window_xyxy or (0, 0, info.width, info.height)
    width, height = _fitted(x1 - x0, y1 - y0, long_side_px).tolist()
    every = iter_frames(path, info)
    try:
        for frame in itertools.islice(every, frames):
            part = np.ascontiguousarray(frame[y0:y1, x0:x1])
            same = part.shape[:2] == (height, width)
            yield part if same else cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
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
