"""`qadprep shard`: face packs -> a shard set. Complete tuples only, shuffled by tuple, the same bytes every time."""

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import qadprep
from qadprep.config import ExtractConfig, ShardConfig, guard_output, write_json
from qadprep.errors import UserError
from qadprep.extract_dataset import load_config
from qadprep.locks import reader, sole_user
from qadprep.pack import Pack, find_packs, read_pack
from qadprep.pack_reader import PackReader
from qadprep.parts import not_at_its_end
from qadprep.progress import progress_bar
from qadprep.sampling import draw
from qadprep.shardset import FORMAT_MAJOR, FORMAT_MINOR, INDEX_NAME
from qadprep.store import open_folder, parallel_reads, read_json
from qadprep.summary import REPORT_NAME
from qadprep.ustar import HashedFile, TarWriter, atomic_file, remove_leftovers

if TYPE_CHECKING:
    from qadprep.store import Folder

CONFIG_NAME = "shard.json"
CODEC = "png"
SPLIT_ORDER = ("train", "val", "test")
_KEY = re.compile(r"[A-Za-z0-9_/-]+")
_SHARD_NAME = re.compile(r"(train|val|test|none)-\d{6}\.(tar|parquet)")
# Columns of the index besides key, offset, length and the per-quality ones; docs/format.md lists them all.
_COPIED = ("label", "split", "dataset", "method", "group", "target", "source", "frame", "face", "geometry",
           "mask_share")  # fmt: skip
_IN_JSON = ("label", "split", "dataset", "method", "group", "target", "source", "frame", "face", "geometry", "detector",
            "score", "box_xyxy", "landmarks_xy", "affine", "mask_share")  # fmt: skip


@dataclass
class ShardSummary:
    """What `shard` wrote: tuples per split, shards, bytes, and attempted tuples that were left out, by status."""

    tuples: dict[str, int]
    shards: int
    bytes: int
    left_out: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {"tuples": self.tuples, "shards": self.shards, "bytes": self.bytes, "left_out": self.left_out}


def shard(faces: "str | Folder", out: Path, config: ShardConfig, *, overwrite: bool = False) -> ShardSummary:
    """Write a shard set from the face packs in a folder.

    The order inside a split is by sha256 of (seed, key): it depends neither on the packs' order nor on other tuples.
    Crops are copied as they are in the packs, never decoded.

    Args:
        faces: folder or fsspec URL that `extract` wrote.
        out: folder of the shard set.
        overwrite: replace a shard set of another config or of other packs.

    Raises:
        UserError: no packs, packs of several configs, no complete tuple, another shard set in `out`, or an extraction
            that is writing into `faces`.
    """
    faces = open_folder(faces)
    extract_config = load_config(faces)
    with reader(faces):  # not while an extraction changes the packs
        tuples, left_out, packs_hash = _collect(faces, extract_config.hash(), extract_config.qualities)
        return _write_set(faces, out, config, extract_config, tuples, left_out, packs_hash, overwrite)


