"""Heat maps against an own Grad-CAM by hooks, the layers they are taken at, and what the command writes."""

import json
from contextlib import contextmanager
from itertools import chain

import cv2
import numpy as np
import pytest
import timm
import torch
from helpers.untrained_runs import untrained_run
from PIL import Image
from torch import nn

from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.gradcam import _panel, gradcam, gradcam_table
from qadtrain.gradcam_consistency import consistency
from qadtrain.gradcam_maps import METHODS, HeatMaps, default_layers, is_constant
from qadtrain.gradcam_panels import GAP_PX, LINE_PX, cell_box, side_of
from qadtrain.models import TappedModel, build_model
from qadtrain.models.tiny import TinyCnn

SIZE = 32


def tiny_model(seed: int = 0) -> TappedModel:
    torch.manual_seed(seed)
    model = TappedModel(TinyCnn(), ["stage2"])
    with torch.no_grad():  # statistics of a trained network are not those it begins with
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.bias.normal_(0, 0.2)
    return model.eval()


def pictures(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def scaled(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)


def own_maps(model: TappedModel, images: torch.Tensor, layer: str, classes: list[int], plain=TinyCnn) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, Eq. 1 and 2) in float64, brought to the picture's size."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    double = TappedModel(plain(), []).double().eval()
    double.load_state_dict(weights)
    for module in double.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    seen = []
    dict(double.backbone.named_modules())[layer].register_forward_hook(lambda m, i, output: seen.append(output))
    logits = double(images.double()).logits
    total = sum(logits[number, wanted] for number, wanted in enumerate(classes))
    gradient = torch.autograd.grad(total, seen[0])[0]
    cam = torch.relu((gradient.mean(dim=(2, 3), keepdim=True) * seen[0]).sum(dim=1)).detach().numpy()
    size = tuple(images.shape[2:])
    return np.stack([cv2.resize(each, size, interpolation=cv2.INTER_LINEAR) for each in scaled(cam)])


@pytest.mark.parametrize("layer", ["stage3", "stage1", "stage2.1"])  # the last one has an activation in place behind it
def test_maps_are_grad_cam(layer):
    model, images = tiny_model(), pictures()
    heat = HeatMaps(model, "tiny", images, layer=layer)
    maps, logits = heat(images)
    heat.close()
    assert maps.shape == (3, SIZE, SIZE) and maps.dtype == np.float32
    assert np.abs(maps - scaled(own_maps(model, images, layer, [1, 1, 1]))).max() < 1e-4
    assert maps.min() == 0 and maps.max() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(torch.from_numpy(logits), model(images).logits.double(), atol=1e-6)
    assert not model.backbone.get_submodule(layer)._forward_hooks  # the hooks are gone


def test_predicted_class_and_mean_of_layers():
    model, images = tiny_model(), pictures(6)
    said = model(images).logits.argmax(dim=1).tolist()
    assert set(said) == {0, 1}  # else the next line would show nothing
    heat = HeatMaps(model, "tiny", images, target="predicted")
    assert np.abs(heat(images)[0] - scaled(own_maps(model, images, "stage3", said))).max() < 1e-4
    heat.close()
    heat = HeatMaps(model, "tiny", images, layer="stage2, stage3")
    both = [own_maps(model, images, layer, [1] * 6) for layer in ("stage2", "stage3")]
    assert np.abs(heat(images)[0] - scaled(np.mean(both, axis=0))).max() < 1e-4
    heat.close()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_maps_of_each_picture_alone(method):
    model, images = tiny_model(), pictures()
    heat = HeatMaps(model, "tiny", images, method=method)
    maps, _ = heat(images)
    alone, _ = heat(images[1:2])
    heat.close()
    assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1 and not is_constant(maps).any()
    assert np.abs(maps[1] - alone[0]).max() < 1e-4


def test_both_ways_through_the_network_run_in_full_precision(monkeypatch):
    """On a GPU TF32 is off in this context alone, and only for what runs inside of it."""
    inside, seen = [], []

    @contextmanager
    def context(precision, device):
        inside.append((precision, device.type))
        yield
        inside.clear()

    monkeypatch.setattr("qadtrain.gradcam_maps.autocast_to", context)
    model, images = tiny_model(), pictures()
    heat = HeatMaps(model, "tiny", images)
    model.head.register_forward_hook(lambda *_: seen.append(("forward", *inside)))
    model.head.register_full_backward_hook(lambda *_: seen.append(("backward", *inside)))
    heat(images)
    assert seen == [("forward", ("fp32", "cpu")), ("backward", ("fp32", "cpu"))] and not inside


