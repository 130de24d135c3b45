"""Exported files give the network's scores, say what they need, and run without torch."""

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.run_folders import FACTS
from helpers.untrained_runs import untrained_run
from torch import nn

from qadprep.errors import UserError
from qadtrain import export
from qadtrain.checkpoint import save_best, write_run_json
from qadtrain.config_io import load_config, to_toml
from qadtrain.evaluate import load_run
from qadtrain.export import export_lines, export_run
from qadtrain.export_check import check_runner, made_batches, reference_logits, reference_samples
from qadtrain.export_facts import origin_facts
from qadtrain.export_files import Written, onnx_runner, torch_runner
from qadtrain.models import TappedModel, build_model

CROP = {"align": "box", "margin": 1.4, "detector": "retinaface"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards_dir) -> Path:
    folder = untrained_run(tmp_path_factory.mktemp("export") / "run", shards_dir)
    facts = json.loads((folder / "run.json").read_text())
    facts["shards"]["crop"] = CROP
    write_run_json(folder, facts | {"command": "qadtrain fit /home/alice/shards"})
    return folder


@pytest.fixture(scope="module")
def exported(run) -> tuple[Path, dict]:
    """Both formats, once: it takes seconds."""
    out = run.parent / "out"
    return out, export_run(run, out, formats=("onnx", "torch"))


def pictures(count: int, side: int = 32, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in small])


