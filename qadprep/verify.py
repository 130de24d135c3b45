"""`qadprep verify`: is every byte of a shard set what was written, and is every tuple whole?"""

import hashlib
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qadprep.catalog.base import ORIGINAL
from qadprep.errors import UserError
from qadprep.machine import available_cores
from qadprep.progress import progress_bar
from qadprep.shardset import INDEX_NAME, ShardSet, decode_image, pixel_hash, read_index, read_info, tar_name
from qadprep.ustar import BLOCK

MAX_FAULTS_PER_SHARD = 20
# keys, bytes read, faults as (key, what is wrong)
ShardCheck = tuple[list[str], int, list[tuple[str, str]]]


@dataclass
class VerifyReport:
    """Result of `verify`.

    Attributes:
        faults: (shard file, key or empty, what is wrong).
        crossing: groups (recordings) in more than one split, as `shard` found and noted them.
    """

    shards: int = 0
    tuples: int = 0
    bytes: int = 0
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    crossing: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "shards": self.shards,
            "tuples": self.tuples,
            "bytes": self.bytes,
            "ok": not self.faults,
            "groups_in_several_splits": self.crossing,
            "faults": [{"shard": shard, "key": key, "fault": fault} for shard, key, fault in self.faults],
        }


def verify(path: Path, *, workers: int = 0) -> VerifyReport:
    """Re-hash every shard and index, walk every tar header, decode every crop, compare with the index.

    Args:
        path: folder of the shard set.
        workers: threads; 0 takes one per core.

    Raises:
        UserError: there is no shard set, or its `shards.json` cannot be read.
    """
    info = read_info(path)
    report = VerifyReport()
    shards = info["shardlist"]
    listed = {INDEX_NAME, "shard.json", "README.md"} | {s["url"] for s in shards} | {s["index"] for s in shards}
    for file in sorted(path.iterdir()):
        if file.suffix in (".tar", ".parquet") and file.name not in listed:
            report.faults.append((file.name, "", f"is not in {INDEX_NAME}: left over from another run?"))
    seen: dict[str, str] = {}
    with progress_bar("verify", len(shards), "shards") as advance:
        with ThreadPoolExecutor(workers or available_cores()) as pool:
            results = pool.map(lambda shard: _guarded_check(path, info, shard), shards)
            for shard, (keys, size, faults) in zip(shards, results, strict=True):
                report.shards += 1
                report.tuples += len(keys)
                report.bytes += size
                report.faults += [(shard["url"], key, fault) for key, fault in faults]
                for key in keys:
                    if key in seen:
                        report.faults.append((shard["url"], key, f"the same key is in {seen[key]} too"))
                    seen[key] = shard["url"]
                advance(1, shard["url"])
    if not report.faults:  # else the index may not be readable; the faults come first
        report.crossing = list(_crossing(path))
        noted = info.get("groups_in_several_splits", 0)
        if len(report.crossing) != noted:
            fault = f"{len(report.crossing)} groups are in several splits, {noted} were when it was written"
            report.faults.append((INDEX_NAME, "", f"{fault}: {'; '.join(report.crossing[:3])}"))
    return report


def _guarded_check(
    path: Path, info: dict[str, Any], shard: dict[str, Any]
) -> tuple[list[str], int, list[tuple[str, str]]]:
    """As `_check_shard`; an index or entry that is readable but nonsense is a fault of its shard, not the end."""
    try:
        return _check_shard(path, info, shard)
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        return [], 0, [("", f"cannot be checked against its index ({type(error).__name__}: {error})")]


def _check_shard(
    path: Path, info: dict[str, Any], shard: dict[str, Any]
) -> tuple[list[str], int, list[tuple[str, str]]]:
    """Check one shard; damage is returned as faults."""
    faults: list[tuple[str, str]] = []
    tar, index = path / shard["url"], path / shard["index"]
    for file, expected in ((tar, shard["sha256"]), (index, shard["index_sha256"])):
        try:
            actual = _sha256(file)
        except OSError as error:
            return [], 0, [("", f"{file.name}: {error.strerror}")]
        if actual != expected:
            faults.append(("", f"{file.name}: sha256 is {actual[:12]}…, {INDEX_NAME} says {expected[:12]}…"))
    size = tar.stat().st_size
    if size != shard["filesize"]:
        faults.append(("", f"has {size} bytes, {INDEX_NAME} says {shard['filesize']}"))
    try:
        table = read_index(path, shard)
    except UserError as error:
        return [], size, [*faults, ("", str(error))]
    keys = table["key"].to_pylist()
    with tar.open("rb") as file:
        position = 0
        for row in table.to_pylist():
            if len(faults) >= MAX_FAULTS_PER_SHARD:
                faults.append(("", "more faults follow; not listed"))
                break
            for fault in _check_tuple(file, row, info, position, shard["split"]):
                faults.append((row["key"], fault))
            position = row["offset"] + row["length"]
        else:
            file.seek(position)
            if file.read(2 * BLOCK) != b"\0" * 2 * BLOCK:
                faults.append(("", f"no end of archive at byte {position}: more members than the index knows?"))
    return keys, size, faults


