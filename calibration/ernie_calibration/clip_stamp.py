"""Writes the time on the frames of clips as the original writes it, and knows where its digits are."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ernie_calibration.drawn_image import Glyph, Run, ink_heights, load_font

SIZE_OF_STAMP = 0.1  # of the shorter side of a frame; of the letters for their outline


def stamp_words(seconds: float) -> str:
    """What is written on a frame: "time: 00:01:05.50"."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return f"time: {int(hours):02d}:{int(minutes):02d}:{rest:05.2f}"


def write_stamp(frame: Image.Image, seconds: float, scale: float) -> Run:
    """Write the time into the upper left corner: black with a white outline.

    scale: pixels of `frame` to a page unit. Gives what was written, in page units.
    """
    text, size = stamp_words(seconds), int(min(frame.size) * SIZE_OF_STAMP)
    font, outline = stamp_font(size), int(size * SIZE_OF_STAMP)
    draw = ImageDraw.Draw(frame)
    draw.text((0, 0), text, font=font, fill=(0, 0, 0), stroke_width=outline, stroke_fill=(255, 255, 255))
    middle = sum(font.getmetrics()) / 2 / scale
    glyphs: list[Glyph | None] = []
    ends = (font.getlength(text[:length]) / scale for length in range(len(text) + 1))
    for letter, (start, end) in zip(text, pairwise(ends), strict=True):
        above, below = (middle + height / scale for height in ink_heights(font, letter))
        box = (start, above, end, below)
        glyphs.append(None if letter == " " else Glyph(letter, (start + end) / 2, middle, box))
    return Run(text, tuple(glyphs))


@lru_cache(maxsize=8)
def stamp_font(size: int) -> ImageFont.FreeTypeFont:
    """Roboto, which the original draws with, where it is installed; else the nearest that always is."""
    found = importlib.util.find_spec("fontpkg_roboto")
    if found is None or found.origin is None:
        return load_font("DejaVuSans.ttf", size)
    # The files are found without importing the package, which would register fonts.
    return ImageFont.truetype(str(Path(found.origin).parent / "files" / "Roboto[wdth,wght].ttf"), size)
