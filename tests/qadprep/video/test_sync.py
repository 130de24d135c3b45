import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.shifting import CRFS, FRAMES, HEIGHT, WIDTH, luma_of, talking_head, thumbs, write_and_read
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.video.instants import MAX_INSTANTS, OFFSETS
from qadprep.video.place import EQUAL, Place, find_place, place_thumbnail
from qadprep.video.sync import REFERENCE, Sync, prove, temporal_shift, trusted

INSTANTS = list(range(4, FRAMES - 4, 2))
QUALITIES = list(itertools.product(CRFS, CRFS))


@pytest.fixture(scope="module")
def lumas(portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    return write_and_read(talking_head(portrait), tmp_path_factory.mktemp("sync"))


@pytest.fixture(scope="module")
def clips(lumas: dict[int, np.ndarray]) -> dict[int, dict[int, np.ndarray]]:
    """CRF -> frame -> thumbnail."""
    return {crf: thumbs(luma) for crf, luma in lumas.items()}


def _shows(table: dict[int, np.ndarray], order: list[int], instants: list[int] = INSTANTS) -> dict[int, np.ndarray]:
    """Thumbnails of a file whose frame i is the frame order[i] of the clip."""
    return {i: table[order[i]] for i in instants if i < len(order)}


@pytest.mark.parametrize(("of", "crf"), QUALITIES)
@pytest.mark.parametrize("offset", range(-3, 4))
def test_a_constant_offset_is_found(clips, of: int, crf: int, offset: int) -> None:
    sync = temporal_shift(clips[of], {i: clips[crf][i + offset] for i in INSTANTS})
    assert (sync.offset_frames, sync.verdict) == (offset, "shifted" if offset else "proved")
    assert sync.instants == len(INSTANTS) and sync.agreeing >= 0.8 * len(INSTANTS)
    assert sync.margin > (0.6 if of == crf else 0.3)
    assert trusted(sync, same_size=True, same_count=False) == (offset == 0)
    assert not trusted(sync, same_size=False, same_count=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    data=st.data(), qualities=st.sampled_from(QUALITIES), at=st.integers(14, FRAMES - 14),
    change=st.sampled_from([1, -1]), step=st.integers(1, 4),
)  # fmt: skip
def test_a_dropped_or_doubled_frame_is_never_proved(clips, data, qualities, at, change, step) -> None:
    order = list(range(FRAMES))
    order = order[:at] + order[at + 1 :] if change == 1 else order[:at] + order[at - 1 :]
    instants = list(range(data.draw(st.integers(3, 6)), FRAMES - 5, step))
    sync = temporal_shift(clips[qualities[0]], _shows(clips[qualities[1]], order, instants))
    assert sync.verdict in ("refused", "static"), sync
    assert f"{change:+d}" in sync.detail and "changes" in sync.detail
    assert sync.verdict == "refused" or len(instants) < 40


@pytest.mark.parametrize(("of", "crf"), QUALITIES)
@pytest.mark.parametrize("at", [20, 48, 76])
@pytest.mark.parametrize("change", [1, -1])
def test_the_change_is_named(clips, of: int, crf: int, at: int, change: int) -> None:
    order = [*range(at), *range(at + change, FRAMES)]
    sync = temporal_shift(clips[of], _shows(clips[crf], order))
    assert sync.verdict == "refused"
    names = ("0", f"{change:+d}")
    assert sync.detail.startswith(f"offset changes from {names[0]} to {names[1]} near frame ")
    assert abs(int(sync.detail.split()[-1]) - at) <= 6
    assert not trusted(sync, same_size=True, same_count=True)


def test_a_drop_and_its_making_up_are_seen(clips) -> None:
    """The counts agree again, and most instants do."""
    order = [*range(30), *range(31, 56), 55, *range(56, FRAMES)]
    assert len(order) == FRAMES
    for of, crf in QUALITIES:
        sync = temporal_shift(clips[of], _shows(clips[crf], order))
        assert sync.verdict == "refused" and "from 0 to +1" in sync.detail


def test_reversed_and_other_takes_are_refused(clips) -> None:
    for of, crf in QUALITIES:
        backwards = temporal_shift(clips[of], {i: clips[crf][FRAMES - 1 - i] for i in INSTANTS})
        assert backwards.verdict == "refused", backwards
        later = temporal_shift(clips[of], {i: clips[crf][i + 40] for i in INSTANTS if i + 40 < FRAMES})
        assert later.verdict == "refused", later


def test_a_still_scene_is_never_proved() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (90, 160), np.uint8)
    sync = temporal_shift(dict.fromkeys(range(30), picture), dict.fromkeys(range(4, 26), picture))
    assert (sync.verdict, sync.residual, sync.offset_frames) == ("static", 0.0, 0)
    assert trusted(sync, same_size=True, same_count=True)
    assert not trusted(sync, same_size=True, same_count=False)
    noise = np.random.default_rng(1).normal(0, 0.6, (40, 90, 160))
    grainy = {i: np.clip(picture * 0.5 + 60 + grain, 0, 255).astype(np.uint8) for i, grain in enumerate(noise)}
    denoised = dict.fromkeys(range(4, 36), np.clip(picture * 0.5 + 60, 0, 255).astype(np.uint8))
    assert temporal_shift(grainy, denoised).verdict == "static"


