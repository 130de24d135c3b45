"""Frames that were altered and frames that were not, lossless and coded at crf 23, with the answer known."""

import av
import cv2
import numpy as np
import pytest
from skimage import data

from qadprep.faces.alignment import warp_face
from qadprep.unaltered import Alteration, alteration, is_unaltered, mask_is_empty
from qadprep.video.encode import write_compressed, write_raw

# The astronaut's face (box 181..267 x 61..172) at 1.3 times its longer side, in a frame of 256 x 256 that drifts.
SIDE = 1.3 * 111
FRAMES = 15
LEFT_ALONE = range(6, 9)


def frames_of_a_moving_camera():
    """(frame, affine to the crop): the camera drifts by whole pixels."""
    picture = data.astronaut()
    for i in range(FRAMES):
        left, top = 96 + 2 * i, 4 + i % 3
        scale = 128 / SIDE
        shift = 64 - scale * np.array([224 - left, 116 - top]) + (scale - 1) / 2
        yield picture[top : top + 256, left : left + 256], np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def around_the_mouth(affine):
    """Weights 0..1 (256, 256, 1) of a soft spot over the mouth, at (64, 88) of the crop."""
    x, y = (np.array([64, 88]) - affine[:, 2]) / affine[0, 0]
    ys, xs = np.mgrid[:256, :256]
    return np.exp(-((((xs - x) / 22) ** 2 + ((ys - y) / 14) ** 2) ** 2))[..., None]


def over_the_face(affine):
    x, y = (np.array([64, 64]) - affine[:, 2]) / affine[0, 0]
    ys, xs = np.mgrid[:256, :256]
    return np.exp(-((((xs - x) / 38) ** 2 + ((ys - y) / 46) ** 2) ** 3))[..., None]


def mixed(frame, other, weights):
    return np.clip(np.round(frame * (1 - weights) + other * weights), 0, 255).astype(np.uint8)


def other_face(frame):
    """Another head of like size in the same place: the cat's, as bright as it comes."""
    return cv2.resize(data.chelsea()[20:220, 130:330], (256, 256))


ALTERATIONS = {
    "blurred mouth": lambda f, a: mixed(f, cv2.GaussianBlur(f, (0, 0), 3), around_the_mouth(a)),
    "tinted mouth": lambda f, a: mixed(f, f + np.array([12.0, -6, -6]), around_the_mouth(a)),
    "moved mouth": lambda f, a: mixed(
        f, cv2.warpAffine(f, np.float32([[1, 0, 0], [0, 1, 2]]), (256, 256)), around_the_mouth(a)
    ),
    "other face at 0.2": lambda f, a: mixed(f, other_face(f), 0.2 * over_the_face(a)),
    "other face": lambda f, a: mixed(f, other_face(f), over_the_face(a)),
}


def crops_of(frames, path, crf=None, pix_fmt="yuv444p"):
    """Encode, decode, cut."""
    if crf is None:
        write_raw(frames, path, 25)
    else:
        write_compressed(frames, path, 25, crf, pix_fmt)
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    affines = [affine for _, affine in frames_of_a_moving_camera()]
    return [warp_face(frame, affine, 128) for frame, affine in zip(decoded, affines, strict=True)]


def altered_clip(name):
    return [
        frame if i in LEFT_ALONE else ALTERATIONS[name](frame, affine)
        for i, (frame, affine) in enumerate(frames_of_a_moving_camera())
    ]


def original_clip():
    return [np.ascontiguousarray(frame) for frame, _ in frames_of_a_moving_camera()]


