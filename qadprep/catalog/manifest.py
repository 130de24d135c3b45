"""The manifest: a parquet row a clip. Written by `scan`, read by `extract --manifest`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qadprep.catalog.base import MAX_NAME, ORIGINAL, Clip, sort_clips
from qadprep.errors import UserError
from qadprep.shard_format import SPLIT
from qadprep.ustar import atomic_file

_TEXT = ("dataset", "method", "name", "split", "group", "target", "source")
_NAMES = ("dataset", "method", "name", "group", "split")
_PATH = "path_"
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FACES = ("largest", "all")
# Rows that exist twice in memory while a manifest is written or read, as objects and as columns.
_ROWS_AT_ONCE = 10_000


def write_manifest(clips: Sequence[Clip], path: Path) -> None:
    """Write clips as parquet, a row each.

    Columns: dataset, method, name, split, group, target, source, label, mask, faces, `path_<quality>` for each quality
    that any clip has, best first. The file appears only when complete.
    """
    qualities = sorted({quality for clip in clips for quality in clip.paths}, key=quality_rank)
    schema = pa.schema(
        [(name, pa.string()) for name in _TEXT]
        + [("label", pa.int8()), ("mask", pa.string()), ("faces", pa.string())]
        + [(_PATH + quality, pa.string()) for quality in qualities]
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(clips), _ROWS_AT_ONCE):
            part = clips[start : start + _ROWS_AT_ONCE]
            columns = [[getattr(clip, name) for clip in part] for name in (*_TEXT, "label", "mask", "faces")]
            columns += [[clip.paths.get(quality) for clip in part] for quality in qualities]
            arrays = [pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def read_manifest(path: Path) -> list[Clip]:
    """Read a manifest; one without the column `faces` follows the largest face of every clip.

    Raises:
        UserError: not a parquet file, a column is missing or of the wrong type, or a row that cannot be right.
    """
    try:
        with pq.ParquetFile(path) as file:
            qualities = _check_columns(file.schema_arrow, path)
            wanted = (*_TEXT, "label", "mask", *([] if "faces" not in file.schema_arrow.names else ["faces"]))
            columns = [*wanted, *(_PATH + quality for quality in qualities)]
            # The few different words of a column are kept once, not once a row.
            words: dict[str, str] = {}
            clips = []
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                clips += _clips(batch, qualities, words)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable manifest ({reason}); write it with `qadprep scan`") from error
    _check(clips, path)
    return sort_clips(clips)


def _check_columns(schema: pa.Schema, file: Path) -> list[str]:
    """The qualities of a manifest, best first."""
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise UserError(f"{file}: not a manifest, column {doubled[0]!r} is there twice; write it with `qadprep scan`")
    for name in (*_TEXT, "label", "mask"):
        if name not in schema.names:
            raise UserError(f"{file}: not a manifest, column {name!r} is missing; write it with `qadprep scan`")
    for name in schema.names:
        kind = schema.field(name).type
        if name == "label":
            right, expected = pa.types.is_integer(kind), "whole numbers"
        elif name in (*_TEXT, "mask", "faces") or name.startswith(_PATH):
            # A column without a single value has the type `null`.
            right, expected = _is_text(kind) or pa.types.is_null(kind), "text"
        else:
            continue  # a column of the user's own
        if not right:
            raise UserError(f"{file}: column {name!r} is of type {kind}; expected {expected}")
    qualities = [name.removeprefix(_PATH) for name in schema.names if name.startswith(_PATH)]
    return sorted(qualities, key=quality_rank)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _clips(batch: pa.RecordBatch, qualities: Sequence[str], words: dict[str, str]) -> Iterable[Clip]:
    """The rows of a batch as clips, unchecked."""

    def column(name: str) -> list[Any]:
        return batch.column(name).to_pylist()

    def few(name: str) -> list[Any]:
        return [value if value is None else words.setdefault(value, value) for value in column(name)]

    paths = [column(_PATH + quality) for quality in qualities]
    faces = few("faces") if "faces" in batch.schema.names else [FACES[0]] * batch.num_rows
    texts = zip(
        few("dataset"),
        few("method"),
        column("name"),
        column("label"),
        few("split"),
        few("group"),
        (value or "" for value in few("target")),
        (value or "" for value in few("source")),
        column("mask"),
        faces,
        zip(*paths, strict=True) if paths else ((),) * batch.num_rows,
        strict=True,
    )
    for dataset, method, name, label, split, group, target, source, mask, face, places in texts:
        there = {quality: place for quality, place in zip(qualities, places, strict=True) if place}
        yield Clip(dataset, method, name, label, split, group, target, source, there, mask or None, face)


def _check(clips: Sequence[Clip], file: Path) -> None:
    """A manifest may have been edited or made elsewhere: names become file names, paths are opened."""
    seen: set[str] = set()
    known: set[str] = set()  # words that passed before
    originals: set[tuple[str, str]] = set()
    for clip in clips:
        for column in _NAMES:
            word = getattr(clip, column)
            if word in known:
                continue
            if not isinstance(word, str) or not _WORD.fullmatch(word):
                raise UserError(f"{file}: {column} {word!r}; expected letters, digits, _ and - only")
            known.add(word)
        if not SPLIT.fullmatch(clip.split):  # shards are named after it
            raise UserError(
                f"{file}: split {clip.split!r} of {clip.id}; expected a word of at most 16 small letters and digits, "
                "such as train"
            )
        if len(clip.id) > MAX_NAME or len(clip.group) > MAX_NAME:
            raise UserError(f"{file}: {clip.id[:40]}...: names are too long, at most {MAX_NAME} characters fit")
        if clip.label not in (0, 1) or (clip.label == 0) != (clip.method == ORIGINAL):
            raise UserError(
                f"{file}: {clip.id} has label {clip.label}; expected 0 for {ORIGINAL}, 1 for any other method"
            )
        if clip.faces not in FACES:
            raise UserError(f"{file}: {clip.id} has faces {clip.faces!r}; expected {' or '.join(FACES)}")
        for path in (*clip.paths.values(), *([clip.mask] if clip.mask else [])):
            if not lies_below(path):
                raise UserError(f"{file}: {clip.id} has the path {path!r}; expected one below the dataset's root")
        if (name := clip.id) in seen:
            raise UserError(f"{file}: {name} is listed twice")
        seen.add(name)
        if clip.method == ORIGINAL:
            if (clip.dataset, clip.group) in originals:
                raise UserError(
                    f"{file}: group {clip.group!r} of {clip.dataset} has two clips with method {ORIGINAL!r}; "
                    "expected one at most"
                )
            originals.add((clip.dataset, clip.group))


def lies_below(path: str) -> bool:
    """Whether a path of a manifest stays below the dataset's root, by its text alone.

    A path is that of a file, of a folder of pictures (slash at its end), or `<tar>::<folder inside>`; of the last, both
    sides must stay below, each by itself.
    """
    if not path or _CONTROL.search(path) or path.startswith(("/", "::")):
        return False
    # Most paths hold neither, and the full check is ten times slower.
    if ".." not in path and "::" not in path:
        return True
    return not any(part.startswith("/") or ".." in part.split("/") for part in path.split("::"))


def quality_rank(quality: str) -> tuple[int, str]:
    """Sort key: best quality first (`raw`, then c0, c23, c40 by their number)."""
    if quality == "raw":
        return -1, quality
    number = quality[1:]
    return (int(number) if quality[:1] == "c" and number.isdecimal() else 1000), quality
