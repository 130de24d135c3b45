"""The manifest: a parquet row a clip. Written by `scan`, read by `extract --manifest`."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.catalog.base import ORIGINAL, Clip, sort_clips
from qadprep.errors import UserError

_TEXT = ("dataset", "method", "name", "split", "group", "target", "source")
_PATH = "path_"
_WORD = re.compile(r"[A-Za-z0-9_-]+")


def write_manifest(clips: Sequence[Clip], path: Path) -> None:
    """Write clips as parquet: dataset, method, name, label, split, group, target, source, mask, `path_<quality>`."""
    qualities = sorted({quality for clip in clips for quality in clip.paths}, key=quality_rank)
    columns: dict[str, pa.Array] = {name: pa.array([getattr(c, name) for c in clips], pa.string()) for name in _TEXT}
    columns["label"] = pa.array([c.label for c in clips], pa.int8())
    columns["mask"] = pa.array([c.mask for c in clips], pa.string())
    for quality in qualities:
        columns[_PATH + quality] = pa.array([c.paths.get(quality) for c in clips], pa.string())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(path)


def read_manifest(path: Path) -> list[Clip]:
    """Read a manifest.

    Raises:
        UserError: not a parquet file, a column is missing, or a row that cannot be right.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable manifest ({error}); write it with `qadprep scan`") from error
    missing = [name for name in (*_TEXT, "label", "mask") if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: not a manifest, column {missing[0]!r} is missing; write it with `qadprep scan`")
    qualities = [name.removeprefix(_PATH) for name in table.column_names if name.startswith(_PATH)]
    clips = []
    for row in table.to_pylist():
        paths = {q: row[_PATH + q] for q in qualities if row[_PATH + q]}
        clips.append(Clip(**{name: row[name] for name in (*_TEXT, "label", "mask")}, paths=paths))
    _check(clips, path)
    return sort_clips(clips)


def _check(clips: Sequence[Clip], file: Path) -> None:
    """A manifest may have been edited or made elsewhere: names become file names, paths are opened."""
    seen = set()
    for clip in clips:
        for column in ("dataset", "method", "name", "group", "split"):
            if not _WORD.fullmatch(getattr(clip, column) or ""):
                raise UserError(f"{file}: {column} {getattr(clip, column)!r}; expected letters, digits, _ and - only")
        if clip.label not in (0, 1) or (clip.label == 0) != (clip.method == ORIGINAL):
            raise UserError(
                f"{file}: {clip.id} has label {clip.label}; expected 0 for {ORIGINAL}, 1 for any other method"
            )
        for path in clip.paths.values():
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise UserError(f"{file}: {clip.id} has the path {path!r}; expected one below the dataset's root")
        if clip.id in seen:
            raise UserError(f"{file}: {clip.id} is listed twice")
        seen.add(clip.id)


def quality_rank(quality: str) -> tuple[int, str]:
    """Sort key: best quality first (`raw`, then c0, c23, c40 by their number)."""
    if quality == "raw":
        return -1, quality
    number = quality[1:]
    return (int(number) if quality[:1] == "c" and number.isdigit() else 1000), quality