def test_no_gradient_is_a_constant_map():
    model, images = tiny_model(), pictures()
    with torch.no_grad():
        model.head.weight.zero_()
    heat = HeatMaps(model, "tiny", images)
    assert is_constant(heat(images)[0]).all()


class Streams(nn.Module):
    """Two streams side by side, as those of F3-Net; each ends in an activation in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(inplace=True)) for _ in "ab")
        self.classifier = nn.Linear(8, 2)

    def forward_features(self, images):
        return torch.cat([self.first(images), self.second(images)], dim=1)

    def forward_head(self, maps, pre_logits=False):
        return maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3))

    def get_classifier(self):
        return self.classifier


def test_each_of_two_streams_gets_its_own_gradient():
    torch.manual_seed(5)
    model, images = TappedModel(Streams(), []).eval(), pictures()
    heat = HeatMaps(model, "tiny", images, layer="first,second")
    both = [own_maps(model, images, layer, [1] * 3, Streams) for layer in ("first", "second")]
    assert np.abs(both[0] - both[1]).max() > 0.1
    assert np.abs(heat(images)[0] - scaled(np.mean(both, axis=0))).max() < 1e-4


class Side(nn.Module):
    """A network with a branch that goes nowhere and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.trunk, self.side, self.twice = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.pairs = nn.Identity()
        self.classifier = nn.Linear(3, 2)

    def forward_features(self, images):
        self.side(images)
        self.pairs((images, images))
        return self.trunk(self.twice(self.twice(images)))

    def forward_head(self, maps, pre_logits=False):
        return maps.mean(dim=(2, 3))

    def get_classifier(self):
        return self.classifier


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "stage9"}, "--layer: got 'stage9', expected a module of tiny, for example stem, stage1"),
        ({"layer": "classifier"}, "shape \\(1, 2\\), expected maps"),
        ({"layer": "stage3,"}, "--layer: got ''"),
        ({"method": "cam"}, "--method: got 'cam', expected one of gradcam, gradcam\\+\\+"),
        ({"target": "real"}, "--target: got 'real', expected one of fake, predicted"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        HeatMaps(tiny_model(), "tiny", pictures(), **options)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("side", "'side', on which the logits do not depend"),
        ("twice", "'twice', which runs 2 times"),
        ("pairs", "'pairs', whose output is a tuple"),
    ],
)
def test_layers_that_cannot_be_explained(layer, message):
    with pytest.raises(UserError, match=message):
        HeatMaps(TappedModel(Side(), []).eval(), "tiny", pictures(), layer=layer)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("tiny", 32, ["stage3"]),
        ("meso4", 256, ["block4"]),
        ("resnet18", 64, ["layer4"]),
        ("vgg11", 224, ["features.20"]),
        pytest.param("tf_efficientnet_b0", 64, ["blocks.6"], marks=pytest.mark.slow),
        pytest.param("xception", 299, ["act4"], marks=pytest.mark.slow),
        pytest.param("mat", 64, ["trunk.blocks.6"], marks=pytest.mark.slow),
    ],
)
def test_default_layers(name, size, layers):
    from qadtrain.config import ModelConfig

    with torch.device("meta"):
        model, _ = build_model(ModelConfig(name=name, taps=["pooled"], pretrained=False), load_weights=False)
        image = torch.empty(1, 3, size, size)
        assert default_layers(model.eval(), name, image) == layers
    assert all(layer in dict(model.backbone.named_modules()) for layer in layers)


def test_tokens_and_channels_last_become_maps():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=2)
    model, images = TappedModel(vit, []).eval(), pictures(2)
    heat = HeatMaps(model, "vit_tiny_patch16_224", images)
    assert heat.layers == ("blocks.1.norm1",)
    maps, _ = heat(images)
    heat.close()
    seen = []
    with torch.enable_grad():
        handle = vit.blocks[1].norm1.register_forward_hook(lambda m, i, output: seen.append(output))
        vit.requires_grad_(True)
        gradient = torch.autograd.grad(model(images).logits[:, 1].sum(), seen[0])[0][:, 1:]  # without the class token
        handle.remove()
    weights = gradient.mean(dim=1, keepdim=True)
    cam = torch.relu((weights * seen[0][:, 1:]).sum(dim=2)).reshape(2, 4, 4).detach().numpy()
    own = scaled(np.stack([cv2.resize(each, (32, 32)) for each in scaled(cam)]))
    assert np.abs(maps - own).max() < 1e-3
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1), embed_dim=12, num_heads=(1, 2),
        num_classes=2,
    )  # fmt: skip
    heat = HeatMaps(TappedModel(swin, []).eval(), "swin_tiny_patch4_window7_224", images, layer="layers.1")
    assert heat._cam.activations_and_grads.reshape_transform(torch.zeros(2, 4, 4, 24)).shape == (2, 24, 4, 4)
    assert not is_constant(heat(images)[0]).any()


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, shards_dir):
    """Runs of the same folder name and of inputs of 32 and 48 px."""
    folder = tmp_path_factory.mktemp("gradcam")
    small = untrained_run(folder / "a" / "run", shards_dir, 3)
    large = untrained_run(folder / "b" / "run", shards_dir, 4)
    config = large / "config.toml"
    config.write_text(config.read_text().replace("image_size_px = 32", "image_size_px = 48"))
    return small, large


