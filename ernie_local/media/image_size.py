"""The size that an image is brought to, as the published processor does it. Numbers alone, no pixels."""

from __future__ import annotations

import math

from ernie_local.errors import InputUnreadable

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) that an image is brought to.

    Both are multiples of `factor`; the shape is kept, and height * width stays between the limits, as far
    as whole multiples allow. The rounding is the published one, also where it looks odd (thin images). A
    side more than 200 times the other raises InputUnreadable, as the published processor refuses it.
    """
    check_aspect_ratio(width, height, "the image")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def check_aspect_ratio(width: int, height: int, name: str) -> None:
    """Refuse (InputUnreadable) an image so long and thin that the published processor refuses it too."""
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputUnreadable(
            f"{name}: {width} x {height} pixels, one side {ratio:.1f} times the other, at most "
            f"{MAX_ASPECT_RATIO} times",
            "the model cuts an image into squares, and a strip this thin would be distorted",
            "crop it into shorter pieces and give each as an image of its own",
        )
