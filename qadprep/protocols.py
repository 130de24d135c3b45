"""Protocols: which videos, frames and crops a published experiment used, as TOML files in manifests/protocols."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from qadprep.catalog.base import ORIGINAL, Clip, sort_clips
from qadprep.catalog.manifest import quality_rank
from qadprep.catalog.splits import manifests_folder
from qadprep.config import Settings
from qadprep.errors import UserError
from qadprep.sampling import draw

Split = Literal["train", "val", "test"]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
Quality = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,15}$")]
Count = Annotated[int, Field(ge=1, le=10_000_000_000, strict=True)]


class Protocol(Settings):
    """A published experiment's data.

    Attributes:
        dataset: registry name of the dataset.
        methods: its manipulations; the originals always belong.
        qualities: best first.
        frames: tuples wanted per video.
        size_px, align, margin: of the crops, as in `ExtractConfig`.
        videos_per_class: split -> videos; a split that is not named is taken whole. Clips without a split (`none`)
            belong to it only when no split is named.
        printed: split -> images that the publication prints.
        official: split -> method -> videos of the dataset's own lists.
        notes: what else `plan` says.
    """

    name: Word
    title: Annotated[str, Field(min_length=1)]
    dataset: Word
    methods: Annotated[tuple[Word, ...], Field(min_length=1)]
    qualities: Annotated[tuple[Quality, ...], Field(min_length=1)] = ("raw", "c23", "c40")
    frames: Annotated[int, Field(ge=1, le=100_000, strict=True)]
    size_px: Annotated[int, Field(ge=16, le=1024, strict=True)] = 128
    align: Literal["similarity", "box"] = "box"
    margin: Annotated[float, Field(ge=1.0, le=4.0, strict=True)] = 1.3
    videos_per_class: dict[Split, Count] = Field(default_factory=dict)
    printed: dict[Split, Count] = Field(default_factory=dict)
    official: dict[Split, dict[Word, Count]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or ORIGINAL in value:
            raise ValueError(f"expected different methods without {ORIGINAL!r}, which always belongs")
        return value

    @field_validator("qualities")
    @classmethod
    def _qualities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("expected different qualities")
        return tuple(sorted(value, key=quality_rank))

    @property
    def classes(self) -> tuple[str, ...]:
        """`original`, then the methods."""
        return (ORIGINAL, *self.methods)

    def tuples(self, split: str) -> int | None:
        """Tuples of a split, one face a frame: videos x frames x classes; None where the split is taken whole."""
        videos = self.videos_per_class.get(split)
        return None if videos is None else videos * self.frames * len(self.classes)

    def images(self, split: str) -> int | None:
        """Images of a split: its tuples times the qualities; None where the split is taken whole."""
        tuples = self.tuples(split)
        return None if tuples is None else tuples * len(self.qualities)

    def wanted(self, official: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
        """(method, split) -> videos the protocol takes.

        Args:
            official: the same of the dataset's own lists, for splits that are taken whole.
        """
        own = {(m, s): number for s, number in self.videos_per_class.items() for m in self.classes}
        return own | {(m, s): n for (m, s), n in official.items() if self.takes_whole(m, s)}

    def takes_whole(self, method: str, split: str) -> bool:
        """Whether every clip of a (method, split) belongs to the protocol."""
        limited = split in self.videos_per_class or (split == "none" and bool(self.videos_per_class))
        return method in self.classes and not limited

    def check_dataset(self, dataset: str) -> None:
        """Refuse another dataset than the protocol's.

        Raises:
            UserError: another dataset.
        """
        if dataset != self.dataset:
            raise UserError(f"protocol {self.name!r} is of dataset {self.dataset}, got --dataset {dataset}")

    def extract_settings(self) -> dict[str, Any]:
        """The fields of `ExtractConfig` that the protocol decides."""
        return {name: getattr(self, name) for name in ("dataset", "qualities", "frames", "size_px", "margin", "align")}


def protocol_names() -> list[str]:
    """Names of the shipped protocols, sorted."""
    return sorted(file.stem for file in _folder().glob("*.toml"))


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A shipped protocol by its name, or one's own from a path that ends in .toml.

    Raises:
        UserError: an unknown name, a file that cannot be read, or a value that cannot be; one line.
    """
    text = str(name_or_path)
    if text in protocol_names():
        return _read(_folder() / f"{text}.toml")
    if text.lower().endswith(".toml"):
        return _read(Path(text))
    raise UserError(
        f"unknown protocol {text!r}; known: {', '.join(protocol_names())}, or the path of your own .toml file"
    )


def _folder() -> Path:
    return manifests_folder() / "protocols"


def _read(file: Path) -> Protocol:
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # of TOML and of UTF-8
        raise UserError(f"{file}: not a TOML file ({error})") from error
    try:
        return Protocol(**values)
    except ValidationError as error:
        raise UserError(f"{file}: {_words(error)}") from error


def _words(error: ValidationError) -> str:
    # A misspelt key is also a missing one: it is named first.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if part != "[key]") or "protocol"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; known: {', '.join(Protocol.model_fields)}"
    value = repr(first.get("input"))
    value = value if len(value) <= 60 else value[:57] + "..."
    return f"{key} = {value}: {first['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True)
class Selection:
    """The clips of a protocol.

    Attributes:
        clips: sorted as everywhere.
        short: (method, split) -> (videos there are, videos wanted), where there are too few.
    """

    clips: list[Clip]
    short: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def select(clips: Iterable[Clip], protocol: Protocol, seed: int = 0) -> Selection:
    """The clips that a protocol takes: the originals and its methods, and of each (method, split) its number of videos.

    Where there are more videos than wanted they are drawn in rounds over the groups, one clip of each group a round,
    in an order that the seed and the group's name decide: fakes come with their originals, from as many recordings as
    can be. The same videos whatever the order of the clips, and whatever other methods are there.
    """
    classes: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        if clip.dataset == protocol.dataset:
            classes.setdefault((clip.method, clip.split), []).append(clip)
    taken: list[Clip] = []
    for (method, split), members in classes.items():
        if protocol.takes_whole(method, split):
            taken += members
        elif method in protocol.classes and split in protocol.videos_per_class:
            taken += _in_rounds(members, seed)[: protocol.videos_per_class[split]]
    short = {
        (method, split): (have, wanted)
        for split, wanted in protocol.videos_per_class.items()
        for method in protocol.classes
        if (have := len(classes.get((method, split), ()))) < wanted
    }
    return Selection(sort_clips(taken), short)


def _in_rounds(clips: Iterable[Clip], seed: int) -> list[Clip]:
    """Clips of one method and split: the first of each group, then the second of each that has one, and so on."""
    groups: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: (draw(seed, clip.id), clip.id)):
        groups.setdefault(clip.group, []).append(clip)
    order = sorted(groups, key=lambda group: (draw(seed, "group", group), group))
    rounds = max(map(len, groups.values()), default=0)
    return [groups[group][turn] for turn in range(rounds) for group in order if turn < len(groups[group])]
