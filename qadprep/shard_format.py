"""The shard set's format: names, versions, limits, `shards.json` and the columns of an index (docs/format.md).

Everything that comes out of a file which may have been downloaded is checked here before anybody uses it.
"""

import hashlib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from qadprep.errors import UserError

if TYPE_CHECKING:
    from qadprep.store import Folder

FORMAT_MAJOR, FORMAT_MINOR = 1, 2
INDEX_NAME, CONFIG_NAME, CARD_NAME = "shards.json", "shard.json", "README.md"
SPLIT_ORDER = ("train", "val", "test")
# Codec -> extension of its members.
CODECS = {"png": "png", "webp": "webp", "raw": "npy"}

# What a file may make a reader allocate or do.
MAX_TUPLE_BYTES = 64 << 20
MAX_SIDE_PX = 4096
MAX_INFO_BYTES = 256 << 20
MAX_SHARDS = 1_000_000
MAX_TUPLES_PER_SHARD = 1_000_000
MAX_KEY_CHARS = 200

KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
SPLIT = re.compile(r"[a-z][a-z0-9]{0,15}")
SHARD_FILE = re.compile(rf"{SPLIT.pattern}-[0-9]{{6}}\.(tar|parquet)")

_TEXT = {"split", "dataset", "method", "group", "target", "source", "geometry"}
_TYPES = {
    "label": pa.int8(), "frame": pa.int32(), "face": pa.int16(), "mask_share": pa.float32(), "face_px": pa.float32(),
    "sharpness": pa.float32(), "yaw_deg": pa.float32(), "unaltered": pa.bool_(),
}  # fmt: skip
# Columns of the index that say what a tuple shows, taken from the packs.
DESCRIBING = ("label", "split", "dataset", "method", "group", "target", "source", "frame", "face", "geometry",
              "mask_share", "face_px", "sharpness", "yaw_deg", "unaltered")  # fmt: skip
# Without these nothing can be read; the others are for choosing and counting.
_NEEDED = ("key", "label", "dataset", "method", "video", "frame", "face", "split", "offset", "length")

_Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Quality = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{0,15}$")]
_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,120}$")]
_Split = Annotated[str, StringConstraints(pattern=f"^{SPLIT.pattern}$")]


class ShardEntry(BaseModel):
    """One shard in `shards.json`. Names are plain file names: nothing outside the set's folder is ever opened."""

    model_config = ConfigDict(extra="allow")

    url: _FileName
    nsamples: int = Field(ge=0, le=MAX_TUPLES_PER_SHARD)
    filesize: int | None = Field(None, ge=0)
    md5sum: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = None
    sha256: _Hex64
    split: _Split
    index: _FileName
    index_sha256: _Hex64 | None = None


