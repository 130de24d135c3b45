"""Write one shard from its plan: tar, index, and the entry that says it is finished. Runs in worker processes."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.codecs import decode_image, encode_image, pixel_hash
from qadprep.pack_reader import Crop, CropError, PackReader
from qadprep.shard_format import member_name
from qadprep.shard_tar import IndexWriter, TupleTar
from qadprep.store import dump_json, is_local, remove, upload, write_json
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.store import Folder

ENTRIES = ".entries"
# Tuples whose bytes are in memory at once, and what a shard's report of damaged crops may hold.
_ROWS, MAX_FAULTS = 256, 50


@dataclass(frozen=True)
class ShardJob:
    """What a worker needs.

    Attributes:
        plan: the shard's plan file (see `shard_plan`).
        digest: of the plan and of all else that decides the bytes.
        work: local folder in which the files are made: `out` itself when that is local.
        out: the shard set's folder; `entry` says whether a finished shard is noted there.
    """

    name: str
    split: str
    tuples: int
    plan: Path
    digest: str
    faces: "Folder"
    work: Path
    out: "Folder"
    codec: str
    qualities: tuple[str, ...]
    size_px: int
    entry: bool = True


@dataclass(frozen=True)
class CropFault:
    """A crop of a pack that cannot go into its shard.

    Attributes:
        pack: the pack's tar, relative to the folder of the packs.
        byte: where in it.
        damaged: the pack is not what was written; else it could only not be read now.
    """

    key: str
    pack: str
    byte: int
    fault: str
    damaged: bool


@dataclass
class ShardResult:
    """What became of a shard: its entry in `shards.json`, or the crops that prevent it."""

    entry: dict[str, Any] | None = None
    faults: list[CropFault] = field(default_factory=list)
    further_faults: int = 0


def write_shard(job: ShardJob) -> ShardResult:
    """Write a shard; nothing is put in place when one of its crops is damaged.

    Raises:
        OSError, RunEnded: the output cannot be written.
    """
    noted = job.out / ENTRIES / f"{job.name}.json"
    if job.entry:
        remove(noted)  # while its files change, it is not finished
    result = ShardResult()
    with contextlib.suppress(_DamagedError):
        result.entry, index_size = _write_files(job, result)
    if result.entry is None:
        return result
    entry = result.entry
    if not is_local(job.out) and job.entry:
        for name in (entry["url"], entry["index"]):
            upload(job.work / name, job.out / name)
            (job.work / name).unlink()
    if job.entry:
        sizes = {entry["url"]: entry["filesize"], entry["index"]: index_size}
        put_json(job.work, noted, {"plan": job.digest, "sizes": sizes, "entry": entry})
    return result


def put_json(work: Path, target: "Folder", values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all; into a remote store by way of a local folder, with some tries.

    Raises:
        RunEnded: the store cannot be written.
    """
    if is_local(target):
        write_json(target, values)
        return
    local = work / f"{target.name}.upload"
    local.write_bytes(dump_json(values))
    upload(local, target)
    local.unlink()


class _DamagedError(Exception):
    """The shard cannot be written; the faults are in its result."""


def _write_files(job: ShardJob, result: ShardResult) -> tuple[dict[str, Any], int]:
    """Tar and index under their final names in the work folder; (entry, size of the index).

    Raises:
        _DamagedError: a crop cannot be used; all of the shard's have been looked at.
    """
    tar_path, index_path = job.work / f"{job.name}.tar", job.work / f"{job.name}.parquet"
    # The tar gets its name first: an index without its tar would be taken for a lost tar.
    with atomic_file(index_path) as index_file, atomic_file(tar_path) as tar_file, contextlib.ExitStack() as stack:
        packs = stack.enter_context(PackReader(job.faces, job.size_px))
        tar = stack.enter_context(TupleTar(tar_file))
        index = stack.enter_context(IndexWriter(index_file, job.qualities))
        for rows in _plan_rows(job.plan):
            _write_rows(job, rows, packs, tar, index, result)
        if result.faults:
            raise _DamagedError
        tar.finish()
        index.finish()
    entry = {
        "url": tar_path.name,
        "nsamples": job.tuples,
        "filesize": tar.position,
        "md5sum": tar.md5.hexdigest(),
        "sha256": tar.sha256.hexdigest(),
        "split": job.split,
        "index": index_path.name,
        "index_sha256": index.hashed.sha256.hexdigest(),
        "plan": job.digest,
    }
    return entry, index.hashed.size


def _plan_rows(plan: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(plan) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield pa.Table.from_batches([batch])


def _write_rows(
    job: ShardJob, rows: pa.Table, packs: PackReader, tar: "TupleTar", index: "IndexWriter", result: ShardResult
) -> None:
    """Append some tuples to tar and index; faults go into the result, and after the first one nothing is written."""
    keys, tars, texts = (rows[name].to_pylist() for name in ("key", "tar", "json"))
    crops = list(zip(*(_crops(rows, quality) for quality in job.qualities), strict=True))
    hashes = list(zip(*(rows[f"{quality}_pixels_sha256"].to_pylist() for quality in job.qualities), strict=True))
    packs.fetch(list(zip(tars, crops, strict=True)))
    places = []
    for key, pack, text, own_crops, own_hashes in zip(keys, tars, texts, crops, hashes, strict=True):
        try:
            files = packs.read(pack, own_crops)
            if job.codec != "png":
                files = [_recoded(job, *facts) for facts in zip(files, own_crops, own_hashes, strict=True)]
        except CropError as error:
            if len(result.faults) < MAX_FAULTS:
                result.faults.append(CropFault(key, pack, error.byte, error.fault, error.damaged))
            else:
                result.further_faults += 1
            continue
        if not result.faults:
            names = [member_name(key, quality, job.codec) for quality in job.qualities]
            places.append(tar.add([*zip(names, files, strict=True), (f"{key}.json", text.encode())]))
    if not result.faults:
        index.add(rows, places)


def _crops(rows: pa.Table, quality: str) -> list[Crop]:
    columns = ("method", "video", "frame", "face", f"{quality}_offset", f"{quality}_size")
    return [
        Crop(f"{method}/{video}/{frame:06d}_{face}.{quality}.png", offset, size)
        for method, video, frame, face, offset, size in zip(*(rows[c].to_pylist() for c in columns), strict=True)
    ]


def _recoded(job: ShardJob, png: bytes, crop: Crop, expected_hash: str) -> bytes:
    """A crop in another codec, with the proof that its pixels are those of the pack.

    Raises:
        CropError: they are not those that the pack's table knows, or the codec changed them.
    """
    try:
        image = decode_image(png, job.size_px)
    except ValueError as error:
        raise CropError(crop.offset, f"{crop.name}: {error}") from error
    if pixel_hash(image) != expected_hash:
        raise CropError(crop.offset, f"{crop.name}: its pixels are not those that the pack's table knows")
    data = encode_image(image, job.codec)
    if not np.array_equal(decode_image(data, job.size_px, job.codec), image):
        raise CropError(crop.offset, f"{crop.name}: not lossless as {job.codec}; please report it", damaged=False)
    return data
