"""The sides that bench_extract.py compares, each run in a fresh process: `python bench_sides.py JOB`, JOB as JSON."""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench_data import number_of
from bench_watch import Timed


def child_extract(root: str, out: str, frames: int, workers: int, engine: str = "local", cores: int = 0) -> dict:
    """`qadprep extract` as a user runs it, start of the workers included."""
    if cores:
        os.sched_setaffinity(0, range(cores))
    from qadprep.config import ExtractConfig
    from qadprep.extract_dataset import extract

    config, more = ExtractConfig(dataset="ffpp", frames=frames), {}
    if engine == "ray":
        from ray.cluster_utils import Cluster

        import qadprep.ray_package  # noqa: F401  (its settings must be there before ray is)

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
            pictures = [self.shrink(frame) for frame in frames_rgb]
            self.detect_prepared(pictures)
            faces = [[replace(known[number_of(frame)])] for frame in frames_rgb]
            self._look_closer(pictures, faces)
            return faces

    with tempfile.TemporaryDirectory(prefix="bench-weights-") as folder:
        torch.manual_seed(0)
        torch.save(build_network().state_dict(), Path(folder, "random.pth"))
        # No score is that high: the network's own answers are dropped.
        return KnownFaces(Path(folder, "random.pth"), score_least=2.0)


CHILDREN = {"extract": child_extract, "group": child_group, "naive": child_naive}

if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(CHILDREN[job.pop("what")](**job)))
