"""Look at one file: decode the chosen frames, find and cut their faces, score them, and follow them through time.

Three things go on at once: the next frames are decoded, faces are found in these, and the network scores the crops of
those before. Frames are never kept: what remains of a face is its place, its look (1.2 kB) and its probability.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.faces.base import Detector, Face
from qadprep.faces.looks import look_of
from qadprep.faces.scenes import _View, least_likeness, likeness
from qadprep.faces.tracking import Track, find_tracks
from qadprep.geometry import DETECT_BATCH, MAX_EVERY_FACE
from qadprep.timing import StageTimer
from qadprep.video.decoded import Decoded
from qadprep.video.probe import VideoInfo
from qadprep.video.source import Source
from qadtrain.config import Config
from qadtrain.forward import batch_logits
from qadtrain.predict_files import Still
from qadtrain.predict_setup import CropSettings
from qadtrain.score_files import fake_probability

# Frames that are held at once, in bytes of RGB: two batches of them are.
_FRAMES_BYTES = 48_000_000
# Batches of crops that wait for the network, and crops that are kept for pictures of the result.
_WAITING, _CROPS_KEPT = 3, 512

Spot = tuple[int, int]


def frames_to_score(
    info: VideoInfo, *, fps: float, every_frame: bool = False, max_frames: int | None = None
) -> list[int]:
    """Frame numbers, strictly rising: so many a second from the first on; at most ``max_frames``, spread evenly."""
    step = Fraction(1) if every_frame else max(Fraction(1), info.fps / Fraction(fps).limit_denominator(1000))
    count = -(-info.frames // step)
    chosen = [int(number * step) for number in range(count)]
    if max_frames is None or count <= max_frames:
        return chosen
    return [chosen[(2 * part + 1) * count // (2 * max_frames)] for part in range(max_frames)]


class Scorer:
    """Scores crops in batches, in a thread of its own.

    Args:
        size_px: side of the crops.
        batch: crops a pass.
    """

    def __init__(
        self, model: nn.Module, config: Config, device: torch.device, size_px: int, batch: int, timer: StageTimer
    ) -> None:
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        self.model = model.eval().to(device, memory_format=layout)
        self.config, self.device, self.batch, self.timer = config, device, batch, timer
        self.size_px = config.data.image_size_px or size_px
        self._pool = ThreadPoolExecutor(1, "score")
        self._flags = ExitStack()
        self._next: list[np.ndarray] = []
        self._waiting: deque[Future[np.ndarray]] = deque()
        self._done: list[np.ndarray] = []

    def __enter__(self) -> "Scorer":
        if self.device.type == "cuda":
            # One set for all threads, and the detector sets them for its passes: scores would depend on who is first.
            self._flags.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._flags.close()

    def add(self, crop: np.ndarray) -> None:
        """Take a crop, uint8 (size_px, size_px, 3) RGB; waits while too many are before it."""
        self._next.append(crop)
        if len(self._next) == self.batch:
            self._send()

    def finish(self) -> np.ndarray:
        """Probabilities of the fake class of all crops since the last call, in their order: float64 (n,)."""
        if self._next:
            self._send()
        while self._waiting:
            self._done.append(self._waiting.popleft().result())
        done, self._done = self._done, []
        return np.concatenate([np.zeros(0), *done])

    def drop(self) -> None:
        """Forget what was added since the last call of :meth:`finish`: its file could not be read."""
        self._next.clear()
        self.finish()

    def _send(self) -> None:
        while len(self._waiting) >= _WAITING:
            self._done.append(self._waiting.popleft().result())
        crops, self._next = np.stack(self._next), []
        self._waiting.append(self._pool.submit(self.score, crops))

    @torch.inference_mode()
    def score(self, crops: np.ndarray) -> np.ndarray:
        """uint8 (n, size_px, size_px, 3) RGB -> float64 (n,), as the evaluation scores a quality of a tuple."""
        with self.timer.stage("network"):
            images = torch.from_numpy(crops)[:, None]
            return fake_probability(batch_logits(self.model, images, self.config, self.size_px, self.device)[:, 0])


class Scenes:
    """Numbers the scenes as :func:`qadprep.faces.scenes.find_scenes` does, without keeping the thumbnails."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self._number, self._last = 0, 0
        self._before: _View | None = None

    def add(self, frame: int, thumbnail: np.ndarray) -> None:
        """Take the next frame's uint8 (90, 160) luminance; frames rise."""
        seen = _View(thumbnail)
        if not seen.is_flat:
            if self._before is not None and likeness(self._before, seen) < least_likeness(frame - self._last):
                self._number += 1
            self._before, self._last = seen, frame
        self.numbers[frame] = self._number


@dataclass(eq=False)
class Sighting:
    """A face with its probability. affine: float64 (2, 3), source px -> crop px, pixel centres."""

    face: Face
    affine: np.ndarray
    prob_fake: float = float("nan")


@dataclass(eq=False)
class Looked:
    """What was seen in one file.

    Attributes:
        frames: frames that were looked at, rising; less than was wanted where the file is damaged.
        tracks: persons, by rank; each frame -> sighting.
        scenes: frame -> number of its scene.
        crops: (frame, track) -> uint8 (size_px, size_px, 3) RGB, of the first faces only: memory is bounded.
        missing: wanted frames that could not be decoded; error: why.
        crowded: frames with more than 32 faces, of which the smallest were left out.
        unscored: faces for which the network gives inf or NaN; they are in no track.
    """

    info: VideoInfo
    frames: list[int] = field(default_factory=list)
    tracks: list[dict[int, Sighting]] = field(default_factory=list)
    scenes: dict[int, int] = field(default_factory=dict)
    crops: dict[Spot, np.ndarray] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    error: str | None = None
    crowded: int = 0
    unscored: int = 0


