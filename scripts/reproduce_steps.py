"""The stages of reproduce.py: what each one runs, needs and leaves behind. It only plans; nothing is run here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qadprep.errors import UserError

# Short names of runs: with real data the paper's backbone, in the demonstration a CNN for a CPU.
SHORT = {"ce": "ce-r", "qad": "qad-r"}
SHORT_DEMO = {"ce": ("tiny", ("hsic.alpha=0", "awp.gamma=0")), "qad": ("tiny", ())}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A comma between runs, not one inside of a list such as hsic.weights=[0.1,0.2].
_COMMA = re.compile(r",(?![^\[\]]*\])")
_LEAST_DRAWS = 100  # of `qadtrain compare`


@dataclass(frozen=True)
class RunSpec:
    """A detector to train: preset and fields over it."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: unique, such as `fit-qad`; also of its log.
        command: as a user would type it, the program first (`qadprep`, `qadtrain`, `torchrun` or `python`).
        outputs: files that it must leave, which the state file holds the sha256 of.
        needs: stages that must have ended well before it.
        soft: exit code 1 means that a part could not be used; what is there is gone on with.
        inputs: files outside of the work folder that it depends on, such as other shard sets.
        trains: its run folder; the stage is done once that run is finished, whatever the exit code says.
        always: run again each time.
        result: tables and figures; those out of date are deleted.
    """

    name: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    soft: bool = False
    inputs: tuple[Path, ...] = ()
    trains: Path | None = None
    always: bool = False
    result: bool = False


@dataclass(frozen=True)
class Settings:
    """What the command line of reproduce.py says."""

    out: Path
    runs: tuple[RunSpec, ...]
    root: Path | None = None
    shards: Path | None = None
    demo: bool = False
    clips: Path | None = None
    dataset: str = ""
    protocol: str = ""
    frames: int | None = None
    size_px: int | None = None
    make_qualities: bool = False
    detector: str = "auto"
    split: str = "test"
    cross: tuple[str, ...] = ()
    corruptions: str = "figure6"
    severities: str = ""
    limit: int | None = None
    count: int = 6
    consistency: int = 200
    bootstrap: int | None = None
    seed: int = 0
    device: str = "auto"
    workers: str = ""
    loaders: int | None = None
    gpus: int = 1
    overrides: tuple[str, ...] = field(default=())


def parse_runs(words: Sequence[str], *, demo: bool) -> tuple[RunSpec, ...]:
    """`ce`, `qad-e`, `name=preset`, `name=preset:a.b=c:d.e=f`; several in one word are parted by commas.

    Raises:
        UserError: a name that is no folder's, or one that stands twice.
    """
    specs = []
    for text in (part for word in words for part in _COMMA.split(word) if part):
        head, *overrides = text.split(":")
        name, sign, preset = head.partition("=")
        if not _NAME.fullmatch(name) or (sign and not _NAME.fullmatch(preset)) or not all("=" in o for o in overrides):
            raise UserError(f"--runs: got {text!r}, expected PRESET, NAME=PRESET or NAME=PRESET:FIELD=VALUE[:...]")
        preset = preset or name
        if demo and preset in SHORT_DEMO:
            preset, first = SHORT_DEMO[preset]
        else:
            preset, first = SHORT.get(preset, preset), ()
        specs.append(RunSpec(name, preset, (*first, *overrides)))
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) < len(names):
        raise UserError(f"--runs: got {', '.join(names) or 'none'}, expected one run or more, each name once")
    return tuple(specs)


def check(settings: Settings) -> None:
    """Refuse at once what a stage would refuse after hours.

    Raises:
        UserError: no such folder, preset or field, or a value out of range.
    """
    from qadtrain.config_io import load_config

    for path in (settings.shards, settings.clips):
        if path is not None and not path.is_dir():
            raise UserError(f"{path}: no such folder")
    if settings.root is not None and not settings.root.exists():
        raise UserError(f"{settings.root}: no such folder")
    for spec in settings.runs:
        try:
            load_config(spec.preset, None, (*settings.overrides, *spec.overrides))
        except UserError as error:
            raise UserError(f"--runs: {spec.name}: {error}") from None
    for text, path in _other_sets(settings):
        if "://" not in path and not (Path(path) / "shards.json").is_file():
            raise UserError(f"--cross: got {text!r}, but {path} is no shard set: it has no shards.json")
    if settings.bootstrap is not None and settings.bootstrap < _LEAST_DRAWS:
        raise UserError(f"--bootstrap: got {settings.bootstrap}, expected at least {_LEAST_DRAWS}")
    if not set(_words(settings.severities)) <= set("12345"):
        raise UserError(f"--severities: got {settings.severities}, expected some of 1,2,3,4,5")
    if settings.corruptions not in ("figure6", "all"):
        from qadtrain.corruptions import chosen_corruptions

        chosen_corruptions(_words(settings.corruptions))


def plan(settings: Settings, dataset_script: Path) -> list[Stage]:
    """Every stage in order."""
    stages, shards = _data(settings, dataset_script)
    after_shards = (stages[-1].name,) if stages else ()
    runs = {spec.name: settings.out / "runs" / spec.name for spec in settings.runs}
    stages += [_fit(settings, spec, shards, runs[spec.name], after_shards) for spec in settings.runs]
    stages += _results(settings, shards, runs)
    return stages


def _data(settings: Settings, dataset_script: Path) -> tuple[list[Stage], Path]:
    """From a dataset to a shard set; nothing where a shard set is given."""
    if settings.shards is not None:
        return [], settings.shards
    out, stages = settings.out, []
    root, dataset, needs = settings.root, settings.dataset, ()
    if settings.demo:
        root = out / "dataset"
        made = ["python", str(dataset_script), str(root), "--seed", str(settings.seed)]
        made += ["--clips", str(settings.clips)] if settings.clips else []
        stages.append(Stage("dataset", (*made, *_workers(settings)), (out / "dataset.json",)))
        needs = ("dataset",)
    manifest, faces, shards = out / "manifest.parquet", out / "faces", out / "shards"
    which = ["--dataset", dataset] if dataset else []
    which += ["--protocol", settings.protocol] if settings.protocol else []
    seed = ["--seed", str(settings.seed)]
    lists = tuple(path for path in (settings.root, Path(settings.protocol)) if path is not None and path.is_file())
    scan = ("qadprep", "scan", str(root), *which, "--out", str(manifest), *seed)
    stages.append(Stage("scan", scan, (manifest,), needs, inputs=lists))
    extract = ["qadprep", "extract", str(root), *which, "--out", str(faces), "--detector", settings.detector, *seed]
    extract += ["--frames", str(settings.frames)] if settings.frames else []
    extract += ["--size", str(settings.size_px)] if settings.size_px else []
    extract += ["--make-qualities"] if settings.make_qualities else []
    extract += ["--device", settings.device, *_workers(settings)]
    stages.append(Stage("extract", tuple(extract), (faces / "summary.json",), ("scan",), soft=True, inputs=lists))
    shard = ("qadprep", "shard", str(faces), "--out", str(shards), *seed)
    stages.append(Stage("shard", shard, (shards / "shards.json",), ("extract",)))
    return stages, shards


def _fit(settings: Settings, spec: RunSpec, shards: Path, run: Path, needs: tuple[str, ...]) -> Stage:
    command = ["qadtrain", "fit", str(shards), "--out", str(run), "--preset", spec.preset]
    for override in (*settings.overrides, *spec.overrides):
        command += ["--set", override]
    command += ["--device", settings.device, *_loaders(settings)]
    if settings.gpus > 1:
        command = ["torchrun", "--nproc-per-node", str(settings.gpus), "-m", *command]
    outputs = (run / "config.toml", run / "checkpoints" / "best.safetensors")
    inputs = (shards / "shards.json",) if settings.shards else ()
    return Stage(f"fit-{spec.name}", tuple(command), outputs, needs, inputs=inputs, trains=run)


def _results(settings: Settings, shards: Path, runs: dict[str, Path]) -> list[Stage]:
    """Tables, figures and the page."""
    out, reading = settings.out, ("--split", settings.split, "--device", settings.device, *_loaders(settings))
    fits = tuple(f"fit-{name}" for name in runs)
    folders, stages = tuple(map(str, runs.values())), []
    draws = ("--bootstrap", str(settings.bootstrap)) if settings.bootstrap else ()
    for name, run in runs.items():
        scores = run / "eval" / f"{shards.resolve().name}-{settings.split}"
        command = ("qadtrain", "eval", str(run), str(shards), "--out", str(scores), *draws, *reading)
        left = (*_left(scores, "report", "json csv tex"), scores / "scores.parquet")
        stages.append(Stage(f"eval-{name}", command, left, (f"fit-{name}",)))
    first, *others = runs.items()
    for name, run in others:
        folder = out / "compare" / f"{name}-against-{first[0]}"
        command = ("qadtrain", "compare", str(first[1]), str(run), "--shards", str(shards), "--out", str(folder))
        needs = (f"eval-{first[0]}", f"eval-{name}")
        left = _left(folder, "compare", "json csv")
        stages.append(Stage(f"compare-{name}", (*command, *draws, *reading), left, needs))
    sets = _other_sets(settings)
    named = tuple(word for text in (str(shards), *(text for text, _ in sets)) for word in ("--set", text))
    command = ("qadtrain", "cross", *folders, *named, "--out", str(out / "cross"), *draws, *reading)
    command += ("--no-published",) if settings.demo else ()  # stand-ins are no FF++: its figures do not belong there
    evals = tuple(f"eval-{name}" for name in runs)
    left = _left(out / "cross", "cross", "json txt tex csv")
    inputs = tuple(Path(path) / "shards.json" for _, path in sets)
    stages.append(Stage("cross", command, left, evals, soft=True, inputs=inputs))
    limit = ("--limit", str(settings.limit)) if settings.limit else ()
    on = ("--shards", str(shards))
    command = ("qadtrain", "robustness", *folders, *on, "--out", str(out / "robustness"))
    command += ("--corruptions", settings.corruptions, *limit)
    command += ("--severities", settings.severities) if settings.severities else ()
    left = _left(out / "robustness", "robustness", "json csv png svg")
    stages.append(Stage("robustness", (*command, *reading), left, fits, soft=True))
    maps = ("qadtrain", "gradcam", *folders, *on, "--out", str(out / "gradcam"))
    command = (*maps, "--count", str(settings.count), "--pick", "disagreement", *limit, *reading)
    left = (out / "gradcam" / "gradcam.json", out / "gradcam" / "sheet.png")
    stages.append(Stage("gradcam", command, left, fits, soft=True))
    command = (*maps, "--consistency", "--limit", str(settings.consistency), *reading)
    left = _left(out / "gradcam", "consistency", "json csv")
    stages.append(Stage("consistency", command, left, fits, soft=True))
    for name, run in runs.items():
        folder = run / "theorem" / f"{shards.resolve().name}-{settings.split}"
        command = ("qadtrain", "theorem", str(run), str(shards), "--out", str(folder), *reading)
        left = _left(folder, "theorem", "json csv png svg")
        stages.append(Stage(f"theorem-{name}", command, left, (f"fit-{name}",), soft=True))
    page = out / "report.html"
    shown = (word for _, path in sets if "://" not in path for word in ("--shards", path))
    command = ("qadtrain", "report", *folders, "--out", str(page), *on, *shown)
    stages.append(Stage("report", command, (page,), fits, soft=True, always=True))
    return [replace(stage, result=True) for stage in stages]


def _other_sets(settings: Settings) -> list[tuple[str, str]]:
    """(NAME=PATH, PATH) of the shard sets of --cross."""
    sets = []
    for text in settings.cross:
        name, sign, path = text.partition("=")
        if not (sign and name and path):
            raise UserError(f"--cross: got {text!r}, expected NAME=PATH of a shard set")
        sets.append((text, path))
    return sets


def _left(folder: Path, stem: str, endings: str) -> tuple[Path, ...]:
    """Files of one name that a command leaves."""
    return tuple(folder / f"{stem}.{ending}" for ending in endings.split())


def _words(text: str) -> list[str]:
    """The words of an option that takes several."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _workers(settings: Settings) -> tuple[str, ...]:
    return ("--workers", settings.workers) if settings.workers else ()


def _loaders(settings: Settings) -> tuple[str, ...]:
    return () if settings.loaders is None else ("--workers", str(settings.loaders))


def demonstration(given: dict[str, Any]) -> dict[str, Any]:
    """Small numbers for what the command line leaves open: minutes on two cores."""
    small = {
        "dataset": "ffpp",
        "frames": 4,
        "size_px": 64,
        "detector": "mtcnn",
        "corruptions": "CS,GB",
        "severities": "1,3",
        "limit": 24,
        "count": 2,
        "consistency": 12,
        "bootstrap": 100,
        "loaders": 0,
        "overrides": ("optim.epochs=2", "awp.start_epoch=1"),
    }
    return {**given, **{name: value for name, value in small.items() if given.get(name) in (None, "", ())}}
