"""Pictures of heat maps: the qualities of a tuple side by side, a row for each run."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEAST_SIDE_PX = 128  # smaller crops are enlarged, each pixel as a square
GAP_PX, LINE_PX = 6, 16
SHEET_WIDTH_PX = 1800
_TITLE_LINES = 2
_INK, _CAPTION, _WRONG, _PAPER = (0, 0, 0), (70, 70, 70), (190, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """One run's answer to one picture."""

    heat: np.ndarray | None  # float32 (h, w), 0..1, of any size; None = no map
    text: str
    wrong: bool = False


def side_of(crop_px: int) -> int:
    """Side of a cell in px: that of the crop, or the least multiple of it from :data:`LEAST_SIDE_PX` on."""
    return crop_px * -(-LEAST_SIDE_PX // crop_px)


def cell_box(row: int, column: int, side_px: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom (exclusive) of a cell; row 0 holds the bare pictures."""
    left = GAP_PX + column * (side_px + GAP_PX)
    top = GAP_PX + (_TITLE_LINES + 1) * LINE_PX + row * (side_px + 2 * LINE_PX + GAP_PX) + LINE_PX
    return left, top, left + side_px, top + side_px


def enlarged(image: np.ndarray, side_px: int) -> np.ndarray:
    """uint8 (s, s, 3) -> (side_px, side_px, 3), whole pixels; side_px is a multiple of s."""
    zoom = side_px // len(image)
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture under its heat map: half of each, in the library's colours (blue 0, red 1).

    Args:
        image: uint8 (S, S, 3) RGB.
        heat: float32 (h, w), 0..1; brought to the picture's size, bilinear.

    Returns:
        uint8 (S, S, 3) RGB.
    """
    from pytorch_grad_cam.utils.image import show_cam_on_image

    mask = np.clip(cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), 0, 1)
    return show_cam_on_image(image.astype(np.float32) / 255, mask, use_rgb=True)


def panel(
    title: Sequence[str],
    images: Mapping[str, np.ndarray],
    rows: Mapping[str, Mapping[str, Cell]],
    footer: str = "",
) -> Image.Image:
    """One tuple: bare pictures on top, then a row a run.

    Args:
        title: at most two lines.
        images: quality -> uint8 (s, s, 3) RGB, in the order of the columns.
        rows: caption of the run -> quality -> cell.
        footer: a line below.

    Returns:
        An RGB picture; cells lie at :func:`cell_box`.
    """
    qualities = list(images)
    side = side_of(len(next(iter(images.values()))))
    font = ImageFont.load_default(size=12)
    words = [*title, *rows, footer]
    _, _, right, bottom = cell_box(len(rows), len(qualities) - 1, side)
    width = max([right, *(GAP_PX + math.ceil(font.getlength(word)) for word in words)]) + GAP_PX
    sheet = Image.new("RGB", (width, bottom + 2 * LINE_PX + GAP_PX), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(title[:_TITLE_LINES]):
        pen.text((GAP_PX, GAP_PX + number * LINE_PX), line, fill=_CAPTION if number else _INK, font=font)
    for row, (caption, cells) in enumerate({"": {}, **rows}.items()):
        pen.text((GAP_PX, cell_box(row, 0, side)[1] - LINE_PX), caption, fill=_INK, font=font)
        for column, quality in enumerate(qualities):
            left, top, _, low = cell_box(row, column, side)
            picture = enlarged(images[quality], side)
            cell = cells.get(quality)
            if row == 0:
                pen.text((left, top - LINE_PX), quality, fill=_INK, font=font)
            elif cell is not None:
                if cell.heat is not None:
                    picture = overlay(picture, cell.heat)
                pen.text((left, low + 1), cell.text, fill=_WRONG if cell.wrong else _CAPTION, font=font)
            sheet.paste(Image.fromarray(picture), (left, top))
    pen.text((GAP_PX, bottom + LINE_PX), footer, fill=_CAPTION, font=font)
    return sheet


def sheet_of(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels in rows, as many side by side as fit; one at least."""
    width, height = (max(sizes) + 2 * GAP_PX for sizes in zip(*(each.size for each in panels), strict=True))
    columns = min(len(panels), max(1, SHEET_WIDTH_PX // width))
    lines = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * width, lines * height), _PAPER)
    for number, each in enumerate(panels):
        sheet.paste(each, (number % columns * width, number // columns * height))
    return sheet


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
