"""Face packs and shard sets made on the spot, without any video: textured pictures that get poorer by quality."""

import json
from pathlib import Path

import cv2
import numpy as np

from qadprep.config import ExtractConfig, ShardConfig
from qadprep.pack import FileRecord, Row, write_pack
from qadprep.shard import shard

QUALITIES = ("raw", "c23", "c40")
METHODS = ("original", "Deepfakes", "FaceSwap")
# Group -> split.
GROUPS = {"000": "train", "001": "train", "002": "train", "100": "val", "200": "test"}


def picture(seed: int, size_px: int, worse: int) -> np.ndarray:
    """uint8 (size_px, size_px, 3): a smooth picture with grain; coarser the higher `worse` is."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.uniform(40, 210, (5, 5, 3)), (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 12, smooth.shape)
    for _ in range(worse):
        grain = cv2.blur(grain, (3, 3))
    return np.clip(np.rint(smooth + grain), 0, 255).astype(np.uint8)


def made_packs(
    folder: Path,
    groups: dict[str, str] | None = None,
    *,
    methods: tuple[str, ...] = METHODS,
    frames: int = 4,
    size_px: int = 24,
    qualities: tuple[str, ...] = QUALITIES,
    dataset: str = "ffpp",
) -> Path:
    """A folder of face packs as `extract` leaves it.

    Every method of a group is there at the same frames (0, 10, 20 ...). The last frame of each Deepfakes clip shows
    the original unaltered; one more attempted tuple a group has no face.
    """
    groups = GROUPS if groups is None else groups
    config = ExtractConfig(
        dataset=dataset, frames=frames, size_px=size_px, qualities=qualities, detector={"name": "made"}
    )
    settings = config.model_dump(mode="json")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "extract.json").write_text(json.dumps(settings))
    for number, (group, split) in enumerate(sorted(groups.items())):
        rows, files = [], []
        for place, method in enumerate(methods):
            name = group if method == "original" else f"{group}_{900 + number}"
            for turn in range(frames):
                seed = 1000 * number + 100 * place + turn
                crops = {quality: picture(seed, size_px, worse) for worse, quality in enumerate(qualities)}
                rows.append(
                    Row(
                        dataset, group, method, name, int(method != "original"), split, group, "900" * (place > 0),
                        10 * turn, 0, "ok", geometry="reference", detector="made", score=0.99,
                        box_xyxy=[10.0, 20.0, 110.0, 140.0], landmarks_xy=[float(v) for v in range(10)],
                        affine=[0.2, 0.0, 1.0, 0.0, 0.2, 2.0], face_px=80.0 + 10 * turn, sharpness=50.0 + turn,
                        yaw_deg=5.0 * turn, pitch_deg=1.0, roll_deg=0.5, inside_share=1.0, scene=0,
                        unaltered=method == "Deepfakes" and turn == frames - 1, crops=crops,
                    )
                )  # fmt: skip
            for quality in qualities:
                first = method == "original" and quality == qualities[0]
                sync = {
                    "verdict": "reference" if first else "proved",
                    "offset_frames": 0,
                    "margin": 0.8,
                    "residual": 1.0,
                }
                files.append(FileRecord(name, method, quality, f"{method}/{quality}/{name}.mp4", bytes=1000, sync=sync))
        rows.append(Row(dataset, group, "original", group, 0, split, group, "", 10 * frames, 0, "no_face"))
        meta = {"config_hash": config.hash(), "config": settings, "group": group, "notes": [], "clips": []}
        write_pack(folder, dataset, group, rows, files, qualities, meta)
    (folder / "summary.json").write_text(json.dumps({"failures": [], "notes": []}))
    return folder


def made_shards(folder: Path, faces: Path, **settings: object) -> Path:
    """A shard set of such packs."""
    shard(faces, folder, ShardConfig(**{"tuples_per_shard": 16} | settings))
    return folder