def test_panels_of_runs_with_other_input_sizes(two_runs, shards_dir, tmp_path):
    options = {"device": "cpu", "num_workers": 0}
    with ShardSet(shards_dir, "test") as shards:
        keys = [shards[index].key for index in (5, 2)]
        crops = shards[5].images
    told = gradcam(two_runs, shards_dir, keys=[*keys, keys[0]], keep_maps=True, out_dir=tmp_path / "one", **options)
    assert told == json.loads((tmp_path / "one" / "gradcam.json").read_text())
    assert [entry["key"] for entry in told["tuples"]] == keys and told["wanted"] == 2 and told["pick"] is None
    assert [run["name"] for run in told["runs"]] == ["a/run", "b/run"]
    assert [(run["input_px"], run["layers"], run["same_as_trained"]) for run in told["runs"]] == [
        (32, ["stage3"], True),
        (48, ["stage3"], True),
    ]
    sheet = np.array(Image.open(tmp_path / "one" / told["tuples"][0]["picture"]))
    maps = np.load(tmp_path / "one" / told["tuples"][0]["maps"], allow_pickle=False)
    assert side_of(32) == 128 and side_of(100) == 200 and side_of(256) == 256
    for column, quality in enumerate(("raw", "c23", "c40")):
        left, top, right, bottom = cell_box(0, column, 128)
        large = crops[quality].repeat(4, axis=0).repeat(4, axis=1)
        assert np.array_equal(sheet[top:bottom, left:right], large)
        for row, (run, size) in enumerate((("a/run", 32), ("b/run", 48)), start=1):
            heat = maps[f"{run}/{quality}"]
            assert heat.shape == (size, size) and heat.dtype == np.float32
            # Half of the picture, half of the colour of the map, then brightened so that the brightest value is 255.
            mask = np.uint8(255 * np.clip(cv2.resize(heat, (128, 128)), 0, 1))
            mixed = cv2.applyColorMap(mask, cv2.COLORMAP_JET)[:, :, ::-1] / 510 + large / 510
            left, top, right, bottom = cell_box(row, column, 128)
            shown = sheet[top:bottom, left:right].astype(int)
            assert np.abs(shown - np.floor(255 * mixed / mixed.max())).max() <= 1
    whole = np.array(Image.open(tmp_path / "one" / "sheet.png"))
    assert np.array_equal(whole[: sheet.shape[0], : sheet.shape[1]], sheet)
    assert told["tuples"][0]["runs"]["a/run"]["pairs"].keys() == {"raw-c23", "raw-c40", "c23-c40"}
    assert len(gradcam_table(told).rows) == 4


def test_words_below_a_picture_end_before_the_next_column():
    facts = {"prob_fake": 0.4999, "right": False, "constant_map": True}
    entry = {"key": "k", "method": "m", "label": "fake", "runs": {"run": {"qualities": {"raw": facts, "c23": facts}}}}
    pictures = dict.fromkeys(("raw", "c23"), np.zeros((32, 32, 3), np.uint8))
    sheet = np.array(_panel(entry, pictures, {"run": (["stage3"], (np.zeros((2, 32, 32)), None))}))
    left, _, right, bottom = cell_box(1, 0, 128)
    words = sheet[bottom + 1 : bottom + LINE_PX]
    assert (words[:, left:right] < 200).any() and (words[:, right : right + GAP_PX] == 255).all()


