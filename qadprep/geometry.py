"""Find the face, or every face, of a clip once, and cut any file with what was found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qadprep.config import ExtractConfig
from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.faces.base import Detector, Face
from qadprep.faces.tracking import find_tracks
from qadprep.timing import StageTimer
from qadprep.video.source import Source
from qadprep.video.sync import MAX_OFFSET_FRAMES, Sync, temporal_shift

DETECT_BATCH = 8
FACELESS_ROUNDS = 3
MIN_REFILL = 8
# In a crowd only the largest faces can be the one that is kept; bounds memory and time. Where every face is taken, a
# frame of more than this many faces is noted.
MAX_FACES_CUT, MAX_EVERY_FACE = 8, 32
# A face that is to stand for itself is seen in at least this share of the frames, and twice; else it is a false alarm,
# or a passer-by on whom no vote can be taken.
MIN_TRACK_SHARE = 0.1
MIN_TRACK_FRAMES = 2

Spot = tuple[int, int]
"""(frame, face): one face of a group in one frame. Where only one face is followed, its number is 0."""


@dataclass
class Geometry:
    """Where the followed faces are, found on one file.

    Attributes:
        faces: spot -> the face, for at most the wanted number of frames of each face, in rising order of frames;
            empty for pictures that were cropped by others.
        affines: spot -> float64 (2, 3), source px -> crop px.
        crops: spot -> the crop of the file the geometry was found on, uint8 (size_px, size_px, 3) RGB.
        status: every attempted spot -> `ok`, `no_face`, `other_face` (faces, but not this one), `surplus` (the face is
            there, but the clip had its frames by then), `short_track` (a face seen too rarely) or `decode_error`.
        thumbnails: frame -> luminance thumbnail of nearly every frame, for the sync test.
        error: why decoding stopped early, or None.
        crowded: frames with more faces than are taken; the smallest were left out.
    """

    faces: dict[Spot, Face]
    affines: dict[Spot, np.ndarray]
    crops: dict[Spot, np.ndarray]
    status: dict[Spot, str]
    thumbnails: dict[int, np.ndarray]
    error: str | None = None
    crowded: int = 0

    @property
    def frames(self) -> list[int]:
        """Every attempted frame, rising."""
        return sorted({frame for frame, _ in self.status})


@dataclass
class Cut:
    """Crops of one file, with the evidence that they belong to the reference's frames.

    Attributes:
        crops: spot -> uint8 (size_px, size_px, 3) RGB; frames that could not be decoded are absent.
        sync: result of the temporal shift test against the reference's thumbnails.
        thumbnails: frame -> luminance thumbnail: of the cut frames, or of nearly every frame when asked for.
        error: why decoding stopped early, or None.
    """

    crops: dict[Spot, np.ndarray]
    sync: Sync
    thumbnails: dict[int, np.ndarray]
    error: str | None = None


@dataclass
class _Seen:
    faces: dict[int, list[Face]] = field(default_factory=dict)
    crops: dict[int, np.ndarray] = field(default_factory=dict)  # by id() of the face
    affines: dict[int, np.ndarray] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    most: int = MAX_FACES_CUT
    crowded: int = 0
    error: str | None = None


def find_geometry(
    source: Source,
    chosen: Sequence[int],
    spares: Sequence[int],
    config: ExtractConfig,
    detector: Detector,
    timer: StageTimer,
    threads: int = 1,
    *,
    every_face: bool = False,
) -> Geometry:
    """Detect on the chosen frames, follow the largest face or every face, and refill from the spares.

    Faces are numbered by `find_tracks`' ranking: 0 is the one that is largest and most often there, and the one the
    refilling is for. Every face of a frame is cut while the full picture is at hand, so that the file is read once and
    no full frame is kept; which of the crops stay is known after tracking.
    """
    seen = _Seen(most=MAX_EVERY_FACE if every_face else MAX_FACES_CUT)
    last = min(source.info.frames - 1, chosen[-1] + MAX_OFFSET_FRAMES)
    thumbnails = _look(source, chosen, config, detector, timer, threads, seen, thumbs_to=last)
    wanted, left = len(chosen), list(spares)
    tracks = _tracks(seen)
    rounds = 0
    while (lacking := wanted - len(tracks[0])) > 0:
        if seen.missing:  # what lies behind damage cannot be had
            left = [frame for frame in left if frame < min(seen.missing)]
        # A video without any face is given up after a few rounds; where some were seen, every spare is tried.
        if not left or (not tracks[0] and rounds >= FACELESS_ROUNDS):
            break
        # As many as are likely to give what is lacking, since each round reads the file again.
        hits = max(len(tracks[0]) / len(seen.faces), 1 / 8) if seen.faces else 1
        count = max(MIN_REFILL, math.ceil(lacking / hits))
        batch, left = sorted(left[:count]), left[count:]
        _look(source, batch, config, detector, timer, threads, seen)
        tracks, rounds = _tracks(seen), rounds + 1
    enough = max(MIN_TRACK_FRAMES, MIN_TRACK_SHARE * len(seen.faces)) if every_face else 0
    kept: dict[Spot, Face] = {}
    status: dict[Spot, str] = {}
    for number, track in enumerate(tracks if every_face else tracks[:1]):
        if number and len(track) < enough:
            status |= {(frame, number): "short_track" for frame in track}
            continue
        status |= {(frame, number): "other_face" if faces else "no_face" for frame, faces in seen.faces.items()}
        status |= {(frame, number): "decode_error" for frame in seen.missing}
        status |= {(frame, number): "surplus" for frame in track}
        # The frames drawn first stay; keeping the lowest numbers would favour the video's beginning.
        for frame in [frame for frame in (*chosen, *spares) if frame in track][:wanted]:
            status[frame, number] = "ok"
            kept[frame, number] = track[frame]
    kept = dict(sorted(kept.items()))
    return Geometry(
        faces=kept,
        affines={spot: seen.affines[id(face)] for spot, face in kept.items()},
        crops={spot: seen.crops[id(face)] for spot, face in kept.items()},
        status=dict(sorted(status.items())),
        thumbnails=thumbnails,
        error=seen.error,
        crowded=seen.crowded if every_face else 0,
    )


def given_geometry(
    source: Source, chosen: Sequence[int], spares: Sequence[int], config: ExtractConfig, timer: StageTimer
) -> Geometry:
    """Take pictures that were cropped by others as they are: the whole picture, resized to the crop."""
    scale_x, scale_y = config.size_px / source.info.width, config.size_px / source.info.height
    # Pixel edges map to pixel edges; an affine counts at pixel centres.
    affine = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5]])
    result = Geometry({}, {}, {}, {}, {})
    last = min(source.info.frames - 1, chosen[-1] + MAX_OFFSET_FRAMES)
    wanted, batch, left = len(chosen), list(chosen), list(spares)
    while batch:
        first = not result.status
        with source.reader(batch, thumbs="all" if first else None, thumbs_to=last if first else None) as reader:
            for frame in timer.each("decode", reader):
                spot = (frame.index, 0)
                with timer.stage("warp"):
                    result.crops[spot] = warp_face(frame.rgb, affine, config.size_px)
                result.affines[spot], result.status[spot] = affine, "ok"
        result.thumbnails = result.thumbnails or reader.thumbnails
        result.status |= {(frame, 0): "decode_error" for frame in reader.missing}
        result.error = result.error or reader.error
        lacking = wanted - len(result.crops)
        batch, left = sorted(left[:lacking]), left[lacking:]
    for table in ("affines", "crops", "status"):
        setattr(result, table, dict(sorted(getattr(result, table).items())))
    return result


def cut(
    source: Source,
    affines: Mapping[Spot, np.ndarray],
    reference_thumbnails: Mapping[int, np.ndarray],
    config: ExtractConfig,
    timer: StageTimer,
    threads: int = 1,
    *,
    all_thumbnails: bool = False,
) -> Cut:
    """Cut a file at given spots with given affines, and test its timing against the reference in the same pass.

    Args:
        all_thumbnails: keep thumbnails of nearly every frame, so that other files can be tested against this one.
    """
    crops: dict[Spot, np.ndarray] = {}
    by_frame: dict[int, list[Spot]] = {}
    for spot in sorted(affines):
        by_frame.setdefault(spot[0], []).append(spot)
    frames = list(by_frame)
    last = min(source.info.frames - 1, frames[-1] + MAX_OFFSET_FRAMES)
    thumbs = "all" if all_thumbnails else "selected"
    with source.reader(frames, thumbs=thumbs, thumbs_to=last, threads=threads) as reader:
        for frame in timer.each("decode", reader):
            with timer.stage("warp"):
                for spot in by_frame[frame.index]:
                    crops[spot] = warp_face(frame.rgb, affines[spot], config.size_px)
    with timer.stage("sync"):
        shown = {frame: reader.thumbnails[frame] for frame in frames if frame in reader.thumbnails}
        sync = temporal_shift(reference_thumbnails, shown)
    return Cut(crops, sync, reader.thumbnails, reader.error)


def _look(
    source: Source,
    indices: Sequence[int],
    config: ExtractConfig,
    detector: Detector,
    timer: StageTimer,
    threads: int,
    seen: _Seen,
    thumbs_to: int | None = None,
) -> dict[int, np.ndarray]:
    """Decode, detect and cut all faces at `indices`; returns thumbnails of frames 0..thumbs_to when asked."""
    reader = source.reader(
        indices, thumbs="all" if thumbs_to is not None else None, thumbs_to=thumbs_to, threads=threads
    )
    batch: list[tuple[int, np.ndarray]] = []

    def detect() -> None:
        with timer.stage("detect"):
            found = detector.detect([rgb for _, rgb in batch])
        with timer.stage("warp"):
            for (index, rgb), faces in zip(batch, found, strict=True):
                largest = sorted(faces, key=lambda face: -_area(face))[: seen.most]
                seen.crowded += len(faces) > seen.most
                seen.faces[index] = []
                for face in largest:
                    try:
                        affine = affine_from_face(
                            face, align=config.align, margin=config.margin, size_px=config.size_px
                        )
                        crop = warp_face(rgb, affine, config.size_px)
                    except ValueError:
                        continue  # landmarks on one point: a false alarm, no face
                    seen.faces[index].append(face)
                    seen.affines[id(face)], seen.crops[id(face)] = affine, crop
        batch.clear()

    with reader:
        for frame in timer.each("decode", reader):
            batch.append((frame.index, frame.rgb))
            if len(batch) == DETECT_BATCH:
                detect()
        if batch:
            detect()
    seen.missing += reader.missing
    seen.error = seen.error or reader.error
    return reader.thumbnails


def _tracks(seen: _Seen) -> list[dict[int, Face]]:
    """frame -> face of every followed face, best first; one empty table where there is none."""
    return [track.faces for track in find_tracks(dict(sorted(seen.faces.items())))] or [{}]


def _area(face: Face) -> float:
    x0, y0, x1, y1 = (float(value) for value in face.box_xyxy)
    return (x1 - x0) * (y1 - y0)
