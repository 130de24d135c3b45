"""Write some shards of a finished set anew from the packs that it was made of, for `qadprep verify --repair`."""

import contextlib
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.config import ShardConfig
from qadprep.engine import run_ending
from qadprep.errors import RunEnded, UserError
from qadprep.extract_dataset import load_config
from qadprep.locks import reader
from qadprep.shard_format import CONFIG_NAME, INDEX_NAME, read_info
from qadprep.shard_output import clear_leftovers, output_folder, put, scratch_beside
from qadprep.shard_packs import PackSource
from qadprep.shard_plan import plan_shards
from qadprep.shard_run import ShardSummary, ShardTask, run_jobs
from qadprep.shard_writer import CropFault, put_json
from qadprep.store import open_folder, read_json

if TYPE_CHECKING:
    from qadprep.store import Folder


def rewrite_shards(
    faces: "str | Folder", out: "str | Folder", names: Collection[str], faults: list[CropFault] | None = None
) -> list[str]:
    """Write some shards of a finished set anew, from the packs that it was made of.

    A shard is replaced only when its new tar has the hash that `shards.json` says, and its index likewise.

    Args:
        faces: folder or fsspec URL of the packs.
        out: the shard set; its `shards.json` must be whole.
        names: of shards, with or without `.tar` or `.parquet`.
        faults: gets the damaged crops of the packs, for which shards could not be written.

    Returns:
        Those of the names whose shards are right now.

    Raises:
        UserError: the packs are not those that the set was made of, or no such shard.
        RunEnded: the disk is full, or the store cannot be written any more.
    """
    faces, out = open_folder(faces), open_folder(out)
    info = read_info(out)
    known = {entry["url"].removesuffix(".tar"): entry for entry in info["shardlist"]}
    stems = {name: name.removesuffix(".tar").removesuffix(".parquet") for name in names}
    for name, stem in stems.items():
        if stem not in known:
            raise UserError(f"{out}: no shard {name!r} in {INDEX_NAME}")
    config, packs_hash = _config_of(info, out)
    extract_config = load_config(faces)
    with contextlib.ExitStack() as stack:
        stack.enter_context(reader(faces))
        task = ShardTask(PackSource(faces, extract_config), out, config, 0, lambda text: None)
        held = stack.enter_context(output_folder(out))
        clear_leftovers(out)
        try:
            scratch = stack.enter_context(scratch_beside(out, inside=True))
            plan = plan_shards(task.source, config, scratch, wanted=set(stems.values()))
            work = scratch / "made"
            work.mkdir()
            jobs = [task.job(planned, work, entry=False) for planned in plan.shards if planned.file]
            entries: dict[str, dict[str, Any]] = {}
            summary = ShardSummary({}, len(jobs), 0, {})
            run_jobs(task, jobs, entries, summary, held)
            right = {stem for stem in sorted(entries) if _put_back(work, out, entries[stem], known[stem])}
            # Another hash alone tells little: older versions hashed less of the packs.
            same = any(made["sha256"] == known[stem]["sha256"] for stem, made in entries.items())
            if names and not same and not summary.failed and task.source.packs_hash != packs_hash:
                raise UserError(
                    f"{faces}: holds other packs than {out} was made of (packs_hash {task.source.packs_hash[:12]}..., "
                    f"the set's is {packs_hash[:12]}...); name the right folder, or write the set again"
                )
            if faults is not None:
                faults += summary.faults
            if read_json(out / CONFIG_NAME) != info["config"]:
                put_json(scratch, out / CONFIG_NAME, info["config"])
        except OSError as error:
            fault = run_ending(error)
            if fault is None:
                raise
            raise RunEnded(f"{fault} and run the same command again") from error
    return [name for name, stem in stems.items() if stem in right]


def _put_back(work: Path, out: "Folder", made: dict[str, Any], known: dict[str, Any]) -> bool:
    """Put a shard's files in place if they are those that `shards.json` knows; whether both are there then.

    The tar is put back without its index where only that differs: another version of the parquet library makes an
    index of other bytes from the same tuples.
    """
    if made["sha256"] != known["sha256"]:
        return False
    put(work / known["url"], out / known["url"])
    index, noted = out / known["index"], known.get("index_sha256")
    if made["index_sha256"] == noted:
        put(work / known["index"], index)
        return True
    return index.is_file() and hashlib.sha256(index.read_bytes()).hexdigest() == noted


def _config_of(info: dict[str, Any], out: "Folder") -> tuple[ShardConfig, str]:
    """(settings, packs hash) that a set was written with, as its `shards.json` says.

    Raises:
        UserError: it was not written from packs, or its settings do not have the hash that is noted.
    """
    settings = dict(info["config"])
    packs_hash = settings.pop("packs_hash", None)
    settings.pop("extract", None)
    noted = settings.pop("config_hash", None)
    try:
        if packs_hash is None:
            raise ValueError("made from other sets, or by an older version")
        config = ShardConfig(**settings)
        if config.hash(packs_hash) != noted:
            raise ValueError("its settings were changed afterwards")
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{out}: was not written by this version's `qadprep shard` from packs ({first})") from error
    return config, packs_hash
