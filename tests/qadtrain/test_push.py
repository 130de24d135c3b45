"""A pushed folder loads back, tells the truth about its run, holds no paths, and is uploaded only when asked."""

import json
import re
import traceback
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from helpers.run_folders import FACTS
from helpers.untrained_runs import untrained_run
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from qadprep.errors import UserError
from qadtrain import export
from qadtrain.checkpoint import save_best, write_run_json
from qadtrain.cli_use import app
from qadtrain.config_io import load_config, to_toml
from qadtrain.evaluate import evaluate, load_run
from qadtrain.model_card import evaluations
from qadtrain.model_folder import FILES, is_model_folder, load_model_folder
from qadtrain.models import build_model
from qadtrain.push import upload, without_folders, write_model_folder
from qadtrain.safe_files import sha256_of

SECRETS = ("/home/alice", "alice", "node-17.example.org", "s3-bucket")


@pytest.fixture(scope="module")
def run(tmp_path_factory, shards_dir) -> Path:
    """A run with one evaluation, whose run.json says more than is to be passed on."""
    folder = untrained_run(tmp_path_factory.mktemp("push") / "run", shards_dir)
    facts = json.loads((folder / "run.json").read_text())
    facts["shards"] |= {"datasets": ["ffpp", "own|set"], "folder": "/home/alice/shards"}
    facts["shards"]["crop"] = {"align": "box", "margin": 1.4, "detector": "mtcnn"}
    facts |= {"command": "qadtrain fit ../alice/shards", "host": "node-17.example.org", "best_by": "auc/average"}
    facts["model"] |= {"origin": "from/alice/first.pth: 12 tensors"}
    write_run_json(folder, facts)
    text = (folder / "config.toml").read_text()
    assert 'weights = ""' in text
    (folder / "config.toml").write_text(text.replace('weights = ""', 'weights = "from/alice/first.pth"', 1))
    evaluate(folder, shards_dir, device="cpu", num_workers=0, bootstrap=100, progress=False)
    return folder


@pytest.fixture(scope="module")
def pushed(run) -> Path:
    return write_model_folder(run, run.parent / "pushed", name="my-detector")


@pytest.fixture(scope="module")
def timm_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("timm") / "small"
    folder.mkdir()
    fields = ["model.name=test_resnet", "data.image_size_px=64", "data.normalization=imagenet", 'model.taps=["layer1"]']
    config = load_config("tiny", None, [*fields, "hsic.weights=[1.0]"])
    (folder / "config.toml").write_text(to_toml(config))
    origin = {"origin": "timm pretrained: timm/test_resnet.r160_in1k"}
    write_run_json(folder, FACTS | {"model": FACTS["model"] | origin})
    torch.manual_seed(3)
    save_best(folder, build_model(config.model, load_weights=False)[0], {"epoch": 4, "global_step": 60})
    return folder


def logits_of(model: torch.nn.Module, side: int) -> torch.Tensor:
    with torch.inference_mode():
        output = model(torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1)))
    return getattr(output, "logits", output)


def test_weights_load_back(run, pushed):
    assert sorted(path.name for path in pushed.iterdir()) == sorted(FILES)
    assert is_model_folder(pushed)
    assert not is_model_folder(run)
    config, model, note = load_model_folder(pushed)
    own_config, own_model, _ = load_run(run, "best")
    assert not model.training
    assert torch.equal(logits_of(model, 32), logits_of(own_model, 32))
    assert config.data == own_config.data
    assert (note["epoch"], note["format"]) == ("0", "pt")
    with pytest.raises(UserError, match=r"got no model\.safetensors and config\.toml, expected a folder of"):
        load_model_folder(run)


