"""Choices that are the same for everybody: which frames of a group are taken, and the order of tuples in shards."""

import hashlib


def draw(seed: int, *words: object) -> int:
    """A 64-bit number that depends on nothing but its arguments: no library's generator, no order of calls."""
    text = "/".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def sample_indices(length: int, count: int, seed: int, name: str) -> tuple[list[int], list[int]]:
    """Frame numbers to take, and spares for those where no face is found.

    [0, length) is cut into `count` equal stretches and one frame drawn from each, so that frames spread over the
    whole video without a fixed stride; the rest, in drawn order, are the spares.

    Args:
        length: number of frames all files of the group have.
        count: frames wanted.
        seed: of the run.
        name: of the group; groups of one run get different draws.

    Returns:
        (frames in rising order, spares in the order of use). All frames and no spares when length <= count.
    """
    if length < 1 or count < 1:
        raise ValueError(f"length and count must be at least 1, got {length} and {count}")
    if length <= count:
        return list(range(length)), []
    rank = [draw(seed, name, index) for index in range(length)]
    chosen = [
        min(range(part * length // count, (part + 1) * length // count), key=rank.__getitem__) for part in range(count)
    ]
    taken = set(chosen)
    spares = sorted((index for index in range(length) if index not in taken), key=rank.__getitem__)
    return chosen, spares
