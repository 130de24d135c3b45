"""Taps, the frozen backbone, and pretrained weights from a file."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from qadprep.errors import UserError
from qadtrain.config import ModelConfig
from qadtrain.config_io import load_config
from qadtrain.models import build_model, register
from qadtrain.models.fetch import reachable


def config(name: str = "tiny", taps: tuple[str, ...] = ("stage1",), **fields) -> ModelConfig:
    return ModelConfig(name=name, taps=list(taps), **({"pretrained": False} | fields))


def test_taps_are_the_outputs_of_their_modules():
    torch.manual_seed(0)
    model, report = build_model(config(taps=("stage2", "stage1", "pooled", "logits")))
    model.eval()
    assert str(report) == "random"
    x = torch.randn(2, 3, 64, 64)
    output = model(x)
    net = model.backbone
    inner = 4 * (x[:, :, 1:-1, 1:-1] - torch.nn.functional.avg_pool2d(x, 3, stride=1))
    residual = torch.nn.functional.pad(inner, (1, 1, 1, 1))
    stage1 = net.stage1(net.stem(torch.cat([x, residual], dim=1)))
    assert list(output.features) == ["stage2", "stage1", "pooled", "logits"]
    assert torch.allclose(output.features["stage1"], stage1, atol=1e-5)
    assert torch.equal(output.features["stage2"], net.stage2(output.features["stage1"]))
    assert output.features["pooled"].shape == (2, 128)
    assert torch.equal(output.features["logits"], output.logits)
    assert torch.equal(net.classifier(output.features["pooled"]), output.logits)
    assert torch.equal(net(x), output.logits)


@pytest.mark.parametrize(("preset", "size_px", "strides"), [("qad-r", 64, (4, 8, 16)), ("qad-e", 64, (4, 8, 16))])
def test_presets_tap_their_stages(preset, size_px, strides):
    model_config = load_config(preset).model
    model, _ = build_model(model_config, load_weights=False)
    features = model.eval()(torch.randn(1, 3, size_px, size_px)).features
    assert [size_px // features[tap].shape[-1] for tap in model_config.taps] == list(strides)


def test_qad_e_taps_end_at_the_known_block_indices():
    """Block indices 4, 7 and 15, counted from 0 over all blocks."""
    model, _ = build_model(load_config("qad-e").model, load_weights=False)
    counts = [len(stage) for stage in model.backbone.blocks]
    last = [sum(counts[: stage + 1]) - 1 for stage in (1, 2, 4)]
    assert last == [4, 7, 15]


def test_head_only_freezes_all_but_the_classifier_and_its_norms():
    model, _ = build_model(config())
    model.train()
    model.train_head_only(True)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["backbone.classifier.weight", "backbone.classifier.bias"]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    model(torch.randn(4, 3, 32, 32)).logits.sum().backward()
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert model.head.weight.grad is not None and model.backbone.stem[0].weight.grad is None
    model.train()
    model.train_head_only(False)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_wrong_names_are_answered_with_choices():
    with pytest.raises(UserError, match=r"model.name: got 'resnet5', expected tiny or a model name of timm"):
        build_model(config("resnet5"))
    with pytest.raises(UserError, match=r"model.taps: got 'stage9', expected .*stage1.*pooled, logits"):
        build_model(config(taps=("stage9",)))
    with pytest.raises(UserError, match=r"model.taps: got 'layer9', .*layer1, layer2"):
        build_model(config("resnet18", taps=("layer9",)))


def test_a_failed_fetch_is_one_line_with_both_ways_out(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise OSError("first line\nsecond line")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr("qadtrain.models.fetch.reachable", lambda _url: False)
    with pytest.raises(UserError, match=r"--weights FILE.*--set model.pretrained=false") as caught:
        build_model(config("resnet18", taps=("layer1",), pretrained=True))
    assert "\n" not in str(caught.value)


def test_a_closed_port_is_not_reachable(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert not reachable("http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert reachable("http://127.0.0.1:9")


def test_pretrained_tiny_does_not_exist():
    with pytest.raises(UserError, match="no pretrained weights for 'tiny'"):
        build_model(config(pretrained=True))


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(1)
    return timm.create_model("resnet18", num_classes=1000).state_dict()


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped"])
def test_weights_file_fills_the_backbone_and_leaves_a_foreign_classifier_out(tmp_path, resnet18, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(resnet18, path)
    else:
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in resnet18.items()}} if form == "wrapped" else resnet18, path
        )
    model, report = build_model(config("resnet18", taps=("layer1",), pretrained=True, weights=str(path)))
    own = model.backbone.state_dict()
    for name, value in resnet18.items():
        if not name.startswith("fc."):
            assert torch.equal(own[name], value), name
    assert own["fc.weight"].shape == (2, 512)
    assert report.loaded == len(resnet18) - 2 and report.head_skipped
    assert "classifier was left out" in str(report) and report.sha256[:12] in str(report)


def test_a_run_of_our_own_can_be_the_start_classifier_included(tmp_path):
    torch.manual_seed(2)
    first, _ = build_model(config())
    save_file(first.state_dict(), tmp_path / "best.safetensors")
    second, report = build_model(config(weights=str(tmp_path / "best.safetensors")))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not report.head_skipped


def test_files_that_do_not_fit_are_reported_by_kind(tmp_path, resnet18):
    wrong = dict(resnet18)
    del wrong["layer1.0.conv1.weight"]
    wrong["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    wrong["extra.weight"] = torch.zeros(1)
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        build_model(config("resnet18", taps=("layer1",), weights=str(tmp_path / "w.pth")))
    message = str(caught.value)
    assert "1 missing (layer1.0.conv1.weight)" in message
    assert "1 not in the model (extra.weight)" in message
    assert "1 of another shape (conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7))" in message
    for name, content in (("none.pth", None), ("junk.pth", b"junk"), ("junk.safetensors", b"junk")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"--weights .*{name}: n"):
            build_model(config(weights=str(tmp_path / name)))


def test_a_pickle_is_not_executed(tmp_path):
    class Boom:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"state_dict": Boom()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not readable as plain tensors"):
        build_model(config(weights=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "owned").exists()


def test_registered_models_are_found_by_name():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Flatten(), nn.Linear(12, 2)

        def forward_features(self, x):
            return self.body(x)

        def forward_head(self, x, pre_logits=False):
            return x if pre_logits else self.fc(x)

        def get_classifier(self):
            return self.fc

    register("flat", lambda _config: Linear())
    model, _ = build_model(config("flat", taps=("body",)))
    assert model(torch.zeros(3, 3, 2, 2)).logits.shape == (3, 2)
