"""Time `qadprep extract` against bare decoding and against the naive way; measure memory, scaling and Ray.

    uv run python scripts/bench_extract.py [--data DIR] [--only group,naive,facenet,retinaface,memory,...]

Makes footage in the layout of FF++ (720p, 500 frames, raw, c23 and c40 at FF++'s sizes, an original and five
manipulations; kept in DIR for the next run) and prints both sides of every comparison from one run:

group       whole groups with MTCNN, against ffmpeg decoding the same files up to the same last frame to null, on as
            many processes. Wall-clock seconds, and CPU seconds of all processes.
naive       one group, against detecting in every file: each of the 18 files is decoded up to the last frame wanted,
            MTCNN looks at every frame that our side gave a crop of, and its own box is cut. One process on both sides.
facenet     the same, but the naive way uses facenet-pytorch's own MTCNN class, with the same thresholds on pictures of
            the same size; our detector runs its networks with a quicker cascade around them.
retinaface  the same with RetinaFace's network. Its weights are not part of this repository, and time does not depend
            on them: random weights run, and the face is the one that MTCNN found when the footage was made.
memory      peak of a worker at 1080p, and how it grows from the 5th to the 50th of many groups.
scaling     two workers on two cores against one on one.
ray         two Ray nodes of one CPU each on this machine, against two local workers.
stages      where our side's time goes.

More groups are hard links of the first under other official ids, so the files are in the system's cache on both sides.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench_data import QUALITIES, Footage, link_groups, make_group, sizes_mb
from bench_watch import Watch, cpu_seconds

SECTIONS = ("group", "naive", "facenet", "retinaface", "memory", "scaling", "ray", "stages")
MANY_GROUPS, EARLY_GROUPS = 50, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir(), "qadprep-bench"), help="made footage")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--frames-per-video", type=int, default=500)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--unique", type=int, default=125, help="frames after which the footage repeats")
    parser.add_argument("--clips", type=Path, help="folder of face videos: the first one gives the pictures")
    parser.add_argument("--frames", type=int, default=64, help="tuples per clip")
    parser.add_argument("--groups", type=int, default=4, help="groups of `group`, `scaling` and `ray`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--naive-files", type=int, default=18, help="files that the naive way really works through")
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"--only: {', '.join(sorted(unknown))}; expected some of {', '.join(SECTIONS)}")
    # One thread a process on both sides; torch and OpenCV would else take every core in the naive way.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    bench = Bench(arguments)
    for section in sections:
        getattr(bench, section)()
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.figures, indent=2) + "\n")


class Bench:
    """The sections; each prints its lines and leaves its figures in `figures`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.figures, self._runs = arguments, [], {}
        clip = next(iter(sorted(arguments.clips.glob("*.mp4"))), None) if arguments.clips else None
        self.footage = Footage(
            arguments.width,
            arguments.height,
            arguments.frames_per_video,
            arguments.unique,
            str(clip.absolute()) if clip else None,
        )
        start = time.perf_counter()
        self.made = make_group(self.footage, arguments.data, arguments.workers)
        sizes = ", ".join(f"{quality} {size:.2f} MB" for quality, size in sizes_mb(self.made).items())
        print(
            f"footage: {arguments.width}x{arguments.height}, {arguments.frames_per_video} frames, a video's mean size: "
            f"{sizes}; ready in {time.perf_counter() - start:.0f} s",
            flush=True,
        )

    def group(self) -> None:
        """Our whole extraction against ffmpeg's decoding alone."""
        count = self.arguments.groups
        for workers in sorted({self.arguments.workers, 1}, reverse=True):
            ours = self._extract(count, workers)
            bare = decode_bare(self._root(count), ours["last_frames"], workers)
            what = f"{count} groups, {workers} at a time"
            self._compare("group", f"{what}, wall s", ours["wall_s"], bare["wall_s"], "ffmpeg decoding", at_most=1.3)
            self._compare("group", f"{what}, CPU s", ours["cpu_s"], bare["cpu_s"], "ffmpeg decoding")

    def naive(self) -> None:
        """Detect once against detect in every file, MTCNN."""
        self._against_naive("mtcnn", 2.5)

    def facenet(self) -> None:
        """The same against the package's own cascade."""
        self._against_naive("mtcnn", 2.5, "facenet")

    def retinaface(self) -> None:
        """The same with the cost of RetinaFace."""
        print("retinaface: random weights (time does not depend on them), faces known from the making")
        self._against_naive("retinaface", 9.0)

    def _against_naive(self, detector: str, target: float, naive_detector: str | None = None) -> None:
        root, out = self._root(1), self._out()
        naive_detector = naive_detector or detector
        section = "naive" if naive_detector == "mtcnn" else naive_detector
        ours = self._child(what="group", root=str(root), out=str(out), frames=self.arguments.frames, detector=detector)
        wanted = wanted_frames(out, root)
        names = sorted(wanted)
        # One file of each quality in turn, so that a part of them is a fair sample.
        names = [name for place in range(6) for name in names[place::6]][: self.arguments.naive_files]
        naive = self._child(
            what="naive", files={name: wanted[name] for name in names}, out=str(self._out()), detector=naive_detector
        )
        crops, share = sum(map(len, wanted.values())), len(names) / len(wanted)
        if share == 1 and naive["crops"] != crops:
            raise SystemExit(f"{section}: {crops} crops of ours, {naive['crops']} of the naive way")
        note = "" if share == 1 else f" (measured on {len(names)} of {len(wanted)} files and scaled)"
        for unit, name in (("wall_s", "wall s"), ("cpu_s", "CPU s")):
            self._compare(
                section,
                f"1 group, {crops} crops, {name}",
                naive[unit] / share,
                ours[unit],
                "ours; first is the naive way" + note,
                at_least=target if unit == "wall_s" else None,
            )

    def memory(self) -> None:
        """Peak of a worker on large pictures, and over many groups."""
        large = make_group(replace(self.footage, width=1920, height=1080, frames=48, unique=24), self.arguments.data, 2)
        job = {"what": "extract", "frames": 16, "workers": 1}
        result = self._child(**job, root=str(link_groups(large, 1)), out=str(self._out()))
        self._note("memory", "peak of a worker at 1080p, GiB", result["peak_mib"] / 1024, at_most=1.5)
        small = make_group(replace(self.footage, width=480, height=270, frames=24, unique=24), self.arguments.data, 2)
        out = self._out()
        job = {"what": "extract", "frames": 8, "workers": 1}
        watch = self._child(**job, root=str(link_groups(small, MANY_GROUPS)), out=str(out), packs=str(out))
        # Without the last group: the end of a worker takes a hundred megabytes for a moment, after few and after many.
        early, late = (
            max(peak for done, peak in watch["peaks_mib"] if done < number) for number in (EARLY_GROUPS, MANY_GROUPS)
        )
        self._note("memory", f"peak of a worker within {EARLY_GROUPS} groups, GiB", early / 1024)
        self._note("memory", f"peak of a worker within {MANY_GROUPS} groups, GiB", late / 1024)
        self._note("memory", "growth between them, share", late / early - 1, at_most=0.05)

    def scaling(self) -> None:
        """Two workers against one. Alone, a worker takes all cores for its decoder: here it gets one."""
        count = self.arguments.groups
        one, two = self._extract(count, 1, cores=1), self._extract(count, 2, cores=2)
        what = f"{count} groups, 1 worker, 1 core"
        self._compare("scaling", f"{what}, wall s", one["wall_s"], two["wall_s"], "2 workers, 2 cores", at_least=1.8)
        self._compare("scaling", f"{what}, CPU s", one["cpu_s"], two["cpu_s"], "2 workers, 2 cores")

    def ray(self) -> None:
        """Two nodes of one CPU each against two local workers."""
        count = self.arguments.groups
        local, cluster = self._extract(count, 2), self._extract(count, 2, engine="ray")
        self._compare(
            "ray",
            f"{count} groups, 2 nodes, wall s",
            cluster["wall_s"],
            local["wall_s"],
            "2 local workers",
            at_most=1.1,
        )

    def stages(self) -> None:
        """Seconds per stage of the run of `group` with one worker."""
        count = self.arguments.groups
        result = self._extract(count, 1)
        total = sum(result["stage_seconds"].values())
        for stage, seconds in sorted(result["stage_seconds"].items(), key=lambda item: -item[1]):
            self._note("stages", f"{count} groups, {stage}, s (of {total:.1f} s)", seconds)
        self._note("stages", f"{count} groups, rest: start, packing up, s", result["wall_s"] - total)
        self._note("stages", "tuples a second of wall-clock time", result["tuples"] / result["wall_s"])

    def _extract(self, groups: int, workers: int, engine: str = "local", cores: int = 0) -> dict:
        """Extract so many groups in a fresh process; a run that was made already is not made again."""
        key = groups, workers, engine, cores
        if key not in self._runs:
            root, out = self._root(groups), self._out()
            job = {"what": "extract", "root": str(root), "out": str(out), "workers": workers, "engine": engine}
            job["cores"] = cores
            result = self._child(**job, frames=self.arguments.frames)
            result["last_frames"] = {
                name: indices[-1] for name, indices in wanted_frames(out, root, attempted=True).items()
            }
            self._runs[key] = result
        return self._runs[key]

    def _child(self, packs: str | None = None, **job: object) -> dict:
        """Run a side of a comparison in a fresh process, and watch the memory of the processes that it starts."""
        command = [sys.executable, str(Path(__file__).with_name("bench_sides.py")), json.dumps(job)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with Watch(process.pid, Path(packs) if packs else None) as watch:
            text, complaints = process.communicate()
        if process.returncode:
            raise SystemExit(f"{complaints}\n{job['what']}: ended with code {process.returncode}")
        result = json.loads(text.splitlines()[-1])
        return result | {"peak_mib": max(watch.peaks.values(), default=0.0), "peaks_mib": watch.series}

    def _root(self, groups: int) -> Path:
        return link_groups(self.made, groups)

    def _out(self) -> Path:
        """An empty folder beside the footage; one at a time is kept."""
        self._outputs = getattr(self, "_outputs", 0) + 1
        out = self.arguments.data / "out" / str(self._outputs)
        shutil.rmtree(out, ignore_errors=True)
        return out

    def _compare(
        self,
        section: str,
        what: str,
        first: float,
        second: float,
        second_name: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        ratio = first / second
        target, met = judged(ratio, at_most, at_least)
        print(
            f"{section:10} {what:38} {first:9.1f} {second:9.1f} ({second_name})  ratio {ratio:.2f}{target}", flush=True
        )
        self.figures.append(
            {"section": section, "what": what, "first": first, "second": second, "second_name": second_name,
             "ratio": ratio, "met": met}
        )  # fmt: skip

    def _note(self, section: str, what: str, value: float, *, at_most: float | None = None) -> None:
        target, met = judged(value, at_most, None)
        print(f"{section:10} {what:58} {value:9.2f}{target}", flush=True)
        self.figures.append({"section": section, "what": what, "value": value, "met": met})


def judged(value: float, at_most: float | None, at_least: float | None) -> tuple[str, bool | None]:
    """(what to print of a target and whether it is met, the latter alone); nothing where there is none."""
    if at_most is None and at_least is None:
        return "", None
    met = value <= at_most if at_most is not None else value >= at_least
    wanted = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    return f"  target {wanted}: {'met' if met else 'MISSED'}", met


def wanted_frames(out: Path, root: Path, *, attempted: bool = False) -> dict[str, list[int]]:
    """Video file -> frames of it that our side cut, or all that it attempted; rising."""
    import pyarrow.parquet as pq

    found: dict[str, list[int]] = {}
    for table in sorted(out.glob("*/[!.]*.parquet")):
        for row in pq.read_table(table, columns=["group", "method", "name", "frame", "status"]).to_pylist():
            if row["status"] != "ok" and not attempted:
                continue
            original = row["method"] == "original"
            place = "original_sequences/youtube" if original else f"manipulated_sequences/{row['method']}"
            for quality in QUALITIES:
                file = str(root / place / quality / "videos" / f"{row['name']}.mp4")
                found.setdefault(file, []).append(row["frame"])
    if not found:
        raise SystemExit(f"{out}: no tuple was extracted")
    return {file: sorted(set(frames)) for file, frames in found.items()}


def decode_bare(root: Path, last_frames: dict[str, int], processes: int) -> dict[str, float]:
    """ffmpeg alone: every file decoded up to its last frame, on so many processes."""
    from qadprep.video.ffmpeg import ffmpeg_exe

    def decode(file: str) -> None:
        command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", "-i", file, "-map", "0:v:0"]
        subprocess.run(
            [*command, "-fps_mode", "passthrough", "-frames:v", str(last_frames[file] + 1), "-f", "null", "-"],
            check=True,
        )

    before, start = cpu_seconds(resource.RUSAGE_CHILDREN), time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(decode, last_frames))
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": cpu_seconds(resource.RUSAGE_CHILDREN) - before,
    }


if __name__ == "__main__":
    main()
