"""The parts of a model card that say what every such detector is good for, how it is loaded, and whose terms hold."""

import re
from collections.abc import Mapping
from typing import Any

from qadtrain.config import Config

# What the hub's readers must know of the sources; the texts of the terms are with their authors.
_TERMS = {
    "ffpp": "FaceForensics++ (Rössler et al., ICCV 2019), given out on its terms of use, for research",
    "dfd": "DeepFakeDetection (Google and Jigsaw, 2019), given out with FaceForensics++ under its terms",
    "celebdf": "Celeb-DF-v2 (Li et al., CVPR 2020), given out on signed terms",
    "ffiw": "FFIW-10K (Zhou et al., CVPR 2021), for research; see the terms of its authors",
    "dfdc": "Deepfake Detection Challenge (Dolhansky et al., 2020), under the rules of its Kaggle page",
    "dfdcp": "DFDC preview (Dolhansky et al., 2019), under the terms of its download",
    "wilddeepfake": "WildDeepfake (Zi et al., ACM MM 2020), given out on request, for research",
}


def use_lines() -> list[str]:
    """Intended use, and what must not be done with a score."""
    return [
        "For research on deepfake detection: comparing detectors, studying what compression does to them, choosing "
        "what a person looks at next.",
        "",
        "- **Not for decisions about persons**: not in court, in hiring or in moderation without a person, not as "
        "proof in news, not to call somebody a liar.",
        "- **A score is no evidence.** It says how much a crop resembles the fakes of the training set. A low score "
        "does not show that a video is genuine; a high one does not show that it is fake.",
        "- A probability is not calibrated for other data than it was measured on. Where fakes are rare, most alarms "
        "are false, also with a high AUC.",
    ]


def limit_lines(qualities: str) -> list[str]:
    """What is known to go wrong, or was not measured.

    Args:
        qualities: those of the training set, in words.
    """
    return [
        "- **False positives**: faces that were compressed again, filtered, beautified or upscaled, and dark, blurred "
        "or small ones, may look to it like manipulated ones.",
        "- **Unknown manipulations**: it learned the methods of its training set. On others, and on newer generators, "
        "it may be no better than chance.",
        f"- **Qualities**: it has seen {qualities}; other codecs, sizes and rates of compression are not covered.",
        "- **People**: how scores shift with skin colour, age, gender, make-up, glasses or pose is **unmeasured** "
        "here, and the usual source datasets are not balanced in them.",
        "- **Crops**: it expects faces cut and aligned as in training. Other crops move the scores.",
        "- **Attacks**: small changes made on purpose can turn a score; nothing here protects against them.",
        "- It sees one frame at a time: no sound, no motion, and no manipulation outside of the face.",
    ]


def load_lines(config: Config, timm_name: str, with_onnx: bool) -> list[str]:
    """How the folder is loaded; each block of code runs in it.

    Args:
        timm_name: timm's name of the network, or ``""``.
        with_onnx: whether ``onnx/`` is in the folder.
    """
    lines = [
        "With `qadtrain`, in this folder; no pickle is opened:",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "import torch",
        "from qadtrain.data import to_network_input",
        "from qadtrain.model_folder import load_model_folder",
        "",
        'config, model, _ = load_model_folder(Path("."))',
        "side, normalization = config.data.image_size_px, config.data.normalization",
        "faces = torch.zeros(1, 1, side, side, 3, dtype=torch.uint8)  # RGB, (pictures, 1, H, W, 3)",
        'options = {"size_px": side, "normalization": normalization, "device": torch.device("cpu")}',
        "with torch.inference_mode():",
        "    fake = model(to_network_input(faces, None, **options)).logits.softmax(dim=1)[:, 1]",
        "```",
        "",
    ]
    if timm_name:
        lines += [
            "With `timm` alone:",
            "",
            "```python",
            "import timm",
            "",
            'model = timm.create_model("local-dir:.", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"',
            "```",
            "",
        ]
    if with_onnx:
        return [
            *lines,
            "With ONNX Runtime, without torch: `python onnx/example.py FACE.png`. The graph takes uint8 RGB pictures "
            f"(N, {config.data.image_size_px}, {config.data.image_size_px}, 3) and normalises them itself; "
            "`onnx/export.json` tells the rest.",
        ]
    return [*lines, "As ONNX: `qadtrain export RUN --out FOLDER` writes it from the run folder."]


def term_lines(shards: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Whose terms the weights are under. ``shards`` and ``facts`` are of run.json."""
    datasets = shards.get("datasets") or []
    origin = str((facts.get("model") or {}).get("origin", ""))
    lines = [
        "The weights were made from the source datasets and are under their terms; this card grants nothing. Read the "
        "terms before you pass the weights on or use them for other than research.",
        "",
        *(f"- {plain(name)}: {_TERMS.get(name, 'see the terms of the source dataset')}" for name in datasets),
    ]
    if not datasets:
        lines.append("- The run does not say which datasets it was trained on: ask whoever gave you this folder.")
    if origin.startswith("timm pretrained"):
        lines.append(f"- first weights: {plain(origin)}, under their own licence")
    return lines


def plain(text: Any) -> str:
    """Text of somebody else's, on one line and without Markdown's or HTML's own signs."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
