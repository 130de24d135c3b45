"""A part of the HTML report's page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Section:
    """A part of the page: a title, then text, a table, pictures and ready HTML, each optional.

    Attributes:
        html: markup that goes into the page as it is.
        anchor: id that links to this part end with.
        chapter: whether the title is that of a whole chapter.
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    pictures: Sequence[Path] = field(default_factory=tuple)
    html: str = ""
    anchor: str = ""
    chapter: bool = False
