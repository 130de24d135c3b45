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
scaling     two workers against one.
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
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench_data import QUALITIES, Footage, link_groups, make_group, number_of, sizes_mb

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
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = arguments.child
        print(json.dumps(CHILDREN[job.pop("what")](**job)))
        return
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
        early, late = (
            max(peak for done, peak in watch["peaks_mib"] if done <= number) for number in (EARLY_GROUPS, MANY_GROUPS)
        )
        self._note("memory", f"peak of a worker within {EARLY_GROUPS} groups, GiB", early / 1024)
        self._note("memory", f"peak of a worker within {MANY_GROUPS} groups, GiB", late / 1024)
        self._note("memory", "growth between them, share", late / early - 1, at_most=0.05)

    def scaling(self) -> None:
        """Two workers against one."""
        count = self.arguments.groups
        one, two = self._extract(count, 1), self._extract(count, 2)
        self._compare(
            "scaling", f"{count} groups, 1 worker, wall s", one["wall_s"], two["wall_s"], "2 workers", at_least=1.8
        )
        self._compare("scaling", f"{count} groups, 1 worker, CPU s", one["cpu_s"], two["cpu_s"], "2 workers")

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

    def _extract(self, groups: int, workers: int, engine: str = "local") -> dict:
        """Extract so many groups in a fresh process; a run that was made already is not made again."""
        key = groups, workers, engine
        if key not in self._runs:
            root, out = self._root(groups), self._out()
            job = {"what": "extract", "root": str(root), "out": str(out), "workers": workers, "engine": engine}
            result = self._child(**job, frames=self.arguments.frames)
            result["last_frames"] = {
                name: indices[-1] for name, indices in wanted_frames(out, root, attempted=True).items()
            }
            self._runs[key] = result
        return self._runs[key]

    def _child(self, packs: str | None = None, **job: object) -> dict:
        """Run one of `CHILDREN` in a fresh process, and watch the memory of the processes that it starts."""
        command = [sys.executable, __file__, "--child", json.dumps(job)]
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


class Watch(threading.Thread):
    """Reads the memory of all processes below one, ten times a second, while the body of a `with` runs.

    Attributes:
        peaks: process -> its largest resident size so far, MiB, as the system keeps it.
        series: (finished packs in a folder, largest of the processes' peaks), one entry a reading.
    """

    def __init__(self, parent: int, packs: Path | None) -> None:
        super().__init__(daemon=True)
        self.parent, self.packs = parent, packs
        self.peaks: dict[int, float] = {}
        self.series: list[tuple[int, float]] = []
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.1):
            below = [pid for child in children_of(self.parent) for pid in [child, *children_of(child)]]
            for pid in below:
                self.peaks[pid] = max(self.peaks.get(pid, 0.0), peak_of(pid))
            if self.packs and below:
                done = len(list(self.packs.glob("*/[!.]*.parquet")))
                self.series.append((done, max(self.peaks[pid] for pid in below)))


