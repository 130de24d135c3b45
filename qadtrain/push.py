"""``push``: a run's detector as a folder in the style of the Hugging Face hub, and its upload when asked for."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qadprep.errors import UserError
from qadtrain.augment import MEAN_STD
from qadtrain.checkpoint import CONFIG_NAME, RUN_NAME, read_run_json, write_atomically
from qadtrain.config import Config
from qadtrain.config_io import to_toml
from qadtrain.evaluate import CHECKPOINTS, load_run
from qadtrain.export_facts import CLASSES, EXPORTED, crop_facts_of, network_facts, origin_facts
from qadtrain.model_card import card_text, evaluations
from qadtrain.model_folder import CARD_NAME, FILES, HUB_CONFIG_NAME, ONNX_FOLDER, WEIGHTS_NAME
from qadtrain.models import TappedModel
from qadtrain.safe_files import remove
from qadtrain.weights_file import weights_bytes

# What of run.json is passed on: the command line, events and whatever else is in it stay here.
_RUN_FACTS = (
    "shards", "model", "device", "processes", "precision", "git", "versions", "best_by", "config_hash",
)  # fmt: skip
_TIMM_FACTS = ("first_conv", "classifier", "pool_size", "fixed_input_size")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def write_model_folder(
    run_dir: Path,
    out_dir: Path,
    *,
    checkpoint: str = "best",
    name: str = "",
    datasets: Sequence[str] = (),
    with_onnx: bool = False,
) -> Path:
    """Write weights, configurations and model card; files of these names from before are replaced.

    Args:
        run_dir: folder written by :func:`qadtrain.fit.fit`. Its ``eval/*/report.json`` of this checkpoint give the
            card's figures.
        out_dir: made where it does not exist.
        checkpoint: ``best`` or ``last``.
        name: of the model in the card; default that of the run folder.
        datasets: what the run was trained on, where run.json does not say; see qadprep's names, such as ``ffpp``.
        with_onnx: also export into ``onnx/``.

    Returns:
        ``out_dir``.

    Raises:
        UserError: not a run, no such checkpoint, the run folder itself or a file as ``out_dir``, or a failed
            export.
    """
    if checkpoint not in CHECKPOINTS:
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    if out_dir.resolve() == run_dir.resolve():
        raise UserError(f"--out {out_dir}: got the run folder itself, expected another one: its files would be lost")
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"--out {out_dir}: got a file, expected a folder")
    config, model, note = load_run(run_dir, checkpoint)
    config = _without_weights_path(config)
    facts = {key: without_folders(value) for key, value in read_run_json(run_dir).items() if key in _RUN_FACTS}
    if config.model.weights:  # the report of their loading names the file
        facts["model"] = (facts.get("model") or {}) | {"origin": config.model.weights}
    if datasets:
        facts["shards"] = (facts.get("shards") or {}) | {"datasets": list(datasets)}
    origin = origin_facts(run_dir, config, checkpoint, note)
    facts["config_hash"] = origin["config_hash"]
    out_dir.mkdir(parents=True, exist_ok=True)
    onnx_dir = out_dir / ONNX_FOLDER
    if with_onnx:
        from qadtrain.export import export_run

        export_run(run_dir, onnx_dir, checkpoint=checkpoint)
    else:
        remove(onnx_dir / old for old in EXPORTED)  # of other weights
    # Without its weights it is no model folder: those of before go first, the new ones come last.
    remove([out_dir / WEIGHTS_NAME])
    write_atomically(out_dir / HUB_CONFIG_NAME, _json(hub_config(config, model, facts, origin)))
    write_atomically(out_dir / CONFIG_NAME, to_toml(config).encode())
    write_atomically(out_dir / RUN_NAME, _json(facts))
    card = card_text(
        name=name or run_dir.resolve().name,
        config=config,
        facts=facts,
        origin=origin,
        reports=evaluations(run_dir, checkpoint, origin["weights_sha256"]),
        timm_name=timm_architecture(model),
        with_onnx=with_onnx,
    )
    write_atomically(out_dir / CARD_NAME, card.encode())
    write_atomically(out_dir / WEIGHTS_NAME, weights_bytes(model.backbone, {"format": "pt"} | note))
    return out_dir


def upload(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder of :func:`write_model_folder` to the Hugging Face hub; nothing but its own files goes.

    Args:
        folder: the folder.
        repo: ``OWNER/NAME``; made where it does not exist.
        private: only the owner sees it. An existing public repository is refused then.

    Returns:
        The address of the commit.

    Raises:
        UserError: a wrong name, an incomplete folder, no login, a public repository, or a hub that refuses.
    """
    folder = Path(folder)
    if not _REPO.fullmatch(repo):
        raise UserError(f"--repo: got {repo!r}, expected OWNER/NAME")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(f"{folder}: {', '.join(missing)} missing, expected a folder of `qadtrain push`")
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(f"--repo {repo}: it exists and is public; expected a private one, or --public")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Detector written by qadtrain push",
            allow_patterns=[*FILES, *(f"{ONNX_FOLDER}/{name}" for name in EXPORTED)],
        )
    except UserError:
        raise
    except Exception as error:
        # No login, no network, no right, no room: the hub's own words, on one line. Without the token, which an HTTP
        # client prints with a header that it refuses; and without the error itself, of which a traceback would tell.
        reason = next((line.strip() for line in _without_token(str(error)).splitlines() if line.strip()), "")
        raise UserError(
            f"--upload: the hub did not take {repo} ({type(error).__name__}: {reason[:200]}); log in with "
            "`hf auth login`; the folder stands"
        ) from None
    return str(commit.commit_url)


def hub_config(
    config: Config, model: TappedModel, facts: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The contents of config.json: timm's own fields where the network is timm's, and ours under ``qadtrain``."""
    backbone = model.backbone
    timm_name = timm_architecture(model)
    mean, std = MEAN_STD[config.data.normalization]
    side = config.data.image_size_px
    known = getattr(backbone, "pretrained_cfg", None) or {}
    pooling = getattr(backbone, "global_pool", None)
    contents: dict[str, Any] = {
        "architecture": timm_name or config.model.name,
        "num_classes": len(CLASSES),
        "num_features": model.head.in_features,
        "pretrained_cfg": {
            "tag": "qadtrain",
            "custom_load": False,
            "input_size": [3, side, side],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(CLASSES),
            "label_names": list(CLASSES),
            **{key: known[key] for key in _TIMM_FACTS if known.get(key) is not None},
        },
        "label_names": list(CLASSES),
        "id2label": {str(number): label for number, label in enumerate(CLASSES)},
        "library_name": "timm" if timm_name else "qadtrain",
    }
    # Newer networks of timm keep a name here, older ones a layer.
    pooling = pooling if isinstance(pooling, str) else getattr(pooling, "pool_type", None)
    if timm_name and isinstance(pooling, str) and pooling:
        contents["global_pool"] = pooling
    return contents | {"qadtrain": network_facts(config) | {"crop": crop_facts_of(facts), "run": dict(origin)}}


def timm_architecture(model: TappedModel) -> str:
    """timm's name of the network, or ``""`` for one of our own."""
    known = getattr(model.backbone, "pretrained_cfg", None) or {}
    return str(known.get("architecture") or "")


def without_folders(value: Any) -> Any:
    """The same with each text that is a path cut to its last part: folders name people and machines."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and re.match(r"(~|\.{0,2}/|[A-Za-z]:\\|\w+://)", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _without_token(text: str) -> str:
    import huggingface_hub

    if token := huggingface_hub.get_token():
        text = text.replace(token, "***")
    return re.sub(r"(Bearer )[^\s'\"]+|hf_\w+", r"\1***", text)


def _without_weights_path(config: Config) -> Config:
    """Where the first weights came from is kept as the name of the file."""
    name = re.split(r"[/\\]", config.model.weights)[-1]
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": name})})


def _json(contents: Any) -> bytes:
    return (json.dumps(contents, indent=2, ensure_ascii=False) + "\n").encode()
