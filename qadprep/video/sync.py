"""Does a file show the reference's instants, at the same place? The proof that lets one geometry cut both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from qadprep.video.instants import MAX_OFFSET_FRAMES, OFFSETS, Instants, Stretch, anchored, compare
from qadprep.video.place import EQUAL, Place

__all__ = ["MAX_OFFSET_FRAMES", "REFERENCE", "Sync", "prove", "temporal_shift", "trusted"]

# Measured on talking heads, lossless against CRF 40 and the other way round: true pairs score 0.16 (a nearly still
# scene) to 1.0.
MIN_MARGIN = 0.05
# A shift is believed at this margin, or at the smaller one where most of the evidence agrees: in a nearly still scene
# CRF 40 keeps showing parts of earlier frames, which looks like a lag of two or three frames at half of the instants.
CLEAR_MARGIN, MIN_AGREEING = 0.1, 2 / 3
FEW_INSTANTS = 9
# With fewer instants than this, a change of offset is only doubt where the winner's cost is so many times the scene's
# motion: in 28 frames of a still face, CRF 40 seems to change as soon as the codec refreshes something (cost 4, motion
# 1; a dropped frame of a moving head: 8 and 12).
MANY_INSTANTS, NOISE_OVER_MOTION = 16, 2.0
# Root mean squared difference (grey levels) to the nearest other frame below which a scene cannot tell offsets apart.
MIN_MOTION = 0.1
# Two different scenes differ by 30 to 60 grey levels, or in dark ones by their own spread; CRF 40 or a swapped face by
# 1 to 6.
MAX_RESIDUAL, MAX_COST_SHARE, MAX_COST_FLAT = 16.0, 0.6, 4.0
# The offset changes on the way: surely, where that is worth more than true pairs reach (see `instants.MIN_GAIN`);
# perhaps, where they rarely do, or where the last or first instants alone say so.
SURE_WORTH, SURE_INSTANTS = 0.6, 2
DOUBTFUL_WORTH, DOUBTFUL_WORTH_AT_END = 0.2, 0.08
# Own instants against any others of the clip: 0.38 or more for true pairs at CRF 40, 0.3 or less for reversed clips.
# Asked only where the scene moves clearly more over the clip than over a frame or two: noise does not.
MIN_ANCHORED, MIN_ANCHORED_STATIC = 0.15, 0.3
MIN_FAR_MOTION, FAR_OVER_NEAR, CLEAR_MOTION = 1.0, 2.0, 2.0

Verdict = Literal["reference", "proved", "static", "shifted", "refused"]
Thumbnails = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Sync:
    """Evidence that a file shows the reference's instants at the same place.

    Attributes:
        verdict: `proved` (offset 0 wins clearly, all the time, and the place is the same), `static` (too little motion
            to tell), `shifted` (another offset in time or space wins clearly), `refused` (other content, an offset that
            changes on the way, an unknown place, or too few instants), `reference` (the file itself).
        offset_frames: k for which frame i of the file shows frame i + k of the reference.
        margin: (cost of the runner-up - cost of the winner) / motion of the reference, in squared differences; about 1
            for an exact copy.
        residual: mean |difference| of luminance at the winner, grey levels 0..255.
        instants: how many frames were compared.
        agreeing: at how many of them the winner wins alone.
        detail: what was remarkable, a short phrase, or "".
        region: `whole`, or `outside_faces` where the faces were left out.
        place: how the file's picture lies in the reference's.
    """

    verdict: Verdict
    offset_frames: int
    margin: float
    residual: float
    instants: int
    agreeing: int
    detail: str = ""
    region: Literal["whole", "outside_faces"] = "whole"
    place: Place = EQUAL

    def as_dict(self) -> dict[str, object]:
        """Plain values for the pack's table, flat; the place's residual and margin with `place_` before the name."""
        values = asdict(self)
        place = values.pop("place")
        return values | {
            name if name not in ("residual", "margin") else f"place_{name}": value for name, value in place.items()
        }


REFERENCE = Sync("reference", 0, 1.0, 0.0, 0, 0)


def temporal_shift(
    reference: Thumbnails, other: Thumbnails, *, keep: Thumbnails | None = None, valid: np.ndarray | None = None
) -> Sync:
    """Find the offset at which a file agrees best with the reference, and whether it holds all the time.

    Args:
        reference: frame index -> luminance thumbnail, uint8 (h, w), for the frames i-3 .. i+3 around each instant.
        other: frame index -> thumbnail of the same size, for the sampled frames; up to 64 are used.
        keep: frame index -> bool (h, w) in the reference's picture: False where a manipulation changed it (faces, with
            a rim of a few frames' motion). Where what is left moves too little, the whole picture is asked.
        valid: bool (h, w), False where the other's picture does not reach (see `place_thumbnail`); applies always.

    Costs are summed over all instants, each by the reference's own motion there, since single frames are often
    undecided at CRF 40 and still stretches say nothing. Then the stretch of instants that argues most for another
    offset is looked for: a frame that was dropped or doubled on the way.
    """
    _check(reference, other, keep, valid)
    everywhere = None if valid is None or valid.all() else dict.fromkeys(other, valid)
    if keep:
        masks = {i: mask.astype(bool) if valid is None else mask & valid for i, mask in keep.items() if i in other}
        outside = _judge(reference, other, masks)
        if outside.verdict != "static" and outside.instants:
            return replace(outside, region="outside_faces")
        whole = _judge(reference, other, everywhere)
        if whole.verdict == "refused" and whole.residual <= MAX_RESIDUAL:
            # A face that moves in its own way contradicts every offset in turn: that says nothing about the rest.
            return replace(whole, verdict="static")
        return whole
    return _judge(reference, other, everywhere)


def prove(
    reference: Thumbnails,
    other: Thumbnails,
    *,
    keep: Thumbnails | None = None,
    valid: np.ndarray | None = None,
    place: Place = EQUAL,
    placed: bool = False,
    applied_frames: int = 0,
    counts_agree: bool = True,
) -> Sync:
    """Put the evidence in time and in space together.

    Args:
        reference, other, keep, valid: as in `temporal_shift`. The other's thumbnails are in the reference's
            coordinates: for a place that is not `equal` they, and `valid`, come from `place_thumbnail`.
        place: from `find_place` on pairs (reference's frame i, other's frame i).
        placed: True when the caller cuts this file with `place.affine_for_other`: then a known place other than `equal`
            is no shift any more.
        applied_frames: the shift in time that the caller has applied already, see below.
        counts_agree: whether both files have the same number of frames; without it a static scene says so in `detail`.

    After a verdict `shifted` a caller applies what was found and asks again:
        1. With `offset_frames` = k, frame j of the reference is frame j - k of the file. Pass the file's thumbnails
           under the reference's numbers, other[j] = thumbnail of frame j - k, `keep` unchanged, applied_frames=k, and
           find `place` anew on the pairs (reference's frame j, other's frame j - k): a moving camera makes a shift in
           time look like one in space.
        2. With a place other than `equal`: make the thumbnails with `place_thumbnail`, pass `valid`, the place and
           placed=True, and cut with `place.affine_for_other(affine)`.
    Only `proved` in that second test shows that the shift was constant; its `offset_frames` is the sum of what was
    applied and found.
    """
    time = temporal_shift(reference, other, keep=keep, valid=valid)
    sync = replace(time, offset_frames=time.offset_frames + applied_frames, place=place)
    if time.verdict == "refused":
        return sync
    if place.relation == "unknown":
        if time.verdict == "shifted":
            # Frames of other instants were laid on each other: the place can be told once the time is right.
            return sync
        return replace(sync, verdict="refused", detail=f"the picture's place is unknown, residual {place.residual:.1f}")
    if not place.is_equal and not placed:
        at = f"{place.relation} at {place.left_px:+.0f}, {place.top_px:+.0f} px"
        return replace(sync, verdict="shifted", detail="; ".join(filter(None, [at, sync.detail])))
    if time.verdict == "static" and not counts_agree and not sync.detail:
        return replace(sync, detail="too little motion to tell, and the frame counts differ")
    return sync


def trusted(sync: Sync, *, same_size: bool, same_count: bool) -> bool:
    """Whether another file's geometry may be used on this one.

    A static scene is believed only when picture size and frame count agree as well. After a place was applied
    (`prove(placed=True)`), `same_size` says that the file has the size which that place demands.
    """
    if not same_size:
        return False
    return sync.verdict in ("reference", "proved") or (sync.verdict == "static" and same_count)


def _judge(reference: Thumbnails, other: Thumbnails, masks: Thumbnails | None) -> Sync:
    instants = compare(reference, other, masks)
    if instants is None:
        return _compare_contents(reference, other, masks)
    total = instants.mean(instants.costs)
    winner = int(np.argmin(total))
    offset = OFFSETS[winner]
    motion = float(np.sqrt(instants.mean(instants.motion)))
    margin = float((np.delete(total, winner).min() - total[winner]) / instants.mean(instants.weights))
    wins = np.argmin(instants.costs, axis=1) == winner
    residual = float(instants.mean(instants.residuals)[winner])
    spread = float(np.mean([np.abs(reference[i] - float(reference[i].mean())).mean() for i in instants.frames]))
    share, far = anchored(reference, other, instants.frames, offset, masks)
    moves = far >= MIN_FAR_MOTION and (far >= FAR_OVER_NEAR * motion or motion >= CLEAR_MOTION)
    noisy = len(wins) < MANY_INSTANTS and np.sqrt(total[winner]) > NOISE_OVER_MOTION * motion
    verdict: Verdict
    detail = ""
    if residual > MAX_RESIDUAL or np.sqrt(total[winner]) > max(MAX_COST_FLAT, MAX_COST_SHARE * spread):
        verdict, detail = "refused", f"other content, mean difference {residual:.0f} grey levels"
    elif moves and share < MIN_ANCHORED:
        verdict, detail = "refused", "shows other instants of the scene"
    elif motion < MIN_MOTION:
        verdict = "static"
    elif (stretch := instants.stretch(winner)) and _sure(stretch) and not noisy:
        verdict, detail = "refused", _change(stretch, offset, instants)
    elif margin < MIN_MARGIN or (stretch and _doubtful(stretch, len(instants.frames))):
        if moves and share < MIN_ANCHORED_STATIC:
            verdict, detail = "refused", "shows other instants of the scene"
        else:
            verdict = "static"
            detail = "" if margin < MIN_MARGIN else f"perhaps {_change(stretch, offset, instants)}"
    elif offset == 0:
        verdict = "proved"
    else:
        # Of few instants both are asked: noise of two or three can look like anything.
        together = all if len(wins) < FEW_INSTANTS else any
        clear = together((margin >= CLEAR_MARGIN, float(instants.mean(wins)) >= MIN_AGREEING))
        verdict = "shifted" if clear else "static"
    return Sync(verdict, offset, round(margin, 4), round(residual, 4), len(wins), int(wins.sum()), detail)


def _compare_contents(reference: Thumbnails, other: Thumbnails, masks: Thumbnails | None) -> Sync:
    """A clip of a few frames has no neighbourhood to test; contents can still be compared."""
    shared = [i for i in sorted(other) if i in reference and (masks is None or (i in masks and masks[i].any()))]
    if not shared:
        return Sync("refused", 0, 0.0, 255.0, 0, 0)
    differences = [np.abs(other[i].astype(np.int16) - reference[i]) for i in shared]
    kept = differences if masks is None else [d[masks[i]] for d, i in zip(differences, shared, strict=True)]
    residual = round(float(np.mean([d.mean() for d in kept])), 4)
    if residual > MAX_RESIDUAL:
        return Sync("refused", 0, 0.0, residual, len(shared), 0, f"other content, mean difference {residual:.0f}")
    return Sync("static", 0, 0.0, residual, len(shared), 0)


def _sure(stretch: Stretch) -> bool:
    return stretch.worth >= SURE_WORTH and stretch.end - stretch.begin >= SURE_INSTANTS


def _doubtful(stretch: Stretch, instants: int) -> bool:
    at_end = stretch.begin == 0 or stretch.end == instants
    return stretch.worth >= (DOUBTFUL_WORTH_AT_END if at_end else DOUBTFUL_WORTH)


def _change(stretch: Stretch, offset: int, instants: Instants) -> str:
    before, after, position = offset, stretch.offset_frames, stretch.begin
    if position == 0:
        before, after, position = after, before, stretch.end
    if position == len(instants.frames):
        return f"offset is {before:+d} in places"
    names = [f"{k:+d}" if k else "0" for k in (before, after)]
    return f"offset changes from {names[0]} to {names[1]} near frame {instants.frames[position]}"


def _check(reference: Thumbnails, other: Thumbnails, keep: Thumbnails | None, valid: np.ndarray | None) -> None:
    shapes = {picture.shape for table in (reference, other, keep or {}) for picture in table.values()}
    shapes |= set() if valid is None else {valid.shape}
    if len(shapes) > 1:
        raise ValueError(f"expected thumbnails and masks of one size, got {sorted(shapes)[:3]}")
