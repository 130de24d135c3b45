"""Lossless coding of crops, and how far a quality is from the best one."""

import math

import numpy as np

# Level 1 to 3 is the useful range: higher levels save 6 % for 3 to 10 times the encoding time.
PNG_LEVEL = 3


def encode_png(image_rgb: np.ndarray) -> bytes:
    """A uint8 (h, w, 3) RGB picture as a PNG file."""
    import cv2

    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3:
        raise ValueError(f"a crop must be uint8 (h, w, 3) RGB, got {image_rgb.dtype} {image_rgb.shape}")
    # Each row as its difference to the row above: a little larger than with libpng's choice of a filter for each row,
    # and undone faster by every decoder (scripts/measure_crop_bytes.py).
    done, data = cv2.imencode(
        ".png",
        cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP],
    )
    if not done:
        raise ValueError(f"PNG encoding failed for a picture of shape {image_rgb.shape}")
    return data.tobytes()


def psnr_db(best: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape; infinite when they are equal."""
    mse = float(np.mean((best.astype(np.float32) - other.astype(np.float32)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255.0**2 / mse)
