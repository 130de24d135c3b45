"""`qadprep compress`: c23 and c40 for datasets that come at one quality, made the way FF++ made its own."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from qadprep.catalog.base import Clip, Dataset, find_dataset, read_dataset
from qadprep.catalog.manifest import write_manifest
from qadprep.compress_files import (
    FOUND,
    JOURNAL_NAME,
    OK,
    ClipTask,
    MadeFile,
    make_files,
    read_journal,
    remove_halves,
    untouched,
    up_to_date,
)
from qadprep.config import Settings, guard_output, write_json
from qadprep.engine import run_tasks
from qadprep.errors import UserError
from qadprep.locks import sole_user
from qadprep.machine import available_cores
from qadprep.progress import progress_bar
from qadprep.quality import expected_crf
from qadprep.ustar import atomic_file

CONFIG_NAME, TABLE_NAME, MANIFEST_NAME = "compress.json", "compress.parquet", "compress-manifest.parquet"


class CompressConfig(Settings):
    """What decides the bytes of the made videos, besides the encoder's version."""

    dataset: str
    crf: tuple[int, ...] = (23, 40)
    pix_fmt: Literal["yuv444p", "yuv420p"] = "yuv444p"
    methods: tuple[str, ...] = Field(default=())
    """Only clips of these methods; empty takes all."""

    @field_validator("crf")
    @classmethod
    def _crf(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) != len(value) or not all(1 <= crf <= 51 for crf in value):
            raise ValueError("expected different x264 CRF values from 1 to 51, such as 23,40")
        return tuple(sorted(value))


@dataclass
class CompressSummary:
    """What a run of `compress` made and kept.

    Attributes:
        made, kept: videos encoded by this run, and those that were there already and are right.
        manifest: the manifest of all qualities, relative to the output folder.
        seconds: wall-clock time.
    """

    files: list[MadeFile] = field(default_factory=list)
    made: int = 0
    manifest: str = ""
    seconds: float = 0.0

    @property
    def usable(self) -> list[MadeFile]:
        """Videos that are there and right, whoever made them."""
        return [file for file in self.files if file.status in (OK, FOUND)]

    @property
    def failures(self) -> list[MadeFile]:
        """The videos that could not be made."""
        return [file for file in self.files if file.status not in (OK, FOUND)]

    @property
    def kept(self) -> int:
        """Videos that were there already and are right."""
        return len(self.usable) - self.made

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            "made": self.made,
            "kept": self.kept,
            "bytes": sum(file.bytes for file in self.usable),
            "frames": sum(file.frames for file in self.usable),
            "failures": [
                {"clip": f.clip, "quality": f.quality, "status": f.status, "message": f.message} for f in self.failures
            ],
            "manifest": self.manifest,
            "seconds": round(self.seconds, 3),
        }


