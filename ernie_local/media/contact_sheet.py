"""Puts frames side by side on one sheet, each with a line of text below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ernie_local.media.draw_boxes import load_label_font

_MOST_COLUMNS, _FRAME_WIDTH = 4, 480
_MARGIN, _LINE_HEIGHT, _TEXT_SIZE = 12, 32, 22
MOST_SHEET_FRAMES = 60


@dataclass(frozen=True, slots=True)
class SheetFrame:
    """An RGB image, and what is written below it."""

    image: Image.Image
    label: str


def draw_contact_sheet(frames: Sequence[SheetFrame]) -> Image.Image:
    """The frames in rows from left to right, all of one width; at most the first MOST_SHEET_FRAMES."""
    shown = [_shrunk(frame.image) for frame in frames[:MOST_SHEET_FRAMES]]
    columns = min(_MOST_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    height = max(image.height for image in shown)
    step_x, step_y = _FRAME_WIDTH + _MARGIN, height + _LINE_HEIGHT + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), load_label_font(_TEXT_SIZE)
    for index, (image, frame) in enumerate(zip(shown, frames, strict=False)):
        left, top = _MARGIN + index % columns * step_x, _MARGIN + index // columns * step_y
        sheet.paste(image, (left, top))
        pen.text((left, top + image.height + 2), frame.label, font=font, fill="black")
    return sheet


def _shrunk(image: Image.Image) -> Image.Image:
    height = max(1, round(image.height * _FRAME_WIDTH / image.width))
    return image.resize((_FRAME_WIDTH, height), resample=Image.Resampling.BICUBIC)
