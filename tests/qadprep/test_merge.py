"""merge: one set made of several, whose tuples keep every byte."""

import hashlib
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.rewritten import fails, members, rewrite
from helpers.sets import made_packs, made_shards
from helpers.written import digests

from qadprep.cli import main
from qadprep.merge import merge
from qadprep.shardset import ShardSet
from qadprep.split_set import split
from qadprep.verify import verify

OTHER_GROUPS = {"id7": "train", "id8": "train", "id9": "test"}


@pytest.fixture(scope="session")
def other_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of another dataset, of the same kind: 24 train in 3 shards, 12 test in 2."""
    folder = tmp_path_factory.mktemp("other")
    return made_shards(
        folder / "shards", made_packs(folder / "faces", OTHER_GROUPS, dataset="celebdf"), tuples_per_shard=10
    )


def listed(folder: Path) -> dict:
    return json.loads((folder / "shards.json").read_text())


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


def test_merge_copies_whole_shards_in_the_order_given(
    made_shards_master: Path, other_master: Path, tmp_path: Path
) -> None:
    out = tmp_path / "both"
    result = merge([made_shards_master, other_master], out)
    assert result["tuples"] == {"train": 60, "val": 12, "test": 24} and result["shards"] == 3 + 3 + 1 + 1 + 2
    a, b, both = listed(made_shards_master), listed(other_master), listed(out)
    wanted = [
        entry["sha256"]
        for name in ("train", "val", "test")
        for source in (a, b)
        for entry in source["shardlist"]
        if entry["split"] == name
    ]
    assert [entry["sha256"] for entry in both["shardlist"]] == wanted
    names = [*(f"train-{number:06d}" for number in range(6)), "val-000000", *(f"test-{n:06d}" for n in range(3))]
    assert [entry["url"] for entry in both["shardlist"]] == [f"{name}.tar" for name in names]
    assert [entry["index"] for entry in both["shardlist"]] == [f"{name}.parquet" for name in names]
    assert both["shardlist"][0] == a["shardlist"][0]  # size, hashes and count went along
    assert members(out) == members(made_shards_master) | members(other_master)
    assert both["config"]["merged"] == [
        {
            "name": source["name"],
            "fingerprint": ShardSet(folder).fingerprint,
            "config_hash": source["config_hash"],
        }
        for source, folder in ((a, made_shards_master), (b, other_master))
    ]
    assert both["left_out"] == {"no_face": 8}
    assert json.loads((out / "shard.json").read_text()) == both["config"]
    card = (out / "README.md").read_text()
    assert "celebdf" in card and "ffpp" in card
    report = verify(out, workers=1)
    assert (report.tuples, report.faults) == (96, [])


def test_merge_gives_the_same_bytes_every_time(made_shards_master: Path, other_master: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        merge([other_master, made_shards_master], tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    merge([other_master, made_shards_master], tmp_path / "one", overwrite=True)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not [file.name for file in (tmp_path / "one").iterdir() if file.name.startswith(".")]


def test_link_takes_no_room(made_set: Path, other_master: Path, tmp_path: Path) -> None:
    out = tmp_path / "linked"
    merge([made_set, other_master], out, link=True)
    sources = [made_set / entry["url"] for entry in listed(made_set)["shardlist"]]
    linked = {file.stat().st_ino for file in out.glob("*.tar")}
    assert {file.stat().st_ino for file in sources} <= linked
    assert verify(out, workers=1).faults == []


def test_links_to_what_a_source_of_links_names(made_set: Path, other_master: Path, tmp_path: Path) -> None:
    """A hub's snapshot holds relative links into a folder of blobs."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "a", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(made_set.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    merge([snapshot, other_master], tmp_path / "deep" / "out", link=True)
    assert verify(tmp_path / "deep" / "out", workers=1).faults == []
    assert not any(file.is_symlink() for file in (tmp_path / "deep" / "out").iterdir())


