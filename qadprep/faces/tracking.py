"""Follow faces through sparsely sampled frames, and name the person a clip is about.

Sampled frames may lie one frame apart or dozens, so a pair of sightings is judged by how far the face moved
in units of its own size, with an allowance that grows with the gap. By itself this looks at no picture: after a
cut, another person of the same size at the same place continues the track. Where scenes are known
(`qadprep.faces.scenes`), a cut ends every track; where looks are known (`qadprep.faces.looks`), a track is split where
it changes its person, and a person who comes back is recognised.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import hypot, log2

import numpy as np

from qadprep.faces.base import Face
from qadprep.faces.identity import Piece, join_pieces, switches_in
from qadprep.faces.looks import LOOK_SIZE

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
    """One person's face through the sampled frames.

    faces: frame index -> the face seen there.
    switches: how often the person was left for another at the same place in one scene; over all tracks, each
        identity switch counts once.
    """

    faces: dict[int, Face]
    switches: int = 0

    @property
    def frames(self) -> tuple[int, ...]:
        """Frame indices, ascending."""
        return tuple(sorted(self.faces))

    @cached_property
    def median_side_px(self) -> float:
        """Median over the track of the side of the square with the box's area, px."""
        return float(np.median([face.side_px for face in self.faces.values()]))


@dataclass(frozen=True)
class _Sighting:
    """A face with what every comparison needs, in plain floats: most pairs are told apart by these alone."""

    frame: int
    face: Face
    x: float
    y: float
    side: float

    @classmethod
    def of(cls, frame: int, face: Face) -> "_Sighting":
        left, top, right, bottom = face.box_xyxy.tolist()
        return cls(frame, face, (left + right) / 2, (top + bottom) / 2, face.side_px)


def _shift_xy(track: list[_Sighting], frame: int) -> tuple[float, float]:
    """Expected movement of a track's face since it was last seen, at constant velocity, px."""
    last, before = track[-1], track[max(0, len(track) - 1 - _VELOCITY_STEPS)]
    span = last.frame - before.frame
    if span == 0:
        return 0.0, 0.0
    share = min(frame - last.frame, span) / span
    return (last.x - before.x) * share, (last.y - before.y) * share


def find_tracks(
    faces_by_frame: Mapping[int, Sequence[Face]],
    *,
    scenes: Mapping[int, int] | None = None,
    looks: Mapping[int, np.ndarray] | None = None,
) -> list[Track]:
    """Link faces over frames; every face ends in exactly one track.

    faces_by_frame: frame index -> faces, for every frame that was looked at (an empty list where nothing was
    found: these frames count in the ranking below). The order of the mapping and of the faces in a frame do
    not matter.

    scenes: frame index -> number of its scene, as `find_scenes` gives it; a frame that is not in it belongs to
    the scene of the frame before it. looks: id() of a face -> its look, as `look_of` gives it; a face without one
    is followed by position alone.

    In each frame, the pairs of an open track and a face that are near enough (centre within 0.5 face sides of
    where it was or where its velocity puts it, plus 0.03 per frame of gap, at most 1; sizes within a factor
    of 2) are taken greedily, cheapest first. The cost of a pair is the mean landmark distance from where the
    velocity puts them, in face sides, plus one minus the IoU, plus the absolute log2 of the size ratio. A
    track that finds no face waits 10 sampling steps (at least 50 frames) and then closes; a face that finds
    no track opens one. With `scenes`, a cut closes every track.

    With `looks`, a track is then split where its look jumps and stays other (see `switches_in`), and tracks
    that look alike are put together across cuts and absences (see `join_pieces`).

    Returns the tracks, best first: by coverage (share of the given frames where the track has a face) times
    median side. A face twice as big wins only if it is there at least half as often. Ties: the earlier and
    then the more left one first.
    """
    frames = sorted(faces_by_frame)
    wait = max(_WAIT_FRAMES, _WAIT_STEPS * _sampling_step(frames))
    scene_of = _scenes_of(frames, scenes)
    live: list[list[_Sighting]] = []
    tracks: list[list[_Sighting]] = []
    for frame in frames:
        # A fixed order of faces makes the result independent of the order they came in.
        seen = [_Sighting.of(frame, face) for face in sorted(faces_by_frame[frame], key=_order)]
        live = [
            track for track in live if frame - track[-1].frame <= wait and scene_of[track[-1].frame] == scene_of[frame]
        ]
        taken = _assign(live, seen)
        for index, sighting in enumerate(seen):
            if index in taken:
                taken[index].append(sighting)
            else:
                live.append([sighting])
                tracks.append(live[-1])
    found = [Track({sighting.frame: sighting.face for sighting in track}) for track in tracks]
    if looks is not None:
        found = _by_look(found, scene_of, looks)
    return sorted(found, key=lambda track: _rank(track, len(frames)))


