"""From the probabilities of single faces to those of a person in a video, and of the video."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FAKE, REAL = "fake", "real"
# A track counts for the video when it has so large a share of the scored frames, but never fewer than two of them; five
# are always enough, so that a short appearance in a long video counts.
COUNTING_SHARE, COUNTING_LEAST, COUNTING_ENOUGH = 0.1, 2, 5


@dataclass(frozen=True)
class FaceScore:
    """One face in one frame.

    Attributes:
        frame: frame number from 0 in display order.
        time_s: frame over the average frame rate.
        track: rank of its track, from 0.
        box_xyxy: left, top, right, bottom, px of the full frame, pixel edges.
        face_score: the face detector's confidence, 0..1.
        prob_fake: softmax probability of the fake class, 0..1.
    """

    frame: int
    time_s: float
    track: int
    box_xyxy: tuple[float, float, float, float]
    face_score: float
    prob_fake: float


@dataclass(frozen=True)
class TrackScore:
    """One person in one video.

    Attributes:
        track: rank by size and presence, from 0.
        frames: scored frames with this face.
        share: the same over all scored frames.
        first_s, last_s: when it is first and last seen.
        face_px: median side of the square with the box's area.
        prob_fake: mean over its frames, as in the evaluation.
        prob_fake_top_k: mean over its k highest frames.
        prob_fake_min, prob_fake_max: least and greatest of its frames.
        counts: whether it was seen often enough to decide on the video.
        verdict: ``fake`` where prob_fake is the threshold or more, else ``real``.
    """

    track: int
    frames: int
    share: float
    first_s: float
    last_s: float
    face_px: float
    prob_fake: float
    prob_fake_top_k: float
    prob_fake_min: float
    prob_fake_max: float
    counts: bool
    verdict: str


@dataclass(frozen=True)
class VideoPrediction:
    """All about one file.

    Attributes:
        name, path: of the file; the name is unique in the prediction.
        kind: ``video`` or ``image``.
        status: ``ok``; ``damaged`` (scored up to the damage); ``no_face``; ``annotate_failed``; else why the file could
            not be used, as qadprep's probe words it.
        message: one line; empty for ``ok``.
        prob_fake: the highest mean of its counting tracks: with one person the mean over the frames.
        prob_fake_mean: mean over all scored faces.
        prob_fake_top_k: mean over the k highest faces of counting tracks.
        verdict: ``fake`` or ``real`` by prob_fake; None without a face.
        quality: what the stream says: ``raw`` (lossless), ``c23``, ``crf 18.5``, ... or ``unknown``.
        quality_trained: whether the detector was trained on that quality; None where it is unknown.
        annotated: the annotated copy, relative to the folder of the results; None without.
    """

    name: str
    path: str
    kind: str
    status: str
    message: str = ""
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    frames: int | None = None
    duration_s: float | None = None
    codec: str | None = None
    pix_fmt: str | None = None
    crf: float | None = None
    quality: str = "unknown"
    quality_trained: bool | None = None
    frames_scored: int = 0
    frames_with_face: int = 0
    faces: int = 0
    prob_fake: float | None = None
    prob_fake_mean: float | None = None
    prob_fake_top_k: float | None = None
    verdict: str | None = None
    tracks: tuple[TrackScore, ...] = ()
    remarks: tuple[str, ...] = ()
    annotated: str | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def failed(self) -> bool:
        return self.status != "ok"

    def as_json(self) -> dict[str, Any]:
        """Numbers rounded to 6 digits; the keys are always the same."""
        return _rounded(asdict(self))


def track_scores(faces: Sequence[FaceScore], scored_frames: int, *, top_k: int, threshold: float) -> list[TrackScore]:
    """One entry a track, by rank.

    Args:
        faces: of one file, in any order.
        scored_frames: frames that were looked at, with a face or without.
    """
    by_track: dict[int, list[FaceScore]] = {}
    for face in faces:
        by_track.setdefault(face.track, []).append(face)
    enough = max(COUNTING_LEAST, min(COUNTING_SHARE * scored_frames, COUNTING_ENOUGH))
    any_counts = any(len(seen) >= enough for seen in by_track.values())
    found = []
    for track, seen in sorted(by_track.items()):
        probabilities = np.array([face.prob_fake for face in seen])
        times = [face.time_s for face in seen]
        mean = float(probabilities.mean())
        found.append(
            TrackScore(
                track=track,
                frames=len(seen),
                share=len(seen) / scored_frames,
                first_s=min(times),
                last_s=max(times),
                face_px=float(np.median([_side(face.box_xyxy) for face in seen])),
                prob_fake=mean,
                prob_fake_top_k=top_mean(probabilities, top_k),
                prob_fake_min=float(probabilities.min()),
                prob_fake_max=float(probabilities.max()),
                # Where nobody stays for long (a picture, a montage), everybody counts.
                counts=len(seen) >= enough or not any_counts,
                verdict=verdict(mean, threshold),
            )
        )
    return found


def video_scores(
    faces: Sequence[FaceScore], tracks: Sequence[TrackScore], *, top_k: int, threshold: float
) -> Mapping[str, Any]:
    """``prob_fake``, ``prob_fake_mean``, ``prob_fake_top_k`` and ``verdict`` of a file with at least one face."""
    counting = {track.track for track in tracks if track.counts}
    score = max(track.prob_fake for track in tracks if track.counts)
    return {
        "prob_fake": score,
        "prob_fake_mean": float(np.mean([face.prob_fake for face in faces])),
        "prob_fake_top_k": top_mean(np.array([f.prob_fake for f in faces if f.track in counting]), top_k),
        "verdict": verdict(score, threshold),
    }


def persons_to_show(tracks: Sequence[TrackScore], most: int) -> list[int]:
    """Track numbers, rising: the best-ranked, at most ``most``, and always the one whose score is the file's."""
    chosen = [track.track for track in tracks[:most]]
    deciding = max((track for track in tracks if track.counts), key=lambda track: track.prob_fake, default=None)
    if deciding is not None and deciding.track not in chosen:
        chosen[-1] = deciding.track
    return chosen


def top_mean(probabilities: np.ndarray, k: int) -> float:
    """Mean of the k highest, of all where there are fewer. float (n,), n >= 1."""
    return float(np.sort(probabilities)[-k:].mean())


def verdict(probability: float, threshold: float) -> str:
    return FAKE if probability >= threshold else REAL


def _side(box: tuple[float, float, float, float]) -> float:
    return ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
