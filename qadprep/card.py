"""The dataset card of a shard set: README.md with the front matter that the Hugging Face hub reads."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qadprep.card_hub import front_matter, load_lines
from qadprep.results import VERDICTS
from qadprep.set_facts import selection, sources_of
from qadprep.shard_format import CODECS, splits_in_order
from qadprep.store import is_local
from qadprep.ustar import atomic_file

if TYPE_CHECKING:
    from qadprep.store import Folder

_TERMS = {
    "ffpp": "FaceForensics++ (Rössler et al., ICCV 2019). Its terms of use forbid passing on the videos or parts of "
    "them: keep this shard set inside your group.",
    "dfd": "DeepFakeDetection (Google and Jigsaw, 2019), given out with FaceForensics++ under its terms: not to be "
    "passed on, nor parts of it.",
    "celebdf": "Celeb-DF-v2 (Li et al., CVPR 2020), given out on signed terms: keep this shard set inside your group.",
    "ffiw": "FFIW-10K (Zhou et al., CVPR 2021), for research; see the terms of its authors.",
    "dfdc": "Deepfake Detection Challenge (Dolhansky et al., 2020), under the rules of its Kaggle page.",
    "dfdcp": "DFDC preview (Dolhansky et al., 2019), under the terms of its download.",
    "wilddeepfake": "WildDeepfake (Zi et al., ACM MM 2020), given out on request, for research.",
}
_CUT = {
    "reference": "by one geometry for all clips of the recording",
    "own": "by the clip's own geometry",
    "given": "as the dataset's authors cropped them",
}
_VERDICTS = {
    "reference": "faces were found on them",
    "proved": "show the same instants as the reference",
    "static": "too little motion to tell; size and frame count agree",
    "shifted": "a constant shift, taken into account",
    "refused": "other frames or content; cut by themselves or left out",
}
_EXTRACTION = {
    "attempted": "tuples attempted",
    "ok": "of them complete",
    "failures": "groups, clips or files that could not be used",
}
_ORDERS = {
    "natural": "a shuffle by tuple inside each split",
    "even": "every stretch of a split has the split's mix of methods, each in the order of a shuffle",
    "equal": "every stretch of a split has the split's mix of methods, each in the order of a shuffle",
}


def write_card(path: "Folder", info: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the card.

    Args:
        path: of the file, local or remote.
        info: what goes into shards.json; `sync` (verdict -> files), `extraction` (what -> number), `protocol` and, in
            `config`, `extract` or `merged` are told where they are there.
        facts: `classes`: rows with `split`, `dataset`, `method`, `label`, `tuples`, `videos`; `groups`: split ->
            recordings; `geometry`: kind -> tuples.
    """
    data = card_text(info, facts).encode()
    if is_local(path):
        with atomic_file(path) as file:
            file.write(data)
    else:
        path.write_bytes(data)


def card_text(info: dict[str, Any], facts: dict[str, Any]) -> str:
    """The card as text; arguments as of `write_card`."""
    qualities = ", ".join(info["qualities"])
    parts = [
        front_matter(info),
        f"# {_plain(info['name'] or 'Shard set')}: face tuples at {qualities}\n",
        "Each sample is a tuple: one aligned face at one instant of a video, at every quality. Only the compression "
        f"differs inside it. Written by {_plain(info['tool'])}.\n",
        _section("What is in it", _counts(info, facts)),
        _section("A sample", _members(info)),
        _section("How it was made", _made(info, facts)),
        _section("What it rests on", _evidence(info, facts)),
        _section("Licences and terms", _terms(facts)),
        _section("Load", load_lines(info)),
    ]
    return "\n".join(parts)


