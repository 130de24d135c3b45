"""The face pack: what `extract` writes for one group, a tar of crops and a parquet row for every attempted tuple."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.errors import UserError
from qadprep.timing import StageTimer
from qadprep.ustar import TarWriter, atomic_file

FORMAT_VERSION = "1.2"
_META_KEY = b"qadprep"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
MEASURES = ("face_px", "sharpness", "yaw_deg", "pitch_deg", "roll_deg", "inside_share")
# What the table says of each file's sync proof beside its verdict; all of it is in the metadata.
_EVIDENCE = {
    "offset_frames": pa.int8(),
    "margin": pa.float32(),
    "residual": pa.float32(),
    "relation": pa.string(),
    "left_px": pa.float32(),
    "top_px": pa.float32(),
}


@dataclass
class FileRecord:
    """One video file of a group and what became of it.

    Attributes:
        status: `ok`, or the reason why it could not be used.
        message: one line for the user; empty when ok.
        bytes: size when it was read; a changed size makes the pack stale. -1 when the file is missing.
        sync: evidence of the sync proof (see video/sync.py), or None when it did not come so far.
        made: for a quality that was encoded on the fly: what from, CRF, pixel format, encoder; else None.
    """

    clip: str
    method: str
    quality: str
    path: str
    status: str = "ok"
    message: str = ""
    bytes: int = -1
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: str = ""
    pix_fmt: str = ""
    crf: float | None = None
    sync: dict[str, Any] | None = None
    made: dict[str, Any] | None = None

    @property
    def shown(self) -> str:
        """What the user knows the file by: its path, or the clip and quality where it has none of its own."""
        return self.path or f"{self.method}/{self.clip} {self.quality}"


@dataclass
class Row:
    """One attempted tuple: (clip, frame, face).

    Attributes:
        label: of this face, 0 real or 1 fake: the clip's, or what the mask says; None where that is not known.
        frame: frame number in the group's reference, or the number in a picture's file name.
        status: `ok`, or the named reason why there is no tuple.
        geometry: `reference` when the affine was found on the group's reference clip, `own` when on the clip itself,
            `given` for pictures that were cropped by others, empty when there is none.
        mask_share: share of the box under the mask, 0..1, where faces are labelled by a mask.
        box_xyxy, landmarks_xy: px in the frame of the clip the geometry was found on.
        affine: 2x3, row by row, px of the clip's best file -> crop px.
        scene: number of the scene that the frame lies in, from 0.
        face_px, sharpness, yaw_deg, pitch_deg, roll_deg, inside_share: see `faces/measures.py`.
        alteration: mean |difference| to the original's crop over the face, grey levels; None where they cannot be
            compared.
        unaltered: whether a frame of a manipulated clip shows the original unchanged; None where that is not known.
        frames: quality -> frame number in that file, where it differs from `frame`.
        affines: quality -> affine of that file, where it differs from `affine`.
        crops: quality -> uint8 (size_px, size_px, 3) RGB; empty unless ok.
    """

    dataset: str
    group: str
    method: str
    name: str
    label: int | None
    split: str
    target: str
    source: str
    frame: int
    face: int
    status: str
    geometry: str = ""
    detector: str = ""
    score: float | None = None
    box_xyxy: list[float] | None = None
    landmarks_xy: list[float] | None = None
    affine: list[float] | None = None
    mask_share: float | None = None
    scene: int | None = None
    face_px: float | None = None
    sharpness: float | None = None
    yaw_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None
    inside_share: float | None = None
    alteration: float | None = None
    unaltered: bool | None = None
    frames: dict[str, int] = field(default_factory=dict)
    affines: dict[str, list[float]] = field(default_factory=dict)
    crops: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


def pack_schema(qualities: Sequence[str]) -> pa.Schema:
    """Columns of a pack's table."""
    fields = [
        *((name, pa.string()) for name in ("dataset", "group", "method", "name", "split", "target", "source")),
        ("label", pa.int8()),
        ("frame", pa.int32()),
        ("face", pa.int16()),
        ("status", pa.string()),
        ("geometry", pa.string()),
        ("detector", pa.string()),
        ("score", pa.float32()),
        ("box_xyxy", pa.list_(pa.float32(), 4)),
        ("landmarks_xy", pa.list_(pa.float32(), 10)),
        ("affine", pa.list_(pa.float64(), 6)),
        ("mask_share", pa.float32()),
        ("scene", pa.int16()),
        *((name, pa.float32()) for name in MEASURES),
        ("alteration", pa.float32()),
        ("unaltered", pa.bool_()),
    ]
    for quality in qualities:
        fields += [
            (f"{quality}_offset", pa.int64()),
            (f"{quality}_size", pa.int32()),
            (f"{quality}_pixels_sha256", pa.string()),
            (f"{quality}_psnr_db", pa.float32()),
            (f"{quality}_frame", pa.int32()),
            (f"{quality}_affine", pa.list_(pa.float64(), 6)),
            (f"{quality}_sync", pa.string()),
            *((f"{quality}_sync_{name}", kind) for name, kind in _EVIDENCE.items()),
        ]
    return pa.schema(fields)


