"""Rows say where a tuple lies in each file, by the numbers that the file itself uses."""

from types import SimpleNamespace

import numpy as np

from qadprep.catalog.base import Clip
from qadprep.clip_rows import ClipCuts, clip_rows
from qadprep.cutting import Cut
from qadprep.geometry import Geometry
from qadprep.video.source import Source
from qadprep.video.sync import REFERENCE
from qadprep.witness import Witness

AFFINE = np.array([[0.5, 0.0, 1.0], [0.0, 0.5, 2.0]])
MOVED = np.array([[0.5, 0.0, 4.0], [0.0, 0.5, 2.0]])


def pictures(*numbers: int) -> Source:
    return Source(None, None, SimpleNamespace(numbers=numbers))


def test_pictures_and_shifted_files_have_their_own_numbers() -> None:
    clip = Clip("generic", "Deepfakes", "a", 1, "train", "a", "a", "", {})
    crop = np.zeros((4, 4, 3), np.uint8)
    spots = [(0, 0), (1, 0)]
    witness = Witness(None)
    geometry = Geometry(witness, affines=dict.fromkeys(spots, AFFINE), status=dict.fromkeys(spots, "ok"))
    crops = dict.fromkeys(spots, crop)

    def cut(step: int, affine: np.ndarray) -> Cut:
        return Cut(REFERENCE, {(frame, face): (frame + step, affine) for frame, face in spots}, crops, witness)

    cuts = ClipCuts("own", geometry, {"raw": cut(0, AFFINE), "c23": cut(0, AFFINE), "c40": cut(1, MOVED)})
    sources = {"raw": pictures(7, 9, 11), "c23": pictures(7, 9, 11), "c40": pictures(20, 30, 40)}
    first, second = clip_rows(clip, cuts, "mtcnn", sources, drop_unaltered=False)
    # The frame is named by the best file's own number; c40 begins one picture late and counts otherwise.
    assert (first.frame, first.frames) == (7, {"c40": 30}) and (second.frame, second.frames) == (9, {"c40": 40})
    assert first.affine == [0.5, 0.0, 1.0, 0.0, 0.5, 2.0] and first.affines == {"c40": [0.5, 0.0, 4.0, 0.0, 0.5, 2.0]}

    # Of videos the number is the position.
    videos = dict.fromkeys(sources, Source(None, None))
    first, second = clip_rows(clip, cuts, "mtcnn", videos, drop_unaltered=False)
    assert (first.frame, first.frames) == (0, {"c40": 1}) and (second.frame, second.frames) == (1, {"c40": 2})
