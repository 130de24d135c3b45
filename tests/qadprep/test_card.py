"""The dataset card: what it states, that the hub can read its front matter, and that its code runs."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.sets import made_shards

from qadprep.card import card_text, write_card
from qadprep.card_hub import front_matter
from qadprep.shard_format import CODECS, read_info
from qadprep.shardset import ShardSet
from qadprep.store import open_folder

FACTS = {
    "classes": [
        {"split": "train", "dataset": "ffpp", "method": "original", "label": 0, "tuples": 7, "videos": 2},
        {"split": "train", "dataset": "ffpp", "method": "Deepfakes", "label": 1, "tuples": 6, "videos": 2},
        {"split": "test", "dataset": "own", "method": "original", "label": 0, "tuples": 3, "videos": 1},
    ],
    "groups": {"test": 1, "train": 2},
    "geometry": {"reference": 15, "own": 1},
}


@pytest.fixture(scope="module")
def info(made_shards_master: Path) -> dict[str, Any]:
    return read_info(made_shards_master)


def test_the_front_matter_is_what_the_hub_reads(info: dict[str, Any], made_shards_master: Path) -> None:
    text = (made_shards_master / "README.md").read_text()
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other" and front["license_name"] == "terms-of-the-source-datasets"
    assert front["task_categories"] == ["image-classification"] and "webdataset" in front["tags"]
    assert front["size_categories"] == ["n<1K"] and front["pretty_name"] == "ffpp-24px"
    (config,) = front["configs"]
    assert [(f["split"], f["path"]) for f in config["data_files"]] == [
        ("train", "train-*.tar"), ("val", "val-*.tar"), ("test", "test-*.tar"),
    ]  # fmt: skip
    sizes = {
        split: sum(f.stat().st_size for f in made_shards_master.glob(f"{split}-*.tar")) for split in info["tuples"]
    }
    assert front["dataset_info"]["splits"] == [
        {"name": split, "num_bytes": sizes[split], "num_examples": count}
        for split, count in (("train", 36), ("val", 12), ("test", 12))
    ]
    assert front["dataset_info"]["dataset_size"] == sum(sizes.values())


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9999, "1K<n<10K"),
        (123_456, "100K<n<1M"),
        (10**6, "1M<n<10M"),
        (2 * 10**9, "n>1B"),
    ],
)
def test_sizes_and_names_that_yaml_could_misread(info: dict[str, Any], count: int, words: str) -> None:
    changed = {**info, "name": 'no: "ä" # x\n- y', "tuples": {"no": count, "yes": 0}, "shardlist": []}
    front = yaml.safe_load(front_matter(changed).split("---\n")[1])
    assert front["size_categories"] == [words] and front["pretty_name"] == 'no: "ä" # x\n- y'
    assert front["dataset_info"]["splits"] == [{"name": "no", "num_bytes": 0, "num_examples": count}]


def test_counts_and_provenance(info: dict[str, Any], made_shards_master: Path) -> None:
    text = (made_shards_master / "README.md").read_text()
    for line in (
        "| train | ffpp | original | real | 3 | 12 | 12 | 12 | 12 |",
        "| test | ffpp | FaceSwap | fake | 1 | 4 | 4 | 4 | 4 |",
        "| all |  |  |  | 15 | 60 | 60 | 60 | 60 |",
        "| train | 3 |",
        "- datasets: ffpp",
        "- crops: 24 px, aligned by `similarity`, margin 1.3",
        "- cut: 60 tuples by one geometry for all clips of the recording",
        "- chosen tuples: all complete ones",
        "- attempted and left out: 5 no_face",
        f"- config `{info['config_hash']}`",
        "Leaks: no recording has tuples in more than one split.",
        "`<key>.c40.png`",
    ):
        assert line in text, line
    assert "forbid passing on" in text


def test_sync_protocol_selection_and_leaks_are_told(info: dict[str, Any]) -> None:
    changed = copy.deepcopy(info)
    changed |= {"sync": {"proved": 9, "reference": 4}, "protocol": "wdf", "groups_in_several_splits": 2}
    changed["extraction"] = {"attempted": 1200, "ok": 1100, "failures": 3}
    changed["config"] |= {
        "methods": ["original", "Deepfakes"],
        "where": "key = '`x`'\nor face_px > 3",
        "balance": "even",
    }
    text = card_text(changed, FACTS)
    reference, proved = text.index("| reference | 4 |"), text.index("| proved | 9 | show the same instants")
    assert reference < proved and "- protocol: wdf" in text
    assert "1,200 tuples attempted, 1,100 of them complete, 3 groups, clips or files that could not be used" in text
    assert "Leaks: 2 recordings have tuples in more than one split." in text
    chosen = next(line for line in text.splitlines() if line.startswith("- chosen tuples"))
    assert chosen.endswith("methods `original, Deepfakes`, where ``key = '`x`' or face_px > 3``")
    assert (
        "- order: every stretch of a split has the split's mix of methods, each in the order of a shuffle, seed" in text
    )
    changed["config"]["balance"] = "equal"
    assert "``key = '`x`' or face_px > 3``, balance `equal`\n" in card_text(changed, FACTS)
    rows = [line for line in text.splitlines() if line.startswith(("| train | ffpp", "| test | own"))]
    assert [row.split(" | ")[2] for row in rows] == ["original", "Deepfakes", "original"]
    assert "- own: see the terms of the source dataset" in text and "- ffpp: FaceForensics++" in text
    assert (
        "- cut: 15 tuples by one geometry for all clips of the recording, 1 tuples by the clip's own geometry" in text
    )


def test_a_set_made_of_others_has_no_extraction_of_its_own(info: dict[str, Any]) -> None:
    changed = copy.deepcopy(info)
    changed["name"] = "a|<b>"
    source = {"name": "one", "fingerprint": "f" * 64, "config_hash": "c" * 64}
    changed["config"] = {"made_by": "merge", "merged": [source, {**source, "name": "two"}]}
    text = card_text(changed, FACTS)
    assert f"- merged from two, fingerprint `{'f' * 64}`, config `{'c' * 64}`" in text
    assert "how they were extracted is told by the sets that this one is made of" in text and "seed" not in text
    assert "# a\\|\\<b\\>: face tuples" in text
    changed["config"] = {"made_by": "split", "by": "label", "value": 0, "split_of": source}
    text = card_text(changed, FACTS)
    assert "- taken out of one, " in text and "- chosen tuples: by `label`, value `0`" in text
    # Nothing is said of sources that they do not say themselves.
    filtered = {**source, "chosen": {"methods": ["original"]}, "made_of": [{**source, "name": "<x>"}, "junk"]}
    changed["config"] = {"made_by": "merge", "merged": [filtered, source]}
    text = card_text(changed, FACTS)
    assert "- chosen tuples: as chosen in the sources\n" in text and "all complete ones\n- cut" in text
    assert f"config `{'c' * 64}`, chosen there: methods `original`\n  - made of \\<x\\>, fingerprint" in text
    assert "junk" not in text and "- order" not in text
    del changed["config"]
    assert "- cut: 15 tuples" in card_text(changed, FACTS)


def test_a_card_in_a_remote_folder(info: dict[str, Any], tmp_path: Path) -> None:
    folder = open_folder("memory://card-test")
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder / "README.md", info, FACTS)
    write_card(tmp_path / "README.md", info, FACTS)
    data = (folder / "README.md").read_bytes()
    assert data == (tmp_path / "README.md").read_bytes() and data.decode() == card_text(info, FACTS)


CODE = """
import contextlib, hashlib, json, os, pathlib, re, sys
import numpy as np
found = {}
for folder in sys.argv[1:]:
    os.chdir(folder)
    results = []
    for block in re.findall(r"```python\\n(.*?)```", pathlib.Path("README.md").read_text(), re.S):
        names = {}
        exec(block, names)
        image = np.asarray(names["image"]).astype(np.uint8)
        results.append([hashlib.sha256(image.tobytes()).hexdigest(), image.shape, int(names["label"])])
    from datasets import load_dataset
    splits = load_dataset(folder, streaming=True)
    found[folder] = [results, {split: [row["__key__"] for row in rows] for split, rows in splits.items()}]
print(json.dumps(found))
"""


def test_the_code_of_the_card_runs_and_reads_the_same_tuple(made_faces_master: Path, tmp_path: Path) -> None:
    import hashlib

    folders = [made_shards(tmp_path / codec, made_faces_master, codec=codec) for codec in CODECS]
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | offline,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for folder in folders:
        first = ShardSet(folder, "train")[0]
        wanted = [hashlib.sha256(first.images["raw"].tobytes()).hexdigest(), [24, 24, 3], first.label]
        results, keys = found[str(folder)]
        assert results == [wanted] * 3, folder.name
        # By the front matter alone, `datasets` finds every tuple of every split.
        assert {split: sorted(names) for split, names in keys.items()} == {
            split: sorted(ShardSet(folder, split).table["key"].to_pylist()) for split in ("train", "val", "test")
        }
        stream = re.search(r'wds\.WebDataset\("([^"]+)"', (folder / "README.md").read_text())[1]
        assert stream == "train-{000000..000002}.tar"
