"""Shard sets for `bench_shards.py`: textured pictures at three qualities, the same ones as PNG, lossless WebP and raw.

A portrait (scikit-image's astronaut), moved and turned, with a camera's grain, stands for a lossless file's crop; what
x264 at CRF 23 and 40 does to it is imitated by JPEG, so that the PNG files get sizes like those of compressed videos.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

QUALITIES = ("raw", "c23", "c40")
SIZE_PX = 128
# So many different tuples are encoded; more are the same pictures under other keys. Decoders do not notice.
DIFFERENT = 120
_JPEG = {"c23": 90, "c40": 50}
_GRAIN_SIGMA = 2.5


def made_sets(folder: Path, tuples: int, tuples_per_shard: int, codecs: tuple[str, ...]) -> dict[str, Path]:
    """Codec -> shard set; what an earlier run made is used again."""
    made = {}
    pictures = None
    for codec in codecs:
        place = made[codec] = folder / f"{codec}-{tuples}x{tuples_per_shard}"
        if not (place / "shards.json").is_file():
            pictures = pictures or [_tuple(number) for number in range(min(tuples, DIFFERENT))]
            print(f"making {place}", flush=True)
            _write_set(place, codec, pictures, tuples, tuples_per_shard)
    return made


def _tuple(number: int) -> dict[str, np.ndarray]:
    """Quality -> uint8 (128, 128, 3) RGB."""
    import cv2
    from skimage import data

    rng = np.random.default_rng(number)
    zoom, turn = rng.uniform(0.6, 1.0), rng.uniform(-0.3, 0.3)
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.array([222, 118]) + rng.uniform(-15, 15, 2)
    affine = np.column_stack([linear, SIZE_PX / 2 - linear @ centre])
    face = cv2.warpAffine(data.astronaut(), affine, (SIZE_PX, SIZE_PX), flags=cv2.INTER_AREA)
    raw = np.clip(face + rng.normal(0, _GRAIN_SIGMA, face.shape), 0, 255).astype(np.uint8)
    found = {"raw": raw}
    for quality, jpeg in _JPEG.items():
        file = cv2.imencode(".jpg", raw[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])[1]
        found[quality] = cv2.imdecode(file, cv2.IMREAD_COLOR_RGB)
    return found


def _write_set(
    folder: Path, codec: str, pictures: list[dict[str, np.ndarray]], tuples: int, tuples_per_shard: int
) -> None:
    from qadprep.codecs import encode_image, pixel_hash
    from qadprep.shard_format import FORMAT_MAJOR, FORMAT_MINOR

    files = [
        {quality: (encode_image(image, codec), pixel_hash(image)) for quality, image in picture.items()}
        for picture in pictures
    ]
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(tuples).tolist()  # shuffled by tuple, as `qadprep shard` does
    shardlist = [
        _write_shard(folder, f"train-{start // tuples_per_shard:06d}", order[start : start + tuples_per_shard], files,
                     codec)
        for start in range(0, tuples, tuples_per_shard)
    ]  # fmt: skip
    info = {
        "__kind__": "wids-shard-index-v1", "wids_version": 1, "format_version": f"{FORMAT_MAJOR}.{FORMAT_MINOR}",
        "qualities": QUALITIES, "codec": codec, "size_px": SIZE_PX, "tuples": {"train": tuples}, "shardlist": shardlist,
    }  # fmt: skip
    (folder / "shards.json").write_text(json.dumps(info, indent=2))


def _write_shard(folder: Path, name: str, numbers: list[int], files: list[dict], codec: str) -> dict:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from qadprep.shard_format import index_schema, member_name
    from qadprep.ustar import TarWriter

    rows = []
    with (folder / f"{name}.tar").open("wb") as file:
        tar = TarWriter(file)
        for number in numbers:
            target, source, frame = number // 64 % 1000, (number // 64 + 1) % 1000, number % 64
            video = f"{target:03d}_{source:03d}"
            facts = {"label": 1, "split": "train", "dataset": "ffpp", "method": "Deepfakes", "video": video,
                     "group": video, "target": video[:3], "source": video[4:], "frame": frame, "face": 0,
                     "geometry": "reference"}  # fmt: skip
            row = facts | {"key": f"ffpp/Deepfakes/{video}/{frame:06d}_0", "offset": tar.position}
            for quality, (data, pixels) in files[number % len(files)].items():
                place = tar.add(member_name(row["key"], quality, codec), data)
                row[f"{quality}_offset"], row[f"{quality}_size"] = place
                row[f"{quality}_pixels_sha256"] = pixels
            text = json.dumps(facts | {"key": row["key"], "affine": [0.5, 0.0, 1.5, 0.0, 0.5, 2.5]}).encode()
            row["json_offset"], row["json_size"] = tar.add(f"{row['key']}.json", text)
            row["length"] = tar.position - row["offset"]
            rows.append(row)
        tar.finish()
    data = (folder / f"{name}.tar").read_bytes()
    for row in rows:
        row["sha256"] = hashlib.sha256(data[row["offset"] : row["offset"] + row["length"]]).hexdigest()
    table = pa.Table.from_pylist(rows, schema=index_schema(QUALITIES))
    pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
    return {
        "url": f"{name}.tar", "nsamples": len(rows), "filesize": len(data),
        "md5sum": hashlib.md5(data, usedforsecurity=False).hexdigest(), "sha256": hashlib.sha256(data).hexdigest(),
        "split": "train", "index": f"{name}.parquet",
        "index_sha256": hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest(),
    }  # fmt: skip
