"""verify on whole sets, on every kind of contradiction, on old and remote sets; and its repair."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.s3 import BUCKET, s3_server
from helpers.sets import made_packs, made_shards
from helpers.shard_damage import (
    change_index,
    change_info,
    change_row,
    change_tar,
    flipped,
    member,
    rewrite,
    rows_of,
)

from qadprep.cli import main
from qadprep.codecs import encode_image
from qadprep.errors import UserError
from qadprep.locks import sole_user
from qadprep.repair import repair
from qadprep.verify import Fault, VerifyReport, verify
from qadprep.verify_faults import MAX_LISTED_PER_SHARD
from qadprep.verify_file import ShardFile
from qadprep.verify_set import config_hash

LEVELS = ("full", "hashes", "quick")
ROW = 5


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


def only_fault(report: VerifyReport) -> Fault:
    assert report.fault_count == len(report.faults) == 1, report.faults
    return report.faults[0]


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`qadprep verify WORDS` in this process."""

    def run(*words: object) -> Ended:
        capfd.readouterr()
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                main(["verify", *map(str, words)])
        finally:
            signal.signal(signal.SIGINT, handler)
        out, err = capfd.readouterr()
        return Ended(ended.value.code or 0, out, err)

    return run


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_set(made_shards_master: Path, level: str) -> None:
    reports = [verify(made_shards_master, level=level, workers=workers) for workers in (1, 3)]
    sizes = [file.stat().st_size for file in made_shards_master.glob("*.tar")]
    assert reports[0] == reports[1]
    assert reports[0] == VerifyReport(level, shards=len(sizes), tuples=60, bytes=sum(sizes))
    assert reports[0].as_dict()["ok"] is True


# Which byte of a tuple is changed.
BYTES: dict[str, Callable[[dict[str, Any]], int]] = {
    "in a picture": lambda row: row["c40_offset"] + 300,
    "in the padding after a picture": lambda row: row["c40_offset"] + row["c40_size"],
    "in the json": lambda row: row["json_offset"] + 10,
    "the tuple's last": lambda row: row["offset"] + row["length"] - 1,
    "the tuple's first": lambda row: row["offset"],
    "in a header's name": lambda row: member(row, "c23")[0] + 5,
    "in a header's size": lambda row: member(row, "c23")[0] + 130,
    "in a header's checksum": lambda row: member(row, "c23")[0] + 150,
    "in a header's kind": lambda row: member(row, "c23")[0] + 156,
    "in a header's end": lambda row: member(row, "c23")[0] + 511,
}


@pytest.mark.parametrize("place", BYTES.values(), ids=BYTES)
def test_any_byte_of_a_tuple(made_set: Path, place: Callable[[dict[str, Any]], int]) -> None:
    row = rows_of(made_set)[ROW]
    at = place(row)
    change_tar(made_set, lambda data: flipped(data, at))
    in_header = any(0 <= at - member(row, name)[0] < 512 for name in ("raw", "c23", "c40", "json"))
    for level in LEVELS:
        report = verify(made_set, level=level)
        if level == "quick" and not in_header:
            assert report.faults == []
            continue
        assert report.damaged == ["train-000000.tar"] and {fault.key for fault in report.faults} <= {row["key"], ""}
        found = [fault.offset_bytes for fault in report.faults if fault.key]
        assert len(found) == 1 and row["offset"] <= found[0] <= at
        assert ["sha256 is" in fault.fault for fault in report.faults].count(True) == (level != "quick")


