"""Which tuples come into a shard set, in which order, and where the shards are cut; references are plain Python."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.sets import GROUPS, made_packs
from helpers.written import digests, index_rows, pack_rows

from qadprep.config import ShardConfig
from qadprep.errors import UserError
from qadprep.sampling import draw
from qadprep.shard import ShardSummary, shard
from qadprep.store import open_folder
from qadprep.units import parse_bytes

SEED = 5


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 groups, 3 methods, 12 instants: 108 train tuples, 36 val, 36 test; few pixels."""
    return made_packs(tmp_path_factory.mktemp("plan") / "faces", frames=12, size_px=16, qualities=("raw", "c40"))


def written(faces: Path, out: Path, **settings: Any) -> tuple[ShardSummary, list[dict[str, Any]]]:
    summary = shard(faces, out, ShardConfig(**{"seed": SEED} | settings))
    return summary, index_rows(out)


def split_of(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split]


# Order


def test_natural_order_is_that_of_the_draws(faces: Path, tmp_path: Path) -> None:
    _, rows = written(faces, tmp_path / "s", tuples_per_shard=25)
    packs = pack_rows(faces)
    for split, shards in (("train", 5), ("val", 2), ("test", 2)):
        keys = [row["key"] for row in split_of(packs, split)]
        keys.sort(key=lambda key: (draw(SEED, key), key))
        found = split_of(rows, split)
        assert [row["key"] for row in found] == keys
        assert [row["shard"] for row in found] == [f"{split}-{n // 25:06d}" for n in range(len(keys))]
        assert len({row["shard"] for row in found}) == shards


def even_reference(rows: list[dict[str, Any]]) -> list[str]:
    """Keys of one split, every class at even distances."""
    classes: dict[tuple, list[str]] = {}
    for row in rows:
        classes.setdefault((row["label"], row["method"]), []).append(row["key"])
    places = []
    for keys in classes.values():
        keys.sort(key=lambda key: (draw(SEED, key), key))
        places += [(Fraction(2 * n + 1, 2 * len(keys)), draw(SEED, key), key) for n, key in enumerate(keys)]
    return [key for _, _, key in sorted(places)]


def windows_off(methods: list[str], width: int) -> Iterator[float]:
    """By how many tuples each stretch of a split misses the split's mix, over what rounding may do."""
    total, counts = len(methods), Counter(methods)
    for start in range(total - width + 1):
        part = Counter(methods[start : start + width])
        for method, count in counts.items():
            share = count / total
            yield abs(part[method] - width * share) - (1 + len(counts) * share)


def test_even_order_has_the_splits_mix_in_every_stretch(faces: Path, tmp_path: Path) -> None:
    uneven = "method != 'FaceSwap' OR frame < 50"
    _, rows = written(faces, tmp_path / "even", balance="even", where=uneven, tuples_per_shard=20)
    _, natural = written(faces, tmp_path / "natural", where=uneven)
    train = split_of(rows, "train")
    assert Counter(row["method"] for row in train) == {"original": 36, "Deepfakes": 36, "FaceSwap": 15}
    for split in ("train", "val", "test"):
        kept = [row for row in split_of(pack_rows(faces), split) if row["method"] != "FaceSwap" or row["frame"] < 50]
        assert [row["key"] for row in split_of(rows, split)] == even_reference(kept)
    methods = [row["method"] for row in train]
    shuffled = [row["method"] for row in split_of(natural, "train")]
    assert Counter(shuffled) == Counter(methods)
    for width in (9, 20, 40):
        assert max(windows_off(methods, width)) <= 0
    assert max(windows_off(shuffled, 20)) > 0  # what the option is for
    for name in {row["shard"] for row in train}:
        part = Counter(row["method"] for row in train if row["shard"] == name)
        assert abs(part["original"] - part["Deepfakes"]) <= 2


