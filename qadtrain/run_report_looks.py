"""Chapters of the page about runs: robustness curves, heat maps and how far they agree, the terms of Theorem 1."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from qadprep.report_section import Number, Section
from qadtrain.run_plots import curves
from qadtrain.run_report_results import AVERAGE, LEVELS, SHORT, figure
from qadtrain.run_results import CONSISTENCY, GRADCAM, ROBUSTNESS, THEOREM, Found, Results, remarks_on_weights
from qadtrain.runs import RunInfo

MOST_PICTURE_BYTES = 8 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
_CLEAN = "clean"
_CSS_PER_INCH, _DRAWN_AT = 96, 150
_MOST_PANELS = 24


def picture_element(path: Path, alt: str, *, dots_per_inch: int = 0) -> str:
    """A PNG file as a figure inside of the page.

    Args:
        dots_per_inch: of a drawing, which is shown at its own size, and smaller where the page is narrow; 0: each pixel
            stays one, as crops need it.

    Raises:
        ValueError: not a PNG, or larger than 8 MiB.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if not data.startswith(_PNG) or len(data) > MOST_PICTURE_BYTES:
        raise ValueError(f"{path.name}: expected a PNG file of at most {MOST_PICTURE_BYTES // 2**20} MiB")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    style = "max-width:100%;height:auto" if dots_per_inch else "max-width:none"
    if dots_per_inch:
        width, height = (round(side * _CSS_PER_INCH / dots_per_inch) for side in (width, height))
    return (
        f"<figure><img alt='{html.escape(alt, quote=True)}' width='{width}' height='{height}' style='{style}' "
        f"src='data:image/png;base64,{base64.b64encode(data).decode()}'></figure>"
    )


def robustness_chapter(results: Results, runs: Mapping[str, RunInfo]) -> Iterator[Section]:
    """Curves over the severities, and tables of the mean over the qualities."""
    found = results.of(ROBUSTNESS)
    if not found:
        return
    yield Section("Robustness", "Severity 0 is the clean pictures.", anchor="robustness", chapter=True)
    for number, one in enumerate(found):
        yield from results.careful(one, lambda one=one, n=number: list(_robustness(one, runs, n)), [])


def _robustness(one: Found, runs: Mapping[str, RunInfo], number: int) -> Iterator[Section]:
    contents, settings = one.contents, one.contents.get("settings", {})
    cells = {
        (row["run"], row["corruption"], row["severity"], row["level"], row["quality"]): row for row in contents["rows"]
    }
    severities, names = (0, *contents["severities"]), contents["runs"]
    suffix = f" of {', '.join(names)}"

    def cell(run: str, corruption: str, severity: int, level: str, quality: str) -> Mapping[str, Any]:
        return cells[run, corruption if severity else _CLEAN, severity, level, quality]

    lines = {}
    for run in names:
        auc = [[cell(run, c, s, "frame", AVERAGE)["auc"] for c in contents["corruptions"]] for s in severities]
        known = [(s, 100 * fmean(values)) for s, values in zip(severities, auc, strict=True) if None not in values]
        lines[run] = ([s for s, _ in known], [value for _, value in known])
    alt = "AUC over severity, mean over corruptions and qualities"
    drawn = curves(
        f"robustness-{number}", lines, "AUC, percent", alt, f"{alt}, frame level", label="severity", marks=True
    )
    whole = one.folder / "robustness.png"
    if whole.is_file():
        drawn += picture_element(
            whole, "AUC over severity: a row for each quality, a column for each corruption", dots_per_inch=_DRAWN_AT
        )
    text = [f"{contents['tuples']:,} tuples of split {settings.get('split', '-')}, AUC and ACC in percent."]
    sides = " and ".join(map(str, sorted(set(settings.get("side_px", {}).values()))))
    at = f"{settings.get('at', '-')}{f', {sides} px' if sides else ''}"
    text.append(f"Pictures are corrupted at: {at}; blocks: {settings.get('blocks', '-')}.")
    if contents.get("damaged"):
        text.append(f"{len(contents['damaged'])} damaged tuples are left out.")
    text += remarks_on_weights(one, runs)
    yield Section(f"Corruptions{suffix}", " ".join(text), html=drawn)
    heads = ("run", "corruption", _CLEAN, *(f"severity {severity}" for severity in contents["severities"]))
    for level in LEVELS:
        for metric in ("auc", "accuracy"):
            rows = [
                (run, corruption, *(figure(cell(run, corruption, s, level, AVERAGE)[metric]) for s in severities))
                for corruption in contents["corruptions"]
                for run in names
            ]
            title = f"{SHORT[metric]}, {level} level, mean over the qualities{suffix}"
            yield Section(title, "", heads, rows, folded=(level, metric) != ("frame", "auc"))
    rows = [
        (run, corruption, quality, *(figure(cell(run, corruption, s, "frame", quality)["auc"]) for s in severities))
        for corruption in contents["corruptions"]
        for quality in contents["qualities"]
        for run in names
    ]
    yield Section(f"AUC, frame level, each quality{suffix}", "", (*heads[:2], "quality", *heads[2:]), rows, folded=True)


