"""Videos whose frames carry their number as a machine-readable pattern that survives strong compression."""

from pathlib import Path

import numpy as np

BITS, CELL = 10, 16
WIDTH, HEIGHT = BITS * CELL, 96


def numbered_frames(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 96, 160, 3) RGB: the number as black and white cells on top, moving noise-like texture below."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(40, 216, (HEIGHT // 8, 4 * WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for number in range(count):
        frames[number] = np.roll(texture, 3 * number, axis=1)[:, :WIDTH]
        for bit in range(BITS):
            frames[number, : 2 * CELL, bit * CELL : (bit + 1) * CELL] = 255 if number >> bit & 1 else 0
    return frames


def number_of(frame: np.ndarray) -> int:
    """Read the number back."""
    cells = frame[4 : 2 * CELL - 4, :, 1].reshape(-1, BITS, CELL)[:, :, 4:-4].mean(axis=(0, 2))
    return sum(1 << bit for bit in range(BITS) if cells[bit] > 127)


def encode_with(path: Path, frames: np.ndarray, **options: str) -> None:
    """Encode with PyAV and any libx264 options: B-frames, keyframe intervals and so on."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, options.pop("pix_fmt", "yuv420p")
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