def largest_track(faces_by_frame: Mapping[int, Sequence[Face]]) -> Track | None:
    """The largest consistently tracked face (rule: see `find_tracks`), or None where there is no face."""
    tracks = find_tracks(faces_by_frame)
    return tracks[0] if tracks else None


def changes_noted(tracks: Sequence[Track], scenes: Mapping[int, int] | None = None) -> str:
    """What happened in a clip, for a note: "2 cuts, 1 identity switch"; empty where nothing did.

    tracks: all of the clip, as `find_tracks` returned them. scenes: what they were found with.
    """
    cuts = len(set(scenes.values())) - 1 if scenes else 0
    switches = sum(track.switches for track in tracks)
    counted = [(cuts, "cut", "cuts"), (switches, "identity switch", "identity switches")]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in counted if count)


def _scenes_of(frames: list[int], scenes: Mapping[int, int] | None) -> dict[int, int]:
    """The scene of every frame; that of the frame before it where none is given."""
    known = sorted(scenes) if scenes else []
    result: dict[int, int] = {}
    for frame in frames:
        at = bisect_right(known, frame)
        result[frame] = scenes[known[max(0, at - 1)]] if known else 0
    return result


def _by_look(tracks: list[Track], scene_of: Mapping[int, int], looks: Mapping[int, np.ndarray]) -> list[Track]:
    """Split tracks at identity switches, then put together what is one person's."""
    parts: list[Track] = []
    for track in tracks:
        shown = [frame for frame in track.frames if id(track.faces[frame]) in looks]
        starts = [shown[place] for place in switches_in(_looks_at(track, shown, looks))]
        bounds = [track.frames[0], *starts, track.frames[-1] + 1]
        for first, end in pairwise(bounds):
            inside = {frame: track.faces[frame] for frame in track.frames if first <= frame < end}
            parts.append(Track(inside, switches=int(end in starts)))
    # Pieces are compared in this order; it must not hang on how they were found.
    parts.sort(key=lambda part: (part.frames[0], _order(part.faces[part.frames[0]])))
    pieces = [
        Piece(
            frames=part.frames,
            scene=scene_of[part.frames[0]],
            looks=_looks_at(part, [frame for frame in part.frames if id(part.faces[frame]) in looks], looks),
        )
        for part in parts
    ]
    joined = []
    for group in join_pieces(pieces):
        faces = {frame: face for index in group for frame, face in parts[index].faces.items()}
        joined.append(Track(dict(sorted(faces.items())), sum(parts[index].switches for index in group)))
    return joined


def _looks_at(track: Track, frames: Sequence[int], looks: Mapping[int, np.ndarray]) -> np.ndarray:
    """float32 (n, 288), the looks of a track's faces at the given frames."""
    rows = [looks[id(track.faces[frame])] for frame in frames]
    return np.stack(rows) if rows else np.zeros((0, LOOK_SIZE), np.float32)


def _assign(live: list[list[_Sighting]], seen: list[_Sighting]) -> dict[int, list[_Sighting]]:
    """Greedy one-to-one matching within one frame: index into `seen` -> the track it continues."""
    pairs = []
    for track_index, track in enumerate(live):
        for seen_index, sighting in enumerate(seen):
            cost = _cost(track, sighting)
            if cost is not None:
                pairs.append((cost, track_index, seen_index))
    taken: dict[int, list[_Sighting]] = {}
    busy: set[int] = set()
    for _, track_index, seen_index in sorted(pairs):
        if track_index not in busy and seen_index not in taken:
            busy.add(track_index)
            taken[seen_index] = live[track_index]
    return taken


def _cost(track: list[_Sighting], now: _Sighting) -> float | None:
    """Cost of continuing the track with the sighting, or None where it cannot be the same face."""
    last = track[-1]
    ratio = max(now.side / last.side, last.side / now.side)
    if ratio > _SIZE_RATIO_MOST:
        return None
    reach = min(_REACH_SIDES + _REACH_SIDES_PER_FRAME * (now.frame - last.frame), _REACH_SIDES_MOST)
    unit = (now.side * last.side) ** 0.5
    shift = _shift_xy(track, now.frame)
    step = (now.x - last.x, now.y - last.y)
    # A face that stopped is still found, but one that goes on as before is preferred: people who cross.
    if min(hypot(*step), hypot(step[0] - shift[0], step[1] - shift[1])) > reach * unit:
        return None
    off = last.face.landmarks_xy + np.array(shift) - now.face.landmarks_xy
    landmark_distance = float(np.hypot(off[:, 0], off[:, 1]).mean()) / unit
    iou = _iou(last.face.box_xyxy + np.array(shift * 2), now.face.box_xyxy.astype(np.float64))
    return landmark_distance + (1.0 - iou) + log2(ratio)


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
