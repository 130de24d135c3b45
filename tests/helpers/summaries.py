"""Packs written directly, with every outcome that a summary must tell, without any video."""

from pathlib import Path

import numpy as np

from qadprep.pack import FileRecord, Row, read_pack, write_pack
from qadprep.results import GroupResult, facts_of, summarise

QUALITIES = ("raw", "c40")
DETAIL = "offset changes from 0 to +1 at frame 230"


def sync(verdict: str, offset: int = 0, margin: float = 1.0, residual: float = 0.0, **place: object) -> dict:
    """A file's evidence as `Sync.as_dict` gives it."""
    known = {
        "verdict": verdict, "offset_frames": offset, "margin": margin, "residual": residual, "instants": 9,
        "agreeing": 9, "detail": "", "region": "whole", "relation": "equal", "left_px": 0.0, "top_px": 0.0,
        "scale_x": 1.0, "scale_y": 1.0, "place_residual": 0.0, "place_margin": 1.0,
    }  # fmt: skip
    return known | place


def row(method: str, name: str, frame: int, status: str = "ok", geometry: str = "reference", **values: object) -> Row:
    """One attempted tuple; pictures of one colour where it is ok."""
    crops = {q: np.full((16, 16, 3), frame, np.uint8) for q in QUALITIES} if status == "ok" else {}
    split = str(values.pop("split", "train"))
    return Row(
        "ffpp", name[:3], method, name, int(method != "original"), split, name[:3], "", frame, 0, status,
        geometry=geometry, crops=crops, **values,
    )  # fmt: skip


def record(method: str, clip: str, quality: str, status: str = "ok", **values: object) -> FileRecord:
    """One file."""
    path = f"{method}/{quality}/{clip}.mp4"
    message = f"{path}: {status}" if status != "ok" else ""
    return FileRecord(clip, method, quality, path, status, message, 1000, **values)


def eventful() -> tuple[list[Row], list[FileRecord]]:
    """One group: an original, a shifted and a placed fake, a refused file, an unaltered frame, and one reason each."""
    rows = [row("original", "071", frame) for frame in (1, 2, 3)]
    rows += [row("original", "071", 4, "no_face", "")]
    rows += [row("Deepfakes", "071_054", 1, unaltered=True), *(row("Deepfakes", "071_054", f) for f in (2, 3))]
    rows += [row("Deepfakes", "071_054", 4, "no_face", "")]
    rows += [row("FaceSwap", "071_054", frame, geometry="own", split="val") for frame in (1, 2)]
    rows += [row("FaceSwap", "071_054", 3, "small_face", "own", split="val")]
    rows += [row("NeuralTextures", "071_054", frame, "sync_refused", "") for frame in (1, 2, 3)]
    files = [
        record("original", "071", "raw", sync=sync("reference")),
        record("original", "071", "c40", sync=sync("proved", margin=0.4, residual=2.5)),
        record("Deepfakes", "071_054", "raw", sync=sync("shifted", 2, 0.9, 1.0)),
        record("Deepfakes", "071_054", "c40", sync=sync("proved", margin=0.2, residual=3.0)),
        record("FaceSwap", "071_054", "raw", sync=sync("proved", relation="centre_crop", left_px=80.0)),
        record("FaceSwap", "071_054", "c40", sync=sync("static", margin=0.01, residual=1.5)),
        record("NeuralTextures", "071_054", "raw", sync=sync("reference")),
        record(
            "NeuralTextures", "071_054", "c40", "sync_refused",
            sync=sync("refused", 3, 0.0, 40.0, detail=DETAIL),
        ),
    ]  # fmt: skip
    return rows, files


def written(folder: Path, group: str, rows: list[Row], files: list[FileRecord], **counts: int) -> GroupResult:
    """The result of a group as it is taken from its pack."""
    size = write_pack(
        folder, "ffpp", group, rows, files, QUALITIES, {"config_hash": "x", "notes": [], "counts": counts}
    )
    pack = read_pack(folder / "ffpp" / f"{group}.parquet")
    result = summarise(group, facts_of(pack.table), pack.files, pack.meta["notes"])
    result.pack_bytes, result.counts = size, pack.meta["counts"]
    return result