def gradcam_chapter(results: Results) -> Iterator[Section]:
    """Panels of the tuples looked at, their probabilities, and the consistency of the maps over a split."""
    panels, figures = results.of(GRADCAM), results.of(CONSISTENCY)
    if not panels and not figures:
        return
    yield Section(
        "Heat maps",
        "Each map has its own scale: colours of two cells do not compare. Picked tuples are extreme by design; the "
        "consistency is that of the whole sample.",
        anchor="heat-maps",
        chapter=True,
    )
    for one in panels:
        yield from results.careful(one, lambda one=one: list(_panels(one, results.faults)), [])
    for one in figures:
        yield from results.careful(one, lambda one=one: list(_consistency(one.contents)), [])


def _panels(one: Found, faults: list[str]) -> Iterator[Section]:
    contents = one.contents
    shown = []
    for entry in contents["tuples"][:_MOST_PANELS]:
        alt = f"Heat maps of {entry['key']} ({entry['label']}) at {', '.join(contents['qualities'])}"
        try:
            # Only files that lie beside the JSON: it may come from elsewhere.
            shown.append(picture_element(one.folder / Path(entry["picture"]).name, alt))
        except (OSError, ValueError) as error:
            faults.append(f"{one.name}: {error}")
    names = ", ".join(run["name"] for run in contents["runs"])
    how = "named ones" if contents.get("pick") is None else f"picked by {contents['pick']}"
    text = [f"{contents['method']}, split {contents['split']}, {len(contents['tuples'])} tuples, {how}."]
    if len(contents["tuples"]) > _MOST_PANELS:
        text.append(f"The first {_MOST_PANELS} are shown.")
    if contents.get("damaged"):
        text.append(f"{len(contents['damaged'])} tuples that could not be read or scored are left out.")
    box = f"<div style='display:flex;flex-wrap:wrap;gap:1em;overflow-x:auto'>{''.join(shown)}</div>" if shown else ""
    yield Section(f"Where {names} look", " ".join(text), html=box)
    rows = []
    for entry in contents["tuples"]:
        for run, answer in entry["runs"].items():
            prob = (
                Number(
                    f"{answer['qualities'][q]['prob_fake']:.3f}{'' if answer['qualities'][q]['right'] else ' wrong'}"
                )
                for q in contents["qualities"]
            )
            iou = (Number("-" if pair["iou"] is None else f"{pair['iou']:.2f}") for pair in answer["pairs"].values())
            rows.append((entry["key"], entry["label"], run, *prob, *iou))
    pairs = list(next(iter(contents["tuples"][0]["runs"].values()))["pairs"]) if contents["tuples"] else []
    columns = ("tuple", "label", "run", *(f"fake, {q}" for q in contents["qualities"]), *(f"IoU {p}" for p in pairs))
    yield Section(f"Figures of the maps of {names}", "", columns, rows, folded=True)