def float64_scores(run: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and fake probability, with the preset's normalisation (half) written out and all in float64."""
    _, model, _ = load_run(run, "best")
    pixels = (images.astype(np.float64) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits = model.double()(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).logits.numpy()
    return logits, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize(("name", "runner"), [("model.onnx", onnx_runner), ("model.pt2", torch_runner)])
def test_scores_are_those_of_the_network(run, exported, name, runner, count):
    images = pictures(count)
    logits, fake = runner(exported[0] / name)(images)
    expected_logits, expected_fake = float64_scores(run, images)
    assert logits.shape == (count, 2)
    assert fake.shape == (count,)
    assert np.ptp(expected_logits) > 0.1  # else equality would say little
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fake, expected_fake, rtol=0, atol=1e-4)


def test_the_file_says_what_it_needs(exported):
    out, contents = exported
    graph = onnx.load(out / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == 18
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    assert outputs == {
        "logits": ("tensor(float)", ["batch", 2]),
        "fake_probability": ("tensor(float)", ["batch"]),
    }
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["crop"]) == CROP | {"size_px": 32}
    assert json.loads(facts["classes"]) == ["real", "fake"]
    assert json.loads(facts["normalisation"])["mean"] == [0.5, 0.5, 0.5]
    assert facts["colour"] == "RGB"
    assert json.loads(facts["run"]) == contents["run"]
    extra = {"export.json": ""}
    torch.export.load(out / "model.pt2", extra_files=extra)
    assert json.loads(extra["export.json"])["crop"] == CROP | {"size_px": 32}


def test_pictures_in_0_to_1_are_refused(exported):
    with pytest.raises(UserError, match=r"ONNX Runtime: .*expected: \(tensor\(uint8\)\)"):
        onnx_runner(exported[0] / "model.onnx")(pictures(1).astype(np.float32) / 255)


def test_the_facts_beside_it(run, exported):
    out, contents = exported
    assert json.loads((out / "export.json").read_text()) == contents
    for name, file in contents["files"].items():
        data = (out / name).read_bytes()
        assert (file["sha256"], file["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        assert 0 <= file["check"]["logits"] <= 1e-4
        assert 0 <= file["check"]["probability"] <= 1e-4
        assert (file["check"]["batches"], file["check"]["pictures"]) == ([1, 2, 5], 16)
    weights = (run / "checkpoints" / "best.safetensors").read_bytes()
    assert contents["run"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert contents["run"]["checkpoint"] == {"name": "best", "epoch": "0", "global_step": "1"}
    assert contents["run"]["written_by"]["versions"]["onnx"] == onnx.__version__
    assert contents["failed"] == {}
    lines = export_lines(contents, out)
    assert len(lines) == 2
    assert re.search(r"model\.onnx: 0\.2 MB, opset 18; differs from the network by at most \d\.\de-\d\d", lines[0])
    assert lines[0].endswith("on 16 made pictures, allowed 1e-04")


def test_the_note_of_a_trained_checkpoint_is_passed_on(run):
    config, _, _ = load_run(run, "best")
    note = {"epoch": "3", "step": "432", "by": "auc/average", "score": "0.9", "average": "False"}
    told = origin_facts(run, config, "best", note)["checkpoint"]
    assert told == {"name": "best", "epoch": "3", "step": "432", "by": "auc/average", "score": "0.9"}


def test_no_path_of_this_machine_is_in_it(exported):
    here = [str(Path(export.__file__).parent.parent), str(exported[0].parent), sys.prefix, "/home/alice", "stack_trace"]
    for path in exported[0].iterdir():
        data = path.read_bytes()
        assert [text for text in here if text.encode() in data] == []


def test_the_example_stands_in_the_docs(exported):
    docs = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", docs, flags=re.DOTALL)
    assert example == (exported[0] / "example.py").read_text("utf-8")


def test_an_ended_export_leaves_nothing_half(run, tmp_path, monkeypatch):
    def ends(_program, path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_trace", lambda *_: None)
    monkeypatch.setattr(export, "write_onnx", ends)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_example_runs_without_torch(run, exported, tmp_path):
    (tmp_path / "blocked").mkdir()
    for name in ("torch", "cv2", "qadtrain", "qadprep"):
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    same, larger = pictures(1)[0], pictures(1, 48, seed=6)[0]
    for name, image in (("same", same), ("larger", larger)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[:, :, ::-1])
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "blocked")}
    script = exported[0] / "example.py"
    assert len(script.read_text().splitlines()) == 20

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    assert "torch is blocked" in started("-c", "import torch").stderr
    done = started(str(script), "same.png", "larger.png")
    assert done.returncode == 0, done.stderr
    printed = {line.split()[1]: float(line.split()[0]) for line in done.stdout.splitlines()}
    assert printed["same.png"] == pytest.approx(float64_scores(run, same[None])[1][0], abs=1e-4)
    # The training's own resize, in float; Pillow's rounds to whole numbers.
    pixels = torch.from_numpy(larger.transpose(2, 0, 1)[None]).double()
    shrunk = nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    expected = float64_scores(run, shrunk.numpy().transpose(0, 2, 3, 1))[1][0]
    assert printed["larger.png"] == pytest.approx(expected, abs=0.02)
    empty = started(str(script))
    assert empty.returncode == 1
    assert "'margin': 1.4" in empty.stderr


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda logits, fake: (logits + 2e-4 * np.maximum(1, abs(logits)), fake), "its scores differ from the network"),
        (lambda logits, fake: (logits, fake + 2e-4), "its scores differ from the network"),
        (lambda logits, fake: (logits * np.nan, fake), "its scores differ from the network"),
        (lambda logits, fake: (logits[:, :1], fake), r"gives logits \(1, 1\)"),
    ],
)
def test_the_check_sees_a_wrong_file(run, spoil, message):
    config, model, _ = load_run(run, "best")

    def exact(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = reference_logits(model, config, images)
        return logits, 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))

    samples = reference_samples(model, config)
    assert check_runner(exact, samples).logits == 0
    with pytest.raises(UserError, match=message):
        check_runner(lambda images: spoil(*exact(images)), samples)
    with pytest.raises(UserError, match="its scores differ"):
        check_runner(lambda images: exact(np.ascontiguousarray(images[..., ::-1])), samples)  # BGR


def test_made_pictures_are_noise_and_faces_in_light_and_dark():
    batches = list(made_batches(32))
    assert [batch.shape for batch in batches] == [(n, 32, 32, 3) for n in (1, 1, 2, 2, 5, 5)]
    means = [image.mean() for image in batches[-1]]
    assert means[1] < 40 < means[0] < 220 < means[2] + 60
    assert len({batch.tobytes() for batch in batches}) == 6


def test_a_network_without_numbers_is_not_exported(run):
    config, model, _ = load_run(run, "best")
    nn.init.constant_(model.head.bias, float("inf"))
    with pytest.raises(UserError, match="the network itself gives inf or NaN"):
        reference_samples(model, config)