def _write_set(
    faces: "Folder",
    out: Path,
    config: ShardConfig,
    extract_config: ExtractConfig,
    tuples: list[dict[str, Any]],
    left_out: dict[str, int],
    packs_hash: str,
    overwrite: bool,
) -> ShardSummary:
    if not tuples:
        raise UserError(
            f"{faces}: not one complete tuple in its packs ({_words(left_out)}); see the table of `qadprep extract`"
        )
    described = {
        **config.model_dump(mode="json"),
        "config_hash": config.hash(packs_hash),
        "packs_hash": packs_hash,
        "extract": extract_config.model_dump(mode="json"),
    }
    qualities = extract_config.qualities
    with sole_user(out):
        _refuse_foreign(out)
        guard_output(out, CONFIG_NAME, described, overwrite)
        # Until shards.json is back, the folder is no shard set: a killed run is never taken for a whole one.
        (out / INDEX_NAME).unlink(missing_ok=True)
        remove_leftovers(out)
        for old in sorted(out.iterdir()):
            if _SHARD_NAME.fullmatch(old.name):
                old.unlink()
        write_json(out / CONFIG_NAME, described)
        shardlist = []
        with progress_bar("shard", len(tuples), "tuples") as advance, PackReader() as packs:
            for split, number, part in _parts(tuples, config):
                shardlist.append(_write_shard(out, split, number, part, qualities, packs))
                advance(len(part), shardlist[-1]["url"])
        per_split = {split: sum(s["nsamples"] for s in shardlist if s["split"] == split) for split in _splits(tuples)}
        info = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": f"{extract_config.dataset}-{extract_config.size_px}px",
            "format_version": f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
            "tool": f"qadprep {qadprep.__version__}",
            "qualities": list(qualities),
            "codec": CODEC,
            "size_px": extract_config.size_px,
            "tuples": per_split,
            "left_out": left_out,
            "groups_in_several_splits": _crossing(tuples),
            "config_hash": described["config_hash"],
            "config": described,
            "shardlist": shardlist,
        }
        from qadprep.card import write_card

        write_card(out / "README.md", info, tuples)
        write_json(out / INDEX_NAME, info)
    return ShardSummary(per_split, len(shardlist), sum(s["filesize"] for s in shardlist), left_out)


def _refuse_foreign(out: Path) -> None:
    """A folder that this command did not write keeps its files, whatever their names."""
    if (out / CONFIG_NAME).is_file():
        return
    strange = [file.name for file in sorted(out.iterdir()) if not file.name.startswith(".")]
    if strange:
        raise UserError(
            f"{out}: holds other files ({strange[0]} ...) and no {CONFIG_NAME}; choose a new or empty folder for --out"
        )


def _collect(
    faces: "Folder", config_hash: str, qualities: tuple[str, ...]
) -> tuple[list[dict[str, Any]], dict[str, int], str]:
    """Every complete tuple of the packs, counts of those left out by status, and a hash over the packs' content."""
    report = read_json(faces / REPORT_NAME)
    if report is None:
        raise UserError(not_at_its_end(faces))
    tuples: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    lost = sum(failure["what"] == failure["group"] for failure in report["failures"])
    if lost:
        left_out["groups_without_pack"] = lost
    content = hashlib.sha256(config_hash.encode())
    tables = find_packs(faces)
    if not tables:
        raise UserError(f"{faces}: no face packs there; write them with `qadprep extract`")
    for path, pack in zip(tables, _read_packs(faces, tables), strict=True):
        if pack.meta["config_hash"] != config_hash:
            raise UserError(
                f"{path}: is of another config than {faces / 'extract.json'}; finish `qadprep extract` with --overwrite"
            )
        for row in pack.table.to_pylist():
            if row["status"] != "ok":
                left_out[row["status"]] = left_out.get(row["status"], 0) + 1
                continue
            row["key"] = f"{row['dataset']}/{row['method']}/{row['name']}/{row['frame']:06d}_{row['face']}"
            row["tar"] = pack.tar
            if not _KEY.fullmatch(row["key"]):
                raise UserError(f"{path}: {row['key']!r} cannot be a key; it must match {_KEY.pattern}")
            content.update(
                "".join([row["key"], row["split"], *(row[f"{q}_pixels_sha256"] for q in qualities)]).encode()
            )
            tuples.append(row)
    return tuples, dict(sorted(left_out.items())), content.hexdigest()


def _read_packs(faces: "Folder", tables: list["Folder"]) -> Iterator[Pack]:
    with ThreadPoolExecutor(parallel_reads(faces)) as pool:
        yield from pool.map(read_pack, tables)


def _splits(tuples: list[dict[str, Any]]) -> list[str]:
    found = {row["split"] for row in tuples}
    return [s for s in SPLIT_ORDER if s in found] + sorted(found - set(SPLIT_ORDER))