@pytest.mark.parametrize("name", ALTERATIONS)
def test_lossless_tells_every_frame(name, tmp_path):
    originals = crops_of(original_clip(), tmp_path / "original.mp4")
    fakes = crops_of(altered_clip(name), tmp_path / "fake.mp4")
    said = [is_unaltered(alteration(f, o), lossless=True) for f, o in zip(fakes, originals, strict=True)]
    assert said == [i in LEFT_ALONE for i in range(FRAMES)]
    assert alteration(fakes[7], originals[7]) == Alteration(0, 0, 0, 0, 0)


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p"])
@pytest.mark.parametrize("name", ALTERATIONS)
def test_at_c23_altered_frames_are_told_among_the_noise_of_coding(name, pix_fmt, tmp_path):
    originals = crops_of(original_clip(), tmp_path / "original.mp4", 23, pix_fmt)
    fakes = crops_of(altered_clip(name), tmp_path / "fake.mp4", 23, pix_fmt)
    found = [alteration(f, o) for f, o in zip(fakes, originals, strict=True)]
    said = [is_unaltered(one, lossless=False) for one in found]
    # B-frames are predicted from the frames that were left alone: up to 3 away, an alteration may be coded away.
    assert not any(said[i] for i in (0, 1, 2, 12, 13, 14))
    # Frames that were left alone differ by coding. Beside slight alterations they are seen for what they are; beside
    # a whole other face the face is coded worse than the outside, and they count as altered.
    assert all(found[i].mean > 1 for i in LEFT_ALONE)
    if name.endswith("mouth"):
        assert all(said[i] for i in LEFT_ALONE)


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p"])
def test_a_clip_coded_once_more_is_unaltered(pix_fmt, tmp_path):
    write_compressed(original_clip(), tmp_path / "first.mp4", 25, 23, pix_fmt)
    with av.open(str(tmp_path / "first.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    originals = crops_of(original_clip(), tmp_path / "first.mp4", 23, pix_fmt)
    again = crops_of(decoded, tmp_path / "second.mp4", 23, pix_fmt)
    found = [alteration(f, o) for f, o in zip(again, originals, strict=True)]
    assert np.mean([one.mean for one in found]) > 0.5
    assert not any(is_unaltered(one, lossless=True) for one in found if one.mean > 0.5)
    assert np.mean([is_unaltered(one, lossless=False) for one in found]) >= 0.9


def test_a_face_blended_in_at_a_twentieth_is_altered_in_raw():
    for frame, affine in frames_of_a_moving_camera():
        fake = mixed(frame, other_face(frame), 0.05 * over_the_face(affine))
        found = alteration(warp_face(fake, affine, 128), warp_face(np.ascontiguousarray(frame), affine, 128))
        assert 0.5 < found.peak < 20
        assert not is_unaltered(found, lossless=True)


def crop(value=100):
    return np.full((128, 128, 3), value, np.uint8)


def test_the_numbers_of_a_known_difference():
    """Four of the 16 patches' rows in the middle differ by 8 in one channel; the corners by 2."""
    fake = crop()
    fake[56:72, 56:72, 1] += 8
    for rows in (np.s_[:10], np.s_[-10:]):
        for columns in (np.s_[:10], np.s_[-10:]):
            fake[rows, columns] -= 2
    found = alteration(fake, crop())
    radius = np.hypot(*np.meshgrid((np.arange(128) + 0.5) / 64 - 1, (np.arange(128) + 0.5) / 64 - 1))
    assert found.mean == pytest.approx(256 * 8 / (radius < 0.72).sum())
    assert (found.peak, found.patch, found.outside_patch) == (8, 8, 2)
    assert found.outside_mean == pytest.approx(400 * 2 / (radius > 1).sum())
    assert alteration(crop(), fake) == found


def test_rounding_is_no_alteration_and_a_few_bright_pixels_are_one():
    rng = np.random.default_rng(0)
    rounding = crop() + (rng.random((128, 128, 1)) < 0.4).astype(np.uint8)
    assert is_unaltered(alteration(rounding, crop()), lossless=True)
    spot = crop()
    spot[62:66, 62:66] += 5
    found = alteration(spot, crop())
    assert found.mean < 0.5 and not is_unaltered(found, lossless=True)


def test_what_was_not_filmed_does_not_count():
    """Half of the crop is black in both; the rim is left out; the mean is that of the other half."""
    fake, original = crop(104), crop()
    fake[:, :64] = original[:, :64] = 0
    found = alteration(fake, original)
    assert (found.mean, found.peak, found.outside_mean) == (4, 4, 4)
    fake[:, 64] = 255  # the darkened rim
    assert alteration(fake, original).peak == 4


def test_a_crop_of_nothing_is_not_unaltered():
    found = alteration(crop(0), crop(0))
    assert np.isnan(found.mean)
    assert not is_unaltered(found, lossless=True) and not is_unaltered(found, lossless=False)


def test_without_an_outside_a_lossy_frame_is_judged_as_lossless():
    nothing = float("nan")
    assert is_unaltered(Alteration(0.3, 1.0, 0.2, nothing, nothing), lossless=False)
    assert not is_unaltered(Alteration(1.5, 4.0, 0.2, nothing, nothing), lossless=False)
    assert is_unaltered(Alteration(1.5, 4.0, 1.0, 1.2, 1.0), lossless=False)


def test_masks():
    mask = crop(127)
    assert mask_is_empty(mask)
    mask[3, 4, 2] = 128
    assert not mask_is_empty(mask)


@pytest.mark.parametrize(
    ("fake", "original", "message"),
    [
        (crop().astype(float), crop(), "got float64"),
        (crop()[:, :64], crop(), r"got uint8 \(128, 64, 3\)"),
        (crop()[..., 0], crop(), r"got uint8 \(128, 128\)"),
        (crop()[:64, :64], crop(), "two crops of one size"),
    ],
)
def test_other_crops_are_refused(fake, original, message):
    with pytest.raises(ValueError, match=message):
        alteration(fake, original)


def test_what_was_altered_everywhere_is_altered():
    """The outside says how much coding does only where it was not altered itself."""
    found = Alteration(mean=24.0, peak=86.0, patch=30.0, outside_mean=23.0, outside_patch=28.0)
    assert not is_unaltered(found, lossless=False)
    assert is_unaltered(Alteration(1.2, 12.0, 5.0, 1.1, 6.3), lossless=False)
