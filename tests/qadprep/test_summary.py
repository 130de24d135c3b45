"""The summary of an extraction, from packs that hold every outcome."""

import copy
import json
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.summaries import DETAIL, eventful, record, row, sync, written
from hypothesis import given
from hypothesis import strategies as st

from qadprep import extract_tables
from qadprep.faces.service_process import Statistics
from qadprep.pack import read_pack
from qadprep.results import RowFacts, SyncTally, facts_of, facts_of_rows, summarise
from qadprep.summary import ExtractSummary, add_up, of_last_work


@pytest.fixture
def facts(tmp_path: Path) -> dict:
    """The summary of the eventful group and of a plain one that was finished earlier."""
    return summary_of(tmp_path).as_dict()


def summary_of(folder: Path) -> ExtractSummary:
    first = written(folder, "071", *eventful(), detected_frames=4, decoded_frames=40)
    first.seconds, first.peak_rss_mib = {"write": 1.0, "decode": 5.0, "others": 2.0, "detect": 2.0}, 700.0
    plain = [row("original", "953", frame, split="test") for frame in (1, 2)]
    files = [record("original", "953", q, sync=sync("reference" if q == "raw" else "proved")) for q in ("raw", "c40")]
    second = written(folder, "953", plain, files, detected_frames=2, decoded_frames=99)
    second.skipped = True
    return ExtractSummary(
        [first, second],
        crashed=[("974", "its worker process died")],
        detector="using MTCNN, as asked",
        seconds=4.0,
        workers=2,
        detectors=[Statistics("cuda:0", frames=4, batches=2, seconds_busy=1.0, seconds=4.0)],
    )


def test_every_attempt_is_there_or_has_its_reason(facts: dict) -> None:
    assert (facts["attempted"], facts["tuples"]) == (16, 10)
    assert facts["statuses"] == {"no_face": 2, "ok": 10, "small_face": 1, "sync_refused": 3}
    assert [(c["method"], c["split"], c["attempted"], c["ok"], c["reasons"]) for c in facts["classes"]] == [
        ("original", "train", 4, 3, {"no_face": 1}),
        ("original", "test", 2, 2, {}),
        ("Deepfakes", "train", 4, 3, {"no_face": 1}),
        ("FaceSwap", "val", 3, 2, {"small_face": 1}),
        ("NeuralTextures", "train", 3, 0, {"sync_refused": 3}),
    ]
    assert facts["classes"][0]["crops"] == {"raw": 3, "c40": 3}
    assert facts["methods"]["original"] == {"attempted": 6, "ok": 5, "reasons": {"no_face": 1}}
    for counted in (*facts["classes"], *facts["methods"].values()):
        assert counted["attempted"] == counted["ok"] + sum(counted["reasons"].values())
    assert facts["files"] == {"raw": {"files": 5, "usable": 5}, "c40": {"files": 5, "usable": 4}}
    assert facts["unaltered"] == {"Deepfakes": 1}


def test_sync_outcomes_by_method_and_quality(facts: dict) -> None:
    assert facts["sync"] == {"proved": 4, "reference": 3, "refused": 1, "shifted": 1, "static": 1}
    by = {(entry["method"], entry["quality"]): entry for entry in facts["sync_files"]}
    assert list(by)[:2] == [("original", "raw"), ("original", "c40")]
    original = by["original", "c40"]
    assert (original["proved"], original["worst_margin"]) == (2, 0.4)
    assert original["worst_margin_file"] == "original/c40/071.mp4" and original["worst_residual"] == 2.5
    shifted = by["Deepfakes", "raw"]
    assert (shifted["shifted"], shifted["shifted_in_time"], shifted["offsets_frames"]) == (1, 1, {"+2": 1})
    placed = by["FaceSwap", "raw"]
    assert (placed["placed_elsewhere"], placed["relations"]) == (1, {"centre_crop": 1})
    refused = by["NeuralTextures", "c40"]
    assert refused["refused"] == 1 and refused["worst_margin"] is None and refused["offsets_frames"] == {}
    assert by["FaceSwap", "c40"]["worst_margin"] is None  # static files pass by their counts, not by a margin
    assert [(m["file"], m["verdict"], m["offset_frames"], m["reason"]) for m in facts["moved"]] == [
        ("Deepfakes/raw/071_054.mp4", "shifted", 2, ""),
        ("FaceSwap/raw/071_054.mp4", "proved", 0, ""),
        ("NeuralTextures/c40/071_054.mp4", "refused", 3, DETAIL),
    ]
    assert facts["moved"][1]["left_px"] == 80.0


