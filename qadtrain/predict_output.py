"""The files and tables of a prediction: predictions.json, videos.csv, tracks.csv, faces.csv, tables for people."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from qadtrain.predict_scores import FaceScore, VideoPrediction
from qadtrain.safe_files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME, VIDEOS_NAME, TRACKS_NAME, FACES_NAME = "predictions.json", "videos.csv", "tracks.csv", "faces.csv"
TABLES = (JSON_NAME, VIDEOS_NAME, TRACKS_NAME, FACES_NAME)
VIDEO_COLUMNS = (
    "name", "kind", "status", "verdict", "prob_fake", "prob_fake_mean", "prob_fake_top_k", "quality", "quality_trained",
    "crf", "codec", "pix_fmt", "width", "height", "fps", "frames", "duration_s", "frames_scored", "frames_with_face",
    "faces", "persons", "seconds", "message",
)  # fmt: skip
TRACK_COLUMNS = (
    "name", "track", "counts", "verdict", "prob_fake", "prob_fake_top_k", "prob_fake_min", "prob_fake_max", "frames",
    "share", "first_s", "last_s", "face_px",
)  # fmt: skip
FACE_COLUMNS = ("name", "frame", "time_s", "track", "left", "top", "right", "bottom", "face_score", "prob_fake")


class FaceTable:
    """``faces.csv``, written while the prediction goes on: a row for each scored face. It appears when complete."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp")
        self._file: TextIO | None = None

    def __enter__(self) -> "FaceTable":
        self._file = self._temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(FACE_COLUMNS)
        return self

    def add(self, name: str, faces: Sequence[FaceScore]) -> None:
        for face in faces:
            numbers = [f"{value:.2f}" for value in face.box_xyxy]
            scores = (f"{face.face_score:.6f}", f"{face.prob_fake:.6f}")
            self._writer.writerow((name, face.frame, f"{face.time_s:.4f}", face.track, *numbers, *scores))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # writes what is left, and the disk may be full
            if kind is None:
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def write_tables(folder: Path, contents: dict[str, Any]) -> None:
    """predictions.json, videos.csv and tracks.csv.

    Args:
        contents: of predictions.json, as :meth:`qadtrain.predict_summary.PredictSummary.as_json` gives them.
    """
    videos = contents["videos"]
    rows = [{**video, "persons": len(video["tracks"])} for video in videos]
    tracks = [{"name": video["name"], **track} for video in videos for track in video["tracks"]]
    write_atomically(folder / JSON_NAME, (json.dumps(contents, indent=2, allow_nan=False) + "\n").encode())
    write_atomically(folder / VIDEOS_NAME, _csv(VIDEO_COLUMNS, rows))
    write_atomically(folder / TRACKS_NAME, _csv(TRACK_COLUMNS, tracks))


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
    """None is an empty cell, a truth value is ``true`` or ``false``."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = (row[name] for name in columns)
        writer.writerow(str(cell).lower() if isinstance(cell, bool) else cell for cell in cells)
    return buffer.getvalue().encode("utf-8", "backslashreplace")


def prediction_tables(videos: Sequence[VideoPrediction], most: int = 40) -> Iterator["Table"]:
    """Rich tables: what was scored, highest score first, and what failed; at most ``most`` rows each."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            # Names and messages are folded where the terminal is narrow; a number in two lines would be misread.
            folded = name in ("file", "what happened")
            made.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold", no_wrap=not folded)
        for row in rows[:most]:
            made.add_row(*(Text(cell.encode("utf-8", "backslashreplace").decode()) for cell in row))
        if len(rows) > most:
            made.caption = f"... and {len(rows) - most} more in {VIDEOS_NAME}"
        return made

    scored = sorted((video for video in videos if video.prob_fake is not None), key=lambda video: -video.prob_fake)
    if scored:
        columns = ("file", "verdict", "fake", "mean", "top k", "persons", "frames", "quality")
        rows = [
            (
                *(video.name, str(video.verdict), f"{video.prob_fake:.3f}", f"{video.prob_fake_mean:.3f}"),
                *(f"{video.prob_fake_top_k:.3f}", str(sum(track.counts for track in video.tracks))),
                *(f"{video.frames_with_face}/{video.frames_scored}", video.quality),
            )
            for video in scored
        ]
        yield table("probability of being fake", columns, rows)
    failed = [video for video in videos if video.failed]
    if failed:
        rows = [(video.name, video.status, video.message) for video in failed]
        yield table("not scored, or not as asked", ("file", "status", "what happened"), rows)


_WORDS = ("file", "verdict", "quality", "status", "what happened")
