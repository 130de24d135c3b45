"""Time of the detectors per 720p frame: one by one, batched, and through a detector process with two clients.

    python scripts/bench_detectors.py
    uv run --with onnxruntime --with onnx --with onnxscript scripts/bench_detectors.py --onnx

RetinaFace runs with random weights, written to a temporary file: its time does not depend on them. Seconds are CPU
time of all processes (user + system) on one thread each, so that a busy machine does not change them much; with
--device cuda they are wall-clock.
"""

import argparse
import os
import pickle
import resource
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch
from skimage.data import astronaut

from qadprep.faces import make_detector
from qadprep.faces.service import DetectorService

ON_CUDA_BATCHED = 8


def frames_720p(count):
    """A face of about 200 px that moves over a noisy ground."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8), (1280, 720), interpolation=cv2.INTER_CUBIC)
    face = cv2.resize(astronaut()[:300], (1024, 600), interpolation=cv2.INTER_CUBIC)
    frames = []
    for number in range(count):
        frame = ground.copy()
        frame[60:660, 40 + 4 * number : 1064 + 4 * number] = face
        frames.append(frame)
    return frames


def clock(device):
    if device != "cpu":
        torch.cuda.synchronize()
        return time.perf_counter()
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def cpu_of(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds(device, function):
    start = clock(device)
    function()
    return clock(device) - start


def row(what, spent_s, frames):
    print(f"{what:44s} {1000 * spent_s / frames:9.1f} ms a frame", flush=True)


def bench(name, weights, device, frames):
    detector = make_detector(name, weights, device)
    detector.detect(frames[:1])
    row(f"{name}, one by one", seconds(device, lambda: [detector.detect([frame]) for frame in frames]), len(frames))
    batched = {"batched": True} if name == "mtcnn" else {"batch": ON_CUDA_BATCHED}
    detector = make_detector(name, weights, device, **batched)
    detector.detect(frames[:1])
    row(f"{name}, batches of {ON_CUDA_BATCHED}", seconds(device, lambda: detector.detect(frames)), len(frames))
    with DetectorService(name, weights, device) as service:
        clients = [pickle.loads(pickle.dumps(service.remote)) for _ in range(2)]
        for client in clients:
            client.detect(frames[:1])
        server_s = cpu_of(service.pids[0])
        with ThreadPoolExecutor(2) as pool:
            ours_s = seconds(device, lambda: list(pool.map(lambda client: client.detect(frames), clients)))
        server_s = cpu_of(service.pids[0]) - server_s if device == "cpu" else 0.0
        row(f"{name}, process with 2 clients", ours_s + server_s, 2 * len(frames))
        row("    of which in the clients", ours_s, 2 * len(frames))


def profile_mtcnn(frames):
    """Where the time of MTCNN goes on the CPU; the parts contain one another where indented."""
    from qadprep.faces import mtcnn

    spent = Counter()

    def timed(owner, attribute, title):
        function = getattr(owner, attribute)

        def wrapper(*args):
            start = time.process_time()
            try:
                return function(*args)
            finally:
                spent[title] += time.process_time() - start

        setattr(owner, attribute, wrapper)

    detector = mtcnn.MtcnnDetector()
    detector.detect(frames[:1])
    for attribute, title in (
        ("shrink", "shrink to 640 px"),
        ("_propose", "stage 1"),
        ("_pnet", "  PNet"),
        ("_refine", "stage 2"),
        ("_rnet", "  RNet"),
        ("_finish", "stage 3"),
        ("_onet", "  ONet"),
    ):
        timed(detector, attribute, title)
    for attribute, title in (("sums_of", "tables of sums"), ("resized", "  pyramid"), ("windows", "  crops")):
        timed(mtcnn, attribute, title)
    detector.detect(frames)
    for title, spent_s in sorted(spent.items(), key=lambda item: -item[1]):
        row(f"    {title}", spent_s, len(frames))


def bench_onnx(folder, count):
    """RetinaFace's network alone, 640x360, torch against ONNX Runtime, one thread each."""
    import onnxruntime

    from qadprep.faces.retinaface import build_network

    torch.manual_seed(0)
    network = build_network().eval()
    picture = torch.randn(1, 3, 360, 640)
    torch.onnx.export(network, (picture,), folder / "network.onnx", dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "network.onnx", options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: picture.numpy()}
    network = network.to(memory_format=torch.channels_last)
    last = picture.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        apart = max(
            float(np.abs(a.numpy() - b).max()) for a, b in zip(network(last), session.run(None, given), strict=True)
        )
        by_torch_s = seconds("cpu", lambda: [network(last) for _ in range(count)])
    by_onnx_s = seconds("cpu", lambda: [session.run(None, given) for _ in range(count)])
    row("retinaface network, torch", by_torch_s, count)
    row("retinaface network, ONNX Runtime", by_onnx_s, count)
    print(f"ONNX Runtime {by_torch_s / by_onnx_s:.2f} times as fast; outputs differ by {apart:.1e} at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=16, help="for MTCNN; RetinaFace gets half of them")
    parser.add_argument("--onnx", action="store_true", help="only torch against ONNX Runtime")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    frames = frames_720p(args.frames)
    half = max(1, args.frames // 2)
    with tempfile.TemporaryDirectory() as folder:
        if args.onnx:
            bench_onnx(Path(folder), half)
            return
        print(f"{args.frames} frames 1280x720, device {args.device}, torch {torch.__version__}, one thread a process")
        bench("mtcnn", None, args.device, frames)
        if args.device == "cpu":
            profile_mtcnn(frames)
        from qadprep.faces.retinaface import build_network

        print("RetinaFace with random weights; its time does not depend on them")
        torch.save(build_network().state_dict(), Path(folder) / "random.pth")
        bench("retinaface", Path(folder) / "random.pth", args.device, frames[:half])


if __name__ == "__main__":
    main()
