"""The annotated copy of a file: boxes, scores, and under the picture a bar of the scores over time."""

import contextlib
import errno
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from qadprep.errors import RunEnded
from qadprep.video.decoded import Decoded
from qadprep.video.source import Source
from qadtrain.predict_files import Still
from qadtrain.predict_scores import VideoPrediction, persons_to_show
from qadtrain.predict_video import Looked, ahead, batch_size

# Persons with a row in the bar.
_MOST_ROWS = 4
_BACKGROUND = (24, 24, 24)
# RGB, from real over undecided to fake; told apart by the colour-blind too.
_COLOURS = np.array([(49, 120, 190), (235, 220, 130), (215, 60, 40)], np.float64)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LEAST_SCALE = 0.25  # smaller letters cannot be read


class AnnotateError(Exception):
    """The copy could not be made; the message says why."""


def bar_height(height_px: int) -> int:
    """Rows under a picture: a tenth of its height, at least 24; such that the sum is even where it can be."""
    height = max(24, round(height_px / 10))
    return height + (height_px + height) % 2


def annotate(
    source: Source | Still, looked: Looked, prediction: VideoPrediction, out: Path, threshold: float, threads: int = 1
) -> tuple[int, str | None]:
    """Write the annotated copy: an mp4 (H.264, no sound) of a video, a PNG of a picture.

    Same frames, same width and the same (average) rate; below each picture come `bar_height` rows. A box stands where
    a face was scored; between two scored frames of one scene it is interpolated, with the score of the earlier one.

    Returns:
        Frames written, and why these are not all, or None.

    Raises:
        AnnotateError: nothing could be decoded, or the encoder failed.
        RunEnded: the disk is full.
        FfmpegError: there was no memory or file handle left.
    """
    painter = Painter(looked, prediction, threshold)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        if isinstance(source, Still):
            painted = cv2.cvtColor(painter(0, source.rgb), cv2.COLOR_RGB2BGR)
            done, data = cv2.imencode(".png", painted)
            if not done:
                raise AnnotateError("PNG encoding failed")
            temporary.write_bytes(data.tobytes())
            written, error = 1, None
        else:
            # Closed before the reader: the thread that paints ahead must have let go of it.
            with (
                source.reader(range(source.info.frames), threads=threads) as reader,
                contextlib.closing(_painted(iter(reader), painter, batch_size(source.info, 4))) as frames,
            ):
                written = _encode(frames, temporary, source, threads)
            error = reader.error if reader.missing else None
        if not written:
            raise AnnotateError(error or "no frame could be decoded")
        temporary.replace(out)
    except OSError as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise RunEnded(f"{out}: the disk is full; free space and start again") from error
        raise AnnotateError(str(getattr(error, "strerror", None) or error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return written, error


class Painter:
    """Draws on one frame after the other.

    Call it with a frame's number and its uint8 (height, width, 3) RGB picture; it gives uint8 (height + bar, width, 3).
    """

    def __init__(self, looked: Looked, prediction: VideoPrediction, threshold: float) -> None:
        info = looked.info
        self.looked, self.info, self.threshold = looked, info, threshold
        self.paths = [_Path(looked, track) for track in range(len(looked.tracks))]
        self.scale = max(0.35, info.height / 900)
        self.thick = max(1, round(info.height / 360))
        rows = persons_to_show([score for score in prediction.tracks if score.counts], _MOST_ROWS)
        self.bar = self._bar(rows, bar_height(info.height))
        score = prediction.prob_fake
        self.title = "no face" if score is None else f"{prediction.verdict}: {score:.2f}"

    def __call__(self, index: int, rgb: np.ndarray) -> np.ndarray:
        height, width = rgb.shape[:2]
        canvas = np.empty((height + len(self.bar), width, 3), np.uint8)
        canvas[:height], canvas[height:] = rgb, self.bar
        picture = canvas[:height]
        for number, path in enumerate(self.paths):
            if (seen := path.at(index)) is not None:
                box, probability = seen
                self._box(picture, box, probability, f"#{number} {probability:.2f}")
        self._words(picture, self.title, (2 * self.thick, 2 * self.thick), (255, 255, 255))
        x = round(self._x(index, width))
        cv2.line(canvas, (x, height), (x, len(canvas) - 1), (255, 255, 255), self.thick)
        return canvas

    def _box(self, picture: np.ndarray, box: np.ndarray, probability: float, label: str) -> None:
        left, top, right, bottom = (round(float(value)) for value in box)
        cv2.rectangle(picture, (left, top), (right, bottom), colour_of(probability), self.thick)
        # The ground of the words reaches over its last row, and a thick line half of its width over the box.
        gap = 1 + self.thick // 2
        text_height = cv2.getTextSize(label, _FONT, self.scale, max(1, self.thick // 2))[0][1] + 3 * self.thick + gap
        place = top - text_height if top >= text_height else bottom + gap
        self._words(picture, label, (left, place), colour_of(probability))

    def _words(
        self,
        picture: np.ndarray,
        text: str,
        at: tuple[int, int],
        colour: tuple[int, int, int],
        scale: float | None = None,
    ) -> None:
        """Text on a dark ground, its upper left corner at a place."""
        scale = scale or self.scale
        (width, height), _ = cv2.getTextSize(text, _FONT, scale, max(1, self.thick // 2))
        x, y = at
        pad = self.thick
        cv2.rectangle(picture, (x, y), (x + width + 2 * pad, y + height + 3 * pad), _BACKGROUND, -1)
        place = (x + pad, y + height + pad)
        cv2.putText(picture, text, place, _FONT, scale, colour, max(1, self.thick // 2), cv2.LINE_AA)

    def _x(self, index: int, width: int) -> float:
        return (index + 0.5) * width / self.info.frames

    def _bar(self, rows: Sequence[int], height: int) -> np.ndarray:
        """uint8 (height, width, 3): a row a person, coloured by the score of the scored frames."""
        width = self.info.width
        bar = np.full((height, width, 3), _BACKGROUND, np.uint8)
        frames = self.looked.frames
        edges = [0.0, *((a + b + 1) / 2 for a, b in pairwise(frames)), float(self.info.frames)]
        for place, track in enumerate(rows):
            top, bottom = (round(height * part / len(rows)) for part in (place, place + 1))
            for number, frame in enumerate(frames):
                sighting = self.looked.tracks[track].get(frame)
                if sighting is None:
                    continue
                left, right = (round(edges[n] * width / self.info.frames) for n in (number, number + 1))
                bar[top + 1 : bottom, left : max(right, left + 1)] = colour_of(sighting.prob_fake)
            # A letter of this font is 22 px high at scale 1; the ground of the words takes three more lines.
            scale = min(self.scale, (bottom - top - 3 * self.thick - 2) / 22)
            if scale >= _LEAST_SCALE:
                self._words(bar, f"#{track}", (0, top + 1), (255, 255, 255), scale)
        return bar


class _Path:
    """Where a person's face is at any frame."""

    def __init__(self, looked: Looked, track: int) -> None:
        self._seen, self._scenes = looked.tracks[track], looked.scenes
        self._frames = sorted(self._seen)
        self._next = dict(pairwise(looked.frames))
        self._last_step = looked.frames[-1] - looked.frames[-2] if len(looked.frames) > 1 else 1

    def at(self, index: int) -> tuple[np.ndarray, float] | None:
        """(box, probability), or None where the face is not known to be there."""
        place = bisect_right(self._frames, index)
        if not place:
            return None
        before = self._frames[place - 1]
        sighting = self._seen[before]
        box = sighting.face.box_xyxy
        if before == index:
            return box, sighting.prob_fake
        following = self._next.get(before)
        if following in self._seen and self._scenes[before] == self._scenes[following]:
            part = (index - before) / (following - before)
            return box + part * (self._seen[following].face.box_xyxy - box), sighting.prob_fake
        # It is lost by the next scored frame, or there is a cut: half of the way is a fair guess. Behind the last
        # scored frame nothing speaks against a whole step.
        end = before + 2 * self._last_step if following is None else following
        return (box, sighting.prob_fake) if 2 * (index - before) < end - before else None


def colour_of(probability: float) -> tuple[int, int, int]:
    """RGB of a probability: blue at 0, yellow at 0.5, red at 1."""
    at = min(max(probability, 0.0), 1.0) * 2
    low = min(int(at), 1)
    return tuple(round(float(value)) for value in _COLOURS[low] + (at - low) * (_COLOURS[low + 1] - _COLOURS[low]))


def _rate(fps: Fraction) -> Fraction:
    """A rate of small numbers, as encoders want it; below one frame a second too, where it must not become 0."""
    return fps.limit_denominator(1001) if fps >= 1 else 1 / (1 / fps).limit_denominator(1001)


def _painted(frames: Iterator[Decoded], painter: Painter, size: int) -> Iterator[np.ndarray]:
    def make(upcoming: Iterator[Decoded]) -> list[np.ndarray]:
        batch = []
        for frame in upcoming:
            batch.append(painter(frame.index, frame.rgb))
            if len(batch) == size:
                break
        return batch

    with contextlib.closing(ahead(frames, make)) as batches:
        for batch in batches:
            yield from batch


def _encode(frames: Iterator[np.ndarray], path: Path, source: Source, threads: int) -> int:
    """H.264 for looking at: fast, of good quality, 4:2:0 where the size is even, tagged as BT.709."""
    import av
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    written = 0
    reformatter = VideoReformatter()
    try:
        with av.open(str(path), "w", format="mp4") as container:
            stream = None
            for rgb in frames:
                if stream is None:
                    height, width = rgb.shape[:2]
                    stream = container.add_stream("libx264", rate=_rate(source.info.fps))
                    stream.width, stream.height = width, height
                    stream.pix_fmt = "yuv444p" if (width | height) % 2 else "yuv420p"
                    stream.options = {"crf": "20", "preset": "veryfast"}
                    stream.codec_context.thread_count = threads
                    stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
                    stream.codec_context.color_primaries, stream.codec_context.color_trc = 1, 1
                picture = reformatter.reformat(
                    av.VideoFrame.from_ndarray(rgb, format="rgb24"),
                    format=stream.pix_fmt,
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
                picture.pts = written
                picture.time_base = 1 / stream.codec_context.framerate
                container.mux(stream.encode(picture))
                written += 1
            if stream is not None:
                container.mux(stream.encode())
    except av.error.FFmpegError as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        raise AnnotateError(f"encoding failed ({error.strerror or error})") from error
    return written
