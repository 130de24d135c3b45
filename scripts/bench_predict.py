"""How fast `qadtrain predict` is, and how much memory it takes: seconds by stage for a short and a long video.

    python scripts/bench_predict.py                 # makes a clip of 1280x720 and a run of random weights
    python scripts/bench_predict.py --clip my.mp4   # a clip of one's own, repeated up to the lengths

Each measurement has a process of its own, so that its peak memory is its own. Stages go on at the same time: their sum
is more than the wall-clock time. Core seconds are what all threads together took; over the number of cores they tell
what an idle machine could reach at best.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

FPS = 25
STAGES = ("probe", "decode", "convert", "detect", "warp", "track", "network", "wait for network", "page", "annotate")


def made_frames(count: int, width: int = 1280, height: int = 720) -> Iterator[np.ndarray]:
    """A real face (scikit-image's astronaut, public domain) under a moving camera, uint8 (height, width, 3) RGB."""
    from skimage import data

    portrait, rng = data.astronaut(), np.random.default_rng(0)
    grain = rng.normal(0, 3, (height, width, 3)).astype(np.float32)
    for number in range(count):
        scale = 1.4 + 0.05 * np.sin(number / 30)
        dx, dy = 30 * np.sin(number / 17), 15 * np.cos(number / 23)
        affine = np.array([[scale, 0, width / 2 - 224 * scale + dx], [0, scale, height / 2 - 130 * scale + dy]])
        picture = cv2.warpAffine(portrait, affine, (width, height), borderMode=cv2.BORDER_REPLICATE)
        yield np.clip(picture + np.roll(grain, 7 * number, axis=1), 0, 255).astype(np.uint8)


def clip_frames(path: Path, count: int) -> Iterator[np.ndarray]:
    """The frames of a clip, over and over."""
    from qadprep.video.decode import iter_frames
    from qadprep.video.probe import probe

    info, given = probe(path), 0
    while given < count:
        for frame in iter_frames(path, info):
            yield frame
            given += 1
            if given == count:
                return


def write_clip(path: Path, frames: Iterator[np.ndarray]) -> None:
    """H.264 at CRF 23, 4:2:0, as videos on the web come."""
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for rgb in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(FPS))
                stream.height, stream.width = rgb.shape[:2]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "23", "preset": "veryfast"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def write_run(folder: Path, model_name: str, size_px: int) -> None:
    """A run folder with random weights: what is measured does not depend on them."""
    from qadtrain.checkpoint import save_best, write_run_json
    from qadtrain.config_io import load_config, to_toml
    from qadtrain.models import build_model

    fields = [f"model.name={model_name}", "model.taps=[]", "hsic.weights=[]", "hsic.alpha=0", "model.pretrained=false"]
    config = load_config(overrides=[*fields, f"data.image_size_px={size_px}"])
    model, _ = build_model(config.model, load_weights=False)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    crop = {"align": "similarity", "margin": 1.3, "detector": "mtcnn"}
    write_run_json(folder, {"shards": {"fingerprint": "", "qualities": ["c23"], "size_px": size_px, "crop": crop}})
    save_best(folder, model, {})


def measure(run: Path, clip: Path, arguments: argparse.Namespace, annotated: bool) -> dict:
    """In this process: predict the clip, and say what it took."""
    import torch

    from qadtrain.predict import predict

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        summary = predict(
            run,
            [clip],
            out_dir=Path(out),
            fps=arguments.fps,
            detector=arguments.detector,
            device=arguments.device,
            annotated=annotated,
        )
    (video,) = summary.videos
    return {
        "video_s": video.duration_s,
        "frames_scored": video.frames_scored,
        "faces": video.faces,
        "file_s": video.seconds,
        "all_s": summary.seconds,
        "core_s": time.process_time() - start,
        "stages": summary.stage_seconds,
        "peak_mib": summary.as_json()["peak_rss_mib"],
    }


def child(*words: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a video to repeat, instead of the made one")
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help="lengths of the videos")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="side of crops and network, px")
    parser.add_argument("--fps", type=float, default=5.0, help="scored frames a second")
    parser.add_argument("--detector", default="mtcnn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice")
    parser.add_argument("--scores-only", action="store_true", help="leave the annotated copies out")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--annotated", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run, clip = map(Path, arguments.child)
        print(json.dumps(measure(run, clip, arguments, arguments.annotated)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, arguments.model, arguments.size)
        rows = []
        for seconds in arguments.seconds:
            clip = Path(folder) / f"{seconds}s.mp4"
            count = seconds * FPS
            write_clip(clip, clip_frames(arguments.clip, count) if arguments.clip else made_frames(count))
            for options in ([],) if arguments.scores_only else ([], ["--annotated"]):
                rows.append({"annotated": bool(options), **child("--child", str(run), str(clip), *options)})
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    show(rows, arguments)


def show(rows: list[dict], arguments: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    title = f"{arguments.model} at {arguments.size} px, {arguments.detector}, {arguments.fps:g} scored frames/s"
    table = Table(title=f"{title}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    table.add_column("")
    for row in rows:
        table.add_column(f"{row['video_s']:.0f} s{', annotated' if row['annotated'] else ''}", justify="right")
    figures = {
        "scored frames": "{frames_scored}",
        "faces": "{faces}",
        "seconds of the file": "{file_s:.1f}",
        "seconds with loading": "{all_s:.1f}",
        "core seconds": "{core_s:.1f}",
        "peak memory, MiB": "{peak_mib:.0f}",
    }
    for name, form in figures.items():
        table.add_row(name, *(form.format(**row) for row in rows))
    table.add_row("times real time", *(f"{row['video_s'] / row['file_s']:.2f}" for row in rows))
    for stage in STAGES:
        table.add_row(f"  {stage}, s", *(f"{row['stages'].get(stage, 0.0):.1f}" for row in rows))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
