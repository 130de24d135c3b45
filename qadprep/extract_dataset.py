"""`qadprep extract`: a whole dataset -> face packs, over worker processes, going on where it stopped."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import qadprep
from qadprep.catalog.base import Clip, Group, group_clips, read_dataset
from qadprep.catalog.manifest import quality_rank, read_manifest
from qadprep.config import ExtractConfig, guard_output, write_json
from qadprep.engine import available_cores, run_tasks, sole_user
from qadprep.errors import UserError
from qadprep.extract import describe, extract_group
from qadprep.group_files import MASK, remove_made, size_of
from qadprep.pack import find_packs, pack_paths, read_meta, read_pack
from qadprep.progress import progress_bar
from qadprep.protocols import Protocol, select
from qadprep.results import GroupResult, summarise
from qadprep.ustar import remove_leftovers
from qadprep.video.encode import crf_of

CONFIG_NAME = "extract.json"
REPORT_NAME = "extract-report.json"


@dataclass
class ExtractSummary:
    """What a run of `extract` left in the output folder, groups of earlier runs included.

    Attributes:
        results: one entry a group, sorted by group.
        crashed: (group, message) of groups that ended with an unexpected error or whose worker died; they have no
            pack.
        others: packs in the folder of groups that this run did not name (another manifest, videos taken away).
        detector: the sentence that says which detector ran and why.
        seconds: wall-clock seconds of this run.
    """

    results: list[GroupResult] = field(default_factory=list)
    crashed: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0
    detector: str = ""
    seconds: float = 0.0
    workers: int = 1

    @property
    def failed(self) -> bool:
        """Whether anything could not be used."""
        return bool(self.crashed) or any(result.failures for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`, extract-report.json)."""
        return {
            "groups": len(self.results),
            "packs_of_other_groups": self.others,
            "groups_skipped": sum(result.skipped for result in self.results),
            "tuples": sum(result.tuples for result in self.results),
            "statuses": add_up(result.statuses for result in self.results),
            "sync": add_up(result.sync for result in self.results),
            "failures": [
                {"group": r.group, "what": what, "status": status, "message": message}
                for r in self.results
                for what, status, message in r.failures
            ]
            + [{"group": group, "what": group, "status": "error", "message": m} for group, m in self.crashed],
            "notes": [{"clip": clip, "note": note} for r in self.results for clip, note in r.notes],
            "pack_bytes": sum(result.pack_bytes for result in self.results),
            "stage_seconds": {k: round(v, 3) for k, v in add_up(r.seconds for r in self.results).items()},
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "detector": self.detector,
        }


