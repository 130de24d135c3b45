"""Where a run is: what a resume needs besides weights, optimiser, moving average and loss scale."""

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
