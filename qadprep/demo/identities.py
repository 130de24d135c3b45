"""People who do not exist: one public-domain portrait, reshaped and recoloured by a few numbers per identity."""

import functools
from dataclasses import dataclass

import numpy as np

# skimage.data.astronaut(): NASA's portrait of Eileen Collins, public domain, 512x512 RGB, bundled with scikit-image.
PHOTO_SIZE_PX = 512
# Eyes, nose tip and mouth corners in that photo (x, y), placed by hand on a 2.5x enlargement; MTCNN's points
# lie within 4 px of them. Image-left comes first.
PHOTO_LANDMARKS_XY = np.array([(202.0, 101.3), (246.7, 103.2), (224.0, 127.0), (204.5, 140.5), (244.0, 142.0)])
# Outline of the person, from GrabCut once, then simplified; the last points reach below every frame.
_PERSON_XY = (
    "259,22 255,22 248,18 238,18 237,16 227,16 214,21 205,21 193,29 189,35 174,43 156,58 153,68 155,98 157,104 "
    "167,115 170,116 170,121 174,128 180,132 182,147 184,149 153,151 140,158 123,178 120,189 122,201 113,202 "
    "113,205 110,206 90,227 76,235 65,246 44,282 40,294 39,306 34,315 20,400 20,511 400,511 370,360 360,328 357,323 "
    "356,302 352,287 347,282 345,272 340,262 319,243 303,233 299,219 292,207 284,197 262,179 255,174 257,163 "
    "262,145 266,137 275,134 294,111 300,92 299,72 296,66 296,58 286,40 276,31"
)
# Skin of face and neck, below the fringe; everything of the person above the collar and outside it is hair.
_SKIN_XY = (
    "190,78 206,82 224,84 242,86 258,88 266,98 269,112 276,122 272,132 265,136 261,150 254,172 255,184 222,192 "
    "186,182 184,150 180,131 173,126 173,117 180,112 183,96 186,84"
)
_COLLAR_Y = 150


@dataclass(frozen=True)
class Identity:
    """One synthetic person: shape, colours and backdrop. Lengths are px of the photo unless said otherwise."""

    seed: int
    mirrored: bool
    face_width: float
    """Growth of the face sideways, as a share (0.1 = about 10 % wider)."""
    jaw_width: float
    jaw_length: float
    eye_distance: float
    """How much further each eye sits from the nose."""
    eye_size: float
    nose_size: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    """How much lower the mouth sits."""
    lips: float
    brows: float
    """How much higher the brows sit."""
    hair: tuple[float, float]
    """Growth of the hair sideways and upwards, as shares."""
    skin_lab: tuple[float, float, float]
    """Factor on the skin's lightness, then offsets on a* and b*."""
    hair_lab: tuple[float, float, float]
    """Factor on the hair's lightness, then factors on its a* and b*."""
    suit_turn_deg: float
    """Turn of the suit's hue in the a*b* plane."""
    scale: float
    """Size of the head relative to the common size."""


def make_identity(number: int, seed: int) -> Identity:
    """Draw identity `number` of the cast belonging to `seed`; the same numbers give the same person for ever."""
    rng = np.random.default_rng([seed, number, 11])

    def spread(low: float, high: float) -> float:
        """Uniform without its middle third: people who are all nearly average would look alike."""
        share = rng.uniform(0, 1 / 3) + (2 / 3 if rng.random() < 0.5 else 0)
        return float(low + (high - low) * share)

    return Identity(
        seed=int(rng.integers(2**31)),
        mirrored=bool(number % 2),
        face_width=spread(-0.14, 0.20),
        jaw_width=spread(-0.22, 0.28),
        jaw_length=spread(-0.14, 0.18),
        eye_distance=spread(-3.0, 3.5),
        eye_size=spread(-0.16, 0.30),
        nose_size=spread(-0.22, 0.35),
        nose_length=spread(-2.5, 3.5),
        mouth_width=spread(-0.22, 0.25),
        mouth_height=spread(-2.5, 3.5),
        lips=spread(-0.20, 0.40),
        brows=spread(-3.0, 2.5),
        hair=(spread(-0.14, 0.16), spread(-0.16, 0.18)),
        skin_lab=(spread(0.72, 1.06), float(rng.uniform(-1, 5)), float(rng.uniform(-5, 5))),
        hair_lab=(spread(0.40, 1.25), float(rng.uniform(0.3, 2.2)), float(rng.uniform(0.1, 1.3))),
        suit_turn_deg=float(rng.uniform(0, 360)),
        scale=float(rng.uniform(0.95, 1.06)),
    )