def test_processes_report_what_threads_do(made_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = rows_of(made_set)[ROW]
    change_tar(made_set, lambda data: flipped(data, row["c40_offset"] + 300))
    (made_set / "val-000000.tar").unlink()
    expected = verify(made_set, workers=2)
    monkeypatch.setattr("qadprep.verify_run.MAX_DECODING_THREADS", 1)
    assert verify(made_set, workers=2) == expected and expected.damaged == ["train-000000.tar", "val-000000.tar"]


def test_a_crash_while_decoding_is_a_fault_of_its_shard(made_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a picture that makes a native library crash."""

    def run_tasks(tasks, function, on_result, on_crash, **options):
        for number, task in enumerate(tasks):
            on_crash(task, "its worker process died") if number == 1 else on_result(task, function(task))

    monkeypatch.setattr("qadprep.verify_run.run_tasks", run_tasks)
    report = verify(made_set, workers=5)
    assert [fault for fault in report.faults if fault.shard != "shards.json"] == [
        Fault("train-000001.tar", "", None, "cannot be checked (its worker process died)")
    ]
    assert report.tuples == 44


@pytest.mark.parametrize("codec", ["webp", "raw"])
def test_other_codecs(made_faces_master: Path, tmp_path: Path, codec: str) -> None:
    folder = made_shards(tmp_path / "set", made_faces_master, codec=codec)
    assert verify(folder).faults == []
    row = rows_of(folder)[ROW]
    change_tar(folder, lambda data: flipped(data, row["c40_offset"] + row["c40_size"] // 2))
    found = [fault for fault in verify(folder).faults if fault.key]
    assert [(fault.shard, fault.key, fault.offset_bytes) for fault in found] == [
        ("train-000000.tar", row["key"], row["c40_offset"])
    ]


def test_names_that_need_a_prefix_in_the_header(tmp_path: Path) -> None:
    """Over 100 characters: the tar header splits them at a slash."""
    faces = made_packs(tmp_path / "faces", {"g" * 70: "train"}, methods=("original", "M" * 60), frames=2)
    folder = made_shards(tmp_path / "set", faces)
    assert max(len(row["key"]) for row in rows_of(folder)) > 130
    for level in LEVELS:
        assert verify(folder, level=level).faults == []
    row = next(row for row in rows_of(folder) if row["method"] != "original")
    change_tar(folder, lambda data: flipped(data, member(row, "c23")[0] + 350))
    first = next(fault for fault in verify(folder, level="quick").faults)
    assert (first.key, first.offset_bytes) == (row["key"], member(row, "c23")[0])


# What is wrong with an index whose hash is right, and what verify says of it: (changed cells, words of the fault).
CELLS: list[tuple[dict[str, Any], str]] = [
    ({"label": 7}, "label 7 contradicts method"),
    ({"split": "val"}, "split is 'val' in a shard of 'train'"),
    ({"frame": 9999}, "key contradicts its columns"),
    ({"key": "../../etc/passwd"}, "does not match"),
    ({"key": "a" * 201}, "in at most 200 characters"),
    ({"offset": 512}, "begins at byte 512 in the index"),
    ({"length": -5}, "has -5 bytes in the index"),
    ({"c23_size": 1}, "its members do not fill the length"),
    ({"json_offset": None}, "its members do not fill the length"),
    ({"sha256": None}, "the index has no sha256"),
    ({"c40_pixels_sha256": None}, "the index has no c40_pixels_sha256"),
]


@pytest.mark.parametrize(("cells", "words"), CELLS)
def test_an_index_that_contradicts_itself(made_set: Path, cells: dict[str, Any], words: str) -> None:
    change_row(made_set, ROW, **cells)
    key = rows_of(made_set)[ROW]["key"]
    for level in LEVELS:
        report = verify(made_set, level=level)
        assert report.damaged == ["train-000000.tar"]
        assert any(fault.key == key and words in fault.fault for fault in report.faults), report.faults


# What only the content tells, in full mode: (changed cells, words of the fault, member it names by its byte).
CONTENT: list[tuple[dict[str, Any], str, str]] = [
    ({"sha256": "0" * 64}, "is not what was written", "offset"),
    ({"c23_pixels_sha256": "0" * 64}, "pixels are not those written", "c23_offset"),
    ({"group": "007"}, "says group '", "json_offset"),
    ({"target": "007"}, "says target '", "json_offset"),
    ({"geometry": "own"}, "says geometry 'reference', the index 'own'", "json_offset"),
    ({"mask_share": 0.5}, "says mask_share None, the index 0.5", "json_offset"),
]


@pytest.mark.parametrize(("cells", "words", "place"), CONTENT)
def test_an_index_that_contradicts_the_tar(made_set: Path, cells: dict[str, Any], words: str, place: str) -> None:
    change_row(made_set, ROW, **cells)
    row = rows_of(made_set)[ROW]
    assert verify(made_set, level="quick").faults == []
    fault = only_fault(verify(made_set))
    at = row["offset"] if place == "offset" else row[place]
    assert (fault.shard, fault.key, fault.offset_bytes) == ("train-000000.tar", row["key"], at)
    assert words in fault.fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: facts.update(label=1 - facts["label"]), "says label"),
        (lambda facts: facts.update(label=bool(facts["label"])), "says label"),
        (lambda facts: facts.update(method="Face2Face"), "says method 'Face2Face'"),
        (lambda facts: facts.update(frame=facts["frame"] + 1), "says frame"),
        (lambda facts: facts.update(key="ffpp/original/0/000000_0"), "says key"),
        (lambda facts: facts.pop("label"), "says no label"),
        (lambda facts: facts.clear(), "says no key"),
    ],
)
def test_a_json_member_that_contradicts_the_index(
    made_set: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    """All hashes agree: the set was written like this."""

    def rewritten(tuples: list) -> None:
        members = tuples[ROW][1]
        facts = json.loads(members["json"])
        change(facts)
        members["json"] = json.dumps(facts).encode()

    rewrite(made_set, rewritten)
    row = rows_of(made_set)[ROW]
    assert verify(made_set, level="hashes").faults == []
    faults = verify(made_set).faults
    assert {(fault.key, fault.offset_bytes) for fault in faults} == {(row["key"], row["json_offset"])}
    assert any(words in fault.fault for fault in faults), faults


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_json_member_that_is_none(made_set: Path, text: bytes) -> None:
    rewrite(made_set, lambda tuples: tuples[ROW][1].update(json=text))
    row, fault = rows_of(made_set)[ROW], only_fault(verify(made_set))
    assert (fault.key, fault.offset_bytes) == (row["key"], row["json_offset"])
    assert " JSON" in fault.fault


def test_a_picture_of_another_size_or_kind(made_set: Path) -> None:
    def swapped(tuples: list) -> None:
        tuples[1][1]["raw"] = encode_image(np.zeros((32, 32, 3), np.uint8), "png")
        tuples[2][1]["c40"] = b"\xff\xd8\xff\xe0 a JPEG"

    rewrite(made_set, swapped)
    rows = rows_of(made_set)
    faults = verify(made_set).faults
    assert [(fault.key, fault.offset_bytes) for fault in faults] == [
        (rows[1]["key"], rows[1]["raw_offset"]),
        (rows[2]["key"], rows[2]["c40_offset"]),
    ]
    assert "picture is 32x32, expected 24x24" in faults[0].fault and "not a PNG" in faults[1].fault


def _copy_shard(folder: Path, name: str) -> None:
    """The first shard once more, as a new one."""
    for suffix in ("tar", "parquet"):
        shutil.copy(folder / f"train-000000.{suffix}", folder / f"{name}.{suffix}")

    def listed(info: dict[str, Any]) -> None:
        info["shardlist"].append(info["shardlist"][0] | {"url": f"{name}.tar", "index": f"{name}.parquet"})
        info["tuples"]["train"] += 16

    change_info(folder, listed)


@pytest.mark.parametrize("level", LEVELS)
def test_keys_that_are_in_two_shards(made_set: Path, level: str) -> None:
    _copy_shard(made_set, "train-000099")
    rows = rows_of(made_set)
    report = verify(made_set, level=level)
    assert report.fault_count == 16 and report.damaged == ["train-000099.tar"]
    found = {(fault.shard, fault.key, fault.offset_bytes, fault.fault) for fault in report.faults}
    assert found == {
        (
            "train-000099.tar",
            row["key"],
            row["offset"],
            f"the same key is in train-000000.tar at byte {row['offset']}",
        )
        for row in rows
    }


def test_more_double_keys_than_are_listed(made_set: Path) -> None:
    _copy_shard(made_set, "train-000098")
    _copy_shard(made_set, "train-000099")
    report = verify(made_set, level="quick")
    assert report.fault_count == 32 and MAX_LISTED_PER_SHARD <= len(report.faults) < 32


def test_a_key_twice_in_one_shard(made_set: Path) -> None:
    rewrite(made_set, lambda tuples: tuples.append((dict(tuples[ROW][0]), tuples[ROW][1])))
    rows = rows_of(made_set)
    fault = only_fault(verify(made_set))
    assert (fault.shard, fault.key, fault.offset_bytes) == ("train-000000.tar", rows[ROW]["key"], rows[-1]["offset"])
    assert f"in train-000000.tar at byte {rows[ROW]['offset']}" in fault.fault


@pytest.mark.parametrize(
    ("change", "file", "words"),
    [
        (lambda info: info["tuples"].update(train=35), "shards.json", "says 35 tuples of train, the indexes have 36"),
        (lambda info: info["tuples"].update(extra=1), "shards.json", "says 1 tuples of extra, the indexes have 0"),
        (lambda info: info.update(groups_in_several_splits=2), "shards.json", "0 groups are in several splits, 2 were"),
        (lambda info: info.update(config_hash="0" * 64), "shards.json", "config_hash is 000000000000…"),
        (lambda info: info["shardlist"][1].update(md5sum="0" * 32), "train-000001.tar", "md5sum is"),
        (lambda info: info["shardlist"][1].update(filesize=7), "train-000001.tar", "bytes, shards.json says 7"),
        (lambda info: info["shardlist"][1].update(index_sha256="0" * 64), "train-000001.tar", "index_sha256 is"),
    ],
)
def test_a_shards_json_that_says_something_else(
    made_set: Path, change: Callable[[dict[str, Any]], Any], file: str, words: str
) -> None:
    change_info(made_set, change)
    fault = verify(made_set).faults[0]
    assert fault.shard == file and words in fault.fault and fault.key == ""


def test_a_wrong_hash_of_a_whole_shard(made_set: Path) -> None:
    change_info(made_set, lambda info: info["shardlist"][0].update(sha256="0" * 64))
    for level in ("full", "hashes"):
        faults = verify(made_set, level=level).faults
        assert ["sha256 is" in faults[0].fault, "every tuple is as the index says" in faults[1].fault] == [True, True]
        assert len(faults) == 2


def test_settings_that_were_changed_afterwards(made_set: Path) -> None:
    change_info(made_set, lambda info: info["config"].update(seed=4))
    faults = verify(made_set, level="quick").faults
    assert [fault.shard for fault in faults] == ["shards.json", "shard.json"]
    assert "its config gives" in faults[0].fault and faults[1].fault == "is not the config in shards.json: seed"
    (made_set / "shard.json").write_text("[")
    assert "cannot be read" in verify(made_set, level="quick").faults[1].fault
    (made_set / "shard.json").unlink()
    assert verify(made_set, level="quick").faults[1].fault == "the file is missing"


def test_recordings_in_several_splits(tmp_path: Path) -> None:
    """As in the official lists of some datasets: noted by `shard`, so it is no fault; a new one is."""
    faces = made_packs(tmp_path / "faces", {"000": "train", "001": "val"})
    folder = made_shards(tmp_path / "set", faces)
    assert verify(folder).crossing == []
    moved = pq.read_table(folder / "val-000000.parquet")
    group = moved.column_names.index("group")
    change_index(
        folder, lambda table: table.set_column(group, "group", pa.array(["000"] * len(table))), shard="val-000000"
    )
    report = verify(folder, level="hashes")
    assert report.crossing == ["ffpp/000"]
    assert only_fault(report).fault == "1 groups are in several splits, 0 were when it was written: ffpp/000"
    change_info(folder, lambda info: info.update(groups_in_several_splits=1))
    report = verify(folder, level="hashes")
    assert (report.crossing, report.faults) == (["ffpp/000"], [])


def test_missing_and_surplus_files(made_set: Path) -> None:
    (made_set / "test-000000.tar").unlink()
    (made_set / "val-000000.parquet").unlink()
    (made_set / "test-000007.tar").write_bytes(b"old")
    (made_set / "train-000000.parquet").write_bytes(b"PAR1 no parquet PAR1")
    report = verify(made_set)
    found = {(fault.shard, fault.fault.split("(")[0]) for fault in report.faults}
    assert {
        ("test-000000.tar", "the file is missing"),
        ("val-000000.tar", "val-000000.parquet: the file is missing"),
        ("test-000007.tar", "is not in shards.json: left over from another run?"),
    } <= found
    assert any(fault.fault.endswith("write the shard set again") for fault in report.faults)
    assert report.damaged == ["train-000000.tar", "val-000000.tar", "test-000000.tar"]
    # A tar whose index is lost is still hashed.
    change_tar(made_set, lambda data: flipped(data, 700), shard="val-000000")
    assert any(f.shard == "val-000000.tar" and "sha256 is" in f.fault for f in verify(made_set).faults)


def test_a_shard_that_is_wrong_all_over_is_listed_in_short(made_set: Path) -> None:
    change_tar(made_set, lambda data: bytes(len(data)))
    report = verify(made_set)
    assert report.fault_count > len(report.faults) == MAX_LISTED_PER_SHARD or report.fault_count == 17
    assert report.as_dict()["fault_count"] == report.fault_count


def test_something_else_than_a_file(made_set: Path) -> None:
    (made_set / "train-000000.tar").unlink()
    (made_set / "train-000000.tar").mkdir()
    fault = only_fault(verify(made_set))
    assert fault.shard == "train-000000.tar" and "is not a plain file" in fault.fault


def test_a_large_shard_is_read_piece_by_piece(made_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pieces smaller than a tuple, and ones that hold some."""
    row = rows_of(made_set)[ROW]
    whole = verify(made_set)
    change_tar(made_set, lambda data: flipped(data, row["c23_offset"] + 40))
    expected = verify(made_set)
    assert [fault.key for fault in expected.faults] == [row["key"], ""]
    for module in ("verify_shard", "verify_file"):
        monkeypatch.setattr(f"qadprep.{module}.CHUNK_BYTES", 3 * row["length"] + 7)
    assert verify(made_set) == expected
    for module in ("verify_shard", "verify_file"):
        monkeypatch.setattr(f"qadprep.{module}.CHUNK_BYTES", 512)
    assert [fault.key for fault in verify(made_set, level="hashes").faults] == ["", row["key"]]
    change_tar(made_set, lambda data: flipped(data, row["c23_offset"] + 40))
    assert verify(made_set) == whole


@pytest.fixture
def old_set(made_set: Path) -> Path:
    """As format 1.0 was: no hashes of tuples, pixels or indexes, no json members, no groups."""
    gone = {"sha256", "group", "target", "source", "geometry", "json_offset", "json_size"}
    for file in sorted(made_set.glob("*.parquet")):
        table = pq.read_table(file)
        lost = [name for name in table.column_names if name in gone or name.endswith(("_pixels_sha256", "_psnr_db"))]
        pq.write_table(table.drop_columns(lost), file)
    kept = ("format_version", "qualities", "codec", "size_px", "shardlist")
    info = {name: json.loads((made_set / "shards.json").read_text())[name] for name in kept}
    info["shardlist"] = [
        {name: entry[name] for name in ("url", "index", "split", "nsamples", "sha256")} for entry in info["shardlist"]
    ]
    (made_set / "shards.json").write_text(json.dumps(info | {"format_version": "1.0"}))
    return made_set


def test_an_old_set_is_checked_as_far_as_it_goes(old_set: Path) -> None:
    report = verify(old_set)
    assert (report.tuples, report.faults) == (60, [])
    assert len(report.notes) == 7 and any("no hashes of the pixels of c23" in note for note in report.notes)
    row = rows_of(old_set)[ROW]
    change_tar(old_set, lambda data: flipped(data, member(row, "c23")[0] + 3))
    for level in LEVELS:
        found = [fault for fault in verify(old_set, level=level).faults if fault.key]
        assert [(fault.key, fault.offset_bytes) for fault in found] == [(row["key"], member(row, "c23")[0])]


def test_a_set_behind_a_url(made_set: Path) -> None:
    """In fsspec's memory: the same report as of the local folder, damaged and whole."""
    from upath import UPath

    remote = UPath("memory://verify/set")
    for file in made_set.iterdir():
        (remote / file.name).write_bytes(file.read_bytes())
    for level in LEVELS:
        assert verify("memory://verify/set", level=level) == verify(made_set, level=level)
    levels = ("full", "quick")
    row = rows_of(made_set)[ROW]
    for change in (lambda data: flipped(data, member(row, "c40")[0] + 9), lambda data: data[: row["c40_offset"]]):
        change_tar(made_set, change)
        (remote / "train-000000.tar").write_bytes((made_set / "train-000000.tar").read_bytes())
        for level in levels:
            local = verify(made_set, level=level)
            assert local.fault_count and verify(remote, level=level) == local
    (remote / "train-000000.tar").unlink()
    assert any(fault.fault == "the file is missing" for fault in verify(remote).faults)


def test_a_set_in_s3(made_set: Path) -> None:
    row = rows_of(made_set)[ROW]
    change_tar(made_set, lambda data: flipped(data, row["c40_offset"] + 30))
    with s3_server():
        from upath import UPath

        remote = UPath(f"s3://{BUCKET}/set")
        for file in made_set.iterdir():
            (remote / file.name).write_bytes(file.read_bytes())
        for level in ("hashes", "quick"):
            report = verify(f"s3://{BUCKET}/set", level=level)
            assert report.shards == 5 and report == verify(made_set, level=level)


def test_reading_a_file_that_shrinks(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)) * 100)
    with ShardFile(tmp_path / "file") as file:
        assert bytes(file.read(250, 30)) == bytes([*range(50, 80)])
        (tmp_path / "file").write_bytes(b"short")
        with pytest.raises(OSError, match="ends at byte 5, it had 10000 bytes before"):
            file.read(0, 10)