def test_flat_pictures_are_static() -> None:
    flat = np.full((90, 160), 80, np.uint8)
    assert temporal_shift(dict.fromkeys(range(30), flat), dict.fromkeys(range(4, 26), flat)).verdict == "static"
    white = np.full((90, 160), 230, np.uint8)
    assert temporal_shift(dict.fromkeys(range(30), flat), dict.fromkeys(range(4, 26), white)).verdict == "refused"


def test_still_stretches_do_not_vote(clips) -> None:
    """The reference rests for its middle third while the file goes on showing a coder's leftovers there."""
    reference = dict(clips[0])
    for i in range(32, 65):
        reference[i] = clips[0][32]
    rng = np.random.default_rng(3)
    other = {i: clips[40][i] for i in INSTANTS if not 32 <= i <= 64}
    for i in INSTANTS:
        if 32 <= i <= 64:
            other[i] = np.clip(clips[40][32] + rng.normal(0, 1.5, (90, 160)), 0, 255).astype(np.uint8)
    sync = temporal_shift(reference, other)
    assert (sync.verdict, sync.offset_frames) == ("proved", 0)


def test_a_cut_changes_nothing(clips) -> None:
    def cut(table: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        return {i: picture if i < 50 else np.ascontiguousarray(picture[::-1]) for i, picture in table.items()}

    reference, other = cut(clips[0]), cut(clips[40])
    assert temporal_shift(reference, _shows(other, list(range(FRAMES)))).verdict == "proved"
    for offset in (-2, 1):
        sync = temporal_shift(reference, {i: other[i + offset] for i in INSTANTS})
        assert (sync.verdict, sync.offset_frames) == ("shifted", offset)
    assert temporal_shift(reference, _shows(other, [*range(70), *range(71, FRAMES)])).verdict == "refused"


def test_brightness_and_flicker_decide_nothing(clips) -> None:
    rng = np.random.default_rng(4)
    for offset in (0, 2):
        other = {i: cv2.add(clips[23][i + offset], float(6 + rng.integers(-5, 6))) for i in INSTANTS}
        sync = temporal_shift(clips[0], other)
        assert (sync.verdict, sync.offset_frames) == ("shifted" if offset else "proved", offset)
        assert 3 < sync.residual < 12


def _fake(table: dict[int, np.ndarray], amount: float) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """A camera that moves over the clip's pictures, with a face of its own motion put in; thumbnails and keep masks."""
    rng = np.random.default_rng(9)
    patch = cv2.resize(rng.integers(0, 255, (10, 10), np.uint8), (60, 60), interpolation=cv2.INTER_CUBIC)
    keep = np.ones((90, 160), bool)
    keep[20:70, 50:110] = False
    fake = {}
    for i, picture in table.items():
        fake[i] = picture.copy()
        x, y = (round(amount * f(0.9 * i + p)) for f, p in ((np.sin, 0), (np.cos, 1)))
        fake[i][20:70, 50:110] = patch[5 + y : 55 + y, :][:, (np.arange(60) - x) % 60]
    return fake, dict.fromkeys(table, keep)


def test_a_face_that_moves_otherwise_is_left_out(clips) -> None:
    shaken = {
        crf: {i: np.roll(picture, round(6 * np.sin(i / 4)), axis=1) for i, picture in table.items()}
        for crf, table in clips.items()
    }
    fake, keep = _fake(shaken[40], 4)
    for offset in (0, -1, 3):
        sync = temporal_shift(shaken[0], {i: fake[i + offset] for i in INSTANTS}, keep=keep)
        assert (sync.verdict, sync.offset_frames) == ("shifted" if offset else "proved", offset)
        assert sync.region == "outside_faces"
        assert sync.residual < 8
    dropped = temporal_shift(shaken[0], _shows(fake, [*range(50), *range(51, FRAMES)]), keep=keep)
    assert dropped.verdict == "refused" and "from 0 to +1" in dropped.detail


def test_where_only_faces_move_the_whole_picture_is_asked(clips) -> None:
    keep = np.zeros((90, 160), bool)
    keep[:12] = True  # a strip of background that never moves
    masks = dict.fromkeys(range(FRAMES), keep)
    sync = temporal_shift(clips[0], _shows(clips[40], list(range(FRAMES))), keep=masks)
    assert (sync.verdict, sync.region) == ("proved", "whole")
    # And a face that moves in its own way before it: nothing is proved, and nothing held against the file.
    still = dict.fromkeys(range(FRAMES), clips[0][0])
    fake, masks = _fake(still, 4)
    sync = temporal_shift(still, {i: fake[i] for i in INSTANTS}, keep=masks)
    assert sync.verdict == "static"


def test_pixels_beyond_the_picture_do_not_count(clips) -> None:
    valid = np.ones((90, 160), bool)
    valid[:, :30] = False
    other = {}
    for i in INSTANTS:
        other[i] = clips[40][i].copy()
        other[i][:, :30] = 0
    assert temporal_shift(clips[0], other).verdict == "refused"
    sync = temporal_shift(clips[0], other, valid=valid)
    assert (sync.verdict, sync.region) == ("proved", "whole") and sync.residual < 8


def test_without_common_frames_or_neighbours() -> None:
    assert temporal_shift({}, {}) == Sync("refused", 0, 0.0, 255.0, 0, 0)
    picture = np.zeros((90, 160), np.uint8)
    assert temporal_shift({0: picture}, {1: picture}).instants == 0
    assert temporal_shift({0: picture}, {0: picture}).verdict == "static"
    assert temporal_shift({0: picture}, {0: picture + 200}).verdict == "refused"


def test_many_instants_are_thinned_out(clips) -> None:
    sync = temporal_shift(clips[0], clips[40])
    assert (sync.instants, sync.verdict) == (MAX_INSTANTS, "proved")
    assert sorted(OFFSETS) == list(range(-3, 4))


def test_sizes_must_agree(clips) -> None:
    with pytest.raises(ValueError, match="one size"):
        temporal_shift(clips[0], {5: clips[0][5][:40]})
    with pytest.raises(ValueError, match="one size"):
        temporal_shift(clips[0], clips[0], valid=np.ones((4, 4), bool))


# Time and space together


def _prove(lumas, make, *, of=0, crf=40, offset=0, apply=(0, None), count=True) -> Sync:
    """What a caller does: file frame i shows make(clip's frame i + offset); `apply`: (k, place) from a first proof."""
    applied, known = apply
    frame = {j: np.ascontiguousarray(make(lumas[crf][j - applied + offset])) for j in INSTANTS}
    place = find_place([(lumas[of][j], frame[j], None) for j in INSTANTS[4::14]])
    valid, shown = None, {}
    for j, luma in frame.items():
        at = place if known else EQUAL
        if at.relation in ("equal", "unknown"):
            shown[j] = cv2.resize(luma, (160, 90), interpolation=cv2.INTER_AREA)
        else:
            shown[j], valid = place_thumbnail(luma, at, (WIDTH, HEIGHT))
    return prove(
        thumbs(lumas[of]), shown, valid=valid, place=place, placed=known is not None, applied_frames=applied,
        counts_agree=count,
    )  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    offset=st.integers(-1, 1), left=st.integers(0, 24), right=st.integers(0, 24), bottom=st.integers(0, 12),
    qualities=st.sampled_from(QUALITIES),
)  # fmt: skip
def test_a_shifted_or_cropped_file_is_proved_only_once_that_is_applied(
    lumas, offset, left, right, bottom, qualities
) -> None:
    def make(luma: np.ndarray) -> np.ndarray:
        return luma[: HEIGHT - bottom, left : WIDTH - right]

    options = {"of": qualities[0], "crf": qualities[1], "offset": offset}
    sync = _prove(lumas, make, **options)
    cropped = bool(left or right or bottom)
    if not cropped:
        assert (sync.verdict, sync.offset_frames) == ("shifted" if offset else "proved", offset)
        return
    assert sync.verdict != "proved"
    assert (sync.place.left_px, sync.place.top_px) == (left, 0)
    assert sync.place.relation in ("centre_crop", "left_aligned", "crop")
    placed = _prove(lumas, make, **options, apply=(0, sync.place))
    assert (placed.verdict, placed.offset_frames) == ("shifted" if offset else "proved", offset)
    if offset:
        again = _prove(lumas, make, **options, apply=(offset, placed.place))
        assert (again.verdict, again.offset_frames) == ("proved", offset)
        assert (again.place.left_px, again.place.top_px) == (left, 0)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.5])
