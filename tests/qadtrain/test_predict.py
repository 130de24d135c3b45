"""Prediction from end to end: the crops, the scores, the files of the result, and what goes wrong."""

import csv
import errno
import io
import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.clips import moving_face
from helpers.numbered import numbered_frames
from helpers.pages import embedded
from PIL import Image

from qadprep.config import ExtractConfig
from qadprep.errors import RunEnded, UserError
from qadprep.faces import make_detector
from qadprep.faces.base import Face
from qadprep.geometry import find_geometry
from qadprep.timing import StageTimer
from qadprep.video.decode import FrameReader, decode_at
from qadprep.video.encode import write_compressed
from qadprep.video.probe import probe
from qadprep.video.source import Source
from qadtrain import predict as predict_module
from qadtrain import safe_files
from qadtrain.checkpoint import checkpoint_path, load_weights, save_best, write_run_json
from qadtrain.config_io import load_config, read_toml, to_toml
from qadtrain.data import open_split, to_network_input
from qadtrain.evaluate import score_split
from qadtrain.models import build_model
from qadtrain.predict import PredictSummary, predict
from qadtrain.predict_annotate import AnnotateError, Painter, bar_height, colour_of
from qadtrain.predict_item import _faces, predict_item
from qadtrain.predict_output import FACE_COLUMNS, TRACK_COLUMNS, VIDEO_COLUMNS, prediction_tables
from qadtrain.predict_page import spots_to_show
from qadtrain.predict_scores import FaceScore, VideoPrediction, track_scores
from qadtrain.predict_setup import CropSettings
from qadtrain.predict_video import Looked, Scorer, Sighting, crops_at, look_at
from qadtrain.score_files import fake_probability

SIZE = 64
CPU = torch.device("cpu")
CROP = CropSettings("similarity", 1.3, SIZE, "run.json", "run.json", "mtcnn")
FILES = ("broken.mp4", "damaged.mp4", "nobody.mp4", "one.mp4", "portrait.webp", "sub/two.mp4", "text.png")

TOP_KEYS = {
    "format", "run", "checkpoint", "model", "crop", "detector", "device", "qualities", "sampling", "threshold", "top_k",
    "remarks", "files", "scored", "fake", "failed", "seconds", "stage_seconds", "peak_rss_mib", "videos",
}  # fmt: skip
VIDEO_KEYS = {
    "name", "path", "kind", "status", "message", "width", "height", "fps", "frames", "duration_s", "codec", "pix_fmt",
    "crf", "quality", "quality_trained", "frames_scored", "frames_with_face", "faces", "prob_fake", "prob_fake_mean",
    "prob_fake_top_k", "verdict", "tracks", "remarks", "annotated", "seconds",
}  # fmt: skip
TRACK_KEYS = {
    "track", "frames", "share", "first_s", "last_s", "face_px", "prob_fake", "prob_fake_top_k", "prob_fake_min",
    "prob_fake_max", "counts", "verdict",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder as fit leaves it, with random weights that tell pictures apart."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = load_config("tiny", overrides=[f"data.image_size_px={SIZE}", "train.device=cpu"])
    torch.manual_seed(0)
    model, _ = build_model(config.model, load_weights=False)
    with torch.no_grad():
        model.head.weight.mul_(40)
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(config))
    crop = {"align": "similarity", "margin": 1.3, "detector": "mtcnn"}
    shards = {"fingerprint": "f", "qualities": ["raw", "c23"], "size_px": SIZE, "splits": {}, "crop": crop}
    write_run_json(folder, {"shards": shards})
    save_best(folder, model, {"epoch": 3})
    return folder


