"""Use a trained detector on videos and pictures: scores per face, person and file, an annotated copy, a page."""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from qadprep.errors import RunEnded, UserError
from qadprep.faces import make_detector
from qadprep.machine import available_cores
from qadprep.progress import progress_bar
from qadprep.timing import StageTimer
from qadtrain.checkpoint import checkpoint_path, read_run_json
from qadtrain.device import choose_device, device_name, resolved_precision
from qadtrain.evaluate import load_run
from qadtrain.facts import versions
from qadtrain.predict_files import list_items
from qadtrain.predict_item import Options, Tools, predict_item
from qadtrain.predict_kept import Kept, stamp_of
from qadtrain.predict_output import FACES_NAME, TABLES, FaceTable, write_tables
from qadtrain.predict_page import MOST_FILES, PAGE_NAME, Shown, shown, write_page
from qadtrain.predict_scores import VideoPrediction
from qadtrain.predict_setup import settle_crop, settle_detector
from qadtrain.predict_summary import PredictSummary
from qadtrain.predict_video import Scorer
from qadtrain.safe_files import remove, sha256_of

__all__ = ["PredictSummary", "predict"]

BATCH_CPU, BATCH_GPU = 8, 64
_MOST_THREADS = 4


def predict(
    run_dir: Path,
    inputs: Sequence[Path],
    *,
    out_dir: Path | None = None,
    checkpoint: str = "best",
    detector: str = "auto",
    weights: Path | None = None,
    align: str | None = None,
    margin: float | None = None,
    device: str = "auto",
    fps: float = 5.0,
    every_frame: bool = False,
    max_frames: int | None = None,
    threshold: float = 0.5,
    top_k: int = 5,
    annotated: bool = True,
    batch: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> PredictSummary:
    """Score videos and pictures with a trained run, and write what was found into a folder.

    Each file's result is kept in the folder when it is finished. A later call with the same settings takes it over
    where the file has not changed (:mod:`qadtrain.predict_kept`).

    Args:
        run_dir: folder written by :func:`qadtrain.fit.fit`.
        inputs: videos, pictures (PNG, JPEG, WebP; a video of one frame) and folders of them.
        out_dir: where to write; default ``RUN/predict/<name of the first input>``.
        checkpoint: ``best`` or ``last``.
        detector: ``mtcnn``, ``retinaface``, or ``auto``: that of the training set where it is known, else as
            `qadprep extract` chooses.
        weights: a file with RetinaFace's weights.
        align, margin: how faces are cut; default as those of the training set (see
            :func:`qadtrain.predict_setup.settle_crop`).
        fps: scored frames a second; ``every_frame`` scores them all. max_frames: at most so many a file, spread evenly.
        threshold: probability from which a face, person or file is called fake.
        top_k: faces whose mean is `prob_fake_top_k`.
        annotated: write the annotated copies too. Sound is dropped in them.
        batch: crops a pass; default 8 on the CPU and 64 on a GPU.
        say: takes lines about what was taken over, and what is kept when the call ends early.

    Returns:
        The summary; a file that cannot be used is in its `failed` and does not end the run.

    Raises:
        UserError: wrong options, no run, no such checkpoint, or nothing to look at.
        RunEnded: the disk is full; finished files are kept.
    """
    _check(checkpoint, fps, max_frames, threshold, top_k, batch)
    start = time.perf_counter()
    run_dir, inputs = Path(run_dir), [Path(path) for path in inputs]
    facts = read_run_json(run_dir)
    crop, remarks = settle_crop(facts, align, margin)
    chosen, more = settle_detector(detector, weights, crop.detector)
    out = Path(out_dir) if out_dir is not None else run_dir / "predict" / _default_name(inputs)
    items, others, empty = list_items(inputs, out)
    remarks += more + [f"{folder}: {count} other files left out" for folder, count in others.items()]
    where = choose_device(device)
    config, model, note = load_run(run_dir, checkpoint)
    faces_by = make_detector(chosen, weights, str(where))
    qualities = tuple((facts.get("shards") or {}).get("qualities") or ())
    timer = StageTimer()
    options = Options(
        fps, every_frame, max_frames, threshold, top_k, annotated, min(_MOST_THREADS, available_cores()), out
    )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: got a file, expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "version": versions()["qadprep"],
        "weights": sha256_of(checkpoint_path(run_dir, checkpoint)),
        "model": config.model.model_dump(),
        "input": [config.data.image_size_px, config.data.normalization],
        # A GPU adds in another order than the CPU.
        "device": [where.type, resolved_precision(config.train.precision, where)],
        "crop": [crop.align, crop.margin, crop.size_px],
        "detector": faces_by.identity(),
        "qualities": qualities,
        "options": [fps, every_frame, max_frames, threshold, top_k, annotated],
    }
    videos = [
        VideoPrediction(str(folder), str(folder), "folder", "empty_folder", "holds no video or picture")
        for folder in empty
    ]
    details: list[Shown] = []
    size = batch or (BATCH_GPU if where.type == "cuda" else BATCH_CPU)
    with (
        _disk_of(out),
        _told(say, out, videos, len(empty) + len(items)),
        Scorer(model, config, where, crop.size_px, size, timer) as scorer,
        FaceTable(out / FACES_NAME) as table,
        progress_bar("predict", len(items), "files") if len(items) > 1 else nullcontext() as advance,
    ):
        remove(out / name for name in (*TABLES, PAGE_NAME))  # of an earlier call: they vouch for what is replaced
        kept, taken = Kept(out, settings), 0
        tools = Tools(faces_by, scorer, crop, qualities, timer)
        for item in items:
            with_crops, stamp = len(details) < MOST_FILES, stamp_of(item.path)
            result = kept.read(item, with_crops=with_crops)
            taken += result is not None
            if result is None:
                result = predict_item(item, tools, options, with_crops=with_crops, several=len(items) > 1)
                kept.write(item, stamp, result)
            videos.append(result.prediction)
            table.add(item.name, result.faces)
            if with_crops and result.crops is not None:
                with timer.stage("page"):
                    details.append(shown(len(details), result.prediction, result.faces, result.crops, threshold))
            if advance is not None:
                advance(1, item.name)
    if taken:
        say(f"{taken} of {len(items)} files were scored by an earlier call with these settings")
    summary = PredictSummary(
        run=run_dir.resolve().name,
        checkpoint=checkpoint,
        note=note,
        model=config.model.name,
        crop=crop,
        detector=chosen,
        device=device_name(where),
        qualities=qualities,
        sampling=_sampling(fps, every_frame, max_frames),
        threshold=threshold,
        top_k=top_k,
        remarks=tuple(remarks),
        videos=tuple(videos),
        seconds=time.perf_counter() - start,
        stage_seconds=timer.seconds,
        out_dir=out,
    )
    with _disk_of(out):
        write_page(out, summary, details)
        write_tables(out, summary.as_json())
    return summary


