"""Where a followed face turns into another person's, and which pieces of track belong to one person: by looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qadprep.faces.looks import AGREE, LOOK_SIZE, OTHER, SAME, SAME_SCENE, same_persons

# A switch needs so many sightings on each side; a face that turns away and back, or a hand before it, is no switch.
_SIDE_SIGHTINGS = 3
# So many looks, spread over it, stand for a piece of track; windows are compared in blocks to bound the memory.
_LOOKS_OF_A_PIECE = 8
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Piece:
    """Part of a track within one scene.

    frames: rising. scene: its number. looks: float32 (n, 288) of its sightings, n = 0 where none is known.
    """

    frames: tuple[int, ...]
    scene: int
    looks: np.ndarray


def switches_in(looks: np.ndarray) -> list[int]:
    """Where another person begins in a row of looks (n, 288) that were thought to be one's: indices, rising.

    At such a place the three looks before it agree among themselves (median `same_person` at least `AGREE`), so do the
    three after it, and of the nine pairs across not one is above `OTHER`. Fewer than three sightings are no evidence.
    """
    found: list[int] = []
    side = _SIDE_SIGHTINGS
    upper = np.triu_indices(side, 1)
    for start in range(0, len(looks) - 2 * side + 1, _BLOCK):
        block = looks[start : start + _BLOCK + 2 * side - 1]
        same = same_persons(block, block)
        for place in range(side, len(block) - side + 1):
            left, right = slice(place - side, place), slice(place, place + side)
            if (
                same[left, right].max() <= OTHER
                and np.median(same[left, left][upper]) >= AGREE
                and np.median(same[right, right][upper]) >= AGREE
            ):
                found.append(start + place)
    return found


def join_pieces(pieces: Sequence[Piece]) -> list[list[int]]:
    """Put the pieces of one person together: groups of indices into `pieces`, rising, in order of their first piece.

    The pair that looks most alike comes first, and every further one joins the group it looks most like, as long as the
    median `same_person` of all their looks is at least `SAME`. Pieces of one scene are put together only where one ends
    before the other begins, since nobody is there twice, and where they are surer: at least `SAME_SCENE`.
    """
    chosen = [_some(piece.looks) for piece in pieces]
    bounds = np.cumsum([0, *map(len, chosen)])
    everything = np.concatenate(chosen) if chosen else np.zeros((0, LOOK_SIZE), np.float32)
    rows = [same_persons(everything[at : at + _BLOCK], everything) for at in range(0, len(everything), _BLOCK)]
    matrix = np.concatenate(rows) if rows else np.zeros((0, 0))
    same: dict[tuple[int, int], np.ndarray] = {}
    for b in range(len(pieces)):
        for a in range(b):
            if len(chosen[a]) and len(chosen[b]) and _can_be_one(pieces[a], pieces[b]):
                same[a, b] = matrix[bounds[a] : bounds[a + 1], bounds[b] : bounds[b + 1]]

    def alike(one: list[int], other: list[int]) -> float:
        pairs = [same.get((min(a, b), max(a, b))) for a in one for b in other]
        if any(pair is None for pair in pairs):
            return 0.0
        value = float(np.median(np.concatenate([pair.ravel() for pair in pairs])))
        in_scene = bool({pieces[a].scene for a in one} & {pieces[b].scene for b in other})
        return value if value >= (SAME_SCENE if in_scene else SAME) else 0.0

    worth = {(a, b): value for a, b in same if (value := alike([a], [b])) > 0}
    alive = {index: [index] for index in range(len(pieces))}
    while worth:
        # Ties go to the earlier pieces, so that the answer does not hang on the order of a dict.
        a, b = min(worth, key=lambda pair: (-worth[pair], pair))
        alive[a] = sorted(alive[a] + alive.pop(b))
        worth = {pair: value for pair, value in worth.items() if not {a, b} & set(pair)}
        for other in alive:
            if other != a and (value := alike(alive[a], alive[other])) > 0:
                worth[min(a, other), max(a, other)] = value
    return [alive[index] for index in sorted(alive)]


def _can_be_one(a: Piece, b: Piece) -> bool:
    if a.scene != b.scene:
        return True
    return a.frames[-1] < b.frames[0] or b.frames[-1] < a.frames[0]


def _some(looks: np.ndarray) -> np.ndarray:
    if len(looks) <= _LOOKS_OF_A_PIECE:
        return looks
    return looks[np.linspace(0, len(looks) - 1, _LOOKS_OF_A_PIECE).round().astype(int)]
