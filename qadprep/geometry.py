"""Find the face of a clip once, and cut any file with what was found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qadprep.config import ExtractConfig
from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.faces.base import Detector, Face
from qadprep.faces.tracking import largest_track
from qadprep.timing import StageTimer
from qadprep.video.decode import FrameReader
from qadprep.video.probe import VideoInfo
from qadprep.video.sync import MAX_OFFSET_FRAMES, Sync, temporal_shift

DETECT_BATCH = 8
FACELESS_ROUNDS = 3
MIN_REFILL = 8
# In a crowd only the largest faces can be the one that is kept; bounds memory and time.
MAX_FACES_CUT = 8


@dataclass
class Geometry:
    """Where the followed face is, found on one file.

    Attributes:
        faces: frame -> the face, for at most the wanted number of frames, in rising order.
        affines: frame -> float64 (2, 3), source px -> crop px.
        crops: frame -> the crop of the file the geometry was found on, uint8 (size_px, size_px, 3) RGB.
        status: every attempted frame -> `ok`, `no_face`, `other_face` (faces, but not the followed one), `surplus`
            (the face is there, but the clip had its frames by then) or `decode_error`.
        thumbnails: frame -> luminance thumbnail of nearly every frame, for the sync test.
        error: why decoding stopped early, or None.
    """

    faces: dict[int, Face]
    affines: dict[int, np.ndarray]
    crops: dict[int, np.ndarray]
    status: dict[int, str]
    thumbnails: dict[int, np.ndarray]
    error: str | None = None


@dataclass
class Cut:
    """Crops of one file, with the evidence that they belong to the reference's frames.

    Attributes:
        crops: frame -> uint8 (size_px, size_px, 3) RGB; frames that could not be decoded are absent.
        sync: result of the temporal shift test against the reference's thumbnails.
        thumbnails: frame -> luminance thumbnail: of the cut frames, or of nearly every frame when asked for.
        error: why decoding stopped early, or None.
    """

    crops: dict[int, np.ndarray]
    sync: Sync
    thumbnails: dict[int, np.ndarray]
    error: str | None = None


@dataclass
class _Seen:
    faces: dict[int, list[Face]] = field(default_factory=dict)
    crops: dict[int, np.ndarray] = field(default_factory=dict)  # by id() of the face
    affines: dict[int, np.ndarray] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    error: str | None = None


def find_geometry(
    path: Path,
    info: VideoInfo,
    chosen: Sequence[int],
    spares: Sequence[int],
    config: ExtractConfig,
    detector: Detector,
    timer: StageTimer,
    threads: int = 1,
) -> Geometry:
    """Detect on the chosen frames, follow the largest face, and refill from the spares where it is not seen.

    Every face of a frame is cut while the full picture is at hand, so that the file is read once and no full frame
    is kept; which of the crops stay is known after tracking.
    """
    seen = _Seen()
    last = min(info.frames - 1, chosen[-1] + MAX_OFFSET_FRAMES)
    thumbnails = _look(path, info, chosen, config, detector, timer, threads, seen, thumbs_to=last)
    wanted, left = len(chosen), list(spares)
    track = _track(seen)
    rounds = 0
    while (lacking := wanted - len(track)) > 0:
        if seen.missing:  # what lies behind damage cannot be had
            left = [frame for frame in left if frame < min(seen.missing)]
        # A video without any face is given up after a few rounds; where some were seen, every spare is tried.
        if not left or (not track and rounds >= FACELESS_ROUNDS):
            break
        # As many as are likely to give what is lacking, since each round reads the file again.
        hits = max(len(track) / len(seen.faces), 1 / 8) if seen.faces else 1
        count = max(MIN_REFILL, math.ceil(lacking / hits))
        batch, left = sorted(left[:count]), left[count:]
        _look(path, info, batch, config, detector, timer, threads, seen)
        track, rounds = _track(seen), rounds + 1
    # The frames drawn first stay; keeping the lowest numbers would favour the video's beginning.
    kept = sorted([frame for frame in (*chosen, *spares) if frame in track][:wanted])
    status = {
        frame: "ok" if frame in track else ("other_face" if faces else "no_face") for frame, faces in seen.faces.items()
    }
    status |= dict.fromkeys(seen.missing, "decode_error")
    status |= {frame: "surplus" for frame in track if frame not in kept}
    return Geometry(
        faces={frame: track[frame] for frame in kept},
        affines={frame: seen.affines[id(track[frame])] for frame in kept},
        crops={frame: seen.crops[id(track[frame])] for frame in kept},
        status=dict(sorted(status.items())),
        thumbnails=thumbnails,
        error=seen.error,
    )


def cut(
    path: Path,
    info: VideoInfo,
    affines: Mapping[int, np.ndarray],
    reference_thumbnails: Mapping[int, np.ndarray],
    config: ExtractConfig,
    timer: StageTimer,
    threads: int = 1,
    *,
    all_thumbnails: bool = False,
) -> Cut:
    """Cut a file at given frames with given affines, and test its timing against the reference in the same pass.

    Args:
        all_thumbnails: keep thumbnails of nearly every frame, so that other files can be tested against this one.
    """
    crops, frames = {}, sorted(affines)
    last = min(info.frames - 1, frames[-1] + MAX_OFFSET_FRAMES)
    thumbs = "all" if all_thumbnails else "selected"
    with FrameReader(path, info, frames, thumbs=thumbs, thumbs_to=last, threads=threads) as reader:
        for frame in timer.each("decode", reader):
            with timer.stage("warp"):
                crops[frame.index] = warp_face(frame.rgb, affines[frame.index], config.size_px)
    with timer.stage("sync"):
        shown = {frame: reader.thumbnails[frame] for frame in frames if frame in reader.thumbnails}
        sync = temporal_shift(reference_thumbnails, shown)
    return Cut(crops, sync, reader.thumbnails, reader.error)


def _look(
    path: Path,
    info: VideoInfo,
    indices: Sequence[int],
    config: ExtractConfig,
    detector: Detector,
    timer: StageTimer,
    threads: int,
    seen: _Seen,
    thumbs_to: int | None = None,
) -> dict[int, np.ndarray]:
    """Decode, detect and cut all faces at `indices`; returns thumbnails of frames 0..thumbs_to when asked."""
    reader = FrameReader(
        path,
        info,
        indices,
        thumbs="all" if thumbs_to is not None else None,
        thumbs_to=thumbs_to,
        threads=threads,
    )
    batch: list[tuple[int, np.ndarray]] = []

    def detect() -> None:
        with timer.stage("detect"):
            found = detector.detect([rgb for _, rgb in batch])
        with timer.stage("warp"):
            for (index, rgb), faces in zip(batch, found, strict=True):
                largest = sorted(faces, key=lambda face: -_area(face))[:MAX_FACES_CUT]
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


def _track(seen: _Seen) -> dict[int, Face]:
    track = largest_track(dict(sorted(seen.faces.items())))
    return track.faces if track else {}


def _area(face: Face) -> float:
    x0, y0, x1, y1 = (float(value) for value in face.box_xyxy)
    return (x1 - x0) * (y1 - y0)
