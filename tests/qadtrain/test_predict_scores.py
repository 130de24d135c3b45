"""The sums: from faces to persons and files, settings of the crop, frames that are scored, scenes, quality."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from qadprep.errors import UserError
from qadprep.faces.scenes import find_scenes
from qadprep.video.probe import VideoInfo
from qadtrain.predict_annotate import _rate
from qadtrain.predict_item import quality_of
from qadtrain.predict_scores import (
    FaceScore,
    VideoPrediction,
    persons_to_show,
    top_mean,
    track_scores,
    video_scores,
)
from qadtrain.predict_setup import crop_facts, settle_crop, settle_detector
from qadtrain.predict_video import Scenes, batch_size, frames_to_score

INFO = VideoInfo(64, 48, 250, 250, Fraction(25), "h264", "yuv420p", "crf", 23.0, 0, 1000)


def face(frame: int, track: int, prob: float, side: float = 10.0) -> FaceScore:
    return FaceScore(frame, frame / 25, track, (5.0, 5.0, 5.0 + side, 5.0 + side), 0.9, prob)


def test_tracks_and_video_by_hand():
    person = [face(5 * n, 0, prob) for n, prob in enumerate((0.1, 0.2, 0.6, 0.3))]
    other = [face(5 * n, 1, prob, side=20.0) for n, prob in enumerate((0.9, 0.7))]
    passer_by = [face(10, 2, 1.0)]
    faces = [*passer_by, *other, *person]
    first, second, third = track_scores(faces, 10, top_k=2, threshold=0.5)
    assert (first.track, first.frames, first.share, first.first_s, first.last_s) == (0, 4, 0.4, 0.0, 0.6)
    assert first.prob_fake == pytest.approx(0.3)
    assert first.prob_fake_top_k == pytest.approx(0.45)
    assert (first.prob_fake_min, first.prob_fake_max, first.verdict, first.counts) == (0.1, 0.6, "real", True)
    assert (second.prob_fake, second.face_px, second.verdict) == (pytest.approx(0.8), 20.0, "fake")
    assert (third.counts, third.verdict) == (False, "fake")  # one frame of ten: reported, but decides nothing
    found = video_scores(faces, [first, second, third], top_k=2, threshold=0.5)
    assert found["prob_fake"] == pytest.approx(0.8)
    assert found["prob_fake_mean"] == pytest.approx((1.2 + 1.6 + 1.0) / 7)
    assert found["prob_fake_top_k"] == pytest.approx(0.8)  # 0.9 and 0.7; the passer-by does not count
    assert found["verdict"] == "fake"


def test_one_person_gives_the_mean_over_the_frames_as_the_evaluation_does():
    probabilities = np.random.default_rng(0).random(30)
    faces = [face(number, 0, float(prob)) for number, prob in enumerate(probabilities)]
    tracks = track_scores(faces, 40, top_k=5, threshold=0.5)
    found = video_scores(faces, tracks, top_k=5, threshold=0.5)
    assert found["prob_fake"] == pytest.approx(probabilities.mean(), abs=1e-15)
    assert found["prob_fake"] == found["prob_fake_mean"]
    assert found["prob_fake_top_k"] == pytest.approx(np.sort(probabilities)[25:].mean())


def test_who_counts():
    def counting(frames: dict[int, int], scored: int) -> list[int]:
        faces = [face(n, track, 0.5) for track, count in frames.items() for n in range(count)]
        return [t.track for t in track_scores(faces, scored, top_k=1, threshold=0.5) if t.counts]

    assert counting({0: 20, 1: 2, 2: 1}, 20) == [0, 1]  # a tenth, and twice
    assert counting({0: 40, 1: 3}, 40) == [0]  # less than a tenth
    assert counting({0: 400, 1: 5, 2: 4}, 1000) == [0, 1]  # five frames are enough in any video
    assert counting({0: 1, 1: 1}, 1) == [0, 1]  # nobody stays: everybody counts, as in a picture


def test_the_person_who_decides_is_shown():
    probabilities = {0: 0.1, 1: 0.2, 2: 0.9, 3: 0.3}
    faces = [face(n, track, prob) for track, prob in probabilities.items() for n in range(3)]
    faces.append(face(0, 4, 1.0))  # a passer-by
    tracks = track_scores(faces, 3, top_k=1, threshold=0.5)
    assert [persons_to_show(tracks, most) for most in (1, 2, 3, 9)] == [[2], [0, 2], [0, 1, 2], [0, 1, 2, 3, 4]]
    assert persons_to_show([], 4) == []


def test_threshold_is_inclusive_and_top_k_may_exceed_the_faces():
    (track,) = track_scores([face(0, 0, 0.25), face(1, 0, 0.75)], 2, top_k=9, threshold=0.5)
    assert (track.verdict, track.prob_fake_top_k) == ("fake", 0.5)
    assert top_mean(np.array([0.2, 0.8, 0.5]), 1) == 0.8


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 5.0}, list(range(0, 250, 5))),
        ({"fps": 10.0}, [int(2.5 * n) for n in range(100)]),
        ({"fps": 60.0}, list(range(250))),  # no more than there are
        ({"fps": 5.0, "every_frame": True}, list(range(250))),
        ({"fps": 0.1}, [0]),
        ({"fps": 5.0, "max_frames": 4}, [30, 90, 155, 215]),  # the middles of four stretches
        ({"fps": 1.0, "max_frames": 10}, list(range(0, 250, 25))),
    ],
)
def test_frames_to_score(options, expected):
    assert frames_to_score(INFO, **options) == expected


@pytest.mark.parametrize("most", [1, 2, 7, 49, 50, 51])
def test_max_frames_gives_so_many_different_frames(most):
    chosen = frames_to_score(replace(INFO, frames=247, fps=Fraction(30000, 1001)), fps=6.0, max_frames=most)
    assert len(set(chosen)) == min(most, 50) and chosen == sorted(chosen) and chosen[-1] < 247


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(1, 2), Fraction(3999, 10_800_000)])
def test_rate_of_the_annotated_copy(fps):
    rate = _rate(fps)
    assert rate / fps == pytest.approx(1, abs=1e-3)
    assert min(rate.numerator, rate.denominator) <= 1001


def test_batches_of_large_pictures_are_small():
    assert [batch_size(replace(INFO, width=w, height=h)) for w, h in ((640, 360), (1920, 1080), (8192, 8192))] == [
        *(8, 7, 1)
    ]


def test_scenes_as_they_come_are_those_of_all_at_once():
    rng = np.random.default_rng(1)
    pictures = [np.kron(rng.integers(0, 255, (9, 16)), np.ones((10, 10))).astype(np.uint8) for _ in range(4)]
    black = np.zeros((90, 160), np.uint8)
    order = [pictures[0]] * 3 + [black] * 2 + [pictures[0], pictures[1], pictures[1], black, pictures[2], pictures[3]]
    thumbnails = {7 * number: np.roll(picture, number % 3, 1) for number, picture in enumerate(order)}
    scenes = Scenes()
    for frame, thumbnail in thumbnails.items():
        scenes.add(frame, thumbnail)
    assert scenes.numbers == find_scenes(thumbnails)
    assert max(scenes.numbers.values()) == 2


@pytest.mark.parametrize(
    ("crf", "expected"),
    [
        *((23.0, ("c23", True)), (40.0, ("c40", True)), (0.0, ("raw", False)), (18.0, ("c18", False))),
        *((18.5, ("crf 18.5", False)), (None, ("unknown", None))),
    ],
)
def test_quality_of_the_stream(crf, expected):
    assert quality_of(replace(INFO, crf=crf), ("c23", "c40")) == expected


def test_crop_comes_from_the_run():
    info = {"config": {"extract": {"align": "box", "margin": 1.6, "size_px": 96, "detector": {"name": "mtcnn"}}}}
    facts = {"shards": {"size_px": 96, "crop": crop_facts(info)}}
    crop, remarks = settle_crop(facts, None, None)
    assert (crop.align, crop.margin, crop.size_px, crop.detector) == ("box", 1.6, 96, "mtcnn")
    assert (crop.align_from, crop.margin_from, remarks) == ("run.json", "run.json", [])
    crop, remarks = settle_crop(facts, "similarity", 1.6)
    assert (crop.align, crop.align_from, crop.margin_from) == ("similarity", "option", "option")
    (remark,) = remarks
    assert remark.startswith("--align similarity differs from the training set's box")


def test_crop_of_a_run_that_does_not_say_is_assumed_and_told():
    assert crop_facts({"config": {"merged": []}}) == crop_facts({}) == {}
    crop, remarks = settle_crop({"shards": {"size_px": 128}}, None, 2.0)
    assert (crop.align, crop.margin, crop.align_from, crop.margin_from) == ("similarity", 2.0, "default", "option")
    (remark,) = remarks
    assert "assumed --align similarity, the defaults" in remark and "margin" not in remark


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ({"shards": {"size_px": 128}}, ("affine", None), "--align: got 'affine', expected one of similarity, box"),
        ({"shards": {"size_px": 128}}, (None, 0.5), "--margin: got 0.5, expected 1 to 4"),
        ({"shards": {}}, (None, None), "shards.size_px is None"),
    ],
)
def test_wrong_crop_settings(facts, options, message):
    with pytest.raises(UserError, match=message):
        settle_crop(facts, *options)


def test_detector_of_the_training_set():
    assert settle_detector("auto", None, "mtcnn") == ("mtcnn", [])
    chosen, remarks = settle_detector("mtcnn", None, "retinaface")
    assert chosen == "mtcnn" and "those of the training set were found by retinaface" in remarks[0]
    with pytest.raises(UserError, match="--detector: got 'dlib'"):
        settle_detector("dlib", None, "")


def test_json_of_a_file_that_could_not_be_read_has_all_keys():
    scored = VideoPrediction("a", "a", "video", "ok", prob_fake=1 / 3, tracks=tuple(track_scores([face(0, 0, 1 / 3)], 1, top_k=1, threshold=0.5)))  # fmt: skip  # noqa: E501
    broken = VideoPrediction("b", "b", "video", "unreadable", "no")
    assert scored.as_json().keys() == broken.as_json().keys()
    assert scored.as_json()["prob_fake"] == scored.as_json()["tracks"][0]["prob_fake"] == 0.333333
    assert (broken.failed, scored.failed, broken.as_json()["tracks"]) == (True, False, [])
