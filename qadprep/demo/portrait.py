"""Moving pictures of a synthetic person who sways, turns, speaks and blinks; the landmarks go through every warp."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qadprep.demo.identities import Identity, backdrop, recolour

# Head sway and camera shake as shares of the frame's height.
_SWAY, _SHAKE = 0.040, 0.012
_NOISE_SIGMA = 0.8
_BORDER_PX = 24


@dataclass(frozen=True)
class Bumps:
    """Local affine displacements with Gaussian weights, px of the photo: D(p) = sum w_k(p) (M_k (p - c_k) + t_k)."""

    centre_xy: np.ndarray  # (K, 2)
    sigma_xy: np.ndarray  # (K, 2)
    scale_xy: np.ndarray  # (K, 2), the diagonal of M_k
    shift_xy: np.ndarray  # (K, 2)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved_x, moved_y = np.zeros_like(x), np.zeros_like(y)
        for (cx, cy), (sx, sy), (mx, my), (tx, ty) in zip(
            self.centre_xy, self.sigma_xy, self.scale_xy, self.shift_xy, strict=True
        ):
            dx, dy = x - cx, y - cy
            weight = np.exp(-0.5 * ((dx / sx) ** 2 + (dy / sy) ** 2))
            moved_x += weight * (mx * dx + tx)
            moved_y += weight * (my * dy + ty)
        return moved_x, moved_y


def _bumps(*rows: tuple) -> Bumps:
    """Rows of (centre, sigma, scale, shift), each a pair."""
    centre, sigma, scale, shift = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return Bumps(centre, sigma, scale, shift)


class Portrait:
    """A synthetic person in front of a wall.

    Args:
        identity: who.
        size_px: (width, height) of the frames, both even.

    `frame(i)` is a pure function of identity, size and i: frames can be made in any order, by any process.
    """

    def __init__(self, identity: Identity, size_px: tuple[int, int]) -> None:
        self.identity, self.size_px = identity, size_px
        rgb, opacity, self._points = recolour(identity)
        self._rgba = np.dstack([rgb, opacity * 255]).astype(np.float32)
        width, height = size_px
        self._wall = backdrop(identity, width + 2 * _BORDER_PX, height + 2 * _BORDER_PX)
        self._shape = self._static_shape()
        rng = np.random.default_rng([identity.seed, 2])
        self._phase = rng.uniform(0, 2 * np.pi, 8)
        # Frames per round: sway, shake, tilt, zoom, turn, nod, speech; different, so that they never rest together.
        self._period = rng.uniform(0.85, 1.15, 7) * (34, 19, 47, 61, 41, 53, 11)
        self._blink_every = int(rng.integers(22, 32))
        # The warp is smooth: worked out for every second pixel (at the middle of each 2x2 block) and interpolated.
        self._grid = np.meshgrid(
            np.arange(0.5, width, 2, dtype=np.float32), np.arange(0.5, height, 2, dtype=np.float32)
        )

    def frame(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame `index`: RGB uint8 (height, width, 3), and its landmarks float32 (5, 2) in px, image-left first."""
        import cv2

        width, height = self.size_px
        rng = np.random.default_rng([self.identity.seed, 3, index])
        to_photo, motion = self._pose(index), self._motion(index)
        map_x, map_y = (
            cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            for plane in self._lookup(*self._grid, to_photo, motion)
        )
        rgba = cv2.remap(self._rgba, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT)
        opacity = np.clip(rgba[..., 3:] / 255, 0, 1)
        shake = self._circle(1, index) * _SHAKE * height
        move = np.float32([[1, 0, shake[0] - _BORDER_PX], [0, 1, shake[1] - _BORDER_PX]])
        wall = cv2.warpAffine(self._wall, move, (width, height), flags=cv2.INTER_LINEAR)
        light = 1 + 0.025 * np.sin(2 * np.pi * index / self._period[3] + self._phase[7])
        grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(_NOISE_SIGMA)
        picture = (rgba[..., :3] * opacity + wall * (1 - opacity)) * light + grain
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8), self._landmarks(to_photo, motion)

    def landmarks(self, index: int) -> np.ndarray:
        """The five landmarks of frame `index` alone: float32 (5, 2), as `frame` gives them."""
        return self._landmarks(self._pose(index), self._motion(index))

    def clip(self, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames 0..frames-1 as `frame` gives them."""
        return (self.frame(index) for index in range(frames))

    def _circle(self, kind: int, index: int) -> np.ndarray:
        """A point going round the unit circle: unlike a swing it never stops, so neighbouring frames always differ."""
        angle = 2 * np.pi * index / self._period[kind] + self._phase[kind]
        return np.array([np.cos(angle), np.sin(angle)])

    def _pose(self, index: int) -> np.ndarray:
        """2x3, from frame px to photo px: sway, tilt and zoom of the whole head."""
        width, height = self.size_px
        sway = self._circle(0, index) * (_SWAY, _SWAY * 0.5) * height + self._circle(1, index) * _SHAKE * height
        tilt = np.deg2rad(4.5) * self._circle(2, index)[0]
        # At scale 1 the head with its hair is 160 px of the photo high: it gets 0.76 of the frame's height.
        zoom = 0.76 * height / 160 * self.identity.scale * (1 + 0.045 * self._circle(3, index)[0])
        cos, sin = np.cos(tilt) / zoom, np.sin(tilt) / zoom
        turn = np.array([[cos, sin], [-sin, cos]])
        centre_frame = np.array([width / 2, height * 0.47]) + sway
        centre_photo = np.array([self._points[2, 0], 100.0])
        return np.column_stack([turn, centre_photo - turn @ centre_frame])

    def _static_shape(self) -> Bumps:
        """Who the person is, as the lookup displacement (from the person's place to the photo's place)."""
        p, who = self._points, self.identity
        nose, mouth = p[2], p[3:].mean(axis=0)
        zero = (0.0, 0.0)
        face = (nose[0], nose[1] + 2)
        return _bumps(
            (face, (46, 58), (-who.face_width, 0), zero),
            ((nose[0], nose[1] + 36), (44, 24), (-who.jaw_width, -who.jaw_length), zero),
            (p[0], (17, 12), (-who.eye_size, -who.eye_size), (who.eye_distance, 0)),
            (p[1], (17, 12), (-who.eye_size, -who.eye_size), (-who.eye_distance, 0)),
            (p[0] - (1, 13), (20, 7), zero, (0, who.brows)),
            (p[1] - (-1, 13), (20, 7), zero, (0, who.brows)),
            (nose, (10, 12), (-who.nose_size, 0), (0, -who.nose_length)),
            (mouth, (25, 11), (-who.mouth_width, -who.lips), (0, -who.mouth_height)),
            ((nose[0], 55), (75, 42), (-who.hair[0], -who.hair[1]), zero),
        )

    def _motion(self, index: int) -> tuple[Bumps, float]:
        """What the face does in this frame: lookup displacement, and how far the mouth stands open in px."""
        p = self._points
        nose, mouth = p[2], p[3:].mean(axis=0)
        turn = 5.5 * self._circle(4, index)[0]
        nod = 3.0 * self._circle(5, index)[1]
        speech = 2 * np.pi * index / self._period[6] + self._phase[6]
        opening = 5.0 * max(0.0, np.sin(speech)) * (0.6 + 0.4 * np.sin(speech * 0.31 + self._phase[5]))
        smile = 1.8 * np.sin(speech * 0.43 + self._phase[4])
        since_blink = (index + int(self._phase[0] * 5)) % self._blink_every
        closed = (0.0, 0.9, 1.6, 0.9)[since_blink] if since_blink < 4 else 0.0
        zero = (0.0, 0.0)
        return _bumps(
            # The middle of a turning head moves further than its rim: depth without a model of it.
            (nose, (42, 60), zero, (-turn, -nod)),
            (p[0], (13, 6), (0, closed), zero),
            (p[1], (13, 6), (0, closed), zero),
            (p[3], (9, 9), zero, (smile, smile * 0.7)),
            (p[4], (9, 9), zero, (-smile, smile * 0.7)),
            (p[:2].mean(axis=0) - (0, 14), (34, 9), zero, (0, 1.6 * np.sin(speech * 0.37))),
            (mouth + np.array([0, 20]), (30, 16), zero, (0, -0.35 * opening)),
        ), float(opening)

    def _lookup(
        self, x: np.ndarray, y: np.ndarray, to_photo: np.ndarray, motion: tuple[Bumps, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where in the photo a frame position gets its colour: pose, then motion, then shape."""
        a = to_photo.astype(np.float32)
        u, v = a[0, 0] * x + a[0, 1] * y + a[0, 2], a[1, 0] * x + a[1, 1] * y + a[1, 2]
        bumps, opening = motion
        moved_u, moved_v = bumps(u, v)
        # The lower lip drops away from a line between the lips; above it nothing moves.
        mouth = self._points[3:].mean(axis=0)
        near = np.exp(-0.5 * (((u - mouth[0]) / 20) ** 2 + ((v - mouth[1]) / 20) ** 2))
        below = np.clip((v - mouth[1] + 1) / (opening + 2), 0, 1)
        u, v = u + moved_u, v + moved_v - opening * near * below
        moved_u, moved_v = self._shape(u, v)
        return (u + moved_u).astype(np.float32), (v + moved_v).astype(np.float32)

    def _landmarks(self, to_photo: np.ndarray, motion: tuple[Bumps, float]) -> np.ndarray:
        """Frame positions whose lookup hits the photo's landmarks, by fixed-point iteration in photo px."""
        turn, offset = to_photo[:, :2], to_photo[:, 2]
        inverse = np.linalg.inv(turn)
        guess = (self._points - offset) @ inverse.T
        for _ in range(40):
            missed = self._points - np.column_stack(self._lookup(guess[:, 0], guess[:, 1], to_photo, motion))
            guess = guess + 0.9 * missed @ inverse.T
            if np.abs(missed).max() < 0.02:
                break
        return guess.astype(np.float32)