def test_equal_thins_the_more_numerous_label_of_all_its_methods_alike(faces: Path, tmp_path: Path) -> None:
    summary, rows = written(faces, tmp_path / "s", balance="equal", where="method != 'FaceSwap' OR frame < 50")
    assert summary.tuples == {"train": 72, "val": 24, "test": 24}
    assert summary.left_out == {"filter_where": 35, "no_face": 5, "thinned": 15 + 5 + 5}
    for split, half in (("train", 36), ("val", 12), ("test", 12)):
        part = split_of(rows, split)
        assert Counter(row["label"] for row in part) == {0: half, 1: half}
        # 36 : 15 and 12 : 5 are thinned to the same proportion.
        fakes = Counter(row["method"] for row in part if row["label"])
        assert abs(fakes["Deepfakes"] - half * 36 / 51) <= 1
        assert [row["key"] for row in part] == even_reference(part)
    # What is kept of a class is the beginning of its draw.
    kept = [row["key"] for row in split_of(rows, "train") if row["method"] == "Deepfakes"]
    every = [row["key"] for row in split_of(pack_rows(faces), "train") if row["method"] == "Deepfakes"]
    assert set(kept) == set(sorted(every, key=lambda key: draw(SEED, key))[: len(kept)])


def test_a_split_with_one_label_cannot_be_balanced(faces: Path, tmp_path: Path) -> None:
    """It would be left out as a whole."""
    lacking = "split != 'val' OR label = 1"
    message = r"^--balance equal: split 'val' has 24 fake tuples and no real one; .*--splits"
    with pytest.raises(UserError, match=message):
        written(faces, tmp_path / "s", balance="equal", where=lacking)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="split 'test' has 12 real tuples and no fake one"):
        written(faces, tmp_path / "s", balance="equal", methods=("original",))
    summary, _ = written(faces, tmp_path / "s", balance="equal", where=lacking, splits=("train", "test"))
    assert summary.tuples == {"train": 72, "test": 24}


def test_most_frames_are_the_same_instants_of_all_methods(faces: Path, tmp_path: Path) -> None:
    summary, rows = written(faces, tmp_path / "s", max_frames=5)
    assert summary.left_out == {"no_face": 5, "over_max_frames": 5 * 3 * 7}
    chosen = {}
    for group in GROUPS:
        order = sorted(range(0, 120, 10), key=lambda frame, group=group: draw(SEED, "ffpp", group, frame))
        chosen[group] = sorted(order[:5])
        for method in ("original", "Deepfakes", "FaceSwap"):
            frames = [row["frame"] for row in rows if (row["group"], row["method"]) == (group, method)]
            assert sorted(frames) == chosen[group]
    assert len({tuple(frames) for frames in chosen.values()}) > 1


def test_most_frames_are_the_same_instants_where_one_clip_lacks_some(faces: Path, tmp_path: Path) -> None:
    order = sorted(range(0, 120, 10), key=lambda frame: draw(SEED, "ffpp", "000", frame))
    gone = order[:2]

    def frames(name: str, where: str) -> dict[str, list[int]]:
        _, rows = written(faces, tmp_path / name, max_frames=5, where=f"(\"group\" != '000') OR ({where})")
        return {m: sorted(r["frame"] for r in rows if (r["group"], r["method"]) == ("000", m))
                for m in ("original", "Deepfakes", "FaceSwap")}  # fmt: skip

    # What every clip has comes first, in the order of the draws; the others give up what one of them lacks.
    assert frames("a", f"method != 'FaceSwap' OR frame NOT IN ({gone[0]}, {gone[1]})") == dict.fromkeys(
        ("original", "Deepfakes", "FaceSwap"), sorted(order[2:7])
    )
    # Where too few are shared, a clip's own follow.
    few = frames("b", f"method != 'FaceSwap' OR frame IN ({order[7]}, {order[9]}, {order[11]})")
    assert few["FaceSwap"] == sorted([order[7], order[9], order[11]])
    assert few["original"] == few["Deepfakes"] == sorted([order[0], order[1], order[7], order[9], order[11]])


