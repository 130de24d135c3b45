"""Follow faces through sparsely sampled frames, and name the person a clip is about.

Sampled frames may lie one frame apart or dozens, so a pair of sightings is judged by how far the face moved
in units of its own size, with an allowance that grows with the gap. No picture content is looked at: after a
cut, another person of the same size at the same place continues the track.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from qadprep.faces.base import Face

# How far a face may be from where it is expected, in face sides: a seated speaker rarely moves half a face in
# a third of a second (8 frames); beyond a full side, two boxes of one size do not even touch.
_REACH_SIDES = 0.5
_REACH_SIDES_PER_FRAME = 0.03
_REACH_SIDES_MOST = 1.0
_SIZE_RATIO_MOST = 2.0
# A lost face is waited for this many sampling steps, and at least this many frames (2 s at 25 frames/s).
_WAIT_STEPS = 10
_WAIT_FRAMES = 50
# Velocity is the mean over this many steps, and is trusted no further ahead than it was measured back.
_VELOCITY_STEPS = 3


@dataclass(frozen=True, eq=False)
class Track:
    """One person's face through the sampled frames: `faces` maps a frame index to the face seen there."""

    faces: dict[int, Face]

    @property
    def frames(self) -> tuple[int, ...]:
        """Frame indices, ascending."""
        return tuple(sorted(self.faces))

    @cached_property
    def median_side_px(self) -> float:
        """Median over the track of the side of the square with the box's area, px."""
        return float(np.median([face.side_px for face in self.faces.values()]))


@dataclass
class _Open:
    """A track that may still grow. `frames` and `faces` run in parallel, ascending."""

    frames: list[int] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)

    def shift_xy(self, frame: int) -> np.ndarray:
        """Expected movement since the last sighting at constant velocity, px, float64 (2,)."""
        steps = min(_VELOCITY_STEPS, len(self.frames) - 1)
        if steps == 0:
            return np.zeros(2)
        span = self.frames[-1] - self.frames[-1 - steps]
        moved = _centre(self.faces[-1]) - _centre(self.faces[-1 - steps])
        return moved * (min(frame - self.frames[-1], span) / span)


def find_tracks(faces_by_frame: Mapping[int, Sequence[Face]]) -> list[Track]:
    """Link faces over frames; every face ends in exactly one track.

    faces_by_frame: frame index -> faces, for every frame that was looked at (an empty list where nothing was
    found: these frames count in the ranking below). The order of the mapping and of the faces in a frame do
    not matter.

    In each frame, the pairs of an open track and a face that are near enough (centre within 0.5 face sides of
    where it was or where its velocity puts it, plus 0.03 per frame of gap, at most 1; sizes within a factor
    of 2) are taken greedily, cheapest first. The cost of a pair is the mean landmark distance from where the
    velocity puts them, in face sides, plus one minus the IoU, plus the absolute log2 of the size ratio. A
    track that finds no face waits 10 sampling steps (at least 50 frames) and then closes; a face that finds
    no track opens one.

    Returns the tracks, best first: by coverage (share of the given frames where the track has a face) times
    median side. A face twice as big wins only if it is there at least half as often. Ties: the earlier and
    then the more left one first.
    """
    frames = sorted(faces_by_frame)
    wait = max(_WAIT_FRAMES, _WAIT_STEPS * _sampling_step(frames))
    live: list[_Open] = []
    tracks: list[_Open] = []
    for frame in frames:
        # A fixed order of faces makes the result independent of the order they came in.
        faces = sorted(faces_by_frame[frame], key=_order)
        live = [track for track in live if frame - track.frames[-1] <= wait]
        taken = _assign(live, faces, frame)
        for index, face in enumerate(faces):
            track = taken.get(index)
            if track is None:
                track = _Open()
                live.append(track)
                tracks.append(track)
            track.frames.append(frame)
            track.faces.append(face)
    found = [Track(dict(zip(track.frames, track.faces, strict=True))) for track in tracks]
    return sorted(found, key=lambda track: _rank(track, len(frames)))


def largest_track(faces_by_frame: Mapping[int, Sequence[Face]]) -> Track | None:
    """The largest consistently tracked face (rule: see `find_tracks`), or None where there is no face."""
    tracks = find_tracks(faces_by_frame)
    return tracks[0] if tracks else None


def _assign(live: list[_Open], faces: list[Face], frame: int) -> dict[int, _Open]:
    """Greedy one-to-one matching: index of the face -> track."""
    pairs = []
    for track_index, track in enumerate(live):
        for face_index, face in enumerate(faces):
            cost = _cost(track, face, frame)
            if cost is not None:
                pairs.append((cost, track_index, face_index))
    taken: dict[int, _Open] = {}
    busy: set[int] = set()
    for _, track_index, face_index in sorted(pairs):
        if track_index not in busy and face_index not in taken:
            busy.add(track_index)
            taken[face_index] = live[track_index]
    return taken


def _cost(track: _Open, face: Face, frame: int) -> float | None:
    """Cost of continuing the track with the face, or None where it cannot be the same face."""
    last = track.faces[-1]
    side, side_before = face.side_px, last.side_px
    ratio = max(side / side_before, side_before / side)
    if ratio > _SIZE_RATIO_MOST:
        return None
    gap = frame - track.frames[-1]
    reach = min(_REACH_SIDES + _REACH_SIDES_PER_FRAME * gap, _REACH_SIDES_MOST)
    unit = (side * side_before) ** 0.5
    shift = track.shift_xy(frame)
    step = _centre(face) - _centre(last)
    # A face that stopped is still found, but one that goes on as before is preferred: people who cross.
    if min(np.hypot(*step), np.hypot(*(step - shift))) > reach * unit:
        return None
    moved = last.landmarks_xy + shift - face.landmarks_xy
    landmark_distance = float(np.hypot(moved[:, 0], moved[:, 1]).mean()) / unit
    iou = _iou(last.box_xyxy + np.tile(shift, 2), face.box_xyxy.astype(np.float64))
    return landmark_distance + (1.0 - iou) + float(np.log2(ratio))


def _centre(face: Face) -> np.ndarray:
    box = face.box_xyxy.astype(np.float64)
    return (box[:2] + box[2:]) / 2


def _iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> float:
    size = np.clip(np.minimum(a_xyxy[2:], b_xyxy[2:]) - np.maximum(a_xyxy[:2], b_xyxy[:2]), 0, None)
    both = size.prod()
    return float(both / ((a_xyxy[2:] - a_xyxy[:2]).prod() + (b_xyxy[2:] - b_xyxy[:2]).prod() - both))


def _sampling_step(frames: list[int]) -> int:
    """Median distance between neighbouring sampled frames."""
    return int(np.median([after - before for before, after in pairwise(frames)])) if len(frames) > 1 else 1


def _order(face: Face) -> tuple:
    return (-face.score, *face.box_xyxy.tolist(), *face.landmarks_xy.ravel().tolist())


def _rank(track: Track, frames: int) -> tuple:
    first = track.frames[0]
    return (-len(track.faces) / frames * track.median_side_px, first, *_order(track.faces[first])[1:])
