"""What it costs to lay one picture on another at whole-pixel offsets, on a pyramid of reduced pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

# A picture of the same size can lie this many px off, and one of another size this far over the edge.
SEARCH_PX = 16
# The winner and what it is compared with lie at least this far apart; one px at CRF 40 is within noise.
APART_PX = 2
RING = [(x * APART_PX, y * APART_PX) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
TILES = 4
# Grey levels that moving must cost the reference itself before a comparison means anything.
MIN_DETAIL = 0.3
_MIN_TILE_DETAIL = 1.0
_MIN_GAIN = 0.2
_COARSE_PIXELS, _COARSE_OFFSETS, _LEAST_SIDE, _MOST_LEVELS = 20_000, 400, 24, 4
_CANDIDATES = 4
# Of a large picture every n-th row is compared at full resolution: whole-pixel offsets stay exact.
_ENOUGH_PIXELS = 500_000

Offset = tuple[int, int]
Pair = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Luminance of one instant: the reference's, uint8 (H, W), the other file's, uint8 (h, w), and which of the reference's
pixels count, (H, W) bool or uint8 (0 = leave out), or None for all."""


@dataclass
class Offsets:
    """Costs of the offsets (left, top) at which the other's picture may lie in the reference's, in px of full size.

    `levels[n]` holds the pairs reduced by 2 ** n. A cost is the mean |difference| over the common, kept part, in grey
    levels.
    """

    levels: list[list[Pair]]
    reference_wh: Offset
    other_wh: Offset
    _costs: dict[tuple[int, Offset], float] = field(default_factory=dict)
    _own: dict[Offset, float] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Offsets":
        """Build the pyramid. Raises ValueError for no pairs, wrong types, or sizes that differ within a file."""
        pairs = [_checked(*pair) for pair in pairs]
        shapes = {(reference.shape, other.shape) for reference, other, _ in pairs}
        if len(shapes) != 1:
            raise ValueError(f"expected pairs of pictures of one size each, got {sorted(shapes)[:3]}")
        (height, width), (other_height, other_width) = shapes.pop()
        costs = cls([pairs], (width, height), (other_width, other_height))
        while costs._too_fine():
            costs.levels.append([_half(*pair) for pair in costs.levels[-1]])
        return costs

    def best(self) -> Offset:
        """The offset of least cost: all are tried on the smallest pictures, and the best ones refined."""
        top = len(self.levels) - 1
        coarse = self._coarse(top)
        order = sorted(coarse, key=lambda offset: (coarse[offset], abs(offset[0]) + abs(offset[1])))
        self.even_brightness(order[0], top)
        free = [own - other for own, other in zip(self.reference_wh, self.other_wh, strict=True)]
        expected = [(0, 0), (free[0] // 2, free[1] // 2)]
        found: list[Offset] = []
        for offset in order:
            if len(found) < _CANDIDATES and all(max(abs(offset[0] - x), abs(offset[1] - y)) > 1 for x, y in found):
                found.append(offset)
        found += [(x >> top, y >> top) for x, y in expected]
        for level in range(top, -1, -1):
            if level < top:
                found = [(2 * x, 2 * y) for x, y in found]
            found = sorted({self._descend(offset, level) for offset in found}, key=lambda o: (self._at(o, level), o))
            found = found[: 2 if level <= 1 else _CANDIDATES]
        found += expected
        best = min(found, key=self.cost)
        for offset in expected:
            # One px from where datasets put their pictures, and no better by more than a hair: it is there.
            if 0 < max(abs(offset[0] - best[0]), abs(offset[1] - best[1])) < APART_PX:
                step = (best[0] - offset[0], best[1] - offset[1])
                if self.cost(offset) - self.cost(best) <= 0.02 * self.own_cost(step):
                    best = offset
        return best

    def cost(self, offset: Offset) -> float:
        """At full resolution; inf where the pictures have too little in common."""
        return self._at(offset, 0)

    def own_cost(self, step: Offset) -> float:
        """What the reference scores against itself moved by `step`, over the kept part."""
        if step not in self._own:
            pairs = [(reference, reference, keep) for reference, _, keep in self.levels[0][:2]]
            self._own[step] = _difference(pairs, step)
        return self._own[step]

    def margin(self, winner: Offset) -> float:
        """How much worse the best offset around the winner is, over what a perfect copy would pay there."""
        margins = [0.0]
        if self.detail() >= MIN_DETAIL:
            around = [(step, (winner[0] + step[0], winner[1] + step[1])) for step in RING]
            others = [((x - winner[0], y - winner[1]), (x, y)) for (level, (x, y)) in self._costs if level == 0]
            others = [(step, at) for step, at in others if max(map(abs, step)) >= APART_PX]
            margins = [
                (self.cost(at) - self.cost(winner)) / max(self.own_cost(step), MIN_DETAIL)
                for step, at in around + sorted(others, key=lambda other: self.cost(other[1]))[:4]
                if np.isfinite(self.cost(at)) and np.isfinite(self.own_cost(step))
            ]
        return float(min(margins, default=0.0))

    def detail(self) -> float:
        """What moving the reference by 2 px costs it in the direction where that shows least."""
        return min(self.own_cost(step) for step in RING)

    def spread(self) -> float:
        """Mean |difference| of the reference from its mean, grey levels."""
        pictures = [
            reference[:: max(1, reference.shape[0] // 128)].astype(np.float32) for reference, _, _ in self.levels[0]
        ]
        return float(np.mean([np.abs(picture - picture.mean()).mean() for picture in pictures]))

    def objecting(self, winner: Offset) -> float:
        """Share of the detailed tiles of a 4 x 4 grid that fit clearly better elsewhere nearby: zoomed content."""
        target, source = overlap(winner, self.reference_wh, self.other_wh)
        if target is None:
            return 1.0
        base, steps = 0.0, [(x * s, y * s) for s in (2, 4) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        moved = dict.fromkeys(steps, 0.0)
        own = dict.fromkeys(steps, 0.0)
        for reference, other, keep in self.levels[0][:3]:
            a, b = reference[target], other[source]
            mask = None if keep is None else keep[target]
            base = base + _tiles(a, b, mask, (0, 0))
            for step in steps:
                moved[step] = moved[step] + _tiles(a, b, mask, step)
                own[step] = own[step] + _tiles(a, a, mask, step)
        gains = np.stack([(base - moved[step]) / np.maximum(own[step], _MIN_TILE_DETAIL) for step in steps])
        detailed = np.stack([own[step] for step in steps]).max(axis=0) >= _MIN_TILE_DETAIL
        return float((gains.max(axis=0) > _MIN_GAIN)[detailed].mean()) if detailed.sum() >= 3 else 0.0

    def _too_fine(self) -> bool:
        reference, other, _ = self.levels[-1][0]
        if min(reference.shape + other.shape) < 2 * _LEAST_SIDE:
            return False
        many = len(self._offsets(len(self.levels) - 1)) > _COARSE_OFFSETS
        return many or (reference.size > _COARSE_PIXELS and len(self.levels) < _MOST_LEVELS)

    def _offsets(self, level: int) -> list[Offset]:
        ranges = []
        for own, other in zip(self.reference_wh, self.other_wh, strict=True):
            low, high = min(0, own - other) - SEARCH_PX, max(0, own - other) + SEARCH_PX
            ranges.append(range(low >> level, -(-high >> level) + 1))
        return [(x, y) for x in ranges[0] for y in ranges[1]]

    def _coarse(self, level: int) -> dict[Offset, float]:
        """Costs on the smallest pictures with the mean difference taken out, so that brightness decides nothing."""
        pairs = self.levels[level][:: max(1, len(self.levels[level]) // 3)]
        signed = [(a.astype(np.float32), b.astype(np.float32), keep) for a, b, keep in pairs]
        result = {}
        for offset in self._offsets(level):
            sizes = _wh(pairs[0][0]), _wh(pairs[0][1])
            target, source = overlap(offset, *sizes)
            if target is None:
                continue
            values = []
            for a, b, keep in signed:
                difference = a[target] - b[source]
                if keep is not None:
                    difference = difference[keep[target] > 0]
                if difference.size:
                    values.append(float(np.abs(difference - difference.mean()).mean()))
            if values:
                result[offset] = float(np.mean(values))
        return result or {(0, 0): float("inf")}

    def even_brightness(self, offset: Offset, level: int = 0) -> None:
        """Add to each of the other's pictures the difference in mean brightness, measured at an offset of a level."""
        target, source = overlap(offset, *map(_wh, self.levels[level][0][:2]))
        if target is None:
            return
        for number, (a, b, _) in enumerate(self.levels[level]):
            change = round(float(a[target].mean()) - float(b[source].mean()))
            if change:
                for pairs in self.levels:
                    reference, other, keep = pairs[number]
                    even = cv2.add(other, float(change)) if change > 0 else cv2.subtract(other, float(-change))
                    pairs[number] = (reference, even, keep)

    def _at(self, offset: Offset, level: int) -> float:
        key = (level, offset)
        if key not in self._costs:
            self._costs[key] = _difference(self.levels[level], offset)
        return self._costs[key]

    def _descend(self, offset: Offset, level: int) -> Offset:
        for _ in range(2 * SEARCH_PX):
            around = [(offset[0] + x, offset[1] + y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
            best = min(around, key=lambda at: (self._at(at, level), at != offset))
            if best == offset:
                break
            offset = best
        return offset


def overlap(offset: Offset, reference_wh: Offset, other_wh: Offset) -> tuple[tuple | None, tuple | None]:
    """Slices of the common part in the reference's and in the other's array; (None, None) where it is less than half of
    the smaller picture in width or height."""
    target, source = [], []
    for at, own, other in reversed(list(zip(offset, reference_wh, other_wh, strict=True))):
        begin, end = max(0, at), min(own, at + other)
        if 2 * (end - begin) < min(own, other):
            return None, None
        target.append(slice(begin, end))
        source.append(slice(begin - at, end - at))
    return tuple(target), tuple(source)


def _difference(pairs: Sequence[Pair], offset: Offset) -> float:
    target, source = overlap(offset, *map(_wh, pairs[0][:2]))
    if target is None:
        return float("inf")
    rows = max(1, pairs[0][0].size // _ENOUGH_PIXELS)
    target, source = ((slice(y.start, y.stop, rows), x) for y, x in (target, source))
    total = count = 0.0
    for reference, other, keep in pairs:
        a, b = reference[target], other[source]
        if keep is None:
            total, count = total + cv2.norm(a, b, cv2.NORM_L1), count + a.size
        else:
            mask = keep[target]
            total, count = total + cv2.norm(a, b, cv2.NORM_L1, mask), count + cv2.countNonZero(mask)
    return total / count if count else float("inf")


def _tiles(a: np.ndarray, b: np.ndarray, keep: np.ndarray | None, step: Offset) -> np.ndarray:
    """Mean |difference| per tile with `b` moved by `step`, the outermost 4 px left out; (4, 4) float64."""
    height, width = a.shape
    x, y, rim = *step, 4
    if min(height, width) < 4 * rim:
        return np.zeros((TILES, TILES))
    rows = max(1, a.size // _ENOUGH_PIXELS)
    inner = a[rim : height - rim : rows, rim : width - rim]
    moved = b[rim - y : height - rim - y : rows, rim - x : width - rim - x]
    difference = cv2.absdiff(inner, moved)
    if keep is not None:
        difference[keep[rim : height - rim : rows, rim : width - rim] == 0] = 0
    return cv2.resize(difference.astype(np.float32), (TILES, TILES), interpolation=cv2.INTER_AREA).astype(np.float64)


def _half(reference: np.ndarray, other: np.ndarray, keep: np.ndarray | None) -> Pair:
    halves = []
    for picture in (reference, other, keep):
        if picture is None:
            halves.append(None)
            continue
        height, width = (side // 2 for side in picture.shape)
        even = picture[: 2 * height, : 2 * width]
        halves.append(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
    if keep is not None:
        # A reduced pixel counts only where all four did.
        halves[2] = np.where(halves[2] == 255, np.uint8(255), np.uint8(0))
    return tuple(halves)


def _wh(picture: np.ndarray) -> Offset:
    return picture.shape[1], picture.shape[0]


def _checked(reference: np.ndarray, other: np.ndarray, keep: np.ndarray | None) -> Pair:
    for picture in (reference, other):
        if picture.dtype != np.uint8 or picture.ndim != 2 or picture.size == 0:
            raise ValueError(f"expected luminance uint8 (h, w), got {picture.dtype} {picture.shape}")
    if keep is None:
        return reference, other, None
    if keep.shape != reference.shape:
        raise ValueError(f"expected a keep mask {reference.shape} as the reference's picture, got {keep.shape}")
    return reference, other, np.where(keep, np.uint8(255), np.uint8(0))
