"""Files that are not what their name promises: 200 ways to spoil a video, the same ones every time."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

Spoil = Callable[[bytes, random.Random, Path], bytes]
"""(a good mp4, random numbers, a folder for scratch files) -> the spoilt file."""


@dataclass(frozen=True)
class Damage:
    """One way to spoil a file.

    Attributes:
        name: for messages; count: how many files are spoilt so.
        spoil: see `Spoil`.
        status: what must become of each such file; None where chance decides.
        suffix: of the file's name.
    """

    name: str
    count: int
    spoil: Spoil
    status: str | None = None
    suffix: str = ".mp4"


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin, end) of the boxes of an mp4 between two places; those inside others are found by a search."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size = struct.unpack(">I", data[start : start + 4])[0]
        if size < 8:
            return
        yield data[start + 4 : start + 8], start, min(start + size, end)
        start += size


def box(data: bytes, kind: bytes) -> tuple[int, int]:
    """(begin, end) of a box on the top level."""
    return next((begin, end) for name, begin, end in boxes(data) if name == kind)


def truncated(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """The index lies behind the pictures or before them; behind, every cut loses it."""
    if rng.random() < 0.7:
        data = _index_first(data, folder)
    return data[: rng.randrange(1, len(data))]


def _index_first(data: bytes, folder: Path) -> bytes:
    return _remuxed(data, folder, lambda packets: packets, movflags="faststart")


def cut_in_moov(data: bytes, rng: random.Random, folder: Path) -> bytes:
    begin, end = box(data, b"moov")
    return data[: rng.randrange(begin + 1, end)]


def flipped(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return _flip(data, rng, 8, len(data))


def flipped_in_mdat(data: bytes, rng: random.Random, folder: Path) -> bytes:
    begin, end = box(data, b"mdat")
    return _flip(data, rng, begin + 8, end)


def flipped_in_moov(data: bytes, rng: random.Random, folder: Path) -> bytes:
    begin, end = box(data, b"moov")
    return _flip(data, rng, begin + 8, end)


def _flip(data: bytes, rng: random.Random, begin: int, end: int) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 3, 20, 200))):
        spoilt[rng.randrange(begin, end)] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def zeros_inside(data: bytes, rng: random.Random, folder: Path) -> bytes:
    begin, end = box(data, b"mdat")
    first = rng.randrange(begin + 8, end)
    last = min(end, first + rng.randrange(64, 4096))
    return data[:first] + bytes(last - first) + data[last:]


def mdat_zeroed(data: bytes, rng: random.Random, folder: Path) -> bytes:
    begin, end = box(data, b"mdat")
    return data[: begin + 8] + bytes(end - begin - 8) + data[end:]


def decoder_settings_zeroed(data: bytes, rng: random.Random, folder: Path) -> bytes:
    at = data.index(b"avcC")
    size = struct.unpack(">I", data[at - 4 : at])[0]
    return data[: at + 4] + bytes(size - 8) + data[at + size - 4 :]


def wrong_count(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """Another number of frames in the table of sizes, or in the table of times."""
    number = rng.choice((0, 1, 7, 25, 1000, 2**31 - 1, 2**32 - 1))
    table, offset = rng.choice(((b"stsz", 12), (b"stts", 12), (b"stsc", 16), (b"stts", 8)))
    return _patched(data, table, offset, struct.pack(">I", number))


def wrong_duration(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return _patched(data, rng.choice((b"mvhd", b"mdhd")), 20, struct.pack(">I", rng.choice((0, 1, 2**32 - 1))))


def wide_header(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """The container says 16384 x 16384; the stream itself does not."""
    side = 16384
    data = _patched(data, b"tkhd", 80, struct.pack(">II", side << 16, side << 16))
    return _patched(data, b"avc1", 28, struct.pack(">HH", side, side))


def wide_stream(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """The stream is 16384 x 16; the container does not say so."""
    made = encoded(folder, np.zeros((20, 16, 16384, 3), np.uint8), "libx264rgb", "bgr24")
    made = _patched(made, b"tkhd", 80, struct.pack(">II", 160 << 16, 120 << 16))
    return _patched(made, b"avc1", 28, struct.pack(">HH", 160, 120))


def wide_pictures(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """Each of its JPEGs says that it is 16384 x 16384, and is a few hundred bytes."""
    made = encoded(folder, pictures_of(data, folder), "mjpeg", "yuvj420p")
    begin = b"\xff\xc0\x00\x11\x08"
    parts = made.split(begin)
    return begin.join([parts[0], *(struct.pack(">HH", 16384, 16384) + part[4:] for part in parts[1:])])


def really_wide(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """16384 x 2 lossless, really so."""
    return encoded(folder, np.zeros((3, 2, 16384, 3), np.uint8), "ffv1", "bgr0", "matroska")


def _patched(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """Bytes replaced at an offset from the first letter of a box's type."""
    at = data.index(kind) + offset
    return data[:at] + value + data[at + len(value) :]


