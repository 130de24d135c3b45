"""What a video file is: size, packets counted one by one, frame rate, pixel format, and the CRF in its bitstream."""

import contextlib
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

# Containers that hold a video themselves. Playlists and concat scripts are text files that name other files.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,h264,hevc"
MAX_PICTURE_PX = 8192 * 8192
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


class ProbeError(Exception):
    """The file cannot be used as a video; `reason` is a short stable word, the message one line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    """Facts of one video stream.

    Attributes:
        width, height: picture size in pixels as shown, that is after the container's rotation tag.
        frames: packets of the video stream that carry a picture, counted by reading every packet.
        frames_header: frame count the container claims; 0 when it claims none.
        fps: average frame rate.
        codec, pix_fmt: ffmpeg's names, such as `h264` and `yuv444p`.
        rate_control: x264's `rc=` word from the bitstream (`crf`, `cqp`, ...), or None when there is no x264 header.
        encoder: x264's name, build and options from the bitstream, or None.
        crf: x264's CRF from the bitstream; 0.0 for lossless (`cqp` with qp 0); None when unknown.
        rotation_deg: display rotation of the container (0, 90, 180, 270), counter-clockwise.
        bytes: size of the file.
    """

    width: int
    height: int
    frames: int
    frames_header: int
    fps: Fraction
    codec: str
    pix_fmt: str
    rate_control: str | None
    crf: float | None
    rotation_deg: int
    bytes: int
    encoder: str | None = None


# x264 writes its options as text into a user-data SEI message of the first access unit.
_X264_SEI = re.compile(rb"x264 - core [ -~]*?options: ([ -~]+)")


def x264_options(first_packet: bytes) -> dict[str, str]:
    """The x264 options (`rc`, `crf`, `qp`, ...) found in the first packet of an H.264 stream; empty without them."""
    match = _X264_SEI.search(first_packet)
    if not match:
        return {}
    pairs = (item.split("=", 1) for item in match.group(1).decode("ascii").split(" ") if "=" in item)
    return dict(pairs)


def probe(path: str | Path) -> VideoInfo:
    """Read every packet of the first video stream and report what the file really holds; decodes one frame only.

    Raises:
        ProbeError: with reason `missing_file`, `empty_file`, `unreadable` (not a video, or no index),
            `no_video_stream`, `no_frames`, `too_large`, or `truncated` (fewer frames than the container promises).
    """
    import av

    path = Path(path)
    container, size = _open(path)
    with container:
        if not container.streams.video:
            raise ProbeError("no_video_stream", f"{path}: holds no video stream")
        stream = container.streams.video[0]
        try:
            frames, first, rotation = _count_packets(path, container)
        except (av.error.FFmpegError, OSError) as error:
            raise ProbeError("unreadable", f"{path}: reading its packets failed ({_words(error)})") from error
        context = stream.codec_context
        header = int(stream.frames or 0)
        if frames == 0:
            raise ProbeError("no_frames", f"{path}: the video stream holds no frames")
        if header > frames and header > _frames_without_edit_list(path):
            raise ProbeError(
                "truncated",
                f"{path}: holds {frames} of the {header} frames its header promises; fetch it again",
            )
        if context is None or not context.width or not context.height:
            raise ProbeError("unreadable", f"{path}: the stream's picture size is unknown")
        if context.width * context.height > MAX_PICTURE_PX:
            size_text = f"{context.width}x{context.height}"
            raise ProbeError("too_large", f"{path}: picture is {size_text}, more than {MAX_PICTURE_PX} pixels")
        header_text = _X264_SEI.search(first) if context.name == "h264" else None
        options = x264_options(first) if header_text else {}
        sideways = rotation in (90, 270)
        return VideoInfo(
            width=context.height if sideways else context.width,
            height=context.width if sideways else context.height,
            frames=frames,
            frames_header=header,
            fps=Fraction(stream.average_rate or stream.guessed_rate or 25),
            codec=context.name,
            pix_fmt=context.pix_fmt or "unknown",
            rate_control=options.get("rc"),
            crf=_crf(options),
            rotation_deg=rotation,
            bytes=size,
            encoder=header_text.group(0).decode("ascii").strip() if header_text else None,
        )


def read_crf(path: str | Path) -> float | None:
    """x264's CRF as the file itself tells it, without reading further than its first packet.

    0.0 for lossless; None for a file without an x264 header (another codec or encoder, or a header cut out).

    Raises:
        ProbeError: `missing_file`, `empty_file`, `unreadable`, `no_video_stream` or `no_frames`.
    """
    import av

    path = Path(path)
    container, _ = _open(path)
    with container:
        if not container.streams.video:
            raise ProbeError("no_video_stream", f"{path}: holds no video stream")
        stream = container.streams.video[0]
        try:
            # Of a trimmed file the first packet is not shown, but it is the one with the header.
            first = next((packet for packet in container.demux(stream) if packet.size), None)
        except (av.error.FFmpegError, OSError) as error:
            raise ProbeError("unreadable", f"{path}: reading its packets failed ({_words(error)})") from error
        if first is None:
            raise ProbeError("no_frames", f"{path}: the video stream holds no frames")
        codec = stream.codec_context.name if stream.codec_context else ""
        return _crf(x264_options(bytes(first))) if codec == "h264" else None


def _open(path: Path):  # noqa: ANN202  (av's types need av imported)
    """(opened container, size of the file in bytes); `ProbeError` when there is none."""
    import av

    try:
        size = path.stat().st_size
    except OSError as error:
        raise ProbeError("missing_file", f"{path}: {error.strerror or error}") from error
    if size == 0:
        raise ProbeError("empty_file", f"{path}: the file has 0 bytes; fetch it again")
    try:
        container = av.open(str(path), metadata_errors="replace", options=dict(_OPTIONS))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ProbeError("unreadable", f"{path}: not a readable video ({_words(error)}); fetch it again") from error
    return container, size


def _count_packets(path: Path, container) -> tuple[int, bytes, int]:  # noqa: ANN001  (av's types need av imported)
    import av

    from qadprep.video.packets import TableReading, remember

    frames, first, rotation = 0, b"", None
    reading = TableReading(container)
    for packet in container.demux(reading.stream):
        if not reading.add(packet):
            continue
        if frames == 0:
            first = bytes(packet)
        frames += 1
        if rotation is None:
            # The display matrix is only to be seen on a decoded frame.
            try:
                for frame in packet.decode():
                    rotation = int(frame.rotation) % 360
                    break
            except av.error.FFmpegError:
                rotation = 0  # the decoding pass reports the damage, with its place
    remember(path, reading.table())
    if rotation is None and frames:
        # So few packets that the decoder still holds their pictures back.
        with contextlib.suppress(av.error.FFmpegError):
            rotation = next((int(frame.rotation) % 360 for frame in reading.stream.codec_context.decode(None)), 0)
    return frames, first, rotation or 0


def _frames_without_edit_list(path: Path) -> int:
    """Packets in the file when the edit list of a trimmed mp4 is not obeyed: those the container counts."""
    import av

    with av.open(str(path), metadata_errors="replace", options=_OPTIONS | {"ignore_editlist": "1"}) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def _crf(options: dict[str, str]) -> float | None:
    try:
        if options.get("rc") == "crf":
            return float(options["crf"])
        if options.get("rc") == "cqp" and int(options["qp"]) == 0:
            return 0.0
    except (KeyError, ValueError):
        return None
    return None


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split(":")[0].strip() or type(error).__name__
