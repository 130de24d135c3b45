"""`qadprep extract`: a whole dataset -> face packs, over worker processes, going on where it stopped."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import qadprep
from qadprep.catalog.base import Clip, Group, group_clips, read_dataset
from qadprep.catalog.manifest import quality_rank, read_manifest
from qadprep.config import ExtractConfig, guard_output
from qadprep.engine import run_ending, run_tasks
from qadprep.engines import Engine, Setup, check_engine, start_engine
from qadprep.errors import RunEnded, UserError
from qadprep.group_files import remove_made
from qadprep.locks import Held, alone, one_at_a_time, sole_user
from qadprep.pack import find_packs, pack_paths, read_meta
from qadprep.parts import Part, unfinish
from qadprep.progress import progress_bar
from qadprep.protocols import Protocol, select
from qadprep.results import GroupResult
from qadprep.resume import all_finished, join_parts, part_report
from qadprep.store import create, dump_json, is_local, open_folder, read_json, remove, write_json
from qadprep.summary import REPORT_NAME, ExtractSummary, of_last_work
from qadprep.ustar import remove_leftovers
from qadprep.video.encode import crf_of
from qadprep.worker import extract_one, set_up_worker

if TYPE_CHECKING:
    from qadprep.store import Folder

CONFIG_NAME = "extract.json"


def extract(
    root: Path,
    out: "str | Folder",
    config: ExtractConfig,
    *,
    detector: str = "auto",
    weights: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = 0,
    overwrite: bool = False,
    retry_failed: bool = False,
    manifest: Path | None = None,
    protocol: Protocol | None = None,
    drop_leaks: bool = False,
    engine: str = "local",
    address: str | None = None,
    part: Part | None = None,
    say: Callable[[str], None] | None = None,
) -> ExtractSummary:
    """Extract every group of a dataset into face packs.

    Args:
        root: the dataset's root folder.
        out: folder or fsspec URL of the packs, `<dataset>/<group>.tar` and `.parquet`.
        config: what decides the bytes; its `detector` field is filled in here.
        detector: `auto`, `mtcnn` or `retinaface`.
        weights: RetinaFace weights file.
        device: where the detector runs: `auto` takes CUDA where it is there.
        precision: of the detector: `fp32`; on CUDA also `fp16` or `bf16`.
        workers: processes; 0 fits them to cores and memory. Does not change the output.
        overwrite: do everything again, also over packs of another config.
        retry_failed: do those groups again in which something could not be used.
        manifest: read the clips from this file instead of scanning the root.
        protocol: take only the clips that it names.
        drop_leaks: leave out the training clips that share a recording with another split (see catalog/leaks.py).
        engine: `local`, processes of this machine, or `ray`; the same bytes.
        address: of a running Ray cluster, whose nodes see `root` and `out` under the same paths.
        part: do only this share of the groups; the last part to end writes the summary of all.
        say: takes remarks for the user, such as which detector runs.

    Returns:
        The summary of this run: of its part where there is one.

    Raises:
        UserError: wrong use, or another run in the same folder; nothing has been written then.
        RunEnded: the disk is full, or the store cannot be written any more.
    """
    from qadprep.faces import choose_detector, make_detector, settle_device
    from qadprep.video.ffmpeg import ffmpeg_version

    start = time.monotonic()
    say = say or (lambda text: None)
    check_engine(engine, address)
    if part and overwrite:
        raise UserError(
            "--overwrite with --part: the parts would delete each other's packs; empty the folder before the first "
            "part starts, or choose another --out"
        )
    folder = open_folder(out)
    if str(folder).startswith("memory:"):
        raise UserError(f"--out {out}: lies in the memory of one process, and workers are others; name a lasting place")
    root, clips = find_clips(root, config, manifest, protocol, drop_leaks, say)
    check_qualities(clips, config, root)
    name, sentence = choose_detector(detector, weights)
    say(sentence)
    # Loaded here as well, so that missing or broken weights stop the run before any worker starts.
    if engine == "local":
        device = settle_device(device)
        identity = make_detector(name, weights, device, precision=precision).identity()
    else:
        # This machine may lack the GPU that the cluster has; the device is no part of the identity.
        identity = make_detector(name, weights, "cpu").identity()
        identity |= {} if precision == "fp32" else {"precision": precision}
    config = config.model_copy(update={"detector": identity})
    all_groups = group_clips(clips)
    groups = part.take(all_groups) if part else all_groups
    summary = ExtractSummary(detector=sentence, engine=engine, part=str(part or ""))
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(sole_user(folder, part))
        try:
            earlier = read_json(folder / REPORT_NAME)
            todo = _begin(folder, groups, root, config, part, overwrite, retry_failed, summary)
            meta = {"tool": f"qadprep {qadprep.__version__}", "ffmpeg": ffmpeg_version()}
            setup = Setup(root, folder, config, name, weights, device, meta, precision=precision)
            chosen = stack.enter_context(start_engine(engine, address, workers, len(todo), setup, run_tasks))
            summary.workers = chosen.workers
            _run(chosen, todo, summary, held)
            summary.results.sort(key=lambda result: result.group)
            summary.crashed.sort()
            summary.seconds = time.monotonic() - start
            if part is None:
                write_json(folder / REPORT_NAME, of_last_work(summary.as_dict(), earlier))
            else:
                _end_part(folder, part, summary, all_groups, root, config, say)
        except OSError as error:
            fault = run_ending(error)
            if fault is None:
                raise
            with contextlib.suppress(OSError):
                _clean(folder, config.dataset, groups, part)
            done = f"{len(summary.results)} of {len(groups)} groups are done"
            again = "" if "run the same command again" in str(fault) else " and run the same command again"
            raise RunEnded(f"{fault}{again}; {done}") from error
    return summary


def _begin(
    folder: "Folder",
    groups: list[Group],
    root: Path,
    config: ExtractConfig,
    part: Part | None,
    overwrite: bool,
    retry_failed: bool,
    summary: ExtractSummary,
) -> list[Group]:
    """Check and clear the output folder; returns the groups to do, and puts the finished ones into the summary."""
    with one_at_a_time(folder):
        settings = config.model_dump(mode="json")
        guard_output(folder, CONFIG_NAME, settings, overwrite)
        # Parts on several machines may come here at the same time: the first settles it.
        if overwrite or read_json(folder / CONFIG_NAME) is None:
            if part and not is_local(folder) and not create(folder / CONFIG_NAME, dump_json(settings)):
                guard_output(folder, CONFIG_NAME, settings, overwrite)
            else:
                write_json(folder / CONFIG_NAME, settings)
        # Until they are back, the extraction has not come to its end, and `shard` waits.
        unfinish(folder, part)
        if overwrite:
            # Of any dataset: one folder holds packs of one config. Other people's tables are no packs, and stay.
            for table in [table for table in find_packs(folder) if read_meta(table) is not None]:
                remove(table)
                remove(table.with_suffix(".tar"))
        _clean(folder, config.dataset, groups, None if alone(folder, part) else part)
    todo = []
    for group, earlier in zip(groups, all_finished(groups, root, folder, config), strict=True):
        if earlier and not (retry_failed and earlier.failures):
            summary.results.append(earlier)
        else:
            # A pack that is out of date must not outlive a worker that dies on its group.
            remove(pack_paths(folder, group.dataset, group.name)[1])
            todo.append(group)
    if part is None:
        summary.others = len(find_packs(folder)) - len(summary.results)
    return todo


def _clean(folder: "Folder", dataset: str, groups: list[Group], part: Part | None) -> None:
    """Delete temporary files that a killed run left; beside other parts only those of the own groups."""
    if not is_local(folder):
        return
    if part is None:
        remove_leftovers(folder)
        remove_leftovers(folder / dataset)
        remove_made(folder / dataset)
    else:
        remove_leftovers(folder / dataset, {group.name for group in groups})


def _run(engine: Engine, todo: list[Group], summary: ExtractSummary, held: Held) -> None:
    with progress_bar("extract", len(todo), "groups") as advance:

        def on_result(group: Group, result: GroupResult) -> None:
            held()
            summary.results.append(result)
            advance(1, f"{group.name}: {result.tuples} tuples")

        def on_crash(group: Group, message: str) -> None:
            held()
            summary.crashed.append((group.name, message))
            advance(1, f"{group.name}: {message}")

        engine.run_tasks(
            todo,
            extract_one,
            on_result,
            on_crash,
            workers=engine.workers,
            initializer=set_up_worker,
            initargs=engine.setup,
        )
    summary.detectors = engine.statistics()


def _end_part(
    folder: "Folder",
    part: Part,
    summary: ExtractSummary,
    all_groups: list[Group],
    root: Path,
    config: ExtractConfig,
    say: Callable[[str], None],
) -> None:
    """Write the part's report, and the summary of the whole if this part was the last to end."""
    with one_at_a_time(folder):
        write_json(folder / part.report_name, part_report(summary, part, all_groups))
        whole = join_parts(part, all_groups, root, folder, config, say)
        if whole:
            whole.others = len(find_packs(folder)) - len(whole.results)
            write_json(folder / REPORT_NAME, whole.as_dict())
            say(f"all {part.count} parts are done: {folder / REPORT_NAME}")


def find_clips(
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


def check_qualities(clips: list[Clip], config: ExtractConfig, root: Path) -> None:
    found = {quality for clip in clips for quality in clip.paths}
    for quality in config.qualities:
        if quality not in found and not (config.make_qualities and crf_of(quality)):
            there = ",".join(sorted(found, key=quality_rank))
            can_make = ", or --make-qualities to encode it" if crf_of(quality) and not config.make_qualities else ""
            raise UserError(f"{root}: no video of quality {quality!r}; it has {there} (--qualities {there}{can_make})")


def load_config(folder: "Folder") -> ExtractConfig:
    """The config a folder of face packs was written with.

    Raises:
        UserError: no face packs there.
    """
    file = folder / CONFIG_NAME
    settings = read_json(file)
    try:
        return ExtractConfig(**(settings or {}))
    except ValueError as error:
        why = "is not one of this version" if settings else "is missing or damaged"
        raise UserError(f"{folder}: no face packs there ({file} {why}); write them with `qadprep extract`") from error
