import dataclasses
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.catalog import manifest
from qadprep.catalog.base import Clip, sort_clips
from qadprep.catalog.manifest import lies_below, quality_rank, read_manifest, write_manifest
from qadprep.errors import UserError

ORIGINAL = Clip("ffiw", "original", "train_1", 0, "train", "train_1", "train_1", "", {"raw": "s/1.mp4"}, faces="all")
FAKE = Clip("ffiw", "FFIW", "train_1", 1, "train", "train_1", "train_1", "", {"raw": "t/1.mp4"}, "m/1.mp4", "all")


def columns_of(clips: list[Clip], folder: Path) -> dict[str, list]:
    write_manifest(clips, folder / "columns.parquet")
    return pq.read_table(folder / "columns.parquet").to_pydict()


def write_columns(columns: dict, path: Path) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_every_field_comes_back(tmp_path: Path) -> None:
    pictures = Clip("wild", "original", "a-1", 0, "none", "a-1", "a-1", "", {"raw": "a.tar.gz::x/y", "c40": "z/"})
    clips = [ORIGINAL, FAKE, pictures]
    write_manifest(clips, tmp_path / "new" / "m.parquet")
    assert read_manifest(tmp_path / "new" / "m.parquet") == sort_clips(clips)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["m.parquet"]
    columns = columns_of(clips, tmp_path)
    assert columns["faces"] == ["all", "all", "largest"] and columns["mask"] == [None, "m/1.mp4", None]
    assert list(columns)[-2:] == ["path_raw", "path_c40"] and columns["path_c40"] == [None, None, "z/"]