def test_wrong_requests(run, tmp_path, monkeypatch):
    for options, message in (
        ({"formats": ("tflite",)}, "--format: got tflite, expected onnx or torch"),
        ({"formats": ()}, "--format: got none, expected onnx or torch"),
        ({"checkpoint": "first"}, "--checkpoint: got first, expected best or last"),
        ({"opset": 9}, "--opset: got 9, expected 18 to 23"),
        ({"opset": 20, "formats": ("torch",)}, "--opset: got 20 without the format onnx, expected both"),
    ):
        with pytest.raises(UserError, match=message):
            export_run(run, tmp_path / "out", **options)
    with pytest.raises(UserError, match="not a run folder"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"config\.toml: got a file, expected a folder"):
        export_run(run, run / "config.toml")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnx") else object())
    with pytest.raises(UserError, match=r"needs onnx, onnxruntime, onnxscript: pip install 'qadprep\[export\]'"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Undecided(nn.Module):
    """A layer whose path depends on the numbers it sees: no graph holds it."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps if maps.sum() > 0 else -maps


def test_a_network_that_cannot_be_exported_is_one_line(run, tmp_path, monkeypatch):
    config, model, note = load_run(run, "best")
    model = copy.deepcopy(model)
    model.backbone.stage1 = nn.Sequential(model.backbone.stage1, Undecided())
    monkeypatch.setattr(export, "load_run", lambda *_: (config, TappedModel(model.backbone, ()).eval(), note))
    with pytest.raises(UserError, match=r"model tiny cannot be exported: torch\.export: ") as fault:
        export_run(run, tmp_path / "out")
    assert "\n" not in str(fault.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_could_be_made_is_kept(run, exported, tmp_path, monkeypatch):
    """One format of two fails: the other one stands, the older file of the failed one goes, the reason is kept."""

    def refuse(*_: object) -> Written:
        raise UserError("torch.onnx: no such operator")

    def write(_program: object, path: Path, _facts: dict, samples: list) -> Written:
        path.write_bytes(b"graph")
        return Written(check_runner(onnx_runner(exported[0] / "model.onnx"), samples), {})

    monkeypatch.setattr(export, "_trace", lambda *_: None)
    monkeypatch.setattr(export, "write_onnx", refuse)
    monkeypatch.setattr(export, "write_torch", write)
    (tmp_path / "model.onnx").write_bytes(b"old")
    (tmp_path / "mine.txt").write_text("stays")
    contents = export_run(run, tmp_path, formats=("onnx", "torch"))
    assert contents["failed"] == {"onnx": "torch.onnx: no such operator"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "mine.txt", "model.pt2"]
    assert export_lines(contents, tmp_path)[-1] == "onnx: not made: torch.onnx: no such operator"
    with pytest.raises(UserError, match=r"tiny was not exported: onnx: torch\.onnx: no such operator"):
        export_run(run, tmp_path)
    assert (tmp_path / "model.pt2").read_bytes() == b"graph"  # nothing new, so the old export stands


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "normalization"),
    [
        ("resnet50", 64, "imagenet"),
        ("mesoinception4", 256, "unit"),
    ],
)
def test_larger_networks_are_exported(tmp_path, name, side, normalization):
    fields = [f"model.name={name}", f"data.image_size_px={side}", f"data.normalization={normalization}"]
    fields += ["model.pretrained=false", 'model.taps=["pooled"]', "hsic.weights=[1.0]"]
    config = load_config("tiny", None, fields)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(to_toml(config))
    write_run_json(tmp_path / "run", FACTS)
    torch.manual_seed(0)
    model, _ = build_model(config.model, load_weights=False)
    model.train()
    with torch.no_grad():  # statistics of BatchNorm that are not those of a start
        for _ in range(2):
            model(torch.randn(4, 3, side, side), torch.tensor([0, 1, 0, 1]))
    save_best(tmp_path / "run", model, {"epoch": 0})
    contents = export_run(tmp_path / "run", tmp_path / "out", formats=("onnx", "torch"))
    assert contents["failed"] == {}
    assert set(contents["files"]) == {"model.onnx", "model.pt2"}
