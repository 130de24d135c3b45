"""Parts of an extraction, for job arrays: how groups are dealt, and what each part leaves for the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from qadprep.errors import UserError
from qadprep.store import read_json, remove
from qadprep.summary import REPORT_NAME

if TYPE_CHECKING:
    from qadprep.store import Folder

_REPORT = re.compile(r"summary-part-(\d+)-of-(\d+)\.json")
_LOCK = re.compile(r"\.lock-part-(\d+)-of-(\d+)")
Item = TypeVar("Item")


@dataclass(frozen=True, order=True)
class Part:
    """Part `number` (from 1) of `count` that write into one output folder, also at the same time."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`2/4` -> the second of four.

        Raises:
            UserError: something else.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        part = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= part.number <= part.count:
            raise UserError(f"--part: got {text!r}; expected i/n with i from 1 to n, such as 2/4")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def slug(self) -> str:
        """The part in file names."""
        return f"part-{self.number}-of-{self.count}"

    @property
    def report_name(self) -> str:
        """Name of the part's own summary; there when the part has come to its end."""
        return f"summary-{self.slug}.json"

    @property
    def lock_name(self) -> str:
        """Name of the part's lock."""
        return f".lock-{self.slug}"

    def take(self, items: Sequence[Item]) -> list[Item]:
        """The part's share: by turns, so that parts of a sorted list are of equal size."""
        return list(items[self.number - 1 :: self.count])

    def siblings(self) -> list["Part"]:
        """All parts, this one included."""
        return [Part(number, self.count) for number in range(1, self.count + 1)]


def started_parts(folder: "Folder") -> list[Part]:
    """Parts whose lock lies in a folder, those of runs that have ended included."""
    return _named(folder, _LOCK)


def finished_parts(folder: "Folder") -> list[Part]:
    """Parts that have come to their end."""
    return _named(folder, _REPORT)


def missing_parts(folder: "Folder") -> list[Part]:
    """Parts that must still come to their end, as far as the folder tells; empty when it was not written in parts."""
    finished = finished_parts(folder)
    known = finished or started_parts(folder)
    return [part for part in known[-1].siblings() if part not in finished] if known else []


def part_reports(folder: "Folder", part: Part) -> dict[Part, dict[str, Any]]:
    """The reports of those siblings that have come to their end."""
    found = {sibling: read_json(folder / sibling.report_name) for sibling in part.siblings()}
    return {sibling: report for sibling, report in found.items() if report is not None}


def unfinish(folder: "Folder", part: Part | None) -> None:
    """Before a run writes anything: take away the reports that it will make untrue.

    The whole extraction's, the part's own, and those of parts that were cut another way.
    """
    remove(folder / REPORT_NAME)
    for other in finished_parts(folder):
        if part is None or other == part or other.count != part.count:
            remove(folder / other.report_name)


def not_at_its_end(folder: "Folder") -> str:
    """Why an extraction without its summary cannot be used yet, and what to do."""
    missing = missing_parts(folder)
    if missing:
        words = ", ".join(str(part) for part in missing[:8]) + (" ..." if len(missing) > 8 else "")
        return f"{folder}: its extraction lacks part {words}; run `qadprep extract` with --part {missing[0]} first"
    if finished_parts(folder):
        return f"{folder}: the parts of its extraction are not joined; run `qadprep extract` again without --part"
    return f"{folder}: its extraction did not come to its end; run `qadprep extract` again first"


def _named(folder: "Folder", pattern: re.Pattern[str]) -> list[Part]:
    if not folder.is_dir():
        return []
    matches = (pattern.fullmatch(file.name) for file in folder.iterdir())
    return sorted((Part(int(m[1]), int(m[2])) for m in matches if m), key=lambda part: (part.count, part.number))
