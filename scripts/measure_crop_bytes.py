"""Measure how many bytes a pixel of a stored crop takes at each quality: what `qadprep plan` forecasts with.

    uv run python scripts/measure_crop_bytes.py FOLDER_WITH_VIDEOS

Of each video the first frames count as raw; c23 and c40 are made from them the FaceForensics++ way. The largest face
(MTCNN) is cut upright, margin 1.3, and stored as `extract` stores it. Prints one line a video and quality, then the
mean and the spread over the videos; every video counts the same. At last the same crops with libpng's own choice of
a filter for each row instead of ours: their size, and the time that OpenCV, Pillow and `ShardSet` take to decode them.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from qadprep.codecs import decode_image
from qadprep.crops import PNG_LEVEL, encode_png
from qadprep.faces import make_detector
from qadprep.faces.alignment import affine_from_face, warp_face
from qadprep.video.decode import decode_at
from qadprep.video.encode import write_compressed
from qadprep.video.probe import probe

QUALITIES = {"raw": None, "c23": 23, "c40": 40}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--margin", type=float, default=1.3)
    parser.add_argument("--frames", type=int, default=72, help="first frames of each video that are encoded")
    parser.add_argument("--crops", type=int, default=6, help="crops of each video and quality")
    arguments = parser.parse_args()
    detector = make_detector("mtcnn")
    means: dict[str, list[float]] = {quality: [] for quality in QUALITIES}
    sides, kept = [], []
    for video in sorted(arguments.folder.glob("*.mp4")):
        info = probe(video)
        frames = decode_at(video, info, range(min(arguments.frames, info.frames)))
        picked = [len(frames) * (2 * i + 1) // (2 * arguments.crops) for i in range(arguments.crops)]
        faces = {
            i: max(found, key=lambda face: face.side_px)
            for i, found in zip(picked, detector.detect([frames[i] for i in picked]), strict=True)
            if found
        }
        if not faces:
            print(f"{video.name}: no face in the frames looked at")
            continue
        sides.append(statistics.mean(face.side_px for face in faces.values()))
        line = []
        for quality, crf in QUALITIES.items():
            shown = frames if crf is None else encoded(frames, info.fps, crf)
            crops = [
                warp_face(
                    shown[i],
                    affine_from_face(face, align="box", margin=arguments.margin, size_px=arguments.size),
                    arguments.size,
                )
                for i, face in faces.items()
            ]
            kept += crops
            means[quality].append(statistics.mean(len(encode_png(crop)) for crop in crops) / arguments.size**2)
            line.append(f"{quality} {means[quality][-1]:.3f}")
        print(f"{video.name}: {info.width}x{info.height}, face {sides[-1]:.0f} px, bytes a pixel: {', '.join(line)}")
    print(f"\n{len(sides)} videos, crops of {arguments.size} px, faces of {min(sides):.0f} to {max(sides):.0f} px")
    for quality, values in means.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{quality}: mean {statistics.mean(values):.2f} bytes a pixel ({spread})")

    compare_filters(kept, arguments.size)


def compare_filters(crops: Sequence[np.ndarray], size_px: int) -> None:
    """Size and decoding time of the crops with our filter and with libpng's choice; both sides take turns."""
    chosen = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    sides = {
        "rows as differences to the row above": [encode_png(crop) for crop in crops],
        "libpng's choice for each row": [cv2.imencode(".png", crop[:, :, ::-1], chosen)[1].tobytes() for crop in crops],
    }
    decoders: dict[str, Callable[[bytes], Any]] = {
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "ShardSet": lambda data: decode_image(data, size_px),
    }
    best: dict[tuple[str, str], float] = {}
    for _ in range(5):
        for side, files in sides.items():
            for name, decode in decoders.items():
                start = time.perf_counter()
                for data in files:
                    decode(data)
                seconds = time.perf_counter() - start
                best[side, name] = min(seconds, best.get((side, name), seconds))
    print(f"\n{len(crops)} crops, microseconds to decode one, best of 5 rounds")
    for side, files in sides.items():
        times = ", ".join(f"{name} {1e6 * best[side, name] / len(files):.0f}" for name in decoders)
        print(f"{side}: {statistics.mean(map(len, files)):.0f} bytes; {times}")


def encoded(frames, fps, crf):
    """The frames after encoding at a CRF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        write_compressed(frames, path, fps, crf)
        return decode_at(path, probe(path), range(len(frames)))


if __name__ == "__main__":
    main()
