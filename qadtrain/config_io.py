"""Reading and writing configurations: presets, TOML files and ``--set`` overrides."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qadprep.errors import UserError
from qadtrain.config import CHANGEABLE_ON_RESUME, Config, Section


def preset_names() -> list[str]:
    """Names of the packaged presets, in alphabetical order."""
    return sorted(p.name.removesuffix(".toml") for p in _preset_folder().iterdir() if p.name.endswith(".toml"))


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    base: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Build the configuration: the preset (or ``base``), then a TOML file, then ``a.b=c`` overrides.

    Args:
        preset: one of :func:`preset_names`; ``None`` means ``base``.
        file: TOML file with any of the sections ``[data] [model] [hsic] [awp] [optim] [train]``.
        overrides: strings like ``awp.gamma=0.004``; the value is read as TOML, else as text.
        base: nested values to start from when there is no preset.

    Raises:
        UserError: unknown preset, unreadable file, unknown field or a value out of range.
    """
    merged: dict[str, Any] = {}
    source_of: dict[str, str] = {}
    if preset is not None:
        _merge(merged, read_preset(preset), f"preset {preset}", source_of)
    elif base is not None:
        _merge(merged, base, "the run's config.toml", source_of)
    if file is not None:
        _merge(merged, read_toml(file), str(file), source_of)
    for override in overrides:
        section, key, value = _parse_override(override)
        _merge(merged, {section: {key: value}}, f"--set {override}", source_of)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item, source_of) for item in error.errors())) from None


def read_preset(name: str) -> dict[str, Any]:
    """Values of a packaged preset, on top of the one it names as its ``base``. Raises UserError for an unknown name."""
    if name not in preset_names():
        raise UserError(f"--preset: got {name}, expected one of {', '.join(preset_names())}")
    values = tomllib.loads(_preset_folder().joinpath(f"{name}.toml").read_text("utf-8"))
    base = values.pop("base", None)
    if base is None:
        return values
    merged = read_preset(base)
    for section, fields in values.items():
        merged.setdefault(section, {}).update(fields)
    return merged


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises UserError naming the file when it is missing or malformed."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None


def to_toml(config: Config) -> str:
    """The configuration as TOML, each field under its description; :func:`read_toml` reads it back."""
    lines: list[str] = []
    for name in Config.model_fields:
        section: Section = getattr(config, name)
        lines.append(f"[{name}]")
        for key, field in type(section).model_fields.items():
            lines += [f"# {field.description}", f"{key} = {_toml_value(getattr(section, key))}"]
        lines.append("")
    return "\n".join(lines)


def differences(saved: Config, wanted: Config) -> list[str]:
    """Fields that forbid a resume, as ``awp.gamma: got 0.004, expected 0.002``."""
    old, new = saved.flat(), wanted.flat()
    return [
        f"{name}: got {_toml_value(new[name])}, expected {_toml_value(old[name])}"
        for name in old
        if name not in CHANGEABLE_ON_RESUME and old[name] != new[name]
    ]


def _preset_folder() -> Traversable:
    return resources.files("qadtrain").joinpath("presets")


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value)
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key or "." in key:
        raise UserError(f"--set: got {text!r}, expected section.field=value, for example awp.gamma=0.004")
    try:
        return section, key, tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, value.strip()


def _merge(target: dict[str, Any], update: Mapping[str, Any], source: str, source_of: dict[str, str]) -> None:
    for section, fields in update.items():
        if not isinstance(fields, Mapping):
            raise UserError(f"{section}: got a single value, expected a section [{section}] (in {source})")
        target.setdefault(section, {}).update(fields)
        source_of[section] = source
        source_of.update({f"{section}.{key}": source for key in fields})


def _explain(item: Mapping[str, Any], source_of: Mapping[str, str]) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(location[:2])
    source = f" (in {source_of[name]})" if name in source_of else ""
    if item["type"] == "extra_forbidden":
        fields = Config.model_fields
        if len(location) > 1:
            fields = Config.model_fields[location[0]].annotation.model_fields
        return f"{name}: no such field, expected one of {', '.join(fields)}{source}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    expected = item["msg"].replace("Input should be", "expected", 1)
    return f"{'.'.join(location)}: got {item['input']!r}, {expected}{source}"
