"""What tests read in a page of the HTML report, and an extraction with every outcome to report on."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from helpers.summaries import eventful, written
from qadprep.config import write_json
from qadprep.summary import REPORT_NAME, ExtractSummary


def rows_of(html: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def row_of(html: str, *first: str) -> list[str]:
    """Cells of the one row of the page that begins with these."""
    (found,) = [cells for cells in rows_of(html) if cells[: len(first)] == list(first)]
    return found


def part(html: str, anchor: str) -> str:
    """The part of a page from a heading to the next."""
    return re.search(rf"<h[23] id='{anchor}'.*?(?=<h[23]|</main>)", html, re.DOTALL)[0]


def embedded(html: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r"src='data:image/png;base64,([^']+)'", html)]


def bars(html: str) -> list[tuple[str, str, str]]:
    return re.findall(r"<rect x='([\d.]+)' y='0' width='([\d.]+)'[^>]*><title>(.*?)</title>", html)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def eventful_faces(folder: Path) -> Path:
    """A folder with the summary of an eventful extraction."""
    result = written(folder, "071", *eventful(), detected_frames=4, decoded_frames=40)
    result.seconds = {"others": 3.0, "and <": 1.0, "write": 0.0, "warp": 2.0, "decode": 4.0}
    result.failures.append(("clip <i>", "truncated", "ends early & late"))
    summary = ExtractSummary([result], detector="using MTCNN", seconds=5.0, workers=2, engine="ray")
    write_json(folder / REPORT_NAME, summary.as_dict())
    return folder