def _crossing(tuples: list[dict[str, Any]]) -> int:
    """Groups (recordings) with tuples in more than one split: official splits of some datasets do that."""
    splits: dict[tuple[str, str], set[str]] = {}
    for row in tuples:
        splits.setdefault((row["dataset"], row["group"]), set()).add(row["split"])
    return sum(len(found) > 1 for found in splits.values())


def _parts(tuples: list[dict[str, Any]], config: ShardConfig) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """(split, shard number, its tuples in order)."""
    for split in _splits(tuples):
        rows = [row for row in tuples if row["split"] == split]
        rows.sort(key=lambda row: (draw(config.seed, row["key"]), row["key"]))
        for number, start in enumerate(range(0, len(rows), config.tuples_per_shard)):
            yield split, number, rows[start : start + config.tuples_per_shard]


def _write_shard(
    out: Path, split: str, number: int, rows: list[dict[str, Any]], qualities: tuple[str, ...], packs: PackReader
) -> dict[str, Any]:
    """Write one tar and its index; returns its entry in shards.json."""
    name = f"{split}-{number:06d}"
    index: list[dict[str, Any]] = []
    packs.fetch(rows, qualities)
    with atomic_file(out / f"{name}.tar") as file:
        hashed = HashedFile(file)
        tar = TarWriter(hashed)
        for row in rows:
            entry = {"key": row["key"], "video": row["name"], "offset": tar.position}
            entry |= {column: row[column] for column in _COPIED}
            hashed.part = hashlib.sha256()
            for quality in qualities:
                data = packs.read(row["tar"], row[f"{quality}_offset"], row[f"{quality}_size"])
                offset, size = tar.add(f"{row['key']}.{quality}.{CODEC}", data)
                entry[f"{quality}_offset"], entry[f"{quality}_size"] = offset, size
                for column in ("pixels_sha256", "psnr_db"):
                    entry[f"{quality}_{column}"] = row[f"{quality}_{column}"]
            sample = {"key": row["key"], "video": row["name"], **{column: row[column] for column in _IN_JSON}}
            text = json.dumps(sample, sort_keys=True, separators=(",", ":"))
            entry["json_offset"], entry["json_size"] = tar.add(f"{row['key']}.json", text.encode())
            entry["length"] = tar.position - entry["offset"]
            entry["sha256"] = hashed.part.hexdigest()
            index.append(entry)
        tar.finish()
    with atomic_file(out / f"{name}.parquet") as file:
        hashed_index = HashedFile(file)
        pq.write_table(pa.Table.from_pylist(index, schema=index_schema(qualities)), hashed_index, compression="zstd")
    return {
        "url": f"{name}.tar",
        "nsamples": len(rows),
        "filesize": hashed.size,
        "md5sum": hashed.md5.hexdigest(),
        "sha256": hashed.sha256.hexdigest(),
        "split": split,
        "index": f"{name}.parquet",
        "index_sha256": hashed_index.sha256.hexdigest(),
    }


def index_schema(qualities: tuple[str, ...]) -> pa.Schema:
    """Columns of a shard's parquet index (docs/format.md)."""
    text = {"split", "dataset", "method", "group", "target", "source", "geometry"}
    types = {"label": pa.int8(), "frame": pa.int32(), "face": pa.int16(), "mask_share": pa.float32()}
    fields = [
        ("key", pa.string()),
        ("video", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("sha256", pa.string()),
    ]
    fields += [(column, pa.string() if column in text else types[column]) for column in _COPIED]
    for quality in qualities:
        fields += [
            (f"{quality}_offset", pa.int64()),
            (f"{quality}_size", pa.int32()),
            (f"{quality}_pixels_sha256", pa.string()),
            (f"{quality}_psnr_db", pa.float32()),
        ]
    return pa.schema([*fields, ("json_offset", pa.int64()), ("json_size", pa.int32())])


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing was attempted"
