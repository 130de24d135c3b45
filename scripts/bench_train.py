"""Training speed: what the shards, HSIC and AWP cost, each beside what it is compared with, from one run.

    uv run python scripts/bench_train.py                       # a GPU: ResNet-50 at 128 and 224 px
    uv run python scripts/bench_train.py --toy                 # a CPU: a small network at 64 px, for the ratios alone
    uv run python scripts/bench_train.py --shards DIR --sizes 224 --model efficientnet_b1

The sides, all with the same network, batch, precision, memory format and SGD:

    timm      a bare loop on a tensor in the device's memory: zero_grad, forward, cross-entropy, backward, step. It
              does what the training benchmark in timm's repository (benchmark.py) does; timm's package does not
              bring that file
    memory    qadtrain's step, cross-entropy alone, on the same tensor
    shards    the same step, fed from a shard set
    hsic, awp, half    `memory` with HSIC; with exact AWP; with AWP whose direction is found on half of the batch

The sides take turns for some rounds. A ratio is the median over the rounds of two sides' times in the same round, so
that a clock that falls meets both; the smallest and largest are printed too. At last the whole method is run from the
shards for many steps, and memory is looked at on the way.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_shards_data
import torch
from bench_train_sides import (
    Side,
    first_batch,
    made_trainer,
    make_sides,
    settings,
    synchronise,
    take_steps,
    timed,
    whole_method,
)

from qadprep.shardset import ShardSet
from qadtrain.data import open_split
from qadtrain.device import choose_device, device_name, precision_name, resident_bytes
from qadtrain.prefetch import TrainBatches

CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"


@dataclass(frozen=True)
class Reach:
    """A ratio of two sides' times and the most it should be."""

    side: str
    base: str
    most: float
    what: str


REACHES = (
    Reach("shards", "memory", 1.05, "cross-entropy from shards / from device memory"),
    Reach("memory", "timm", 1.05, "cross-entropy in qadtrain's step / in timm's loop"),
    Reach("hsic", "memory", 1.10, "with HSIC / cross-entropy"),
    Reach("awp", "memory", 2.10, "with exact AWP / cross-entropy"),
    Reach("half", "memory", 1.60, "with half-batch AWP / cross-entropy"),
)
MOST_WAIT, MOST_GROWTH = 0.03, 0.02


