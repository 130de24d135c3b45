"""A validation of a run in progress: scores, the best weights kept, a record and a line for the reader."""

from typing import TYPE_CHECKING

from qadtrain.checkpoint import save_best
from qadtrain.guard import on_main
from qadtrain.live import LiveTable
from qadtrain.tracking import Tracker
from qadtrain.validation import NOT_FINITE, in_words, validate, weights_to_score

if TYPE_CHECKING:
    from qadtrain.trainer import Trainer


def check(trainer: "Trainer", tracker: Tracker, live: LiveTable, kind: str, values: dict[str, float]) -> None:
    """Validate, record it, and keep the weights when they are the best so far. Called on all processes.

    Weights that give an inf or NaN in the validation split are never the best.

    Args:
        trainer: at a step boundary; its position counts the check.
        kind: of the record: ``epoch``, or ``validation`` inside one.
        values: what the record says besides; ``train_ce`` ranks where there is no validation split.

    Raises:
        UserError: a step before was not finite, more damaged tuples than ``data.skip_bad``, a full disk.
    """
    trainer.guard.settle()
    position, best_by = trainer.position, trainer.best_by
    if trainer.val_shards is not None:
        live.status("validating")
        with trainer.watch.paused():
            values |= _scores(trainer)
        live.status("")
    score = values[best_by.name]
    if lost := values.get(NOT_FINITE):
        trainer.say(f"{lost} scores of the validation split are inf or NaN: these weights cannot be the best")
    better = not lost and best_by.is_better(score, position.best_score)
    position.note_check(score, better=better)
    if better:
        average = trainer.average
        note = {"epoch": position.epoch, "step": position.global_step, "by": best_by.text, "score": score}
        weights = average.state_dict() if average else trainer.model
        note |= {"average": average is not None}
        on_main(trainer.ranks, lambda: save_best(trainer.run_dir, weights, note))
        live.best(position.best_text(best_by.name))
    found = values | {"best": better}
    on_main(trainer.ranks, lambda: tracker.record(kind, position.epoch, position.global_step, found))
    epoch = f"epoch {position.epoch + 1}/{trainer.config.optim.epochs}"
    place = f"{epoch} done" if kind == "epoch" else f"{epoch}, step {position.step}/{trainer.steps_per_epoch}"
    trainer.say(f"{place}  {in_words(values, best_by)}{'  (best)' if better else ''}")


def _scores(trainer: "Trainer") -> dict[str, float]:
    """Scores of the validation split; a damaged tuple that is met for the first time is named."""
    known, budget = set(trainer.val_skipped), trainer.config.data.skip_bad
    with weights_to_score(trainer.model, trainer.average, trainer.ranks):
        values = validate(
            trainer.model, trainer.val_shards, trainer.config, trainer.device, trainer.ranks, trainer.val_skipped
        )
    for row in sorted(trainer.val_skipped.keys() - known):
        trainer.say(f"left out of the validation, at most {budget}: {trainer.val_skipped[row]}")
    return values