# Filters


@pytest.mark.parametrize(
    ("settings", "reason", "passes"),
    [
        ({"splits": ("val", "train")}, "filter_split", lambda row: row["split"] != "test"),
        ({"methods": ("original", "FaceSwap")}, "filter_method", lambda row: row["method"] != "Deepfakes"),
        ({"min_face_px": 120.0}, "small_face", lambda row: row["face_px"] >= 120),
        ({"drop_unaltered": True}, "unaltered", lambda row: not row["unaltered"]),
        (
            {"where": "yaw_deg < 20 AND key NOT LIKE '%/000/%' -- near the front"},
            "filter_where",
            lambda row: row["yaw_deg"] < 20 and "/000/" not in row["key"],
        ),
        ({"where": "mask_share > 0.5 OR label = 1"}, "filter_where", lambda row: row["label"] == 1),
    ],
)
def test_each_filter(faces: Path, tmp_path: Path, settings: dict[str, Any], reason: str, passes: Any) -> None:
    summary, rows = written(faces, tmp_path / "s", **settings)
    packs = pack_rows(faces)
    expected = {row["key"] for row in packs if passes(row)}
    assert {row["key"] for row in rows} == expected and 0 < len(expected) < len(packs)
    assert summary.left_out == {"no_face": 5, reason: len(packs) - len(expected)}
    assert summary.left_out == json.loads((tmp_path / "s" / "shards.json").read_text())["left_out"]


def test_each_tuple_is_left_out_for_the_first_reason(faces: Path, tmp_path: Path) -> None:
    summary, rows = written(
        faces, tmp_path / "s", splits=("train",), methods=("Deepfakes",), min_face_px=100, drop_unaltered=True,
        max_frames=4, where="frame != 20",
    )  # fmt: skip
    assert summary.left_out == {
        "filter_method": 72, "filter_split": 72, "filter_where": 3, "no_face": 5, "over_max_frames": 12,
        "small_face": 6, "unaltered": 3,
    }  # fmt: skip
    assert len(rows) == 180 - 72 - 72 - 3 - 12 - 6 - 3 == 12


