"""Chapters of the report that count: what the set holds, and how its measures spread. All from the index."""

from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.report_columns import IndexColumns
from qadprep.report_plots import QUANTILES, boxes, histogram, share_bar, stacks
from qadprep.report_section import Number, Section
from qadprep.results import VERDICTS
from qadprep.ustar import BLOCK

if TYPE_CHECKING:
    from qadprep.shardset import ShardSet

# Classes in a figure; of more the most numerous. The tables have them all.
MOST_CLASSES = 12
_LABELS = ("real", "fake")
_QUANTILE_TITLES = [f"{100 * share:.0f} %" if share != 0.5 else "median" for share in QUANTILES]
_GEOMETRY = {
    "reference": "one geometry for all clips of the recording, found on its reference clip",
    "own": "found on the clip itself, as the sync proof allowed no sharing",
    "given": "as the dataset's authors cropped it",
}


def set_sections(shards: "ShardSet", columns: IndexColumns) -> list[Section]:
    """The chapter `The set`: identity, counts, qualities, geometry, sync evidence, what was left out."""
    info = shards.info
    size = sum(shard.get("filesize") or 0 for shard in info["shardlist"])
    facts: list[tuple[str, Any]] = [
        ("name", info.get("name", "")),
        ("tuples", f"{columns.count:,} ({', '.join(f'{split} {n:,}' for split, n in shards.splits.items())})"),
        ("qualities", ", ".join(shards.qualities)),
        ("crops", f"{shards.size_px} px, RGB, {shards.codec} (lossless)"),
        ("shards", f"{len(info['shardlist']):,}, {size / 1e6:,.1f} MB"),
        ("recordings in more than one split", info.get("groups_in_several_splits", 0)),
        ("format", f"{info['format_version']}, written by {info.get('tool') or 'an unnamed tool'}"),
        ("config", info.get("config_hash", "")),
        ("fingerprint", shards.fingerprint),
    ]
    extraction = info.get("extraction") or {}
    if extraction:
        facts.insert(2, ("extraction", ", ".join(f"{value:,} {name}" for name, value in extraction.items())))
    left_out = info.get("left_out", {})
    sections = [
        Section("The set", anchor="set", chapter=True),
        Section("In short", "", ("what", "value"), [(name, str(value)) for name, value in facts]),
        _counts(columns, shards.qualities),
        _qualities(columns, shards.qualities),
        _geometry(columns),
        Section(
            "Attempted, but not in the set", "", ("reason", "tuples"), sorted(left_out.items()),
            html=share_bar(dict(sorted(left_out.items())), "tuples"),
        ),
    ]  # fmt: skip
    sync = info.get("sync")
    if isinstance(sync, dict) and sync:
        found = {
            verdict: sync[verdict] for verdict in (*VERDICTS, *sorted(set(sync) - set(VERDICTS))) if verdict in sync
        }
        text = "What the files' pairing rests on. The chapter Extraction has more where the report was given the packs."
        html = share_bar(found, "files")
        sections.append(Section("Sync evidence", text, ("verdict", "files"), list(found.items()), html=html))
    return sections


def distribution_sections(columns: IndexColumns, qualities: tuple[str, ...], ssim: dict[str, Any]) -> list[Section]:
    """The chapter `Distributions`.

    Args:
        ssim: class number -> quality -> values, of a sample (`report.measure_sample`).
    """
    return [
        Section(
            "Distributions",
            "Lying boxes: whiskers from 5 to 95 % of the tuples, box from 25 to 75 %, black line at the median.",
            anchor="distributions",
            chapter=True,
        ),
        _psnr(columns, qualities),
        _ssim(columns, qualities, ssim),
        _measure(columns, "face_px", "Face size", "side of the square with the box's area, px of the video"),
        _measure(columns, "sharpness", "Sharpness", "variance of the Laplacian over the face, best quality", True),
        _measure(columns, "yaw_deg", "Yaw", "degrees; above 0: turned to the picture's right"),
        _per_clip(columns),
        _bytes(columns, qualities),
    ]


