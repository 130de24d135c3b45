"""What programs take from a dataset card: the front matter for the Hugging Face hub, and code that loads the shards."""

import json
import re
from collections.abc import Sequence
from typing import Any

from qadprep.shard_format import CODECS, splits_in_order

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip


def front_matter(info: dict[str, Any]) -> str:
    """The YAML block on top of the card of a set with this `shards.json`: licence, size, splits and their files."""
    total = sum(info["tuples"].values())
    size = next((word for most, word in _SIZES if total < most), "n>1B")
    sizes = dict.fromkeys(info["tuples"], 0)
    for shard in info["shardlist"]:
        sizes[shard["split"]] = sizes.get(shard["split"], 0) + (shard.get("filesize") or 0)
    splits = [split for split in splits_in_order(set(info["tuples"])) if info["tuples"][split]]
    tags = ["deepfake-detection", "face-forgery-detection", "video-compression", "webdataset"]
    lines = [
        "---",
        "license: other",
        "license_name: terms-of-the-source-datasets",
        f"pretty_name: {json.dumps(info['name'], ensure_ascii=False)}",
        "task_categories:",
        "- image-classification",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(f'  - split: {json.dumps(split)}\n    path: "{split}-*.tar"' for split in splits),
        "dataset_info:",
        "  config_name: default",
        "  splits:",
        *(
            f"  - name: {json.dumps(split)}\n    num_bytes: {sizes[split]}\n    num_examples: {info['tuples'][split]}"
            for split in splits
        ),
        f"  download_size: {sum(sizes.values())}",
        f"  dataset_size: {sum(sizes.values())}",
        "---",
        "",
    ]
    return "\n".join(lines)


def load_lines(info: dict[str, Any]) -> list[str]:
    """Markdown lines with three ways to load such a set; each block of code runs in the set's folder."""
    split = next((name for name in splits_in_order(set(info["tuples"])) if info["tuples"][name]), "train")
    urls = [shard["url"] for shard in info["shardlist"] if shard["split"] == split]
    best, side, ending = info["qualities"][0], info["size_px"], CODECS[info["codec"]]
    members = [f"{quality}.{ending}" for quality in info["qualities"]]
    member = members[0]
    kind = f'Array3D(({side}, {side}, 3), "uint8")' if info["codec"] == "raw" else "Image()"
    if info["codec"] == "raw":
        imports = ["import io", "import json", "", "import numpy as np"]
        decoder = 'wds.handle_extension("npy", lambda data: np.load(io.BytesIO(data), allow_pickle=False))'
    else:
        imports, decoder = ["import json", ""], f'wds.imagehandler("rgb8", ["{ending}"])'
    return [
        "By number, in any order:",
        "",
        "```python",
        "from qadprep.shardset import ShardSet",
        "",
        f'with ShardSet(".", split="{split}") as tuples:',
        f'    image = tuples[0].images["{best}"]  # uint8 ({side}, {side}, 3) RGB',
        "    label = tuples[0].label",
        "```",
        "",
        "As a stream, with the stock `webdataset` package. Name the decoders as here: its default ones also open "
        "pickles.",
        "",
        "```python",
        *imports,
        "import webdataset as wds",
        "",
        f'stream = wds.WebDataset("{_brace(urls)}", shardshuffle=False).decode(',
        f'    {decoder}, wds.handle_extension("json", json.loads), pre=[], post=[]',
        ")",
        "sample = next(iter(stream))",
        f'image, label = sample["{member}"], sample["json"]["label"]',
        "```",
        "",
        "With the `datasets` package. Name the features: else it guesses them from the first tuples.",
        "",
        "```python",
        f"from datasets import Features, {kind.split('(')[0]}, Value, load_dataset",
        "",
        'facts = {"label": Value("int8"), "method": Value("string"), "video": Value("string")}',
        f"images = {{name: {kind} for name in {members}}}",
        'features = Features({"__key__": Value("string"), "json": facts} | images)',
        f'files = {{"{split}": "{split}-*.tar"}}',
        f'rows = load_dataset("webdataset", data_files=files, split="{split}", features=features, streaming=True)',
        "row = next(iter(rows))",
        f'image, label = row["{member}"], row["json"]["label"]',
        "```",
    ]


def _brace(urls: Sequence[str]) -> str:
    """Shards of a split as one pattern of webdataset, where their numbers run without a gap."""
    numbers = [re.fullmatch(r"(.+-)(\d{6})\.tar", url) for url in urls]
    if len(urls) > 1 and all(numbers):
        stem, first, last = numbers[0][1], int(numbers[0][2]), int(numbers[-1][2])
        if urls == [f"{stem}{number:06d}.tar" for number in range(first, last + 1)]:
            return f"{stem}{{{first:06d}..{last:06d}}}.tar"
    return urls[0] if urls else ""