def children_of(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []


def peak_of(pid: int) -> float:
    """Largest resident size of a process so far, MiB; counted anew from the moment it loaded its program."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


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


def cpu_seconds(*who: int) -> float:
    """User and system seconds of this process or of its ended children."""
    usage = [resource.getrusage(each) for each in who]
    return sum(each.ru_utime + each.ru_stime for each in usage)


class Timed:
    """Wall-clock and CPU seconds of the body of a `with`, of this process and of those that it started and ended."""

    def __enter__(self) -> "Timed":
        self._cpu = cpu_seconds(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = {
            "wall_s": time.perf_counter() - self._start,
            "cpu_s": cpu_seconds(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) - self._cpu,
        }


def child_extract(root: str, out: str, frames: int, workers: int, engine: str = "local") -> dict:
    """`qadprep extract` as a user runs it, start of the workers included."""
    from qadprep.config import ExtractConfig
    from qadprep.extract_dataset import extract

    config, more = ExtractConfig(dataset="ffpp", frames=frames), {}
    if engine == "ray":
        from ray.cluster_utils import Cluster

        # The nodes are there before the clock starts, as the local machine is.
        node = {"num_cpus": 1, "object_store_memory": 256 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        more = {"engine": "ray", "address": cluster.address}
    with Timed() as timed:
        summary = extract(Path(root), Path(out), config, detector="mtcnn", workers=workers, **more)
    if engine == "ray":
        cluster.shutdown()
    result = summary.as_dict()
    if summary.failed:
        raise SystemExit(f"extraction failed: {result['failures'][:3]}")
    return timed.seconds | {"stage_seconds": result["stage_seconds"], "tuples": result["tuples"]}


def child_group(root: str, out: str, frames: int, detector: str) -> dict:
    """One group in this process, as a worker does it once it has started."""
    from qadprep.catalog.base import group_clips, read_dataset
    from qadprep.config import ExtractConfig
    from qadprep.extract import extract_group

    finder = made_detector(detector, Path(root).parent)
    config = ExtractConfig(dataset="ffpp", frames=frames, detector=finder.identity())
    group = group_clips(read_dataset("ffpp", Path(root)).clips)[0]
    with Timed() as timed:
        result = extract_group(group, Path(root), Path(out), config, finder)
    if result.failures:
        raise SystemExit(f"extraction failed: {result.failures[:3]}")
    return timed.seconds


def child_naive(files: dict[str, list[int]], out: str, detector: str) -> dict:
    """Detect anew in every frame of every file, and cut the largest face with its own landmarks."""
    import av

    from qadprep.crops import encode_png
    from qadprep.faces.alignment import affine_from_face, warp_face

    first = Path(next(iter(files)))
    finder = made_detector(detector, first.parents[5])
    place, crops = Path(out), 0
    place.mkdir(parents=True)
    with Timed() as timed:
        for number, (file, indices) in enumerate(files.items()):
            wanted, batch = set(indices), []
            with av.open(file) as container:
                container.streams.video[0].thread_count = 1
                for index, frame in enumerate(container.decode(video=0)):
                    if index in wanted:
                        batch.append((index, frame.to_ndarray(format="rgb24")))
                    last = index == indices[-1]
                    if len(batch) == 8 or (last and batch):
                        for (at, rgb), faces in zip(batch, finder.detect([rgb for _, rgb in batch]), strict=True):
                            if faces:
                                face = max(faces, key=lambda face: face.side_px)
                                affine = affine_from_face(face, align="similarity", margin=1.3, size_px=128)
                                crop = encode_png(warp_face(rgb, affine, 128))
                                (place / f"{number}-{at:06d}.png").write_bytes(crop)
                                crops += 1
                        batch = []
                    if last:
                        break
    return timed.seconds | {"crops": crops}


class PackageMtcnn:
    """facenet-pytorch's own MTCNN, as most preprocessing scripts use it."""

    def __init__(self) -> None:
        from facenet_pytorch import MTCNN

        self._mtcnn = MTCNN(keep_all=True, min_face_size=32, thresholds=[0.6, 0.7, 0.7], device="cpu")

    def detect(self, frames_rgb):
        import cv2

        from qadprep.faces import Face

        found = []
        for frame in frames_rgb:
            scale = min(1.0, 640 / max(frame.shape[:2]))
            small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            boxes, scores, points = self._mtcnn.detect(small, landmarks=True)
            found.append(
                []
                if boxes is None
                else [Face(b / scale, p / scale, s) for b, p, s in zip(boxes, points, scores, strict=True)]
            )
        return found


def made_detector(name: str, footage: Path):
    """MTCNN, ours or the package's, or RetinaFace's network with random weights, answering with the known faces."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if name == "mtcnn":
        from qadprep.faces import make_detector

        return make_detector("mtcnn")
    if name == "facenet":
        return PackageMtcnn()
    from qadprep.faces import Face
    from qadprep.faces.retinaface import RetinaFaceDetector, build_network

    known = [Face(**face, score=1.0) for face in json.loads((footage / "faces.json").read_text())]

    class KnownFaces(RetinaFaceDetector):
        def detect(self, frames_rgb):
            super().detect(frames_rgb)
            return [[replace(known[number_of(frame)])] for frame in frames_rgb]

    with tempfile.TemporaryDirectory(prefix="bench-weights-") as folder:
        torch.manual_seed(0)
        torch.save(build_network().state_dict(), Path(folder, "random.pth"))
        # No score is that high: the network's own answers are dropped.
        return KnownFaces(Path(folder, "random.pth"), score_least=2.0)


CHILDREN = {"extract": child_extract, "group": child_group, "naive": child_naive}

if __name__ == "__main__":
    main()