def test_a_resized_file(lumas, factor: float) -> None:
    def make(luma: np.ndarray) -> np.ndarray:
        size = round(WIDTH * factor), round(HEIGHT * factor)
        return cv2.resize(luma, size, interpolation=cv2.INTER_AREA)

    sync = _prove(lumas, make)
    assert (sync.verdict, sync.offset_frames, sync.place.relation) == ("shifted", 0, "resized")
    assert "resized" in sync.detail
    assert _prove(lumas, make, apply=(0, sync.place)).verdict == "proved"


def test_an_unknown_place_is_refused(lumas) -> None:
    sync = _prove(lumas, lambda luma: cv2.resize(luma[5:-5, 9:-9], (WIDTH, HEIGHT)))
    assert sync.verdict == "refused" and sync.place.relation == "unknown"


def test_the_verdicts_put_together(clips) -> None:
    same = _shows(clips[40], list(range(FRAMES)))
    later = {i: clips[40][i + 2] for i in INSTANTS}
    moved, unknown = Place("shifted", 4, 0), Place("unknown")
    assert prove(clips[0], same).verdict == "proved"
    assert prove(clips[0], same, place=moved).detail == "shifted at +4, +0 px"
    assert prove(clips[0], same, place=moved).verdict == "shifted"
    assert prove(clips[0], same, place=moved, placed=True).verdict == "proved"
    assert prove(clips[0], same, place=unknown).verdict == "refused"
    assert prove(clips[0], same, place=unknown, placed=True).verdict == "refused"
    assert (prove(clips[0], later, place=unknown).verdict, prove(clips[0], later).offset_frames) == ("shifted", 2)
    assert prove(clips[0], later, applied_frames=-1).offset_frames == 1
    still = dict.fromkeys(range(FRAMES), clips[0][0])
    assert prove(still, still).detail == ""
    assert "frame counts differ" in prove(still, still, counts_agree=False).detail
    assert prove(still, still, place=moved).verdict == "shifted"


