"""Computes from the size of an image alone how large it is for the model: new size, patches, tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ernie_local.errors import InputUnreadable, parameter
from ernie_local.media.image_view import CropBox
from ernie_local.media.processor_config import ImageProcessorConfig

MAX_ASPECT_RATIO = 200
# The most that a model can see. Larger images are read at a lower resolution, with a note.
MOST_VISIBLE_PIXELS = 28 * 28 * 16384


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What the model sees of an image. Sizes are (width, height) in pixels.

    tokens: placeholders in the prompt, without the two tags around them. notes: what was left out or changed
    when the image was opened. crop: (left, top, right, bottom) of the part of it that was read, None for
    all. max_tokens: the bound that a user has set for them, None without one.
    """

    name: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    patches: int
    tokens: int
    notes: tuple[str, ...] = ()
    crop: CropBox | None = None
    max_tokens: int | None = None

    @property
    def read_size(self) -> tuple[int, int]:
        """(width, height) of the part of the original that was read."""
        if self.crop is None:
            return self.original_size
        left, top, right, bottom = self.crop
        return right - left, bottom - top

    @property
    def scale(self) -> float:
        """New side length over that of the part that was read: the root of the ratio of the areas."""
        (width, height), (new_width, new_height) = self.read_size, self.resized_size
        return float((new_width * new_height / (width * height)) ** 0.5)


def measure_image(
    name: str,
    size: tuple[int, int],
    processor: ImageProcessorConfig,
    notes: tuple[str, ...] = (),
    crop: CropBox | None = None,
) -> ImageReport:
    """What the processor would make of an image of (width, height) `size`, or of a part of it.

    ModelUnusable where it is not known how the model reads images; InputUnreadable for an image too thin for
    its bound of tokens, and as from `smart_resize`.
    """
    processor.check()
    report = ImageReport(name, size, size, 0, 0, notes, crop, processor.max_tokens)
    width, height = report.read_size
    check_aspect_ratio(width, height, name)
    new_height, new_width = smart_resize(
        height, width, processor.factor, processor.min_pixels, processor.max_pixels
    )
    tokens = (new_height // processor.factor) * (new_width // processor.factor)
    if processor.max_tokens is not None and tokens > processor.max_tokens:
        enough = max(tokens, math.ceil(max(width, height) / min(width, height)))
        raise InputUnreadable(
            f"{name}: {width} x {height} pixels take {tokens} tokens, at most {processor.max_tokens} are "
            "allowed",
            f"the model sees whole squares of {processor.factor} pixels, and at least {processor.min_pixels} "
            "pixels, which so long and thin an image fills with more tokens",
            f"{parameter('image_tokens', enough)} or more, or crop the image into shorter pieces",
        )
    patches = tokens * processor.merge_size**2
    return replace(report, resized_size=(new_width, new_height), patches=patches, tokens=tokens)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) to which an image is resized.

    Both are multiples of `factor`. The aspect ratio is kept and height * width is between the limits, as far
    as multiples allow. The rounding is the published one, even where it looks odd (thin images).
    InputUnreadable for a side more than 200 times the other, as in the published processor.
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
    """InputUnreadable for an image so long and thin that the published processor refuses it too."""
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputUnreadable(
            f"{name}: {width} x {height} pixels, one side {ratio:.1f} times the other, at most "
            f"{MAX_ASPECT_RATIO} times",
            "the model cuts an image into squares, and a strip this thin would be distorted",
            "crop it into shorter pieces and give each as an image of its own",
        )
