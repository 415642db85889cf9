"""Draws text and shapes in page units at any scale, and records the place of every glyph.

A style is the look of one page: font, size, ink and line pitch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ernie_calibration.drawn_image import Glyph, Run

FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "built-in")
Color = tuple[int, int, int]


@lru_cache(maxsize=512)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's data folder, or Pillow's own scalable one, at `size` pixels."""
    if name == "built-in":
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / name), size)


class Canvas:
    """A white or tinted sheet of `width` x `height` page units, drawn `scale` times larger."""

    def __init__(self, width: int, height: int, scale: float, background: Color) -> None:
        self.width = width
        self.height = height
        self.scale = scale
        self.image = Image.new("RGB", (round(width * scale), round(height * scale)), background)
        self.draw = ImageDraw.Draw(self.image)

    def text_width(self, text: str, font_name: str, size: float) -> float:
        """Width of `text` in page units."""
        return load_font(font_name, round(size * self.scale)).getlength(text) / self.scale

    def text(
        self, x: float, y: float, text: str, font_name: str, size: float, color: Color, align: str = "left"
    ) -> Run:
        """Draw one line whose vertical middle is `y`; `x` is its left, middle or right end by `align`."""
        font = load_font(font_name, round(size * self.scale))
        width = font.getlength(text)
        left = x * self.scale - {"left": 0.0, "middle": width / 2, "right": width}[align]
        self.draw.text((left, y * self.scale), text, font=font, fill=color, anchor="lm")
        end = 0.0
        glyphs: list[Glyph | None] = []
        for index, character in enumerate(text):
            start, end = end, font.getlength(text[: index + 1])
            middle = (left + (start + end) / 2) / self.scale
            glyphs.append(None if character == " " else Glyph(character, middle, y))
        return Run(text, tuple(glyphs))

    def rectangle(
        self, box: tuple[float, float, float, float], fill: Color | None, outline: Color | None = None
    ) -> None:
        """A box given as left, top, right, bottom in page units."""
        self.draw.rectangle([value * self.scale for value in box], fill=fill, outline=outline)

    def line(self, points: list[tuple[float, float]], color: Color, width: float) -> None:
        """A polyline in page units."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, fill=color, width=max(1, round(width * self.scale)))

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        """A filled circle."""
        left, top = (x - radius) * self.scale, (y - radius) * self.scale
        right, bottom = (x + radius) * self.scale, (y + radius) * self.scale
        self.draw.ellipse((left, top, right, bottom), fill=color)


def random_background(random: Random) -> Color:
    """White, or a light paper tint."""
    if random.random() < 0.5:
        return (255, 255, 255)
    return (random.randint(232, 255), random.randint(232, 255), random.randint(228, 255))


def random_ink(random: Random) -> Color:
    """Black, or a dark colour with enough contrast on any background of ours."""
    if random.random() < 0.5:
        return (0, 0, 0)
    return (random.randint(0, 80), random.randint(0, 70), random.randint(0, 90))


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


def new_page(random: Random, width: int, height: int, scale: float) -> Canvas:
    """An empty page with a random background."""
    return Canvas(width, height, scale, random_background(random))


def fit_size(page: Canvas, text: str, font: str, size: float, room: float) -> float:
    """The largest size up to `size` at which `text` is at most `room` wide (never under 12)."""
    while size > 12.0 and page.text_width(text, font, size) > room:
        size -= 0.5
    return size
