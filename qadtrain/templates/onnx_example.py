"""Scores of face pictures, without torch: python example.py FACE.png [...] (pip install onnxruntime numpy pillow)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")), providers=["CPUExecutionProvider"])
side = session.get_inputs()[0].shape[1]
crop = json.loads(session.get_modelmeta().custom_metadata_map["crop"])
if len(sys.argv) < 2:
    raise SystemExit(f"{__doc__}\nExpected: faces cut out as for the training: {crop}")
# Pillow's BILINEAR averages over the source when it shrinks, as the resize of the training does; OpenCV's does not.
faces = [Image.open(name).convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for name in sys.argv[1:]]
_logits, fake = session.run(["logits", "fake_probability"], {"images": np.stack([np.asarray(face) for face in faces])})
for name, probability in zip(sys.argv[1:], fake, strict=True):
    print(f"{probability:.4f}  {name}")