def test_a_face_of_unknown_size_is_not_small(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    file = tmp_path / "faces" / "ffpp" / "100.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("face_px")
    table = table.set_column(place, table.schema.field(place), pa.nulls(len(table), pa.float32()))
    pq.write_table(table, file)
    summary, _ = written(tmp_path / "faces", tmp_path / "s", min_face_px=5000)
    assert summary.tuples == {"val": 36}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ("train", "dev")}, r"--splits: no 'dev' in .*; it has test, train, val"),
        ({"methods": ("Face2Face",)}, r"--methods: no 'Face2Face' in .*; it has Deepfakes, FaceSwap, original"),
        ({"qualities": ("raw", "c23")}, r"--qualities: no 'c23' in .*; it has raw, c40"),
        ({"min_face_px": 9000}, r"not one complete tuple in its packs that passes \(5 no_face, 180 small_face\)"),
    ],
)
def test_what_is_not_there_is_named(faces: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        written(faces, tmp_path / "s", **settings)
    assert not [name for name in digests(tmp_path) if not name.endswith("shard.json")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("face_px >", "syntax error"),
        ("face_px = 1; DROP TABLE tuples", "syntax error"),
        ("nose_px > 3", 'Referenced column "nose_px" not found'),
        ("face_px + 1", "a value of type FLOAT, not a condition"),
        ("method", "a value of type VARCHAR, not a condition"),
        ("true) FROM packs WHERE (true", "one condition over the columns, and nothing around it"),
        ("true) LIMIT (1", "one condition over the columns, and nothing around it"),
        ("true) UNION SELECT (true", "one condition over the columns, and nothing around it"),
        ("key IN (SELECT content FROM read_text('/etc/hostname'))", "no SELECT may stand in it"),
        ("random() < 0.5", "random is not the same every time"),
        ("current_date > DATE '2020-01-01'", "current_date is not the same every time"),
        ("count(*) > 1", "cannot contain aggregates"),
        ("CAST(method AS INTEGER) = 1", "Could not convert"),
        ("/* open", "unterminated"),
        ("COLUMNS('raw_(size|offset)') > 0", "COLUMNS stand for several columns"),
        ("*", "COLUMNS stand for several columns"),
        ("age(TIMESTAMP '2001-01-01') > INTERVAL 1 YEAR", "age is not the same every time"),
        ("ago(INTERVAL 1 DAY) > TIMESTAMPTZ '2001-01-01'", "ago is not the same every time"),
        ("current_timestamp > TIMESTAMPTZ '2001-01-01'", "current_timestamp is not the same every time"),
        ("localtime > TIME '12:00'", "localtime is not the same every time"),
        ("version() = 'v1'", "version is not the same every time"),
        ("hash(key) % 2 = 0", "hash is not the same every time"),
    ],
)
def test_conditions_that_are_none(faces: Path, tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        written(faces, tmp_path / "s", where=text)
    message = str(caught.value)
    assert message.startswith(f"--where {text!r}: ") and reason in message and "\n" not in message


def test_settings_that_are_refused() -> None:
    for settings, message in (
        ({"codec": "jpg"}, r"--codec: got 'jpg'; Input should be 'png', 'webp' or 'raw'"),
        ({"balance": "odd"}, r"--balance: got 'odd'"),
        ({"max_frames": 0}, r"--max-frames: got 0"),
        ({"min_face_px": -1}, r"--min-face: got -1"),
        ({"splits": ()}, r"--splits: got \(\); expected a list of different splits"),
        ({"methods": ("a", "a")}, r"--methods: .* expected a list of different methods"),
    ):
        with pytest.raises(UserError, match=message):
            ShardConfig.checked(**settings)
    # The order of typing is no setting.
    one, other = (
        ShardConfig(qualities=("c40", "raw"), splits=("b", "a")),
        ShardConfig(qualities=("raw", "c40"), splits=("a", "b")),
    )
    assert one == other and one.qualities == ("raw", "c40") and one.hash("x") == other.hash("x")


# Cuts and sizes


@pytest.mark.parametrize("codec", ["png", "raw"])
def test_shards_are_cut_by_bytes(faces: Path, tmp_path: Path, codec: str) -> None:
    limit = 25_000
    settings = {"shard_bytes": limit, "tuples_per_shard": 9, "codec": codec, "splits": ("test", "val")}
    planned = shard(faces, tmp_path / "s", ShardConfig(seed=SEED, **settings), dry_run=True)
    summary, rows = written(faces, tmp_path / "s", **settings)
    by_shard: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], []).append(row)
    names = sorted(by_shard)
    full = 0
    for name, after in zip(names, [*names[1:], ""], strict=True):
        size = sum(row["length"] for row in by_shard[name])
        assert size <= limit and len(by_shard[name]) <= 9
        if after[:3] == name[:3]:  # not the last of its split
            full += len(by_shard[name]) == 9
            assert size + by_shard[after][0]["length"] > limit or len(by_shard[name]) == 9
    assert (full == 0) == (codec == "raw" or full < len(names))
    # What --dry-run said, to the byte.
    size = sum(file.stat().st_size for file in (tmp_path / "s").glob("*.tar"))
    assert (planned.tuples, planned.shards, planned.bytes) == (summary.tuples, len(names), size)
    assert planned.left_out == summary.left_out == {"filter_split": 108, "no_face": 5}
    assert planned.dry_run and not summary.dry_run and planned.bytes == summary.bytes


