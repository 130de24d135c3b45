"""One self-contained HTML page about a prediction: per file the scores over time, crops, and numbers."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qadprep.crops import encode_png
from qadprep.plot_style import COLOURS
from qadprep.report_page import page
from qadprep.report_plots import figure_element, new_axes
from qadprep.report_section import Number, Section
from qadtrain.predict_scores import FaceScore, TrackScore, VideoPrediction, persons_to_show
from qadtrain.predict_video import Spot
from qadtrain.safe_files import write_atomically

if TYPE_CHECKING:
    from qadtrain.predict_summary import PredictSummary

PAGE_NAME = "report.html"
# Files that are shown in detail, and persons of each with crops and a line: bounds the page.
MOST_FILES, MOST_PERSONS = 100, 6
# Crops of a person with the highest scores, and as many with the lowest.
_CROPS_EACH, _CROP_SHOWN_PX = 3, 128
# A line is not drawn over a gap of more sampling steps: the face was not there.
_GAP_STEPS = 2.5
_MOST_POINTS = 1000
_NOTICE = (
    "A score is no proof. It is the output of one network on what it was trained on: other manipulations, cameras, "
    "compression or people can give high scores to real videos and low ones to fakes."
)


@dataclass
class Shown:
    """What the page shows of one file; small, so that many can be kept until the page is written.

    Attributes:
        figure: of the scores over time, markup.
        crops: markup of the crops.
    """

    prediction: VideoPrediction
    figure: str = ""
    crops: str = field(default="", repr=False)


def spots_to_show(faces: Sequence[FaceScore], tracks: Sequence[TrackScore]) -> list[Spot]:
    """(frame, track) of the highest and lowest scores of each person, highest first; nothing twice."""
    found: list[Spot] = []
    for track in persons_to_show(tracks, MOST_PERSONS):
        ranked = sorted((face for face in faces if face.track == track), key=lambda face: (-face.prob_fake, face.frame))
        chosen = dict.fromkeys(face.frame for face in (*ranked[:_CROPS_EACH], *ranked[-_CROPS_EACH:]))
        found += [(frame, track) for frame in chosen]
    return found


def shown(
    number: int,
    prediction: VideoPrediction,
    faces: Sequence[FaceScore],
    crops: dict[Spot, np.ndarray],
    threshold: float,
) -> Shown:
    """Draw what the page shows of one file.

    Args:
        number: of the file in the page; ids of the figure begin with it.
        crops: spot -> uint8 (size_px, size_px, 3) RGB; see `spots_to_show`.
    """
    figure = timeline(f"file-{number}", prediction, faces, threshold) if prediction.kind == "video" and faces else ""
    return Shown(prediction, figure, _crops(faces, crops))


def timeline(name: str, prediction: VideoPrediction, faces: Sequence[FaceScore], threshold: float) -> str:
    """Scores over the time of a video, a line for each person, as inline SVG."""
    fps = prediction.fps or 1.0
    step = max(1.0, (prediction.frames or 1) / max(1, prediction.frames_scored))
    with new_axes(2.3) as axes:
        for track in persons_to_show(prediction.tracks, MOST_PERSONS):
            seen = sorted((face for face in faces if face.track == track), key=lambda face: face.frame)
            seen = seen[:: -(-len(seen) // _MOST_POINTS)]
            gap = _GAP_STEPS * max(step, np.median([b.frame - a.frame for a, b in pairwise(seen)] or [0.0]))
            times, values = [], []
            for face in seen:
                if times and (face.time_s - times[-1]) * fps > gap:
                    times.append(face.time_s)
                    values.append(np.nan)
                times.append(face.time_s)
                values.append(face.prob_fake)
            mark = "o" if len(seen) <= 100 else ""
            colour = COLOURS[track % len(COLOURS)]
            axes.plot(times, values, label=f"person {track}", color=colour, linewidth=1.4, marker=mark, markersize=3)
        axes.axhline(threshold, color="#555555", linewidth=1, linestyle=(0, (4, 2)), label="threshold")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(0, max(prediction.duration_s or 0.0, 1 / fps))
        axes.set_xlabel("time, s")
        axes.set_ylabel("probability of fake")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        alt = f"{prediction.name}: probability of fake over time, {len({face.track for face in faces})} persons"
        return figure_element(axes, name, alt, "")


def _crops(faces: Sequence[FaceScore], crops: dict[Spot, np.ndarray]) -> str:
    by_spot = {(face.frame, face.track): face for face in faces}
    rows = []
    for track in sorted({track for _, track in crops}):
        chosen = sorted((by_spot[spot] for spot in crops if spot[1] == track), key=lambda face: -face.prob_fake)
        cells = []
        for face in chosen:
            data = base64.b64encode(encode_png(crops[face.frame, track])).decode()
            words = f"{face.prob_fake:.3f} at {face.time_s:.2f} s"
            cells.append(
                f"<figure style='margin:0'><img alt='person {track}, frame {face.frame}' width='{_CROP_SHOWN_PX}' "
                f"height='{_CROP_SHOWN_PX}' src='data:image/png;base64,{data}'>"
                f"<figcaption>{words}</figcaption></figure>"
            )
        rows.append(
            f"<p style='margin:.6em 0 .2em'>Person {track}, highest to lowest score</p>"
            f"<div style='display:flex;flex-wrap:wrap;gap:.6em'>{''.join(cells)}</div>"
        )
    return "".join(rows)


def write_page(folder: Path, summary: "PredictSummary", details: Sequence[Shown]) -> Path:
    """Write ``report.html``; the same results give the same bytes."""
    videos = sorted(summary.videos, key=lambda video: (-(video.prob_fake or 0.0), video.name))
    columns = (
        "file", "verdict", "fake", "mean of all", f"top {summary.top_k}", "persons", "frames with a face", "length, s",
        "quality",
    )  # fmt: skip
    rows = [
        (
            *(video.name, video.verdict or "-"),
            *map(_number, (video.prob_fake, video.prob_fake_mean, video.prob_fake_top_k)),
            Number(sum(track.counts for track in video.tracks)),
            Number(f"{video.frames_with_face} of {video.frames_scored}"),
            Number("-" if video.duration_s is None else f"{video.duration_s:.1f}"),
            video.quality,
        )
        for video in videos
        if video.prob_fake is not None
    ]
    text = (
        f"Fake: the highest mean over the frames of one person; a file is called fake from {summary.threshold:g} on. "
        f"Top {summary.top_k}: mean of the {summary.top_k} highest faces."
    )
    failed = [(video.name, video.status, video.message) for video in summary.videos if video.failed]
    more = len(summary.videos) - len(details)
    sections = [
        Section("Summary", anchor="summary", chapter=True),
        Section("Scores", text, columns, rows),
        Section("Not scored, or not as asked", "", ("file", "status", "what happened"), failed, anchor="failed"),
        Section(
            "How it was made", " ".join(f"{remark}." for remark in summary.remarks), ("what", "value"), _made(summary)
        ),
        Section("Files", f"{more} more files are in the tables only." if more else "", anchor="files", chapter=True),
        *(_section(number, one) for number, one in enumerate(details)),
    ]
    path = folder / PAGE_NAME
    text = page(f"Prediction of {summary.run}", _NOTICE, sections)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return path


def _section(number: int, one: Shown) -> Section:
    video = one.prediction
    facts = [f"{video.width}x{video.height}"] if video.width else []
    if video.kind == "video" and video.frames:
        facts += [f"{video.frames} frames at {video.fps:.2f}/s", f"{video.frames_scored} of them scored"]
    facts += [str(video.codec)] if video.codec else []
    trained = {True: "trained on", False: "not trained on", None: ""}[video.quality_trained]
    facts.append(f"quality {video.quality}" + (f" ({trained})" if trained else ""))
    said = _sentences((", ".join(facts), *video.remarks))
    if video.message:
        said = f"{video.status}: {video.message}. {said}"
    columns = (
        "person",
        "verdict",
        "fake",
        "top k",
        "lowest",
        "highest",
        "frames",
        "from, s",
        "to, s",
        "face, px",
        "counts",
    )
    rows = [
        (
            *(Number(track.track), track.verdict),
            *map(_number, (track.prob_fake, track.prob_fake_top_k, track.prob_fake_min, track.prob_fake_max)),
            *(Number(track.frames), Number(f"{track.first_s:.2f}"), Number(f"{track.last_s:.2f}")),
            *(Number(f"{track.face_px:.0f}"), "yes" if track.counts else "no"),
        )
        for track in video.tracks
    ]
    return Section(video.name, said, columns, rows, html=one.figure + one.crops, anchor=f"file-{number}")


def _made(summary: "PredictSummary") -> list[tuple[str, str]]:
    crop = summary.crop
    return [
        ("model", f"{summary.model}, checkpoint {summary.checkpoint}"),
        ("crops", f"{crop.size_px} px, aligned by {crop.align}, margin {crop.margin:g}"),
        ("crops as told by", f"align: {crop.align_from}, margin: {crop.margin_from}"),
        ("detector", summary.detector),
        ("trained on qualities", ", ".join(summary.qualities)),
        ("scored frames", summary.sampling),
        ("threshold", f"{summary.threshold:g}"),
    ]


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts if part)


def _number(value: float | None) -> Number:
    return Number("-" if value is None else f"{value:.3f}")