def test_a_pushed_folder_is_taken_as_a_run(run, pushed, shards_dir, tmp_path):
    own, _, _ = evaluate(
        run, shards_dir, device="cpu", num_workers=0, bootstrap=0, progress=False, out_dir=tmp_path / "a"
    )
    options = {"device": "cpu", "num_workers": 0, "bootstrap": 0, "progress": False, "out_dir": tmp_path / "b"}
    same, contents, _ = evaluate(pushed, shards_dir, **options)
    assert same.as_json() == own.as_json()
    assert contents["checkpoint"]["weights_sha256"] == sha256_of(pushed / "model.safetensors")
    assert contents["shards"]["same_as_trained"]
    with pytest.raises(UserError, match=r"--checkpoint: got last, expected best: .* holds one checkpoint"):
        load_run(pushed, "last")
    again = write_model_folder(pushed, tmp_path / "again", name="my-detector")
    assert torch.equal(logits_of(load_model_folder(again)[1], 32), logits_of(load_run(run, "best")[1], 32))
    # Training in such a folder makes it a run: its own checkpoint counts, and the pushed weights stay as they are.
    _, model, _ = load_run(again, "best")
    torch.nn.init.zeros_(model.head.weight)
    before = sha256_of(again / "model.safetensors")
    save_best(again, model, {"epoch": 7})
    assert load_run(again, "best")[2]["epoch"] == "7"
    assert not is_model_folder(again) and sha256_of(again / "model.safetensors") == before


