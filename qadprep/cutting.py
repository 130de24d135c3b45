"""Cut a file with what was found on another one, prove that both show the same, and apply a constant shift."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qadprep.config import ExtractConfig
from qadprep.faces.alignment import corners_of_crop, warp_face
from qadprep.timing import StageTimer
from qadprep.video.decode import Decoded
from qadprep.video.place import EQUAL, Place, find_place, guess_place, place_thumbnail
from qadprep.video.source import Source
from qadprep.video.sync import Sync, prove
from qadprep.witness import Aim, Spot, Witness, neighbourhood, place_instants, thinned

# Bilinear sampling reads one pixel beyond the crop's corners, and shrinking samples between them.
_FOOTPRINT_PX = 3
# After the one that the sizes suggest: with the time set right, and with the place.
_MORE_PASSES = 2
# Up to here, what looks like a shift may be the lag of CRF 40 in a still scene; true ones reach 0.4 and more.
_WEAK_MARGIN = 0.3
_UNKNOWN = Place("unknown", margin=0.0)


@dataclass
class Cut:
    """Crops of one file, with the evidence that they show what the reference shows.

    Attributes:
        sync: the proof against the reference. `shifted` means that the offset in it has been applied here.
        aims: spot -> (frame number, affine) in this file: the reference's, with the shift applied.
        crops: spot -> uint8 (size_px, size_px, 3) RGB; spots whose frame lies outside the file or could not be decoded
            are absent.
        witness: this file's own evidence, for files that are tested against it.
        beyond: spots that the shift leads outside the file.
        error: why decoding stopped early, or None.
        decoded: frames that the decoder gave, needed or not.
    """

    sync: Sync
    aims: dict[Spot, Aim]
    crops: dict[Spot, np.ndarray]
    witness: Witness
    beyond: set[Spot] = field(default_factory=set)
    error: str | None = None
    decoded: int = 0


def cut(
    source: Source,
    aims: Mapping[Spot, Aim],
    reference: Witness,
    config: ExtractConfig,
    timer: StageTimer,
    threads: int = 1,
    *,
    manipulated: bool = False,
    for_others: bool = False,
) -> Cut:
    """Cut a file at given spots, and prove that it shows the reference's instants at the reference's place.

    The file is read once where its pictures lie as their size suggests and its time agrees. A constant shift in time
    or space that the proof finds is applied by reading the file again, and proved anew.

    Args:
        aims: spot -> (frame number, affine) in the reference.
        reference: what the reference's own pass remembered.
        manipulated: leave the faces out of the evidence: they may differ.
        for_others: remember this file's pictures too.
    """
    expected = _expected_place(source, reference)
    first = _read(source, aims, reference, config, timer, threads, 0, expected, manipulated, for_others)
    reading, found = first
    decoded = reading.decoded
    for _ in range(_MORE_PASSES):
        if found.verdict != "shifted":
            break
        # A moving camera makes a shift in time look like one in space, so time is set right first.
        place = found.place if found.offset_frames == reading.offset else expected
        offset = found.offset_frames
        reading, found = _read(source, aims, reference, config, timer, threads, offset, place, manipulated, for_others)
        decoded += reading.decoded
    if found.verdict == "proved":
        moved = bool(found.offset_frames) or not found.place.is_equal
        final = dataclasses.replace(found, verdict="shifted" if moved else "proved")
    elif reading is first[0]:
        # No shift was applied, so none is told.
        hair = f"{found.offset_frames:+d} frames fit best, by a hair" if found.offset_frames else ""
        final = dataclasses.replace(found, offset_frames=0, detail=found.detail or hair)
    else:
        # What looked like a shift did not hold once it was applied: the pictures as they are, and doubt about them.
        contradicted = found.verdict == "refused"
        reading, found = first
        final = dataclasses.replace(found, **_doubt(found, contradicted))
    result = reading.cut(final)
    result.decoded = decoded
    return result


def _doubt(found: Sync, contradicted: bool) -> dict[str, Any]:
    """The verdict on a shift that did not hold: by weak evidence nothing is known, by strong evidence it is no copy."""
    seemed = f"seemed shifted by {found.offset_frames:+d} frames, {found.place.relation}; applied, it did not hold"
    weak = found.place.is_equal and found.margin < _WEAK_MARGIN and not contradicted
    return {"verdict": "static" if weak else "refused", "offset_frames": 0, "margin": 0.0, "detail": seemed}


def _read(
    source: Source,
    aims: Mapping[Spot, Aim],
    reference: Witness,
    config: ExtractConfig,
    timer: StageTimer,
    threads: int,
    offset_frames: int,
    place: Place | None,
    manipulated: bool,
    for_others: bool,
) -> tuple["_Pass", Sync]:
    """Read the file with a supposed shift, and prove it."""
    reading = _Pass(source, aims, reference, offset_frames, place, manipulated, for_others)
    reading.run(config, timer, threads)
    return reading, reading.prove(timer)


def _expected_place(source: Source, reference: Witness) -> Place | None:
    """The place that is expected before anything is seen; None where the picture sizes differ."""
    info = source.info
    return EQUAL if (info.width, info.height) == (reference.info.width, reference.info.height) else None


def _same(one: Place, other: Place | None) -> bool:
    """Whether two findings put the pictures at the same place, whatever their evidence."""
    names = ("left_px", "top_px", "scale_x", "scale_y")
    return other is not None and all(getattr(one, name) == getattr(other, name) for name in names)


class _Pass:
    """One reading of the file, with a supposed shift."""

    def __init__(
        self,
        source: Source,
        aims: Mapping[Spot, Aim],
        reference: Witness,
        offset_frames: int,
        place: Place | None,
        manipulated: bool,
        for_others: bool,
    ) -> None:
        self.source, self.reference, self.place = source, reference, place
        self.manipulated, self.for_others = manipulated, for_others
        self.offset = offset_frames
        self.numbers = {spot: number - offset_frames for spot, (number, _) in aims.items()}
        self.affines = {spot: affine for spot, (_, affine) in aims.items()}
        self.by_number: dict[int, list[Spot]] = {}
        self.beyond = {spot for spot, number in self.numbers.items() if not 0 <= number < source.info.frames}
        for spot in sorted(self.numbers):
            if spot not in self.beyond:
                self.by_number.setdefault(self.numbers[spot], []).append(spot)
        self.crops: dict[Spot, np.ndarray] = {}
        self.shown: dict[int, np.ndarray] = {}  # reference's number -> thumbnail in the reference's coordinates
        self.covered: np.ndarray | None = None  # bool (90, 160): where the file's picture covers the reference's
        self.lumas: dict[int, np.ndarray] = {}  # reference's number -> luminance
        self.witness = Witness(source.info)
        self.error: str | None = None
        self.decoded = 0

    def run(self, config: ExtractConfig, timer: StageTimer, threads: int) -> None:
        """Read the file: cut the crops, and collect what the proof needs."""
        length = self.source.info.frames
        numbers = sorted(self.by_number)
        if not numbers:
            return
        evidence = {at - self.offset for at in self.reference.evidence if 0 <= at - self.offset < length}
        looked_at = sorted({*numbers, *evidence})
        # The proof of place needs whole pictures of these instants, whether or not a crop is cut there.
        whole = {at - self.offset for at in self.reference.lumas if 0 <= at - self.offset < length}
        own_instants = place_instants(numbers) if self.for_others else []
        around = neighbourhood(looked_at, length) if self.for_others else set(looked_at)
        # Of a picture that lies elsewhere, thumbnails in the reference's coordinates are made from the frame itself.
        wanted = sorted({*numbers, *whole} if self.place and self._plain else {*looked_at, *whole})
        with self.source.reader(wanted, thumbs_at=around, threads=threads) as reader:
            for frame in timer.each("decode", reader):
                with timer.stage("sync"):
                    self._remember(frame, own_instants)
                with timer.stage("warp"):
                    for spot in self.by_number.get(frame.index, ()):
                        self.crops[spot] = self._warp(frame, self._affine(spot), config.size_px)
        self.error, self.decoded = reader.error, reader.frames_decoded
        if self._plain:
            self.shown = {n + self.offset: reader.thumbnails[n] for n in looked_at if n in reader.thumbnails}
        if self.for_others:
            self.witness.thumbnails, self.witness.evidence = reader.thumbnails, looked_at

    def _remember(self, frame: Decoded, own_instants: list[int]) -> None:
        at = frame.index + self.offset
        if frame.index in own_instants:
            self.witness.lumas[frame.index] = frame.luma
        if self.place is None:
            self.place = self._guess(at, frame.luma)
        if at in self.reference.lumas:
            self.lumas[at] = frame.luma
        if not self._plain:
            size = self.reference.info.width, self.reference.info.height
            self.shown[at], self.covered = place_thumbnail(frame.luma, self.place, size)

    def _guess(self, at: int, luma: np.ndarray) -> Place:
        """From one instant; the reference's kept picture nearest in time."""
        if not self.reference.lumas:
            return _UNKNOWN
        nearest = min(self.reference.lumas, key=lambda frame: abs(frame - at))
        keep = self.reference.keep_luma(nearest) if self.manipulated else None
        return guess_place(self.reference.lumas[nearest], luma, keep)

    @property
    def _plain(self) -> bool:
        """Whether the pictures are supposed to lie over each other as they are."""
        return self.place is None or self.place.relation in ("equal", "unknown")

    def _affine(self, spot: Spot) -> np.ndarray:
        affine = self.affines[spot]
        return affine if self._plain else self.place.affine_for_other(affine)

    @staticmethod
    def _warp(frame: Decoded, affine: np.ndarray, size_px: int) -> np.ndarray:
        corners = corners_of_crop(affine, size_px)
        low, high = corners.min(axis=0) - _FOOTPRINT_PX, corners.max(axis=0) + _FOOTPRINT_PX
        box = (int(np.floor(low[0])), int(np.floor(low[1])), int(np.ceil(high[0])), int(np.ceil(high[1])))
        return warp_face(frame.rgb_within(box), affine, size_px)

    def prove(self, timer: StageTimer) -> Sync:
        """The proof from all that this pass has seen."""
        reference = self.reference
        with timer.stage("sync"):
            pairs = [
                (reference.lumas[at], luma, reference.keep_luma(at) if self.manipulated else None)
                for at, luma in sorted(self.lumas.items())
            ]
            place = find_place(pairs) if pairs else _UNKNOWN
            return prove(
                reference.thumbnails,
                {at: self.shown[at] for at in thinned(self.shown)},
                keep=reference.keep_thumbnails() if self.manipulated else None,
                valid=self.covered,
                place=place,
                placed=_same(place, self.place),
                applied_frames=self.offset,
                counts_agree=self.source.info.frames == reference.info.frames,
            )

    def cut(self, sync: Sync) -> Cut:
        """The crops of this pass under a verdict."""
        aims = {spot: (number, self._affine(spot)) for spot, number in self.numbers.items() if spot not in self.beyond}
        return Cut(sync, aims, self.crops, self.witness, self.beyond, self.error, self.decoded)
