"""A shard set written anew from what another one holds, changed on the way: what `diff` and others must notice."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qadprep.codecs import encode_image, pixel_hash
from qadprep.errors import UserError
from qadprep.raw_tuples import RawTuples
from qadprep.shard_format import index_schema, member_name
from qadprep.shardset import ShardSet
from qadprep.ustar import TarWriter


@dataclass
class Made:
    """A tuple in pieces."""

    row: dict[str, Any]
    images: dict[str, np.ndarray]
    facts: dict[str, Any]


def read_all(folder: Path) -> list[Made]:
    """Every tuple of a set, decoded, in its order."""
    with ShardSet(folder) as shards, RawTuples(shards) as raw:
        rows = shards.table.to_pylist()
        return [Made(row, dict(shards[at].images), raw.facts(at)) for at, row in enumerate(rows)]


def rewrite(
    folder: Path,
    out: Path,
    change: Callable[[list[Made]], list[Made]] = list,
    *,
    codec: str = "png",
    without: tuple[str, ...] = (),
) -> Path:
    """Write the tuples of a set to `out`, one shard a split.

    Args:
        change: gets all tuples, gives those to write.
        without: columns that the index shall not have, as in sets of older versions.
    """
    out.mkdir()
    info = json.loads((folder / "shards.json").read_text())
    qualities = tuple(info["qualities"])
    made = change(read_all(folder))
    info |= {"codec": codec, "shardlist": []}
    for split in dict.fromkeys(one.row["split"] for one in made):
        rows = []
        name = f"{split}-000000"
        with (out / f"{name}.tar").open("wb") as file:
            tar = TarWriter(file)
            for one in made:
                if one.row["split"] == split:
                    rows.append(_add(tar, one, qualities, codec))
            tar.finish()
        data = (out / f"{name}.tar").read_bytes()
        for row in rows:
            row["sha256"] = hashlib.sha256(data[row["offset"] : row["offset"] + row["length"]]).hexdigest()
        table = pa.Table.from_pylist(rows, schema=index_schema(qualities))
        table = table.drop_columns([column for column in table.column_names if column in without])
        pq.write_table(table, out / f"{name}.parquet")
        info["shardlist"].append(
            {
                "url": f"{name}.tar",
                "nsamples": len(rows),
                "filesize": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "split": split,
                "index": f"{name}.parquet",
                "index_sha256": hashlib.sha256((out / f"{name}.parquet").read_bytes()).hexdigest(),
            }
        )
    (out / "shards.json").write_text(json.dumps(info))
    return out


def _add(tar: TarWriter, one: Made, qualities: tuple[str, ...], codec: str) -> dict[str, Any]:
    row = {**one.row, "offset": tar.position}
    for quality in qualities:
        image = one.images[quality]
        place = tar.add(member_name(row["key"], quality, codec), encode_image(image, codec))
        row[f"{quality}_offset"], row[f"{quality}_size"] = place
        row[f"{quality}_pixels_sha256"] = pixel_hash(image)
    text = json.dumps(one.facts, sort_keys=True, separators=(",", ":")).encode()
    row["json_offset"], row["json_size"] = tar.add(f"{row['key']}.json", text)
    row["length"] = tar.position - row["offset"]
    return row


def members(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Key -> its members as any tar reader sees them, in their order; keys in the order of the shards."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for entry in json.loads((folder / "shards.json").read_text())["shardlist"]:
        with tarfile.open(folder / entry["url"]) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                found.setdefault(key, []).append((ending, tar.extractfile(member).read()))
    return found


def fails(match: str, call: Callable[[], object]) -> None:
    """Whether a call ends with one line for the user that holds a pattern."""
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
