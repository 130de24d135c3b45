"""shards.json: its schema, which versions are read, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from helpers.shard_damage import change_info

from qadprep.errors import UserError
from qadprep.shard_format import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    MAX_INFO_BYTES,
    check_index,
    index_schema,
    json_schema,
    parse_info,
    read_info,
)
from qadprep.shardset import ShardSet
from qadprep.verify import verify

START = '{"format_version": "1.2", "codec": "png", "shardlist": [], '
SCHEMA = Path(__file__).parents[2] / "docs" / "shards.schema.json"


def info_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "shards.json").read_text())


def test_the_schema_in_the_docs_is_the_present_one() -> None:
    """To renew it: `json.dumps(json_schema(), indent=2, sort_keys=True)` and a line end."""
    assert SCHEMA.read_text() == json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


def test_a_written_set_obeys_the_schema(made_shards_master: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    info = info_of(made_shards_master)
    jsonschema.Draft202012Validator(schema).validate(info)
    assert info["format_version"] == f"{FORMAT_MAJOR}.{FORMAT_MINOR}"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["codec"], "jpeg"),
        (["size_px"], 0),
        (["size_px"], 4097),
        (["qualities"], []),
        (["qualities", 0], "../raw"),
        (["shardlist", 0, "url"], "../train-000000.tar"),
        (["shardlist", 0, "index"], "/etc/passwd"),
        (["shardlist", 0, "nsamples"], -1),
        (["shardlist", 0, "nsamples"], 10**9),
        (["shardlist", 0, "sha256"], "0" * 63),
        (["shardlist", 0, "md5sum"], "z" * 32),
        (["shardlist", 0, "split"], "Train!"),
        (["__kind__"], "other"),
        (["tuples"], {"train": "many"}),
    ],
)
def test_values_that_schema_and_reader_refuse(made_set: Path, place: list, value: Any) -> None:
    def change(info: dict[str, Any]) -> None:
        inside: Any = info
        for step in place[:-1]:
            inside = inside[step]
        inside[place[-1]] = value

    change_info(made_set, change)
    assert not jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).is_valid(info_of(made_set))
    for read in (ShardSet, verify):
        with pytest.raises(UserError, match=r"shards\.json: ") as refused:
            read(made_set)
        assert ".".join(map(str, place)) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("version", ["2.0", "3.7", "2.99", "9999.0"])
def test_a_newer_major_version_is_refused(made_set: Path, version: str) -> None:
    change_info(made_set, lambda info: info.update(format_version=version))
    for read in (ShardSet, verify):
        with pytest.raises(UserError) as refused:
            read(made_set)
        expected = f"format {version} is newer than {FORMAT_MAJOR}.{FORMAT_MINOR}; upgrade qadprep"
        assert str(refused.value) == f"{made_set / 'shards.json'}: {expected}"


def test_a_newer_minor_version_with_unknown_keys_is_read(made_set: Path) -> None:
    before = ShardSet(made_set)[7]

    def change(info: dict[str, Any]) -> None:
        info.update(format_version=f"{FORMAT_MAJOR}.{FORMAT_MINOR + 7}", signature={"by": "nobody"})
        info["shardlist"][0]["colour"] = "blue"

    change_info(made_set, change)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(info_of(made_set))
    after = ShardSet(made_set)[7]
    assert (after.key, after.label) == (before.key, before.label)
    assert verify(made_set).faults == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "not a tuple shard set"),
        ("null", "not a tuple shard set"),
        ('{"format_version": "1.2"}', "not a tuple shard set"),
        ('{"format_version": "1", "qualities": ["raw"], "shardlist": []}', "not a tuple shard set"),
        ('{"format_version": 1.2, "qualities": ["raw"], "shardlist": []}', "format_version is 1.2"),
        ('{"format_version": "1.2", "qualities": ["raw"], "shardlist": []}', "codec is"),
        (START + '"qualities": ["a", "a"], "size_px": 8}', "twice"),
        (START + '"qualities": ["a"], "size_px": NaN}', "size_px is"),
        (START + '"qualities": ["a"], "size_px": "8"}', "size_px is"),
        (START + '"qualities": ["a"], "size_px": true}', "size_px is"),
        (START + '"qualities": ["a"], "size_px": 1e999}', "size_px is"),
        (START + '"qualities": ["a"], "size_px": 8, "tuples": {"a\\nb": []}}', "tuples."),
    ],
)  # fmt: skip
def test_what_is_no_shards_json(text: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_info(text.encode(), "set/shards.json")
    assert str(refused.value).startswith("set/shards.json: ") and words in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_shards_json_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "shards.json").open("wb") as file:
        file.truncate(MAX_INFO_BYTES + 1)
    with pytest.raises(UserError, match="not a shard set's index"):
        read_info(tmp_path)


def test_checking_an_index() -> None:
    schema = index_schema(("raw",))
    values = {pa.string(): "x", pa.bool_(): True}
    row = {field.name: values.get(field.type, 1) for field in schema}
    good = pa.Table.from_pylist([row, row], schema=schema)

    def check(table: pa.Table) -> pa.Table:
        return check_index(table, {"nsamples": 2}, ["raw"], "set/a.parquet")

    assert check(good).equals(good)
    # Older minor versions have fewer columns; wider types of the same values are taken.
    older = good.select([name for name in schema.names if name not in ("sha256", "face_px", "raw_psnr_db")])
    assert check(older).equals(older)
    number = schema.get_field_index("frame")
    assert check(good.set_column(number, "frame", good["frame"].cast(pa.int64()))).schema == schema
    for table, words in (
        (good.slice(1), "1 rows, but shards.json says 2 tuples"),
        (good.drop_columns(["raw_offset"]), "no column 'raw_offset'"),
        (good.set_column(number, "frame", pa.array([2**40, 0])), "a column has another type"),
        (good.set_column(number, "frame", pa.array(["a", "b"])), "a column has another type"),
        (good.set_column(number, "frame", pa.array([None, 1], pa.int32())), "column 'frame' has empty cells"),
    ):
        with pytest.raises(UserError, match=f"^set/a.parquet: {words}"):
            check(table)
