"""Results of finished files, kept so that the same command goes on where one that was ended stopped.

    OUT/kept/<hash of the settings>-<hash of the file's name>.json

A result is taken over only where everything that decides it is the same: weights, crop, detector, options, device, and
path, size and time of the file. Results of other settings are deleted, with their annotated copies: a folder holds one
kind of scores.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from qadprep.crops import encode_png
from qadtrain.predict_files import Item
from qadtrain.predict_item import ANNOTATED_FOLDER, Result
from qadtrain.predict_scores import FaceScore, TrackScore, VideoPrediction
from qadtrain.safe_files import remove, write_atomically

KEPT_FOLDER = "kept"
# Results that an earlier version of the prediction made are not taken over.
METHOD = 1
# What would come out the same again; whatever else went wrong may have been mended by the next call.
_STANDS = ("ok", "damaged", "no_face")
_MARK_DIGITS = 12

Stamp = dict[str, Any]


class Kept:
    """The kept results of one folder.

    Args:
        out_dir: folder of the prediction; must exist.
        settings: all that decides a result but the file itself; of plain JSON values.
    """

    def __init__(self, out_dir: Path, settings: Mapping[str, Any]) -> None:
        self.out_dir, self.folder = out_dir, out_dir / KEPT_FOLDER
        text = json.dumps({"method": METHOD, **settings}, sort_keys=True)
        self.settings = json.loads(text)
        self._mark = _digits(text)
        self.folder.mkdir(exist_ok=True)
        self._drop_others()

    def read(self, item: Item, *, with_crops: bool) -> Result | None:
        """The result of a file as it is now, or None.

        Args:
            with_crops: the page shows the file, so that a result without crops is of no use.
        """
        try:
            contents = json.loads(self._path(item).read_bytes())
            if contents["settings"] != self.settings or contents["file"] != stamp_of(item.path):
                return None
            told, crops = contents["prediction"], contents["crops"]
            told["tracks"] = tuple(TrackScore(**track) for track in told["tracks"])
            told["remarks"] = tuple(told["remarks"])
            # The same file may have been named in another way.
            prediction = VideoPrediction(**told | {"name": item.name, "path": str(item.path)})
            faces = [FaceScore(*face[:3], tuple(face[3]), *face[4:]) for face in contents["faces"]]
            pictures = None if crops is None else {(frame, track): _picture(png) for frame, track, png in crops}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, cv2.error):
            return None
        if with_crops and pictures is None:
            return None
        if prediction.annotated is not None and not (self.out_dir / prediction.annotated).is_file():
            return None
        return Result(prediction, faces, pictures)

    def write(self, item: Item, stamp: Stamp | None, result: Result) -> None:
        """Keep a result, unless it may be another one next time.

        Args:
            stamp: of the file before it was looked at.

        Raises:
            UserError: the disk is full.
        """
        if stamp is None or result.prediction.status not in _STANDS:
            return
        crops = None
        if result.crops is not None:
            encoded = ((spot, base64.b64encode(encode_png(crop)).decode()) for spot, crop in result.crops.items())
            crops = [(*spot, png) for spot, png in encoded]
        contents = {
            "settings": self.settings,
            "file": stamp,
            "prediction": asdict(result.prediction),
            "faces": [astuple(face) for face in result.faces],
            "crops": crops,
        }
        write_atomically(self._path(item), json.dumps(contents).encode())

    def _path(self, item: Item) -> Path:
        return self.folder / f"{self._mark}-{_digits(item.name)}.json"

    def _drop_others(self) -> None:
        for path in self.folder.glob("*.json"):
            if path.name.startswith(f"{self._mark}-"):
                continue
            try:
                annotated = json.loads(path.read_bytes())["prediction"]["annotated"]
            except (OSError, ValueError, KeyError, TypeError):
                annotated = None
            if annotated:
                remove([self.out_dir / ANNOTATED_FOLDER / Path(annotated).name])
            remove([path])


def stamp_of(path: Path) -> Stamp | None:
    """What tells a file from another one, or from itself after a change; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return {"path": os.path.realpath(path), "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _picture(png: str) -> np.ndarray:
    bgr = cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError("not a PNG")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:_MARK_DIGITS]
