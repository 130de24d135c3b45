"""The result of `qadprep diff`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DiffReport:
    """Result of `diff`.

    Attributes:
        a, b: name, fingerprint and number of tuples of each set.
        settings: (setting, of A, of B), those that differ.
        common, only_in_a, only_in_b: numbers of keys.
        pixels: quality -> common tuples whose pixels differ there.
        tuples_with_other_pixels: common tuples of which any quality differs.
        columns: column of the index -> common tuples that differ in it.
        facts: key of the JSON member -> common tuples that differ in it.
        moved: common tuples that stand at another place of the order; None when the order was not asked for.
        missing_columns: (column, `A` or `B`), those that only the other set's index has.
        damaged: number of tuples that could not be read; they count as different.
        faults: (set, key, what is wrong), the first of them.
        examples: what -> a few keys.
        shown: for some tuples with other pixels: key, quality, mean_abs and max_abs difference (grey levels), psnr_db.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    settings: list[tuple[str, str, str]] = field(default_factory=list)
    common: int = 0
    only_in_a: int = 0
    only_in_b: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    tuples_with_other_pixels: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    moved: int | None = None
    missing_columns: list[tuple[str, str]] = field(default_factory=list)
    damaged: int = 0
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether both hold the same tuples; the codec, the format's version and the cut into shards do not count."""
        kind = any(setting in ("qualities", "size_px") for setting, _, _ in self.settings)
        others = (self.only_in_a, self.only_in_b, self.tuples_with_other_pixels, self.columns, self.facts, self.moved)
        return not (kind or any(others) or self.damaged)

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`)."""
        return {
            **self.__dict__,
            "equal": self.equal,
            "settings": [{"setting": name, "a": a, "b": b} for name, a, b in self.settings],
            "missing_columns": [{"column": name, "set": side} for name, side in self.missing_columns],
            "faults": [{"set": side, "key": key, "fault": fault} for side, key, fault in self.faults],
        }
