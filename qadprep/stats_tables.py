"""The numbers of `qadprep stats` as tables: on a terminal and on a page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qadprep.stats import MEASURES, QUANTILES
from qadprep.terminal import print_table, say
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.report_section import Section

_MEASURE_WORDS = {
    "face_px": "face, px in the source",
    "sharpness": "sharpness (variance of Laplacian, best quality)",
    "yaw_deg": "yaw, degrees",
    "mask_share": "share of the box under the mask",
}


@dataclass(frozen=True)
class NumberTable:
    """A table: a title, the columns' names, and rows of text and whole numbers; `text` says how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    text: str = ""


def number_tables(numbers: dict[str, Any]) -> Iterator[NumberTable]:
    """The tables of `stats`; those without a row are left out."""
    yield from (table for table in _all_tables(numbers) if table.rows)


def show(numbers: dict[str, Any], html: Path | None) -> None:
    """Print the tables."""
    for table in number_tables(numbers):
        print_table(table.title, list(table.columns), table.rows)
    for line in remarks(numbers):
        say(line)
    if html:
        say(f"page: {html}")


def remarks(numbers: dict[str, Any]) -> list[str]:
    """What the tables do not say, in lines."""
    whole, head = numbers["all"], numbers["set"]
    lines = [
        f"{whole['tuples']} tuples of {whole['clips']} clips and {whole['groups']} recordings in {head['shards']} "
        f"shards, {numbers['bytes']['tars'] / 1e6:.1f} MB; {', '.join(head['qualities'])} as {head['codec']}, "
        f"{head['size_px']} px"
    ]
    if head["groups_in_several_splits"]:
        lines.append(f"{head['groups_in_several_splits']} recordings are in more than one split")
    if numbers["unaltered"]:
        lines.append(f"{numbers['unaltered']} tuples of manipulated clips show the original unaltered")
    if numbers["missing_columns"]:
        lines.append(f"an older set, whose index does not tell: {', '.join(numbers['missing_columns'])}")
    return lines


def write_page(numbers: dict[str, Any], path: Path) -> None:
    """Write a self-contained HTML page."""
    from qadprep.report_page import page

    title = f"{numbers['set']['name'] or 'Shard set'}: numbers"
    with atomic_file(path) as file:
        file.write(page(title, "", _sections(numbers)).encode())


def _sections(numbers: dict[str, Any]) -> "list[Section]":
    from qadprep.report_section import Section

    lines = [f"{_capital(line)}." for line in remarks(numbers)]
    tables = [Section(_capital(table.title), table.text, table.columns, table.rows) for table in number_tables(numbers)]
    return [Section("In short", " ".join(lines)), *tables]


def _capital(line: str) -> str:
    return line[0].upper() + line[1:]


def _all_tables(numbers: dict[str, Any]) -> Iterator[NumberTable]:
    yield NumberTable(
        "splits",
        ("split", "tuples", "clips", "recordings", "real", "fake", "fake share"),
        [
            (row["split"], row["tuples"], row["clips"], row["groups"], row["real"], row["fake"],
             f"{row['fake_share']:.3f}")
            for row in numbers["splits"]
        ],
    )  # fmt: skip
    yield NumberTable(
        "classes",
        ("split", "dataset", "method", "label", "tuples", "clips", "recordings", "tuples per clip"),
        [
            (row["split"], row["dataset"], row["method"], "fake" if row["label"] else "real", row["tuples"],
             row["clips"], row["groups"], f"{row['fewest']} / {row['median']:g} / {row['most']}")
            for row in numbers["classes"]
        ],
        "Tuples per clip: fewest, median, most.",
    )  # fmt: skip
    yield _bytes_table(numbers["bytes"])
    yield NumberTable(
        f"PSNR against {numbers['set']['qualities'][0]}, dB",
        ("method", "quality", "mean", "min", "median", "max", "equal", "tuples"),
        [(row["method"], row["quality"], *_psnr_cells(row), row["equal"], row["tuples"]) for row in numbers["psnr_db"]],
        "Over the crops that differ; equal counts those whose pixels are the same.",
    )
    sample = numbers["sample"]
    for name, title, digits in (
        ("ssim", f"SSIM against {numbers['set']['qualities'][0]}, of {sample['tuples']} tuples", 4),
        ("sharpness", f"sharpness (variance of Laplacian), of {sample['tuples']} tuples", 1),
    ):
        yield NumberTable(
            title,
            ("quality", "mean", "min", "median", "max"),
            [
                (row["quality"], *(f"{row[part]:.{digits}f}" for part in ("mean", "min", "median", "max")))
                for row in sample[name]
                if row["mean"] is not None
            ],
        )
    yield NumberTable(
        "measures",
        ("measure", *QUANTILES, "mean", "tuples"),
        [
            (_MEASURE_WORDS[name], *(f"{values[part]:.4g}" for part in (*QUANTILES, "mean")), values["tuples"])
            for name in MEASURES
            if (values := numbers["measures"].get(name)) and values["tuples"]
        ],
    )
    yield NumberTable("geometry: found on", ("geometry", "tuples"), list(numbers["geometry"].items()))
    yield NumberTable("attempted and left out", ("status", "tuples"), list(numbers["left_out"].items()))
    yield NumberTable(
        "tuples of the sample that cannot be read",
        ("key", "fault"),
        [(fault["key"], fault["fault"]) for fault in sample["faults"]],
    )


def _bytes_table(sizes: dict[str, Any]) -> NumberTable:
    parts = [(row["quality"], row["mean"], row["total"]) for row in sizes["per_quality"]]
    parts.append(("JSON, headers, padding", None, sizes["json_and_headers"]))
    return NumberTable(
        "bytes",
        ("part", "mean per crop", "total", "share"),
        [
            (name, "-" if mean is None else f"{mean:.0f}", total, f"{total / sizes['tuples']:.3f}")
            for name, mean, total in parts
            if sizes["tuples"]
        ],
    )


def _psnr_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if row["mean"] is None:
        return ("equal" if row["equal"] else "-",) * 4
    return tuple(f"{row[part]:.1f}" for part in ("mean", "min", "median", "max"))