def test_the_command_line(made_set: Path, run: Callable[..., Ended]) -> None:
    good = run(made_set, "--json", "--quick")
    assert good.returncode == 0 and json.loads(good.stdout)["ok"] is True
    row = rows_of(made_set)[ROW]
    change_tar(made_set, lambda data: flipped(data, row["c40_offset"] + 30))
    bad = run(made_set, "--json", "--no-decode")
    report = json.loads(bad.stdout)
    assert (bad.returncode, report["level"], report["ok"], report["damaged_shards"]) == (
        1,
        "hashes",
        False,
        ["train-000000.tar"],
    )
    assert report["fault_count"] == len(report["faults"]) == 2
    fault = next(fault for fault in report["faults"] if fault["key"])
    assert (fault["shard"], fault["key"], fault["offset_bytes"]) == ("train-000000.tar", row["key"], row["offset"])
    table = run(made_set)
    assert table.returncode == 1 and str(row["c40_offset"]) in table.stdout and row["key"] in table.stdout
    assert "--repair" in table.stderr and "1 damaged shards" in table.stderr
    for words in (["--quick", "--no-decode"], ["--repair"], ["--faces", "x"], ["--workers", "-1"]):
        refused = run(made_set, *words)
        assert refused.returncode == 2 and refused.stderr.startswith("qadprep: --") and refused.stderr.count("\n") == 1


