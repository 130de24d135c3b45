"""The README's first command, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest


@pytest.mark.slow
def test_the_whole_demonstration_and_its_second_run(tmp_path: Path) -> None:
    def run() -> dict:
        command = [sys.executable, "-m", "qadprep", "demo", str(tmp_path / "demo"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = run()
    assert first["extract"]["statuses"] == {"ok": 1008} and first["extract"]["failures"] == []
    assert set(first["extract"]["sync"]) <= {"reference", "proved", "static"}
    assert first["verify"]["ok"] and first["verify"]["tuples"] == 1008 == sum(first["shard"]["tuples"].values())
    scores = first["scores"]["frame"]
    # Chance is 0.5; eight training identities and under a minute of training give well above it.
    assert scores["raw"]["average"]["auc"] > 0.8 and scores["c40"]["average"]["auc"] > 0.6
    table = pq.read_table(next((tmp_path / "demo" / "run" / "eval").glob("*/scores.parquet")))
    assert len(table) == 288 * 3
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "stand-ins made for a demonstration" in page and "Scores on test, frame level" in page
    assert len(first["contact_sheets"]) == 6 and all(Path(sheet).is_file() for sheet in first["contact_sheets"])

    second = run()
    assert second["extract"]["groups_skipped"] == second["extract"]["groups"] == 14
    assert second["scores"] == first["scores"]
    assert (tmp_path / "demo" / "report.html").read_text() == page
