"""Compare many tar headers with an index at once."""

import tarfile

import numpy as np

from qadprep.shardset import tar_name
from qadprep.ustar import BLOCK
from qadprep.verify_faults import Faults
from qadprep.verify_index import Layout

_NAME_BYTES = 100


def check_headers(headers: np.ndarray, layout: Layout, first: int, last: int, faults: Faults) -> np.ndarray:
    """Compare a batch's tar headers with the index; bool (rows,), whose headers are all right."""
    keys = layout.keys.slice(first, last - first).to_pylist()
    names = [f"{key}{suffix}".encode() for key in keys for suffix in layout.suffixes]
    sizes = layout.sizes[first:last].ravel()
    right = _plainly_right(headers, names, sizes)
    members = len(layout.suffixes)
    bad: dict[int, tuple[str, int]] = {}
    for number in np.flatnonzero(~right).tolist():
        row, at = first + number // members, int(layout.data[first + number // members, number % members]) - BLOCK
        fault = _header_fault(headers[number].tobytes(), at, names[number], int(sizes[number]))
        if fault and row not in bad:
            bad[row] = fault, at
    for row, (fault, at) in bad.items():
        faults.add(fault, layout.key(row), at)
    return np.array([row not in bad for row in range(first, last)])


def _plainly_right(headers: np.ndarray, names: list[bytes], sizes: np.ndarray) -> np.ndarray:
    """bool (n,): headers as this package writes them with the right name, size and checksum; others may be right too.

    Args:
        headers: uint8 (n, 512).
    """
    expected = np.array(names)
    # numpy leaves zeros at a text's end out of the comparison, as tar does.
    right = headers[:, :_NAME_BYTES].copy().view(f"S{_NAME_BYTES}").ravel() == expected
    right &= ~headers[:, 345:500].any(axis=1) & np.isin(headers[:, 156], (0, ord("0")))
    sums = headers.sum(axis=1, dtype=np.int64) - headers[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    return right & (_octal(headers[:, 148:154]) == sums) & (_octal(headers[:, 124:135]) == sizes)


def _octal(digits: np.ndarray) -> np.ndarray:
    """int64 (n,) of uint8 (n, digits); -1 where another character is among them."""
    values = digits.astype(np.int64) - ord("0")
    numbers = values @ (8 ** np.arange(digits.shape[1])[::-1])
    return np.where(((values < 0) | (values > 7)).any(axis=1), -1, numbers)


def found_name(header: bytes | memoryview) -> str | None:
    """The member name in a tar header, or None where there is no readable one."""
    try:
        return tarfile.TarInfo.frombuf(bytes(header), "ascii", "strict").name
    except (tarfile.HeaderError, ValueError):
        return None


def key_of(name: str) -> str:
    """The key in a member's name: up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


def _header_fault(header: bytes, at: int, name: bytes, size: int) -> str | None:
    """What is wrong with a tar header, or None."""
    try:
        parsed = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        return f"damaged tar header at byte {at} ({error}), expected {name.decode()!r}"
    if tar_name(header) != name:
        return f"member at byte {at} is {parsed.name!r}, expected {name.decode()!r}"
    if not parsed.isreg():
        return f"{name.decode()}: at byte {at} it is no plain file"
    if parsed.size != size:
        return f"{name.decode()}: the header at byte {at} says {parsed.size} bytes, the index {size}"
    return None
