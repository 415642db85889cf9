"""Images of a question before the model sees them: opened, measured, and reported to the person.

Owns the line that says what the model will see of an image. Knows nothing of files' formats (media does)
and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ernie_cli.console import Console

if TYPE_CHECKING:
    from ernie_local.media.open_image import OpenedImage
    from ernie_local.media.processor import ImageProcessorConfig

# An image that kept less than this share of its side length has lost three quarters of its pixels.
_STRONGLY_SHRUNK = 0.5


@dataclass(frozen=True, slots=True)
class ImageMeasure:
    """An image and what is left of it; sizes are (width, height) in pixels."""

    name: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    tokens: int

    @property
    def scale(self) -> float:
        """How much of its side length the image keeps: the root of the ratio of the areas."""
        (width, height), (new_width, new_height) = self.original_size, self.resized_size
        return float((new_width * new_height / (width * height)) ** 0.5)

    def line(self) -> str:
        """`invoice.png 2480x3508 -> 1848x2604, 6138 tokens (0.74x)`."""
        (width, height), (new_width, new_height) = self.original_size, self.resized_size
        return (
            f"{self.name} {width}x{height} -> {new_width}x{new_height}, "
            f"{self.tokens} tokens ({self.scale:.2f}x)"
        )


def open_given_images(sources: Sequence[str], stdin: BinaryIO | None = None) -> list[OpenedImage]:
    """Every image that `sources` name, opened now; raises InputUnreadable for one that is none."""
    if not sources:
        return []
    from ernie_local.media.open_image import open_images

    return [opened for source in sources for opened in open_images(source, stdin=stdin)]


def measure(images: Sequence[OpenedImage], processor: ImageProcessorConfig) -> list[ImageMeasure]:
    """What the processor of a model will make of the images, without making it."""
    from ernie_local.media.processor import smart_resize

    reports = []
    for image in images:
        width, height = image.image.size
        new_height, new_width = smart_resize(
            height, width, processor.factor, processor.min_pixels, processor.max_pixels
        )
        tokens = (new_height // processor.factor) * (new_width // processor.factor)
        reports.append(ImageMeasure(image.name, (width, height), (new_width, new_height), tokens))
    return reports


def show_reports(reports: Sequence[ImageMeasure], images: Sequence[OpenedImage], console: Console) -> None:
    """Say what the model will see of each image, and warn where much of it is lost."""
    for report, image in zip(reports, images, strict=True):
        console.note(report.line())
        for note in image.notes:
            console.warn(f"{image.name}: {note}")
        if report.scale < _STRONGLY_SHRUNK:
            console.warn(
                f"{report.name} keeps {report.scale:.0%} of its side length: small print may be unreadable; "
                "crop it to the part that matters"
            )


def split_paths(text: str) -> list[str]:
    """The paths in what a person typed: one with blanks as it stands if it is there, else quoted words."""
    import shlex

    whole = text.strip()
    try:
        paths = [whole] if whole and Path(whole).expanduser().exists() else shlex.split(whole)
    except ValueError:  # a lone quote is part of the name
        paths = [whole]
    return [str(Path(path).expanduser()) for path in paths]
