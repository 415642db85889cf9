"""The look of one generated page: font, size, ink, line pitch. One for each page."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ernie_calibration.pictures.page import FONT_FILES, Color, Page, random_background, random_ink

LINE_PITCH = 28  # page units: one text line to a row of image tokens


@dataclass(frozen=True, slots=True)
class Style:
    """How text on a page looks. `size` is the font's height, `pitch` that of a line, in page units."""

    font: str
    bold: str
    size: float
    ink: Color
    pitch: float
    left: float


def count_lines(height: float) -> int:
    """Lines of text that a page of `height` has room for."""
    return round(height / LINE_PITCH)


def random_style(random: Random, height: int) -> Style:
    """A style whose lines fill `height` exactly, so that every line lies on one row of image tokens."""
    font = random.choice(FONT_FILES)
    bold = "DejaVuSans-Bold.ttf" if font == "DejaVuSans.ttf" and random.random() < 0.5 else font
    size = random.uniform(17.0, 21.0)
    pitch = height / count_lines(height)
    return Style(font, bold, size, random_ink(random), pitch, random.uniform(6.0, 14.0))


def new_page(random: Random, width: int, height: int, scale: float) -> Page:
    """An empty page with a random background."""
    return Page(width, height, scale, random_background(random))


def fit_size(page: Page, text: str, font: str, size: float, room: float) -> float:
    """The largest size up to `size` at which `text` is at most `room` wide (never under 12)."""
    while size > 12.0 and page.text_width(text, font, size) > room:
        size -= 0.5
    return size
