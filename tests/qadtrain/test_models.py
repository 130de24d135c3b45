"""Taps, the frozen backbone, model cards, and pretrained weights from a file."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from qadprep.errors import UserError
from qadtrain.config import ModelConfig
from qadtrain.config_io import load_config
from qadtrain.models import build_model, describe, register, registry
from qadtrain.models.fetch import reachable
from qadtrain.models.weights import match_keys


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
    with pytest.raises(
        UserError, match=r"model.name: got 'resnet5', expected one of f3net, .*tiny.* or a model name of timm"
    ):
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
    assert f"of its {len(resnet18)} tensors {len(resnet18) - 4} fit;" in message  # the classifier does not count
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


@pytest.mark.parametrize("prefix", ["model.", "encoder.", "net.", "module.network.", "module.model.backbone."])
def test_prefixes_of_published_checkpoints_fall(prefix):
    own = {"conv.weight": torch.zeros(2, 3, 1, 1), "fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(2)}
    match = match_keys({prefix + name: value + 1 for name, value in own.items()}, own, ["fc.weight", "fc.bias"])
    assert match and not match.head_skipped
    assert {name: float(value.mean()) for name, value in match.fitting.items()} == dict.fromkeys(own, 1.0)


def test_a_prefix_that_is_the_models_own_stays():
    own = {"net.0.weight": torch.zeros(2), "model.net.0.weight": torch.zeros(3)}
    match = match_keys({"net.0.weight": torch.ones(2), "model.net.0.weight": torch.ones(3)}, own)
    assert match and {n: len(v) for n, v in match.fitting.items()} == {"net.0.weight": 2, "model.net.0.weight": 3}


@pytest.mark.parametrize("name", ["last_linear", "last_linear.1", "_fc", "head", "logits"])
def test_a_classifier_under_another_usual_name_is_the_classifier(name):
    own = {"conv.weight": torch.zeros(2, 3, 1, 1), "fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(2)}
    state = {
        "conv.weight": torch.ones(2, 3),
        f"model.{name}.weight": torch.ones(2, 4),
        f"model.{name}.bias": own["fc.bias"],
    }
    match = match_keys(state, own, ["fc.weight", "fc.bias"])
    assert match and match.fitting["fc.weight"].sum() == 8
    assert match.fitting["conv.weight"].shape == (2, 3, 1, 1)  # a 1x1 convolution saved without its last dimensions
    state[f"model.{name}.weight"] = torch.ones(1000, 4)
    match = match_keys(state, own, ["fc.weight", "fc.bias"])
    assert match and match.head_skipped and set(match.fitting) == {"conv.weight"}


def test_keys_that_do_not_meet_are_told_apart():
    own = {f"a{number}.weight": torch.zeros(2) for number in range(6)} | {"a0.num_batches_tracked": torch.zeros(())}
    match = match_keys(
        {"a0.weight": torch.ones(3), "model.a1.weight": torch.ones(2), "net.a1.weight": torch.ones(2)}, own
    )
    assert not match
    assert match.misshapen == ["a0.weight (3,) for (2,)"] and match.ambiguous == ["a1.weight"]
    assert match.missing == [f"a{number}.weight" for number in range(2, 6)] and match.foreign == []
    assert str(match) == (
        "1 fit; 4 missing (a2.weight, a3.weight, a4.weight, a5.weight); 1 of another shape (a0.weight (3,) for (2,)); "
        "1 given twice (a1.weight)"
    )
    assert "6 missing (a0.weight, a1.weight, a2.weight, a3.weight, ...)" in str(match_keys({}, own))


class Doubled(nn.Module):
    """A model on top of an ImageNet network, as f3net and mat are."""

    def __init__(self):
        super().__init__()
        self.trunk, self.new = timm.create_model("test_resnet", num_classes=0), nn.Conv2d(96, 8, 1)
        self.fc = nn.Linear(8, 2)

    def forward_features(self, x):
        return self.new(self.trunk.forward_features(x))

    def forward_head(self, x, pre_logits=False):
        return x.mean(dim=(2, 3)) if pre_logits else self.fc(x.mean(dim=(2, 3)))

    def get_classifier(self):
        return self.fc

    def trunk_state(self, state):
        return {f"trunk.{name}": value for name, value in state.items()}


@pytest.fixture
def doubled(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    register("doubled", lambda _config: Doubled(), trunk="test_resnet")
    return config("doubled", taps=("trunk.layer1",))


def test_a_file_of_the_trunk_fills_the_trunk_and_says_what_stays_random(tmp_path, doubled):
    trunk = timm.create_model("test_resnet")
    torch.save({"state_dict": trunk.state_dict()}, tmp_path / "w.pth")
    model, report = build_model(doubled.model_copy(update={"weights": str(tmp_path / "w.pth")}))
    wanted = {name: value for name, value in trunk.state_dict().items() if not name.startswith("fc.")}
    own = model.backbone.trunk.state_dict()
    assert set(own) == set(wanted) and all(torch.equal(own[name], value) for name, value in wanted.items())
    assert report.loaded == len(wanted)
    assert report.fresh == ("new.weight", "new.bias", "fc.weight", "fc.bias")
    assert "trunk only, 4 start at random (new.weight, new.bias, fc.weight, fc.bias)" in str(report)
    state = trunk.state_dict() | {"extra": torch.zeros(1)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not fit the model: .*missing \(trunk.conv1"):
        build_model(doubled.model_copy(update={"weights": str(tmp_path / "other.pth")}))


def test_pretrained_weights_of_the_trunk_are_fetched(monkeypatch, doubled):
    fetched = timm.create_model("test_resnet", num_classes=0)
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        return fetched if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("qadtrain.models.fetch.reachable", lambda _url: False)
    model, report = build_model(doubled.model_copy(update={"pretrained": True}))
    assert torch.equal(model.backbone.trunk.conv1[0].weight, fetched.conv1[0].weight)
    assert report.origin.startswith("timm pretrained: ") and len(report.fresh) == 4


def test_cards_state_what_a_model_of_timm_expects():
    card = describe("legacy_xception")
    assert (card.input_size_px, card.normalization, card.parameters) == (299, "half", 20_811_050)
    card = describe("resnet18")
    assert card.stage_taps == ("act1", "layer1", "layer2", "layer3", "layer4")
    assert (card.input_size_px, card.normalization, card.paper) == (224, "imagenet", "")
    assert card.parameters == 11_177_538  # torchvision's 11,689,512 with 1000 classes, less 998 x 513
    with pytest.raises(UserError, match=r"model.name: got 'resnet5'"):
        describe("resnet5")


def test_registered_models_are_found_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

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
