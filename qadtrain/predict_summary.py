"""What a prediction found, and how it was made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qadprep.timing import peak_rss_mib
from qadtrain.predict_scores import FAKE, VideoPrediction
from qadtrain.predict_setup import CropSettings

FORMAT = 1  # of predictions.json


@dataclass(frozen=True)
class PredictSummary:
    """What a prediction found, and how it was made.

    Attributes:
        run: name of the run folder.
        checkpoint: ``best`` or ``last``; note: what the weights file says about itself.
        qualities: those the detector was trained on.
        sampling: which frames were scored, in words.
        remarks: what was assumed, and what differs from the training.
        videos: one entry a file, in the order of the inputs.
        seconds: in all; stage_seconds: wall-clock seconds per stage. Stages go on at the same time, so their sum is
            more. Neither is in the JSON's `videos`.
        out_dir: where the files are.
    """

    run: str
    checkpoint: str
    note: dict[str, str]
    model: str
    crop: CropSettings
    detector: str
    device: str
    qualities: tuple[str, ...]
    sampling: str
    threshold: float
    top_k: int
    remarks: tuple[str, ...]
    videos: tuple[VideoPrediction, ...]
    seconds: float
    stage_seconds: dict[str, float]
    out_dir: Path = field(default=Path())

    @property
    def failed(self) -> list[VideoPrediction]:
        """Files that could not be scored, or not as asked."""
        return [video for video in self.videos if video.failed]

    @property
    def exit_code(self) -> int:
        """1 where something failed, else 0."""
        return 1 if self.failed else 0

    def as_json(self) -> dict[str, Any]:
        """The contents of predictions.json; the keys are always the same."""
        scored = [video for video in self.videos if video.prob_fake is not None]
        return {
            "format": FORMAT,
            "run": self.run,
            "checkpoint": {"name": self.checkpoint, **self.note},
            "model": self.model,
            "crop": self.crop.as_json(),
            "detector": self.detector,
            "device": self.device,
            "qualities": list(self.qualities),
            "sampling": self.sampling,
            "threshold": self.threshold,
            "top_k": self.top_k,
            "remarks": list(self.remarks),
            "files": len(self.videos),
            "scored": len(scored),
            "fake": sum(video.verdict == FAKE for video in scored),
            "failed": [{"name": v.name, "status": v.status, "message": v.message} for v in self.failed],
            "seconds": round(self.seconds, 3),
            "stage_seconds": {name: round(value, 3) for name, value in sorted(self.stage_seconds.items())},
            "peak_rss_mib": round(peak_rss_mib(), 1),
            "videos": [video.as_json() for video in self.videos],
        }