def _consistency(contents: Mapping[str, Any]) -> Iterator[Section]:
    def cell(values: Mapping[str, float | None]) -> Number:
        if values["mean"] is None:
            return Number("-")
        ends = "" if values["low"] is None else f" ({values['low']:.3f} to {values['high']:.3f})"
        return Number(f"{values['mean']:.3f}{ends}")

    every = [
        (
            *(run, pair, group, cell(values["correlation"]), cell(values["iou"])),
            *(values["tuples"], values["videos"], values["left_out"]),
        )
        for run, pairs in contents["runs"].items()
        for pair, groups in pairs.items()
        for group, values in groups.items()
    ]
    columns = ("run", "pair", "tuples of", "correlation", "IoU of the top 20 %", "tuples", "videos", "left out")
    text = (
        f"{contents['tuples']:,} of {contents['of_tuples']:,} tuples of split {contents['split']}. In brackets: 95 % "
        f"interval over videos. control: {contents['control']}. Left out: a constant map."
    )
    yield Section("Consistency over the qualities", text, columns, [row for row in every if row[2] == "all"])
    yield Section("Consistency, every group", "", columns, every, folded=True)


def theorem_chapter(results: Results) -> Iterator[Section]:
    """The terms that data can give, at T = 1 and where their sum is least; a figure for each run."""
    found = results.of(THEOREM)
    if not found:
        return
    yield Section(
        "Theorem 1",
        "A = 2 mean(1 - p_y), B = 16/n, C = (8/T) mean |f_r - f_c| (the collaboration term), C' its tighter form. D "
        "and the constant of E cannot be estimated: no sum here bounds an error.",
        anchor="theorem",
        chapter=True,
    )
    rows = [row for one in found for row in results.careful(one, lambda one=one: _terms(one), [])]
    columns = (
        "run",
        "split",
        "n",
        "pair",
        "errors, percent",
        "|f_r - f_c|",
        "B",
        "T",
        "A",
        "C",
        "C'",
        "A+B+C",
        "A+B+C'",
    )
    text = ["For each pair: T nearest to 1, then T of the least A+B+C on the grid."]
    for one in found:
        lost = results.careful(one, lambda c=one.contents: c.get("left_out", 0) + len(c.get("damaged", ())), 0)
        if lost:
            text.append(f"{one.run or one.contents['run']}: {lost} tuples are left out: damaged, or no finite logits.")
    yield Section("Terms", " ".join(text), columns, rows)
    for one in found:
        drawing = one.folder / "theorem.png"
        if drawing.is_file():
            run, split = one.run or one.contents["run"], one.contents.get("split", "-")
            element = results.careful(
                one,
                lambda d=drawing, r=run: picture_element(
                    d, f"Terms of Theorem 1 over the temperature, {r}", dots_per_inch=_DRAWN_AT
                ),
                "",
            )
            yield Section(f"Terms over the temperature, {run}, {split}", html=element)


def _terms(one: Found) -> list[Sequence[Any]]:
    contents = one.contents
    temperatures = contents["temperatures"]
    near = min(range(len(temperatures)), key=lambda at: abs(temperatures[at] - 1))
    rows = []
    for name, pair in contents["pairs"].items():
        least = temperatures.index(pair["least_sum"]["A+B+C"]["temperature"])
        for at in dict.fromkeys((near, least)):
            a, c, tight = (pair[key][at] for key in ("A", "collaboration_term", "collaboration_term_tight"))
            sums = (a + contents["B"] + c, a + contents["B"] + tight)
            numbers = (contents["B"], temperatures[at], a, c, tight, *sums)
            rows.append(
                (
                    *(one.run or contents["run"], contents["split"], contents["n"]),
                    name + (" (for information)" if pair["for_information"] else ""),
                    *(figure(pair["error"]), Number(f"{pair['mean_logit_distance']:.4f}")),
                    *(Number(f"{number:.4g}") for number in numbers),
                )
            )
    return rows
