"""The dataset card of a shard set: README.md with the front matter that the Hugging Face hub reads."""

from collections import Counter
from pathlib import Path
from typing import Any

from qadprep.ustar import atomic_file

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


def write_card(path: Path, info: dict[str, Any], tuples: list[dict[str, Any]]) -> None:
    """Write the card.

    Args:
        info: what goes into shards.json.
        tuples: rows with `split`, `dataset`, `method`, `label`, `group`, `geometry`.
    """
    extract = info["config"]["extract"]
    datasets = sorted({row["dataset"] for row in tuples})
    counts = Counter((row["split"], row["method"], row["label"]) for row in tuples)
    groups: dict[str, set[str]] = {}
    for row in tuples:
        groups.setdefault(row["split"], set()).add(row["group"])
    kinds = Counter(row["geometry"] for row in tuples)
    cut = {
        "reference": "by one geometry for the whole group",
        "own": "by the clip's own",
        "given": "as their authors cropped them",
    }
    lines = [
        "---",
        "task_categories:",
        "- image-classification",
        "tags:",
        "- deepfake-detection",
        "- webdataset",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(f'  - split: {split}\n    path: "{split}-*.tar"' for split in info["tuples"]),
        "---",
        "",
        f"# {info['name']}: face tuples at {', '.join(info['qualities'])}",
        "",
        "Each sample is one face at one instant at every quality; only the compression differs inside it.",
        f"Made by {info['tool']}.",
        "",
        "| split | method | label | tuples |",
        "| --- | --- | --- | --- |",
        *(
            f"| {split} | {method} | {label} ({'fake' if label else 'real'}) | {count} |"
            for (split, method, label), count in sorted(counts.items())
        ),
        "",
        "| split | recordings (groups) |",
        "| --- | --- |",
        *(f"| {split} | {len(members)} |" for split, members in sorted(groups.items())),
        "",
        f"- crops: {info['size_px']} px, RGB, {info['codec'].upper()} (lossless)",
        f"- align `{extract['align']}`, margin {extract['margin']}",
        f"- frames wanted per clip: {extract['frames']}",
        f"- seed: {extract['seed']} (frames), {info['config']['seed']} (order)",
        f"- detector: {', '.join(f'{k} {v}' for k, v in extract['detector'].items())}",
        f"- cut: {', '.join(f'{kinds[kind]} tuples {words}' for kind, words in cut.items() if kinds[kind])}",
        f"- recordings in more than one split: {info['groups_in_several_splits']}",
        f"- attempted and left out: {', '.join(f'{n} {s}' for s, n in info['left_out'].items()) or 'none'}",
        f"- config {info['config_hash']}",
        "",
        "## Terms",
        "",
        *(f"- {dataset}: {_TERMS.get(dataset, 'see the terms of the source dataset')}" for dataset in datasets),
        "",
        "## Load",
        "",
        "```python",
        "from qadprep.shardset import ShardSet",
        f'tuples = ShardSet(".", split="{next(iter(info["tuples"]))}")',
        f'tuples[0].images["{info["qualities"][0]}"]  # uint8 ({info["size_px"]}, {info["size_px"]}, 3) RGB',
        "```",
        "",
        "or with the stock `webdataset` package:",
        "",
        "```python",
        "import webdataset as wds",
        f'for sample in wds.WebDataset("{info["shardlist"][0]["url"]}", shardshuffle=False):',
        f'    sample["__key__"], sample["{info["qualities"][0]}.{info["codec"]}"], sample["json"]  # bytes',
        "```",
        "",
    ]
    with atomic_file(path) as file:
        file.write("\n".join(lines).encode())
