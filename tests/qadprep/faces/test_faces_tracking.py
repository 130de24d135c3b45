"""Tracking on made-up scenes where the right answer is known, and properties that hold for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.faces.base import Face
from qadprep.faces.identity import switches_in
from qadprep.faces.looks import LOOK_SIZE, OTHER, SAME_SCENE, same_person
from qadprep.faces.tracking import Track, changes_noted, find_tracks, largest_track

LAYOUT = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def face(x, y, side, score=0.99) -> Face:
    """A square face around (x, y)."""
    corner = np.array([x, y]) - side / 2
    return Face(np.concatenate([corner, corner + side]), corner + LAYOUT * side, score)


def persons_of(tracks, owner):
    """For each track, the set of persons whose faces it has."""
    return [{owner[id(face)] for face in track.faces.values()} for track in tracks]


def test_one_person_is_one_track():
    rng = np.random.default_rng(0)
    scene = {i * 8: [face(200 + 3 * i + rng.normal(0, 2), 150, 80 + rng.normal(0, 2))] for i in range(64)}
    tracks = find_tracks(scene)
    assert len(tracks) == 1
    assert tracks[0].frames == tuple(range(0, 512, 8))
    assert tracks[0].faces[40] is scene[40][0]


def test_median_side():
    track = Track({0: face(0, 0, 10), 5: face(0, 0, 30), 9: face(0, 0, 20)})
    assert track.median_side_px == pytest.approx(20)
    assert track.frames == (0, 5, 9)
    assert Face(np.array([0, 0, 40, 90]), LAYOUT, 1).side_px == pytest.approx(60)


def test_frames_are_ascending_whatever_the_dict():
    assert Track({9: face(0, 0, 10), 1: face(0, 0, 10)}).frames == (1, 9)


def test_nothing_found():
    assert find_tracks({}) == []
    assert find_tracks({0: [], 8: []}) == []
    assert largest_track({}) is None
    assert largest_track({3: []}) is None


def test_a_big_face_in_a_tenth_of_the_frames_loses_to_a_smaller_one_in_all():
    scene = {i * 8: [face(200, 200, 90)] for i in range(60)}
    for i in range(20, 26):
        scene[i * 8].append(face(500, 200, 110))
    best = largest_track(scene)
    assert len(best.faces) == 60
    assert best.median_side_px == pytest.approx(90)


def test_of_two_faces_in_all_frames_the_larger_wins():
    scene = {i: [face(100, 100, 60), face(400, 100, 75)] for i in range(20)}
    assert largest_track(scene).median_side_px == pytest.approx(75)


def test_ranking_is_coverage_times_side():
    """40 px in all of 20 frames are worth 40; 90 px in 8 of them 36, 110 px in 8 of them 44."""
    for side, winner in ((90, 40), (110, 110)):
        scene = {i: [face(100, 100, 40)] + [face(500, 300, side)] * (i < 8) for i in range(20)}
        assert largest_track(scene).median_side_px == pytest.approx(winner)


def test_empty_frames_are_bridged():
    scene = {i * 8: [] if 20 <= i < 26 else [face(200, 150, 80)] for i in range(60)}
    tracks = find_tracks(scene)
    assert len(tracks) == 1
    assert len(tracks[0].faces) == 54


def test_a_long_absence_ends_the_track():
    scene = {i: [] if 20 <= i < 120 else [face(200, 150, 80)] for i in range(160)}
    assert sorted(len(track.faces) for track in find_tracks(scene)) == [20, 40]


def test_a_jump_starts_a_new_track():
    scene = {i * 8: [face(150 if i < 10 else 480, 150, 80)] for i in range(20)}
    assert sorted(len(track.faces) for track in find_tracks(scene)) == [10, 10]


def test_a_jump_in_size_starts_a_new_track():
    scene = {i * 8: [face(300, 200, 60 if i < 10 else 170)] for i in range(20)}
    assert sorted(len(track.faces) for track in find_tracks(scene)) == [10, 10]


def test_single_false_positives_do_not_disturb():
    scene = {i * 8: [face(200, 150, 80)] for i in range(40)}
    for i, x in ((3, 500), (11, 330), (29, 60)):
        scene[i * 8].append(face(x, 400, 130, score=0.999))
    tracks = find_tracks(scene)
    assert [len(track.faces) for track in tracks] == [40, 1, 1, 1]


@pytest.mark.parametrize(("step", "speed"), [(1, 12), (8, 3), (8, 6)])
def test_two_persons_who_cross_keep_their_tracks(step, speed):
    """Same size, same height; they walk through each other, one of them hidden while they overlap by half."""
    rng = np.random.default_rng(step)
    scene, owner = {}, {}
    for frame in range(0, 60 * step, step):
        a, b = 100 + speed * frame, 100 + speed * (59 * step - frame)
        persons = [("a", face(a + rng.normal(0, 1), 200, 80)), ("b", face(b + rng.normal(0, 1), 205, 80))]
        if abs(a - b) < 40:
            persons = persons[:1]
        for name, seen in persons:
            owner[id(seen)] = name
        scene[frame] = [seen for _, seen in persons]
    tracks = find_tracks(scene)
    assert sorted(map(sorted, persons_of(tracks[:2], owner))) == [["a"], ["b"]]
    assert len(tracks[0].faces) == 60


def test_two_persons_side_by_side_are_not_mixed():
    rng = np.random.default_rng(1)
    scene, owner = {}, {}
    for frame in range(0, 512, 8):
        persons = [(name, face(x + rng.normal(0, 8), 200, 80)) for name, x in (("a", 200), ("b", 310))]
        rng.shuffle(persons)
        for name, seen in persons:
            owner[id(seen)] = name
        scene[frame] = [seen for _, seen in persons]
    tracks = find_tracks(scene)
    assert sorted(map(sorted, persons_of(tracks, owner))) == [["a"], ["b"]]


def test_a_walking_person_who_stops_behind_something_is_found_again():
    """He is expected 1.5 sides further on."""
    scene = {i * 8: [face(100 + 40 * min(i, 10), 200, 80)] if not 10 < i < 15 else [] for i in range(40)}
    assert len(find_tracks(scene)) == 1


def test_ties_are_broken_by_score_whatever_the_order():
    """The same face reported twice, with two scores."""

    def scores(*order):
        twice = [face(200, 150, 80, score=0.9), face(200, 150, 80, score=0.8)]
        scene = {frame: [twice[i ^ flip] for i in range(2)] for frame, flip in enumerate(order)}
        return [[track.faces[f].score for f in track.frames] for track in find_tracks(scene)]

    for order in ((0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)):
        assert scores(*order) == [[0.9] * 3, [0.8] * 3]


def look(person: str, sighting: int = 0) -> np.ndarray:
    """A made-up look: random structure and colour by person, a little of both by sighting."""
    own = np.random.default_rng(list(person.encode()))
    jitter = np.random.default_rng([*person.encode(), sighting])
    structure = own.normal(0, 1, 256) + jitter.normal(0, 0.3, 256)
    colour = own.uniform(0, 20, 32) + jitter.normal(0, 0.5, 32)
    return np.concatenate([structure / np.linalg.norm(structure), colour]).astype(np.float32)


def clip(*shots, step=8):
    """Frames, scenes, looks, owners of shots in a row; a shot is (sightings, (person, x, side), ...)."""
    faces_by_frame, scenes, looks, owner, frame = {}, {}, {}, {}, 0
    for scene, (count, *people) in enumerate(shots):
        for _ in range(count):
            faces_by_frame[frame], scenes[frame] = [], scene
            for person, x, side in people:
                seen = face(x, 200, side)
                faces_by_frame[frame].append(seen)
                looks[id(seen)], owner[id(seen)] = look(person, frame), person
            frame += step
    return faces_by_frame, scenes, looks, owner


def test_made_up_looks_are_told_apart():
    assert same_person(look("a", 1), look("a", 2)) >= SAME_SCENE
    assert same_person(look("a", 1), look("b", 1)) <= OTHER


def test_a_cut_ends_every_track_though_the_next_person_has_the_same_place():
    faces_by_frame, scenes, _, owner = clip((10, ("a", 200, 80)), (10, ("b", 205, 82)))
    assert len(find_tracks(faces_by_frame)) == 1
    tracks = find_tracks(faces_by_frame, scenes=scenes)
    assert persons_of(tracks, owner) == [{"b"}, {"a"}]  # b is a little larger
    assert changes_noted(tracks, scenes) == "1 cut"


def test_a_person_who_comes_back_after_a_cut_is_recognised_wherever_he_is():
    faces_by_frame, scenes, looks, owner = clip(
        (8, ("a", 200, 80)), (6, ("b", 200, 80)), (8, ("a", 420, 120)), (6, ("b", 100, 60))
    )
    tracks = find_tracks(faces_by_frame, scenes=scenes, looks=looks)
    assert persons_of(tracks, owner) == [{"a"}, {"b"}]
    assert [len(track.faces) for track in tracks] == [16, 12]
    assert changes_noted(tracks, scenes) == "3 cuts"
    # Without looks nobody is recognised.
    assert len(find_tracks(faces_by_frame, scenes=scenes)) == 4


def test_two_people_who_change_places_over_a_cut():
    faces_by_frame, scenes, looks, owner = clip(
        (6, ("a", 150, 80), ("b", 400, 80)), (6, ("b", 150, 80), ("a", 400, 80))
    )
    tracks = find_tracks(faces_by_frame, scenes=scenes, looks=looks)
    assert sorted(map(sorted, persons_of(tracks, owner))) == [["a"], ["b"]]
    assert [len(track.faces) for track in tracks] == [12, 12]


@pytest.mark.parametrize("after", [3, 5, 12])
def test_an_identity_switch_within_a_scene_splits_the_track(after):
    faces_by_frame, scenes, looks, owner = clip((12, ("a", 200, 80)), (after, ("b", 203, 81)))
    tracks = find_tracks(faces_by_frame, scenes=dict.fromkeys(scenes, 0), looks=looks)
    assert sorted(map(sorted, persons_of(tracks, owner))) == [["a"], ["b"]]
    assert sum(track.switches for track in tracks) == 1
    assert changes_noted(tracks) == "1 identity switch"


def test_there_and_back_are_two_switches_and_two_people():
    faces_by_frame, _, looks, owner = clip((6, ("a", 200, 80)), (6, ("b", 200, 80)), (6, ("a", 200, 80)))
    tracks = find_tracks(faces_by_frame, looks=looks)
    assert persons_of(tracks, owner) == [{"a"}, {"b"}]
    assert [len(track.faces) for track in tracks] == [12, 6]
    assert changes_noted(tracks) == "2 identity switches"


@pytest.mark.parametrize("strange", [1, 2])
def test_a_hand_before_the_face_is_no_switch(strange):
    faces_by_frame, _, looks, _ = clip((8, ("a", 200, 80)), (strange, ("x", 200, 80)), (8, ("a", 200, 80)))
    tracks = find_tracks(faces_by_frame, looks=looks)
    assert [len(track.faces) for track in tracks] == [16 + strange]
    assert changes_noted(tracks) == ""


def test_people_of_one_scene_are_never_put_together():
    """Twins: the same look twice in every frame."""
    faces_by_frame, scenes, looks, _ = clip((8, ("a", 150, 80), ("a", 400, 80)), (8, ("a", 150, 80), ("a", 400, 80)))
    tracks = find_tracks(faces_by_frame, scenes=scenes, looks=looks)
    assert [len(track.faces) for track in tracks] == [16, 16]


def test_faces_without_a_look_are_followed_by_position():
    faces_by_frame, scenes, looks, _ = clip((6, ("a", 200, 80)), (6, ("a", 200, 80)))
    assert [len(track.faces) for track in find_tracks(faces_by_frame, looks={})] == [12]
    assert [len(track.faces) for track in find_tracks(faces_by_frame, scenes=scenes, looks={})] == [6, 6]
    for seen in faces_by_frame[24]:
        del looks[id(seen)]
    assert [len(track.faces) for track in find_tracks(faces_by_frame, scenes=scenes, looks=looks)] == [12]


def test_a_frame_without_a_scene_belongs_to_the_one_before():
    faces_by_frame, scenes, _, _ = clip((4, ("a", 200, 80)), (4, ("a", 200, 80)))
    sparse = {0: 0, 32: 1}
    assert [track.frames for track in find_tracks(faces_by_frame, scenes=sparse)] == [
        track.frames for track in find_tracks(faces_by_frame, scenes=scenes)
    ]


def test_switches_are_found_over_the_borders_of_the_blocks():
    for place in (3, 61, 63, 64, 65, 66, 67, 68, 127, 128, 197):
        row = np.stack([look("a" if i < place else "b", i) for i in range(200)])
        assert switches_in(row) == [place]
    assert switches_in(np.zeros((0, LOOK_SIZE), np.float32)) == []


def test_notes_count():
    tracks = [Track({0: face(0, 0, 10)}, switches=2), Track({0: face(50, 50, 10)}, switches=1)]
    assert changes_noted(tracks, {0: 0, 8: 1, 16: 2}) == "2 cuts, 3 identity switches"
    assert changes_noted([], {}) == "" == changes_noted([], {0: 0})


faces = st.builds(
    face,
    st.integers(0, 600),
    st.integers(0, 400),
    st.integers(20, 200),
    st.floats(0.5, 1.0),
)
scenes = st.dictionaries(st.integers(0, 500), st.lists(faces, max_size=4), max_size=14)


@settings(max_examples=150, deadline=None)
@given(scene=scenes)
def test_every_face_is_in_exactly_one_track(scene):
    tracks = find_tracks(scene)
    given_faces = sorted(id(seen) for seen_faces in scene.values() for seen in seen_faces)
    assert sorted(id(seen) for track in tracks for seen in track.faces.values()) == given_faces
    for track in tracks:
        for frame, seen in track.faces.items():
            assert any(seen is other for other in scene[frame])


@settings(max_examples=100, deadline=None)
@given(scene=scenes, cuts=st.lists(st.integers(0, 500), max_size=3), people=st.integers(1, 3))
def test_scenes_and_looks_lose_no_face_and_show_nobody_twice(scene, cuts, people):
    numbers = {frame: sum(frame >= cut for cut in cuts) for frame in scene}
    looks = {
        id(seen): look("abc"[round(float(seen.box_xyxy[0])) % people], frame)
        for frame, seen_faces in scene.items()
        for seen in seen_faces
    }
    tracks = find_tracks(scene, scenes=numbers, looks=looks)
    found = sorted(id(seen) for track in tracks for seen in track.faces.values())
    assert found == sorted(id(seen) for seen_faces in scene.values() for seen in seen_faces)
    for track in tracks:
        assert list(track.faces) == sorted(track.faces)
    again = find_tracks({f: scene[f][::-1] for f in reversed(scene)}, scenes=numbers, looks=looks)
    assert [track.frames for track in again] == [track.frames for track in tracks]


@settings(max_examples=150, deadline=None)
@given(scene=scenes, shuffler=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(scene, shuffler):
    items = [(frame, shuffler.sample(seen, len(seen))) for frame, seen in scene.items()]
    shuffler.shuffle(items)
    before, after = find_tracks(scene), find_tracks(dict(items))

    def plain(tracks):
        return [[(f, t.faces[f].box_xyxy.tolist(), t.faces[f].score) for f in t.frames] for t in tracks]

    assert plain(before) == plain(after)


@settings(max_examples=100, deadline=None)
@given(scene=scenes)
def test_tracks_are_ranked_and_links_are_plausible(scene):
    tracks = find_tracks(scene)
    merits = [len(track.faces) * track.median_side_px for track in tracks]
    assert merits == sorted(merits, reverse=True)
    assert (largest_track(scene) is None) == (not tracks)
    for track in tracks:
        for before, after in zip(track.frames, track.frames[1:], strict=False):
            ratio = track.faces[after].side_px / track.faces[before].side_px
            assert 0.5 - 1e-6 <= ratio <= 2 + 1e-6


@settings(max_examples=60, deadline=None)
@given(scene=scenes, dx=st.integers(-64, 64), dy=st.integers(-64, 64), later=st.integers(0, 1000))
def test_shifting_the_scene_in_place_and_time_changes_nothing(scene, dx, dy, later):
    moved = {
        frame + later: [
            Face(f.box_xyxy + np.array([dx, dy, dx, dy]), f.landmarks_xy + np.array([dx, dy]), f.score) for f in seen
        ]
        for frame, seen in scene.items()
    }
    original, shifted = find_tracks(scene), find_tracks(moved)
    assert [[f + later for f in track.frames] for track in original] == [list(track.frames) for track in shifted]
