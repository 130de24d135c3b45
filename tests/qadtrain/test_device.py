"""Full fp32: no TF32 in convolutions, in training and in the passes of an evaluation."""

import pytest
import torch

from qadtrain.device import autocast_to, seed_everything


@pytest.fixture(autouse=True)
def flag():
    """cuDNN's switch, at its default; it can be read and set without a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_training_turns_tf32_off_for_good():
    seed_everything(0, deterministic=False)
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_fp32_pass_has_no_tf32_and_leaves_the_switch_as_it_was():
    with pytest.raises(ZeroDivisionError), autocast_to("fp32", torch.device("cuda")):
        assert torch.backends.cudnn.allow_tf32 is False
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 is True
    with autocast_to("auto", torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32 is True
        assert not torch.is_autocast_enabled("cpu")
