"""What a shard's index tells by itself: keys, labels and splits, and whether its byte ranges fit together."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qadprep.catalog.base import ORIGINAL
from qadprep.shard_format import CODECS, KEY, MAX_KEY_CHARS, MAX_TUPLE_BYTES
from qadprep.ustar import BLOCK
from qadprep.verify_faults import Faults


@dataclass
class Layout:
    """Where an index says that the bytes of a shard's tuples and members are.

    Attributes:
        keys: one a row.
        suffixes: what follows the key in the names of a tuple's members, in their order.
        starts, ends: int64 (n,), byte range of each tuple, headers included.
        data: int64 (n, members), first byte of each member's data.
        sizes: int64 (n, members), bytes of each member's data.
        sound: bool (n,), the row's members follow each other inside its range, which lies inside the file and overlaps
            no earlier one: only such rows are worth reading.
        chained: as far as the index tells, the tuples lie one after the other from byte 0.
    """

    keys: pa.ChunkedArray
    suffixes: list[str]
    starts: np.ndarray
    ends: np.ndarray
    data: np.ndarray
    sizes: np.ndarray
    sound: np.ndarray
    chained: bool

    def key(self, row: int) -> str:
        """The key of a row."""
        return self.keys[row].as_py()


def read_layout(table: pa.Table, info: dict[str, Any], size: int, faults: Faults) -> Layout:
    """Take the byte ranges out of an index and check that they fit together.

    Args:
        table: as `shardset.read_index` returns it.
        size: bytes of the shard.
    """
    starts, lengths = _column(table, "offset"), _column(table, "length")
    ends = starts + lengths
    columns = [(quality, f".{quality}.{CODECS[info['codec']]}") for quality in info["qualities"]]
    # Sets of format 1.0 may have no such member.
    if {"json_offset", "json_size"} <= set(table.column_names) and table["json_offset"].null_count < len(table):
        columns.append(("json", ".json"))
    data = np.stack([_column(table, f"{name}_offset") for name, _ in columns], axis=1)
    sizes = np.stack([_column(table, f"{name}_size") for name, _ in columns], axis=1)
    after = data + sizes + -sizes % BLOCK
    headers = np.concatenate([starts[:, None], after[:, :-1]], axis=1)
    long = (lengths < len(columns) * BLOCK) | (lengths > MAX_TUPLE_BYTES)
    inner = ((data - BLOCK == headers) & (sizes >= 0) & (sizes <= MAX_TUPLE_BYTES)).all(axis=1)
    inner &= (after[:, -1] == ends) if columns[-1][0] == "json" else (after[:, -1] <= ends)
    before = _shifted(ends)
    chained = starts == before
    readable = inner & ~long & (starts >= 0) & (ends <= size)
    # Overlapping ranges could make a small file take for ever.
    sound = readable & (starts >= _shifted(np.maximum.accumulate(np.where(readable, ends, 0))))
    in_chain = bool((inner & ~long & chained).all())
    layout = Layout(table["key"], [suffix for _, suffix in columns], starts, ends, data, sizes, sound, in_chain)
    faults.add_rows(
        np.flatnonzero(~chained),
        lambda row: (
            f"begins at byte {starts[row]} in the index, the tuple before it ends at {before[row]}",
            layout.key(row),
            int(starts[row]),
        ),
    )
    faults.add_rows(
        np.flatnonzero(long),
        lambda row: (f"has {lengths[row]} bytes in the index, no tuple's", layout.key(row), int(starts[row])),
    )
    faults.add_rows(
        np.flatnonzero(~inner & ~long),
        lambda row: ("its members do not fill the length that the index gives", layout.key(row), int(starts[row])),
    )
    lost = np.flatnonzero(inner & ~long & (ends > size))
    if len(lost):
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        fault = f"the shard ends at byte {size}, before this tuple's end at {ends[lost[0]]}: it{more} cannot be read"
        faults.add(fault, layout.key(lost[0]), int(starts[lost[0]]))
    return layout


def _shifted(values: np.ndarray) -> np.ndarray:
    """Each row's value of the row before; 0 for the first."""
    return np.concatenate([np.zeros(1, np.int64), values])[: len(values)]


def check_rows(table: pa.Table, split: str, hashes: list[str], faults: Faults) -> None:
    """Keys against the grammar and the columns, labels against methods, splits against the shard's.

    Args:
        split: of the shard.
        hashes: columns that no cell may be empty of.
    """
    keys, starts = table["key"], _column(table, "offset")

    def found(bad: pa.ChunkedArray, text: str, *columns: str) -> None:
        rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
        faults.add_rows(
            rows,
            lambda row: (
                text.format(*(repr(table[column][row].as_py()) for column in columns)),
                keys[row].as_py(),
                int(starts[row]),
            ),
        )

    grammatical = pc.and_(
        pc.match_substring_regex(keys, rf"^(?:{KEY.pattern})$"), pc.less_equal(pc.utf8_length(keys), MAX_KEY_CHARS)
    )
    found(pc.invert(grammatical), f"key {{}} does not match {KEY.pattern} in at most {MAX_KEY_CHARS} characters", "key")
    frame = pc.utf8_lpad(pc.cast(table["frame"], pa.string()), 6, "0")
    last = pc.binary_join_element_wise(frame, pc.cast(table["face"], pa.string()), "_")
    told = pc.binary_join_element_wise(table["dataset"], table["method"], table["video"], last, "/")
    found(pc.not_equal(keys, told), "key contradicts its columns")
    real, original = pc.equal(table["label"], 0), pc.equal(table["method"], ORIGINAL)
    wrong = pc.not_equal(real, original)
    if "mask_share" in table.column_names:
        # In a manipulated clip whose faces are labelled by a mask, a face may be real.
        wrong = pc.and_(wrong, pc.or_(original, pc.is_null(table["mask_share"])))
    wrong = pc.or_(wrong, pc.invert(pc.is_in(table["label"], pa.array([0, 1], pa.int8()))))
    found(wrong, "label {} contradicts method {}", "label", "method")
    found(pc.not_equal(table["split"], split), f"split is {{}} in a shard of {split!r}", "split")
    for name in hashes:
        found(pc.is_null(table[name]), f"the index has no {name}")


def _column(table: pa.Table, name: str) -> np.ndarray:
    """int64 (n,); -1 for empty cells, which no place in a file is."""
    column = pc.fill_null(table[name].cast(pa.int64()), -1)
    return column.to_numpy() if len(table) else np.zeros(0, np.int64)
