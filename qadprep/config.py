"""Validated settings of each command. What decides the bytes of the output goes into the config's hash."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from qadprep.errors import UserError


class Settings(BaseModel):
    """Base: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def checked(cls, **values: Any) -> "Settings":
        """Build from command-line values.

        Raises:
            UserError: one line that names the option, what it got and what was expected.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
            name = name.removesuffix("-px").removesuffix("-deg")
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(f"--{name}: got {first.get('input')!r}; {message}") from error


class ExtractConfig(Settings):
    """What decides the bytes of a face pack."""

    dataset: str
    qualities: tuple[str, ...] = ("raw", "c23", "c40")
    frames: int = Field(64, ge=1, le=100_000)
    """Tuples wanted per clip."""
    size_px: int = Field(128, ge=16, le=1024)
    """Side of the square crop."""
    margin: float = Field(1.3, ge=1.0, le=4.0)
    """Side of the crop's field of view over the side of the face."""
    align: Literal["similarity", "box"] = "similarity"
    faces: Literal["auto", "largest", "all"] = "auto"
    """Which faces of a clip become tuples: the largest one, all, or what the dataset's reader says."""
    min_face_px: float = Field(0, ge=0, le=10_000)
    """Least side of the square with the box's area; smaller faces are left out as `small_face`."""
    max_yaw_deg: float | None = Field(None, ge=0, le=90)
    """Faces turned further from the front are left out as `turned_face`."""
    drop_unaltered: bool = False
    """Leave out frames of manipulated clips that equal the original's."""
    seed: int = Field(0, ge=0)
    realign: bool = False
    """Detect and align again in pictures that others have cropped; else they are only resized."""
    make_qualities: bool = False
    """Encode missing qualities from the best one, the FF++ way."""
    pix_fmt: Literal["yuv444p", "yuv420p"] = "yuv444p"
    """Pixel format of made qualities; yuv444p is FF++'s."""
    accept_mislabelled: bool = False
    """Use files whose stream was made with another CRF than their folder says."""
    detector: dict[str, str | int | float] = Field(default_factory=dict)
    """The detector's identity: name, weights' sha256, thresholds."""

    @field_validator("qualities")
    @classmethod
    def _qualities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("expected a list of different qualities such as raw,c23,c40")
        for quality in value:
            # The word becomes part of file names and of table columns.
            if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", quality):
                raise ValueError(f"quality {quality!r} is not a word such as raw, c23 or c40")
        from qadprep.catalog.manifest import quality_rank

        return tuple(sorted(value, key=quality_rank))

    def hash(self) -> str:
        """sha256 (hex) of the settings and of the pack format's version."""
        from qadprep.pack import FORMAT_VERSION

        return _hash({"pack_format": FORMAT_VERSION, **self.model_dump(mode="json")})


class ShardConfig(Settings):
    """What decides the bytes of a shard set, given its face packs."""

    tuples_per_shard: int = Field(1000, ge=1, le=1_000_000)
    shard_bytes: int | None = Field(None, ge=1)
    """Close a shard before its tuples take more bytes than this; of `webp` counted with the packs' larger PNG files."""
    seed: int = Field(0, ge=0)
    balance: Literal["natural", "even", "equal"] = "natural"
    """Order inside a split: a uniform shuffle; every method spread evenly over it; the same with as many real as fake
    tuples, the more numerous label thinned."""
    codec: Literal["png", "webp", "raw"] = "png"
    qualities: tuple[str, ...] | None = None
    """Only these of the packs' qualities."""
    splits: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    """Only tuples of these; `original` is a method too."""
    min_face_px: float = Field(0, ge=0, le=10_000)
    """Least side of the square with the box's area."""
    drop_unaltered: bool = False
    """Leave out frames of manipulated clips that equal the original's."""
    max_frames: int | None = Field(None, ge=1)
    """Most instants of a clip; the same ones of a group's original and its manipulations."""
    where: str | None = None
    """A condition over the columns of the pack tables and `key`, in SQL."""

    @field_validator("qualities", "splits", "methods")
    @classmethod
    def _names(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        """In one order, so that the order in which they are typed changes nothing."""
        if value is None:
            return None
        if not value or len(set(value)) != len(value):
            raise ValueError(f"expected a list of different {info.field_name}")
        if info.field_name == "qualities":
            from qadprep.catalog.manifest import quality_rank

            return tuple(sorted(value, key=quality_rank))
        return tuple(sorted(value))

    def hash(self, packs_hash: str) -> str:
        """sha256 (hex) of the settings and of the packs' content."""
        return _hash({"packs": packs_hash, **self.model_dump(mode="json")})


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def guard_output(folder: Path, name: str, config: dict[str, Any], overwrite: bool) -> None:
    """Keep one config per output folder: `<folder>/<name>` holds it.

    Raises:
        UserError: another config and no `overwrite`; the message names the first differing setting.
    """
    file = folder / name
    if not file.is_file() or overwrite:
        return
    try:
        before = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = [key for key in config if before.get(key) != config[key]]
    if changed:
        key = changed[0]
        raise UserError(
            f"{folder}: was written with {key} = {before.get(key)!r}, now {config[key]!r}; choose another --out, the "
            "same settings, or --overwrite to replace it"
        )


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON atomically, readable by people."""
    from qadprep.ustar import atomic_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