def compress_dataset(
    root: Path, out: Path, config: CompressConfig, *, workers: int = 0, overwrite: bool = False
) -> CompressSummary:
    """Encode every clip's raw file at each CRF; goes on where it stopped.

    `out` becomes a root of the same dataset with all qualities: the originals stay where they are and are linked
    into it. A video appears under its name only when its frame count, size, CRF and pixel format, read back from the
    file, are right. Nothing is written into the dataset itself unless `out` is its root.

    Args:
        root: the dataset's root.
        out: may be `root` itself. A file there that this command did not make is never replaced.
        workers: processes; 0 takes one per core. Does not change the output.
        overwrite: make everything again, also what an earlier run made with other settings.

    Raises:
        UserError: wrong use; nothing has been written then.
    """
    start = time.monotonic()
    entry = find_dataset(config.dataset)
    catalog = read_dataset(config.dataset, root)
    root = catalog.root
    clips = [clip for clip in catalog.clips if not config.methods or clip.method in config.methods]
    if not clips:
        known = ", ".join(sorted({clip.method for clip in catalog.clips}))
        raise UserError(f"--methods {','.join(config.methods)}: no such clip below {root}; it has {known}")
    wanted = [_wanted(clip, entry, config) for clip in clips]
    links = {} if out.resolve() == root.resolve() else _links(root, clips, entry)
    _check_places(root, out, [file.path for files in wanted for file in files if file.path], links)
    summary = CompressSummary()
    with sole_user(out):
        guard_output(out, CONFIG_NAME, config.model_dump(mode="json"), overwrite)
        write_json(out / CONFIG_NAME, config.model_dump(mode="json"))
        for link, target in links.items():
            if not (out / link).exists():
                (out / link).parent.mkdir(parents=True, exist_ok=True)
                (out / link).symlink_to(target.resolve(), target_is_directory=True)
        known = {file.path: file for file in [*read_table(out), *read_journal(out)] if file.status == OK}
        for folder in {(out / file.path).parent for files in wanted for file in files if file.path}:
            remove_halves(folder)
        raw_crf = expected_crf("raw", entry.raw_is_lossless)
        tasks = []
        for files in wanted:
            left = []
            for file in files:
                old = known.get(file.path)
                if file.status != OK:
                    summary.files.append(file)
                elif old and not overwrite and up_to_date(old, file, root, out):
                    summary.files.append(old)
                else:
                    left.append(file)
            if left:
                # Ours only while it is as this command left it.
                ours = frozenset(f.path for f in left if f.path in known and untouched(known[f.path], out))
                tasks.append(ClipTask(root, out, tuple(left), ours, raw_crf))
        _run(tasks, summary, out, known, workers)
        summary.files.sort(key=lambda file: file.path)
        summary.manifest = MANIFEST_NAME
        write_manifest(_all_qualities(clips, entry, summary.usable, root, out), out / MANIFEST_NAME)
    summary.seconds = time.monotonic() - start
    return summary


def _check_places(root: Path, out: Path, paths: Sequence[str], links: dict[Path, Path]) -> None:
    """Nothing may be written into the dataset, nor through a link to anywhere else.

    Raises:
        UserError: a folder of made videos, or the place of a link to the originals, is taken by something else.
    """
    top, data = out.resolve(), root.resolve()
    if top != data and top.is_relative_to(data):
        raise UserError(f"--out {out}: lies inside the dataset; choose a folder outside of it, or {root} itself")
    for folder in sorted({(out / path).parent for path in paths}):
        place = folder.resolve()
        if not place.is_relative_to(top) or (top != data and place.is_relative_to(data)):
            raise UserError(f"{folder}: leads to {place}, outside of --out {out}; nothing is written through links")
    for link, target in links.items():
        place = out / link
        if (place.is_symlink() or place.exists()) and place.resolve() != target.resolve():
            raise UserError(f"{place}: is there and does not lead to {target}; move it away or choose another --out")


def _wanted(clip: Clip, entry: Dataset, config: CompressConfig) -> list[MadeFile]:
    raw = clip.paths.get("raw")
    if raw is None:
        # From another quality the pictures would be compressed twice, which is no quality of FF++'s.
        message = f"{clip.id}: no raw file on disk to make other qualities from"
        return [
            MadeFile(clip.id, f"c{crf}", "", "", crf, config.pix_fmt, status="no_raw", message=message)
            for crf in config.crf
        ]
    return [
        MadeFile(clip.id, f"c{crf}", entry.compressed_path(raw, f"c{crf}"), raw, crf, config.pix_fmt)
        for crf in config.crf
    ]