def test_the_evidence_is_flat_and_plain() -> None:
    sync = replace(REFERENCE, verdict="shifted", place=Place("resized", 0.0, 1.0, 1.5, 1.25, 2.5, 0.4))
    assert json.loads(json.dumps(sync.as_dict())) == {
        "verdict": "shifted", "offset_frames": 0, "margin": 1.0, "residual": 0.0, "instants": 0, "agreeing": 0,
        "detail": "", "region": "whole", "relation": "resized", "left_px": 0.0, "top_px": 1.0, "scale_x": 1.5,
        "scale_y": 1.25, "place_residual": 2.5, "place_margin": 0.4,
    }  # fmt: skip
    assert trusted(REFERENCE, same_size=True, same_count=False)


def test_real_clips(real_clips: list[Path], tmp_path: Path) -> None:
    """Where clips are at hand: a true pair is never refused or called shifted, a shifted or cut one never proved."""
    from qadprep.video.encode import write_compressed

    names = ("liveportrait_d18", "dpe_s", "retalking_5", "latentsync_demo1", "liveportrait_s20", "facenet_video")
    for clip in [path for path in real_clips if path.stem in names]:
        truth = luma_of(clip, most=110, longest=320)
        write_compressed([np.dstack([luma] * 3) for luma in truth], tmp_path / "c40.mp4", 25, 40)
        files = thumbs(truth), thumbs(luma_of(tmp_path / "c40.mp4"))
        count = len(truth)
        instants = list(range(4, count - 4, 2))
        for reference, other in (files, files[::-1]):
            order = list(range(count))
            true = temporal_shift(reference, _shows(other, order, instants))
            assert true.verdict in ("proved", "static") and true.offset_frames == 0, (clip.stem, true)
            for offset in (-3, -1, 2):
                sync = temporal_shift(reference, {i: other[i + offset] for i in instants})
                assert sync.verdict in ("shifted", "static"), (clip.stem, sync)
                assert sync.offset_frames == offset or sync.verdict == "static"
            half = count // 2
            assert (
                temporal_shift(reference, _shows(other, order[:half] + order[half + 1 :], instants)).verdict != "proved"
            )
            assert temporal_shift(reference, _shows(other, order[::-1], instants)).verdict == "refused"
