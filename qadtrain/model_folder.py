"""A detector as a folder to pass on, as ``qadtrain push`` writes it: its names, and how it is loaded.

    FOLDER/model.safetensors  config.json  config.toml  run.json  README.md  [onnx/]

The weights have the names of the network itself, without ``backbone.``: those of timm where it is timm's, so that
timm loads the folder too.
"""

from pathlib import Path

from qadprep.errors import UserError
from qadtrain.checkpoint import CONFIG_NAME, PUSHED_NAME, RUN_NAME, checkpoint_path, load_weights
from qadtrain.config import Config
from qadtrain.config_io import load_config, read_toml
from qadtrain.models import TappedModel, build_model

WEIGHTS_NAME, HUB_CONFIG_NAME, CARD_NAME, ONNX_FOLDER = PUSHED_NAME, "config.json", "README.md", "onnx"
FILES = (WEIGHTS_NAME, HUB_CONFIG_NAME, CONFIG_NAME, RUN_NAME, CARD_NAME)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds such a detector; run folders of `qadtrain fit` do not."""
    has_parts = all((Path(folder) / name).is_file() for name in (WEIGHTS_NAME, CONFIG_NAME))
    return has_parts and checkpoint_path(folder, "best") == Path(folder) / WEIGHTS_NAME


def load_model_folder(folder: Path) -> tuple[Config, TappedModel, dict[str, str]]:
    """Configuration, model in evaluation mode on the CPU, and the note of its checkpoint.

    Raises:
        UserError: not such a folder, or weights that are damaged or of another model.
    """
    folder = Path(folder)
    if not is_model_folder(folder):
        raise UserError(f"{folder}: got no {WEIGHTS_NAME} and {CONFIG_NAME}, expected a folder of `qadtrain push`")
    config = load_config(base=read_toml(folder / CONFIG_NAME))
    model, _ = build_model(config.model, load_weights=False)
    note = load_weights(folder / WEIGHTS_NAME, model.backbone)
    return config, model.eval(), note