def test_nothing_is_a_manifest_too(tmp_path: Path) -> None:
    write_manifest([], tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == []


def test_many_clips_over_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_ROWS_AT_ONCE", 7)
    clips = [
        dataclasses.replace(ORIGINAL, name=f"v{i:03d}", group=f"v{i:03d}", paths={("raw", "c23")[i % 2]: f"{i}.mp4"})
        for i in range(50)
    ]
    shuffled = random.Random(1).sample(clips, 50)
    write_manifest(shuffled, tmp_path / "m.parquet")
    assert pq.ParquetFile(tmp_path / "m.parquet").num_row_groups == 8
    assert read_manifest(tmp_path / "m.parquet") == clips


def test_a_manifest_without_faces_follows_the_largest(tmp_path: Path) -> None:
    columns = columns_of([ORIGINAL, FAKE], tmp_path)
    del columns["faces"]
    clips = read_manifest(write_columns(columns, tmp_path / "m.parquet"))
    assert [clip.faces for clip in clips] == ["largest", "largest"]
    assert clips == [dataclasses.replace(clip, faces="largest") for clip in (ORIGINAL, FAKE)]


def test_a_manifest_made_elsewhere(tmp_path: Path) -> None:
    columns = columns_of([ORIGINAL, dataclasses.replace(FAKE, mask=None)], tmp_path)
    columns["dataset"] = pa.array(columns["dataset"], pa.large_string())
    columns["method"] = pa.array(columns["method"]).dictionary_encode()
    columns["label"] = pa.array(columns["label"], pa.int64())
    columns["mask"] = pa.nulls(2)
    columns["source"] = pa.nulls(2)
    columns["path_raw"] = ["s/1.mp4", ""]
    columns["remark"] = [1.5, 2.5]
    first, second = read_manifest(write_columns(columns, tmp_path / "m.parquet"))
    assert first == ORIGINAL
    assert (second.method, second.label, second.mask, second.source, second.paths) == ("FFIW", 1, None, "", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faces": "both"}, "ffiw/FFIW/train_1 has faces 'both'; expected largest or all"),
        ({"mask": "/m.mp4"}, "ffiw/FFIW/train_1 has the path '/m.mp4'"),
        ({"mask": "m/../../1.mp4"}, "has the path 'm/../../1.mp4'"),
        ({"paths": {"raw": "../x.mp4"}}, "expected one below the dataset's root"),
        ({"paths": {"raw": "../a.tar::x"}}, "has the path '../a.tar::x'"),
        ({"paths": {"raw": "a.tar::../x"}}, "has the path 'a.tar::../x'"),
        ({"paths": {"raw": "a.tar::/etc"}}, "has the path 'a.tar::/etc'"),
        ({"paths": {"raw": "a::b.tar::c/../d"}}, "has the path 'a::b.tar::c/../d'"),
        ({"paths": {"raw": "::x"}}, "has the path '::x'"),
        ({"paths": {"raw": "a\0b.mp4"}}, "has the path 'a\\x00b.mp4'"),
        ({"name": "a\n"}, "name 'a\\n'; expected letters"),
        ({"split": ""}, "split ''; expected letters"),
        ({"split": None}, "split None; expected letters"),
        (
            {"split": "Train"},
            "split 'Train' of ffiw/FFIW/train_1; expected a word of at most 16 small letters",
        ),
        ({"split": "val_a"}, "split 'val_a' of ffiw/FFIW/train_1; expected a word"),
        ({"label": 0}, "has label 0; expected 0 for original, 1 for any other method"),
        ({"label": None}, "has label None"),
    ],
)
def test_rows_that_cannot_be_right(tmp_path: Path, change: dict, message: str) -> None:
    write_manifest([ORIGINAL, dataclasses.replace(FAKE, **change)], tmp_path / "m.parquet")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_manifest(tmp_path / "m.parquet")
    assert "m.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_a_group_has_one_original(tmp_path: Path) -> None:
    twin = dataclasses.replace(ORIGINAL, name="train_2")
    write_manifest([ORIGINAL, twin], tmp_path / "m.parquet")
    with pytest.raises(UserError, match="group 'train_1' of ffiw has two clips with method 'original'"):
        read_manifest(tmp_path / "m.parquet")
    write_manifest([ORIGINAL, dataclasses.replace(twin, dataset="other")], tmp_path / "m.parquet")
    assert len(read_manifest(tmp_path / "m.parquet")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": None}, "column 'split' is missing; write it with `qadprep scan`"),
        ({"mask": None}, "column 'mask' is missing"),
        ({"name": [1, 2]}, "column 'name' is of type int64; expected text"),
        ({"faces": [True, True]}, "column 'faces' is of type bool; expected text"),
        ({"path_raw": [1.0, 2.0]}, "column 'path_raw' is of type double; expected text"),
        ({"label": ["real", "fake"]}, "column 'label' is of type string; expected whole numbers"),
    ],
)
def test_columns_that_cannot_be_right(tmp_path: Path, change: dict, message: str) -> None:
    columns = columns_of([ORIGINAL, FAKE], tmp_path) | change
    file = write_columns({name: values for name, values in columns.items() if values}, tmp_path / "m.parquet")
    with pytest.raises(UserError, match=re.escape(message)):
        read_manifest(file)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    write_manifest([ORIGINAL, FAKE], tmp_path / "m.parquet")
    whole = (tmp_path / "m.parquet").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(UserError, match="not a readable manifest") as caught:
            read_manifest(tmp_path / "bad.parquet")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a readable manifest"):
        read_manifest(tmp_path / "absent.parquet")
    names, arrays = zip(*columns_of([ORIGINAL], tmp_path).items(), strict=True)
    table = pa.Table.from_arrays([*map(pa.array, arrays), pa.array(["x"])], names=[*names, "split"])
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="column 'split' is there twice"):
        read_manifest(tmp_path / "bad.parquet")


def test_a_quality_of_any_name_has_a_rank() -> None:
    # \N{SUPERSCRIPT TWO} is a digit to str.isdigit, but not a number to int().
    names = ["zoom", "c²", "c40", "c", "raw", "c9", ""]
    assert sorted(names, key=quality_rank)[:3] == ["raw", "c9", "c40"]


PART = st.sampled_from(["a", "b.mp4", "..", ".", "...", "", "::", "x..y", "c d"])


@settings(max_examples=300)
@given(st.lists(PART, max_size=5), st.booleans())
def test_a_path_that_passes_stays_below(parts: list[str], absolute: bool) -> None:
    path = ("/" if absolute else "") + "/".join(parts)
    sides = path.split("::")
    leaves = any(side.startswith("/") or ".." in side.split("/") for side in sides)
    assert lies_below(path) == (not leaves and sides[0] != "")