def look_at(
    source: Source | Still,
    indices: Sequence[int],
    detector: Detector,
    scorer: Scorer,
    crop: CropSettings,
    timer: StageTimer,
    *,
    threads: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Looked:
    """Score every face of the frames at ``indices``.

    Args:
        indices: frame numbers, strictly rising.
        threads: of the decoder.
        advance: called with the number of frames done.

    Raises:
        FfmpegError: there was no memory, disk or file handle left.
    """
    looked, scenes = Looked(source.info), Scenes()
    faces: dict[int, list[Face]] = {}
    sightings: dict[int, Sighting] = {}
    looks: dict[int, np.ndarray] = {}
    crops: dict[int, np.ndarray] = {}
    try:
        with source.reader(indices, threads=threads) as reader:
            for batch in _batches(reader, source.info, timer):
                with timer.stage("detect"):
                    found = detector.detect([rgb for _, rgb, _ in batch])
                for (index, rgb, thumbnail), seen in zip(batch, found, strict=True):
                    with timer.stage("track"):
                        scenes.add(index, thumbnail)
                    looked.crowded += len(seen) > MAX_EVERY_FACE
                    faces[index] = []
                    for face in sorted(seen, key=lambda face: -face.side_px)[:MAX_EVERY_FACE]:
                        with timer.stage("warp"):
                            cut = cut_face(rgb, face, crop)
                        if cut is None:
                            continue
                        affine, picture = cut
                        faces[index].append(face)
                        sightings[id(face)] = Sighting(face, affine)
                        with timer.stage("track"):
                            looks[id(face)] = look_of(picture)
                        if len(crops) < _CROPS_KEPT:
                            crops[id(face)] = picture
                        with timer.stage("wait for network"):
                            scorer.add(picture)
                advance(len(batch))
        with timer.stage("wait for network"):
            probabilities = scorer.finish()
    except BaseException:
        scorer.drop()
        raise
    for sighting, probability in zip(sightings.values(), probabilities, strict=True):
        sighting.prob_fake = float(probability)
    with timer.stage("track"):
        tracks = find_tracks(faces, scenes=scenes.numbers, looks=looks)
    looked.frames, looked.scenes = sorted(faces), scenes.numbers
    looked.missing, looked.error = list(reader.missing), reader.error
    looked.unscored = int((~np.isfinite(probabilities)).sum())
    _fill(looked, tracks, sightings, crops)
    return looked


def cut_face(rgb: np.ndarray, face: Face, crop: CropSettings) -> tuple[np.ndarray, np.ndarray] | None:
    """(affine, crop) exactly as the extraction cuts; None for a false alarm whose landmarks lie on one point."""
    try:
        affine = affine_from_face(face, align=crop.align, margin=crop.margin, size_px=crop.size_px)
        return affine, warp_face(rgb, affine, crop.size_px)
    except ValueError:
        return None


def crops_at(
    source: Source | Still, looked: Looked, spots: Sequence[Spot], size_px: int, threads: int = 1
) -> dict[Spot, np.ndarray]:
    """(frame, track) -> its crop; those that were not kept are cut again from the file."""
    found = {spot: looked.crops[spot] for spot in spots if spot in looked.crops}
    by_frame: dict[int, list[int]] = {}
    for frame, track in spots:
        if (frame, track) not in found:
            by_frame.setdefault(frame, []).append(track)
    if by_frame:
        with source.reader(sorted(by_frame), threads=threads) as reader:
            for frame in reader:
                for track in by_frame[frame.index]:
                    affine = looked.tracks[track][frame.index].affine
                    found[frame.index, track] = warp_face(frame.rgb, affine, size_px)
    return found


def ahead(items: Iterator[Decoded], make: Callable[[Iterator[Decoded]], list]) -> Iterator[list]:
    """What ``make`` takes from the items, until it is empty; the next one is made in a thread meanwhile."""
    with ThreadPoolExecutor(1, "decode") as pool:
        upcoming = pool.submit(make, items)
        while batch := upcoming.result():
            upcoming = pool.submit(make, items)
            yield batch


def batch_size(info: VideoInfo, most: int = DETECT_BATCH) -> int:
    """Frames a batch, so that two batches of them have a bounded size."""
    return max(1, min(most, _FRAMES_BYTES // (3 * info.width * info.height)))


def _batches(reader: object, info: VideoInfo, timer: StageTimer) -> Iterator[list[tuple[int, np.ndarray, np.ndarray]]]:
    size = batch_size(info)

    def make(frames: Iterator[Decoded]) -> list[tuple[int, np.ndarray, np.ndarray]]:
        batch = []
        for frame in timer.each("decode", frames):
            with timer.stage("convert"):
                batch.append((frame.index, frame.rgb, frame.thumbnail))
            if len(batch) == size:
                break
        return batch

    return ahead(iter(reader), make)


def _fill(looked: Looked, tracks: list[Track], sightings: dict[int, Sighting], crops: dict[int, np.ndarray]) -> None:
    for track in tracks:
        scored = {f: face for f, face in track.faces.items() if np.isfinite(sightings[id(face)].prob_fake)}
        number = len(looked.tracks)
        looked.tracks += [{frame: sightings[id(face)] for frame, face in scored.items()}] if scored else []
        for frame, face in scored.items():
            if id(face) in crops:
                looked.crops[frame, number] = crops[id(face)]
