"""Scores that a run already has on a shard set, or new ones where it has none."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadtrain.checkpoint import checkpoint_path, read_run_json
from qadtrain.data import open_split
from qadtrain.evaluate import CHECKPOINTS, REPORT_NAME, eval_folder, evaluate
from qadtrain.safe_files import sha256_of
from qadtrain.score_files import SCORES_NAME, KeptScores, read_scores


@dataclass(frozen=True)
class Scored:
    """A run's scores on a split.

    Attributes:
        scores: as read back from the folder.
        contents: of its report.json.
        made: whether they were made now.
    """

    scores: KeptScores
    contents: dict[str, Any]
    folder: Path
    made: bool

    @property
    def fingerprint(self) -> str:
        return self.contents["shards"]["fingerprint"]


def kept_or_made(
    run_dir: Path,
    shards_path: Path | str,
    *,
    split: str,
    checkpoint: str = "best",
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Scored:
    """Kept scores of this very checkpoint on this very shard set, or else those of :func:`evaluate`, which it calls.

    Args:
        say: takes a line that says where the scores are from.
        options: of :func:`evaluate`, for when it must score.

    Raises:
        UserError: as :func:`evaluate`.
    """
    read_run_json(run_dir)
    _check_checkpoint(run_dir, checkpoint)
    with open_split(shards_path, split) as shards:
        fingerprint = shards.fingerprint
    folder = eval_folder(run_dir, shards_path, split, checkpoint, fingerprint)
    found = [kept for kept in kept_scores(run_dir, split, checkpoint) if kept.fingerprint == fingerprint]
    if found:
        say(f"{run_dir}: scores kept in {found[0].folder}")
        return found[0]
    # The intervals of a single run are not asked for here, and cost more than the rest of the figures.
    _, contents, folder = evaluate(
        run_dir, shards_path, split=split, checkpoint=checkpoint, out_dir=folder, **({"bootstrap": 0} | options)
    )
    say(f"{run_dir}: scored, kept in {folder}")
    return Scored(read_scores(folder / SCORES_NAME), contents, folder, made=True)


def kept_scores(run_dir: Path, split: str, checkpoint: str) -> Iterator[Scored]:
    """Whole results in ``RUN/eval`` of a split and of the checkpoint as it is now; others are passed over."""
    weights = sha256_of(checkpoint_path(run_dir, checkpoint))
    for path in sorted((Path(run_dir) / "eval").glob(f"*/{REPORT_NAME}")):
        try:
            contents = json.loads(path.read_text("utf-8"))
            known = contents["checkpoint"]["weights_sha256"], contents["split"], contents["checkpoint"]["name"]
            if known == (weights, split, checkpoint) and contents["shards"]["fingerprint"]:
                yield Scored(read_scores(path.parent / SCORES_NAME), contents, path.parent, made=False)
        except (OSError, ValueError, KeyError, TypeError, UserError):
            continue


def common_scores(runs: Sequence[Path], split: str, checkpoint: str) -> list[Scored]:
    """Kept scores of each run, all on the one shard set that all of them are scored on.

    Raises:
        UserError: there is no such set, or more than one.
    """
    kept = []
    for run in runs:
        read_run_json(run)
        _check_checkpoint(run, checkpoint)
        kept.append({scored.fingerprint: scored for scored in kept_scores(run, split, checkpoint)})
    both = sorted(set.intersection(*(set(found) for found in kept)))
    if len(both) == 1:
        return [found[both[0]] for found in kept]
    if both:
        folders = ", ".join(kept[0][mark].folder.name for mark in both)
        raise UserError(
            f"--shards: several sets are scored by all runs ({folders}), expected one; name it with --shards"
        )
    there = "; ".join(
        f"{run}: {', '.join(f'{mark[:8]} ({s.folder.name})' for mark, s in found.items()) or 'none'}"
        for run, found in zip(runs, kept, strict=True)
    )
    raise UserError(
        f"no shard set whose split {split!r} is scored with checkpoint {checkpoint} by all runs; kept scores by "
        f"fingerprint: {there}. Name the set with --shards, and it is scored now"
    )


def _check_checkpoint(run_dir: Path, checkpoint: str) -> None:
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    path = checkpoint_path(run_dir, checkpoint)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; `qadtrain fit` writes it at the end of the first epoch")
