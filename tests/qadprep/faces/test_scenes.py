"""Cuts of known place between photographs, and all that is no cut: motion, brightness, fades, noise."""

import os
from itertools import islice, pairwise, permutations
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from qadprep.faces.scenes import find_scenes, least_likeness


def shot(picture: np.ndarray, left: float = 0.1, top: float = 0.1, share: float = 0.8) -> np.ndarray:
    """A thumbnail of a part of the picture, in shares of its size: what a camera that pans and zooms sees."""
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture[..., :3], cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    part = grey[
        round(top * height) : round((top + share) * height), round(left * width) : round((left + share) * width)
    ]
    return cv2.resize(part, (160, 90), interpolation=cv2.INTER_AREA)


ROOMS = {
    name: getattr(data, name)()
    for name in ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "immunohistochemistry")
}


@pytest.mark.parametrize("step", [1, 8])
def test_every_cut_between_photographs_is_found_where_it_is(step):
    for before, after in permutations(ROOMS, 2):
        thumbnails = {i * step: shot(ROOMS[before if i < 6 else after], left=0.1 + 0.004 * i) for i in range(12)}
        assert find_scenes(thumbnails) == {i * step: int(i >= 6) for i in range(12)}, (before, after)


def test_nearly_every_cut_is_found_between_frames_far_apart():
    """One second apart, two pictures of the same greys may pass for one scene."""
    found = [find_scenes({0: shot(ROOMS[a]), 25: shot(ROOMS[b])}) == {0: 0, 25: 1} for a, b in permutations(ROOMS, 2)]
    assert np.mean(found) >= 0.95


