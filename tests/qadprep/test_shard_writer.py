"""Writing shards: codecs, workers, resuming, damaged packs, a full disk, and mending single shards."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.sets import made_packs
from helpers.written import digests, index_rows, pack_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qadprep import shard_run, shard_tar, shard_writer
from qadprep.config import ExtractConfig, ShardConfig
from qadprep.errors import RunEnded, UserError
from qadprep.locks import reader, sole_user
from qadprep.pack import Row, write_pack
from qadprep.pack_reader import png_fault
from qadprep.scratch import _locked, temporary_folder
from qadprep.shard import rewrite_shards, shard

CONFIG = ShardConfig(tuples_per_shard=8)


@pytest.fixture
def faces(made_faces_master: Path, tmp_path: Path) -> Path:
    """A copy of the packs that a test may damage."""
    return Path(shutil.copytree(made_faces_master, tmp_path / "faces"))


@pytest.fixture(scope="module")
def whole(made_faces_master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed set: 5 train shards, 2 val, 2 test."""
    out = tmp_path_factory.mktemp("whole") / "s"
    assert shard(made_faces_master, out, CONFIG).shards == 9
    return out


def visible(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# Content


def test_nothing_else_lies_there(whole: Path) -> None:
    names = [f"{split}-{n:06d}" for split, shards in (("test", 2), ("train", 5), ("val", 2)) for n in range(shards)]
    files = [f"{name}.{kind}" for name in names for kind in ("parquet", "tar")]
    assert sorted(digests(whole)) == sorted([*files, "README.md", "shard.json", "shards.json"])


def test_the_same_bytes_from_any_number_of_workers(made_faces_master: Path, whole: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 5):
        summary = shard(made_faces_master, tmp_path / str(workers), CONFIG, workers=workers)
        assert not summary.failed and summary.kept == 0
        assert digests(tmp_path / str(workers)) == digests(whole)


def decoded(data: bytes, extension: str) -> np.ndarray:
    """uint8 (side, side, 3) RGB, by the libraries themselves."""
    if extension == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def check_pixels(faces: Path, out: Path, extension: str, qualities: tuple[str, ...]) -> None:
    """Every member of every tar is the pack's crop, pixel for pixel, at the place that the index says."""
    packs = {row["key"]: row for row in pack_rows(faces)}
    seen = set()
    for file in sorted(out.glob("*.tar")):
        rows = {row["key"]: row for row in pq.read_table(file.with_suffix(".parquet")).to_pylist()}
        with tarfile.open(file) as tar:
            members = {member.name: (member.offset_data, tar.extractfile(member).read()) for member in tar}
        assert list(members) == [
            f"{key}.{end}" for key in rows for end in (*(f"{quality}.{extension}" for quality in qualities), "json")
        ]
        for key, row in rows.items():
            for quality in qualities:
                offset, data = members[f"{key}.{quality}.{extension}"]
                assert (offset, len(data)) == (row[f"{quality}_offset"], row[f"{quality}_size"])
                pack = packs[key]
                png = pack["tar"].read_bytes()[pack[f"{quality}_offset"] :][: pack[f"{quality}_size"]]
                assert (data == png) == (extension == "png")
                np.testing.assert_array_equal(decoded(data, extension), decoded(png, "png"))
                assert row[f"{quality}_pixels_sha256"] == pack[f"{quality}_pixels_sha256"]
            offset, data = members[f"{key}.json"]
            facts = json.loads(data)
            assert (offset, len(data)) == (row["json_offset"], row["json_size"]) and facts["key"] == key
            assert facts["affine"] == packs[key]["affine"] and facts["label"] == row["label"] == packs[key]["label"]
            seen.add(key)
    assert seen == set(packs)


words = st.from_regex(r"[A-Za-z0-9_-]{1,30}", fullmatch=True)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    videos=st.dictionaries(words, st.integers(1, 3), min_size=1, max_size=4),
    group=words,
    method=words,
    size_px=st.integers(16, 40),
    qualities=st.sampled_from([("raw",), ("raw", "c40"), ("raw", "c23", "c40")]),
    seed=st.integers(0, 2**32),
)
def test_every_codec_keeps_every_pixel(
    tmp_path_factory: pytest.TempPathFactory,
    videos: dict[str, int],
    group: str,
    method: str,
    size_px: int,
    qualities: tuple[str, ...],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("codecs")
    faces = random_packs(folder / "faces", videos, group, method, size_px, qualities, seed)
    for codec, extension in (("png", "png"), ("webp", "webp"), ("raw", "npy")):
        shard(faces, folder / codec, ShardConfig(codec=codec, tuples_per_shard=3))
        check_pixels(faces, folder / codec, extension, qualities)
        assert json.loads((folder / codec / "shards.json").read_text())["codec"] == codec


def random_packs(
    folder: Path,
    videos: dict[str, int],
    group: str,
    method: str,
    size_px: int,
    qualities: tuple[str, ...],
    seed: int,
) -> Path:
    """One pack of noise and of flat colour; no two crops alike."""
    rng = np.random.default_rng(seed)
    config = ExtractConfig(dataset="made", size_px=size_px, qualities=qualities)
    rows = []
    for video, frames in videos.items():
        for frame in range(frames):
            crops = {quality: rng.integers(0, 256, (size_px, size_px, 3), np.uint8) for quality in qualities}
            crops[qualities[-1]][: size_px // 2] = rng.integers(0, 256, 3, np.uint8)
            rows.append(
                Row("made", group, method, video, 1, "train", "", "", frame * 1_000_003, frame, "ok", affine=[0.1] * 6,
                    crops=crops)
            )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "extract.json").write_text(json.dumps(config.model_dump(mode="json")))
    (folder / "summary.json").write_text('{"failures": []}')
    write_pack(folder, "made", group, rows, [], qualities, {"config_hash": config.hash()})
    return folder


def test_a_codec_that_loses_a_pixel_is_named(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shard_writer.encode_image

    def lossy(image: np.ndarray, codec: str) -> bytes:
        image = image.copy()
        image[3, 4, 1] ^= 1
        return real(image, codec)

    monkeypatch.setattr(shard_writer, "encode_image", lossy)
    summary = shard(faces, tmp_path / "s", ShardConfig(codec="webp", splits=("val",)))
    assert summary.failed and len(summary.faults) == 12
    assert "not lossless as webp" in summary.faults[0].fault and not summary.faults[0].damaged
    assert not list((tmp_path / "s").glob("*.tar"))


def test_pixels_that_the_table_does_not_know_are_named(faces: Path, tmp_path: Path) -> None:
    file = faces / "ffpp" / "100.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("c23_pixels_sha256")
    hashes = table["c23_pixels_sha256"].to_pylist()
    hashes[2] = "0" * 64
    table = table.set_column(place, table.schema.field(place), pa.array(hashes, pa.string()))
    pq.write_table(table, file)
    summary = shard(faces, tmp_path / "s", ShardConfig(codec="raw"))
    [fault] = summary.faults
    assert (fault.key, fault.pack) == ("ffpp/original/100/000020_0", "ffpp/100.tar")
    assert fault.byte == table["c23_offset"][2].as_py()
    assert fault.fault == "original/100/000020_0.c23.png: its pixels are not those that the pack's table knows"


# Damaged packs


def flip(tar: Path, at: int) -> None:
    data = bytearray(tar.read_bytes())
    data[at] ^= 0x10
    tar.write_bytes(data)


def _flip_picture(tar: Path, row: dict[str, Any]) -> tuple[int, str]:
    flip(tar, row["c23_offset"] + 200)
    return row["c23_offset"], "a damaged PNG file"


def _flip_size(tar: Path, row: dict[str, Any]) -> tuple[int, str]:
    flip(tar, row["raw_offset"] + 19)
    return row["raw_offset"], "a damaged PNG file"


def _flip_name(tar: Path, row: dict[str, Any]) -> tuple[int, str]:
    flip(tar, row["c40_offset"] - 510)
    return row["c40_offset"] - 512, "the bytes there are not the tar header of"


def _cut_crop(tar: Path, row: dict[str, Any]) -> tuple[int, str]:
    os.truncate(tar, row["c40_offset"] + 70)
    return row["c40_offset"] + 70, "the tar is cut short"


@pytest.mark.parametrize("damage", [_flip_picture, _flip_size, _flip_name, _cut_crop])
def test_a_damaged_crop_is_named_and_the_rest_is_kept(
    faces: Path, whole: Path, tmp_path: Path, damage: Callable[..., tuple[int, str]]
) -> None:
    tar = faces / "ffpp" / "200.tar"
    sound = tar.read_bytes()
    row = next(row for row in reversed(pack_rows(faces)) if row["group"] == "200")  # the last: a cut hits no other
    byte, words = damage(tar, row)
    summary = shard(faces, tmp_path / "s", CONFIG)
    [fault] = summary.faults
    assert (fault.key, fault.pack, fault.byte, fault.damaged) == (row["key"], "ffpp/200.tar", byte, True)
    assert words in fault.fault
    # The shards that need nothing of it are there, whole; there is no shard set.
    bad = next(row["shard"] for row in index_rows(whole) if row["key"] == fault.key)
    names = {Path(entry["url"]).stem for entry in json.loads((whole / "shards.json").read_text())["shardlist"]}
    there = {file.stem for file in (tmp_path / "s").glob("*.tar")}
    assert there == {file.stem for file in (tmp_path / "s").glob("*.parquet")} == names - {bad}
    assert "shards.json" not in visible(tmp_path / "s") and not list((tmp_path / "s").rglob("*.tmp"))
    # Mended, only that shard is written.
    tar.write_bytes(sound)
    again = shard(faces, tmp_path / "s", CONFIG)
    assert (again.kept, again.shards, again.failed) == (8, 9, False)
    assert digests(tmp_path / "s") == digests(whole)


def test_what_the_command_says_of_damaged_packs(faces: Path, tmp_path: Path) -> None:
    row = pack_rows(faces)[0]
    for name in ("000", "200"):
        flip(faces / "ffpp" / f"{name}.tar", row["raw_offset"] + 100)
    command = [sys.executable, "-m", "qadprep", "shard", str(faces), "--out", str(tmp_path / "s")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "crops that cannot be used" in run.stdout and "ffpp/000.tar" in run.stdout
    assert f"in {faces} delete ffpp/000.parquet, ffpp/200.parquet, run `qadprep extract` again" in run.stderr
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    result = json.loads(run.stdout)
    assert run.returncode == 1 and not result["ok"] and result["shards_kept"] == 1
    assert [fault["pack"] for fault in result["faults"]] == ["ffpp/000.tar", "ffpp/200.tar"]


def test_a_pack_that_vanished_and_one_that_cannot_be_read(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread

    def pread(handle: int, size: int, offset: int) -> bytes:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "100.tar":
            raise OSError(errno.EIO, "Input/output error")
        return real(handle, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    plan = shard_run.write_shard

    def late(job: Any) -> Any:
        (faces / "ffpp" / "200.tar").unlink(missing_ok=True)
        return plan(job)

    monkeypatch.setattr(shard_run, "write_shard", late)
    summary = shard(faces, tmp_path / "s", ShardConfig())
    assert {(fault.pack, fault.fault, fault.damaged) for fault in summary.faults} == {
        ("ffpp/100.tar", "cannot be read (Input/output error)", False),
        ("ffpp/200.tar", "there is no such file", True),
    }
    assert len(summary.faults) == 24 and {file.name for file in (tmp_path / "s").glob("*.tar")} == {"train-000000.tar"}


def test_many_faults_are_counted(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "MAX_FAULTS", 10)
    for file in (faces / "ffpp").glob("*.tar"):
        os.truncate(file, 100)
    summary = shard(faces, tmp_path / "s", ShardConfig())
    assert len(summary.faults) == 30 and summary.further_faults == 30


def test_pngs_own_checksums() -> None:
    done, data = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))
    png = data.tobytes()
    assert done and png_fault(png, 16) is None
    assert png_fault(png, 17) == "picture is 16x16, expected 17x17"
    assert png_fault(png[:-1], 16) == png_fault(png[:20], 16) == "a PNG file that is cut short"
    assert png_fault(png + b"x", 16) == "a PNG file with bytes after its end"
    assert png_fault(b"\xff\xd8 a jpeg", 16) == png_fault(b"", 16) == "not a PNG file"
    for place in range(len(png)):
        changed = bytearray(png)
        changed[place] ^= 0x01
        assert png_fault(bytes(changed), 16), place


# Stopped and going on


class _Stopped(BaseException):
    """As Ctrl-C, or a kill."""


def stop_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> pytest.MonkeyPatch.context:
    """Let a run in this process end before it has written more than so many shards."""
    real, written = shard_run.write_shard, []

    def write(job: Any) -> Any:
        if len(written) == shards:
            raise _Stopped
        written.append(job.name)
        return real(job)

    context = monkeypatch.context()
    context.__enter__().setattr(shard_run, "write_shard", write)
    return context


def run_until(monkeypatch: pytest.MonkeyPatch, shards: int, *arguments: Any, **options: Any) -> None:
    context = stop_after(monkeypatch, shards)
    try:
        with pytest.raises(_Stopped):
            shard(*arguments, **options)
    finally:
        context.__exit__(None, None, None)


def test_a_stopped_run_goes_on(
    made_faces_master: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    run_until(monkeypatch, 4, made_faces_master, out, CONFIG)
    assert len(list(out.glob("*.tar"))) == len(list((out / ".entries").iterdir())) == 4
    assert not (out / "shards.json").exists() and not list(out.glob(".plan-*"))
    # What a kill -9 leaves.
    (out / ".plan-99-0123abcd").mkdir()
    (out / ".plan-99-0123abcd" / "train-000000.plan.parquet").touch()
    for name in (".train-000004.tar.99-0123abcd.tmp", ".shards.json.99-0123abcd.tmp", ".README.md.99-0123abcd.tmp"):
        (out / name).touch()
    (out / ".entries" / ".train-000004.json.99-0123abcd.tmp").touch()
    (out / "train-000004.tar").write_bytes(b"without its index")
    run_until(monkeypatch, 2, made_faces_master, out, CONFIG)
    said: list[str] = []
    summary = shard(made_faces_master, out, CONFIG, say=said.append)
    assert (summary.kept, summary.shards) == (6, 9) and said == ["6 of 9 shards are finished already"]
    assert digests(out) == digests(whole)


def test_what_does_not_agree_is_written_again(
    made_faces_master: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    run_until(monkeypatch, 7, made_faces_master, out, CONFIG)
    os.truncate(out / "train-000000.tar", 1000)
    (out / "train-000001.parquet").unlink()
    (out / ".entries" / "train-000002.json").write_text("{")
    note = json.loads((out / ".entries" / "train-000003.json").read_text())
    (out / ".entries" / "train-000003.json").write_text(json.dumps(note | {"plan": "of another run"}))
    (out / ".entries" / "train-000004.json").write_text('{"plan": 1, "sizes": [], "entry": {}}')
    (out / "train-000077.tar").write_bytes(b"of no plan")
    assert shard(made_faces_master, out, CONFIG).kept == 2
    assert digests(out) == digests(whole)


def test_other_settings_or_packs_are_refused_and_overwritten_on_request(
    faces: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    run_until(monkeypatch, 3, faces, out, ShardConfig(tuples_per_shard=4))
    before = digests(out)
    with pytest.raises(UserError, match=r"was written with tuples_per_shard = 4, now 8; .* --overwrite"):
        shard(faces, out, CONFIG)
    assert digests(out) == before
    assert shard(faces, out, CONFIG, overwrite=True).kept == 0
    assert digests(out) == digests(whole)
    shutil.rmtree(faces)
    made_packs(faces, {"000": "train", "300": "test"})
    with pytest.raises(UserError, match=r"was written from other packs than .*faces holds now"):
        shard(faces, out, CONFIG)
    assert digests(out) == digests(whole)
    assert shard(faces, out, CONFIG, overwrite=True).tuples == {"train": 12, "test": 12}
    assert len(list(out.glob("*.tar"))) == 4


def few_packs(folder: Path, groups: dict[str, str] | None = None) -> Path:
    return made_packs(folder, groups or {"000": "train", "100": "val"}, frames=2, size_px=16, qualities=("raw",))


def change_column(file: Path, column: str, change: Callable[[Any], Any]) -> None:
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    values = pa.array(map(change, table[column].to_pylist()), table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), values), file)


def test_a_set_of_packs_that_were_changed_is_not_finished(tmp_path: Path) -> None:
    faces, out = few_packs(tmp_path / "faces"), tmp_path / "s"
    shard(faces, out, CONFIG)
    before, file = digests(out), faces / "ffpp" / "100.parquet"
    whole = file.read_bytes()
    changes: dict[str, Callable[[Any], Any]] = {
        "label": lambda label: 1 - label,
        "face_px": lambda size: size and size + 1,
        "affine": lambda values: values and [0.5, *values[1:]],
        "status": lambda status: "small_face" if status == "no_face" else status,
        "raw_sync_margin": lambda margin: 0.5,  # nothing but a --where can ask for it
    }
    words = r"was written from other packs than .*faces holds now, or by an older version; .*--overwrite"
    for column, change in changes.items():
        file.write_bytes(whole)
        change_column(file, column, change)
        with pytest.raises(UserError, match=words):
            shard(faces, out, CONFIG)
        assert digests(out) == before
    file.write_bytes(whole)
    change_column(file, "label", changes["label"])
    (out / "train-000000.tar").unlink()  # old and new shards are not mixed
    with pytest.raises(UserError, match=words):
        shard(faces, out, CONFIG)
    shard(faces, out, CONFIG, overwrite=True)
    assert {row["label"] for row in index_rows(out) if row["method"] == "original"} == {0, 1}
    assert digests(out)["val-000000.tar"] != before["val-000000.tar"]


def test_only_shards_of_the_same_plan_are_kept(tmp_path: Path) -> None:
    """Of a set without the plans' digests, as older versions wrote them, none is."""
    faces, out = few_packs(tmp_path / "faces"), tmp_path / "s"
    shard(faces, out, ShardConfig(tuples_per_shard=2))
    before, info = digests(out), json.loads((out / "shards.json").read_text())
    assert len({entry["plan"] for entry in info["shardlist"]}) == 6
    info["shardlist"][0]["plan"] = "0" * 64
    del info["shardlist"][1]["plan"]
    (out / "shards.json").write_text(json.dumps(info))
    assert shard(faces, out, ShardConfig(tuples_per_shard=2)).kept == 6  # nothing is missing
    (out / "val-000002.tar").unlink()
    assert shard(faces, out, ShardConfig(tuples_per_shard=2)).kept == 3
    assert digests(out) == before


def test_hidden_files_of_others_are_kept(tmp_path: Path) -> None:
    faces, out = few_packs(tmp_path / "faces"), tmp_path / "w"
    mine = [".plan-notes", ".plan-12-notes/a", ".report.tmp", ".train-000000.tar.tmp", ".notes.json.12-0123abcd.tmp"]
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    (out / ".entries").mkdir()
    (out / ".entries" / "my").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(\.entries \.\.\.\) and no shard\.json"):
        shard(faces, out, CONFIG)
    (out / ".entries" / "my").unlink()
    (out / ".entries").rmdir()
    shard(faces, out, CONFIG)
    assert not (out / ".entries").exists()
    (out / ".entries").mkdir()
    for name in ("my", "notes.json", "train-000000.json"):
        (out / ".entries" / name).write_text("mine")
    shard(faces, out, CONFIG, overwrite=True)
    assert sorted(file.name for file in (out / ".entries").iterdir()) == ["my", "notes.json"]
    assert all((out / name).read_text() == "mine" for name in mine)


def test_shards_behind_links_are_whole(tmp_path: Path) -> None:
    faces, out, disk = few_packs(tmp_path / "faces"), tmp_path / "s", tmp_path / "disk"
    shard(faces, out, CONFIG)
    disk.mkdir()
    for file in sorted(out.glob("train-*")):
        file.rename(disk / file.name)
        file.symlink_to(disk / file.name)
    before = digests(out)
    assert shard(faces, out, CONFIG).kept == 2 and (out / "train-000000.tar").is_symlink()
    (out / "val-000000.tar").unlink()
    assert shard(faces, out, CONFIG).kept == 1 and (out / "train-000000.tar").is_symlink()
    (disk / "train-000000.tar").unlink()  # now the link names nothing
    assert shard(faces, out, CONFIG).kept == 1 and digests(out) == before


def test_wrong_use_leaves_no_folder(tmp_path: Path) -> None:
    faces = few_packs(tmp_path / "faces")
    (tmp_path / "mine").mkdir()
    for out, config in (
        (tmp_path / "new" / "deep", ShardConfig(where="nose > 1")),
        (tmp_path / "mine", ShardConfig(methods=("Face2Face",))),
    ):
        with pytest.raises(UserError, match=r"nose|Face2Face"):
            shard(faces, out, config)
    assert not (tmp_path / "new").exists() and visible(tmp_path / "mine") == []


def test_a_finished_set_is_left_as_it_is(made_faces_master: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    (out / ".entries").mkdir()  # killed just before its last step
    (out / ".entries" / "train-000000.json").write_text("{}")
    times = {file: file.stat().st_mtime_ns for file in out.iterdir() if file.is_file()}
    said: list[str] = []
    summary = shard(made_faces_master, out, CONFIG, say=said.append)
    assert said == [f"{out}: already finished with these settings and packs; nothing to do"]
    first = shard(made_faces_master, tmp_path / "t", CONFIG)
    assert (summary.kept, summary.shards) == (9, 9)
    assert (summary.tuples, summary.bytes, summary.left_out) == (first.tuples, first.bytes, first.left_out)
    assert times == {file: file.stat().st_mtime_ns for file in out.iterdir()}
    summary = shard(made_faces_master, out, CONFIG, overwrite=True)
    assert summary.kept == 0 and digests(out) == digests(whole)
    assert (out / "train-000000.tar").stat().st_mtime_ns != times[out / "train-000000.tar"]


@pytest.mark.parametrize("name", ["train-000002.tar", "val-000001.parquet", "README.md", "shard.json"])
def test_a_file_that_a_finished_set_lacks_is_written_again(
    made_faces_master: Path, whole: Path, tmp_path: Path, name: str
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    (out / name).unlink()
    if name == "shard.json":  # by what the folder is known as ours
        with pytest.raises(UserError, match="holds other files"):
            shard(made_faces_master, out, CONFIG)
        return
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.tar")}
    summary = shard(made_faces_master, out, CONFIG)
    assert summary.kept == (9 if name == "README.md" else 8) and digests(out) == digests(whole)
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("*.tar")}
    assert {key for key in after if after[key] != before.get(key)} == (
        set() if name == "README.md" else {Path(name).with_suffix(".tar").name}
    )


def test_changed_files_of_a_finished_set_are_written_again(
    made_faces_master: Path, whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    os.truncate(out / "test-000000.tar", 512)
    flip(out / "train-000001.parquet", 40)
    assert shard(made_faces_master, out, CONFIG).kept == 7
    assert digests(out) == digests(whole)


def test_a_shard_that_breaks_its_worker_is_named(
    made_faces_master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shard_run.write_shard

    def write(job: Any) -> Any:
        if job.name == "val-000001":
            raise MemoryError("no room")
        return real(job)

    monkeypatch.setattr(shard_run, "write_shard", write)
    summary = shard(made_faces_master, tmp_path / "s", CONFIG)
    assert summary.failed and summary.crashed == [("val-000001", "MemoryError: no room")]
    assert len(list((tmp_path / "s").glob("*.tar"))) == 8 and not (tmp_path / "s" / "shards.json").exists()


# The disk


def test_a_full_disk_ends_the_run_with_nothing_torn(
    made_faces_master: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, flushed = tmp_path / "s", shard_tar.TupleTar._flush, []

    def flush(tar: Any) -> None:
        flushed.append(tar)
        if len(flushed) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", "x.tar")
        real(tar)

    with monkeypatch.context() as full:
        full.setattr(shard_tar.TupleTar, "_flush", flush)
        with pytest.raises(RunEnded) as caught:
            shard(made_faces_master, out, CONFIG)
    assert str(caught.value) == (
        "the disk is full (x.tar): free space and run the same command again; 3 of 9 shards are done"
    )
    expected = digests(whole)
    found = {name: digest for name, digest in digests(out).items() if not name.startswith(".entries/")}
    assert len(found) == 7 and all(expected[name] == digest for name, digest in found.items())
    assert shard(made_faces_master, out, CONFIG).kept == 3 and digests(out) == expected


def test_no_room_for_the_plan(made_faces_master: Path, tmp_path: Path) -> None:
    """DuckDB's own words for it become the same line."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        "from qadprep.cli import main; main(sys.argv[1:])"
    )
    words = ["shard", str(made_faces_master), "--out", str(tmp_path / "s")]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    [line] = run.stderr.strip().splitlines()
    assert line.startswith("qadprep: a file grew over the size that this process may write (")
    assert "): raise ulimit -f and run the same command again" in line
    assert not (tmp_path / "s").exists()


def test_no_room_to_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = few_packs(tmp_path / "faces")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr("qadprep.shard.plan_shards", full)
    with pytest.raises(RunEnded, match=r"^the disk is full \(/tmp/x\): free space and run the same command again$"):
        shard(faces, tmp_path / "s", CONFIG, dry_run=True)
    assert not (tmp_path / "s").exists()


def test_scratch_folders_of_killed_runs_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [f"qadprep-shard-{ended.pid}-a", f"qadprep-shard-{ended.pid}-b", f"qadprep-shard-{os.getppid()}-c",
             f"qadprep-sql-{ended.pid}-d", "qadprep-shard-mine"]  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.duckdb").touch()
    with _locked(tmp_path / names[1]) as held, temporary_folder() as folder:  # one that another container uses
        assert held and folder.parent == tmp_path
        assert sorted(visible(tmp_path)) == sorted([*names[1:], folder.name])
        with temporary_folder():
            assert folder.is_dir()
    assert sorted(visible(tmp_path)) == sorted(names[1:])


# Other people


def test_two_runs_in_one_folder(made_faces_master: Path, tmp_path: Path) -> None:
    with sole_user(tmp_path / "s"), pytest.raises(UserError, match="another run is writing there"):
        shard(made_faces_master, tmp_path / "s", CONFIG)
    assert visible(tmp_path / "s") == [".lock"]  # of the other one
    shard(made_faces_master, tmp_path / "s", CONFIG)
    assert ".lock" not in visible(tmp_path / "s")


def test_a_lock_file_deleted_meanwhile_stops_nobody(tmp_path: Path) -> None:
    """The file that was opened is not the one that the next will open: lock the one that has the name."""
    import qadprep.locks

    real, opened = qadprep.locks._flock, []

    def flock(file: Any, kind: int) -> bool:
        if not opened:
            Path(file.name).unlink()
        opened.append(file.name)
        return real(file, kind)

    qadprep.locks._flock = flock
    try:
        with sole_user(tmp_path):
            assert len(opened) == 2 and (tmp_path / ".lock").exists()
            with pytest.raises(UserError, match="another run is writing there"), sole_user(tmp_path):
                pass
    finally:
        qadprep.locks._flock = real


def test_packs_may_be_read_by_others_meanwhile(made_faces_master: Path, tmp_path: Path) -> None:
    before = digests(made_faces_master)
    with reader(made_faces_master):
        shard(made_faces_master, tmp_path / "s", CONFIG)
    assert digests(made_faces_master) == before


# Mending single shards


def test_shards_are_rewritten_from_the_packs(made_faces_master: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    flip(out / "train-000001.tar", 900)
    flip(out / "train-000003.parquet", 60)
    (out / "val-000000.tar").unlink()
    (out / "shard.json").write_text("{")
    untouched = (out / "test-000000.tar").stat().st_mtime_ns
    names = ["train-000001.tar", "train-000003.parquet", "val-000000"]
    assert rewrite_shards(made_faces_master, out, names) == names
    assert digests(out) == digests(whole)
    assert (out / "test-000000.tar").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("codec", ["webp", "raw"])
def test_recoded_shards_are_rewritten_too(made_faces_master: Path, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "s"
    shard(made_faces_master, out, ShardConfig(codec=codec, tuples_per_shard=20, balance="even", where="frame < 30"))
    before = digests(out)
    flip(out / "train-000001.tar", 900)
    assert rewrite_shards(str(made_faces_master), str(out), ["train-000001"]) == ["train-000001"]
    assert digests(out) == before


def test_only_bytes_that_shards_json_knows_replace_a_shard(
    faces: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    before = digests(out)
    with monkeypatch.context() as other:
        other.setattr(shard_tar, "member_header", lambda name, size: b"\1" + bytes(511))
        assert rewrite_shards(faces, out, ["train-000000", "train-000001"]) == []
    assert digests(out) == before
    # A damaged pack cannot mend what needs it.
    row = pack_rows(faces)[0]
    flip(row["tar"], row["raw_offset"] + 100)
    bad = next(entry["shard"] for entry in index_rows(whole) if entry["key"] == row["key"])
    names = [f"train-{n:06d}" for n in range(5)]
    assert rewrite_shards(faces, out, names) == [name for name in names if name != bad]
    assert digests(out) == before


def test_a_tar_is_mended_where_the_index_would_come_out_in_other_bytes(
    faces: Path, whole: Path, tmp_path: Path
) -> None:
    """As after a change of the parquet library: the set's indexes hold the same rows in other bytes."""
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    info = json.loads((out / "shards.json").read_text())
    for entry in info["shardlist"]:
        table = pq.read_table(out / entry["index"])
        pq.write_table(table, out / entry["index"], compression="gzip")
        entry["index_sha256"] = hashlib.sha256((out / entry["index"]).read_bytes()).hexdigest()
    (out / "shards.json").write_text(json.dumps(info))
    before = digests(out)
    flip(out / "train-000001.tar", 700)
    (out / "train-000002.parquet").unlink()
    assert rewrite_shards(faces, out, ["train-000001", "train-000002"]) == ["train-000001"]
    after = digests(out)
    assert after == {name: digest for name, digest in before.items() if name != "train-000002.parquet"}


def test_rewriting_refuses(made_faces_master: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "s"))
    other = made_packs(tmp_path / "other", {"000": "train", "001": "train", "300": "test"})
    with pytest.raises(UserError, match=r"holds other packs than .* was made of \(packs_hash"):
        rewrite_shards(other, out, ["train-000000"])
    with pytest.raises(UserError, match=r"no shard 'train-000009' in shards\.json"):
        rewrite_shards(made_faces_master, out, ["train-000009"])
    info = json.loads((out / "shards.json").read_text())
    for change, message in (
        ({"seed": 1}, "its settings were changed afterwards"),
        ({"packs_hash": None}, "made from other sets, or by an older version"),
        ({"balance": "odd"}, "validation error"),
    ):
        (out / "shards.json").write_text(json.dumps({**info, "config": info["config"] | change}))
        with pytest.raises(UserError, match=message):
            rewrite_shards(made_faces_master, out, ["train-000000"])
    (out / "shards.json").unlink()
    with pytest.raises(UserError, match=r"no shards\.json there"):
        rewrite_shards(made_faces_master, out, ["train-000000"])