def test_repair_writes_damaged_shards_again(made_set: Path, made_faces_master: Path) -> None:
    before = digests(made_set)
    row = rows_of(made_set)[ROW]
    change_tar(made_set, lambda data: flipped(data, row["c40_offset"] + 30))
    change_tar(made_set, lambda data: data[:-20000], shard="train-000001")
    (made_set / "test-000000.tar").unlink()
    (made_set / "val-000000.parquet").unlink()
    (made_set / "shard.json").write_text("{}")
    untouched = made_set / "train-000002.tar"
    state = untouched.stat()
    report = repair(made_set, made_faces_master)
    assert report.found.damaged == ["train-000000.tar", "train-000001.tar", "val-000000.tar", "test-000000.tar"]
    assert sorted(report.repaired) == sorted(["shard.json", *report.found.damaged])
    assert report.left.faults == [] and digests(made_set) == before
    assert (untouched.stat().st_ino, untouched.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    assert report.as_dict()["ok"] is True and report.as_dict()["found"]["ok"] is False
    assert repair(made_set, made_faces_master).repaired == []


@pytest.mark.parametrize("level", LEVELS)
def test_repair_at_each_level(made_set: Path, made_faces_master: Path, level: str) -> None:
    before = digests(made_set)
    row = rows_of(made_set)[ROW]
    change_tar(made_set, lambda data: flipped(data, member(row, "c40")[0] + 30))
    (made_set / "val-000000.parquet").write_bytes(b"")
    assert repair(made_set, made_faces_master, level=level).left.fault_count == 0
    assert digests(made_set) == before


def test_repair_on_the_command_line(made_set: Path, made_faces_master: Path, run: Callable[..., Ended]) -> None:
    before = digests(made_set)
    (made_set / "test-000000.tar").unlink()
    (made_set / "train-000055.tar").write_bytes(b"mine")
    left = run(made_set, "--repair", "--faces", made_faces_master, "--json")
    result = json.loads(left.stdout)
    assert (left.returncode, result["repaired"], result["fault_count"]) == (1, ["test-000000.tar"], 1)
    assert (made_set / "train-000055.tar").read_bytes() == b"mine"
    (made_set / "train-000055.tar").unlink()
    (made_set / "test-000000.tar").write_bytes(b"")
    good = run(made_set, "--repair", "--faces", made_faces_master)
    assert good.returncode == 0 and "written again: test-000000.tar" in good.stderr
    assert digests(made_set) == before


def test_repair_names_damaged_crops_of_the_packs(
    made_set: Path, made_faces_master: Path, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    faces = Path(shutil.copytree(made_faces_master, tmp_path / "faces"))
    [row] = [row for row in rows_of(made_set, "test-000000") if row["frame"] == 10 and row["method"] == "original"]
    pack = faces / "ffpp" / "200.tar"
    data = pack.read_bytes()
    at = data.index(b"original/200/000010_0.c23.png") + 512 + 40
    pack.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    (made_set / "test-000000.tar").unlink()
    report = repair(made_set, faces)
    assert report.repaired == [] and report.left.fault_count
    [crop] = report.as_dict()["damaged_crops"]
    assert (crop["key"], crop["pack"], crop["byte"]) == (row["key"], "ffpp/200.tar", at - 40)
    done = run(made_set, "--repair", "--faces", faces)
    assert done.returncode == 1 and "damaged crops in the packs themselves" in done.stdout


def test_repair_waits_for_nobody(made_set: Path, made_faces_master: Path) -> None:
    """Not even shard.json is written while another run is at work there."""
    (made_set / "shard.json").write_text("{}")
    with sole_user(made_set), pytest.raises(UserError, match="another run is writing there"):
        repair(made_set, made_faces_master, level="quick")
    assert (made_set / "shard.json").read_text() == "{}"
    assert repair(made_set, made_faces_master, level="quick").repaired == ["shard.json"]
    assert not (made_set / ".lock").exists()


def test_repair_of_a_set_whose_packs_hash_is_of_an_older_version(made_set: Path, made_faces_master: Path) -> None:
    info = json.loads((made_set / "shards.json").read_text())
    config = info["config"] | {"packs_hash": "0" * 64}
    config["config_hash"] = config_hash(config)
    info |= {"config": config, "config_hash": config["config_hash"]}
    (made_set / "shards.json").write_text(json.dumps(info))
    (made_set / "shard.json").write_text(json.dumps(config))
    before = digests(made_set)
    (made_set / "val-000000.tar").unlink()
    assert repair(made_set, made_faces_master).repaired == ["val-000000.tar"]
    assert digests(made_set) == before


def test_repair_refuses_what_it_cannot_do(
    made_set: Path, made_faces_master: Path, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    (made_set / "test-000000.tar").unlink()
    before = digests(made_set)
    with pytest.raises(UserError, match="other packs"):
        repair(made_set, made_packs(tmp_path / "faces", {"000": "train"}))
    with pytest.raises(UserError, match=r"was extracted with size_px = 32, the packs of .* with 24; name the folder"):
        repair(made_set, made_packs(tmp_path / "larger", {"000": "train"}, size_px=32))
    assert digests(made_set) == before
    change_info(made_set, lambda info: info.update(config={"made_by": "merge", "merged": []}))
    with pytest.raises(UserError, match="was not written from face packs, but by merge; repair the sets"):
        repair(made_set, made_faces_master)
    (made_set / "shards.json").write_text("{")
    refused = run(made_set, "--repair", "--faces", made_faces_master)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "run `qadprep shard" in refused.stderr


def test_an_index_of_no_tuples(made_set: Path) -> None:
    rewrite(made_set, lambda tuples: tuples.clear())
    for level in LEVELS:
        report = verify(made_set, level=level)
        assert (report.tuples, report.faults) == (44, [])
    change_tar(made_set, lambda data: b"x" + data[1:])
    assert "byte 0 should be 0" in verify(made_set, level="quick").faults[0].fault