def test_detections_saved_by_reuse(facts: dict) -> None:
    # original: 3 frames of c40; Deepfakes: 3 frames of both files; FaceSwap by its own faces: 3 frames of c40; 953: 2.
    assert facts["detections"] == {"made": 6, "saved_by_reuse": 3 + 6 + 3 + 2, "in_every_file": 20}


def test_what_a_pack_says_goes_before_what_its_rows_say(tmp_path: Path) -> None:
    result = written(tmp_path, "071", *eventful(), detected_frames=4, detections_saved=50)
    assert ExtractSummary([result]).as_dict()["detections"]["saved_by_reuse"] == 50
    unknown = written(tmp_path, "071", *eventful())
    assert ExtractSummary([unknown]).as_dict()["detections"] == {
        "made": None, "saved_by_reuse": 12, "in_every_file": None,
    }  # fmt: skip


def test_speed_memory_and_services(facts: dict) -> None:
    # Only the groups of this run count: the other one took none of its time.
    assert facts["speed"] == {
        "frames_decoded": 40, "decoded_per_second": 10.0, "crops_written": 16, "crops_per_second": 4.0,
    }  # fmt: skip
    assert list(facts["stage_seconds"]) == ["decode", "detect", "write", "others"]
    assert facts["peak_rss_mib"] == 700.0
    assert facts["detector_services"] == [
        {"device": "cuda:0", "frames": 4, "batches": 2, "busy_seconds": 1.0, "share": 0.25}
    ]
    assert (facts["workers"], facts["engine"], facts["part"], facts["groups_skipped"]) == (2, "local", "", 1)
    assert facts["failures"][-1] == {
        "group": "974", "what": "974", "status": "error", "message": "its worker process died",
    }  # fmt: skip


def test_a_row_without_a_reason_is_an_error(tmp_path: Path) -> None:
    rows, files = eventful()
    rows[3].status = ""
    result = written(tmp_path, "071", rows, files)
    with pytest.raises(ValueError, match=r"group 071: 14 attempted tuples, but 13 are ok or have a named reason"):
        ExtractSummary([result]).as_dict()
    whole = written(tmp_path, "071", *eventful())
    whole.classes["original", "train"]["ok"] += 1
    with pytest.raises(ValueError, match="14 attempted tuples, but 14 are"):
        ExtractSummary([whole]).check()


def test_a_pack_gives_back_the_result_of_its_run(tmp_path: Path) -> None:
    rows, files = eventful()
    at_once = summarise("071", facts_of_rows(rows), files, [])
    again = written(tmp_path, "071", rows, files)
    again.pack_bytes = 0
    assert again == at_once
    assert pickle.loads(pickle.dumps(at_once)) == at_once and len(pickle.dumps(at_once)) < 8000


def test_tables_and_evidence_of_older_packs(tmp_path: Path) -> None:
    table = pa.table({"method": ["original"], "name": ["071"], "status": ["ok"], "split": ["train"]})
    assert facts_of(table) == [RowFacts("original", "071", "train", "ok", "", None, -1)]
    old = {"verdict": "shifted", "offset_frames": -1, "margin": 0.3, "residual": 1.0, "instants": 9, "agreeing": 9}
    result = summarise("071", facts_of(table), [record("original", "071", "c40", sync=old)], [])
    entry = ExtractSummary([result]).as_dict()["sync_files"][0]
    assert entry["offsets_frames"] == {"-1": 1} and entry["placed_elsewhere"] == 0 and entry["worst_margin"] == 0.3
    columns, rows = extract_tables.moved_rows({"moved": result.moved})
    assert dict(zip(columns, rows[0], strict=True))["place"] == "equal"


def test_masks_are_files_but_no_crops(tmp_path: Path) -> None:
    files = [record("original", "071", q) for q in ("raw", "c40")]
    files += [record("Swap", "071_x", "mask", "mask_missing")]
    facts = ExtractSummary([written(tmp_path, "071", [row("original", "071", 1)], files)]).as_dict()
    assert list(facts["files"]) == ["raw", "c40", "mask"] and facts["files"]["mask"] == {"files": 1, "usable": 0}
    assert facts["classes"][0]["crops"] == {"raw": 1, "c40": 1}


def test_a_run_without_groups() -> None:
    facts = ExtractSummary().as_dict()
    assert (facts["attempted"], facts["tuples"], facts["classes"], facts["peak_rss_mib"]) == (0, 0, [], 0.0)
    assert facts["speed"]["crops_per_second"] == 0.0 and facts["detections"]["made"] == 0


