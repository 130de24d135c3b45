"""Predict one file: open it, score its faces, draw what the page shows, write the annotated copy."""

import contextlib
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qadprep.faces.base import Detector
from qadprep.progress import progress_bar
from qadprep.timing import StageTimer
from qadprep.video.encode import crf_of
from qadprep.video.ffmpeg import FfmpegError
from qadprep.video.probe import ProbeError, VideoInfo
from qadprep.video.source import Source
from qadtrain.predict_annotate import AnnotateError, annotate
from qadtrain.predict_files import Item, Still, open_item
from qadtrain.predict_page import spots_to_show
from qadtrain.predict_scores import FaceScore, VideoPrediction, track_scores, video_scores
from qadtrain.predict_setup import CropSettings
from qadtrain.predict_video import Looked, Scorer, Spot, crops_at, frames_to_score, look_at
from qadtrain.safe_files import remove

ANNOTATED_FOLDER = "annotated"


@dataclass(frozen=True)
class Options:
    fps: float
    every_frame: bool
    max_frames: int | None
    threshold: float
    top_k: int
    annotate: bool
    threads: int
    out_dir: Path


@dataclass(frozen=True)
class Tools:
    detector: Detector
    scorer: Scorer
    crop: CropSettings
    qualities: tuple[str, ...]
    timer: StageTimer


@dataclass(frozen=True)
class Result:
    """What was found in one file.

    Attributes:
        faces: every scored one, rising by frame.
        crops: what the page shows: (frame, track) -> uint8 (size_px, size_px, 3) RGB; None where it shows nothing.
    """

    prediction: VideoPrediction
    faces: list[FaceScore]
    crops: dict[Spot, np.ndarray] | None


def predict_item(item: Item, tools: Tools, options: Options, *, with_crops: bool, several: bool) -> Result:
    """All about one file; never raises for what is wrong with it.

    Args:
        with_crops: whether the page shows the file.
        several: whether it is one of several, so that the progress is that of the files.
    """
    start = time.perf_counter()
    prediction = VideoPrediction(item.name, str(item.path), "image" if item.is_image else "video", "ok")
    with contextlib.suppress(OSError):
        remove([_annotated_path(item, options)])  # of an earlier call: its scores may be others
    try:
        with tools.timer.stage("probe"):
            source = open_item(item)
    except ProbeError as error:
        message = str(error).removeprefix(f"{item.path}: ")
        return Result(replace(prediction, status=error.reason, message=message), [], None)
    prediction = replace(prediction, **_facts(source.info, item.is_image, tools.qualities))
    faces: list[FaceScore] = []
    crops = None
    try:
        indices = frames_to_score(
            source.info, fps=options.fps, every_frame=options.every_frame, max_frames=options.max_frames
        )
        bar = progress_bar(item.name, len(indices), "frames") if not several and len(indices) > 1 else nullcontext()
        with bar as advance:
            looked = look_at(
                source,
                indices,
                tools.detector,
                tools.scorer,
                tools.crop,
                tools.timer,
                threads=options.threads,
                advance=advance or _nothing,
            )
        faces = _faces(looked)
        prediction = _scored(prediction, looked, faces, options)
        if with_crops:
            with tools.timer.stage("page"):
                spots = spots_to_show(faces, prediction.tracks)
                crops = crops_at(source, looked, spots, tools.crop.size_px, options.threads)
        if options.annotate and looked.frames:
            prediction = _annotated(item, source, looked, prediction, tools, options)
    except FfmpegError as error:
        prediction = replace(prediction, status="decode_error", message=str(error).removeprefix(f"{item.path}: "))
    return Result(replace(prediction, seconds=time.perf_counter() - start), faces, crops)


