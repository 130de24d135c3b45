import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qadprep.config import ExtractConfig, ShardConfig, guard_output
from qadprep.errors import UserError

HEAVY = ("torch", "cv2", "numpy", "pyarrow", "pydantic", "av")


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qadprep", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["qadprep", "qadtrain"])
def test_help_imports_nothing_heavy(package: str) -> None:
    code = (
        f"import sys; sys.argv = ['{package}', '--help']\n"
        f"from {package}.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in result.stdout and result.stderr.strip() == "[]"


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - start)
    # The promise is 0.5 s on an idle machine; what makes it slow is an import, which the test above catches.
    assert min(times) < 2


def test_only_detectors_bring_torch() -> None:
    code = (
        "import qadprep.shardset, qadprep.scan, qadprep.shard, qadprep.verify, qadprep.report, qadprep.extract, sys\n"
        "print('torch' in sys.modules, any(name.startswith('qadtrain') for name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_json_is_the_only_thing_on_stdout(ffpp_tree_master: Path, tmp_path: Path) -> None:
    result = run("scan", ffpp_tree_master, "--dataset", "ffpp", "--out", tmp_path / "m.parquet", "--json")
    summary = json.loads(result.stdout)
    assert (summary["clips"], summary["groups"], summary["qualities"]) == (12, 4, ["raw", "c23", "c40"])
    assert (tmp_path / "m.parquet").is_file()
    table = run("scan", ffpp_tree_master).stdout
    assert "Deepfakes" in table and "720" in table


def test_settings_say_what_was_wrong() -> None:
    cases = {
        "--frames: got 0": {"frames": 0},
        "--size: got 8": {"size_px": 8},
        "--margin: got 0.5": {"margin": 0.5},
        "--align: got 'eyes'": {"align": "eyes"},
        "--qualities: got ()": {"qualities": ()},
        "--qualities: got ('raw', 'raw')": {"qualities": ("raw", "raw")},
        "is not a word such as raw": {"qualities": ("../raw",)},
    }
    for message, values in cases.items():
        with pytest.raises(UserError) as caught:
            ExtractConfig.checked(dataset="ffpp", **values)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert ExtractConfig(dataset="ffpp", qualities=("c40", "raw", "c23")).qualities == ("raw", "c23", "c40")


def test_hash_depends_on_every_setting() -> None:
    base = ExtractConfig(dataset="ffpp")
    changes = [{"frames": 3}, {"size_px": 64}, {"margin": 2.0}, {"align": "box"}, {"seed": 1}, {"qualities": ("raw",)}]
    changes += [{"detector": {"name": "mtcnn"}}, {"dataset": "other"}]
    hashes = {base.model_copy(update=change).hash() for change in changes} | {base.hash()}
    assert len(hashes) == len(changes) + 1
    assert base.hash() == ExtractConfig(dataset="ffpp").hash()
    assert ShardConfig().hash("a") != ShardConfig().hash("b") != ShardConfig(seed=1).hash("b")


def test_an_output_folder_keeps_one_config(tmp_path: Path) -> None:
    guard_output(tmp_path, "c.json", {"a": 1}, overwrite=False)
    (tmp_path / "c.json").write_text('{"a": 1}')
    guard_output(tmp_path, "c.json", {"a": 1}, overwrite=False)
    with pytest.raises(UserError, match="was written with a = 1, now 2"):
        guard_output(tmp_path, "c.json", {"a": 2}, overwrite=False)
    guard_output(tmp_path, "c.json", {"a": 2}, overwrite=True)


def test_plan_lists_the_protocols_and_refuses_the_rest() -> None:
    listed = run("plan")
    assert listed.returncode == 0 and "qad-ffpp-all" in listed.stdout and "qad-celebdf" in listed.stdout
    unknown = run("plan", "--protocol", "qad-celeb")
    assert unknown.returncode == 2 and "unknown protocol 'qad-celeb'; known: qad-celebdf, qad-ffiw" in unknown.stderr
    without = run("plan", ".")
    assert without.returncode == 2 and "--protocol NAME is needed" in without.stderr
    arithmetic = run("plan", "--protocol", "qad-ffpp-FaceSwap").stdout
    assert "= 92,160 tuples, x 3 qualities = 276,480 images; printed 276,480 (agrees)" in arithmetic
    assert "= 53,760 images; printed 53,750 (difference +10)" in arithmetic


def test_scan_prints_what_crosses_splits_and_what_does_not_fit(tmp_path: Path) -> None:
    for name in ("Celeb-real/id1_0007.mp4", "Celeb-real/id4_0003.mp4", "Celeb-synthesis/id4_id1_0003.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Celeb-real" / "notes.txt").touch()
    result = run("scan", tmp_path, "--dataset", "celebdf")
    assert result.returncode == 0, result.stderr
    assert "not an mp4 file" in result.stdout and "in the official test list, not on disk" in result.stdout
    # A test fake's original sits outside the list.
    assert "what crosses the splits" in result.stdout and "id4_0003" in result.stdout


def test_scan_check_quality_names_the_file_and_fails(ffpp_tree: Path) -> None:
    youtube = ffpp_tree / "original_sequences" / "youtube"
    (youtube / "c23" / "videos" / "071.mp4").write_bytes((youtube / "c40" / "videos" / "071.mp4").read_bytes())
    result = run("scan", ffpp_tree, "--check-quality", "--json")
    assert result.returncode == 1
    quality = json.loads(result.stdout)["quality"]
    assert quality["agree"] == 35 and quality["mismatched"] == [
        {"path": "original_sequences/youtube/c23/videos/071.mp4", "quality": "c23", "found_crf": 40.0}
    ]
    assert "made with CRF 40" in run("scan", ffpp_tree, "--check-quality").stdout