def add_up(parts: Any) -> dict[str, Any]:
    """Sum dictionaries of numbers key by key; keys sorted."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))


def extract(
    root: Path,
    out: Path,
    config: ExtractConfig,
    *,
    detector: str = "auto",
    weights: Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    overwrite: bool = False,
    retry_failed: bool = False,
    manifest: Path | None = None,
    protocol: Protocol | None = None,
    drop_leaks: bool = False,
    say: Callable[[str], None] | None = None,
) -> ExtractSummary:
    """Extract every group of a dataset into face packs.

    Args:
        root: the dataset's root folder.
        out: folder of the packs, `<dataset>/<group>.tar` and `.parquet`.
        config: what decides the bytes; its `detector` field is filled in here.
        detector: `auto`, `mtcnn` or `retinaface`.
        weights: RetinaFace weights file.
        workers: processes; 0 takes one per core. Does not change the output.
        overwrite: do everything again, also over packs of another config.
        retry_failed: do those groups again in which something could not be used.
        manifest: read the clips from this file instead of scanning the root.
        protocol: take only the clips that it names.
        drop_leaks: leave out the training clips that share a recording with another split (see catalog/leaks.py).
        say: takes remarks for the user, such as which detector runs.

    Raises:
        UserError: wrong use; nothing has been written then.
    """
    from qadprep.faces import choose_detector, make_detector
    from qadprep.video.ffmpeg import ffmpeg_version

    start = time.monotonic()
    root, clips = _find_clips(root, config, manifest, protocol, drop_leaks, say or (lambda text: None))
    _check_qualities(clips, config, root)
    name, sentence = choose_detector(detector, weights)
    if say:
        say(sentence)
    # Loaded here as well, so that missing or broken weights stop the run before any worker starts.
    identity = make_detector(name, weights, device).identity()
    config = config.model_copy(update={"detector": identity})
    groups = group_clips(clips)
    cores = available_cores()
    workers = min(workers or cores, len(groups))
    summary = ExtractSummary(detector=sentence, workers=workers)
    with sole_user(out):
        meta = {"tool": f"qadprep {qadprep.__version__}", "ffmpeg": ffmpeg_version()}
        guard_output(out, CONFIG_NAME, config.model_dump(mode="json"), overwrite)
        # Until it is back, the extraction has not come to its end, and `shard` waits.
        (out / REPORT_NAME).unlink(missing_ok=True)
        if overwrite:
            for table in find_packs(out):  # of any dataset: one folder holds packs of one config
                table.unlink()
                table.with_suffix(".tar").unlink(missing_ok=True)
        write_json(out / CONFIG_NAME, config.model_dump(mode="json"))
        remove_leftovers(out / config.dataset)
        remove_made(out / config.dataset)
        todo = []
        for group in groups:
            earlier = _finished(group, root, out, config)
            if earlier and not (retry_failed and earlier.failures):
                summary.results.append(earlier)
            else:
                # A pack that is out of date must not outlive a worker that dies on its group.
                pack_paths(out, group.dataset, group.name)[1].unlink(missing_ok=True)
                todo.append(group)
        summary.others = len(find_packs(out)) - len(summary.results)
        with progress_bar("extract", len(todo), "groups") as advance:

            def on_result(group: Group, result: GroupResult) -> None:
                summary.results.append(result)
                advance(1, f"{group.name}: {result.tuples} tuples")

            def on_crash(group: Group, message: str) -> None:
                summary.crashed.append((group.name, message))
                advance(1, f"{group.name}: {message}")

            run_tasks(
                todo,
                extract_one,
                on_result,
                on_crash,
                workers=workers,
                initializer=set_up_worker,
                initargs=(root, out, config, name, weights, device, meta, max(1, cores // workers)),
            )
        summary.results.sort(key=lambda result: result.group)
        summary.crashed.sort()
        summary.seconds = time.monotonic() - start
        write_json(out / REPORT_NAME, summary.as_dict())
    return summary


def _find_clips(
    root: Path,
    config: ExtractConfig,
    manifest: Path | None,
    protocol: Protocol | None,
    drop_leaks: bool,
    say: Callable[[str], None],
) -> tuple[Path, list[Clip]]:
    """(the folder that paths are relative to, the clips of this run)."""
    if protocol:
        protocol.check_dataset(config.dataset)
    if manifest is None:
        catalog = read_dataset(config.dataset, root)
        root, clips = catalog.root, catalog.clips
        untaken = len(catalog.ignored) + len(catalog.gaps)
        if untaken:
            say(f"{root}: {untaken} files or list entries do not fit the layout; `qadprep scan` lists them")
    else:
        root = root if root.is_dir() else root.parent
        clips = [clip for clip in read_manifest(manifest) if clip.dataset == config.dataset]
        if not clips:
            raise UserError(f"{manifest}: no clip of dataset {config.dataset!r} in it")
    if drop_leaks:
        from qadprep.catalog.leaks import drop_leaks as drop
        from qadprep.catalog.leaks import find_leaks

        clips, dropped = drop(clips, find_leaks(config.dataset, clips))
        say(f"--drop-leaks: {len(dropped)} training clips share a recording with another split and are left out")
    if protocol:
        selection = select(clips, protocol, config.seed)
        clips = selection.clips
        for (method, split), (have, wanted) in sorted(selection.short.items()):
            say(f"{protocol.name}: {have} of {wanted} videos of {method}/{split} are on disk")
        if not clips:
            raise UserError(f"{root}: no clip that protocol {protocol.name!r} asks for")
    return root, clips


def _check_qualities(clips: list[Clip], config: ExtractConfig, root: Path) -> None:
    found = {quality for clip in clips for quality in clip.paths}
    for quality in config.qualities:
        if quality not in found and not (config.make_qualities and crf_of(quality)):
            there = ",".join(sorted(found, key=quality_rank))
            can_make = ", or --make-qualities to encode it" if crf_of(quality) and not config.make_qualities else ""
            raise UserError(f"{root}: no video of quality {quality!r}; it has {there} (--qualities {there}{can_make})")


def _finished(group: Group, root: Path, out: Path, config: ExtractConfig) -> GroupResult | None:
    """The stored result of a group whose pack is complete, of this config, and of the files as they are now."""
    tar, table = pack_paths(out, group.dataset, group.name)
    meta = read_meta(table)
    if not meta or meta.get("config_hash") != config.hash() or not tar.is_file():
        return None
    if meta.get("clips") != describe(group):
        return None  # another split or label than then
    now = {(clip.method, clip.name, q): clip.paths.get(q, "") for clip in group.clips for q in config.qualities}
    now |= {(c.method, c.name, MASK): c.mask or "" for c in group.clips if c.faces == "all" and c.label == 1}
    if now != {(f["method"], f["clip"], f["quality"]): f["path"] for f in meta["files"]}:
        return None  # files came or went
    for record in meta["files"]:
        if (size_of(root, record["path"]) if record["path"] else -1) != record["bytes"]:
            return None  # fetched again
        made = record["made"]
        if made and size_of(root, made["from"]) != made["from_bytes"]:
            return None  # made from another file
    try:
        pack = read_pack(table)
    except UserError:
        return None  # damaged: made again
    columns = (pack.table[name].to_pylist() for name in ("method", "name", "status"))
    rows = list(zip(*columns, strict=True))
    result = summarise(group.name, rows, pack.files, [tuple(note) for note in meta["notes"]])
    result.pack_bytes, result.skipped = tar.stat().st_size, True
    return result


_worker: dict[str, Any] = {}


def set_up_worker(
    root: Path,
    out: Path,
    config: ExtractConfig,
    detector: str,
    weights: Path | None,
    device: str,
    meta: dict[str, str],
    threads: int,
) -> None:
    """In each worker: one thread for OpenCV and torch, whose float results may depend on the number of threads."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import cv2
    import torch

    from qadprep.faces import make_detector

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    _worker.update(
        root=root,
        out=out,
        config=config,
        detector=make_detector(detector, weights, device),
        meta=meta,
        threads=threads,
    )


def extract_one(group: Group) -> GroupResult:
    """One group in a worker that `set_up_worker` has prepared."""
    return extract_group(group, **_worker)


def load_config(folder: Path) -> ExtractConfig:
    """The config a folder of face packs was written with.

    Raises:
        UserError: no face packs there.
    """
    file = folder / CONFIG_NAME
    try:
        return ExtractConfig(**json.loads(file.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no face packs there (no readable {CONFIG_NAME}: {error})") from error
