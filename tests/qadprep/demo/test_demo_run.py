"""The README's first command, end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest


@pytest.mark.slow
def test_the_whole_demonstration_and_its_second_run(tmp_path: Path) -> None:
    """Where QAD_DEMO names the folder of a demo that has just run, that is the first run."""
    folder = Path(os.environ.get("QAD_DEMO") or tmp_path / "demo")

    def run() -> dict:
        command = [sys.executable, "-m", "qadprep", "demo", str(folder), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    if "QAD_DEMO" not in os.environ:
        run()
    extracted = json.loads((folder / "faces" / "summary.json").read_text())
    assert extracted["statuses"] == {"ok": 1008} and extracted["failures"] == []
    assert set(extracted["sync"]) <= {"reference", "proved", "static"}
    scores_file = next((folder / "run" / "eval").glob("*/scores.parquet"))
    scored, page = pq.read_table(scores_file), (folder / "report.html").read_text()
    assert len(scored) == 288 * 3
    assert "stand-ins made for a demonstration" in page and "Scores on test, frame level" in page

    second = run()
    assert second["verify"]["ok"] and second["verify"]["tuples"] == 1008 == sum(second["shard"]["tuples"].values())
    assert second["extract"]["groups_skipped"] == second["extract"]["groups"] == 14
    scores = second["scores"]["frame"]
    # Chance is 0.5; eight training identities and under a minute of training give well above it.
    assert scores["raw"]["average"]["auc"] > 0.8 and scores["c40"]["average"]["auc"] > 0.6
    assert len(second["contact_sheets"]) == 6 and all(Path(sheet).is_file() for sheet in second["contact_sheets"])
    assert pq.read_table(scores_file).equals(scored)
    assert (folder / "report.html").read_text() == page
