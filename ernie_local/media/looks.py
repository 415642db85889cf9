"""Looks at an image as a person would before asking about it: is it tiny, blank, on its side, its text small?

The tests are cheap and made for pages of text; a photo gets no note.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ernie_local.media.text_direction import text_is_sideways

# Fewer pixels than one square that the model sees.
_TINY_PIXELS = 28 * 28
_LEAST_CONTRAST = 24
_LOOKED_AT_PIXELS = 4_000_000
# Ink differs from the paper by this much, and covers such a share of a page of text.
_INK_CONTRAST, _INK_SHARES = 64, (0.002, 0.3)
# Lines of text on a page: at least so many, and of at most this share of its side.
_LEAST_LINES, _TALLEST_LINE = 10, 0.04
# The rows with ink of a line are this share of its font size.
_SHARE_OF_FONT = 0.72
_READABLE_PIXELS = 8
# An image is long with such a ratio of its sides, and slices help where it keeps less of them than this.
_LONG, _KEPT = 4, 0.9


def notes_on_looks(image: Image.Image, scale: float) -> tuple[str, ...]:
    """What a user should know of an RGB image, whose side length will be multiplied by `scale`."""
    width, height = image.size
    if width * height < _TINY_PIXELS:
        return (f"only {width} x {height} pixels, less than the 28 x 28 of one square that the model sees",)
    gray = image.convert("L")
    factor = max(1, math.ceil(math.sqrt(width * height / _LOOKED_AT_PIXELS)))
    gray = gray.reduce(factor)
    small = np.asarray(gray.reduce(max(1, min(gray.size) // 256)), np.int16)
    if np.ptp(small) < _LEAST_CONTRAST:
        return ("blank: all of it has nearly one colour",)
    notes = _notes_on_text(gray, factor, scale)
    if max(width, height) > _LONG * min(width, height) and scale < _KEPT:
        num_slices = math.ceil(1 / scale**2)
        slice_width = width if height > width else math.ceil(width / num_slices)
        slice_height = height if width > height else math.ceil(height / num_slices)
        slices = f"magick in.png -crop {slice_width}x{slice_height} +repage slice.png"
        kept = f"a long image, which keeps {scale:.0%} of its side length"
        notes += (f"{kept}; cut into {num_slices} slices it keeps all of it: {slices}",)
    return notes


def _notes_on_text(gray: Image.Image, factor: int, scale: float) -> tuple[str, ...]:
    """Notes on lines of text, where there are any. factor: by which the image is reduced here."""
    paper = int(np.argmax(gray.histogram()))
    ink = np.abs(np.asarray(gray, np.int16) - paper) > _INK_CONTRAST
    if not _INK_SHARES[0] < ink.mean() < _INK_SHARES[1]:
        return ()
    is_sideways = text_is_sideways(ink)
    heights = _line_heights((ink.T if is_sideways else ink).mean(axis=1))
    notes: tuple[str, ...] = ()
    if is_sideways:
        notes = ("its lines of text seem to run up and down: turn the image by 90 degrees first",)
    text_pixels = float(np.median(heights)) * factor / _SHARE_OF_FONT if len(heights) >= _LEAST_LINES else 0
    if 0 < text_pixels * scale < _READABLE_PIXELS:
        num_slices = math.ceil(_READABLE_PIXELS / (text_pixels * scale)) ** 2
        advice = f"crop it to the part that matters, or cut it into {num_slices} slices"
        seen = (
            f"its text is about {text_pixels:.0f} pixels high, {text_pixels * scale:.0f} as the model sees it"
        )
        advice = advice if scale < 1 else "use a sharper scan"
        notes += (f"{seen}, and hard to read under {_READABLE_PIXELS}: {advice}",)
    return notes


def _line_heights(profile: NDArray[Any]) -> NDArray[Any]:
    """Heights of what seem to be lines of text: rows with ink between rows without."""
    has_ink = profile > 0.1 * np.quantile(profile, 0.9)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], has_ink, [False]]).astype(np.int8)))
    heights = edges[1::2] - edges[::2]
    return heights[(heights > 2) & (heights < _TALLEST_LINE * len(profile))]