def test_what_the_terminal_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract_tables.summary(summary_of(tmp_path), Path("faces"))
    shown = capsys.readouterr()
    table = " ".join(shown.out.split())
    for words in (
        "original │ train │ 4 │ 3 │ 1 no_face │ 3 raw, 3 c40",
        "all │ │ 16 │ 10 │ 2 no_face, 1 small_face, 3 sync_refused",
        "c40 │ 5 │ 4 │ 1",
        "Deepfakes │ raw │ 0 │ 0 │ 0 │ 1 │ 0 │ 1 by +2",
        "shifted │ +2 │ equal",
        "centre_crop at 80,0",
        "decode │ 5.0 │ 50 %",
    ):
        assert words in table, words
    assert "6 frames, 14 saved by reuse (in every file it would have been 20, 3.3 times as many)" in shown.err
    assert "10.0 frames decoded and 4.0 crops written a second" in shown.err
    assert "detector on cuda:0: 4 frames, busy 1.0 s, 25 % of its time" in shown.err
    assert "at most 0.68 GiB a worker" in shown.err and "manipulated: 1 Deepfakes" in shown.err
    assert "10 tuples from 2 groups, 1 of them finished earlier" in shown.err


def test_engine_and_part_are_said_where_they_are_not_the_usual(tmp_path: Path) -> None:
    facts = ExtractSummary(engine="ray", part="2/5").as_dict()
    assert extract_tables.summary_lines(facts) == ["engine ray, part 2/5"]
    assert json.loads(json.dumps(facts)) == facts


verdicts = st.sampled_from(("reference", "proved", "static", "shifted", "refused"))
evidence = st.builds(
    lambda verdict, offset, margin, relation: sync(verdict, offset, margin, margin * 9, relation=relation),
    verdicts,
    st.integers(-3, 3),
    st.floats(0, 1),
    st.sampled_from(("equal", "crop", "unknown")),
)


@given(st.lists(evidence, max_size=30), st.integers(0, 30))
def test_tallies_add_up_wherever_groups_are_cut(entries: list[dict], cut: int) -> None:
    whole, first, second = SyncTally(), SyncTally(), SyncTally()
    for number, entry in enumerate(entries):
        whole.add(str(number), entry)
        (first if number < cut else second).add(str(number), entry)
    first.merge(second)
    assert first == whole
    assert sum(whole.verdicts.values()) == len(entries)
    passed = [entry["margin"] for entry in entries if entry["verdict"] in ("proved", "shifted")]
    assert whole.margin == min(passed, default=None)
    assert whole.offsets == Counter(e["offset_frames"] for e in entries if e["verdict"] == "shifted" and
                                    e["offset_frames"])  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))))
def test_add_up(parts: list[dict[str, int]]) -> None:
    before = copy.deepcopy(parts)
    assert add_up(parts) == dict(sorted(sum((Counter(part) for part in parts), Counter()).items())) | {
        key: 0 for part in parts for key in part if not sum(p.get(key, 0) for p in parts)
    }
    assert parts == before


def test_reading_a_pack_keeps_the_counts(tmp_path: Path) -> None:
    written(tmp_path, "071", *eventful(), decoded_frames=7)
    assert read_pack(tmp_path / "ffpp" / "071.parquet").meta["counts"] == {"decoded_frames": 7}


def test_a_run_without_work_keeps_the_figures_of_the_one_that_had_it(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    summary.crashed = []
    worked = json.loads(json.dumps(summary.as_dict()))
    for result in summary.results:
        result.skipped, result.seconds, result.peak_rss_mib = True, {}, 0.0
    summary.seconds, summary.workers, summary.detectors = 0.5, 1, []
    idle = summary.as_dict()
    assert idle["stage_seconds"] != worked["stage_seconds"]
    assert of_last_work(idle, worked) == worked
    # Nothing to keep, or a summary of other packs.
    assert of_last_work(idle, None) is idle
    assert of_last_work(idle, worked | {"tuples": 9}) is idle
    # A group that was done, or failed, is work.
    summary.results[0].skipped = False
    assert of_last_work(summary.as_dict(), worked)["seconds"] == 0.5
    summary.results[0].skipped, summary.crashed = True, [("974", "its worker process died")]
    assert of_last_work(summary.as_dict(), worked | {"groups_crashed": 1})["seconds"] == 0.5