@functools.cache
def _photo_layers() -> tuple[np.ndarray, ...]:
    """The photo in Lab, and its soft masks: person, skin, hair; float32, masks 0..1."""
    import cv2
    from skimage.data import astronaut

    lab = cv2.cvtColor(astronaut().astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    # Eroded by a pixel, or the photo's bright studio wall shows as a rim around dark hair.
    person = cv2.erode(_filled(_PERSON_XY), np.ones((3, 3), np.uint8))
    skin = cv2.min(_filled(_SKIN_XY), person)
    above = person.copy()
    above[_COLLAR_Y:] = 0
    hair = cv2.subtract(above, skin)
    return lab, *(cv2.GaussianBlur(mask, (0, 0), 1.2).astype(np.float32) / 255 for mask in (person, skin, hair))


def _filled(points: str) -> np.ndarray:
    import cv2

    outline = np.array([[int(n) for n in pair.split(",")] for pair in points.split()], np.int32)
    return cv2.fillPoly(np.zeros((PHOTO_SIZE_PX, PHOTO_SIZE_PX), np.uint8), [outline], 255)


def recolour(identity: Identity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The portrait in this person's colours, not yet reshaped.

    Returns:
        RGB float32 (512, 512, 3) in 0..255; opacity of the person float32 (512, 512) in 0..1; the five landmarks
        float64 (5, 2), image-left first. A mirrored identity has all three mirrored.
    """
    import cv2

    lab, person, skin, hair = _photo_layers()
    suit = np.clip(person - skin - hair, 0, 1)
    angle = np.deg2rad(identity.suit_turn_deg)
    a, b = lab[..., 1], lab[..., 2]
    turned = np.dstack([lab[..., 0], a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)])
    tinted = lab * np.float32([identity.skin_lab[0], 1, 1]) + np.float32([0, *identity.skin_lab[1:]])
    dyed = lab * np.float32(identity.hair_lab)
    total = (skin + hair + suit)[..., None]
    mixed = (
        tinted * skin[..., None] + dyed * hair[..., None] + turned * suit[..., None] + lab * (1 - np.clip(total, 0, 1))
    )
    mixed[..., 0] = np.clip(mixed[..., 0], 0, 100)
    rgb = np.clip(cv2.cvtColor(mixed.astype(np.float32), cv2.COLOR_Lab2RGB), 0, 1) * 255
    rgb = _crisp(rgb, skin, np.random.default_rng([identity.seed, 4]))
    points = PHOTO_LANDMARKS_XY.copy()
    if identity.mirrored:
        rgb, person = np.ascontiguousarray(rgb[:, ::-1]), np.ascontiguousarray(person[:, ::-1])
        points[:, 0] = PHOTO_SIZE_PX - 1 - points[:, 0]
        points = points[[1, 0, 2, 4, 3]]
    return rgb, person, points


def _crisp(rgb: np.ndarray, skin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sharpen a small old photo and give its skin pores: detail that belongs to the face and moves with it."""
    import cv2

    sharp = rgb + 0.5 * (rgb - cv2.GaussianBlur(rgb, (0, 0), 1.2))
    pores = cv2.GaussianBlur(rng.standard_normal(skin.shape, np.float32), (0, 0), 0.7)
    return np.clip(sharp + (skin * pores * 9)[..., None], 0, 255).astype(np.float32)


def backdrop(identity: Identity, width: int, height: int) -> np.ndarray:
    """A room out of focus: soft colour clouds and a few upright panels; RGB float32 (height, width, 3) in 0..255."""
    import cv2

    rng = np.random.default_rng([identity.seed, 1])
    base = rng.uniform(70, 190) + rng.uniform(-22, 22, 3)
    spots = rng.normal(0, 20, (4, 6, 1)) + rng.normal(0, 8, (4, 6, 3))
    clouds = cv2.resize(spots.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    picture = (base + clouds).astype(np.float32)
    for _ in range(int(rng.integers(4, 8))):
        left, top = rng.uniform(-0.1, 0.95) * width, rng.uniform(-0.1, 0.7) * height
        right, bottom = left + rng.uniform(0.06, 0.3) * width, top + rng.uniform(0.15, 0.8) * height
        panel = np.clip(base + rng.normal(0, 40) + rng.normal(0, 18, 3), 15, 240)
        cv2.rectangle(picture, (int(left), int(top)), (int(right), int(bottom)), panel.tolist(), -1)
    picture = cv2.GaussianBlur(picture, (0, 0), width / 130)
    # Fine grain that moves with the wall: a wall without any texture would hide a shift by one frame.
    grain = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 1.5)
    return np.clip(picture + (grain * 14)[..., None], 0, 255)
