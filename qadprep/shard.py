"""`qadprep shard`: face packs -> a shard set. Complete tuples only, shuffled by tuple, the same bytes every time."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qadprep
from qadprep.config import ShardConfig, guard_output
from qadprep.engine import run_ending
from qadprep.errors import RunEnded, UserError
from qadprep.extract_dataset import load_config
from qadprep.locks import Held, reader
from qadprep.shard_format import CARD_NAME, CONFIG_NAME, INDEX_NAME, read_info
from qadprep.shard_output import (
    clear_entries,
    clear_leftovers,
    clear_shards,
    finished_entries,
    note_finished,
    output_folder,
    put,
    refuse_foreign,
    scratch_beside,
    whole_shards,
)
from qadprep.shard_packs import PackSource
from qadprep.shard_plan import Plan, plan_shards
from qadprep.shard_rewrite import rewrite_shards
from qadprep.shard_run import FORMAT, ShardSummary, ShardTask, run_jobs
from qadprep.shard_writer import ENTRIES, put_json
from qadprep.store import is_local, open_folder, read_json

if TYPE_CHECKING:
    from qadprep.store import Folder

__all__ = ["ShardSummary", "rewrite_shards", "shard"]

Entries = dict[str, dict[str, Any]]


def shard(
    faces: "str | Folder",
    out: "str | Folder",
    config: ShardConfig,
    *,
    workers: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] | None = None,
) -> ShardSummary:
    """Write a shard set from the face packs in a folder.

    The order inside a split is by sha256 of (seed, key), or with `balance` evenly over classes: it depends neither on
    the packs' order nor on the machine. PNG files are copied as they are in the packs, with their checksums compared;
    in another codec each crop is proved to have the pack's pixels. A run that was stopped goes on at the next call.

    Args:
        faces: folder or fsspec URL that `extract` wrote.
        out: folder or fsspec URL of the shard set.
        workers: processes; 0 fits them to the work and the machine. Does not change the output.
        overwrite: replace a shard set of another config or of other packs.
        dry_run: only count; nothing is written.
        say: takes remarks for the user.

    Returns:
        The summary; where it says `failed`, damaged packs prevented some shards, and `shards.json` is not there.

    Raises:
        UserError: no packs, packs of several configs, a filter that names what is not there, no complete tuple,
            another shard set in `out`, an `out` among the packs, or an extraction that is writing into `faces`.
        RunEnded: the disk is full, or the store cannot be written any more.
    """
    faces, out = open_folder(faces), open_folder(out)
    extract_config = load_config(faces)
    _refuse_among_packs(out, faces)
    with contextlib.ExitStack() as stack:
        stack.enter_context(reader(faces))  # not while an extraction changes the packs
        task = ShardTask(PackSource(faces, extract_config), out, config, workers, say or (lambda text: None))
        summary, entries = ShardSummary({}, 0, 0, {}), {}
        try:
            if dry_run:
                return _count(task, stack.enter_context(scratch_beside(out, inside=False)))
            held = stack.enter_context(output_folder(out))
            return _write_set(task, overwrite, summary, entries, held)
        except OSError as error:
            fault = run_ending(error)
            if fault is None:
                raise
            if not dry_run:
                with contextlib.suppress(OSError):
                    clear_leftovers(out)
            done = f"; {len(entries)} of {summary.shards} shards are done" if summary.shards else ""
            raise RunEnded(f"{fault} and run the same command again{done}") from error


def _refuse_among_packs(out: "Folder", faces: "Folder") -> None:
    """An index of a shard beside the packs would be taken for a pack.

    Raises:
        UserError: `out` is the folder of the packs, or lies in it.
    """
    if is_local(out) and is_local(faces):
        inside = out.resolve().is_relative_to(faces.resolve())
    else:
        inside = f"{out}/".startswith(f"{str(faces).rstrip('/')}/")
    if inside:
        raise UserError(f"--out {out}: lies in {faces}, the folder of the face packs; choose one outside of it")


def _count(task: ShardTask, scratch: Path) -> ShardSummary:
    """What would be written."""
    plan = plan_shards(task.source, task.config, scratch, wanted=())
    size = sum(planned.bytes for planned in plan.shards)
    return ShardSummary(plan.tuples, len(plan.shards), size, plan.left_out, dry_run=True)


def _write_set(task: ShardTask, overwrite: bool, summary: ShardSummary, entries: Entries, held: Held) -> ShardSummary:
    """Write what is not there yet; finished shards go into `entries` as they come."""
    out = task.out
    refuse_foreign(out)
    guard_output(out, CONFIG_NAME, task.config.model_dump(mode="json"), overwrite)
    clear_leftovers(out)
    earlier = None if overwrite else _finished_set(out)
    if earlier is not None:
        task.source.read_all()
        _guard_packs(task)
        whole = whole_shards(out, earlier) if earlier["config"] == task.described() else {}
        if len(whole) == len(earlier["shardlist"]) and (out / CARD_NAME).is_file():
            clear_entries(out)
            task.say(f"{out}: already finished with these settings and packs; nothing to do")
            size = sum(entry["filesize"] for entry in earlier["shardlist"])
            return ShardSummary(earlier["tuples"], len(whole), size, earlier["left_out"], kept=len(whole))
        task = ShardTask(PackSource(task.source.faces, task.extract), out, task.config, task.workers, task.say)
    with scratch_beside(out, inside=True) as scratch:
        plan = plan_shards(task.source, task.config, scratch)
        described = task.described()
        if not overwrite:
            _guard_packs(task)
        jobs = {planned.name: task.job(planned, out if is_local(out) else scratch) for planned in plan.shards}
        if earlier is not None:
            for name in whole.keys() & jobs.keys():
                if whole[name][0].get("plan") == jobs[name].digest:
                    note_finished(out, scratch, jobs[name].digest, *whole[name])
        noted = {} if overwrite else finished_entries(out)
        entries |= {name: note["entry"] for name, note in noted.items()
                    if name in jobs and note["plan"] == jobs[name].digest}  # fmt: skip
        clear_shards(out, set(entries))
        put_json(scratch, out / CONFIG_NAME, described)  # before any other: by it the folder is known as ours
        if is_local(out):
            (out / ENTRIES).mkdir(exist_ok=True)
        if entries:
            task.say(f"{len(entries)} of {len(jobs)} shards are finished already")
        summary.tuples, summary.left_out, summary.shards = plan.tuples, plan.left_out, len(jobs)
        summary.kept = len(entries)
        run_jobs(task, [job for name, job in jobs.items() if name not in entries], entries, summary, held)
        summary.bytes = sum(entry["filesize"] for entry in entries.values())
        if summary.failed:
            return summary
        _finish(task, scratch, plan, described, [entries[name] for name in jobs])
    clear_entries(out)
    return summary


def _guard_packs(task: ShardTask) -> None:
    """Keep a set of other packs; its settings have been compared before.

    Raises:
        UserError: the set in the output folder was written from other packs.
    """
    noted = read_json(task.out / CONFIG_NAME)
    if noted is not None and noted != task.described():
        raise UserError(
            f"{task.out}: was written from other packs than {task.source.faces} holds now, or by an older version; "
            "choose another --out, or --overwrite to replace it"
        )


def _finished_set(out: "Folder") -> dict[str, Any] | None:
    """`shards.json` of a finished set of this format, or None."""
    if read_json(out / INDEX_NAME) is None:
        return None
    with contextlib.suppress(UserError):
        info = read_info(out)
        return info if info["format_version"] == FORMAT else None
    return None


def _finish(
    task: ShardTask, scratch: Path, plan: Plan, described: dict[str, Any], shardlist: list[dict[str, Any]]
) -> None:
    """Write the card, and `shards.json` last."""
    info = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": f"{task.extract.dataset}-{task.extract.size_px}px",
        "format_version": FORMAT,
        "tool": f"qadprep {qadprep.__version__}",
        "qualities": list(task.qualities),
        "codec": task.config.codec,
        "size_px": task.extract.size_px,
        "tuples": plan.tuples,
        "left_out": plan.left_out,
        "groups_in_several_splits": plan.crossing,
        **task.source.facts(),
        "config_hash": described["config_hash"],
        "config": described,
        "shardlist": shardlist,
    }
    from qadprep.card import write_card

    write_card(scratch / CARD_NAME, info, plan.facts)
    put(scratch / CARD_NAME, task.out / CARD_NAME)
    put_json(scratch, task.out / INDEX_NAME, info)
