"""The parts that a page of the HTML report is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Number(str):
    """A number as it is to be written in a table's cell, such as `30.3` or `21 %`: set to the right."""


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Attributes:
        png: the PNG file.
        alt: what it shows, for readers who do not see it.
        caption: line below it.
    """

    png: bytes = field(repr=False)
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Tabs:
    """Pictures at one place of the page, of which the reader chooses one; on paper they stand below each other.

    Attributes:
        title: what they show together.
        pictures: (name of the tab, picture); the first is shown at the beginning.
    """

    title: str
    pictures: Sequence[tuple[str, Picture]]


@dataclass
class Section:
    """A part of the page: a title, then text, pictures, ready HTML and a table, each optional.

    Attributes:
        rows: cells of the table; numbers are set to the right, everything else is escaped text.
        pictures: PNG files by path, or `Picture` and `Tabs`.
        html: markup that goes into the page as it is.
        anchor: id that links to this part end with; made from the title where it is empty.
        chapter: whether the title is that of a whole chapter. It stands in the page even without content.
        caption: of the table; the title where it is empty.
        folded: whether the table is shown only when the reader opens it (on paper always).
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    pictures: Sequence[Path | Picture | Tabs] = field(default_factory=tuple)
    html: str = ""
    anchor: str = ""
    chapter: bool = False
    caption: str = ""
    folded: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.chapter or self.text or self.rows or self.pictures or self.html)