def test_picked_tuples_are_the_same_each_time(two_runs, shards_dir, tmp_path):
    options = {"device": "cpu", "num_workers": 0, "pick": "hardest", "count": 4}
    first = gradcam(two_runs[:1], shards_dir, out_dir=tmp_path / "one", **options)
    again = gradcam(two_runs[:1], shards_dir, out_dir=tmp_path / "two", batch_tuples=5, **options)
    names = [entry["key"] for entry in first["tuples"]]
    assert names == [entry["key"] for entry in again["tuples"]] and len(set(names)) == 4
    assert {entry["method"] for entry in first["tuples"]} == {"original", "Deepfakes", "NeuralTextures"}
    scores = {
        entry["key"]: np.mean(
            [
                one["prob_fake"] if entry["label"] == "real" else 1 - one["prob_fake"]
                for one in entry["runs"]["run"]["qualities"].values()
            ]
        )
        for entry in first["tuples"]
    }
    assert [entry["pick_score"] for entry in first["tuples"]] == pytest.approx(list(scores.values()), abs=1e-6)
    assert first["picked_among"] == 32 and "maps" not in first["tuples"][0]
    both = gradcam(two_runs, shards_dir, out_dir=tmp_path / "both", **(options | {"count": 2, "pick": "disagreement"}))
    for entry in both["tuples"]:
        every = [list(run["qualities"].values()) for run in entry["runs"].values()]
        spreads = [np.ptp([one["prob_fake"] for one in qualities]) for qualities in every]
        assert len(every) == 2 and entry["pick_score"] == pytest.approx(np.mean(spreads), abs=1e-6)
        for one in chain(*every):
            assert one["right"] == ((one["prob_fake"] > 0.5) == (entry["label"] == "fake"))
            assert one["target"] == "fake"


def test_a_damaged_tuple_is_left_out_and_named(two_runs, make_shards, tmp_path):
    shards = make_shards(tmp_path / "set", {"test": 8})
    with ShardSet(shards, "test") as opened:
        table = opened.table
        key, offset = table["key"][3].as_py(), table["c40_offset"][3].as_py()
    with (shards / "test-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 64)
    told = gradcam(two_runs[:1], shards, out_dir=tmp_path / "out", count=8, batch_tuples=4, device="cpu", num_workers=0)
    assert len(told["tuples"]) == 7 and key not in {entry["key"] for entry in told["tuples"]}
    assert len(told["damaged"]) == 1 and key in told["damaged"][0]
    with pytest.raises(UserError, match=f"none of the chosen tuples can be shown: .*{key}"):
        gradcam(two_runs[:1], shards, keys=[key], out_dir=tmp_path / "no", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ["ffpp/original/test000/000000_9"]}, "--key: got .*000000_9', .*near it: ffpp/original/test000/"),
        ({"pick": "easiest"}, "--pick: got 'easiest', expected one of disagreement"),
        ({"count": 0}, "--count: got 0"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"checkpoint": "first"}, "--checkpoint: got first, expected best or last"),
    ],
)
def test_wrong_use_is_one_line(two_runs, shards_dir, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as error:
        gradcam(two_runs[:1], shards_dir, out_dir=tmp_path / "out", device="cpu", num_workers=0, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_nothing_to_pick(shards_dir, tmp_path):
    options = {"out_dir": tmp_path / "out", "device": "cpu", "num_workers": 0}
    sure = untrained_run(tmp_path / "sure", shards_dir, 3, bias=(0.0, 1e6))  # fake at every quality
    with pytest.raises(UserError, match=r"none of 32 tuples is right at raw and wrong at c40; use --pick"):
        gradcam([sure], shards_dir, pick="wrong-at-worst", **options)
    broken = untrained_run(tmp_path / "broken", shards_dir, 3, bias=(np.nan, 0.0))
    with pytest.raises(UserError, match=r"--pick: got hardest, but the networks' scores are not finite for any of 32"):
        gradcam([broken], shards_dir, pick="hardest", **options)
    with ShardSet(shards_dir, "test") as shards:
        key = shards[3].key
    with pytest.raises(UserError, match=rf"can be shown: .*{key} at byte \d+: the logits of broken are not finite"):
        gradcam([broken], shards_dir, keys=[key], **options)


def test_what_cannot_be_done_is_said_before_a_split_is_scored(two_runs, shards_dir, make_shards, tmp_path, monkeypatch):
    def never(*_arguments, **_options):
        raise AssertionError("scored")

    monkeypatch.setattr("qadtrain.gradcam.batch_logits", never)
    monkeypatch.setattr("qadtrain.gradcam_consistency.read_tuples", never)
    options = {"out_dir": tmp_path / "out", "device": "cpu", "num_workers": 0}
    for command in (gradcam, consistency):
        with pytest.raises(UserError, match="--layer: got 'stage9'"):
            command(two_runs, shards_dir, layer="stage9", **options)
    one = make_shards(tmp_path / "one", {"test": 4}, qualities=("raw",))
    with pytest.raises(UserError, match="which compares qualities, but the shard set has one; use hardest"):
        gradcam(two_runs, one, **options)


def test_a_run_twice_is_refused(two_runs, shards_dir, tmp_path):
    with pytest.raises(UserError, match=r"RUN: got .*each once"):
        gradcam([two_runs[0], two_runs[0]], shards_dir, out_dir=tmp_path, device="cpu")