def _check_tuple(file: Any, row: dict[str, Any], info: dict[str, Any], position: int, split: str) -> Iterator[str]:
    if row["offset"] != position:
        yield f"begins at byte {row['offset']} in the index, the tuple before it ends at {position}"
    if row["split"] != split:
        yield f"split is {row['split']!r} in a shard of {split!r}"
    # In a manipulated clip whose faces are labelled by a mask, a face may be real.
    if (row["method"] == ORIGINAL or row.get("mask_share") is None) and (row["method"] == ORIGINAL) != (
        row["label"] == 0
    ):
        yield f"label {row['label']} contradicts method {row['method']!r}"
    if row["key"] != f"{row['dataset']}/{row['method']}/{row['video']}/{row['frame']:06d}_{row['face']}":
        yield "key contradicts its columns"
    file.seek(row["offset"])
    whole = hashlib.sha256(file.read(row["length"])).hexdigest() == row["sha256"]
    at = row["offset"]
    sound = True
    for quality in info["qualities"]:
        name = f"{row['key']}.{quality}.{info['codec']}"
        data, fault = _member(file, at, name, row[f"{quality}_offset"], row[f"{quality}_size"])
        if fault:
            yield fault
            return
        fault = _picture_fault(data, quality, row, info["size_px"])
        if fault:
            sound = False
            yield fault
        at = row[f"{quality}_offset"] + len(data) + -len(data) % BLOCK
    data, fault = _member(file, at, f"{row['key']}.json", row["json_offset"], row["json_size"])
    if fault:
        yield fault
    elif row["json_offset"] + len(data) + -len(data) % BLOCK != row["offset"] + row["length"]:
        yield "its members do not fill the length that the index gives"
    elif not whole and sound:
        yield f"a byte between {row['offset']} and {row['offset'] + row['length']} is not what was written"


def _picture_fault(data: bytes, quality: str, row: dict[str, Any], size_px: int) -> str | None:
    place = f"{quality} at byte {row[f'{quality}_offset']}"
    try:
        image = decode_image(data, size_px)
    except ValueError as error:
        return f"{place}: {error}"
    return None if pixel_hash(image) == row[f"{quality}_pixels_sha256"] else f"{place}: pixels are not those written"


def _member(file: Any, at: int, name: str, offset: int, size: int) -> tuple[bytes, str | None]:
    """Read the member whose header is expected at a byte; (data, what is wrong or None)."""
    file.seek(at)
    header = file.read(BLOCK)
    try:
        parsed = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return b"", f"damaged tar header at byte {at} ({error})"
    if tar_name(header) != name.encode():
        return b"", f"member at byte {at} is {parsed.name!r}, expected {name!r}"
    if (at + BLOCK, parsed.size) != (offset, size):
        return (
            b"",
            f"{name}: the header says {parsed.size} bytes at {at + BLOCK}, the index {size} at {offset}",
        )
    data = file.read(size)
    if len(data) != size:
        return b"", f"{name}: cut short, {len(data)} of {size} bytes"
    return data, None


def _crossing(path: Path) -> Iterator[str]:
    """Groups (recordings) that occur in more than one split."""
    table = ShardSet(path).table
    if not len(table):
        return
    pairs = (
        table.select(["dataset", "group", "split"])
        .group_by(["dataset", "group"])
        .aggregate([("split", "count_distinct")])
    )
    leaking = pairs.filter(pc.greater(pairs["split_count_distinct"], 1))
    for row in leaking.sort_by([("dataset", "ascending"), ("group", "ascending")]).to_pylist():
        yield f"{row['dataset']}/{row['group']}"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