def test_a_finished_set_outlives_its_sources(made_set: Path, other_master: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = merge([made_set, other_master], out)
    before = digests(out)
    victim = made_set / "train-000001.tar"
    data = bytearray(victim.read_bytes())
    data[700] ^= 1
    victim.write_bytes(data)
    assert merge([made_set, other_master], out) == first and digests(out) == before
    # What is missing is written again, and then the damage tells.
    (out / "val-000000.tar").unlink()
    fails("sha256 is .*shards.json says", lambda: merge([made_set, other_master], out))


def test_entries_without_a_size_get_one(made_set: Path, other_master: Path, tmp_path: Path) -> None:
    info = listed(made_set)
    sizes = [entry.pop("filesize") for entry in info["shardlist"]]
    (made_set / "shards.json").write_text(json.dumps(info))
    for link in (False, True):
        out = tmp_path / str(link)
        assert merge([made_set, other_master], out, link=link)["bytes"] > sum(sizes)
        assert [entry["filesize"] for entry in listed(out)["shardlist"]][:3] == sizes[:3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"qualities": ("raw", "c40")}, "qualities is raw, c40, of .* raw, c23, c40"),
        ({"size_px": 32}, "size_px is 32, of .* 24"),
    ],
)
def test_sets_of_another_kind_are_refused(settings: dict, said: str, made_shards_master: Path, tmp_path: Path) -> None:
    faces = made_packs(tmp_path / "faces", {"id7": "train"}, frames=1, **settings)
    other = made_shards(tmp_path / "other", faces)
    fails(said, lambda: merge([made_shards_master, other], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_codec_is_refused(made_shards_master: Path, tmp_path: Path) -> None:
    other = rewrite(made_shards_master, tmp_path / "webp", codec="webp")
    fails("codec is webp, of .* png", lambda: merge([made_shards_master, other], tmp_path / "out"))
    fails("got 1 shard set; expected two or more", lambda: merge([other], tmp_path / "out"))


def test_a_key_in_two_sets(made_shards_master: Path, tmp_path: Path) -> None:
    # The same names as in the first set, but other pictures; and one recording of its own.
    groups, methods = {"000": "train", "001": "train", "id7": "train"}, ("original", "FaceSwap", "Deepfakes")
    faces = made_packs(tmp_path / "faces", groups, methods=methods, frames=3)
    second = made_shards(tmp_path / "second", faces, tuples_per_shard=7)
    words = f"ffpp/.*is in {made_shards_master} and in {second}; 18 keys come again"
    fails(words, lambda: merge([made_shards_master, second], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    twice = rewrite(second, tmp_path / "twice", lambda made: [*made, made[0]])
    fails(f"is twice in {twice}; ", lambda: merge([twice, second], tmp_path / "x"))
    result = merge([made_shards_master, second], tmp_path / "out", skip_duplicates=True)
    first, later, both = members(made_shards_master), members(second), members(tmp_path / "out")
    assert result["duplicates_skipped"] == 18 and result["tuples"] == {"train": 36 + 9, "val": 12, "test": 12}
    assert both == later | first and len(both) == 60 + 9
    assert any(first[key] != later[key] for key in first if key in later)
    assert verify(tmp_path / "out", workers=1).faults == []
    # What was not touched is still the file that it was.
    kept = {entry["sha256"] for entry in listed(made_shards_master)["shardlist"]}
    assert kept <= {entry["sha256"] for entry in listed(tmp_path / "out")["shardlist"]}


def test_what_sets_of_the_same_packs_leave_out_is_counted_once(tmp_path: Path) -> None:
    faces = made_packs(tmp_path / "faces", {"000": "train", "100": "val"}, frames=2, qualities=("raw",), size_px=16)
    other = made_packs(tmp_path / "more", {"100": "val"}, frames=1, qualities=("raw",), size_px=16)
    a = made_shards(tmp_path / "a", faces, methods=("original", "Deepfakes"))
    b = made_shards(tmp_path / "b", faces, where="method = 'FaceSwap' AND frame = 0")
    c = made_shards(tmp_path / "c", other)
    fails(f"{a}: is named twice; expected different", lambda: merge([a, b, str(a) + "/"], tmp_path / "x"))
    merge([a, b], tmp_path / "ab")
    info = listed(tmp_path / "ab")
    # 14 attempted: 8 of a, 2 of b, 2 without a face, and FaceSwap's second frames.
    assert info["extraction"] == {"attempted": 14, "ok": 12, "failures": 0}
    assert info["left_out"] == {"no_face": 2, "not_chosen": 2}
    card = (tmp_path / "ab" / "README.md").read_text()
    for line in (
        "- chosen tuples: as chosen in the sources\n",
        ", chosen there: methods `Deepfakes, original`\n",
        ", chosen there: where `method = 'FaceSwap' AND frame = 0`\n",
        "- attempted and left out: 2 no_face, 2 not_chosen\n",
    ):
        assert line in card, line
    assert "all complete ones" not in card
    # Other packs count on their own; what an earlier set has too is said.
    assert merge([tmp_path / "ab", c, b], tmp_path / "abc", skip_duplicates=True)["duplicates_skipped"] == 3
    info = listed(tmp_path / "abc")
    assert info["extraction"] == {"attempted": 18, "ok": 15, "failures": 0} and info["tuples"] == {"train": 5, "val": 7}
    assert info["left_out"] == {"duplicate": 1, "no_face": 3, "not_chosen": 2}
    assert len(info["config"]["packs"]) == 2 and verify(tmp_path / "abc", workers=1).faults == []
    # Parts that come together again lack nothing.
    split(a, tmp_path / "parts", by="method")
    merge([tmp_path / "parts" / "original", tmp_path / "parts" / "Deepfakes"], tmp_path / "again")
    assert listed(tmp_path / "again")["left_out"] == {"no_face": 2, "not_chosen": 4}


def test_a_failed_merge_leaves_no_lock_and_clears_nothing(made_set: Path, other_master: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with (made_set / "train-000000.tar").open("r+b") as file:
        file.seek(900)
        file.write(b"x")
    fails("sha256 is", lambda: merge([made_set, other_master], out))
    assert not (out / ".lock").exists()
    # A set of links, of which one names nothing any more, and a source that is not there.
    second = Path(shutil.copytree(other_master, tmp_path / "second"))
    third = rewrite(second, tmp_path / "third", lambda made: made[:1])
    merge([second, third], tmp_path / "both", skip_duplicates=True)
    (tmp_path / "disk").mkdir()
    for file in sorted((tmp_path / "both").glob("*.tar")):
        file.rename(tmp_path / "disk" / file.name)
        file.symlink_to(tmp_path / "disk" / file.name)
    before = digests(tmp_path / "both")
    assert merge([second, third], tmp_path / "both", skip_duplicates=True)["shards"] == 5
    assert (tmp_path / "both" / "train-000000.tar").is_symlink() and digests(tmp_path / "both") == before
    (tmp_path / "disk" / "test-000001.tar").unlink()
    lost = second / "train-000002.tar"
    for size, words in ((100, "has 100 bytes, shards.json says"), (None, "not there; the shard set is incomplete")):
        lost.unlink()
        if size:
            lost.write_bytes(bytes(size))
        fails(words, lambda: merge([second, third], tmp_path / "both", skip_duplicates=True))
    assert digests(tmp_path / "both") == {name: d for name, d in before.items() if name != "test-000001.tar"}
    lost.symlink_to(tmp_path / "both" / "train-000002.tar")
    fails(
        r"second/train-000002.tar: is a link into .*/both, whose files would be written anew",
        lambda: merge([second, third], tmp_path / "both", skip_duplicates=True),
    )
    assert digests(tmp_path / "both") == {name: d for name, d in before.items() if name != "test-000001.tar"}


def test_a_damaged_source_is_named(made_set: Path, other_master: Path, tmp_path: Path) -> None:
    row = ShardSet(made_set).table.slice(3, 1).to_pylist()[0]
    with (made_set / "train-000000.tar").open("r+b") as file:
        file.seek(row["c23_offset"] + row["c23_size"] // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    fails("train-000000.tar: sha256 is", lambda: merge([other_master, made_set], tmp_path / "out"))
    fails(
        f"{row['key']} at byte {row['offset']}", lambda: split(made_set, tmp_path / "out", where="true", overwrite=True)
    )
    assert not (tmp_path / "out" / "shards.json").exists()
    fails("no shards.json", lambda: ShardSet(tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".*.tmp"))
    (made_set / "train-000000.tar").unlink()
    fails("train-000000.tar: not there", lambda: merge([other_master, made_set], tmp_path / "out2"))


def test_folders_of_others_are_kept(
    made_set: Path, made_shards_master: Path, other_master: Path, tmp_path: Path
) -> None:
    before = digests(made_set)
    fails("is one of the sets that are read", lambda: merge([made_set, other_master], made_set, overwrite=True))
    fails("is one of the sets that are read", lambda: split(made_set, made_set / ".", where="true", overwrite=True))
    fails(
        "was written with made_by = None, now 'merge'",
        lambda: merge([other_master, made_shards_master], made_set),
    )
    assert {name: digest for name, digest in digests(made_set).items() if name[0] != "."} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    fails("holds other files .thesis.tex", lambda: merge([made_set, other_master], tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_run_that_ended_early_leaves_no_set(
    made_shards_master: Path, other_master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    merge([made_shards_master, other_master], tmp_path / "whole")
    merge([other_master, made_shards_master], out)
    with monkeypatch.context() as patch:
        patch.setattr("qadprep.set_writer.write_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge([made_shards_master, other_master], out, overwrite=True)
    fails("no shards.json there", lambda: ShardSet(out))
    # What a killed run leaves, which cannot tidy up.
    (out / ".train-000001.tar.1-0123abcd.tmp").write_bytes(b"half")
    (out / "train-000099.tar").write_bytes(b"of an earlier, larger set")
    merge([made_shards_master, other_master], out)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_full_disk_is_said_and_leaves_no_set(made_shards_master: Path, other_master: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    words = [sys.executable, "-m", "qadprep", "merge", made_shards_master, other_master, "--out", tmp_path / "out"]
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, preexec_fn=small_files)
    assert result.returncode == 1 and "a file grew over the size that this process may write" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*.tar")) and not (tmp_path / "out" / "shards.json").exists()


def test_sets_of_older_versions_go_along(made_shards_master: Path, other_master: Path, tmp_path: Path) -> None:
    missing = ("sha256", "face_px", "sharpness", "group", "json_offset", "json_size")
    old = rewrite(made_shards_master, tmp_path / "old", without=missing)
    merge([old, other_master], tmp_path / "out")
    with ShardSet(tmp_path / "out", check=True) as both, ShardSet(old) as before:
        assert len(both) == 96
        [place] = [at for at in range(len(both)) if both.table["key"][at].as_py() == before[40].key]
        for quality in both.qualities:
            np.testing.assert_array_equal(both[place].images[quality], before[40].images[quality])
        row = both.table.slice(place, 1).to_pylist()[0]
        shard = (tmp_path / "out" / both.shards[both.shard_number(place)]["url"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(shard[row["offset"] : row["offset"] + row["length"]]).hexdigest()
        assert (row["face_px"], row["group"], row["json_offset"]) == (None, None, None)
        newer = both.table.filter(pa.compute.equal(both.table["dataset"], "celebdf"))
        assert newer["group"].null_count == 0 and set(newer["face_px"].to_pylist()) == {80.0, 90.0, 100.0, 110.0}
    assert members(tmp_path / "out") == members(old) | members(other_master)
    # And on: what is null is moved along.
    split(tmp_path / "out", tmp_path / "parts", by="dataset")
    assert members(tmp_path / "parts" / "ffpp") == members(old)


def test_remote_sets(
    made_shards_master: Path, other_master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = f"memory://{tmp_path.name}/both"
    merge([made_shards_master, other_master], out)
    merge([made_shards_master, other_master], tmp_path / "local")
    split(out, tmp_path / "back", where="dataset = 'ffpp'", tuples_per_shard=16)
    assert members(tmp_path / "back") == members(made_shards_master)
    with ShardSet(out) as there, ShardSet(tmp_path / "local") as here:
        assert there.fingerprint == here.fingerprint and there[7].key == here[7].key
    fails("is one of the sets that are read", lambda: merge([out, other_master], out + "/"))


def test_commands(made_shards_master: Path, other_master: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("merge", made_shards_master, other_master, "--out", tmp_path / "both", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tuples"] == {"train": 60, "val": 12, "test": 24}
    assert run("split", tmp_path / "both", "--out", tmp_path / "parts", "--by", "dataset") == 0
    out = capsys.readouterr().out
    assert "celebdf" in out and "36" in out
    assert run("diff", tmp_path / "parts" / "ffpp", made_shards_master, "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True
    assert run("merge", tmp_path / "parts" / "ffpp", made_shards_master, "--out", tmp_path / "c") == 2
    assert "--skip-duplicates" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "parts")