def main() -> None:
    arguments = parsed()
    device = choose_device(arguments.device)
    if arguments.toy:
        torch.set_num_threads(1)  # leaves the loader a core on a machine of two, and the ratios mean something
    result: dict[str, Any] = {
        "device": device_name(device), "precision": precision_name(arguments.precision, device),
        "model": arguments.model, "toy": arguments.toy,
        "versions": {name: version(name) for name in ("qadprep", "torch", "timm", "numpy")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "sizes": [],
    }  # fmt: skip
    print(f"{arguments.model} on {result['device']}, {result['precision']}")
    print("  ".join(f"{name} {value}" for name, value in result["versions"].items() if value))
    for size_px in arguments.sizes:
        folder = arguments.shards or made_shards(arguments.data, size_px, arguments.tuples)
        with open_split(folder, arguments.split) as shards:
            result["sizes"].append(one_size(arguments, shards, device, size_px))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--toy", action="store_true", help="resnet10t at 64 px, one thread; for a CPU")
    add("--model", help="a timm model with stages layer1 to layer3 (give --taps for others); default resnet50")
    add("--taps", nargs="+", default=["layer1", "layer2", "layer3"])
    add("--sizes", type=int, nargs="+", help="sides of the input in px; default 128 224")
    add("--batch-tuples", type=int, nargs="+", help="tried in turn, the fastest is used; default 16 32 64 128")
    add("--steps", type=int, help="steps a side and round; default 40")
    add("--rounds", type=int, help="default 5")
    add("--memory-steps", type=int, help="steps of the whole method for the memory; default 2000")
    add("--device", default="auto")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    add("--workers", type=int, default=-1, help="loader processes; default as in training")
    add("--shards", type=Path, help="a shard set of your own instead of a made one at each size")
    add("--split", default="train")
    add("--data", type=Path, default=Path(tempfile.gettempdir(), "qadtrain-bench-train"))
    add("--tuples", type=int, help="of the made shard set; default 2000")
    add("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    usual = {"model": "resnet50", "sizes": [128, 224], "batch_tuples": [16, 32, 64, 128], "steps": 40, "rounds": 5,
             "memory_steps": 2000, "tuples": 2000}  # fmt: skip
    # A virtual machine's cores come and go: many rounds of single steps, of which the median is taken.
    toy = {"model": "resnet10t", "sizes": [64], "batch_tuples": [16], "steps": 1, "rounds": 50, "memory_steps": 60,
           "tuples": 240}  # fmt: skip
    for name, value in (toy if arguments.toy else usual).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def made_shards(data: Path, size_px: int, tuples: int) -> Path:
    """PNG tuples of the input's own size, so that decoding costs what it costs in a run at that size."""
    bench_shards_data.SIZE_PX = size_px
    return bench_shards_data.made_sets(data / f"{size_px}px", tuples, 500, ("png",))["png"]


def one_size(arguments: argparse.Namespace, shards: ShardSet, device: torch.device, size_px: int) -> dict[str, Any]:
    tuples, tried = best_batch(arguments, shards, device, size_px)
    base = fields_of(arguments, size_px, tuples)
    with ExitStack() as stack:
        fixed = first_batch(shards, base, device)
        sides = make_sides(stack, shards, base, fixed, device)
        by_name = {side.name: side for side in sides}
        feed = by_name["shards"]
        for side in sides:
            side.run(max(3, arguments.steps // 4))  # kernels are chosen, memory is taken
        feed.forget()
        for _ in range(arguments.rounds):
            for side in sides:
                side.seconds.append(timed(side, arguments.steps, device))
        clock = clocks_during(lambda: by_name["memory"].run(arguments.steps), device)
    images = tuples * len(shards.qualities)
    print(f"\n{size_px} px, {tuples} tuples x {len(shards.qualities)} qualities a step")
    print(f"  {'side':8} {'ms a step':>10} {'images/s':>10}")
    for side in sides:
        middle = statistics.median(side.seconds)
        print(f"  {side.name:8} {1000 * middle:10.2f} {images / middle:10.0f}")
    ratios = [ratio(by_name[reach.side], by_name[reach.base], reach) for reach in REACHES]
    wait = feed.wait
    print(f"  {'wait for data, share of the step':48} {wait:6.3f}  reach {MOST_WAIT}  {verdict(wait <= MOST_WAIT)}")
    if clock:
        print(f"  GPU during `memory`: {clock}")
    memory = memory_over_steps(arguments, shards, device, whole_method(base))
    return {
        "size_px": size_px, "batch_tuples": tuples, "images_per_s_by_batch": tried,
        "seconds_per_step": {side.name: side.seconds for side in sides},
        "ratios": ratios, "data_wait": wait, "memory": memory,
        "gpu": clock,
    }  # fmt: skip


def fields_of(arguments: argparse.Namespace, size_px: int, tuples: int) -> dict[str, Any]:
    return settings(arguments.model, arguments.taps, arguments.precision, arguments.workers, size_px, tuples)


def best_batch(
    arguments: argparse.Namespace, shards: ShardSet, device: torch.device, size_px: int
) -> tuple[int, dict[int, float]]:
    """The size with the most images a second, cross-entropy from memory; a larger one must gain 1 %."""
    if len(arguments.batch_tuples) == 1:
        return arguments.batch_tuples[0], {}
    speeds: dict[int, float] = {}
    best = 0
    for tuples in sorted(arguments.batch_tuples):
        fields = fields_of(arguments, size_px, tuples)
        try:
            fixed = first_batch(shards, fields, device)
            trainer = made_trainer(shards, fields, device)
            side = Side("", lambda steps, t=trainer, f=fixed: take_steps(t, (f for _ in range(steps))))
            side.run(5)
            speeds[tuples] = len(fixed.images) / timed(side, max(5, arguments.steps // 2), device)
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            fixed = trainer = side = None
            torch.cuda.empty_cache()  # nothing without a GPU
        if not best or speeds[tuples] > 1.01 * speeds[best]:
            best = tuples
    if not best:
        raise SystemExit(f"not even {min(arguments.batch_tuples)} tuples fit the device; give a smaller --batch-tuples")
    print(f"\n{size_px} px, images/s by tuples a step: " + "  ".join(f"{n}: {s:.0f}" for n, s in speeds.items()))
    return best, speeds


def ratio(side: Side, base: Side, reach: Reach) -> dict[str, Any]:
    values = [a / b for a, b in zip(side.seconds, base.seconds, strict=True)]
    middle = statistics.median(values)
    print(
        f"  {reach.what:48} {middle:6.3f}  reach {reach.most}  {verdict(middle <= reach.most)}"
        f"  ({min(values):.3f} to {max(values):.3f})"
    )
    return {"what": reach.what, "ratio": middle, "by_round": values, "reach": reach.most}


def memory_over_steps(
    arguments: argparse.Namespace, shards: ShardSet, device: torch.device, fields: dict[str, Any]
) -> dict[str, Any]:
    """Memory at ten places of a run of the whole method; flat is: no more at the end than at the fourth."""
    seen: dict[str, list[float]] = {"process_mib": [], "gpu_peak_mib": []}
    trainer = made_trainer(shards, fields, device)
    part = max(1, arguments.memory_steps // 10)
    with TrainBatches(shards, trainer.config, device=device) as batches:
        running = iter(batches)
        for _ in range(10):
            take_steps(trainer, (next(running) for _ in range(part)))
            synchronise(device)
            seen["process_mib"].append(resident_bytes() / 2**20)
            if device.type == "cuda":
                seen["gpu_peak_mib"].append(torch.cuda.max_memory_allocated(device) / 2**20)
                torch.cuda.reset_peak_memory_stats(device)
    for name, values in seen.items():
        if values:
            growth = values[-1] / values[3] - 1
            what = f"{name}, step {4 * part} and {10 * part}, the whole method"
            print(
                f"  {what:48} {values[3]:.0f} and {values[-1]:.0f}"
                f"  reach +{MOST_GROWTH:.0%}  {verdict(growth <= MOST_GROWTH)}"
            )
    return {"steps": 10 * part, **seen}


def clocks_during(run: Callable[[], None], device: torch.device) -> str:
    """Clocks in MHz, power and temperature while ``run`` runs, as nvidia-smi says them; empty without a GPU."""
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader", f"--id={device.index or 0}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as query:
        run()
        values = query.communicate()[0].strip().split(",")
    return "  ".join(f"{name} {value.strip()}" for name, value in zip(CLOCKS.split(","), values, strict=False))


def verdict(reached: bool) -> str:
    return "yes" if reached else "NO"


if __name__ == "__main__":
    main()