def test_an_ended_push_leaves_no_folder_of_two_runs(run, timm_run, tmp_path, monkeypatch):
    folder = write_model_folder(run, tmp_path / "out")

    def ends(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qadtrain.push.card_text", ends)
    with pytest.raises(KeyboardInterrupt):
        write_model_folder(timm_run, tmp_path / "out")
    assert not is_model_folder(folder)
    with pytest.raises(UserError, match=r"model\.safetensors missing"):
        upload(folder, "alice/detector")


def test_the_token_is_never_told(pushed, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setenv("HF_TOKEN", "hf_SecretSecret")
    for words in (
        "Illegal header value b'Bearer hf_SecretSecret\\x01'",
        "login with hf_OtherSecret failed",
        "hf_SecretSecret",
    ):
        monkeypatch.setattr(FakeHub, "error", ValueError(words))
        with pytest.raises(UserError, match="the hub did not take") as fault:
            upload(pushed, "alice/detector")
        told = "".join(traceback.format_exception(fault.value))
        assert "Secret" not in told and "***" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upload"], "--upload: got no repository"),
        (["--repo", "a/b"], "--repo: got it without --upload, expected both"),
        (["--public"], "--public: got it without --upload, expected both"),
    ],
)
def test_options_of_the_upload_go_together(run, tmp_path, options, message):
    found = CliRunner().invoke(app, ["push", str(run), "--out", str(tmp_path / "out"), *options])
    assert isinstance(found.exception, UserError) and message in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_timm_loads_it(timm_run, tmp_path, monkeypatch):
    folder = write_model_folder(timm_run, tmp_path / "pushed")
    expected = logits_of(load_run(timm_run, "best")[1], 64)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(logits_of(model, 64), expected)
    data = timm.data.resolve_model_data_config(model)
    assert (list(data["input_size"]), list(data["mean"]), data["crop_pct"]) == ([3, 64, 64], [0.485, 0.456, 0.406], 1.0)
    contents = json.loads((folder / "config.json").read_text())
    assert (contents["architecture"], contents["num_classes"]) == ("test_resnet", 2)
    assert contents["label_names"] == ["real", "fake"]
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.base_model == "timm/test_resnet.r160_in1k"
    # The card's own code runs in the folder.
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert torch.equal(logits_of(names["model"], 64), expected)
    black = (torch.zeros(1, 3, 64, 64) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.inference_mode():
        assert torch.allclose(names["fake"], model(black).softmax(dim=1)[:, 1], atol=1e-6)


def test_config_json_of_an_own_network(pushed, run):
    contents = json.loads((pushed / "config.json").read_text())
    assert (contents["architecture"], contents["library_name"]) == ("tiny", "qadtrain")
    assert contents["num_features"] == 128
    assert contents["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert contents["qadtrain"]["crop"] == {"align": "box", "margin": 1.4, "detector": "mtcnn", "size_px": 32}
    assert (
        contents["qadtrain"]["run"]["shards_fingerprint"]
        == json.loads((run / "run.json").read_text())["shards"]["fingerprint"]
    )


def test_the_card(run, pushed):
    card = ModelCard.load(pushed / "README.md")
    (folder,) = (run / "eval").iterdir()
    report = json.loads((folder / "report.json").read_text())
    results = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    for quality in ("raw", "c23", "c40"):
        average = report["metrics"]["frame"][quality]["average"]
        assert results[quality, "roc_auc"] == round(average["auc"], 4)
        assert results[quality, "eer"] == round(average["eer"], 4)
    assert {r.dataset_name for r in card.data.eval_results} == {"set-test"}
    assert (card.data.license, card.data.model_name) == ("other", "my-detector")
    text = card.text
    cell = report["metrics"]["video"]["c40"]["all"]
    low, high = cell["interval"]["auc"]
    assert f"| video | c40 | all samples | {cell['auc']:.3f} ({low:.3f} to {high:.3f}) |" in text
    assert "split `test` of the shard set it was trained on" in text
    for words in (
        "A score is no evidence",
        "Not for decisions about persons",
        "is **unmeasured**",
        "FaceForensics++ (Rössler et al., ICCV 2019)",
        "own\\|set: see the terms of the source dataset",
        "aligned by box, margin 1.4, faces found by mtcnn",
        "| picked by | auc/average |",
        "| first weights | first.pth |",
    ):
        assert words in text
    assert "Not evaluated" not in text


def test_no_paths_or_hosts_are_passed_on(pushed, run):
    data = b"".join(path.read_bytes() for path in pushed.iterdir())
    for secret in (*SECRETS, str(run.parent)):
        assert secret.encode() not in data
    assert "command" not in json.loads((pushed / "run.json").read_text())
    kept = {"a": ["/x/y.pth", "timm/resnet50", "~/b/"], "b": {"c": "s3://bucket/set"}, "d": "C:\\u\\v.pt", "e": 1.5}
    cut = {"a": ["y.pth", "timm/resnet50", "b"], "b": {"c": "set"}, "d": "v.pt", "e": 1.5}
    assert without_folders(kept) == cut


def test_reports_of_other_weights_and_damaged_ones_are_named(run, tmp_path):
    sha256 = json.loads(next((run / "eval").glob("*/report.json")).read_text())["checkpoint"]["weights_sha256"]
    source = next((run / "eval").glob("*/report.json")).read_text()
    for name, text in (
        ("a-good", source),
        ("b-other", source.replace(sha256, "0" * 64)),
        ("c-damaged", "{"),
        ("d-foreign", "[1]"),
    ):
        (tmp_path / "eval" / name).mkdir(parents=True)
        (tmp_path / "eval" / name / "report.json").write_text(text)
    old = json.loads(source)
    del old["checkpoint"]["weights_sha256"]
    (tmp_path / "eval" / "e-old").mkdir()
    (tmp_path / "eval" / "e-old" / "report.json").write_text(json.dumps(old))
    found = {report.name: report for report in evaluations(tmp_path, "best", sha256)}
    assert [report.fault for report in found.values()] == [
        "",
        "made with other weights than these",
        "its report.json cannot be read",
        "its report.json cannot be read",
        "",
    ]
    assert found["a-good"].cells["frame"]["raw"]["average"]["fake"] > 0
    assert set(found["e-old"].cells) == {"frame", "video"}
    assert evaluations(tmp_path, "last", sha256)[-1].fault == "made with other weights than these"


def test_a_run_without_evaluation_or_datasets_says_so(timm_run, tmp_path):
    text = (write_model_folder(timm_run, tmp_path / "out") / "README.md").read_text()
    assert "**Not evaluated.**" in text
    assert "does not say which datasets" in text
    assert "how, the run does not say" in text
    assert ModelCard(text).data.eval_results is None
    assert ModelCard(text).data.model_name == "small"
    named = (write_model_folder(timm_run, tmp_path / "out", datasets=["celebdf"]) / "README.md").read_text()
    assert "Celeb-DF-v2 (Li et al., CVPR 2020), given out on signed terms" in named


def test_onnx_is_added_when_asked_and_an_old_one_goes(run, tmp_path, monkeypatch):
    def written(run_dir: Path, out_dir: Path, *, checkpoint: str) -> None:
        assert (run_dir, checkpoint) == (run, "best")
        out_dir.mkdir(exist_ok=True)
        for name in ("model.onnx", "example.py", "export.json"):
            (out_dir / name).write_bytes(b"x")

    monkeypatch.setattr(export, "export_run", written)
    folder = write_model_folder(run, tmp_path / "out", with_onnx=True)
    assert (folder / "onnx" / "model.onnx").is_file()
    assert "python onnx/example.py FACE.png" in (folder / "README.md").read_text()
    write_model_folder(run, tmp_path / "out")
    assert list((folder / "onnx").iterdir()) == []
    assert "onnx/example.py" not in (folder / "README.md").read_text()


def test_wrong_requests(run, pushed, tmp_path):
    with pytest.raises(UserError, match="got the run folder itself"):
        write_model_folder(run, run.parent / "." / "run")
    with pytest.raises(UserError, match="--checkpoint: got first, expected best or last"):
        write_model_folder(run, tmp_path / "out", checkpoint="first")
    with pytest.raises(UserError, match="not a run folder"):
        write_model_folder(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no such checkpoint"):
        write_model_folder(run, tmp_path / "out", checkpoint="last")
    with pytest.raises(UserError, match=r"README\.md: got a file, expected a folder"):
        write_model_folder(run, pushed / "README.md")
    assert not (tmp_path / "out").exists()


class FakeHub:
    """What upload() calls of the hub's client; ``calls`` tells what would have left this machine."""

    public, error = False, None

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        FakeHub.last = self

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo, private, exist_ok))
        if self.error:
            raise self.error

    def model_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, allow_patterns: list[str]):
        kept = huggingface_hub.utils.filter_repo_objects(
            [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()],
            allow_patterns=allow_patterns,
        )
        self.calls.append(("upload", repo_id, sorted(kept)))
        return SimpleNamespace(commit_url=f"https://hub.invalid/{repo_id}/commit/1")