@pytest.fixture(scope="module")
def clips(portrait, tmp_path_factory) -> Path:
    """What a user may have in a folder."""
    folder = tmp_path_factory.mktemp("clips")
    one = moving_face(portrait, 26, 0)
    write_compressed(one, folder / "one.mp4", 25, 23, "yuv420p")
    two = np.concatenate([one[:12], moving_face(portrait, 12, 1)[:, :, ::-1]], axis=2)
    write_compressed(two, folder / "sub" / "two.mp4", 25, 18)
    write_compressed(numbered_frames(8), folder / "nobody.mp4", 25, 23)
    whole = (folder / "one.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (folder / "damaged.mp4").write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    (folder / "text.png").write_text("no picture")
    (folder / "notes.txt").write_text("left out")
    Image.fromarray(portrait[:320, :400]).save(folder / "portrait.webp", lossless=True)
    return folder


@pytest.fixture(scope="module")
def result(run, clips) -> PredictSummary:
    return predict(run, [clips], out_dir=clips / "result", detector="mtcnn", device="cpu", fps=5.0)


def by_name(result: PredictSummary) -> dict[str, VideoPrediction]:
    return {video.name: video for video in result.videos}


def table(result: PredictSummary, name: str) -> list[dict[str, str]]:
    with (result.out_dir / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_has_its_status(result):
    assert tuple(by_name(result)) == FILES
    statuses = {name: video.status for name, video in by_name(result).items()}
    assert statuses == {
        "broken.mp4": "unreadable",
        "damaged.mp4": "damaged",
        "nobody.mp4": "no_face",
        "one.mp4": "ok",
        "portrait.webp": "ok",
        "sub/two.mp4": "ok",
        "text.png": "unreadable",
    }
    assert [video.name for video in result.failed] == ["broken.mp4", "damaged.mp4", "nobody.mp4", "text.png"]
    assert result.exit_code == 1
    assert f"{result.out_dir.parent}: 1 other files left out" in result.remarks
    assert all(str(result.out_dir) not in video.message for video in result.failed)
    assert by_name(result)["nobody.mp4"].message == "no face in 2 frames"
    assert "neither JPEG, PNG nor WebP" in by_name(result)["text.png"].message


def test_damaged_file_is_scored_up_to_the_damage(result):
    damaged, one = by_name(result)["damaged.mp4"], by_name(result)["one.mp4"]
    assert 0 < damaged.frames_scored < one.frames_scored
    whole = [row for row in table(result, "faces.csv") if row["name"] == "one.mp4"]
    part = [row for row in table(result, "faces.csv") if row["name"] == "damaged.mp4"]
    assert [row["prob_fake"] for row in part] == [row["prob_fake"] for row in whole[: len(part)]]
    assert any("annotated copy ends after" in remark for remark in damaged.remarks)


@pytest.mark.parametrize("align", ["similarity", "box"])
def test_crops_are_those_of_the_extraction_bit_for_bit(clips, run, align):
    path, indices = clips / "one.mp4", [0, 5, 10, 25]
    source = Source(probe(path), path)
    detector = make_detector("mtcnn")
    config = ExtractConfig(dataset="ffpp", size_px=SIZE, align=align, margin=1.5)
    expected = find_geometry(source, indices, [], config, detector, StageTimer(), for_others=False)
    crop = CropSettings(align, 1.5, SIZE, "option", "option")
    with scorer(run) as scoring:
        looked = look_at(source, indices, detector, scoring, crop, StageTimer())
    assert len(expected.crops) == 4
    for spot, picture in expected.crops.items():
        np.testing.assert_array_equal(looked.crops[spot], picture)
        np.testing.assert_array_equal(looked.tracks[spot[1]][spot[0]].affine, expected.affines[spot])
    # What was not kept is cut again from the file.
    bare = Looked(looked.info, looked.frames, looked.tracks, looked.scenes)
    again = crops_at(source, bare, list(expected.crops), SIZE)
    assert again.keys() == expected.crops.keys()
    for spot, picture in again.items():
        np.testing.assert_array_equal(picture, expected.crops[spot])


def scorer(run: Path, batch: int = 3) -> Scorer:
    config = load_config(base=read_toml(run / "config.toml"))
    model, _ = build_model(config.model, load_weights=False)
    load_weights(checkpoint_path(run, "best"), model)
    return Scorer(model, config, CPU, SIZE, batch, StageTimer())


def test_scores_are_those_of_the_model_on_the_crops(result, clips, run):
    path = clips / "one.mp4"
    rows = [row for row in table(result, "faces.csv") if row["name"] == "one.mp4"]
    assert [int(row["frame"]) for row in rows] == [0, 5, 10, 15, 20, 25]
    assert [float(row["time_s"]) for row in rows] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    detector = make_detector("mtcnn")
    config = ExtractConfig(dataset="ffpp", size_px=SIZE)
    source = Source(probe(path), path)
    crops = find_geometry(source, [0, 5, 10, 15, 20, 25], [], config, detector, StageTimer(), for_others=False).crops
    scoring = scorer(run)
    images = to_network_input(
        torch.from_numpy(np.stack(list(crops.values())))[:, None],
        None, size_px=SIZE, normalization=scoring.config.data.normalization, device=CPU,
    )  # fmt: skip
    with torch.no_grad():
        logits = scoring.model.eval()(images).logits.double().numpy()
    expected = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    assert np.ptp(expected) > 0.01  # the network tells the crops apart
    np.testing.assert_allclose([float(row["prob_fake"]) for row in rows], expected, atol=2e-6)
    video = by_name(result)["one.mp4"]
    assert video.prob_fake == pytest.approx(expected.mean(), abs=1e-6)
    assert video.prob_fake_top_k == pytest.approx(np.sort(expected)[-5:].mean(), abs=1e-6)
    assert (video.crf, video.quality, video.quality_trained, video.frames_scored) == (23.0, "c23", True, 6)


def test_a_file_that_ends_early_leaves_no_scores_to_the_next(run, clips):
    class Breaks:
        def detect(self, frames):
            raise RuntimeError("out of memory")

    path = clips / "one.mp4"
    source = Source(probe(path), path)
    with scorer(run) as scoring:
        scoring.add(np.zeros((SIZE, SIZE, 3), np.uint8))
        with pytest.raises(RuntimeError, match="out of memory"):
            look_at(source, [0, 5], Breaks(), scoring, CROP, StageTimer())
        looked = look_at(source, [0, 5], make_detector("mtcnn"), scoring, CROP, StageTimer())
        assert [len(track) for track in looked.tracks] == [2]
        direct = scoring.score(np.stack([looked.crops[0, 0], looked.crops[5, 0]]))
    np.testing.assert_allclose([face.prob_fake for face in _faces(looked)], direct, atol=1e-9)


def test_two_people_are_two_tracks(result):
    video = by_name(result)["sub/two.mp4"]
    assert [(track.frames, track.counts) for track in video.tracks] == [(3, True), (3, True)]
    assert video.prob_fake == max(track.prob_fake for track in video.tracks)
    assert video.prob_fake_mean == pytest.approx(np.mean([track.prob_fake for track in video.tracks]))
    assert (video.quality, video.quality_trained) == ("c18", False)


def test_picture_is_a_video_of_one_frame(result, portrait):
    video = by_name(result)["portrait.webp"]
    assert (video.kind, video.codec, video.frames, video.frames_scored, video.faces) == ("image", "webp", 1, 1, 1)
    assert (video.fps, video.duration_s, video.quality, video.quality_trained) == (None, None, "unknown", None)
    assert video.annotated == "annotated/portrait.webp.png"
    painted = np.asarray(Image.open(result.out_dir / video.annotated))
    assert painted.shape == (320 + bar_height(320), 400, 3)
    row = next(row for row in table(result, "faces.csv") if row["name"] == "portrait.webp")
    bottom, right = int(float(row["bottom"])), int(float(row["right"]))
    np.testing.assert_array_equal(
        painted[bottom + 40 : 320, right + 10 :], portrait[bottom + 40 : 320, right + 10 : 400]
    )


def test_annotated_video_has_the_same_frames_size_and_rate(result, clips):
    before = probe(clips / "sub/two.mp4")
    video = by_name(result)["sub/two.mp4"]
    assert video.annotated == "annotated/sub%2Ftwo.mp4.mp4"
    path = result.out_dir / video.annotated
    after = probe(path)
    assert (after.frames, after.width, after.height - bar_height(before.height)) == (12, before.width, before.height)
    assert (after.fps, after.codec, after.pix_fmt) == (before.fps, "h264", "yuv420p")
    old, new = (decode_at(p, i, [0, 7]).astype(int) for p, i in ((clips / "sub/two.mp4", before), (path, after)))
    old, new_picture = old[:, 150:180, :60], new[:, 150:180, :60]  # far from the boxes: the picture itself
    assert np.abs(old.mean(axis=3) - new_picture.mean(axis=3)).mean() < 4
    assert np.abs(old.mean(axis=(1, 2)) - new_picture.mean(axis=(1, 2))).max() < 2  # the colours, too
    bar = new[0, before.height + 3 : -3, 120:160]
    expected = colour_of(video_first_score(result))
    assert np.abs(bar[:8].mean(axis=(0, 1)) - expected).max() < 12


def video_first_score(result: PredictSummary) -> float:
    rows = [row for row in table(result, "faces.csv") if row["name"] == "sub/two.mp4" and row["track"] == "0"]
    return float(next(row["prob_fake"] for row in rows if row["frame"] == "5"))


def test_boxes_between_scored_frames(clips):
    info = probe(clips / "one.mp4")

    def sighting(x: float, prob: float) -> Sighting:
        points = np.array([[x, 1], [x + 1, 1], [x, 2], [x, 3], [x + 1, 3]])
        return Sighting(Face(np.array([x, 10, x + 20, 40]), points, 0.9), np.eye(2, 3), prob)

    track = {0: sighting(10, 0.1), 5: sighting(20, 0.2), 10: sighting(90, 0.3), 20: sighting(50, 0.4)}
    looked = Looked(info, [0, 5, 10, 15, 20], [track], scenes={0: 0, 5: 0, 10: 1, 15: 1, 20: 1})
    prediction = VideoPrediction("a", "a", "video", "ok")
    at = Painter(looked, prediction, 0.5).paths[0].at
    assert at(0)[0].tolist() == [10, 10, 30, 40] and at(0)[1] == 0.1
    box, probability = at(2)
    np.testing.assert_allclose(box, [14, 10, 34, 40])  # 2/5 of the way
    assert probability == 0.1
    assert at(7)[0][0] == 20 and at(8) is None  # a cut lies between
    assert at(12)[0][0] == 90 and at(13) is None and at(15) is None  # lost in frame 15
    assert at(24)[0][0] == 50  # behind the last scored frame
    assert [colour_of(p) for p in (0.0, 0.5, 1.0)] == [(49, 120, 190), (235, 220, 130), (215, 60, 40)]


def test_json_and_tables_have_a_stable_schema(result):
    contents = json.loads((result.out_dir / "predictions.json").read_text())
    again = result.as_json()
    assert {**contents, "peak_rss_mib": 0} == {**again, "peak_rss_mib": 0}
    assert set(contents) == TOP_KEYS
    assert (contents["format"], contents["files"], contents["scored"]) == (1, 7, 4)
    assert contents["checkpoint"] == {"name": "best", "epoch": "3"}
    assert all(set(video) == VIDEO_KEYS for video in contents["videos"])
    assert all(set(track) == TRACK_KEYS for video in contents["videos"] for track in video["tracks"])
    for name, columns in (("videos.csv", VIDEO_COLUMNS), ("tracks.csv", TRACK_COLUMNS), ("faces.csv", FACE_COLUMNS)):
        assert tuple(table(result, name)[0]) == columns
    videos = {row["name"]: row for row in table(result, "videos.csv")}
    assert tuple(videos) == FILES
    assert (videos["broken.mp4"]["prob_fake"], videos["one.mp4"]["quality_trained"]) == ("", "true")
    assert float(videos["one.mp4"]["prob_fake"]) == pytest.approx(by_name(result)["one.mp4"].prob_fake, abs=1e-6)
    assert not [path for path in result.out_dir.rglob("*") if path.name.startswith(".")]  # no leftovers


class Links(HTMLParser):
    """Every address in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "xlink:href")]


def test_page_is_whole_and_loads_nothing(result):
    text = (result.out_dir / "report.html").read_text()
    links = Links()
    links.feed(text)
    links.close()
    assert links.found and all(link.startswith(("#", "data:image/png;base64,")) for link in links.found)
    assert not {"script", "link", "iframe", "object"} & set(links.tags)
    assert "url(http" not in text and "@import" not in text
    assert links.tags.count("svg") == 3  # one, two and the damaged one
    # Six frames: three highest and three lowest of `one`; fewer of the others, nothing twice.
    rows = table(result, "faces.csv")
    persons = {(row["name"], row["track"]) for row in rows}
    shown = sum(min(6, sum((r["name"], r["track"]) == person for r in rows)) for person in persons)
    pictures = embedded(text)
    assert len(pictures) == shown
    assert {Image.open(io.BytesIO(data)).size for data in pictures} == {(SIZE, SIZE)}
    for name in FILES:
        assert name in text
    assert f"{by_name(result)['one.mp4'].prob_fake:.3f}" in text
    assert "A score is no proof" in text


def test_tables_for_people_name_what_failed(result):
    scored, failed = prediction_tables(result.videos)
    assert scored.row_count == 4 and failed.row_count == 4
    scores = [float(cell.plain) for cell in scored.columns[2].cells]
    assert scores == sorted(scores, reverse=True)
    assert [cell.plain for cell in failed.columns[0].cells] == ["broken.mp4", "damaged.mp4", "nobody.mp4", "text.png"]
    (short, _) = prediction_tables(result.videos, most=2)
    assert short.row_count == 2 and "2 more" in short.caption


def test_given_files_max_frames_and_no_copies(run, clips, tmp_path):
    (tmp_path / "empty").mkdir()
    text = tmp_path / "words.txt"
    text.write_text("these are words")
    inputs = [clips / "one.mp4", clips / "one.mp4", text, tmp_path / "missing.mp4", tmp_path / "empty"]
    found = predict(run, inputs, out_dir=tmp_path / "out", device="cpu", max_frames=2, annotated=False, threshold=0.0)
    assert [(video.name, video.status) for video in found.videos if video.kind != "folder"] == [
        *(("one.mp4", "ok"), ("words.txt", "unreadable"), ("missing.mp4", "missing_file")),
    ]
    assert [video.status for video in found.videos if video.kind == "folder"] == ["empty_folder"]
    (one,) = [video for video in found.videos if video.status == "ok"]
    assert (one.frames_scored, one.annotated, one.verdict) == (2, None, "fake")
    assert not (tmp_path / "out" / "annotated").exists()
    assert found.detector == "mtcnn" and not found.remarks  # as the run says
    assert found.sampling == "5 a second, at most 2 a file, spread evenly"
    clean = predict(run, [clips / "one.mp4"], out_dir=tmp_path / "out", device="cpu", max_frames=1, annotated=False)
    assert (clean.exit_code, clean.failed) == (0, [])


def test_a_copy_that_cannot_be_written_is_reported(run, portrait, tmp_path):
    path = tmp_path / f"{'p' * 250}.png"  # a longer name has no room in a folder
    Image.fromarray(portrait[:320, :400]).save(path)
    found = predict(run, [path], out_dir=tmp_path / "out", device="cpu")
    (video,) = found.videos
    assert (video.status, video.annotated, video.faces, found.exit_code) == ("annotate_failed", None, 1, 1)
    assert video.message == "scored, but no annotated copy: File name too long"
    assert video.prob_fake is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "newest"}, "--checkpoint: got newest, expected best or last"),
        ({"fps": 0.0}, "--fps: got 0, expected 0.01 to 1000"),
        ({"threshold": 1.5}, "--threshold: got 1.5, expected 0 to 1"),
        ({"max_frames": 0}, "--max-frames: got 0, expected 1 or more"),
        ({"top_k": 0}, "--top-k: got 0"),
        ({"checkpoint": "last"}, "no such checkpoint"),
        ({"weights": Path("no.pth"), "detector": "mtcnn"}, "is for RetinaFace"),
    ],
)
def test_wrong_use(run, clips, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        predict(run, [clips / "one.mp4"], out_dir=tmp_path, device="cpu", **options)


def test_nothing_to_look_at(run, clips, tmp_path):
    with pytest.raises(UserError, match=r"notes\.txt: got a file, expected a folder"):
        predict(run, [clips / "one.mp4"], out_dir=clips / "notes.txt", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video or picture; looked for"):
        predict(run, [tmp_path / "empty"], out_dir=tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="no input"):
        predict(run, [], out_dir=tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="not a run folder"):
        predict(tmp_path, [tmp_path / "a.mp4"], out_dir=tmp_path / "out", device="cpu")


def test_spots_and_score_order():
    faces = [FaceScore(n, n / 25, 0, (0.0, 0.0, 1.0, 1.0), 0.9, prob) for n, prob in enumerate((0.4, 0.9, 0.1, 0.5))]
    tracks = track_scores(faces, 4, top_k=5, threshold=0.5)
    assert spots_to_show(faces, tracks) == [(1, 0), (3, 0), (0, 0), (2, 0)]


def test_boxes_are_drawn_where_the_face_is(clips):
    info = probe(clips / "one.mp4")
    points = np.array([[60, 50], [61, 50], [60, 51], [60, 52], [61, 52]])
    seen = Sighting(Face(np.array([50, 40, 90, 100]), points, 0.9), np.eye(2, 3), 1.0)
    looked = Looked(info, [0], [{0: seen}], scenes={0: 0})
    score = track_scores([FaceScore(0, 0.0, 0, (50.0, 40.0, 90.0, 100.0), 0.9, 1.0)], 1, top_k=1, threshold=0.5)
    painter = Painter(looked, VideoPrediction("a", "a", "video", "ok", tracks=tuple(score)), 0.5)
    painted = painter(0, np.zeros((info.height, info.width, 3), np.uint8))
    red = (painted[: info.height] == colour_of(1.0)).all(axis=2)
    rows, columns = np.nonzero(red[36:])[0] + 36, np.nonzero(red[36:])[1]  # below the words of the label
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 100, 50, 90)
    assert red[40, 50:91].all() and red[100, 50:91].all() and red[40:101, 50].all() and red[40:101, 90].all()
    assert not red[42:99, 52:89].any()
    assert (painted[info.height + 2 : -1, 30:] == colour_of(1.0)).all()  # the bar, of the one frame
    label = (painter.bar[:, :30] > 200).all(axis=2)
    assert label.any() and not label[-2:].any()  # it is whole


def test_resize_and_normalisation_are_those_of_the_evaluation(shards_dir):
    """The same crops, of another size than the network's input, through a shard set and through the scorer."""
    config = load_config("tiny", overrides=["data.image_size_px=48", "data.normalization=imagenet", "train.device=cpu"])
    torch.manual_seed(0)
    model, _ = build_model(config.model, load_weights=False)
    with open_split(shards_dir, "test") as shards:
        expected = fake_probability(score_split(model.eval(), shards, config, CPU, num_workers=0))
        crops = [item.images["c23"] for item in shards]
    with Scorer(model, config, CPU, 32, 5, StageTimer()) as scoring:
        for crop in crops:
            scoring.add(crop)
        np.testing.assert_allclose(scoring.finish(), expected[:, 1], atol=1e-6)
    assert np.ptp(expected[:, 1]) > 1e-4


def test_an_ended_call_is_gone_on_with(run, clips, portrait, tmp_path, monkeypatch):
    Image.fromarray(portrait[:320, :400]).save(tmp_path / "face.png")
    write_compressed(moving_face(portrait, 4, 0), tmp_path / "one.mp4", 25, 23, "yuv420p")
    inputs = [tmp_path / "one.mp4", tmp_path / "face.png", clips / "text.png", tmp_path / "gone.png"]
    done: list[str] = []

    def counted(item, *arguments, **options):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(item.name)
        return predict_item(item, *arguments, **options)

    def called(out: str, **options) -> list[str]:
        done.clear()
        lines.clear()
        options = {"fps": 15.0, "device": "cpu", "say": lines.append} | options
        predict(run, inputs, out_dir=tmp_path / out, **options)
        return list(done)

    def files(out: str, *names: str) -> list[bytes]:
        return [(tmp_path / out / name).read_bytes() for name in names]

    monkeypatch.setattr(predict_module, "predict_item", counted)
    lines: list[str] = []
    stop = -1
    assert called("straight") == ["one.mp4", "face.png", "text.png", "gone.png"] and not lines
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        called("out")
    assert lines == [
        f"ended after 1 of 4 files; {tmp_path / 'out'} keeps them, the same command goes on with the others"
    ]
    assert not (tmp_path / "out" / "predictions.json").exists()
    stop = -1
    assert called("out") == ["face.png", "text.png", "gone.png"]
    assert lines == ["1 of 4 files were scored by an earlier call with these settings"]
    names = ("faces.csv", "tracks.csv", "report.html")
    assert files("out", *names) == files("straight", *names)

    # A copy that is gone: made again. What could not be used may have been mended, and is always tried again.
    (tmp_path / "out" / "annotated" / "one.mp4.mp4").unlink()
    assert called("out") == ["one.mp4", "text.png", "gone.png"]
    # Another file under the name, and a damaged record.
    (tmp_path / "face.png").touch()
    (record,) = (path for path in (tmp_path / "out" / "kept").iterdir() if b"one.mp4" in path.read_bytes())
    record.write_bytes(record.read_bytes()[:-9])
    assert called("out") == ["one.mp4", "face.png", "text.png", "gone.png"]
    assert files("out", *names) == files("straight", *names)

    # Other settings: nothing of before is taken over or left, here of a file that is not even looked at.
    del inputs[0]
    assert (tmp_path / "out" / "annotated" / "one.mp4.mp4").is_file()
    assert called("out", annotated=False) == ["face.png", "text.png", "gone.png"]
    assert not list((tmp_path / "out" / "annotated").iterdir())
    assert len(list((tmp_path / "out" / "kept").iterdir())) == 1


def test_results_of_other_weights_are_not_taken_over(run, portrait, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    Image.fromarray(portrait[:320, :400]).save(tmp_path / "face.png")
    first = predict(other, [tmp_path / "face.png"], device="cpu", annotated=False)
    config = load_config(base=read_toml(other / "config.toml"))
    save_best(other, build_model(config.model, load_weights=False)[0], {"epoch": 4})
    second = predict(other, [tmp_path / "face.png"], device="cpu", annotated=False)
    assert second.videos[0].prob_fake != first.videos[0].prob_fake


class SlowReader(FrameReader):
    """Still at work on the next frame when the one before has been used."""

    def _pass(self, table, threads):
        for frame in super()._pass(table, threads):
            time.sleep(0.01)
            yield frame


def test_ctrl_c_while_frames_are_decoded_ahead(run, clips, monkeypatch):
    class Interrupted:
        def detect(self, frames):
            time.sleep(0.015)
            raise KeyboardInterrupt

    monkeypatch.setattr("qadprep.video.source.FrameReader", SlowReader)
    path = clips / "one.mp4"
    with scorer(run) as scoring, pytest.raises(KeyboardInterrupt):
        look_at(Source(probe(path), path), range(26), Interrupted(), scoring, CROP, StageTimer())


def test_an_encoder_that_fails_while_frames_are_painted_ahead(run, clips, monkeypatch, tmp_path):
    def fails(frames, *_):
        next(frames)
        time.sleep(0.015)
        raise AnnotateError("encoding failed (no such codec)")

    monkeypatch.setattr("qadprep.video.source.FrameReader", SlowReader)
    monkeypatch.setattr("qadtrain.predict_annotate._encode", fails)
    found = predict(run, [clips / "one.mp4"], out_dir=tmp_path, device="cpu", max_frames=1)
    assert found.failed[0].message == "scored, but no annotated copy: encoding failed (no such codec)"
    assert not list((tmp_path / "annotated").iterdir())


def test_a_full_disk_keeps_what_is_finished(run, portrait, tmp_path, monkeypatch):
    Image.fromarray(portrait[:320, :400]).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")

    def full(path, data, before=safe_files.write_synced):
        if list((tmp_path / "out" / "kept").glob("*.json")):
            raise OSError(errno.ENOSPC, "No space left on device")
        before(path, data)

    monkeypatch.setattr(safe_files, "write_synced", full)
    with pytest.raises(RunEnded, match="the disk is full; free space and give the same command again"):
        predict(run, [tmp_path / "a.png", tmp_path / "b.png"], out_dir=tmp_path / "out", device="cpu", annotated=False)
    assert len(list((tmp_path / "out" / "kept").iterdir())) == 1
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.is_file()]


def test_scores_that_are_no_numbers_are_left_out_and_told(run, clips, portrait, tmp_path, monkeypatch):
    score = Scorer.score

    def overflows(self, crops):
        found = score(self, crops)
        found[0] = np.nan
        return found

    monkeypatch.setattr(Scorer, "score", overflows)
    Image.fromarray(portrait[:320, :400]).save(tmp_path / "face.png")
    found = predict(run, [clips / "one.mp4", tmp_path / "face.png"], out_dir=tmp_path / "out", device="cpu")
    one, face = found.videos
    assert (one.status, one.faces, one.frames_with_face, one.frames_scored) == ("not_finite", 5, 5, 6)
    assert one.message == "1 of 6 faces have no score: the network gives inf or NaN"
    assert 0 <= one.prob_fake <= 1 and one.annotated
    assert (face.status, face.faces, face.prob_fake, face.verdict) == ("not_finite", 0, None, None)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["scored"] == 1
    assert not list((tmp_path / "out" / "kept").iterdir())
