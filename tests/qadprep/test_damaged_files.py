"""Two hundred damaged files in one run: no crash, no hang, a reason for each; good ones as if they were alone."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clips import fake_of, moving_face
from helpers.damage import DAMAGES, Damage
from helpers.packs import pack_hashes
from helpers.pixels import check_packs

from qadprep.pack import find_packs, read_pack
from qadprep.video.encode import compress, write_raw

FRAMES, TUPLES, GOOD_GROUPS = 20, 4, 4
# Far above the two minutes of an idle machine; a hang would last for ever.
TIMEOUT_S = 540


@dataclass(frozen=True)
class Spoilt:
    """One damaged file.

    Attributes:
        path: as in the list; beside: the same clip's good file.
        clip: `<method>/<name>`.
    """

    damage: Damage
    path: str
    beside: str
    clip: str
    group: str


class Tree:
    """A list of clips at two qualities; every group has an original and, most of them, a fake."""

    def __init__(self, root: Path, good: dict[str, Path]) -> None:
        self.root, self.good, self.rows = root, good, ["path,label,split,group,method,quality,name"]
        self.spoilt: list[Spoilt] = []

    def add_good(self, group: str) -> None:
        for label in ("real", "fake"):
            for quality in ("raw", "c40"):
                self._add(group, label, quality)

    def add_spoilt(self, group: str, damage: Damage, place: int, rng: random.Random) -> None:
        """Places: the only clip's raw file or c40; the fake's raw file beside a good original; the original's raw."""
        label, quality = (("real", "raw"), ("real", "c40"), ("fake", "raw"), ("real", "raw"))[place]
        for other in ("real", "fake") if place >= 2 else ("real",):
            for each in ("raw", "c40"):
                if (other, each) != (label, quality):
                    self._add(group, other, each)
        scratch = self.root / "scratch"
        scratch.mkdir(exist_ok=True)
        data = damage.spoil(self.good[f"{label}-{quality}"].read_bytes(), rng, scratch)
        path = self._row(group, label, quality, damage.suffix)
        (self.root / path).write_bytes(data)
        method = "original" if label == "real" else "Swap"
        beside = f"{'c40' if quality == 'raw' else 'raw'}/{group}-{label}.mp4"
        self.spoilt.append(Spoilt(damage, path, beside, f"{method}/{group}-{label}", group))

    def _add(self, group: str, label: str, quality: str) -> None:
        os.link(self.good[f"{label}-{quality}"], self.root / self._row(group, label, quality))

    def _row(self, group: str, label: str, quality: str, suffix: str = ".mp4") -> str:
        path = f"{quality}/{group}-{label}{suffix}"
        (self.root / quality).mkdir(exist_ok=True)
        method = "original" if label == "real" else "Swap"
        self.rows.append(f"{path},{label},train,{group},{method},{quality},{group}-{label}")
        return path

    def write_list(self) -> Path:
        file = self.root / "list.csv"
        file.write_text("\n".join(self.rows) + "\n")
        return file


@pytest.fixture(scope="module")
def good(portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`<label>-<quality>` -> a good file."""
    folder = tmp_path_factory.mktemp("good")
    original = moving_face(portrait, FRAMES, 0, 160, 120)
    files = {}
    for label, clip in (("real", original), ("fake", fake_of(original))):
        files |= {f"{label}-{quality}": folder / f"{label}-{quality}.mp4" for quality in ("raw", "c40")}
        write_raw(clip, files[f"{label}-raw"], 25)
        compress(files[f"{label}-raw"], files[f"{label}-c40"], 40)
    return files


def extract(file: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "qadprep", "extract", file, "--dataset", "generic", "--out", out, "--json"]
    words += ["--qualities", "raw,c40", "--frames", TUPLES, "--size", 64, "--detector", "mtcnn", "--workers", 2]
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_damaged_files_in_one_run(good: dict[str, Path], tmp_path: Path) -> None:
    alone, mixed = (Tree(tmp_path / name, good) for name in ("alone", "mixed"))
    for tree in (alone, mixed):
        tree.root.mkdir()
        for number in range(GOOD_GROUPS):
            tree.add_good(f"good{number}")
    rng = random.Random(4)
    kinds = [damage for damage in DAMAGES for _ in range(damage.count)]
    assert len(kinds) == 200
    for number, damage in enumerate(kinds):
        mixed.add_spoilt(f"bad{number:03d}", damage, number % 4, rng)
    before = extract(alone.write_list(), tmp_path / "packs-alone")
    assert before.returncode == 0, before.stderr
    after = extract(mixed.write_list(), tmp_path / "packs")
    assert after.returncode == 1, after.stderr
    assert "Traceback" not in after.stderr
    summary = json.loads(after.stdout)
    assert not [failure for failure in summary["failures"] if failure["status"] == "error"]

    # The good ones: the same bytes as without the others.
    packs = pack_hashes(tmp_path / "packs")
    wanted = pack_hashes(tmp_path / "packs-alone")
    assert len(wanted) == 2 * GOOD_GROUPS
    assert {name: packs.get(name) for name in wanted} == wanted

    # The others: each attempted, and accounted for.
    statuses: dict[str, Counter[str]] = {}
    for table in find_packs(tmp_path / "packs"):
        for row in read_pack(table).table.to_pylist():
            statuses.setdefault(f"{row['method']}/{row['name']}", Counter())[row["status"]] += 1
    check_reasons(mixed.spoilt, summary, statuses)

    # What was taken from damaged files is what ffmpeg decodes at those places.
    checked = check_packs(tmp_path / "packs", mixed.root, damaged=True)
    assert checked.faults == []
    assert checked.tuples == sum(counts["ok"] for counts in statuses.values())


def check_reasons(spoilt_files: list[Spoilt], summary: dict[str, Any], statuses: dict[str, Counter[str]]) -> None:
    """Each damaged file has a reason, or its clip gave what was wanted; good clips beside it give tuples."""
    reasons = {failure["what"]: failure for failure in summary["failures"]}
    noted = {note["clip"] for note in summary["notes"]}
    refused = 0
    for spoilt in spoilt_files:
        where = f"{spoilt.damage.name}: {spoilt.path}"
        own = statuses[spoilt.clip]
        # A readable file of other content may be the reference that its good sister is then refused by.
        reason = reasons.get(spoilt.path) or reasons.get(spoilt.clip) or reasons.get(spoilt.beside)
        refused += reason is not None
        assert reason or own["ok"] == TUPLES or (own["ok"] and spoilt.clip in noted), (where, own)
        if reason:
            assert reason["message"] and "\n" not in reason["message"], where
        if spoilt.damage.status == "ok":
            assert reason is None and own == {"ok": TUPLES}, (where, reason)
        elif spoilt.damage.status:
            assert reason and reason["status"] == spoilt.damage.status, (where, reason, own)
    assert refused >= 100
    assert {reason["group"] for reason in reasons.values()} <= {spoilt.group for spoilt in spoilt_files}

    # A good original beside a damaged fake gives all its tuples; a good fake beside a damaged original gives some.
    for number, spoilt in enumerate(spoilt_files):
        if number % 4 == 2:
            assert statuses[f"original/{spoilt.group}-real"]["ok"] == TUPLES, spoilt
        elif number % 4 == 3:
            assert statuses[f"Swap/{spoilt.group}-fake"]["ok"] > 0, (spoilt, statuses[f"Swap/{spoilt.group}-fake"])