def test_a_tuple_larger_than_a_shard_has_one_of_its_own(faces: Path, tmp_path: Path) -> None:
    summary, rows = written(faces, tmp_path / "s", shard_bytes=10, splits=("val",))
    assert summary.shards == 36 and [row["shard"] for row in rows] == [f"val-{n:06d}" for n in range(36)]


def test_a_dry_run_of_webp_says_at_most(faces: Path, tmp_path: Path) -> None:
    config = ShardConfig(codec="webp", splits=("val",))
    planned = shard(faces, tmp_path / "s", config, dry_run=True)
    assert not (tmp_path / "s").exists()
    assert shard(faces, tmp_path / "s", config).bytes <= planned.bytes


def test_the_plan_does_not_depend_on_the_portions(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, balance in (("a", "natural"), ("b", "even")):
        settings = {"balance": balance, "tuples_per_shard": 20, "splits": ("val",)}
        written(faces, tmp_path / name, **settings)
        with monkeypatch.context() as small:
            small.setattr("qadprep.shard_cut.BLOCK_ROWS", 7)
            small.setattr("qadprep.shard_plan._INSERT_ROWS", 10)
            small.setattr("qadprep.shard_order.BUCKET_ROWS", 5)
            small.setattr("qadprep.shard_order.DEAL_ROWS", 11)
            small.setattr("qadprep.shard_writer._ROWS", 5)
            small.setattr("qadprep.shard_tar._HASH_BYTES", 3000)
            written(faces, tmp_path / "small", **settings)
        assert digests(tmp_path / name) == digests(tmp_path / "small")
        shutil.rmtree(tmp_path / "small")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000000", 10**6), ("500MB", 5 * 10**8), ("1GiB", 2**30), ("1.5 GiB", 3 * 2**29), ("64k", 64000), ("2kB", 2000),
     ("3 KIB", 3072), ("1T", 10**12), ("7B", 7)],
)  # fmt: skip
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text, "--shard-size") == size


def test_sizes_are_exact() -> None:
    assert parse_bytes("900719925474099", "--shard-size") == 900719925474099
    assert parse_bytes("9007199254.740993GB", "--shard-size") == 9007199254740993000


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "1iB", "1 XB", "1e9", "1_000", "0.2", "1GB!", "9" * 400, "1" + "0" * 15, "\u0661MB"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=rf"--shard-size: got {text!r}; expected a size such as 500MB"):
        parse_bytes(text, "--shard-size")


# What the packs must be


def test_one_key_in_two_packs_names_both(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    for kind in ("tar", "parquet"):
        shutil.copy(tmp_path / "faces" / "ffpp" / f"001.{kind}", tmp_path / "faces" / "ffpp" / f"copy.{kind}")
    with pytest.raises(UserError, match=r"ffpp/\w+/001\w*/\d{6}_0 is in ffpp/001\.tar and in ffpp/copy\.tar"):
        written(tmp_path / "faces", tmp_path / "s")


def change_pack(faces: Path, group: str, column: str, change: Any) -> None:
    """Replace a column of a pack's table; its metadata stay."""
    file = faces / "ffpp" / f"{group}.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    values = [change(value) for value in table[column].to_pylist()]
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), file)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("name", lambda name: name + ".mp4", r"001\.parquet: 'ffpp/original/001\.mp4/000000_0' cannot be a key"),
        ("name", lambda name: f"{name}/{'x' * 190}", r"is too long for a name in a tar; give the video a short name"),
        ("label", lambda label: None, r"001\.parquet: column 'label' of a complete tuple is empty"),
    ],
)
def test_names_and_labels_that_cannot_be(faces: Path, tmp_path: Path, column: str, change: Any, message: str) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    change_pack(tmp_path / "faces", "001", column, change)
    with pytest.raises(UserError, match=message):
        written(tmp_path / "faces", tmp_path / "s")


def small_packs(folder: Path, groups: dict[str, str]) -> Path:
    return made_packs(folder, groups, frames=2, size_px=16, qualities=("raw",))


