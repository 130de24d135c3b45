"""`qadprep stats`: what a shard set holds, in numbers: counts, balance, bytes, and what each quality has lost."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.errors import UserError
from qadprep.progress import progress_bar
from qadprep.set_sql import index_of, rows_of, sql_over
from qadprep.shard_format import DESCRIBING, splits_in_order
from qadprep.shardset import ShardError, ShardSet

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from qadprep.store import Folder

# skimage's window; smaller crops have no SSIM.
SSIM_WINDOW_PX = 7
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
MEASURES = ("face_px", "sharpness", "yaw_deg", "mask_share")
_COUNTS = (
    "count(*) AS tuples, count(DISTINCT (dataset, method, video)) AS clips, "
    'count(DISTINCT (dataset, "group")) FILTER ("group" IS NOT NULL) AS groups'
)


def stats(place: "str | Folder", *, sample: int = 500, seed: int = 0) -> dict[str, Any]:
    """Numbers about a shard set; from the index, but SSIM and sharpness per quality, which are of decoded tuples.

    Args:
        place: folder or fsspec URL.
        sample: how many tuples to decode: those that `sampling.draw` puts first. 0 decodes none.
        seed: of the sample.

    Returns:
        A dict that is JSON: `set` (name, qualities, ...), `classes`, `splits`, `tuples_per_clip`, `bytes`, `psnr_db`,
        `measures` (quantiles of the index's columns), `geometry`, `unaltered`, `left_out`, `sample` (`tuples`, `ssim`,
        `sharpness`, `faults`), `missing_columns`. A mean over no value is null.

    Raises:
        UserError: no shard set there, or a negative sample.
    """
    if sample < 0:
        raise UserError(f"--sample: got {sample}; expected 0 or more")
    with ShardSet(place) as shards:
        table = index_of(shards)
        missing = [name for name in DESCRIBING if name not in table.column_names]
        if "group" in missing:  # older sets: counted as null, which is no recording
            import pyarrow as pa

            table = table.append_column("group", pa.nulls(len(table), pa.string()))
        with sql_over(tuples=table) as connection:
            result = {
                "set": _set(shards),
                **_counts(connection),
                "bytes": _bytes(connection, shards),
                "psnr_db": _psnr(connection, shards, table.column_names),
                "measures": {name: _quantiles(connection, name) for name in MEASURES if name in table.column_names},
                "geometry": _kinds(connection, "geometry", missing),
                "unaltered": None
                if "unaltered" in missing
                else _kinds(connection, "unaltered", missing).get("true", 0),
                "left_out": shards.info.get("left_out", {}),
                "missing_columns": missing,
            }
            query = "SELECT position FROM tuples ORDER BY sha256($1 || '/' || key), key LIMIT $2"
            chosen = [row[0] for row in connection.execute(query, [str(seed), sample]).fetchall()]
        return {**result, "sample": _sample(shards, chosen, seed)}


def _set(shards: ShardSet) -> dict[str, Any]:
    names = ("name", "format_version", "tool", "qualities", "codec", "size_px", "config_hash")
    return {
        **{name: shards.info.get(name) for name in names},
        "fingerprint": shards.fingerprint,
        "tuples": len(shards),
        "shards": len(shards.shards),
        "groups_in_several_splits": shards.info.get("groups_in_several_splits", 0),
    }


def _counts(connection: "DuckDBPyConnection") -> dict[str, Any]:
    clips = (
        "SELECT split, dataset, method, label, video, count(*) AS n FROM tuples "
        "GROUP BY split, dataset, method, label, video"
    )
    per_clip = "min(n) AS fewest, median(n) AS median, max(n) AS most"
    classes = rows_of(
        connection,
        f"""
        SELECT * FROM (SELECT split, dataset, method, label, {_COUNTS} FROM tuples GROUP BY ALL)
        JOIN (SELECT split, dataset, method, label, {per_clip} FROM ({clips}) GROUP BY ALL)
        USING (split, dataset, method, label)
        """,
    )
    splits = rows_of(
        connection,
        f"SELECT split, {_COUNTS}, count(*) FILTER (label = 0) AS real, count(*) FILTER (label = 1) AS fake "
        "FROM tuples GROUP BY split",
    )
    order = splits_in_order({row["split"] for row in splits})
    classes.sort(key=lambda row: (order.index(row["split"]), row["dataset"], row["method"], row["label"]))
    splits.sort(key=lambda row: order.index(row["split"]))
    for row in splits:
        row["fake_share"] = row["fake"] / row["tuples"]
    [whole] = rows_of(connection, f"SELECT {_COUNTS} FROM tuples")
    # The clips of one video that stands in two splits count as one here.
    [spread] = rows_of(
        connection,
        f"SELECT {per_clip} FROM (SELECT count(*) AS n FROM tuples GROUP BY dataset, method, video)",
    )
    return {"classes": classes, "splits": splits, "all": whole, "tuples_per_clip": spread}


def _bytes(connection: "DuckDBPyConnection", shards: ShardSet) -> dict[str, Any]:
    """Encoded sizes per quality, and of the tars; what is neither is JSON, headers and padding."""
    found = []
    for quality in shards.qualities:
        query = f"SELECT avg({quality}_size) AS mean, sum({quality}_size)::BIGINT AS total FROM tuples"
        [row] = rows_of(connection, query)
        found.append({"quality": quality, "mean": row["mean"], "total": row["total"] or 0})
    whole = connection.execute("SELECT coalesce(sum(length), 0)::BIGINT FROM tuples").fetchone()[0]
    return {
        "per_quality": found,
        "json_and_headers": whole - sum(row["total"] for row in found),
        "tuples": whole,
        "tars": sum(entry.get("filesize") or 0 for entry in shards.shards),
    }


def _psnr(connection: "DuckDBPyConnection", shards: ShardSet, columns: list[str]) -> list[dict[str, Any]]:
    """Per method and quality after the best: over the finite values, and how many crops equal the best one."""
    rows = []
    for quality in shards.qualities[1:]:
        name = f"{quality}_psnr_db"
        if name not in columns:
            continue
        finite = f"FILTER (isfinite({name}))"
        rows += rows_of(
            connection,
            f"""
            SELECT method, '{quality}' AS quality, avg({name}) {finite} AS mean, min({name}) {finite} AS min,
              median({name}) {finite} AS median, max({name}) {finite} AS max,
              count(*) FILTER (isinf({name})) AS equal, count({name}) AS tuples
            FROM tuples GROUP BY method
            """,
        )
    rows.sort(key=lambda row: (row["method"] != "original", row["method"], shards.qualities.index(row["quality"])))
    return rows


def _quantiles(connection: "DuckDBPyConnection", name: str) -> dict[str, Any]:
    """Quantiles, mean and number of the finite values of a column."""
    query = (
        f"SELECT quantile_cont({name}::DOUBLE, {list(QUANTILES.values())}), avg({name}), count(*) "
        f"FROM tuples WHERE {name} IS NOT NULL AND isfinite({name})"
    )
    values, mean, count = connection.execute(query).fetchone()
    return {**dict(zip(QUANTILES, values or [None] * len(QUANTILES), strict=True)), "mean": mean, "tuples": count}


def _kinds(connection: "DuckDBPyConnection", name: str, missing: list[str]) -> dict[str, int]:
    if name in missing:
        return {}
    query = f"SELECT {name}::VARCHAR, count(*) FROM tuples WHERE {name} IS NOT NULL GROUP BY ALL ORDER BY ALL"
    return dict(connection.execute(query).fetchall())


def _sample(shards: ShardSet, positions: list[int], seed: int) -> dict[str, Any]:
    """SSIM against the best quality and sharpness of each, over decoded tuples."""
    from qadprep.faces.measures import sharpness_of

    ssim: dict[str, list[float]] = {quality: [] for quality in shards.qualities[1:]}
    sharp: dict[str, list[float]] = {quality: [] for quality in shards.qualities}
    faults = []
    with progress_bar("sample", len(positions), "tuples") as advance:
        for position in sorted(positions):
            advance(1, "")
            try:
                images = shards[position].images
            except ShardError as error:
                faults.append({"key": shards.table["key"][position].as_py(), "fault": str(error)})
                continue
            for quality, image in images.items():
                sharp[quality].append(sharpness_of(image))
            if shards.size_px >= SSIM_WINDOW_PX:
                best = images[shards.qualities[0]]
                for quality in ssim:
                    ssim[quality].append(ssim_of(best, images[quality]))
    return {
        "seed": seed,
        "tuples": len(positions) - len(faults),
        "ssim": [{"quality": quality, **_spread(values)} for quality, values in ssim.items()],
        "sharpness": [{"quality": quality, **_spread(values)} for quality, values in sharp.items()],
        "faults": faults,
    }


def ssim_of(best: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity, -1 to 1, of two uint8 (size, size, 3) RGB pictures: mean over pixels and channels.

    The window is 7 x 7 px and uniform, the data range 255 (scikit-image's definition).
    """
    from skimage.metrics import structural_similarity

    return float(structural_similarity(best, other, win_size=SSIM_WINDOW_PX, channel_axis=2, data_range=255))


def _spread(values: list[float]) -> dict[str, float | None]:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return {"mean": None, "min": None, "median": None, "max": None}
    return {
        "mean": float(np.mean(known)), "min": min(known), "median": float(np.median(known)), "max": max(known)
    }  # fmt: skip
