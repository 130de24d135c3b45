"""QAD against plain cross-entropy on real clips: same data, steps and seeds, scored per quality, with the spread.

    uv run python scripts/compare_qad_ce.py CLIPS --work FOLDER --seeds 3
    uv run python scripts/compare_qad_ce.py --shards SET --work FOLDER      # a shard set of your own
    uv run python scripts/compare_qad_ce.py CLIPS --work FOLDER --split val # to choose settings by

CLIPS is a folder of face videos. Their fakes are made by the recipes of `qadprep demo`, at raw, c23 and c40; people are
divided over train, val and test as there. Four sides are trained: CE, CE+HSIC, CE+AWP and QAD, which has both. A seed
means the same first weights and the same order of the same tuples on each side. Every side takes the same number of
steps and its last weights are scored: nothing is chosen by a score. AWP runs the network twice in a step, so QAD costs
about twice the time of CE.

What is done already in FOLDER is kept; a stopped run goes on at its last epoch. All figures are percent. A difference
is taken within a seed. The spread is the sample standard deviation over the seeds; it does not hold how much other
people in the test split would change the figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

SIDES = {
    "CE": ("hsic.alpha=0", "awp.gamma=0"),
    "CE+HSIC": ("awp.gamma=0",),
    "CE+AWP": ("hsic.alpha=0",),
    "QAD": (),
}
BASELINE = "CE"
LEVELS, METRICS = ("frame", "video"), {"auc": "AUC", "accuracy": "ACC"}
# Without the validation split no checkpoint is chosen, and its passes do not cost time. A few people's clips are soon
# learnt by heart: colours that change keep a detector from knowing a clip by its light.
SHARED = (
    "data.val_split=none",
    "data.num_workers=0",
    "train.log_every_steps=20",
    "augment.colour_probability=0.5",
    "augment.colour_strength=0.3",
)

Scores = Mapping[tuple[str, int], Mapping[str, Any]]  # (side, seed) -> level -> quality -> metric, 0..1


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the latter is None for one seed."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, tuple(values))


def percent(scores: Scores, side: str, level: str, quality: str, metric: str) -> dict[int, float]:
    """Seed -> figure of a side in percent."""
    return {seed: 100 * found[level][quality][metric] for (name, seed), found in scores.items() if name == side}


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Spread:
    """Second less first, within each seed that both have, in the order of the seeds."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError(f"no seed is in both: {sorted(first)} and {sorted(second)}")
    return spread([second[seed] - first[seed] for seed in seeds])


def verdict(difference: Spread) -> str:
    """What the seeds say of a paired difference, in words.

    It counts only where every seed has its sign and its mean is larger than its standard deviation.
    """
    if difference.deviation is None:
        return "one seed: no spread to compare it with"
    signs = {(value > 0) - (value < 0) for value in difference.values}
    if len(signs) > 1 or signs == {0} or abs(difference.mean) <= difference.deviation:
        return "inside the spread: no difference shown"
    return f"{'better' if difference.mean > 0 else 'worse'} at every seed, by more than the spread"


def table(scores: Scores, qualities: Sequence[str], level: str, metric: str) -> list[str]:
    """Lines: each side's figures, then each side's paired difference to the baseline."""
    columns = (*qualities, "average")
    sides = [side for side in SIDES if any(name == side for name, _ in scores)]
    rows = [[f"{level} {METRICS[metric]}", *columns]]
    rows += [[side, *(str(spread([*percent(scores, side, level, q, metric).values()])) for q in columns)]
             for side in sides]  # fmt: skip
    for side in sides:
        if side == BASELINE or BASELINE not in sides:
            continue
        row = [f"{side} - {BASELINE}"]
        for quality in columns:
            base, other = (percent(scores, name, level, quality, metric) for name in (BASELINE, side))
            difference = paired(base, other)
            row.append(("+" if difference.mean >= 0 else "") + str(difference))
        rows.append(row)
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns) + 1)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows]  # fmt: skip