@pytest.mark.parametrize("split", ["../../evil", "Train", "val_a", "", "x" * 17, "train\n"])
def test_splits_that_name_no_shard(tmp_path: Path, split: str) -> None:
    """They become file names, and readers of the set take no others."""
    faces = small_packs(tmp_path / "faces", {"000": split, "001": "train"})
    out = tmp_path / "o" / "x" / "set"
    with pytest.raises(UserError, match=rf"faces/ffpp/000\.parquet: split {re.escape(repr(split))}; expected a word"):
        shard(faces, out, ShardConfig())
    assert [file.name for file in tmp_path.iterdir()] == ["faces"]  # the new folders are gone again


def test_packs_of_two_minor_versions(tmp_path: Path) -> None:
    """A column that one of them lacks is null there, whichever is read first; further ones are left out."""
    faces = small_packs(tmp_path / "faces", {"000": "train", "001": "train", "002": "train"})
    for group, column in (("000", "face_px"), ("001", "alteration")):
        file = faces / "ffpp" / f"{group}.parquet"
        table = pq.read_table(file)
        pq.write_table(table.drop_columns([column]), file)
    table = pq.read_table(faces / "ffpp" / "002.parquet")
    pq.write_table(table.append_column("new", pa.nulls(len(table), pa.int8())), faces / "ffpp" / "002.parquet")
    _, rows = written(faces, tmp_path / "s", where="alteration IS NULL AND coalesce(face_px, 81) > 80")
    assert sorted((row["group"], row["frame"]) for row in rows) == [
        *[("000", 0)] * 3, *[("000", 10)] * 3, *[("001", 10)] * 3, *[("002", 10)] * 3
    ]  # fmt: skip
    assert {row["face_px"] for row in rows if row["group"] == "000"} == {None}
    table = pq.read_table(faces / "ffpp" / "001.parquet")
    place = table.schema.get_field_index("sharpness")
    table = table.set_column(place, "sharpness", pa.array(["sharp"] * len(table)))
    pq.write_table(table, faces / "ffpp" / "001.parquet")
    with pytest.raises(UserError, match=r"001\.parquet: column 'sharpness' is of type string, expected float"):
        written(faces, tmp_path / "t")