def empty(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return b""


def random_bytes(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return rng.randbytes(rng.choice((1, 16, 1000, 50_000)))


def random_behind_head(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return data[:32] + rng.randbytes(len(data) - 32)


def glued(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return data + data[: rng.randrange(len(data))]


def other_kind(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """A file that holds no video at all."""
    rows = np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("inside.mp4", data)
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("inside.mp4"))
    return rng.choice(
        (
            b"plain words\n" * 50,
            b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
            json.dumps({"error": "quota exceeded"}).encode(),
            archive.getvalue(),
            tarred.getvalue(),
            gzip.compress(data, mtime=0),
            b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234\n",
            cv2.imencode(".jpg", rows)[1].tobytes(),
            cv2.imencode(".png", rows)[1].tobytes(),
        )
    )


def names_others(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """A playlist: what it names must not be read."""
    (folder / "other.mp4").write_bytes(data)
    other = (folder / "other.mp4").as_posix()
    return rng.choice(
        (
            f"ffconcat version 1.0\nfile '{other}'\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
            f"<?xml version='1.0'?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>",
        )
    ).encode()


def as_it_is(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return data


def audio_only(data: bytes, rng: random.Random, folder: Path) -> bytes:
    import av

    file = folder / "audio.mp4"
    with av.open(str(file), "w") as target:
        _add_sound(target, rng.randrange(1, 20))
    return file.read_bytes()


def _add_sound(target: object, frames: int) -> None:
    import av

    stream = target.add_stream("aac", rate=44100, layout="mono")
    for number in range(frames):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 44100, 1024 * number
        target.mux(stream.encode(sound))
    target.mux(stream.encode())


def several_streams(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """Two or three video streams and one of sound; the first one is the good video or black."""
    import av

    (folder / "good.mp4").write_bytes(data)
    file, first = folder / "several.mp4", rng.random() < 0.5
    with av.open(str(folder / "good.mp4")) as source, av.open(str(file), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0]) if first else None
        black = target.add_stream("mpeg4", rate=25)
        black.width, black.height, black.pix_fmt = 64, 48, "yuv420p"
        copy = copy or target.add_stream_from_template(source.streams.video[0])
        again = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0)):
            for stream in (copy, again):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
                    packet.stream = source.streams.video[0]
        for _ in range(5):
            target.mux(black.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        target.mux(black.encode())
    return file.read_bytes()


def encoded(folder: Path, frames: np.ndarray, codec: str, pix_fmt: str, container: str = "mp4") -> bytes:
    """uint8 (n, height, width, 3) RGB as a video file."""
    import av

    file = folder / "encoded"
    with av.open(str(file), "w", format=container) as target:
        stream = target.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        if codec.startswith("libx264"):
            stream.options = {"crf": "0", "threads": "1"}
        for frame in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pix_fmt)))
        target.mux(stream.encode())
    return file.read_bytes()


def one_frame(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return encoded(folder, pictures_of(data, folder)[:1], "libx264rgb", "bgr24")


def one_pixel(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return encoded(folder, np.full((20, 1, 1, 3), 128, np.uint8), "libx264rgb", "bgr24")


def thin(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """As high as before and two columns wide."""
    return encoded(folder, pictures_of(data, folder)[:, :, :2], "libx264rgb", "bgr24")


def noise(data: bytes, rng: random.Random, folder: Path) -> bytes:
    pictures = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (20, 96, 128, 3), np.uint8)
    return encoded(folder, pictures, "libx264rgb", "bgr24")


def pictures_of(data: bytes, folder: Path) -> np.ndarray:
    import av

    (folder / "good.mp4").write_bytes(data)
    with av.open(str(folder / "good.mp4")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def size_changes(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """A stream whose second half has smaller pictures."""
    pictures = pictures_of(data, folder)
    half = len(pictures) // 2
    first = encoded(folder, pictures[:half], "mpeg2video", "yuv420p", "mpegts")
    return first + encoded(folder, pictures[half:, :64, :96], "mpeg2video", "yuv420p", "mpegts")


def without_beginning(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """The first key frame is gone."""
    return _remuxed(data, folder, lambda packets: packets[1:])


def packets_lost(data: bytes, rng: random.Random, folder: Path) -> bytes:
    return _remuxed(data, folder, lambda packets: [p for p in packets if rng.random() > 0.3])


def packets_spoilt(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """Some packets hold nothing but noise, their lengths and times are right."""
    import av

    def spoil(packets: list) -> list:
        result = []
        for packet in packets:
            if rng.random() < 0.2:
                other = av.Packet(rng.randbytes(packet.size))
                other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
                packet = other
            result.append(packet)
        return result

    return _remuxed(data, folder, spoil)


def times_equal(data: bytes, rng: random.Random, folder: Path) -> bytes:
    """Raw times: the table of times says that every frame lasts 0."""
    return _patched(data, b"stts", 16, struct.pack(">I", 0))


def _remuxed(data: bytes, folder: Path, change: Callable[[list], list], **options: str) -> bytes:
    import av

    (folder / "good.mp4").write_bytes(data)
    file = folder / "remuxed.mp4"
    with av.open(str(folder / "good.mp4")) as source, av.open(str(file), "w", options=options) as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in change(packets):
            packet.stream = copy
            target.mux(packet)
    return file.read_bytes()


DAMAGES = (
    Damage("truncated", 25, truncated),
    Damage("cut in moov", 8, cut_in_moov),
    Damage("bits flipped", 28, flipped),
    Damage("bits flipped in mdat", 20, flipped_in_mdat),
    Damage("bits flipped in moov", 16, flipped_in_moov),
    Damage("zeros inside", 10, zeros_inside),
    Damage("mdat zeroed", 3, mdat_zeroed),
    Damage("decoder settings zeroed", 3, decoder_settings_zeroed),
    Damage("wrong count", 12, wrong_count),
    Damage("wrong duration", 4, wrong_duration),
    Damage("times equal", 2, times_equal),
    Damage("wide header", 4, wide_header),
    Damage("wide stream", 3, wide_stream),
    Damage("wide pictures", 1, wide_pictures),
    Damage("really wide", 2, really_wide),
    Damage("empty", 3, empty, "empty_file"),
    Damage("random bytes", 5, random_bytes, "unreadable"),
    Damage("random behind head", 4, random_behind_head, "unreadable"),
    Damage("glued", 2, glued),
    Damage("other kind", 10, other_kind, "unreadable"),
    Damage("names others", 3, names_others, "unreadable"),
    Damage("mp4 named avi", 2, as_it_is, "ok", ".avi"),
    Damage("mp4 named webm", 1, as_it_is, "ok", ".webm"),
    Damage("audio only", 3, audio_only, "no_video_stream"),
    Damage("several streams", 4, several_streams),
    Damage("one frame", 3, one_frame),
    Damage("one pixel", 3, one_pixel),
    Damage("thin", 1, thin),
    Damage("noise", 2, noise),
    Damage("size changes", 2, size_changes),
    Damage("without beginning", 3, without_beginning),
    Damage("packets lost", 4, packets_lost),
    Damage("packets spoilt", 4, packets_spoilt),
)