class ShardSetInfo(BaseModel):
    """`shards.json`: readable as a wids index, with more keys. Unknown keys of newer minor versions are allowed."""

    model_config = ConfigDict(extra="allow", title="Shard set", json_schema_extra={"$id": "shards.json"})

    kind: Literal["wids-shard-index-v1"] = Field("wids-shard-index-v1", alias="__kind__")
    wids_version: int = 1
    name: str = ""
    format_version: Annotated[str, StringConstraints(pattern=r"^\d{1,4}\.\d{1,4}$")]
    tool: str = ""
    qualities: list[_Quality] = Field(min_length=1, max_length=64)
    codec: Literal["png", "webp", "raw"]
    size_px: int = Field(ge=1, le=MAX_SIDE_PX)
    tuples: dict[str, int] = {}
    left_out: dict[str, int] = {}
    groups_in_several_splits: int = 0
    sync: dict[str, int] = {}
    extraction: dict[str, int] = {}
    config_hash: str = ""
    config: dict[str, Any] = {}
    shardlist: list[ShardEntry] = Field(max_length=MAX_SHARDS)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `shards.json`; docs/shards.schema.json holds it."""
    schema = ShardSetInfo.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def read_info(folder: "Folder") -> dict[str, Any]:
    """Read and check `shards.json`.

    Args:
        folder: a local or remote folder.

    Raises:
        UserError: missing, too large, not JSON, not a shard set, or of a newer major format than this version reads.
    """
    file = folder / INDEX_NAME
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError
        if file.stat().st_size > MAX_INFO_BYTES:
            raise UserError(f"{file}: has {file.stat().st_size} bytes, over {MAX_INFO_BYTES}; not a shard set's index")
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder}: no {INDEX_NAME} there; expected a folder written by `qadprep shard`") from None
    except OSError as error:
        raise UserError(f"{file}: not readable ({error.strerror or error})") from error
    return parse_info(data, str(file))


def parse_info(data: bytes, where: str) -> dict[str, Any]:
    """The content of a `shards.json`, checked.

    Args:
        where: how messages name the file.

    Raises:
        UserError: as `read_info`.
    """
    try:
        info = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({error}); write the shard set again") from error
    version = str(info.get("format_version", "")) if isinstance(info, dict) else ""
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}", version) or "qualities" not in info or "shardlist" not in info:
        raise UserError(f"{where}: not a tuple shard set (no format_version, qualities or shardlist)")
    if int(version.split(".")[0]) > FORMAT_MAJOR:
        raise UserError(f"{where}: format {version} is newer than {FORMAT_MAJOR}.{FORMAT_MINOR}; upgrade qadprep")
    try:
        # Strict: readers use the values as they are, so the text "8" must not pass for a number.
        ShardSetInfo.model_validate(info, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:80]
        got = repr(first.get("input"))
        raise UserError(f"{where}: {place} is {got[:80]}; {first['msg']}") from error
    names = [shard[kind] for shard in info["shardlist"] for kind in ("url", "index")]
    if len(set(names)) != len(names) or len(set(info["qualities"])) != len(info["qualities"]):
        raise UserError(f"{where}: a shard or quality is named twice; write the shard set again")
    return info


def index_schema(qualities: tuple[str, ...]) -> pa.Schema:
    """Columns of a shard's parquet index."""
    fields = [
        ("key", pa.string()),
        ("video", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("sha256", pa.string()),
    ]
    fields += [(column, pa.string() if column in _TEXT else _TYPES[column]) for column in DESCRIBING]
    for quality in qualities:
        fields += [
            (f"{quality}_offset", pa.int64()),
            (f"{quality}_size", pa.int32()),
            (f"{quality}_pixels_sha256", pa.string()),
            (f"{quality}_psnr_db", pa.float32()),
        ]
    return pa.schema([*fields, ("json_offset", pa.int64()), ("json_size", pa.int32())])


def check_index(table: pa.Table, entry: dict[str, Any], qualities: list[str], where: str) -> pa.Table:
    """A shard's index with the columns that every reader needs in their types, or one line of what is wrong.

    Columns of older minor versions that are missing stay missing.

    Args:
        entry: the shard's entry in `shards.json`.
        where: how messages name the file.

    Raises:
        UserError: a needed column is missing, has another type or holds nulls; another number of rows than `entry`.
    """
    if len(table) != entry["nsamples"]:
        raise UserError(
            f"{where}: {len(table)} rows, but {INDEX_NAME} says {entry['nsamples']} tuples; they are of different runs"
        )
    schema = index_schema(tuple(qualities))
    needed = (*_NEEDED, *(f"{quality}_{part}" for quality in qualities for part in ("offset", "size")))
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UserError(f"{where}: no column {missing[0]!r}; not an index of this shard set")
    known = [name for name in schema.names if name in table.column_names]
    try:
        columns = {name: table[name].cast(schema.field(name).type) for name in known}
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{where}: a column has another type ({error}); write the shard set again") from error
    for name in needed:
        if columns[name].null_count:
            raise UserError(f"{where}: column {name!r} has empty cells; write the shard set again")
    return pa.table(columns)


def check_cells(table: pa.Table, entry: dict[str, Any], where: str) -> pa.Table:
    """An index whose names and labels may be used: as folders, in pages, as classes.

    Args:
        table: as `check_index` gives it.
        entry: the shard's entry in `shards.json`.
        where: how messages name the file.

    Raises:
        UserError: a key outside the grammar, another split than the shard's, a label that is neither 0 nor 1.
    """
    tests = {
        "key": pc.match_substring_regex(table["key"], f"^(?:{KEY.pattern})$"),
        "split": pc.equal(table["split"], entry["split"]),
        "label": pc.is_in(table["label"], pa.array([0, 1], pa.int8())),
    }
    for name, good in tests.items():
        for wrong in table[name].filter(pc.invert(good)).to_pylist()[:1]:
            raise UserError(f"{where}: {name} {str(wrong)[:80]!r} cannot be right; see `qadprep verify`")
    return table


def fingerprint(shards: list[dict[str, Any]]) -> str:
    """sha256 (hex) over the shards' own sha256, in order: the identity of a shard set's data."""
    return hashlib.sha256("\n".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def member_name(key: str, quality: str, codec: str) -> str:
    """Name of a crop inside the tar: `<key>.<quality>.<ext>`."""
    return f"{key}.{quality}.{CODECS[codec]}"


def splits_in_order(found: set[str]) -> list[str]:
    """Splits as they are listed everywhere: train, val, test, then others by the alphabet."""
    return [split for split in SPLIT_ORDER if split in found] + sorted(found - set(SPLIT_ORDER))
