"""What a prediction must share with the training: how faces are cut, and by which detector they are found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadprep.faces import DETECTORS, choose_detector

ALIGNMENTS = ("similarity", "box")
# The defaults of `qadprep extract`.
DEFAULT_ALIGN, DEFAULT_MARGIN = "similarity", 1.3
_MARGINS = (1.0, 4.0)


@dataclass(frozen=True)
class CropSettings:
    """How faces are cut before the network sees them.

    Attributes:
        align: ``similarity`` or ``box``, as :func:`qadprep.faces.alignment.affine_from_face` takes it.
        margin: side of the crop's field of view over the side of the face.
        size_px: side of the crop; the network's input may be another size.
        align_from, margin_from: where the value is from: ``run.json``, ``option`` or ``default``.
        detector: which one found the faces of the training set; empty where the run does not say.
    """

    align: str
    margin: float
    size_px: int
    align_from: str
    margin_from: str
    detector: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def crop_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a run should keep of its shard set, as ``shards.crop`` of run.json.

    Args:
        info: contents of shards.json.

    Returns:
        ``{"align": ..., "margin": ..., "detector": name}``; empty for a set whose sources were cut in different ways
        or by others.
    """
    extract = (info.get("config") or {}).get("extract") or {}
    if "align" not in extract or "margin" not in extract:
        return {}
    name = (extract.get("detector") or {}).get("name", "")
    return {"align": extract["align"], "margin": extract["margin"], "detector": name}


def settle_crop(
    run_facts: Mapping[str, Any], align: str | None, margin: float | None
) -> tuple[CropSettings, list[str]]:
    """The crop of the training set: options first, then what the run recorded, then the defaults of extraction.

    Args:
        run_facts: contents of run.json.
        align, margin: the options; None = not given.

    Returns:
        The settings, and remarks: on what had to be assumed, and on options that differ from the training.

    Raises:
        UserError: an option out of range, or a run that does not say the size of its crops.
    """
    if align is not None and align not in ALIGNMENTS:
        raise UserError(f"--align: got {align!r}, expected one of {', '.join(ALIGNMENTS)}")
    if margin is not None and not _MARGINS[0] <= margin <= _MARGINS[1]:
        raise UserError(f"--margin: got {margin:g}, expected {_MARGINS[0]:g} to {_MARGINS[1]:g}")
    shards = run_facts.get("shards") or {}
    size_px = shards.get("size_px")
    if not isinstance(size_px, int) or size_px < 1:
        raise UserError(f"run.json: shards.size_px is {size_px!r}, expected the side of the training crops in px")
    kept = shards.get("crop") or {}
    values: dict[str, Any] = {}
    remarks, assumed = [], []
    for name, given, default in (("align", align, DEFAULT_ALIGN), ("margin", margin, DEFAULT_MARGIN)):
        known = kept.get(name)
        if given is not None:
            values[name], values[f"{name}_from"] = given, "option"
            if known is not None and known != given:
                remarks.append(f"--{name} {given} differs from the training set's {known}: scores mean less")
        elif known is not None:
            values[name], values[f"{name}_from"] = known, "run.json"
        else:
            values[name], values[f"{name}_from"] = default, "default"
            assumed.append(f"--{name} {default}")
    if assumed:
        remarks.append(
            f"run.json does not say how the training set was cut; assumed {' '.join(assumed)}, the defaults of "
            "`qadprep extract`: give the options where the set was extracted with others"
        )
    return CropSettings(size_px=size_px, detector=str(kept.get("detector") or ""), **values), remarks


def settle_detector(name: str, weights: Path | None, trained_with: str) -> tuple[str, list[str]]:
    """Which detector runs: for ``auto`` that of the training set, where it is known and needs no download.

    Returns:
        ``mtcnn`` or ``retinaface``, and remarks.

    Raises:
        UserError: as :func:`qadprep.faces.choose_detector` does.
    """
    if name not in DETECTORS:
        raise UserError(f"--detector: got {name!r}, expected one of {', '.join(DETECTORS)}")
    wanted = "mtcnn" if name == "auto" and trained_with == "mtcnn" and weights is None else name
    chosen, _ = choose_detector(wanted, weights)
    remarks = []
    if name == "auto" and not trained_with:
        remarks.append(f"run.json does not say which detector found the training set's faces; using {chosen}")
    if trained_with and trained_with != chosen:
        remarks.append(
            f"faces are found by {chosen}, those of the training set were found by {trained_with}: "
            "crops are placed a little differently"
        )
    return chosen, remarks