def test_cutting_back_and_forth_counts_every_cut():
    order = ["astronaut", "coffee", "astronaut", "chelsea"]
    thumbnails = {i * 8: shot(ROOMS[order[i // 3]]) for i in range(12)}
    assert [find_scenes(thumbnails)[i * 8] for i in range(12)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("name", ROOMS)
@pytest.mark.parametrize(
    "change",
    [
        lambda grey, i: grey * (1.0 - 0.05 * i) + 4 * i,  # exposure: down to half
        lambda grey, i: grey * (0.55 if i % 2 else 1.0),  # flicker
        lambda grey, i: grey + np.random.default_rng(i).normal(0, 8, grey.shape),  # noise
        lambda grey, i: grey * abs(1 - i / 5),  # fade to black and back
        lambda grey, i: 255 - (255 - grey) * abs(1 - i / 5),  # to white and back
    ],
    ids=["exposure", "flicker", "noise", "fade to black", "fade to white"],
)
def test_light_is_no_cut(name, change):
    grey = shot(ROOMS[name]).astype(float)
    thumbnails = {i: np.clip(np.round(change(grey, i)), 0, 255).astype(np.uint8) for i in range(11)}
    assert set(find_scenes(thumbnails).values()) == {0}


@pytest.mark.parametrize("name", ROOMS)
def test_a_pan_and_a_zoom_are_no_cuts(name):
    """In 20 sampled frames 8 apart, the camera pans over a third of the picture, and comes 1.8 times as near."""
    pan = {i * 8: shot(ROOMS[name], left=0.01 + 0.017 * i, top=0.1 + 0.005 * i, share=0.62) for i in range(20)}
    zoom = {i * 8: shot(ROOMS[name], left=0.01 * i, top=0.01 * i, share=0.9 - 0.02 * i) for i in range(20)}
    for thumbnails in (pan, zoom):
        assert set(find_scenes(thumbnails).values()) == {0}


def test_a_large_head_that_moves_fast_is_no_cut():
    """A head over half the picture's height jumps by up to half its width between frames."""
    head = cv2.resize(shot(ROOMS["astronaut"], left=0.33, top=0.1, share=0.25), (44, 56))
    ys, xs = np.mgrid[-1:1:56j, -1:1:44j]
    oval = xs**2 + ys**2 < 1
    rng = np.random.default_rng(3)
    thumbnails, x = {}, 60
    for i in range(30):
        x = int(np.clip(x + rng.integers(-22, 23), 4, 110))
        picture = shot(ROOMS["coffee"]).copy()
        picture[30:86, x : x + 44][oval] = head[oval]
        thumbnails[i] = picture
    assert set(find_scenes(thumbnails).values()) == {0}


def test_flat_frames_belong_to_the_scene_before_and_hide_no_cut():
    black, white = np.zeros((90, 160), np.uint8), np.full((90, 160), 235, np.uint8)
    one, other = shot(ROOMS["astronaut"]), shot(ROOMS["coffee"])
    assert find_scenes(dict(enumerate([black, one, black, one, white, black, other, black]))) == dict(
        enumerate([0, 0, 0, 0, 0, 0, 1, 1])
    )


def test_what_lies_far_apart_may_differ_more():
    distances = [1, 2, 3, 8, 25, 64, 65, 1000]
    assert [round(least_likeness(d), 2) for d in distances] == [0.75, 0.70, 0.67, 0.60, 0.57, 0.57, 0.50, 0.50]


def test_no_frames_no_scenes_and_one_frame_one_scene():
    assert find_scenes({}) == {}
    assert find_scenes({7: shot(ROOMS["coffee"])}) == {7: 0}


@pytest.mark.parametrize(
    "wrong", [np.zeros((160, 90), np.uint8), np.zeros((90, 160)), np.zeros((90, 160, 3), np.uint8)]
)
def test_other_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected a uint8 thumbnail \(90, 160\)"):
        find_scenes({0: wrong})


@settings(max_examples=60, deadline=None)
@given(
    pictures=st.dictionaries(st.integers(0, 400), st.sampled_from(sorted(ROOMS)), max_size=10),
    later=st.integers(0, 1000),
    shuffler=st.randoms(use_true_random=False),
)
def test_scenes_rise_by_one_from_nought_whatever_the_order(pictures, later, shuffler):
    thumbnails = {frame: shot(ROOMS[name]) for frame, name in pictures.items()}
    scenes = find_scenes(thumbnails)
    assert list(scenes) == sorted(thumbnails)
    assert list(scenes.values())[:1] in ([0], [])
    for before, after in pairwise(scenes):
        assert scenes[after] - scenes[before] in ((0,) if pictures[before] == pictures[after] else (0, 1))
    items = list(thumbnails.items())
    shuffler.shuffle(items)
    assert find_scenes({frame + later: picture for frame, picture in items}) == {
        f + later: s for f, s in scenes.items()
    }


def views_of(kind: str) -> dict[str, list[np.ndarray]]:
    """97 thumbnails in a row of each of several clips: pans over photographs, or real videos."""
    if kind == "made":
        return {name: [shot(ROOMS[name], left=0.002 * i) for i in range(97)] for name in ROOMS}
    views = {}
    for path in sorted(Path(os.environ["QAD_REAL_CLIPS"]).glob("*.mp4"))[::3]:
        with av.open(str(path)) as container:
            frames = islice(container.decode(container.streams.video[0]), 97)
            greys = [frame.to_ndarray(format="gray") for frame in frames]
        views[path.stem] = [cv2.resize(grey, (160, 90), interpolation=cv2.INTER_AREA) for grey in greys]
    return views


@pytest.mark.parametrize("kind", ("made", "real") if os.environ.get("QAD_REAL_CLIPS") else ("made",))
def test_clips_hold_no_cut_and_two_of_them_in_a_row_one(kind):
    views = views_of(kind)
    for name, seen in views.items():
        for step in (1, 8, 24):
            thumbnails = dict(list(enumerate(seen))[::step])
            assert set(find_scenes(thumbnails).values()) == {0}, (name, step)
    for a, b in permutations(views, 2):
        joined = views[a][:8] + views[b][-8:]
        assert list(find_scenes(dict(enumerate(joined))).values()) == [0] * 8 + [1] * 8, (a, b)
