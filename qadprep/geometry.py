"""Find the face, or every face, of a clip once: detect, follow, measure, filter, refill."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from qadprep.config import ExtractConfig
from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.faces.base import Detector, Face
from qadprep.faces.looks import look_of
from qadprep.faces.measures import Measures, measure
from qadprep.faces.scenes import find_scenes
from qadprep.faces.tracking import Track, find_tracks
from qadprep.timing import StageTimer
from qadprep.video.source import Source
from qadprep.witness import Aim, Spot, Witness, evidence_frames, neighbourhood, place_instants

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


@dataclass
class Geometry:
    """Where the followed faces are, found on one file.

    Attributes:
        faces: spot -> the face, for at most the wanted number of frames of each face, in rising order of frames;
            empty for pictures that were cropped by others.
        affines: spot -> float64 (2, 3), source px -> crop px.
        crops: spot -> the crop of the file the geometry was found on, uint8 (size_px, size_px, 3) RGB.
        measures: spot -> size, sharpness, pose and share inside of every face that was followed, kept or not.
        status: every attempted spot -> `ok`, `no_face`, `other_face` (faces, but not this one), `small_face` and
            `turned_face` (left out by a filter), `surplus` (the face is there, but the clip had its frames by then),
            `short_track` (a face seen too rarely) or `decode_error`.
        witness: the file's evidence for the sync test of others.
        scenes: attempted frame -> number of its scene, from 0; a cut raises it.
        switches: times another person took the followed face's place.
        error: why decoding stopped early, or None.
        crowded: frames with more faces than are taken; the smallest were left out.
        detected: frames on which the detector ran.
        decoded: frames that the decoder gave, needed or not.
    """

    witness: Witness
    faces: dict[Spot, Face] = field(default_factory=dict)
    affines: dict[Spot, np.ndarray] = field(default_factory=dict)
    crops: dict[Spot, np.ndarray] = field(default_factory=dict)
    measures: dict[Spot, Measures] = field(default_factory=dict)
    status: dict[Spot, str] = field(default_factory=dict)
    scenes: dict[int, int] = field(default_factory=dict)
    switches: int = 0
    error: str | None = None
    crowded: int = 0
    detected: int = 0
    decoded: int = 0

    @property
    def frames(self) -> list[int]:
        """Every attempted frame, rising."""
        return sorted({frame for frame, _ in self.status})

    @property
    def aims(self) -> dict[Spot, Aim]:
        """Where the spots lie in the file the geometry was found on."""
        return {spot: (spot[0], affine) for spot, affine in self.affines.items()}


@dataclass(eq=False)
class _Seen:
    """What the passes over the file gave so far; tables by `id()` of a face hold it alive by `faces`."""

    witness: Witness
    most: int
    for_others: bool
    faces: dict[int, list[Face]] = field(default_factory=dict)
    crops: dict[int, np.ndarray] = field(default_factory=dict)
    affines: dict[int, np.ndarray] = field(default_factory=dict)
    measures: dict[int, Measures] = field(default_factory=dict)
    looks: dict[int, np.ndarray] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    crowded: int = 0
    decoded: int = 0
    error: str | None = None

    def scenes(self) -> dict[int, int]:
        return find_scenes(self.witness.thumbnails)

    def tracks(self) -> list[Track]:
        """The followed faces, best first."""
        return find_tracks(dict(sorted(self.faces.items())), scenes=self.scenes(), looks=self.looks)

    def unfit(self, face: Face, config: ExtractConfig) -> str | None:
        """The filter that leaves a face out, or None."""
        measures = self.measures[id(face)]
        if measures.side_px < config.min_face_px:
            return "small_face"
        # A pose that cannot be told is not one that is known to be frontal.
        if config.max_yaw_deg is not None and not abs(measures.yaw_deg) <= config.max_yaw_deg:
            return "turned_face"
        return None


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
    for_others: bool = True,
) -> Geometry:
    """Detect on the chosen frames, follow the largest face or every face, and refill from the spares.

    Faces are numbered by `find_tracks`' ranking: 0 is the one that is largest and most often there, and the one the
    refilling is for. Every face of a frame is cut while the full picture is at hand, so that the file is read once and
    no full frame is kept; which of the crops stay is known after tracking. Only where frames have no usable face is the
    file read again, for their spares.

    Args:
        for_others: remember the pictures around the frames, since other files are to be proved against this one.
    """
    seen = _Seen(Witness(source.info), MAX_EVERY_FACE if every_face else MAX_FACES_CUT, for_others)
    if for_others:
        seen.witness.evidence = evidence_frames(chosen)
    _look(source, chosen, config, detector, timer, threads, seen, lumas_at=place_instants(chosen) if for_others else ())
    wanted, left = len(chosen), list(spares)
    tracks = seen.tracks()
    rounds = 0
    while (lacking := wanted - len(usable := _usable(tracks, seen, config))) > 0:
        if seen.missing:  # what lies behind damage cannot be had
            left = [frame for frame in left if frame < min(seen.missing)]
        # A video without any usable face is given up after a few rounds; where some were seen, every spare is tried.
        if not left or (not usable and rounds >= FACELESS_ROUNDS):
            break
        # As many as are likely to give what is lacking, since each round reads the file again.
        hits = max(len(usable) / len(seen.faces), 1 / 8) if seen.faces else 1
        count = max(MIN_REFILL, math.ceil(lacking / hits))
        batch, left = sorted(left[:count]), left[count:]
        # Where damage took the first ones, pictures for the proof of place are taken from here.
        lumas_at = place_instants(batch) if for_others and not seen.witness.lumas else ()
        _look(source, batch, config, detector, timer, threads, seen, lumas_at=lumas_at)
        tracks, rounds = seen.tracks(), rounds + 1
    return _settle(seen, tracks, chosen, spares, config, every_face)


def _usable(tracks: list[Track], seen: _Seen, config: ExtractConfig) -> list[int]:
    """Frames in which the best-ranked face is there and passes the filters."""
    return [frame for frame, face in tracks[0].faces.items() if not seen.unfit(face, config)] if tracks else []


def _settle(
    seen: _Seen,
    tracks: list[Track],
    chosen: Sequence[int],
    spares: Sequence[int],
    config: ExtractConfig,
    every_face: bool,
) -> Geometry:
    """Give every attempted (frame, face) its status, and keep the wanted number of each face."""
    wanted = len(chosen)
    enough = max(MIN_TRACK_FRAMES, MIN_TRACK_SHARE * len(seen.faces)) if every_face else 0
    result = Geometry(
        seen.witness,
        scenes=seen.scenes(),
        switches=sum(track.switches for track in tracks),
        error=seen.error,
        crowded=seen.crowded if every_face else 0,
        detected=len(seen.faces),
        decoded=seen.decoded,
    )
    status, kept = result.status, {}
    followed = [track.faces for track in (tracks if every_face else tracks[:1])] or [{}]
    for number, track in enumerate(followed):
        result.measures |= {(frame, number): seen.measures[id(face)] for frame, face in track.items()}
        if number and len(track) < enough:
            status |= {(frame, number): "short_track" for frame in track}
            continue
        status |= {(frame, number): "other_face" if faces else "no_face" for frame, faces in seen.faces.items()}
        status |= {(frame, number): "decode_error" for frame in seen.missing}
        unfit = {frame: seen.unfit(face, config) for frame, face in track.items()}
        status |= {(frame, number): reason or "surplus" for frame, reason in unfit.items()}
        # The frames drawn first stay; keeping the lowest numbers would favour the video's beginning.
        for frame in [f for f in (*chosen, *spares) if f in track and not unfit[f]][:wanted]:
            status[frame, number] = "ok"
            kept[frame, number] = track[frame]
    result.faces = dict(sorted(kept.items()))
    result.affines = {spot: seen.affines[id(face)] for spot, face in result.faces.items()}
    result.crops = {spot: seen.crops[id(face)] for spot, face in result.faces.items()}
    result.status = dict(sorted(status.items()))
    result.witness.remember_faces(result.faces)
    return result


def _look(
    source: Source,
    indices: Sequence[int],
    config: ExtractConfig,
    detector: Detector,
    timer: StageTimer,
    threads: int,
    seen: _Seen,
    lumas_at: Collection[int] = (),
) -> None:
    """Decode, detect, cut and measure all faces at `indices`, and remember the pictures around them."""
    around = indices
    if seen.for_others:
        # Of a second round, the evidence is remembered already.
        evidence = () if seen.witness.thumbnails else seen.witness.evidence
        around = neighbourhood({*indices, *evidence}, source.info.frames)
    reader = source.reader(indices, thumbs_at=around, threads=threads)
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
                        _take(face, rgb, config, seen)
                    except ValueError:
                        continue  # landmarks on one point: a false alarm, no face
                    seen.faces[index].append(face)
        batch.clear()

    with reader:
        for frame in timer.each("decode", reader):
            with timer.stage("convert"):
                batch.append((frame.index, frame.rgb))
                if frame.index in lumas_at:
                    seen.witness.lumas[frame.index] = frame.luma
            if len(batch) == DETECT_BATCH:
                detect()
        if batch:
            detect()
    seen.witness.thumbnails |= reader.thumbnails
    seen.missing += reader.missing
    seen.error = seen.error or reader.error
    seen.decoded += reader.frames_decoded


def _take(face: Face, rgb: np.ndarray, config: ExtractConfig, seen: _Seen) -> None:
    affine = affine_from_face(face, align=config.align, margin=config.margin, size_px=config.size_px)
    crop = warp_face(rgb, affine, config.size_px)
    seen.affines[id(face)], seen.crops[id(face)] = affine, crop
    seen.measures[id(face)] = measure(face, crop, affine, (rgb.shape[1], rgb.shape[0]))
    seen.looks[id(face)] = look_of(crop)


def _area(face: Face) -> float:
    x0, y0, x1, y1 = (float(value) for value in face.box_xyxy)
    return (x1 - x0) * (y1 - y0)