def _counts(columns: IndexColumns, qualities: tuple[str, ...]) -> Section:
    """A row for each split, class and label."""
    kinds, own = np.unique(
        (columns.splits * len(columns.class_names) + columns.classes) * 2 + columns.labels, return_inverse=True
    )
    counted = {
        "clips": _different(own, columns.clips.codes, len(kinds)),
        "tuples": np.bincount(own, minlength=len(kinds)),
    }
    if columns.has("group"):
        counted["recordings"] = _different(own, columns.coded("dataset", "group").codes, len(kinds))
    for quality in qualities:
        there = np.isfinite(columns.numbers(f"{quality}_size"))
        counted[f"crops at {quality}"] = np.bincount(own[there], minlength=len(kinds))
    if columns.has("unaltered"):
        counted["unaltered"] = np.bincount(own[columns.numbers("unaltered") == 1], minlength=len(kinds))
    rows = []
    for number, kind in enumerate(kinds.tolist()):
        split, place = divmod(kind // 2, len(columns.class_names))
        figures = [int(values[number]) for values in counted.values()]
        rows.append((columns.split_names[split], columns.class_title(place), _LABELS[kind % 2], *figures))
    totals = [int(values.sum()) if name != "recordings" else "" for name, values in counted.items()]
    rows.append(("all", "", "", *totals))
    return Section(
        "Tuples per split, method, label and quality",
        "Unaltered: frames of manipulated clips that equal the original's." if columns.has("unaltered") else "",
        ("split", "method", "label", *counted),
        rows,
        anchor="counts",
    )


def _qualities(columns: IndexColumns, qualities: tuple[str, ...]) -> Section:
    rows = []
    for quality in qualities:
        sizes = columns.numbers(f"{quality}_size")
        rows.append(
            (
                quality,
                len(sizes),
                Number(f"{sizes.sum() / 1e6:,.1f}"),
                Number(f"{sizes.mean() / 1e3:.1f}" if len(sizes) else "-"),
            )
        )
    return Section("Crops per quality", "", ("quality", "crops", "MB", "kB per crop"), rows)


def _geometry(columns: IndexColumns) -> Section:
    if not columns.has("geometry") or not columns.count:
        return Section("How the crops were cut", "The index does not tell: it is of an older version.")
    coded = columns.coded("geometry")
    counts = np.bincount(coded.codes, minlength=len(coded)).tolist()
    found = {name or "unknown": count for (name,), count in zip(coded.names(), counts, strict=True)}
    rows = [(kind, _GEOMETRY.get(kind, ""), count) for kind, count in found.items()]
    html = share_bar(found, "tuples") if len(found) > 1 else ""
    return Section("How the crops were cut", "", ("geometry", "meaning", "tuples"), rows, html=html)


def _psnr(columns: IndexColumns, qualities: tuple[str, ...]) -> Section:
    best, others = qualities[0], [q for q in qualities[1:] if columns.has(f"{q}_psnr_db")]
    if not others:
        return Section("PSNR", "The set has one quality only, or an index without PSNR: nothing to compare.")
    values = {quality: columns.numbers(f"{quality}_psnr_db") for quality in others}
    rows = []
    for number in range(len(columns.class_names)):
        cells = []
        for quality in others:
            found = values[quality][columns.classes == number]
            finite = found[np.isfinite(found)]
            cells += [Number(f"{finite.mean():.1f}" if len(finite) else "-"), int(np.isposinf(found).sum())]
        rows.append((columns.class_title(number), *cells))
    shown = {
        columns.class_title(number): {quality: values[quality][columns.classes == number] for quality in others}
        for number in _most_numerous(columns)
    }
    title = f"PSNR against {best}"
    html = ""
    if any(np.isfinite(found).any() for found in values.values()):
        alt = f"{title} per method: medians {_medians(shown, 'dB')}"
        html = boxes("psnr", shown, f"PSNR against {best}, dB", alt, f"Every tuple.{_cut(columns)}")
    heads = [head for quality in others for head in (f"{quality}, mean dB", f"{quality}, equal pixels")]
    return Section(title, "", ("method", *heads), rows, html=html, anchor="psnr")


def _ssim(columns: IndexColumns, qualities: tuple[str, ...], sample: dict[int, dict[str, np.ndarray]]) -> Section:
    count = sum(len(next(iter(values.values()))) for values in sample.values() if values)
    if not count:
        return Section("SSIM", "Not measured: one quality only, or no sample.")
    title = f"SSIM against {qualities[0]}"
    names = {number: columns.class_title(number) for number in sample}
    shown = {names[number]: sample[number] for number in _most_numerous(columns) if number in sample}
    rows = [
        (
            names[number],
            len(values[qualities[1]]),
            *(Number(f"{values[quality].mean():.4f}") for quality in qualities[1:]),
        )
        for number, values in sample.items()
    ]
    alt = f"{title} per method: medians {_medians(shown)}"
    note = f"A sample of {count:,} tuples, spread evenly over the shards and over the methods.{_cut(columns)}"
    html = boxes("ssim", shown, title, alt, note, most=1.0)
    heads = [f"{quality}, mean" for quality in qualities[1:]]
    return Section(title, "", ("method", "tuples", *heads), rows, html=html, anchor="ssim")


def _measure(columns: IndexColumns, name: str, title: str, label: str, logarithmic: bool = False) -> Section:
    """How a measure of the faces spreads, real against fake."""
    values = columns.numbers(name)
    good = np.isfinite(values) & ((values > 0) | (not logarithmic))
    if not good.any():
        why = f"The index has no column {name}" if not columns.has(name) else f"The index tells no {name}"
        return Section(title, f"{why}: written by an older version; `qadprep extract` and `shard` of this one add it.")
    series = {word: values[good & (columns.labels == label)] for label, word in enumerate(_LABELS)}
    series = {word: found for word, found in series.items() if len(found)}
    rows = [(word, len(found), *_quantiles(found)) for word, found in series.items()]
    alt = f"{title}: medians " + ", ".join(f"{word} {np.median(found):.4g}" for word, found in series.items())
    missing = int(columns.count - good.sum())
    note = f"{missing:,} tuples without a value." if missing else "Every tuple."
    html = histogram(name.replace("_", "-"), series, label, alt, note, logarithmic=logarithmic)
    return Section(title, "", ("label", "tuples", *_QUANTILE_TITLES), rows, html=html)


def _per_clip(columns: IndexColumns) -> Section:
    if not columns.count:
        return Section("Tuples per clip")
    counts = np.bincount(columns.clips.codes, minlength=len(columns.clips))
    fake = np.zeros(len(columns.clips), bool)
    fake[columns.clips.codes[columns.labels == 1]] = True
    series = {word: counts[fake == label].astype(float) for label, word in enumerate(_LABELS)}
    series = {word: found for word, found in series.items() if len(found)}
    rows = [(word, len(f), int(f.min()), Number(f"{np.median(f):.4g}"), int(f.max())) for word, f in series.items()]
    alt = "Tuples per clip: " + ", ".join(
        f"{word} {row[2]} to {row[4]}" for word, row in zip(series, rows, strict=True)
    )
    html = histogram(
        "per-clip", series, "tuples of a clip", alt, "In per cent of the clips.", step=1, side="% of clips"
    )
    return Section("Tuples per clip", "", ("label", "clips", "fewest", "median", "most"), rows, html=html)


def _bytes(columns: IndexColumns, qualities: tuple[str, ...]) -> Section:
    if not columns.count:
        return Section("Bytes per tuple")
    lengths = columns.numbers("length") / 1e3
    series = {word: lengths[columns.labels == label] for label, word in enumerate(_LABELS)}
    series = {word: found for word, found in series.items() if len(found)}
    alt = "Bytes per tuple: medians " + ", ".join(f"{word} {np.median(found):.4g} kB" for word, found in series.items())
    html = histogram("bytes", series, "kB of a tuple, tar headers included", alt, "Every tuple.", step=BLOCK / 1e3)
    means = {}
    for number in _most_numerous(columns):
        chosen = columns.classes == number
        means[columns.class_title(number)] = {
            q: float(columns.numbers(f"{q}_size")[chosen].mean()) / 1e3 for q in qualities
        }
    words = "; ".join(f"{name} {sum(parts.values()):.1f} kB" for name, parts in means.items())
    html += stacks(
        "bytes-per-quality", means, "kB of a tuple's crops, mean", f"Mean bytes of a tuple: {words}", _cut(columns)
    )
    rows = [(word, len(found), *_quantiles(found)) for word, found in series.items()]
    return Section("Bytes per tuple", "", ("label", "tuples", *(f"{t}, kB" for t in _QUANTILE_TITLES)), rows, html=html)


def _most_numerous(columns: IndexColumns) -> list[int]:
    """Classes for a figure, in their usual order."""
    counts = np.bincount(columns.classes, minlength=len(columns.class_names))
    return sorted(np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist())


def _cut(columns: IndexColumns) -> str:
    more = len(columns.class_names)
    return f" The {MOST_CLASSES} most numerous of {more:,} methods." if more > MOST_CLASSES else ""


def _different(own: np.ndarray, codes: np.ndarray, kinds: int) -> np.ndarray:
    """How many different codes each kind has."""
    span = int(codes.max()) + 1 if len(codes) else 1
    return np.bincount(np.unique(own * span + codes) // span, minlength=kinds)


def _quantiles(values: np.ndarray) -> list[Number]:
    return [Number(f"{value:.4g}") for value in np.quantile(values, QUANTILES)]


def _medians(rows: dict[str, dict[str, np.ndarray]], unit: str = "") -> str:
    """The medians in words, for the figure's alternative text."""
    words = []
    for name, series in rows.items():
        known = {key: values[np.isfinite(values)] for key, values in series.items()}
        found = ", ".join(f"{key} {np.median(values):.4g}" for key, values in known.items() if len(values))
        words.append(f"{name} {found or 'none'}")
    return "; ".join(words) + (f" ({unit})" if unit else "")
