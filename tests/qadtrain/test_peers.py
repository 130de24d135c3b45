"""The published detectors: their parameter counts, their presets, and what the trainer asks of each."""

import pytest
import torch
from torch import nn

from qadprep.errors import UserError
from qadtrain.config import ModelConfig
from qadtrain.config_io import load_config
from qadtrain.models import build_model, describe
from qadtrain.models.meso import meso4, mesoinception4

PEERS = ["meso4", "mesoinception4", "xception", "f3net", "mat"]


def on_meta(name: str, taps: list[str] | None = None) -> nn.Module:
    """The model without storage, so that a large one is built in no time."""
    with torch.device("meta"):
        return build_model(ModelConfig(name=name, pretrained=False, taps=taps or ["pooled"]))[0]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("network", "published"), [(meso4, 27_977), (mesoinception4, 28_615)])
def test_mesonets_have_the_published_number_of_weights(network, published):
    assert count(network(num_classes=1)) == published
    assert count(network(num_classes=2)) == published + 16 + 1  # a second output: 16 weights and a bias


@pytest.mark.parametrize("network", [meso4, mesoinception4])
def test_mesonets_halve_three_times_and_then_quarter(network):
    model = network().eval()
    sizes = []
    for block in (model.block1, model.block2, model.block3, model.block4):
        block.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    logits = model(torch.rand(1, 3, 256, 256))
    assert [size[1:] for size in sizes] == [(128, 128), (64, 64), (32, 32), (8, 8)]
    assert [size[0] for size in sizes] == ([8, 8, 16, 16] if network is meso4 else [11, 12, 16, 16])
    assert logits.shape == (1, 2)


def test_a_meso_block_is_convolution_relu_norm_pool():
    torch.manual_seed(0)
    block = meso4().block1.train()
    images = torch.rand(2, 3, 8, 8)
    after = torch.relu(nn.functional.conv2d(images, block.convolution.weight, block.convolution.bias, padding=1))
    mean, variance = after.mean(dim=(0, 2, 3)), after.var(dim=(0, 2, 3), unbiased=False)
    normed = (after - mean[:, None, None]) / (variance[:, None, None] + 1e-3).sqrt()
    assert torch.allclose(block(images), nn.functional.max_pool2d(normed, 2), atol=1e-5)


def test_the_branches_of_an_inception_module_see_1_3_5_and_7_pixels():
    module = mesoinception4().block1.convolution
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim > 1 else 0.0)
    image = torch.zeros(1, 3, 15, 15)
    image[:, :, 7, 7] = 1
    out = module(image)[0]
    assert out.shape == (11, 15, 15)
    reached = [set((out[channel] > 0).nonzero()[:, 0].tolist()) for channel in (0, 1, 5, 9)]
    assert reached == [{7}, {6, 7, 8}, {5, 7, 9}, {4, 7, 10}]


def test_xception_has_the_published_number_of_weights():
    card = describe("xception")
    assert card.parameters == 20_811_050
    # Chollet's 22,855,952 with 1000 classes, less 998 outputs of 2048 weights and a bias.
    assert card.parameters == 22_855_952 - 998 * 2049
    assert card.pretrained == "legacy_xception.tf_in1k"


def test_f3net_is_two_xceptions_and_what_the_paper_adds():
    xception = 20_811_050 - 2 * 2049
    first_convolutions = (9 - 3 + 6 - 3) * 32 * 9  # nine and six channels come in instead of three
    filters = 3 * 299**2 + 6 * 10**2
    mixing = sum(2 * (c * (c // 8) + c // 8) + 2 * (c * c + c) + 2 for c in (728, 1024))
    assert describe("f3net").parameters == 2 * xception + first_convolutions + filters + mixing + 2 * 4096 + 2


def test_mat_is_an_efficientnet_and_what_the_paper_adds():
    trunk = describe("tf_efficientnet_b4").parameters - (1792 * 2 + 2)
    texture = 9 * 32 * (32 + 64 + 96) + 128 * 64 + 2 * (3 * 32 + 64)
    attention = 160 * 4 + 2 * 4
    head = (4 * 64 * 256 + 256) + (1792 * 256 + 256) + (512 * 2 + 2)
    assert describe("mat").parameters == trunk + texture + attention + head


@pytest.mark.parametrize("name", PEERS)
def test_presets_agree_with_the_cards(name):
    config, card = load_config(name), describe(name)
    assert config.model.name == name
    assert config.data.image_size_px == card.input_size_px
    assert config.data.normalization == card.normalization
    assert config.model.pretrained == bool(card.pretrained)
    assert set(config.model.taps) <= set(card.stage_taps)
    assert (config.hsic.alpha, config.awp.gamma) == (0, 0)  # plain cross-entropy
    assert card.paper


@pytest.mark.parametrize("name", [*PEERS, "mat-no-agda", "tiny"])
def test_peers_keep_the_contract(name):
    """All stage taps exist, the head is linear, and AWP finds every tensor of two or more dimensions by its name."""
    model = on_meta(name, list(describe(name).stage_taps))
    assert isinstance(model.head, nn.Linear) and model.head.out_features == 2
    assert all("weight" in key for key, parameter in model.named_parameters() if parameter.ndim > 1)
    assert model.has_extra_loss == name.startswith("mat")


@pytest.mark.parametrize("name", ["meso4", "mesoinception4", "xception"])
def test_logits_are_the_head_of_pooled(name):
    torch.manual_seed(0)
    config = load_config(name).model.model_copy(update={"pretrained": False})
    model = build_model(config.model_copy(update={"taps": [*config.taps, "pooled"]}))[0].eval()
    size_px = 75 if name == "xception" else 256
    with torch.no_grad():
        images = torch.randn(1, 3, size_px, size_px)
        output = model(images)
        assert torch.allclose(model.head(output.features["pooled"]), output.logits)
        assert torch.allclose(model.backbone(images), output.logits, atol=1e-6)
    assert output.extra_loss is None
    sides = [18, 9, 5] if name == "xception" else [128, 64, 32]  # strides 4, 8, 16; 2, 4, 8
    assert [output.features[tap].shape[-1] for tap in config.taps] == sides


def test_meso_trains_every_weight():
    torch.manual_seed(0)
    for network in (meso4, mesoinception4):
        model = network()
        model(torch.rand(2, 3, 256, 256))[:, 1].sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []


def test_a_wrong_size_is_one_line_with_the_way_out():
    for name, size_px in (("meso4", 256), ("f3net", 299)):
        model = on_meta(name)
        with pytest.raises(
            UserError, match=rf"model .*{name}.* got images of 3x64x64, expected 3x{size_px}x{size_px}"
        ) as caught:
            model(torch.zeros(1, 3, 64, 64, device="meta"))
        assert f"--set data.image_size_px={size_px}" in str(caught.value)


def test_unknown_taps_are_answered_with_the_stage_ends():
    with pytest.raises(UserError, match=r"got 'layer1', .* trunk.blocks.1, trunk.blocks.2, .*pooled, logits"):
        on_meta("mat", ["layer1"])


def test_meso_has_no_pretrained_weights_to_fetch():
    with pytest.raises(UserError, match="no pretrained weights for 'meso4'"):
        build_model(ModelConfig(name="meso4", pretrained=True, taps=["block1"]))
