import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.catalog.pictures import TarListing, is_pictures, list_tar, split_path
from qadprep.video.decode import Decoded, FrameReader
from qadprep.video.encode import write_raw
from qadprep.video.pictures import PictureReader, PictureSequence
from qadprep.video.probe import ProbeError, probe

FOLDER = "12/real/345"


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (height, width, 3), RGB: a smooth picture that tells its number."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 3 + number) % 256, (y * 4) % 256, np.full_like(x, (number * 7) % 256)], -1).astype(np.uint8)


def png(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".png", rgb[..., ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb)[1].tobytes()


def write_tar(path: Path, members: dict[str, bytes], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def numbered(count: int, folder: str = FOLDER) -> dict[str, bytes]:
    return {f"./{folder}/{3 * i}.png": png(picture(3 * i)) for i in range(count)}


def read(sequence: PictureSequence, indices: list[int], **options: object) -> tuple[dict, PictureReader]:
    with PictureReader(sequence, indices, **options) as reader:
        return {decoded.index: decoded.rgb for decoded in reader}, reader


def reason_of(root: Path, path: str) -> str:
    with pytest.raises(ProbeError) as caught:
        PictureSequence.open(root, path)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_paths_of_pictures() -> None:
    assert is_pictures("real_train/1.tar.gz::1/real/3") and is_pictures("a/b/") and not is_pictures("a/b.mp4")
    assert split_path("real_train/1.tar.gz::1/real/3") == ("real_train/1.tar.gz", "1/real/3")
    assert split_path("odd::name.tar::x/") == ("odd::name.tar", "x")
    assert split_path("1.tar::") == ("1.tar", "")
    assert split_path("a/b/") == ("a/b", None)


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path, kind: str) -> None:
    # As text 10 comes before 9; positions count from 0 whatever the numbers are.
    members = {f"{FOLDER}/{number}.png": png(picture(number)) for number in (10, 9, 101, 40)}
    if kind == "tar":
        write_tar(tmp_path / "real_train" / "12.tar.gz", members)
        path = f"real_train/12.tar.gz::{FOLDER}"
    else:
        for name, data in members.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        path = f"{FOLDER}/"
    sequence = PictureSequence.open(tmp_path, path)
    assert sequence.numbers == [9, 10, 40, 101] and sequence.skipped == [] and sequence.error is None
    info = sequence.info
    assert (info.frames, info.width, info.height, info.codec, info.pix_fmt, info.fps, info.crf) == (
        4, 64, 48, "png", "rgb24", 25, None,
    )  # fmt: skip
    assert info.bytes == sum(map(len, members.values()))
    frames, reader = read(sequence, [0, 2, 3])
    assert list(frames) == [0, 2, 3] and reader.missing == [] and reader.error is None and reader.thumbnails == {}
    for position, number in ((0, 9), (2, 40), (3, 101)):
        np.testing.assert_array_equal(frames[position], picture(number))


def test_what_is_no_frame_is_skipped_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "seq"
    folder.mkdir()
    for name in ("1.png", "01.png", "cover.png", "2.JPG", "1.5.png", "12345678901.png"):
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix.lower(), picture(1)[..., ::-1])[1].tobytes())
    (folder / "notes.txt").write_text("text")
    (folder / "._2.png").write_bytes(b"hidden")
    (folder / "9.png").symlink_to(folder / "nowhere.png")
    (folder / "deeper").mkdir()
    os.mkfifo(folder / "8.png")
    sequence = PictureSequence.open(tmp_path, "seq/")
    assert sequence.numbers == [1, 2]
    assert dict(sequence.skipped) == {
        "1.png": "frame 1 is already there as 01.png",
        "1.5.png": "its name is no frame number",
        "12345678901.png": "its name is no frame number",
        "8.png": "not a regular file",
        "9.png": "a link to nothing",
        "cover.png": "its name is no frame number",
        "notes.txt": "not a picture (png, jpg)",
    }


