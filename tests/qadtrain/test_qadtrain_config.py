"""Presets, overrides, and messages that name the field."""

import tomllib

import pytest

from qadprep.errors import UserError
from qadtrain.config import Config
from qadtrain.config_io import differences, load_config, preset_names, read_preset, to_toml


@pytest.mark.parametrize("preset", preset_names())
def test_presets_are_complete_and_survive_the_round_trip(preset):
    config = load_config(preset)
    assert {f"{s}.{k}" for s, fields in read_preset(preset).items() for k in fields} == set(config.flat())
    text = to_toml(config)
    assert load_config(base=tomllib.loads(text)) == config
    for name in config.flat():
        assert f"\n{name.split('.')[1]} = " in text


def test_values_of_the_authors_configs():
    r, e = load_config("qad-r"), load_config("qad-e")
    assert (r.data.image_size_px, r.data.batch_tuples, r.hsic.alpha, r.awp.gamma) == (224, 64, 0.003, 0.002)
    assert (e.data.image_size_px, e.data.batch_tuples, e.hsic.alpha, e.awp.gamma) == (240, 32, 0.002, 0.006)
    for config in (r, e):
        assert config.hsic.weights == [0.1, 0.25, 0.5] and config.hsic.sigma == 6.0
        assert (config.optim.learning_rate, config.optim.epochs, config.optim.weight_decay) == (2e-4, 32, 0)
        assert config.optim.head_only_epochs == config.awp.start_epoch == 3


def test_file_then_overrides_in_that_order(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[awp]\ngamma = 0.01\nstart_epoch = 1\n[model]\nname = 'resnet18'\n")
    config = load_config("tiny", file, ["awp.gamma=0.02", "train.device=cpu", "hsic.weights=[1, 2, 3]"])
    assert (config.awp.gamma, config.awp.start_epoch, config.model.name) == (0.02, 1, "resnet18")
    assert (config.train.device, config.hsic.weights) == ("cpu", [1.0, 2.0, 3.0])
    assert config.optim == load_config("tiny").optim


def test_odd_text_survives_the_round_trip():
    config = load_config("tiny", overrides=['model.weights="a \\"b\\" \\\\ é\\n.pt"'])
    assert config.model.weights == 'a "b" \\ é\n.pt'
    assert load_config(base=tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("awp.gama=1", r"awp.gama: no such field, expected one of gamma, start_epoch.*\(in --set awp.gama=1\)"),
        ("apw.gamma=1", "apw: no such field, expected one of data, augment, model, hsic, awp"),
        ("awp.gamma=-1", "awp.gamma: got -1, expected greater than or equal to 0"),
        ("awp.gamma=nan", "awp.gamma: got nan, expected a finite number"),
        ("optim.epochs=many", "optim.epochs: got 'many', expected a valid integer"),
        ("hsic.estimator=cka", "hsic.estimator: got 'cka', expected 'cka_unbiased', 'unbiased'"),
        ("hsic.weights=[1.0]", "hsic.weights: got 1 weights, expected one for each of the 3 taps"),
        ("model.taps=['a','a','b']", "expected each tap once"),
        ("data.batch_tuples=3", "data.batch_tuples: got 3, expected at least 4"),
        ("optim.head_only_epochs=5", "head_only_epochs: got 5, expected fewer than optim.epochs = 5"),
        ("gamma=1", "--set: got 'gamma=1', expected section.field=value"),
        ("awp.gamma", "--set: got 'awp.gamma', expected section.field=value"),
    ],
)
def test_messages_name_the_field_what_was_given_and_what_is_expected(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("tiny", overrides=[override])
    assert "\n" not in str(caught.value)


def test_bad_sources(tmp_path):
    with pytest.raises(UserError, match=r"--preset: got qad-x, expected one of ce-e, .*qad-e, .*qad-r, .*tiny"):
        load_config("qad-x")
    with pytest.raises(UserError, match=r"nowhere.toml: cannot read the configuration"):
        load_config("tiny", tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("[awp\n")
    with pytest.raises(UserError, match=r"broken.toml: not valid TOML"):
        load_config("tiny", tmp_path / "broken.toml")
    (tmp_path / "flat.toml").write_text("awp = 3\n")
    with pytest.raises(UserError, match=r"awp: got a single value, expected a section \[awp\]"):
        load_config("tiny", tmp_path / "flat.toml")


def test_differences_name_fields_except_those_that_do_not_matter():
    tiny = load_config("tiny")
    free = ["data.num_workers=0", "train.device=cpu", "train.log_every_steps=1", "train.checkpoint_every_steps=7"]
    assert differences(tiny, load_config("tiny", overrides=free)) == []
    other = load_config("tiny", overrides=["awp.gamma=0.5", "optim.epochs=9"])
    assert differences(tiny, other) == ["awp.gamma: got 0.5, expected 0.002", "optim.epochs: got 9, expected 5"]


def test_every_field_is_described():
    for section in Config.model_fields.values():
        assert all(field.description for field in section.annotation.model_fields.values())