def test_upload_sends_the_folder_and_nothing_else(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    folder = tmp_path / "folder"
    (folder / "onnx").mkdir(parents=True)
    for path in pushed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    for name in ("notes.txt", "onnx/notes.txt", "onnx/private/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    assert upload(folder, "alice/detector") == "https://hub.invalid/alice/detector/commit/1"
    assert FakeHub.last.calls == [
        ("create", "alice/detector", True, True),
        ("upload", "alice/detector", sorted([*FILES, "onnx/model.onnx"])),
    ]
    upload(folder, "alice/detector", private=False)
    assert FakeHub.last.calls[0] == ("create", "alice/detector", False, True)


def test_upload_refuses(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    with pytest.raises(UserError, match="--repo: got 'detector', expected OWNER/NAME"):
        upload(pushed, "detector")
    with pytest.raises(UserError, match=r"model\.safetensors, config\.json, .* missing, expected a folder of"):
        upload(tmp_path, "alice/detector")
    monkeypatch.setattr(FakeHub, "public", True)
    with pytest.raises(UserError, match="it exists and is public"):
        upload(pushed, "alice/detector")
    assert [call[0] for call in FakeHub.last.calls] == ["create"]
    monkeypatch.setattr(FakeHub, "error", OSError("no token\nlong text"))
    with pytest.raises(
        UserError, match=r"the hub did not take alice/detector \(OSError: no token\); log in with"
    ) as one:
        upload(pushed, "alice/detector")
    assert "\n" not in str(one.value)
