"""What `qadprep verify` finds: single faults, and a list of them that stays short when a whole shard is wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

MAX_LISTED_PER_SHARD = 20


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        shard: file name of the shard, or of the file of the set that is wrong.
        key: the tuple, or empty.
        offset_bytes: where in the shard the tuple or its damaged member begins; None where it is about the whole file.
        fault: what is wrong.
    """

    shard: str
    key: str
    offset_bytes: int | None
    fault: str


@dataclass
class Faults:
    """Faults of one shard: all are counted, the first ones are listed."""

    shard: str
    listed: list[Fault] = field(default_factory=list)
    count: int = 0

    def add(self, fault: str, key: str = "", offset_bytes: int | None = None) -> None:
        """Count a fault, and list it while there is room."""
        self.count += 1
        if len(self.listed) < MAX_LISTED_PER_SHARD:
            self.listed.append(Fault(self.shard, key, offset_bytes, fault))

    def add_rows(self, rows: np.ndarray, describe: Callable[[int], tuple[str, str, int | None]]) -> None:
        """Count a fault for each row; `describe(row)` gives (fault, key, offset) of those that are listed.

        Args:
            rows: int (n,), row numbers in the index.
        """
        room = max(0, MAX_LISTED_PER_SHARD - len(self.listed))
        self.count += max(0, len(rows) - room)
        for row in rows[:room].tolist():
            self.add(*describe(row))