def findings(scores: Scores, qualities: Sequence[str]) -> list[dict[str, Any]]:
    """QAD and each half of it against the baseline: on the worst quality and on the average."""
    found = []
    for side, level, quality in product(SIDES, LEVELS, dict.fromkeys((qualities[-1], "average"))):
        base, other = (percent(scores, name, level, quality, "auc") for name in (BASELINE, side))
        if side == BASELINE or not base.keys() & other.keys():
            continue
        difference = paired(base, other)
        found.append({"side": side, "level": level, "quality": quality, "metric": "auc", **asdict(difference),
                      "verdict": verdict(difference)})  # fmt: skip
    return found


def sentence(finding: Mapping[str, Any]) -> str:
    """One finding as a line."""
    each = " ".join(f"{value:+.1f}" for value in finding["values"])
    text = (
        f"{finding['side']} against {BASELINE}, {finding['level']} AUC on {finding['quality']}: {finding['mean']:+.1f}"
    )
    return f"{text} points (by seed {each}): {finding['verdict']}"


def prepare(clips: Path, work: Path, frames: int, workers: int) -> Path:
    """The shard set made of the clips, or the one found in the work folder; 128 px, `frames` instants of each clip."""
    from qadprep.config import ExtractConfig, ShardConfig
    from qadprep.demo.dataset import make_dataset
    from qadprep.errors import UserError
    from qadprep.extract_dataset import extract
    from qadprep.shard import shard

    shards = work / f"shards-{frames}"
    if (shards / "shards.json").is_file():
        say(f"taking the shard set in {shards}")
        return shards
    say("making the dataset ...")
    made = make_dataset(work / "dataset", clips_dir=clips, workers=workers)
    say(f"{made.from_clips} people from the clips, {len(made.clips)} videos; {len(made.skipped)} files not usable")
    faces = work / f"faces-{frames}"
    config = ExtractConfig(dataset="ffpp", frames=frames, size_px=128)
    extracted = extract(work / "dataset", faces, config, workers=workers, detector="mtcnn", say=say)
    found = extracted.as_dict()
    if found["groups_crashed"] or not found["tuples"]:
        raise UserError(f"{faces}: {found['groups_crashed']} groups could not be extracted; see the lines above")
    for failure in found["failures"]:
        say(f"not used by any side: {failure['message']}")
    shard(faces, shards, ShardConfig(tuples_per_shard=200), workers=workers)
    return shards


def job(shards: str, work: str, split: str, side: str, config_json: str, threads: int) -> tuple[dict, str, float]:
    """Train one side with one seed and score it, or find that done.

    Returns:
        level -> quality -> metrics as in report.json (mean over the methods), the run's folder, and the seconds of
        this call.
    """
    import torch
    from rich.console import Console

    from qadtrain.checkpoint import has_checkpoints
    from qadtrain.config import Config
    from qadtrain.evaluate import evaluate
    from qadtrain.fit import fit

    torch.set_num_threads(threads)
    started = time.perf_counter()
    config = Config.model_validate_json(config_json)
    run = Path(work)
    run.mkdir(parents=True, exist_ok=True)
    scored = run / f"scores-{split}"
    if not (scored / "report.json").is_file():
        with (run / "fit.log").open("a") as log:
            summary = fit(Path(shards), run, config, resume=has_checkpoints(run), console=Console(file=log))
        if summary.stopped_by:
            raise SystemExit(f"{side}: stopped by {summary.stopped_by}; the same command goes on from here")
        evaluate(run, Path(shards), split=split, checkpoint="last", out_dir=scored, num_workers=0,
                 device=config.train.device)  # fmt: skip
    metrics = json.loads((scored / "report.json").read_text())["metrics"]
    cells = {level: {q: row["average"] for q, row in metrics[level].items()} for level in LEVELS}
    return cells, str(run), time.perf_counter() - started