def _scored(prediction: VideoPrediction, looked: Looked, faces: list[FaceScore], options: Options) -> VideoPrediction:
    remarks = list(prediction.remarks)
    status, message = "ok", ""
    if not looked.frames:
        status, message = "decode_error", looked.error or "no frame could be decoded"
    elif looked.unscored:
        status = "not_finite"
        message = (
            f"{looked.unscored} of {looked.unscored + len(faces)} faces have no score: the network gives inf or NaN"
        )
    elif not faces:
        status, message = "no_face", f"no face in {len(looked.frames)} frames"
    elif looked.missing:
        status = "damaged"
        message = (
            f"scored up to frame {looked.frames[-1]}; {len(looked.missing)} frames could not be had: {looked.error}"
        )
    if looked.crowded:
        remarks.append(f"{looked.crowded} frames hold more faces than are looked at, the smallest were left out")
    prediction = replace(
        prediction,
        status=status,
        message=message,
        frames_scored=len(looked.frames),
        frames_with_face=len({face.frame for face in faces}),
        faces=len(faces),
        remarks=tuple(remarks),
    )
    if not faces:
        return prediction
    tracks = track_scores(faces, len(looked.frames), top_k=options.top_k, threshold=options.threshold)
    scores = video_scores(faces, tracks, top_k=options.top_k, threshold=options.threshold)
    return replace(prediction, tracks=tuple(tracks), **scores)


def _annotated(
    item: Item,
    source: Source | Still,
    looked: Looked,
    prediction: VideoPrediction,
    tools: Tools,
    options: Options,
) -> VideoPrediction:
    path = _annotated_path(item, options)
    try:
        with tools.timer.stage("annotate"):
            written, error = annotate(source, looked, prediction, path, options.threshold, options.threads)
    except AnnotateError as failure:
        if prediction.status != "ok":
            return replace(prediction, remarks=(*prediction.remarks, f"no annotated copy: {failure}"))
        return replace(prediction, status="annotate_failed", message=f"scored, but no annotated copy: {failure}")
    remarks = (f"the annotated copy ends after {written} frames: {error}",) if error else ()
    relative = path.relative_to(options.out_dir).as_posix()
    return replace(prediction, annotated=relative, remarks=(*prediction.remarks, *remarks))


def _annotated_path(item: Item, options: Options) -> Path:
    return options.out_dir / ANNOTATED_FOLDER / f"{item.flat_name}{'.png' if item.is_image else '.mp4'}"


def _faces(looked: Looked) -> list[FaceScore]:
    """Rising by frame, then by track."""
    fps = looked.info.fps
    found = [
        FaceScore(
            frame=frame,
            time_s=float(frame / fps),
            track=number,
            box_xyxy=tuple(float(value) for value in sighting.face.box_xyxy),
            face_score=sighting.face.score,
            prob_fake=sighting.prob_fake,
        )
        for number, track in enumerate(looked.tracks)
        for frame, sighting in track.items()
    ]
    return sorted(found, key=lambda face: (face.frame, face.track))


def _facts(info: VideoInfo, is_image: bool, qualities: tuple[str, ...]) -> dict[str, Any]:
    quality, trained = quality_of(info, qualities)
    return {
        "width": info.width,
        "height": info.height,
        "fps": None if is_image else float(info.fps),
        "frames": info.frames,
        "duration_s": None if is_image else float(info.frames / info.fps),
        "codec": info.codec,
        "pix_fmt": info.pix_fmt,
        "crf": info.crf,
        "quality": quality,
        "quality_trained": trained,
    }


def quality_of(info: VideoInfo, qualities: Sequence[str]) -> tuple[str, bool | None]:
    """The quality that x264 wrote into the stream, and whether it is one of the training's.

    ``raw`` for lossless, ``c23`` for CRF 23, ``crf 18.5`` for what no quality is called after; ``unknown`` and None
    for other encoders, for x264 without a CRF, and for pictures. It is the last encoder's: what was compressed strongly
    before and lightly after says the latter.
    """
    if info.crf is None:
        return "unknown", None
    if info.crf == 0:
        return "raw", "raw" in qualities
    named = f"c{info.crf:g}"
    name = named if crf_of(named) is not None else f"crf {info.crf:g}"
    return name, name in qualities


def _nothing(_count: int) -> None:
    return None
