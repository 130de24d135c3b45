"""Frames for the dataset trees that tests build: made on the spot, or read from real clips."""

import os
from pathlib import Path

import cv2
import numpy as np

from helpers.clips import moving_face
from qadprep.video.decode import decode_at
from qadprep.video.encode import write_compressed
from qadprep.video.probe import probe

FRAMES = 24
# `real` joins in where the variable names a folder of clips; nothing is skipped where it does not.
KINDS = ("made", "real") if os.environ.get("QAD_REAL_CLIPS") else ("made",)
TALKING_HEADS = ("retalking_5", "styleheat_video", "liveportrait_d9", "dpe_s", "liveportrait_s13", "latentsync_demo2")
SEVERAL_PEOPLE = ("ghost_2person", "facenet_video")


def one_face(kind: str, portrait: np.ndarray, number: int) -> np.ndarray:
    """uint8 (24, height, width, 3) RGB of one person, another for every number below 6; sides even, at most 320."""
    if kind == "real":
        return real_frames(TALKING_HEADS[number], 320)
    return moving_face(portrait, FRAMES, number)


def two_faces(kind: str, portrait: np.ndarray, number: int) -> np.ndarray:
    """uint8 (24, height, width, 3) RGB with at least two people, left and right of the middle; number 0 or 1."""
    if kind == "real":
        return real_frames(SEVERAL_PEOPLE[number], 960)
    left, right = (moving_face(portrait, FRAMES, 2 * number + side) for side in (0, 1))
    return np.concatenate([left, right[:, :, ::-1]], axis=2)


def real_frames(name: str, longest: int) -> np.ndarray:
    path = Path(os.environ["QAD_REAL_CLIPS"], f"{name}.mp4")
    frames = decode_at(path, probe(path), range(FRAMES))
    scale = min(1.0, longest / max(frames.shape[1:3]))
    height, width = (round(side * scale / 2) * 2 for side in frames.shape[1:3])
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def swapped(clip: np.ndarray, region_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """The clip with one region blurred and tinted, as a stand-in for a manipulation."""
    result = clip.copy()
    x0, y0, x1, y1 = region_xyxy
    for frame in result:
        patch = cv2.GaussianBlur(frame[y0:y1, x0:x1], (0, 0), 2)
        frame[y0:y1, x0:x1] = np.clip(patch * [1.1, 0.95, 0.9], 0, 255)
    return result


def middle(clip: np.ndarray) -> tuple[int, int, int, int]:
    height, width = clip.shape[1:3]
    return width // 4, height // 4, 3 * width // 4, 3 * height // 4


def release(clip: np.ndarray, path: Path) -> None:
    """Write a clip as single-quality datasets come: H.264, 4:2:0."""
    write_compressed(clip, path, 25, 18, "yuv420p")


def mask_video(clip: np.ndarray, region_xyxy: tuple[int, int, int, int], path: Path, frames: int = FRAMES) -> None:
    """Write a lossy mask: white in the region, black elsewhere."""
    mask = np.zeros((frames, *clip.shape[1:]), np.uint8)
    x0, y0, x1, y1 = region_xyxy
    mask[:, y0:y1, x0:x1] = 255
    write_compressed(mask, path, 25, 30, "yuv420p")
