"""The geometry of pictures that were cropped by others: taken as they are."""

from collections.abc import Sequence

import numpy as np

from qadprep.config import ExtractConfig
from qadprep.faces.alignment import warp_face
from qadprep.geometry import Geometry
from qadprep.timing import StageTimer
from qadprep.video.source import Source
from qadprep.witness import Witness, evidence_frames, neighbourhood, place_instants


def given_geometry(
    source: Source,
    chosen: Sequence[int],
    spares: Sequence[int],
    config: ExtractConfig,
    timer: StageTimer,
    *,
    for_others: bool = True,
) -> Geometry:
    """Take pictures that were cropped by others as they are: the whole picture, resized to the crop."""
    scale_x, scale_y = config.size_px / source.info.width, config.size_px / source.info.height
    # Pixel edges map to pixel edges; an affine counts at pixel centres.
    affine = np.array([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5]])
    result = Geometry(Witness(source.info))
    wanted, batch, left = len(chosen), list(chosen), list(spares)
    instants = place_instants(chosen) if for_others else ()
    result.witness.evidence = evidence_frames(chosen) if for_others else []
    while batch:
        around = neighbourhood({*batch, *result.witness.evidence}, source.info.frames) if for_others else ()
        with source.reader(batch, thumbs_at=around) as reader:
            for frame in timer.each("decode", reader):
                spot = (frame.index, 0)
                if frame.index in instants:
                    result.witness.lumas[frame.index] = frame.luma
                with timer.stage("warp"):
                    result.crops[spot] = warp_face(frame.rgb, affine, config.size_px)
                result.affines[spot], result.status[spot] = affine, "ok"
        result.witness.thumbnails |= reader.thumbnails
        result.decoded += reader.frames_decoded
        result.status |= {(frame, 0): "decode_error" for frame in reader.missing}
        result.error = result.error or reader.error
        lacking = wanted - len(result.crops)
        batch, left = sorted(left[:lacking]), left[lacking:]
    for table in ("affines", "crops", "status"):
        setattr(result, table, dict(sorted(getattr(result, table).items())))
    return result
