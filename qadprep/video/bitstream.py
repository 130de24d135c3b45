"""What packets tell without decoding: which H.264 pictures others need, where decoding can begin, what is shown."""

from collections.abc import Iterator
from dataclasses import dataclass

_SLICES = (1, 2, 3, 4, 5)  # coded slices; 2 to 4 are the parts of a partitioned one
_IDR = 5
_PARAMETERS = (7, 8, 13, 15)  # sequence and picture parameter sets, and their extensions
# Profiles whose parameter set tells the chroma format and scaling lists.
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


@dataclass(frozen=True)
class AccessUnit:
    """What one packet of H.264 holds.

    Attributes:
        is_reference: other pictures may be predicted from it; also True where the packet cannot be understood.
        is_idr: it is an IDR picture: decoding can begin here, and nothing behind it looks back further.
        parameters: the parameter sets in it, each a whole NAL unit.
    """

    is_reference: bool
    is_idr: bool
    parameters: tuple[bytes, ...] = ()


def nal_length_size(extradata: bytes | None) -> int | None:
    """Bytes of the length in front of every NAL unit (mp4, mkv: 1, 2 or 4); None where start codes part them."""
    return (extradata[4] & 3) + 1 if extradata and extradata[0] == 1 and len(extradata) >= 7 else None


def access_unit(packet: bytes | memoryview, length_size: int | None) -> AccessUnit:
    """Read the heads of the NAL units of a packet. Never raises: what is not understood counts as a reference."""
    slices, reference, idr, parameters = 0, False, True, []
    for start, end in _nal_units(packet, length_size):
        if start >= end or packet[start] & 0x80:  # no unit, or the bit that must be zero is set
            return AccessUnit(True, False, tuple(parameters))
        kind = packet[start] & 31
        if kind in _SLICES:
            slices += 1
            reference |= packet[start] & 0x60 != 0
            idr &= kind == _IDR
        elif kind in _PARAMETERS:
            parameters.append(bytes(packet[start:end]))
    return AccessUnit(reference or not slices, idr and slices > 0, tuple(parameters))


def is_hidden(codec: str, packet: bytes | memoryview) -> bool:
    """Whether a packet's picture is only referred to and never shown: VP8's alternate references."""
    return codec == "vp8" and len(packet) > 0 and not packet[0] & 0x10


def is_progressive(extradata: bytes | None) -> bool | None:
    """Whether every sequence parameter set in the extradata allows whole frames only; None where there is none."""
    found = [_frame_mbs_only(unit) for unit in _parameter_sets(extradata or b"") if unit and unit[0] & 31 == 7]
    if not found or None in found:
        return None
    return all(found)


def _nal_units(packet: bytes | memoryview, length_size: int | None) -> Iterator[tuple[int, int]]:
    """(start, end) of every NAL unit; (0, 0) as the last one where the lengths do not fit."""
    size = len(packet)
    if length_size is not None:
        position = 0
        while position < size:
            start = position + length_size
            position = start + int.from_bytes(packet[position:start], "big")
            if start >= size or position > size:
                yield 0, 0
                return
            if position > start:
                yield start, position
        return
    data = bytes(packet)
    start = data.find(b"\0\0\1")
    if start < 0:
        yield 0, 0
        return
    while start >= 0:
        following = data.find(b"\0\0\1", start + 3)
        end = size if following < 0 else following
        while end > start + 3 and data[end - 1] == 0:  # a longer start code, or filling
            end -= 1
        yield start + 3, end
        start = following


def _parameter_sets(extradata: bytes) -> Iterator[bytes]:
    if nal_length_size(extradata) is None:
        for start, end in _nal_units(extradata, None):
            yield extradata[start:end]
        return
    position = 6
    for _ in range(extradata[5] & 31):
        end = position + 2 + int.from_bytes(extradata[position : position + 2], "big")
        yield extradata[position + 2 : end]
        position = end


def _frame_mbs_only(sps: bytes) -> bool | None:
    """The flag of a sequence parameter set that excludes fields and mixed pictures; None where it is cut off."""
    bits = _Bits(sps.replace(b"\0\0\3", b"\0\0")[4:])  # behind the unit's head, profile, constraints and level
    try:
        bits.golomb()  # its number
        if sps[1] in _HIGH_PROFILES:
            chroma = bits.golomb()
            if chroma == 3:
                bits.read(1)
            bits.golomb()
            bits.golomb()
            bits.read(1)
            if bits.read(1):
                for place in range(12 if chroma == 3 else 8):
                    if bits.read(1):
                        _skip_scaling_list(bits, 16 if place < 6 else 64)
        bits.golomb()  # log2 of the frame numbers
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.read(1)
            bits.golomb()
            bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()  # reference frames
        bits.read(1)
        bits.golomb()  # width
        bits.golomb()  # height
        return bool(bits.read(1))
    except (ValueError, IndexError):
        return None


def _skip_scaling_list(bits: "_Bits", count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            code = bits.golomb()
            following = (last + ((code + 1) // 2 if code & 1 else -(code // 2))) % 256
        last = following or last


class _Bits:
    """Reads bits from the highest on; ValueError behind the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("cut off")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("no number")
        return (1 << zeros) - 1 + self.read(zeros)