def test_all_kinds_of_pictures_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "seq"
    folder.mkdir()
    rgb = picture(5)
    grey = rgb[..., 0]
    alpha = np.dstack([rgb[..., ::-1], np.full(grey.shape, 7, np.uint8)])
    deep = rgb[..., ::-1].astype(np.uint16) * 257
    (folder / "1.png").write_bytes(png(rgb))
    (folder / "2.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    (folder / "3.png").write_bytes(cv2.imencode(".png", alpha)[1].tobytes())
    (folder / "4.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    (folder / "5.jpg").write_bytes(jpeg)
    # An orientation tag that asks for a quarter turn: the pixels stay as they lie.
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    (folder / "6.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    frames, reader = read(PictureSequence.open(tmp_path, "seq/"), list(range(6)))
    assert reader.missing == []
    for position in (0, 2, 3):
        np.testing.assert_array_equal(frames[position], rgb)
    np.testing.assert_array_equal(frames[1], np.dstack([grey] * 3))
    assert np.abs(frames[4].astype(int) - rgb).mean() < 6
    np.testing.assert_array_equal(frames[5], frames[4])
    assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames.values())


def huge_png(width: int, height: int) -> bytes:
    """A header that promises much more than it holds."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_a_damaged_picture_loses_only_itself(tmp_path: Path) -> None:
    good = png(picture(1))
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x55
    jpeg = cv2.imencode(".jpg", picture(1)[..., ::-1])[1].tobytes()
    contents = [
        (b"", "empty file"),
        (good, None),
        (good[: len(good) // 2], "cut off"),
        (bytes(flipped), "damaged (checksum)"),
        (b"no picture at all, just text", "neither PNG nor JPEG"),
        (png(picture(1, 40, 64)), "is 64x40, the sequence 64x48"),
        (huge_png(60000, 60000), "is 60000x60000; expected 1 to 4096 pixels a side"),
        (jpeg[: len(jpeg) // 2], "cut off"),
        (jpeg[:30], "a JPEG without its size"),
        (good[:-12], "cut off"),
        (jpeg, None),
    ]
    write_tar(tmp_path / "a.tar", {f"x/{i}.png": data for i, (data, _) in enumerate(contents)})
    sequence = PictureSequence.open(tmp_path, "a.tar::x")
    assert (sequence.info.frames, sequence.info.width, sequence.info.height) == (len(contents), 64, 48)
    frames, reader = read(sequence, list(range(len(contents))), thumbs_at=range(len(contents)))
    assert sorted(frames) == sorted(reader.thumbnails) == [1, 10]
    assert reader.missing == [i for i, (_, reason) in enumerate(contents) if reason]
    assert reader.error == "0.png: empty file"
    for position, (_, reason) in enumerate(contents):
        if reason:
            frames, reader = read(sequence, [position])
            assert frames == {} and reader.missing == [position] and reader.error == f"{position}.png: {reason}"


def test_positions_beyond_the_end_and_bad_indices(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", numbered(3))
    sequence = PictureSequence.open(tmp_path, f"a.tar::{FOLDER}")
    frames, reader = read(sequence, [2, 3, 9])
    assert list(frames) == [2] and reader.missing == [3, 9]
    assert reader.error == "there is no picture 3, the sequence has 3"
    for wrong in ([], [1, 1], [2, 1], [-1, 0]):
        with pytest.raises(ValueError, match="indices"):
            PictureReader(sequence, wrong)


def test_thumbnails_agree_with_those_of_a_video(tmp_path: Path) -> None:
    frames = np.stack([picture(6 * i, 224, 224) for i in range(12)])
    write_raw(frames, tmp_path / "v.mp4", 25)
    write_tar(tmp_path / "a.tar", {f"x/{i}.png": png(frame) for i, frame in enumerate(frames)})
    sequence = PictureSequence.open(tmp_path, "a.tar::x")
    got, reader = read(sequence, [4, 6], thumbs_at=[*range(10), -1, 12])
    assert sorted(got) == [4, 6] and sorted(reader.thumbnails) == list(range(10))
    _, selected = read(sequence, [4, 6], thumbs_at=[4, 6])
    assert sorted(selected.thumbnails) == [4, 6]
    with FrameReader(tmp_path / "v.mp4", probe(tmp_path / "v.mp4"), [4], thumbs_at=range(10)) as video:
        list(video)
    for index, expected in video.thumbnails.items():
        own = reader.thumbnails[index]
        assert own.shape == (90, 160) and own.dtype == np.uint8
        assert np.abs(own.astype(int) - expected).mean() < 1.5
    np.testing.assert_array_equal(selected.thumbnails[4], Decoded(4, frames[4]).thumbnail)


def test_reading_twice_and_leaving_early(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", numbered(5))
    sequence = PictureSequence.open(tmp_path, f"a.tar::{FOLDER}")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with PictureReader(sequence, [0, 1, 2]) as reader:
        frames = iter(reader)
        assert next(frames).index == 0
        frames.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert [decoded.index for decoded in reader] == [0, 1, 2]


def test_a_tar_that_changed_meanwhile_gives_nothing_wrong(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", numbered(3))
    sequence = PictureSequence.open(tmp_path, f"a.tar::{FOLDER}")
    write_tar(file, numbered(6))
    frames, reader = read(sequence, [0, 2])
    assert frames == {} and reader.missing == [0, 2] and reader.error == "a.tar: changed since it was listed"
    assert len(PictureSequence.open(tmp_path, f"a.tar::{FOLDER}").numbers) == 6
    file.unlink()
    assert "No such file" in read(sequence, [0])[1].error


def test_sequences_that_cannot_be_opened(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x/cover.png": png(picture(1)), "y/1.png": b"text", "z/1.png": huge_png(5000, 10)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    (tmp_path / "packed.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(600))
    (tmp_path / "folder.tar").mkdir()
    assert reason_of(tmp_path, "a.tar::x") == "empty"
    assert reason_of(tmp_path, "a.tar::y") == "unreadable"
    assert reason_of(tmp_path, "a.tar::z") == "too_large"
    assert reason_of(tmp_path, "a.tar::nope") == "missing_file"
    assert reason_of(tmp_path, "nope.tar::x") == "missing_file"
    assert reason_of(tmp_path, "nope/") == "missing_file"
    assert reason_of(tmp_path, "a.tar/") == "unreadable"
    assert reason_of(tmp_path, "empty/") == "empty"
    assert reason_of(tmp_path, "text.tar::x") == "unreadable"
    assert reason_of(tmp_path, "folder.tar::x") == "unreadable"
    with pytest.raises(ProbeError, match="gzip-compressed; gunzip it first"):
        PictureSequence.open(tmp_path, "packed.tar.gz::x")
    for path in ("../a.tar::y", "/a.tar::y", f"{tmp_path}/empty/", "x/../../empty/", "/", "a.tar"):
        assert reason_of(tmp_path, path) == "unsafe"


# The headers of a tar


def test_unsafe_members_are_listed_and_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(picture(77)))
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in (
            ("s/1.png", tarfile.SYMTYPE, str(secret)),
            ("s/2.png", tarfile.LNKTYPE, "t/1.png"),
            ("s/3.png", tarfile.FIFOTYPE, ""),
            ("s/4.png", tarfile.CHRTYPE, ""),
            ("/s/5.png", tarfile.REGTYPE, ""),
            ("s/../../6.png", tarfile.REGTYPE, ""),
            ("s/7\n.png", tarfile.REGTYPE, ""),
            ("s/8\x1b[2J.png", tarfile.REGTYPE, ""),
            ("s/readme.txt", tarfile.REGTYPE, ""),
            ("s/a::b/9.png", tarfile.REGTYPE, ""),
            ("s/10.png", b"Z", ""),
            ("s/../deep", tarfile.DIRTYPE, ""),
            ("t", tarfile.DIRTYPE, ""),
            ("t/._1.png", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info, io.BytesIO())
        info = tarfile.TarInfo("t/1.png")
        info.size = len(secret.read_bytes())
        tar.addfile(info, io.BytesIO(secret.read_bytes()))
    listing = list_tar(tmp_path / "a.tar")
    assert listing.error is None
    assert {folder: [item.name for item in items] for folder, items in listing.folders.items()} == {"t": ["1.png"]}
    assert dict(listing.refused) == {
        "s/1.png": "a link",
        "s/2.png": "a link",
        "s/3.png": "a device or pipe",
        "s/4.png": "a device or pipe",
        "/s/5.png": "an absolute name",
        "s/../../6.png": "a name with ..",
        "s/7\\n.png": "a name with control characters",
        "s/8\\x1b[2J.png": "a name with control characters",
        "s/readme.txt": "not a picture (png, jpg)",
        "s/a::b/9.png": "a name with ::",
        "s/10.png": "a member of unknown kind b'Z'",
        "s/../deep": "a name with ..",
    }
    assert len(listing.refused) == 12
    assert reason_of(tmp_path, "a.tar::s") == "unsafe"


def test_names_hidden_in_extended_headers_are_judged_too(tmp_path: Path) -> None:
    name = "a/" * 60 + "../1.png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        listing = list_tar(write_tar(tmp_path / f"{form}.tar", {name: b"x", "b/1.png": b"y"}, format=form))
        assert listing.refused == [(name, "a name with ..")] and list(listing.folders) == ["b"]
    # A NUL cuts a name short for C programs; here it is refused.
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 12
    data = header.tobuf(tarfile.GNU_FORMAT) + b"b/1.png\0.txt".ljust(512, b"\0")
    data += tarfile.TarInfo("b/2.png").tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "nul.tar").write_bytes(data)
    assert list_tar(tmp_path / "nul.tar").refused == [("b/1.png\\x00.txt", "a name with control characters")]


def test_a_member_of_bad_size_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "big.tar").open("wb") as file:
        info = tarfile.TarInfo("a/1.png")
        info.size = 64 * 2**20 + 1
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.seek(-(-info.size // 512) * 512 + 512)
        file.write(tarfile.TarInfo("a/2.png").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    listing = list_tar(tmp_path / "big.tar")
    assert listing.refused == [("a/1.png", "67108865 bytes, more than 67108864 for one picture")]
    assert [item.name for item in listing.folders["a"]] == ["2.png"] and listing.error is None
    negative = bytearray(tarfile.TarInfo("a/1.png").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 11 + b"\x00"
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    (tmp_path / "negative.tar").write_bytes(bytes(negative) + bytes(1024))
    assert list_tar(tmp_path / "negative.tar").error == "damaged header at byte 0"


def test_a_damaged_tar_gives_what_lies_before(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", numbered(6)).read_bytes()
    offsets = [item.offset for item in list_tar(tmp_path / "a.tar").folders[FOLDER]]
    cut = tmp_path / "cut.tar"

    def listed(data: bytes) -> tuple[int, str | None]:
        cut.write_bytes(data)
        listing = list_tar(cut)
        return len(listing.folders.get(FOLDER, [])), listing.error

    assert listed(whole) == (6, None)
    assert listed(whole[: offsets[3] + 100]) == (3, f"cut off inside ./{FOLDER}/9.png")
    assert listed(whole[: offsets[3] - 512]) == (3, f"cut off at byte {offsets[3] - 512}, before its end mark")
    assert listed(whole[: offsets[3] - 100]) == (3, f"cut off at byte {offsets[3] - 512}, before its end mark")
    broken = bytearray(whole)
    broken[offsets[2] - 300] ^= 1
    assert listed(bytes(broken)) == (2, f"damaged header at byte {offsets[2] - 512}")
    broken[offsets[2] - 512 : offsets[2]] = bytes(512)
    assert listed(bytes(broken)) == (2, f"data behind the end mark at byte {offsets[2]}: a header is overwritten")
    end = offsets[5] + len(png(picture(15)))
    end += -end % 512
    assert listed(whole[: end + 512]) == (6, None)
    assert listed(whole[:end]) == (6, f"cut off at byte {end}, before its end mark")
    assert listed(b"") == (0, "the file has 0 bytes; fetch it again")
    assert listed(b"abc") == (0, "not a tar")
    assert listed(b"\x1f\x8b\x08" + whole) == (
        0,
        "gzip-compressed; gunzip it first (the release's files are plain tars)",
    )
    cut.write_bytes(whole[: offsets[3] + 100])
    sequence = PictureSequence.open(tmp_path, f"cut.tar::{FOLDER}")
    assert sequence.numbers == [0, 3, 6] and sequence.error == f"cut off inside ./{FOLDER}/9.png"
    assert list(read(sequence, [0, 1, 2])[0]) == [0, 1, 2]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    assert list_tar(tmp_path / "pipe.tar").error == "not a regular file"
    assert "No such file" in list_tar(tmp_path / "nope.tar").error


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=30), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=6),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    dot=st.booleans(),
)
def test_the_offsets_are_those_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory, members: list, form: int, dot: bool
) -> None:
    file = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(file, "w", format=form) as tar:
        for parts, data in members:
            info = tarfile.TarInfo("./" * dot + "/".join(parts) + ".png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    listing = list_tar(file)
    raw = file.read_bytes()
    expected, refused = [], 0
    for parts, data in members:
        parts = [*parts[:-1], parts[-1] + ".png"]
        if ".." in parts or "::" in "/".join(parts) or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in "".join(parts)):
            refused += 1
        elif not any(part.startswith(".") and part != "." for part in parts):
            parts = [part for part in parts if part != "."]
            expected.append(("/".join(parts[:-1]), parts[-1], data))
    found = [
        (folder, item.name, raw[item.offset : item.offset + item.bytes])
        for folder, items in listing.folders.items()
        for item in items
    ]
    assert sorted(found) == sorted(expected) and len(listing.refused) == refused and listing.error is None


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=3000), place=st.integers(0, 4000), base=st.booleans())
def test_any_bytes_are_listed_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: int, base: bool
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "a.tar"
    if base:
        write_tar(file, {"a/" * 80 + f"{i}.png": b"x" * 600 for i in range(3)}, format=tarfile.PAX_FORMAT)
        whole = bytearray(file.read_bytes())
        whole[place : place + len(data)] = data
        data = bytes(whole)
    file.write_bytes(data)
    listing = list_tar(file)
    assert isinstance(listing, TarListing) and isinstance(listing.error, str | None)
    for items in listing.folders.values():
        assert all(item.offset >= 512 and item.offset + item.bytes <= len(data) for item in items)