def pack_paths(folder: Path, dataset: str, group: str) -> tuple[Path, Path]:
    """(tar, parquet) of a group below an output folder."""
    if not _NAME.fullmatch(group) or not _NAME.fullmatch(dataset):
        raise ValueError(f"group and dataset must match {_NAME.pattern}, got {dataset!r}, {group!r}")
    base = folder / dataset / group
    return base.with_name(base.name + ".tar"), base.with_name(base.name + ".parquet")


def write_pack(
    folder: Path,
    dataset: str,
    group: str,
    rows: Sequence[Row],
    files: Sequence[FileRecord],
    qualities: Sequence[str],
    meta: dict[str, Any],
    timer: StageTimer | None = None,
) -> int:
    """Write one group's pack; returns the size of its tar in bytes.

    The tar gets `<method>/<name>/<frame:06d>_<face>.<quality>.png` for every ok row, in the rows' order; the parquet
    is renamed into place last, so a pack with a parquet is complete.

    Args:
        meta: `config_hash`, `config`, `notes` and the like, stored as JSON in the parquet's metadata.
        timer: takes the seconds of the stage `encode`.
    """
    tar_path, table_path = pack_paths(folder, dataset, group)
    tar_path.parent.mkdir(parents=True, exist_ok=True)
    table_path.unlink(missing_ok=True)  # never an old table beside a new tar
    schema = pack_schema(qualities)
    sync = {(f.method, f.clip, f.quality): f.sync or {} for f in files}
    timer = timer or StageTimer()
    records = []
    with atomic_file(tar_path) as file:
        tar = TarWriter(file)
        for row in rows:
            record = {name: getattr(row, name, None) for name in schema.names}
            for quality in qualities:
                record |= _of_file(row, quality, sync.get((row.method, row.name, quality), {}))
                if row.status == "ok":
                    record |= _add_crop(tar, row, quality, row.crops[qualities[0]], timer)
            records.append(record)
        tar.finish()
    text = json.dumps(
        {
            **meta,
            "format_version": FORMAT_VERSION,
            "qualities": list(qualities),
            "files": [asdict(f) for f in files],
        },
        sort_keys=True,
    )
    table = pa.Table.from_pylist(records, schema=schema).replace_schema_metadata({_META_KEY: text.encode()})
    with atomic_file(table_path) as file:
        pq.write_table(table, file, compression="zstd")
    return tar_path.stat().st_size


def _of_file(row: Row, quality: str, evidence: dict[str, Any]) -> dict[str, Any]:
    """The columns that say where in a quality's file a row lies, and what was proved of that file."""
    record = {f"{quality}_sync_{name}": evidence.get(name) for name in _EVIDENCE}
    record[f"{quality}_sync"] = evidence.get("verdict")
    record[f"{quality}_frame"] = row.frames.get(quality, row.frame)
    record[f"{quality}_affine"] = row.affines.get(quality)
    return record


def _add_crop(tar: TarWriter, row: Row, quality: str, best: np.ndarray, timer: StageTimer) -> dict[str, Any]:
    """Write one crop; its columns."""
    from qadprep.codecs import pixel_hash
    from qadprep.crops import encode_png, psnr_db

    crop = row.crops[quality]
    with timer.stage("encode"):
        data = encode_png(crop)
    offset, size = tar.add(f"{row.method}/{row.name}/{row.frame:06d}_{row.face}.{quality}.png", data)
    return {
        f"{quality}_offset": offset,
        f"{quality}_size": size,
        f"{quality}_pixels_sha256": pixel_hash(crop),
        f"{quality}_psnr_db": psnr_db(best, crop),
    }


@dataclass(frozen=True)
class Pack:
    """A finished pack as read back: `table` one row an attempted tuple, `meta` the stored JSON."""

    tar: Path
    table: pa.Table
    meta: dict[str, Any]

    @property
    def files(self) -> list[FileRecord]:
        """The video files of the group and what became of each."""
        return [FileRecord(**record) for record in self.meta["files"]]


def read_meta(table_path: Path) -> dict[str, Any] | None:
    """The stored JSON of a pack without its rows; None when there is no readable pack."""
    try:
        with table_path.open("rb") as file:  # of a local or a remote folder
            text = (pq.read_schema(file).metadata or {}).get(_META_KEY)
        return json.loads(text) if text else None
    except (OSError, pa.ArrowException, ValueError):
        return None


def read_pack(table_path: Path) -> Pack:
    """Read a pack's table.

    Raises:
        UserError: not a face pack, or its tar is missing.
    """
    meta = read_meta(table_path)
    if meta is None:
        raise UserError(f"{table_path}: not a face pack; write it again with `qadprep extract --overwrite`")
    tar = table_path.with_suffix(".tar")
    if not tar.is_file():
        raise UserError(f"{tar}: missing beside its table; write it again with `qadprep extract`")
    try:
        with table_path.open("rb") as file:
            return Pack(tar, pq.read_table(file), meta)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{table_path}: damaged ({error}); delete it and run `qadprep extract` again") from error


def find_packs(folder: Path) -> list[Path]:
    """The tables of all packs below a folder, sorted by name."""
    return sorted(file for file in folder.glob("*/*.parquet") if not file.name.startswith("."))
