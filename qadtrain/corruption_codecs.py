"""JPEG and video compression as corruptions: on the CPU, picture by picture or clip by clip."""

import cv2
import numpy as np

from qadprep.errors import UserError

CLIP_FRAMES = 8
CLIP_FPS = 25
ENCODER = "libx264"


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode as JPEG (libjpeg, 4:2:0) and decode again.

    Args:
        image: uint8 (H, W, 3), RGB.
        quality: 1..100.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]


def video(frames: np.ndarray, crf: int) -> np.ndarray:
    """Encode as one H.264 clip at a CRF and decode again: libx264, 4:2:0, 25 frames per second, other options default.

    A single picture is shown for 8 frames, of which the first is taken. Odd sides are extended by their last row or
    column, which is cut off again: 4:2:0 has even ones only.

    Args:
        frames: uint8 (T, H, W, 3), RGB, in order of time.
        crf: x264 constant rate factor, 0..51.

    Returns:
        uint8 (T, H, W, 3), RGB.
    """
    import av

    count, height, width = frames.shape[:3]
    shown = np.repeat(frames, CLIP_FRAMES, axis=0) if count == 1 else frames
    even = np.pad(shown, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = av.CodecContext.create(ENCODER, "w")
    encoder.width, encoder.height = even.shape[2], even.shape[1]
    encoder.pix_fmt, encoder.framerate = "yuv420p", CLIP_FPS
    encoder.thread_count = 1  # x264's output depends on their number
    encoder.options = {"crf": str(int(crf)), "preset": "medium", "x264-params": "log-level=none"}
    packets = []
    for number, pixels in enumerate(even):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    return pictures[:count, :height, :width]


def require_encoder() -> None:
    """Raise UserError where PyAV was built without libx264: said before the loader's processes start."""
    import av

    try:
        av.Codec(ENCODER, "w")
    except av.codec.codec.UnknownCodecError:
        raise UserError(
            f"--corruptions: got video, but PyAV {av.__version__} has no {ENCODER}; install its wheel (pip install av)"
        ) from None
