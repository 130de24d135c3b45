"""Where a run is: what a resume needs besides weights, optimiser, moving average and loss scale."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Position:
    """``step`` counts inside the epoch; at ``steps_per_epoch`` only the epoch's validation is left to do."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    ce_sum: float = 0.0  # cross-entropy of the epoch's steps so far, mean over the processes
    ce_steps: int = 0
    best_score: float | None = None
    best_epoch: int | None = None
    checks_since_best: int = 0
    skipped_steps: int = 0  # loss or gradient not finite

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Position":
        """From a checkpoint, also of an earlier version."""
        known = {field.name for field in fields(cls)}
        position = cls(**{name: value for name, value in saved.items() if name in known})
        if "ce_steps" not in saved:
            position.ce_steps = position.step
        if position.best_score is not None:
            position.best_score = abs(position.best_score)  # losses once had a minus sign
        return position

    def keep_place(self, state: Mapping[str, Any], steps_per_epoch: int, batch_tuples: int) -> str:
        """Stay at the same place of the epoch under another batch, at a whole step of the new one.

        The tuples of a new step that was not over are seen once more; none is left out.

        Args:
            state: of the checkpoint; one of an earlier version does not say its batch, which is taken for the same.
            steps_per_epoch, batch_tuples: those of now.

        Returns:
            A line about it; "" where the batch is the same.
        """
        before, old = self.step, state.get("batch_tuples", batch_tuples)
        if old == batch_tuples:
            self.step = min(before, steps_per_epoch)
            return ""
        ended = before >= state["steps_per_epoch"]
        self.step = steps_per_epoch if ended else min(before * old // batch_tuples, steps_per_epoch)
        return (
            f"another batch: step {before} of {state['steps_per_epoch']} of the epoch ({old} tuples each) is now step "
            f"{self.step} of {steps_per_epoch} ({batch_tuples} each)"
        )

    def note_check(self, score: float, *, better: bool) -> None:
        """Count a validation."""
        self.checks_since_best = 0 if better else self.checks_since_best + 1
        if better:
            self.best_score, self.best_epoch = score, self.epoch

    def best_text(self, name: str) -> str:
        """``<name> 0.9123 (epoch 3)``, or "" before the first validation."""
        return "" if self.best_score is None else f"{name} {self.best_score:.4f} (epoch {self.best_epoch + 1})"

    def forget_best(self) -> None:
        """Begin to rank anew, by another metric."""
        self.best_score, self.best_epoch, self.checks_since_best = None, None, 0

    def next_epoch(self) -> None:
        """Move to the beginning of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.ce_sum, self.ce_steps = 0.0, 0
