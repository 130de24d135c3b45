"""Every stored crop against the frame that the ffmpeg program decodes, warped with the affine that the table stores."""

import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from helpers.by_ffmpeg import decode_all
from qadprep.faces.alignment import warp_face
from qadprep.pack import FileRecord, Pack, find_packs, read_pack
from qadprep.video.place import Place

# Verdicts of files that are cut at the frame and the place of the file that they were tested against.
EXACT = ("reference", "proved", "static")


@dataclass
class Checked:
    """What was compared.

    Attributes:
        tuples: complete tuples; crops: of all qualities.
        verdicts: sync verdict -> crops.
        faults: one line for each crop that is not what it should be.
    """

    tuples: int = 0
    crops: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    faults: list[str] = field(default_factory=list)


def check_packs(out: Path, root: Path, *, damaged: bool = False) -> Checked:
    """Compare every crop of every `ok` row below `out` with its file below `root`, bit for bit.

    `damaged`: files may end in an error of ffmpeg; what it decoded counts.
    """
    result = Checked()
    for table in find_packs(out):
        pack = read_pack(table)
        rows = [row for row in pack.table.to_pylist() if row["status"] == "ok"]
        result.tuples += len(rows)
        for record in pack.files:
            own = [row for row in rows if (row["method"], row["name"]) == (record.method, record.clip)]
            if own and record.quality in pack.meta["qualities"]:
                _check_file(pack, record, own, root, result, damaged)
    return result


def _check_file(
    pack: Pack, record: FileRecord, rows: list[dict[str, Any]], root: Path, result: Checked, damaged: bool
) -> None:
    try:
        frames = decode_all(root / record.path, record.width, record.height)
    except subprocess.CalledProcessError as error:
        if not damaged:
            raise
        size = record.width * record.height * 3
        whole = len(error.stdout) // size * size
        frames = np.frombuffer(error.stdout[:whole], np.uint8).reshape(-1, record.height, record.width, 3)
    best = next(f for f in pack.files if (f.method, f.clip) == (record.method, record.clip))
    size_px = pack.meta["config"]["size_px"]
    for row in rows:
        number, affine = aim(row, record, best)
        stated = row[f"{record.quality}_affine"]
        stated = np.array(row["affine"] if stated is None else stated).reshape(2, 3)
        where = f"{record.path} frame {number} face {row['face']}"
        result.crops += 1
        result.verdicts[record.sync["verdict"]] += 1
        if row[f"{record.quality}_frame"] != number or not np.allclose(stated, affine, atol=1e-9):
            evidence = {name: record.sync[name] for name in ("verdict", "offset_frames", "relation")}
            said = (row[f"{record.quality}_frame"], stated.tolist())
            result.faults.append(f"{where}: the table says {said}, not {affine.tolist()} as follows from {evidence}")
            continue
        if not 0 <= number < len(frames):
            result.faults.append(f"{where}: the file has {len(frames)} frames")
            continue
        with pack.tar.open("rb") as file:
            file.seek(row[f"{record.quality}_offset"])
            data = np.frombuffer(file.read(row[f"{record.quality}_size"]), np.uint8)
        crop = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        wanted = warp_face(frames[number], stated, size_px)
        if crop.shape != wanted.shape:
            result.faults.append(f"{where}: crop is {crop.shape}, expected {wanted.shape}")
        elif not np.array_equal(crop, wanted):
            off = np.abs(crop.astype(int) - wanted.astype(int))
            result.faults.append(f"{where}: {(off > 0).sum()} of {off.size} values differ, by up to {off.max()}")


def aim(row: dict[str, Any], record: FileRecord, best: FileRecord) -> tuple[int, np.ndarray]:
    """(frame number, affine float64 (2, 3)) of a row in one of its clip's files, from the evidence of the sync proof.

    The row counts frames on the group's reference, and its affine is that of the clip's best file. A file shifted by k
    frames shows at i - k what the file that it was tested against shows at i: the best file was tested against the
    reference, the others against the best file.
    """
    affine = np.array(row["affine"]).reshape(2, 3)
    number = row["frame"] - _shift(best)
    if record.quality != best.quality:
        number -= _shift(record)
        if record.sync["verdict"] not in EXACT:
            affine = _place(row, record, best).affine_for_other(affine)
    return number, affine


def _shift(record: FileRecord) -> int:
    return 0 if record.sync["verdict"] in EXACT else record.sync["offset_frames"]


def _place(row: dict[str, Any], record: FileRecord, best: FileRecord) -> Place:
    words = f"{record.quality}_sync_"
    relation = row[f"{words}relation"]
    resized = relation == "resized"
    return Place(
        relation,
        row[f"{words}left_px"],
        row[f"{words}top_px"],
        best.width / record.width if resized else 1.0,
        best.height / record.height if resized else 1.0,
    )
