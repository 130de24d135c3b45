from pathlib import Path

import pytest
from helpers.by_ffmpeg import encode, run_ffmpeg
from helpers.numbered import numbered_frames
from hypothesis import example, given
from hypothesis import strategies as st

from qadprep.video.bitstream import AccessUnit, access_unit, is_hidden, is_progressive, nal_length_size

SPS, PPS, SEI = b"\x67\x64\x00\x0a", b"\x68\xee", b"\x06\x05\x01"
IDR, REFERENCE, OTHER = b"\x65\x88\x80", b"\x41\x9a\x01", b"\x01\x9e\x02"


def with_lengths(*units: bytes, size: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(size, "big") + unit for unit in units)


def with_codes(*units: bytes) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def both(*units: bytes) -> AccessUnit:
    first = access_unit(with_lengths(*units), 4)
    assert first == access_unit(memoryview(with_lengths(*units, size=2)), 2) == access_unit(with_codes(*units), None)
    return first


def test_which_pictures_others_need() -> None:
    assert both(SPS, PPS, SEI, IDR) == AccessUnit(True, True, (SPS, PPS))
    assert both(REFERENCE) == AccessUnit(True, False)
    assert both(OTHER, OTHER) == AccessUnit(False, False)
    assert both(SEI, OTHER, REFERENCE) == AccessUnit(True, False)
    assert both(IDR, REFERENCE) == AccessUnit(True, False)
    assert both(PPS, OTHER) == AccessUnit(False, False, (PPS,))
    assert both(SEI) == AccessUnit(True, False)  # no picture: never left out


@pytest.mark.parametrize(
    "packet",
    [b"", b"\0", b"\0\0\0\x09" + OTHER, with_lengths(OTHER) + b"\0\0\1", with_lengths(OTHER, b"\x81\1"), b"\xff" * 40],
)
def test_what_is_not_understood_is_never_left_out(packet: bytes) -> None:
    assert access_unit(packet, 4).is_reference and not access_unit(packet, 4).is_idr
    assert access_unit(b"\1\2\3", None).is_reference


@given(st.binary(max_size=300), st.sampled_from([None, 1, 2, 4]))
@example(b"\0\0\1", None)
def test_any_bytes_are_read_without_an_error(data: bytes, size: int | None) -> None:
    unit = access_unit(data, size)
    assert not (unit.is_idr and not unit.is_reference) or b"\x05" in data or b"\x85" in data
    assert is_progressive(data) in (None, True, False)
    assert nal_length_size(data) in (None, 1, 2, 3, 4)


def test_hidden_pictures_of_vp8() -> None:
    assert is_hidden("vp8", b"\x00\x01") and not is_hidden("vp8", b"\x10\x01")
    assert not is_hidden("h264", b"\x00\x01") and not is_hidden("vp8", b"")


def _packets(path: Path) -> tuple[bytes | None, list[bytes]]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        return stream.codec_context.extradata, packets


def test_both_ways_of_parting_units_tell_the_same_of_a_real_stream(tmp_path: Path) -> None:
    frames = numbered_frames(30)
    parameters = "bframes=3:b-adapt=0:keyint=10:min-keyint=10:scenecut=0:slices=2"
    mp4 = encode(tmp_path / "a.mp4", frames, "-c:v", "libx264", "-x264-params", parameters)
    run_ffmpeg("-i", mp4, "-c", "copy", tmp_path / "a.ts")
    extradata, packets = _packets(mp4)
    assert nal_length_size(extradata) == 4
    units = [access_unit(packet, 4) for packet in packets]
    other_extradata, other_packets = _packets(tmp_path / "a.ts")
    assert nal_length_size(other_extradata) is None
    others = [access_unit(packet, None) for packet in other_packets]
    assert [(u.is_reference, u.is_idr) for u in units] == [(u.is_reference, u.is_idr) for u in others]
    assert [place for place, unit in enumerate(units) if unit.is_idr] == [0, 10, 20]
    assert 10 <= sum(not unit.is_reference for unit in units) <= 20
    # The parameter sets stand in front of every IDR picture in a transport stream.
    assert all(bool(unit.parameters) == unit.is_idr for unit in others)
    assert set(others[0].parameters) == set(others[10].parameters)


@pytest.mark.parametrize(
    ("parameters", "pix_fmt", "progressive"),
    [
        ("bframes=2", "yuv420p", True),
        ("interlaced=1", "yuv420p", False),
        ("cqm=jvt", "yuv420p", True),
        ("cqm=jvt:interlaced=1", "yuv444p", False),
        ("cqm=jvt", "yuv444p10le", True),
    ],
)
def test_fields_are_told_from_frames(tmp_path: Path, parameters: str, pix_fmt: str, progressive: bool) -> None:
    for name in ("a.mp4", "a.ts"):
        options = ("-c:v", "libx264", "-pix_fmt", pix_fmt, "-x264-params", parameters)
        extradata, _ = _packets(encode(tmp_path / name, numbered_frames(3), *options))
        assert is_progressive(extradata) is progressive
        assert is_progressive(extradata[:10]) is None
    assert is_progressive(None) is None