def test_a_condition_means_the_same_in_every_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = small_packs(tmp_path / "faces", {"000": "train"})
    chosen = []
    for zone in ("Asia/Tokyo", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            text = "('2020-01-01 00:00:00'::TIMESTAMPTZ = '2020-01-01 00:00:00+00'::TIMESTAMPTZ) = (frame = 0)"
            chosen.append({row["frame"] for row in written(faces, tmp_path / zone, where=text)[1]})
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()
    assert chosen == [{0}, {0}]


def test_a_set_is_not_written_among_its_packs(tmp_path: Path) -> None:
    faces = small_packs(tmp_path / "faces", {"000": "train"})
    (tmp_path / "link").symlink_to(faces)
    before = digests(faces)
    for out in (
        faces,
        faces / "set",
        faces / "ffpp" / "set",
        tmp_path / "link" / "set",
        tmp_path / "x" / ".." / "faces",
    ):
        for dry_run in (True, False):
            with pytest.raises(UserError, match="the folder of the face packs; choose one outside of it"):
                shard(faces, out, ShardConfig(), overwrite=True, dry_run=dry_run)
    remote = open_folder(f"memory://{tmp_path.name}")
    remote.mkdir(parents=True)
    (remote / "extract.json").write_bytes((faces / "extract.json").read_bytes())
    with pytest.raises(UserError, match="the folder of the face packs"):
        shard(remote, f"memory://{tmp_path.name}/set", ShardConfig())
    assert digests(faces) == before
    assert written(faces, tmp_path / "faces-set")[0].tuples == {"train": 6}  # a name that only begins alike


def test_more_shards_than_a_set_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = small_packs(tmp_path / "faces", {"000": "train", "001": "val"})
    monkeypatch.setattr("qadprep.shard_plan.MAX_SHARDS", 11)
    with pytest.raises(UserError, match=r"over 11 shards.*larger --tuples-per-shard or --shard-size"):
        written(faces, tmp_path / "s", tuples_per_shard=1)
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr("qadprep.shard_plan.MAX_SHARDS", 12)
    assert written(faces, tmp_path / "s", tuples_per_shard=1)[0].shards == 12


def test_packs_of_another_config(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    settings = json.loads((tmp_path / "faces" / "extract.json").read_text())
    (tmp_path / "faces" / "extract.json").write_text(json.dumps(settings | {"margin": 1.5}))
    with pytest.raises(UserError, match=r"000\.parquet: is of another config than .*extract\.json"):
        written(tmp_path / "faces", tmp_path / "s")


# What stands in shards.json and on the card


def test_counts_and_evidence(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    # One recording in two splits, as official splits of some datasets have it.
    change_pack(tmp_path / "faces", "001", "group", lambda group: "200")
    report = {
        "failures": [{"group": "7", "what": "7", "status": "error", "message": "x"},
                     {"group": "8", "what": "8.mp4", "status": "unreadable", "message": "y"}],
        "sync": {"reference": 5, "proved": 23, "static": 2},
        "protocol": {"name": "p"},
    }  # fmt: skip
    (tmp_path / "faces" / "summary.json").write_text(json.dumps(report))
    summary, _ = written(tmp_path / "faces", tmp_path / "s", splits=("train", "test"), where="frame < 30")
    info = json.loads((tmp_path / "s" / "shards.json").read_text())
    assert info["tuples"] == summary.tuples == {"train": 27, "test": 9}
    assert info["left_out"] == {"filter_split": 36, "filter_where": 108, "groups_without_pack": 1, "no_face": 5}
    assert info["extraction"] == {"attempted": 185, "ok": 180, "failures": 2}
    assert (info["sync"], info["protocol"]) == (report["sync"], report["protocol"])
    assert info["groups_in_several_splits"] == 1
    facts = card_facts(tmp_path / "faces", tmp_path / "t", splits=("train", "test"), where="frame < 30")
    assert facts["groups"] == {"train": 3, "test": 1} and facts["geometry"] == {"reference": 36}
    assert [row for row in facts["classes"] if row["split"] == "train"] == [
        {"split": "train", "dataset": "ffpp", "method": method, "label": label, "tuples": 9, "videos": 3}
        for method, label in (("Deepfakes", 1), ("FaceSwap", 1), ("original", 0))
    ]


def card_facts(faces: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """What the card is made from."""
    import qadprep.card

    seen: list[dict[str, Any]] = []
    real = qadprep.card.write_card
    try:
        qadprep.card.write_card = lambda path, info, facts: (seen.append(facts), real(path, info, facts))
        written(faces, out, **settings)
    finally:
        qadprep.card.write_card = real
    return seen[0]


def test_only_some_qualities(faces: Path, tmp_path: Path) -> None:
    _, rows = written(faces, tmp_path / "s", qualities=("c40",), splits=("val",))
    info = json.loads((tmp_path / "s" / "shards.json").read_text())
    assert info["qualities"] == ["c40"] and not [name for name in rows[0] if name.startswith("raw")]
    packs = {row["key"]: row for row in pack_rows(faces)}
    data = (tmp_path / "s" / "val-000000.tar").read_bytes()
    for row in rows:
        pack = packs[row["key"]]
        part = pack["tar"].read_bytes()[pack["c40_offset"] :][: pack["c40_size"]]
        assert data[row["c40_offset"] :][: row["c40_size"]] == part
        assert row["c40_psnr_db"] == pack["c40_psnr_db"]
        assert row["length"] == 2 * 512 + -(-row["c40_size"] // 512) * 512 + -(-row["json_size"] // 512) * 512