def compare(arguments: argparse.Namespace, shards_path: Path) -> dict[str, Any]:
    """Train and score every side with every seed, some at a time; everything the JSON file holds."""
    from qadprep.errors import UserError
    from qadprep.machine import available_cores
    from qadprep.shardset import ShardSet
    from qadtrain.config_io import load_config
    from qadtrain.facts import config_hash

    with ShardSet(shards_path, arguments.split) as part:
        qualities, fingerprint, tuples = part.qualities, part.fingerprint, len(part)
        people = len(set(part.table["group"].to_pylist()))
        splits = dict(part.splits)
    overrides = [*SHARED, *arguments.overrides]
    if arguments.epochs:
        overrides.append(f"optim.epochs={arguments.epochs}")
    jobs = []
    for seed, side in product(range(arguments.seeds), arguments.sides):
        config = load_config(preset=arguments.preset, overrides=[*overrides, f"train.seed={seed}", *SIDES[side]])
        # Its name holds all that decides the weights, so that other settings or other data never meet in a folder.
        run = arguments.work / "runs" / f"{side}-{seed}-{config_hash(config)}-{fingerprint[:8]}"
        jobs.append((side, seed, run, config))
    config = jobs[0][3]
    if not splits.get(config.data.train_split):
        raise UserError(f"{shards_path}: no tuples in split {config.data.train_split!r}")
    epochs, batch = config.optim.epochs, config.data.batch_tuples
    steps = epochs * (splits[config.data.train_split] // max(1, batch))
    say(f"{len(jobs)} runs of {epochs} epochs = {steps} steps of {batch} tuples, {arguments.jobs} at a time; "
        f"scored on {arguments.split}: {tuples} tuples of {people} people")  # fmt: skip
    threads = max(1, available_cores() // arguments.jobs)
    scores, runs = {}, []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        futures = {}
        for side, seed, run, config in jobs:
            request = (str(shards_path), str(run), arguments.split, side, config.model_dump_json(), threads)
            futures[pool.submit(job, *request)] = (side, seed)
        try:
            for future in as_completed(futures):
                side, seed = futures[future]
                cells, run, seconds = future.result()
                scores[side, seed] = cells
                runs.append({"side": side, "seed": seed, "run": run, "seconds": round(seconds, 1), "scores": cells})
                say(f"{side} seed {seed}: {seconds:.0f} s; {_short(cells['frame'], qualities[-1])}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun would only delay the message
            raise
    missing = [level for level in LEVELS for found in scores.values() if found[level]["average"]["auc"] is None]
    if missing:
        raise UserError(f"{shards_path}: split {arguments.split!r} does not hold both real and fake faces; no AUC")
    return {
        "split": arguments.split, "tuples": tuples, "people": people, "qualities": list(qualities), "splits": splits,
        "fingerprint": fingerprint, "preset": arguments.preset, "set": overrides, "steps": steps,
        "seeds": arguments.seeds, "findings": findings(scores, qualities),
        "tables": ["\n".join(table(scores, qualities, level, metric)) for level, metric in product(LEVELS, METRICS)],
        "runs": sorted(runs, key=lambda run: (run["seed"], run["side"])),
    }  # fmt: skip


def _short(frame: Mapping[str, Any], worst: str) -> str:
    figures = {name: frame[name]["auc"] for name in (worst, "average")}
    return "frame AUC " + ", ".join(f"{name} {100 * auc:.1f}" for name, auc in figures.items() if auc is not None)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    from qadprep.machine import available_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="?", help="folder of face videos")
    parser.add_argument("--work", type=Path, required=True, help="folder for the dataset, the shards and the runs")
    parser.add_argument("--shards", type=Path, help="a shard set of your own instead of the clips")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this less one (3)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what to train (all four)")
    parser.add_argument("--preset", default="tiny", help="preset of QAD, with both terms on (tiny)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the train split; 0 = the preset's (12)")
    parser.add_argument("--frames", type=int, default=12, help="instants of each clip (12)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="of every side")
    parser.add_argument("--split", default="test", help="split that is scored (test)")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="runs at a time (one a core)")
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    if (arguments.clips is None) == (arguments.shards is None):
        parser.error("expected either CLIPS or --shards SET")
    if arguments.seeds < 1 or arguments.jobs < 1 or arguments.frames < 1 or arguments.epochs < 0:
        parser.error("--seeds, --jobs and --frames: expected at least 1; --epochs: at least 0")
    return arguments


def main() -> None:
    from qadprep.errors import UserError

    arguments = parse()
    try:
        shards = arguments.shards or prepare(arguments.clips, arguments.work, arguments.frames, arguments.jobs)
        result = compare(arguments, shards)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print("\n\n".join(result["tables"]))
    print(f"\nmean ± sample standard deviation over {arguments.seeds} seed(s); {result['people']} people scored")
    for finding in result["findings"]:
        print(sentence(finding))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
