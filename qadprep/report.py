"""`qadprep report`: contact sheets and one self-contained HTML page about a shard set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.progress import progress_bar
from qadprep.report_columns import IndexColumns, evenly
from qadprep.report_extraction import extraction_sections
from qadprep.report_numbers import distribution_sections, set_sections
from qadprep.report_page import page
from qadprep.report_pictures import ROWS_PER_SHEET, TupleReader, choose, picture_sections
from qadprep.report_section import Section
from qadprep.shardset import ShardSet
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.store import Folder

__all__ = ["Section", "write_report"]

SAMPLE = 200


def write_report(
    shards: "str | Folder",
    out: Path,
    *,
    faces: str | Path | None = None,
    title: str = "",
    notice: str = "",
    extra: Sequence[Section] = (),
    rows: int = ROWS_PER_SHEET,
    sample: int = SAMPLE,
) -> dict[str, Any]:
    """Write `report.html` and two contact sheets a split into a folder.

    The same set and arguments give the same bytes. Memory does not grow with the set beyond its index.

    Args:
        shards: folder or URL of the shard set.
        out: folder to write into.
        faces: its face packs' folder or URL; adds the chapter `Extraction`: tuples and reasons, sync proof, time.
        title, notice: of the page; the notice stands in a box on top.
        extra: more sections, after the pictures.
        rows: tuples per split in the contact sheets, at most.
        sample: tuples that are decoded to measure SSIM; 0 for none.

    Returns:
        `report`: path of the page; `contact_sheets`: paths of the pictures; `damaged`: a line for each chosen tuple
        that could not be read (the page lists them, too).

    Raises:
        UserError: no shard set there, or no extraction in `faces`.
    """
    extraction = extraction_sections(faces) if faces is not None else []
    with ShardSet(shards) as whole:
        out.mkdir(parents=True, exist_ok=True)
        columns = IndexColumns(whole.table)
        choices = choose(whole, columns, rows)
        sampled = sample_positions(columns, sample if len(whole.qualities) > 1 else 0)
        work = sum(choice.tuples for choice in choices) + sum(map(len, sampled.values()))
        with progress_bar("report", work, "tuples") as advance:
            reader = TupleReader(whole, advance)
            pictures, files = picture_sections(whole, choices, out, reader)
            ssim = measure_sample(reader, sampled, whole.qualities)
        sections = [*_damaged(reader.damaged), *set_sections(whole, columns), *pictures]
        if extra:
            sections += [] if extra[0].chapter else [Section("In addition", anchor="in-addition", chapter=True)]
            sections += extra
        sections += [*distribution_sections(columns, whole.qualities, ssim), *extraction]
        text = page(title or whole.info.get("name") or "Shard set", notice, sections)
    path = out / "report.html"
    with atomic_file(path) as file:
        file.write(text.encode())
    return {"report": str(path), "contact_sheets": [str(file) for file in files], "damaged": reader.damaged}


def sample_positions(columns: IndexColumns, count: int) -> dict[int, np.ndarray]:
    """Class number -> positions: about `count` tuples in all, as many of each class, spread over its tuples."""
    each = -(-count // max(1, len(columns.class_names)))
    found = {}
    for number in range(len(columns.class_names)):
        positions = np.flatnonzero(columns.classes == number)
        found[number] = positions[evenly(len(positions), each)]
    return found


def measure_sample(
    reader: TupleReader, positions: dict[int, np.ndarray], qualities: Sequence[str]
) -> dict[int, dict[str, np.ndarray]]:
    """SSIM (over RGB, 0..1) of each lower quality against the best one.

    Returns:
        class number -> quality -> float64 (tuples,); classes without a readable tuple are left out.
    """
    from skimage.metrics import structural_similarity

    best, *others = qualities
    found: dict[int, dict[str, np.ndarray]] = {}
    for number, places in positions.items():
        items = (reader.read(place) for place in places.tolist())
        values = [
            [structural_similarity(i.images[best], i.images[q], channel_axis=2, data_range=255) for q in others]
            for i in items
            if i is not None
        ]
        if values and others:
            found[number] = dict(zip(others, np.array(values).T, strict=True))
    return found


def _damaged(lines: Sequence[str]) -> list[Section]:
    if not lines:
        return []
    text = (
        f"{len(lines)} of the tuples chosen for this page cannot be read, and are missing in it. `qadprep verify` "
        "names every damaged tuple of the set."
    )
    return [Section("Damaged tuples", text, ("what",), [(line,) for line in lines], anchor="damaged")]