def _run(
    tasks: Sequence[ClipTask], summary: CompressSummary, out: Path, known: dict[str, MadeFile], workers: int
) -> None:
    with progress_bar("compress", sum(len(task.files) for task in tasks), "videos") as advance:

        def on_result(task: ClipTask, result: tuple[list[MadeFile], int]) -> None:
            files, made = result
            summary.files += files
            summary.made += made
            advance(len(files), files[0].clip)

        def on_crash(task: ClipTask, message: str) -> None:
            summary.files += [dataclasses.replace(file, status="error", message=message) for file in task.files]
            advance(len(task.files), f"{task.files[0].clip}: {message}")

        count = min(workers or available_cores(), max(1, len(tasks)))
        run_tasks(tasks, make_files, on_result, on_crash, workers=count)
    # What this run did not ask for, such as other methods, keeps its entry. A run that ends before this line leaves
    # its entries in the journal.
    _write_table(out, list((known | {file.path: file for file in summary.files if file.path}).values()))
    (out / JOURNAL_NAME).unlink(missing_ok=True)


def _linked_path(path: str, entry: Dataset, below_raw: bool) -> str:
    """Where a raw file of the dataset is seen in the output folder."""
    if entry.inner_quality:
        return entry.compressed_path(path, "raw")
    return path if below_raw else f"raw/{path}"


def _links(root: Path, clips: Sequence[Clip], entry: Dataset) -> dict[Path, Path]:
    """Folder below the output -> folder of the dataset: the originals appear by links, never by copies.

    Raises:
        UserError: raw videos of one method lie in two folders, and one link cannot lead to both.
    """
    if not entry.inner_quality:
        return {Path("raw"): root / "raw" if _below_raw(clips) else root}
    links: dict[Path, Path] = {}
    for clip in clips:
        raw = clip.paths.get("raw")
        seen = [(_linked_path(raw, entry, False), raw)] if raw else []
        for there, path in [*seen, *([(clip.mask, clip.mask)] if clip.mask else [])]:
            target = root / Path(path).parent
            if links.setdefault(Path(there).parent, target) != target:
                other = links[Path(there).parent]
                raise UserError(f"{target} and {other} both hold such videos; put them into one, or use --out {root}")
    return links


def _below_raw(clips: Sequence[Clip]) -> bool:
    """Whether the dataset itself lies in a folder `raw` of its root, as an earlier `compress` leaves it."""
    return all(clip.paths["raw"].startswith("raw/") for clip in clips if "raw" in clip.paths)


def _all_qualities(
    clips: Sequence[Clip], entry: Dataset, files: Sequence[MadeFile], root: Path, out: Path
) -> list[Clip]:
    """The clips with their raw file and the made ones, relative to the output folder."""
    made: dict[str, dict[str, str]] = {}
    for file in files:
        made.setdefault(file.clip, {})[file.quality] = file.path
    in_place = out.resolve() == root.resolve()
    below_raw = in_place or _below_raw(clips)
    result = []
    for clip in clips:
        raw, mask = clip.paths.get("raw"), clip.mask
        if raw and not in_place:
            raw = _linked_path(raw, entry, below_raw)
        if mask and not entry.inner_quality and not below_raw:
            mask = f"raw/{mask}"
        result.append(dataclasses.replace(clip, paths=({"raw": raw} if raw else {}) | made.get(clip.id, {}), mask=mask))
    return result


def read_table(out: Path) -> list[MadeFile]:
    """What compress.parquet says of the videos in a folder; empty when it is not there or damaged."""
    try:
        return [MadeFile(**row) for row in pq.read_table(out / TABLE_NAME).to_pylist()]
    except (OSError, pa.ArrowException, TypeError):
        return []


def _write_table(out: Path, files: Sequence[MadeFile]) -> None:
    rows = [dataclasses.asdict(file) for file in sorted(files, key=lambda file: file.path)]
    with atomic_file(out / TABLE_NAME) as file:
        types = {"source_bytes": pa.int64(), "bytes": pa.int64(), "frames": pa.int32(), "width": pa.int32(),
                 "height": pa.int32(), "crf": pa.int16()}  # fmt: skip
        schema = pa.schema([(f.name, types.get(f.name, pa.string())) for f in dataclasses.fields(MadeFile)])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