def _counts(info: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    order = {split: place for place, split in enumerate(splits_in_order({row["split"] for row in facts["classes"]}))}
    rows = sorted(facts["classes"], key=lambda row: (order[row["split"]], row["dataset"], row["label"], row["method"]))
    counts = [
        (row["split"], row["dataset"], row["method"], "fake" if row["label"] else "real", row["videos"], row["tuples"],
         *(row["tuples"] for _ in info["qualities"]))
        for row in rows
    ]  # fmt: skip
    total = sum(row["tuples"] for row in rows)
    videos = sum(row["videos"] for row in rows)
    counts.append(("all", "", "", "", videos, total, *(total for _ in info["qualities"])))
    heads = ["split", "dataset", "method", "label", "clips", "tuples", *(f"crops at {q}" for q in info["qualities"])]
    found = splits_in_order(set(facts["groups"]))
    return [
        *_table(heads, counts),
        "",
        *_table(["split", "recordings (groups)"], [(split, facts["groups"][split]) for split in found]),
    ]


def _members(info: dict[str, Any]) -> list[str]:
    ending = CODECS[info["codec"]]
    side = info["size_px"]
    kind = {"png": "PNG", "webp": "lossless WebP", "raw": "NumPy array"}[info["codec"]]
    return [
        *_table(
            ["member", "what"],
            [
                *((f"`<key>.{quality}.{ending}`", f"the crop at {quality}: {kind}, {side} x {side} px, RGB, 8 bit")
                  for quality in info["qualities"]),
                ("`<key>.json`", "label (0 real, 1 fake), split, method, video, frame, geometry, detector"),
            ],
        ),
        "",
        "The key is `<dataset>/<method>/<video>/<frame>_<face>`. Every crop is stored without loss: no "
        "compression comes on top of the video's own. Beside each tar lies its index in parquet, a row a tuple, and "
        "`shards.json` names all shards with their hashes.",
    ]  # fmt: skip


def _made(info: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    config = info.get("config") or {}
    extract = config.get("extract")
    lines = [f"datasets: {', '.join(sorted({row['dataset'] for row in facts['classes']}))}"]
    protocol = info.get("protocol")
    if protocol:
        named = protocol if isinstance(protocol, str) else ", ".join(f"{k} {v}" for k, v in sorted(protocol.items()))
        lines.append(f"protocol: {_plain(named)}")
    if extract:
        detector = ", ".join(f"{name} {value}" for name, value in extract["detector"].items())
        lines += [
            f"crops: {info['size_px']} px, aligned by `{extract['align']}`, margin {extract['margin']}",
            f"frames wanted per clip: {extract['frames']}, drawn with seed {extract['seed']}",
            f"detector: {_plain(detector)}" if detector else "detector: not recorded",
        ]
        if extract.get("make_qualities"):
            lines.append(f"missing qualities were encoded by libx264, {extract['pix_fmt']}, from the best one")
    else:
        lines.append(
            f"crops: {info['size_px']} px; how they were extracted is told by the sets that this one is made of"
        )
    sources = sources_of(config)
    lines += _origins(sources, "merged from" if config.get("merged") else "taken out of")
    cut = [f"{facts['geometry'][kind]} tuples {words}" for kind, words in _CUT.items() if facts["geometry"].get(kind)]
    lines.append(f"cut: {', '.join(cut) or 'not recorded'}")
    chosen = _settings(selection(config))
    if sources:
        chosen = f"{chosen}, out of what was chosen in the source" if chosen else "as chosen in the sources"
    lines.append(f"chosen tuples: {chosen or 'all complete ones'}")
    if "seed" in config:
        lines.append(f"order: {_ORDERS[config.get('balance', 'natural')]}, seed {config['seed']}")
    lines.append(f"attempted and left out: {_words(info['left_out'].items())}")
    lines.append(f"config `{info['config_hash']}`")
    return [line if line.startswith(" ") else f"- {line}" for line in lines]


def _settings(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_code(value)}" for name, value in chosen.items())


def _origins(sources: Sequence[dict[str, Any]], how: str, indent: str = "") -> list[str]:
    """Lines of a list, the sources' own sources below them."""
    lines = []
    for source in sources:
        own, chosen = sources_of({"merged": source.get("made_of")}), source.get("chosen")
        facts = [f"fingerprint {_code(source.get('fingerprint'))}", f"config {_code(source.get('config_hash'))}"]
        chosen = _settings(chosen) if isinstance(chosen, dict) else ""
        if chosen or not own:
            facts.append(f"chosen there: {chosen or 'all complete ones'}")
        lines.append(f"{indent}{how} {_plain(source.get('name', ''))}, {', '.join(facts)}")
        lines += _origins(own, "- made of", f"{indent}  ")
    return lines


def _evidence(info: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Sync, extraction and leaks."""
    lines = []
    sync = info.get("sync") or {}
    if sync:
        lines += ["Each video file was tested against the recording's reference, frame by frame:", ""]
        names = [name for name in VERDICTS if name in sync] + sorted(set(sync) - set(VERDICTS))
        lines += [*_table(["verdict", "files", ""], [(n, sync[n], _VERDICTS.get(n, "")) for n in names]), ""]
    else:
        lines += ["The sync proof of the videos is not recorded here; it is in the face packs.", ""]
    extraction = info.get("extraction") or {}
    told = [f"{extraction[name]:,} {words}" for name, words in _EXTRACTION.items() if name in extraction]
    if told:
        lines += [f"Extraction: {', '.join(told)}.", ""]
    crossing = info["groups_in_several_splits"]
    if len(facts["groups"]) < 2:
        lines.append("Leaks: the set has one split, so nothing crosses splits inside of it.")
    elif crossing:
        lines.append(
            f"Leaks: {crossing:,} recordings have tuples in more than one split. `qadprep verify` names them, and "
            "`qadprep scan` what else the dataset's official splits share."
        )
    else:
        lines.append(
            "Leaks: no recording has tuples in more than one split. People and donors of faces are not compared here; "
            "`qadprep scan` does, as far as the dataset's names tell."
        )
    return lines


def _terms(facts: dict[str, Any]) -> list[str]:
    datasets = sorted({row["dataset"] for row in facts["classes"]})
    return [
        "The crops are parts of the source datasets' videos and stay under their terms; this card grants nothing.",
        "",
        *(f"- {dataset}: {_TERMS.get(dataset, 'see the terms of the source dataset')}" for dataset in datasets),
    ]


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table; columns of numbers are set to the right."""
    rows = list(rows)
    right = [bool(rows) and all(isinstance(row[place], int) for row in rows) for place in range(len(heads))]
    lines = [heads, ["---:" if numeric else "---" for numeric in right], *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]


def _words(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts) or "none"


def _plain(text: str) -> str:
    """Text of somebody else's, on one line and without Markdown's or HTML's own signs."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _code(value: Any) -> str:
    """A setting as code, whatever is in it."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else " ".join(str(value).split())
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