@contextmanager
def _told(say: Callable[[str], None], out: Path, done: Sequence[VideoPrediction], files: int) -> Iterator[None]:
    """Say what is kept when the body ends early."""
    try:
        yield
    except BaseException:
        say(f"ended after {len(done)} of {files} files; {out} keeps them, the same command goes on with the others")
        raise


@contextmanager
def _disk_of(out: Path) -> Iterator[None]:
    """A full disk under a folder is one line that says how to go on."""
    try:
        yield
    except (OSError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunEnded(f"{out}: the disk is full; free space and give the same command again") from error


def _check(
    checkpoint: str, fps: float, max_frames: int | None, threshold: float, top_k: int, batch: int | None
) -> None:
    if checkpoint not in ("best", "last"):
        raise UserError(f"--checkpoint: got {checkpoint}, expected best or last")
    if not 0.01 <= fps <= 1000:
        raise UserError(f"--fps: got {fps:g}, expected 0.01 to 1000 (or --every-frame)")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold: got {threshold:g}, expected 0 to 1")
    for option, value in (("--max-frames", max_frames), ("--top-k", top_k), ("--batch", batch)):
        if value is not None and value < 1:
            raise UserError(f"{option}: got {value}, expected 1 or more")


def _sampling(fps: float, every_frame: bool, max_frames: int | None) -> str:
    words = "every frame" if every_frame else f"{fps:g} a second"
    return words if max_frames is None else f"{words}, at most {max_frames} a file, spread evenly"


def _default_name(inputs: Sequence[Path]) -> str:
    if not inputs:
        return "nothing"
    first = inputs[0].resolve()
    name = first.name if first.is_dir() else first.stem
    return name if len(inputs) == 1 else f"{name}-and-{len(inputs) - 1}-more"
