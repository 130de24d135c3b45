"""Footage for `bench_extract.py`: an original and five manipulations at three qualities, in the layout of FF++.

The picture is a real face (scikit-image's astronaut, or a clip of one's own) that moves before a wall that does not. It
goes through a lossy encoder first, as FF++'s videos came from YouTube, because lossless files of it then have the
sizes of FF++'s. A short stretch is made and its packets are repeated up to the wanted length: that costs a decoder the
same as footage that never repeats, and making it a quarter. The number of every frame stands in the picture's corner,
so that a frame can be recognised in any file.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

METHODS = ("Deepfakes", "Face2Face", "FaceShifter", "FaceSwap", "NeuralTextures")
QUALITIES = ("raw", "c23", "c40")
BITS = 8
FPS = 25
# Raised when the footage changes, so that what is left of an older run is not taken.
_VERSION = 1
# The encoder before everything else, and the grain it gets: together they set the size of the lossless files.
_FIRST_CRF, _GRAIN_SIGMA = 21, 1.5


@dataclass(frozen=True)
class Footage:
    """What to make.

    Attributes:
        width, height: of the pictures, even; frames: of every file.
        unique: frames after which the footage repeats.
        clip: a video to take the original's pictures from, or None for the astronaut.
    """

    width: int = 1280
    height: int = 720
    frames: int = 500
    unique: int = 125
    clip: str | None = None

    @property
    def period(self) -> int:
        """Frames after which the footage repeats; at most as many as their number can tell apart."""
        return min(self.unique, self.frames, 2**BITS)

    def folder(self, data: Path) -> Path:
        """Where it lies below the folder of all footage."""
        key = hashlib.sha256(json.dumps([_VERSION, _FIRST_CRF, _GRAIN_SIGMA, asdict(self)]).encode()).hexdigest()
        return data / f"{self.width}x{self.height}-{self.frames}-{key[:8]}"


def make_group(footage: Footage, data: Path, processes: int = 2) -> Path:
    """Make one group's 18 files, or find them made; returns the folder with `<method>.<quality>.mp4` and faces.json."""
    folder = footage.folder(data)
    if (folder / "faces.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    frames = as_uploaded(clip_frames(footage) if footage.clip else portrait_frames(footage), folder / "upload.mp4")
    for number, frame in enumerate(frames):
        stamp(frame, number)
    faces = find_faces(frames)
    np.save(folder / "frames.npy", frames)
    del frames
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        jobs = [pool.submit(write_method, footage, folder, method, faces) for method in ("original", *METHODS)]
        for job in jobs:
            job.result()
    (folder / "frames.npy").unlink()
    (folder / "upload.mp4").unlink()
    # Last: it says that the folder is complete.
    (folder / "faces.json").write_text(json.dumps(faces))
    return folder


def link_groups(group: Path, count: int) -> Path:
    """An FF++ root with the same group under `count` official ids, as hard links."""
    root = group / f"groups-{count}"
    shutil.rmtree(root, ignore_errors=True)
    for target, source in official_pairs()[:count]:
        for method in ("original", *METHODS):
            name = target if method == "original" else f"{target}_{source}"
            place = "original_sequences/youtube" if method == "original" else f"manipulated_sequences/{method}"
            for quality in QUALITIES:
                file = root / place / quality / "videos" / f"{name}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                os.link(group / f"{method}.{quality}.mp4", file)
    return root


def official_pairs() -> list[tuple[str, str]]:
    """(target, source) of FF++'s training split."""
    from qadprep.catalog.splits import load_ffpp_splits

    return [order for a, b in load_ffpp_splits()["train"] for order in ((a, b), (b, a))]


def sizes_mb(group: Path) -> dict[str, float]:
    """Quality -> mean size of its files, 10^6 bytes."""
    sizes = {q: [file.stat().st_size for file in group.glob(f"*.{q}.mp4")] for q in QUALITIES}
    return {quality: sum(found) / len(found) / 1e6 for quality, found in sizes.items()}


def portrait_frames(footage: Footage) -> np.ndarray:
    """uint8 (period, height, width, 3) RGB: a head that sways before a wall, back at its start after the period."""
    from skimage import data

    portrait = data.astronaut()
    width, height, period = footage.width, footage.height, footage.period
    rng = np.random.default_rng(0)
    # The portrait's head is some 190 px high; it gets two fifths of the picture's height.
    zoom = 0.4 * height / 190
    head = np.array([width / 2, 0.42 * height])
    frames = np.empty((period, height, width, 3), np.uint8)
    frames[:] = warp(portrait, zoom, 0.0, head, width, height)
    # Head and shoulders move, what is far from them rests.
    left, right, top = int(0.3 * width), int(0.7 * width), int(0.08 * height)
    yy, xx = np.mgrid[top:height, left:right].astype(np.float32)
    reach = np.hypot((xx - head[0]) / (0.2 * width), (yy - head[1] - 0.1 * height) / (0.4 * height))
    moving = np.clip((1 - reach) / 0.2, 0, 1)[..., None]
    still = frames[0, top:, left:right].astype(np.float32) * (1 - moving)
    for index in range(period):
        # Whole rounds of about so many frames each, so that all of them close together.
        slow, tilt, sway, shake = (
            2 * np.pi * index / period * max(1, round(period / each)) for each in (60, 20, 30, 7)
        )
        move = np.array([0.022 * np.sin(sway) + 0.006 * np.sin(shake), 0.012 * np.cos(tilt)]) * height
        scale, centre = zoom * (1 + 0.03 * np.sin(slow)), head + move - (left, top)
        person = warp(portrait, scale, 0.04 * np.sin(tilt), centre, right - left, height - top)
        grain = rng.standard_normal(moving.shape, np.float32) * np.float32(_GRAIN_SIGMA)
        frames[index, top:, left:right] = np.clip((person + grain) * moving + still, 0, 255)
    return frames


def warp(
    portrait: np.ndarray, zoom: float, turn_rad: float, centre_xy: np.ndarray, width: int, height: int
) -> np.ndarray:
    """The portrait with the middle of its face at `centre_xy`; beyond its border the wall goes on."""
    import cv2

    cos, sin = zoom * np.cos(turn_rad), zoom * np.sin(turn_rad)
    linear = np.array([[cos, -sin], [sin, cos]])
    affine = np.column_stack([linear, centre_xy - linear @ [222, 118]])
    return cv2.warpAffine(portrait, affine, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def clip_frames(footage: Footage) -> np.ndarray:
    """The same of a video's beginning, scaled to cover the picture; forwards, then backwards, to close the round."""
    import av
    import cv2

    frames = np.empty((footage.period, footage.height, footage.width, 3), np.uint8)
    half, count = footage.period // 2 + 1, 0
    with av.open(footage.clip) as container:
        for count, frame in zip(range(1, half + 1), container.decode(video=0), strict=False):
            picture = frame.to_ndarray(format="rgb24")
            zoom = max(footage.width / picture.shape[1], footage.height / picture.shape[0])
            picture = cv2.resize(
                picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
            )
            top, left = (picture.shape[0] - footage.height) // 2, (picture.shape[1] - footage.width) // 2
            frames[count - 1] = picture[top : top + footage.height, left : left + footage.width]
    if count < half:
        raise SystemExit(f"{footage.clip}: has {count} frames, {half} are needed")
    for index in range(half, footage.period):
        frames[index] = frames[footage.period - index]
    return frames


def as_uploaded(frames: np.ndarray, path: Path) -> np.ndarray:
    """The frames as a lossy 4:2:0 encoder leaves them; writable."""
    import av

    from qadprep.video.encode import write_compressed

    write_compressed(frames, path, FPS, _FIRST_CRF, "yuv420p")
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            frames[index] = frame.to_ndarray(format="rgb24")
    return frames


def stamp(frame: np.ndarray, number: int) -> None:
    """Write a number into the upper left corner, as black and white cells."""
    cell = cell_px(frame.shape[1])
    for bit in range(BITS):
        frame[:cell, bit * cell : (bit + 1) * cell] = 235 if number >> bit & 1 else 16


def number_of(frame: np.ndarray) -> int:
    """Read the number back, from the picture at any quality."""
    cell = cell_px(frame.shape[1])
    inner = slice(cell // 4, cell - cell // 4)
    cells = frame[:cell, : BITS * cell, 1].reshape(cell, BITS, cell)[inner, :, inner].mean(axis=(0, 2))
    return sum(1 << bit for bit in range(BITS) if cells[bit] > 127)


def cell_px(width: int) -> int:
    """Side of a cell: whole 8 px blocks, which the encoder does not mix with what is beside them."""
    return max(8, width // 640 * 8)


def find_faces(frames: np.ndarray) -> list[dict[str, list]]:
    """The largest face of each frame by MTCNN: every fifth frame looked at, the others between."""
    from qadprep.faces import make_detector

    detector, step = make_detector("mtcnn"), 5
    looked_at = list(range(0, len(frames), step))
    known, rows = [], []
    for index in looked_at:
        found = detector.detect([frames[index]])[0]
        if found:
            face = max(found, key=lambda face: face.side_px)
            known.append(index)
            rows.append(np.concatenate([face.box_xyxy, face.landmarks_xy.reshape(-1)]))
    if len(known) < 0.9 * len(looked_at):
        raise SystemExit(f"MTCNN found a face in {len(known)} of {len(looked_at)} frames: the footage is of no use")
    columns = [np.interp(range(len(frames)), known, column) for column in np.array(rows).T]
    return [
        {"box_xyxy": row[:4].tolist(), "landmarks_xy": row[4:].reshape(5, 2).tolist()} for row in np.array(columns).T
    ]


def write_method(footage: Footage, folder: Path, method: str, faces: list[dict[str, list]]) -> None:
    """One clip at all qualities: encoded once, its packets repeated."""
    from qadprep.video.encode import compress, write_raw

    frames = np.load(folder / "frames.npy", mmap_mode="r")
    stretches = {quality: folder / f"{method}.{quality}.stretch.mp4" for quality in QUALITIES}
    write_raw((altered(frame, method, face) for frame, face in zip(frames, faces, strict=True)), stretches["raw"], FPS)
    for quality in QUALITIES[1:]:
        compress(stretches["raw"], stretches[quality], int(quality[1:]))
    for quality, stretch in stretches.items():
        repeat(stretch, folder / f"{method}.{quality}.mp4", footage.period, footage.frames)
        stretch.unlink()


def altered(frame: np.ndarray, method: str, face: dict[str, list]) -> np.ndarray:
    """A copy of the frame in which the inside of the face is blurred and tinted, each method in its own way."""
    import cv2

    result = np.array(frame)
    if method == "original":
        return result
    left, top, right, bottom = (round(value) for value in face["box_xyxy"])
    height, width = frame.shape[:2]
    number = METHODS.index(method)
    # Face2Face and NeuralTextures change the mouth's surroundings alone.
    top = top + (bottom - top) // 2 if method in ("Face2Face", "NeuralTextures") else top
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    patch = result[top:bottom, left:right].astype(np.float32)
    tint = np.random.default_rng(number).uniform(0.85, 1.15, 3)
    other = cv2.GaussianBlur(patch, (0, 0), 1 + 0.5 * number) * tint
    yy, xx = np.mgrid[-1 : 1 : patch.shape[0] * 1j, -1 : 1 : patch.shape[1] * 1j]
    share = np.clip((1 - np.hypot(xx, yy)) / 0.2, 0, 1)[..., None]
    result[top:bottom, left:right] = np.clip(patch + (other - patch) * share, 0, 255)
    return result


def repeat(stretch: Path, path: Path, period: int, frames: int) -> None:
    """Write a video's packets one round after the other, until there are `frames` of them."""
    import av

    with av.open(str(stretch)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        tick = int(1 / (FPS * stream.time_base))
        for start in range(0, frames, period):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.size and packet.pts // tick + start < frames:
                    packet.pts, packet.dts = packet.pts + start * tick, packet.dts + start * tick
                    packet.stream = copy
                    target.mux(packet)
