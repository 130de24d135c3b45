"""`qadprep report`: contact sheets and one self-contained HTML page about a shard set."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qadprep.report_extraction import extraction_sections
from qadprep.report_section import Section
from qadprep.shardset import ShardSet
from qadprep.sheets import choose_rows, find_instant, instant_sheet, tuple_sheet
from qadprep.ustar import atomic_file

__all__ = ["Section", "write_report"]

ROWS_PER_SHEET = 12

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1b1b1b; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .6em 0; } th, td { padding: .2em .7em; border-bottom: 1px solid #e3e3e3; }
th { text-align: left; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.notice { background: #fff4d6; border: 1px solid #e0b84c; padding: .6em 1em; } img { max-width: 100%; }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto; } td { overflow-wrap: break-word; vertical-align: top; }
h1.chapter { margin-top: 2.5em; } svg.bar { width: 100%; height: 28px; display: block; }
.legend span { margin-right: 1.4em; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
"""


def write_report(
    shards: Path,
    out: Path,
    *,
    faces: str | Path | None = None,
    title: str = "",
    notice: str = "",
    extra: Sequence[Section] = (),
) -> dict[str, Any]:
    """Write `report.html` and one contact sheet a split into a folder.

    Args:
        shards: folder of the shard set.
        out: folder to write into.
        faces: its face packs' folder; adds the chapter `Extraction`: tuples and reasons, sync proof, time.
        title, notice: of the page; the notice stands in a box on top.
        extra: more sections, after the pictures.

    Returns:
        `report`: path of the page; `contact_sheets`: paths of the pictures.

    Raises:
        UserError: no shard set there.
        ShardError: a tuple of a sheet is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    whole = ShardSet(shards)
    sections = [_counts(whole), _psnr(whole)]
    sheets = []
    for split in whole.splits:
        with ShardSet(shards, split) as part:
            rows = choose_rows(part, ROWS_PER_SHEET)
            if rows:
                path = out / f"tuples-{split}.png"
                _save(tuple_sheet([part[row] for row in rows], whole.qualities), path)
                sheets.append(path)
            instant = find_instant(part)
            if len(instant) > 1:
                path = out / f"instant-{split}.png"
                _save(instant_sheet(instant, whole.qualities), path)
                sheets.append(path)
    whole.close()
    tuples = [path for path in sheets if path.name.startswith("tuples-")]
    instants = [path for path in sheets if path.name.startswith("instant-")]
    pictures = [
        Section(
            "Tuples: one a row",
            "The same crop at every quality, and what the strongest compression took away. The face must stand at the "
            "same place in all pictures of a row.",
            pictures=tuples,
        ),
        Section(
            "One recording, one instant",
            "The original and its manipulations, cut by one geometry. Outside the altered region they must agree.",
            pictures=instants,
        ),
    ]
    if faces is not None:
        sections += extraction_sections(faces)
    page = _page(title or whole.info["name"], notice, [*pictures, *extra, *sections])
    path = out / "report.html"
    with atomic_file(path) as file:
        file.write(page.encode())
    return {"report": str(path), "contact_sheets": [str(sheet) for sheet in sheets]}


def _counts(shards: ShardSet) -> Section:
    groups = shards.table.group_by(["split", "method", "label"]).aggregate(
        [("key", "count"), ("video", "count_distinct")]
    )
    rows = sorted(
        (row["split"], row["method"], "fake" if row["label"] else "real", row["video_count_distinct"], row["key_count"])
        for row in groups.to_pylist()
    )
    return Section("What is in it", columns=("split", "method", "label", "videos", "tuples"), rows=rows)


def _psnr(shards: ShardSet) -> Section:
    rows = []
    methods = shards.table["method"].to_numpy(zero_copy_only=False)
    for method in sorted(set(methods), key=lambda name: (name != "original", name)):
        cells = []
        for quality in shards.qualities[1:]:
            values = shards.table[f"{quality}_psnr_db"].to_numpy()[methods == method]
            finite = values[np.isfinite(values)]
            cells.append(f"{finite.mean():.1f}" if len(finite) else "equal")
        rows.append((method, *cells))
    return Section(
        f"PSNR against {shards.qualities[0]}, dB, mean over tuples",
        columns=("method", *shards.qualities[1:]),
        rows=rows,
    )


def _save(picture: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def _page(title: str, notice: str, sections: Sequence[Section]) -> str:
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    ]
    if notice:
        parts.append(f"<p class='notice'>{html.escape(notice)}</p>")
    for section in sections:
        if not (section.text or section.rows or section.pictures or section.html):
            continue
        tag = "h1" if section.chapter else "h2"
        marks = (f" id='{section.anchor}'" if section.anchor else "") + (" class='chapter'" if section.chapter else "")
        parts.append(f"<{tag}{marks}>{html.escape(section.title)}</{tag}>")
        if section.text:
            parts.append(f"<p>{html.escape(section.text)}</p>")
        if section.rows:
            head = "".join(f"<th>{html.escape(str(name))}</th>" for name in section.columns)
            body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in section.rows)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        for picture in section.pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            parts.append(f"<p><img alt='{html.escape(picture.stem)}' src='data:image/png;base64,{data}'></p>")
        parts.append(section.html)
    return "\n".join([*parts, "</body></html>\n"])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = "-" if math.isnan(value) else f"{value:.3f}"
        return f"<td class='n'>{value}</td>"
    if isinstance(value, int):
        return f"<td class='n'>{value}</td>"
    # Long paths may be broken at their folders.
    return f"<td>{html.escape(str(value)).replace('/', '/<wbr>')}</td>"
